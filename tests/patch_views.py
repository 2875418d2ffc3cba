"""Patches as a client sees them, made of arrays."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.client import PatchView
from rescueseg.annotation.formats.base import Frame
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import TicketRecord
from rescueseg.randomness import random_generator

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def view_of(
    frame: Frame, start: PatchLabels, context: Box | None = None, image: npt.NDArray[Any] | None = None
) -> PatchView:
    """Return a pool patch; without an image, one that numbers its voxels."""
    around = context or frame.box
    ticket = TicketRecord(
        ticket_id=frame.ticket_id, volume_id="v", box=frame.box, status="leased", created_at=NOW, updated_at=NOW
    )
    shown = np.arange(around.size, dtype=np.uint16).reshape(1, *around.shape_zyx) if image is None else image
    entropy = np.linspace(0, 1, around.size, dtype=np.float32).reshape(around.shape_zyx)
    return PatchView(ticket, around, frame.spacing_um_zyx, shown, start, None, entropy)


def random_labels(frame: Frame, seed: int, largest: int = 2**32 - 1) -> PatchLabels:
    """Return labels with every kind of value, at least one voxel of them annotated."""
    rng = random_generator(seed, "labels")
    shape = frame.box.shape_zyx
    if frame.kind == "instance":
        few = np.array([0, 1, 254, 255, 256, 65535, 65536, 70000, 2**31, 2**32 - 1])
        ids = rng.choice(few[few <= largest], size=shape)
        return PatchLabels.of_instances(ids, rng.random(shape) < 0.2)
    classes = rng.choice(np.array([*range(len(frame.classes) + 1), 255], np.uint8), size=shape)
    classes.flat[0] = 0
    return PatchLabels(classes)
