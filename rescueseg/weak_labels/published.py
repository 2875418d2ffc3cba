"""What weights from elsewhere are as a weak labeller: what is kept of them, and what a person is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rescueseg.errors import WeakLabelError
from rescueseg.records import VolumeRecord
from rescueseg.storage import digest_json
from rescueseg.weak_labels.base import Float32, WeakLabeller
from rescueseg.weak_labels.choice import Sources, UsedWeights

CELLPOSE_LICENCE = (
    "published Cellpose weights are trained on data under CC-BY-NC: whether your use is allowed is for you to check, and "
    "weights of your own are under the terms that you set"
)


@dataclass(frozen=True)
class Published:
    """Weights that were read, and what labels with them.

    Parameters
    ----------
    used : UsedWeights
        What is kept of them beside the masks.
    notes : tuple of str
        What a person is told.
    labeller : callable
        Returns the labeller of a volume, from its record and parts of its image, normalised czyx.
    """

    used: UsedWeights
    notes: tuple[str, ...]
    labeller: Callable[[VolumeRecord, Sequence[Float32]], WeakLabeller]

    @property
    def digest(self) -> str:
        """Of all that its masks depend on beside the volumes."""
        used = self.used
        by_name = [] if used.pixels is None else [used.pixels]
        return digest_json([used.method, used.weights_digest, used.diameter_um, *by_name])

    @classmethod
    def of(
        cls,
        method: str,
        sources: Sources,
        weights_digest: str,
        licence: str,
        note: str,
        labeller: Callable[[VolumeRecord, Sequence[Float32]], WeakLabeller],
        pixels: float | None = None,
    ) -> Published:
        """Return weights with the licence that a person gives, else the sentence on that of such weights.

        The pixels are how wide objects are shown, where no digest says it.
        """
        used = UsedWeights(
            method=method,
            weights=Path(sources.weights).name,
            weights_digest=weights_digest,
            licence=sources.licence or licence,
            diameter_um=sources.diameter_um,
            pixels=pixels,
        )
        return cls(used, (f"Licence of the weights: {used.licence}", note), labeller)


def check_channels(volumes: Sequence[VolumeRecord], least: int, most: int, where: str) -> None:
    """Refuse volumes of fewer or more channels than a network takes.

    Raises
    ------
    WeakLabelError
        It names the volume.
    """
    for volume in volumes:
        if not least <= volume.channels <= most:
            raise WeakLabelError(
                f"the network takes {most} channels, volume '{volume.volume_id}' has {volume.channels}",
                where=where,
                todo="Use weights of as many channels, or import the channels that matter alone",
            )
