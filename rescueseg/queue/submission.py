"""What is handed in: labels that lie in the campaign, and how they were made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rescueseg.errors import QueueError
from rescueseg.queue.execute import labels_digest
from rescueseg.records import LabelReference


@dataclass(frozen=True)
class StoredLabels:
    """Labels of a patch that lie in the campaign.

    Parameters
    ----------
    classes : LabelReference
        Where the classes lie, and their digest.
    voxels_corrected : int
        Voxels that differ from the mask they started from.
    instances : LabelReference, optional
        Where the objects lie, in campaigns that annotate instances.
    """

    classes: LabelReference
    voxels_corrected: int
    instances: LabelReference | None = None

    @property
    def digest(self) -> str:
        """Digest of classes and objects together."""
        return labels_digest(self.classes.digest, self.instances.digest if self.instances else None)


@dataclass(frozen=True)
class Work:
    """How labels were made.

    Parameters
    ----------
    tool : str
        What they were made with.
    seconds : float, optional
        Working time, where a person states it; else the one counted under the lease.
    active_seconds : float
        Work since the last heartbeat, as in a heartbeat.
    overridden : sequence of str
        Codes of the warnings that were overruled.

    Raises
    ------
    QueueError
        If a time is negative or no number.
    """

    tool: str
    seconds: float | None = None
    active_seconds: float = 0.0
    overridden: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_seconds(self.seconds or 0.0)
        check_seconds(self.active_seconds)


def annotation_columns(labels: StoredLabels, tool: str) -> dict[str, Any]:
    """Return the columns of a version that come with its labels."""
    instances = labels.instances
    return {
        "labels": labels.classes.path,
        "labels_digest": labels.classes.digest,
        "instances": instances.path if instances else None,
        "instances_digest": instances.digest if instances else None,
        "tool": tool,
        "voxels_corrected": int(labels.voxels_corrected),
    }


def check_seconds(seconds: float) -> None:
    """Make sure that a working time is a number of seconds from 0 on.

    Raises
    ------
    QueueError
        If it is not.
    """
    if not 0 <= seconds < math.inf:
        raise QueueError(f"{seconds} is no working time in seconds", todo="Give a number from 0 on")
