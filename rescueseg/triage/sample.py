"""What the triage reads of the volumes: a bounded sample of their chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rescueseg.campaign import VolumeFolder
from rescueseg.errors import CampaignError
from rescueseg.geometry import ZYX, Box
from rescueseg.progress import Progress
from rescueseg.records import VolumeRecord
from rescueseg.triage.evidence import ImageMeasures, measure_chunks
from rescueseg.triage.suggestion import ranges
from rescueseg.volumes import open_image
from rescueseg.volumes.subsample import sample_boxes

SAMPLE_VOXELS = 24_000_000
"""Voxels that are looked at, over all volumes."""


@dataclass(frozen=True)
class Sample:
    """What was measured on a bounded sample of every volume's chunks.

    Parameters
    ----------
    measures : dict of str to ImageMeasures
        By volume.
    places : dict of str to list of (Box, float)
        By volume, patches and the range of their intensities.
    chunks_read, chunks : int
        Chunks read, and chunks in all.
    """

    measures: dict[str, ImageMeasures]
    places: dict[str, list[tuple[Box, float]]]
    chunks_read: int
    chunks: int


def check_channel(folder: VolumeFolder, channel: int) -> None:
    """Refuse a campaign without a volume, or with one that lacks the channel."""
    volumes = folder.records()
    if not volumes:
        raise CampaignError("the campaign has no volume", where=folder.url, todo="Add one with 'rescueseg add'")
    if any(channel >= v.channels for v in volumes):
        raise CampaignError(f"not every volume has a channel {channel}", where=folder.url, todo="Count channels from 0")


def measure_volumes(
    folder: VolumeFolder, channel: int, shapes: Mapping[str, ZYX], progress: Progress | None = None
) -> Sample:
    """Measure a bounded sample of every volume's chunks; `shapes` are those of a patch, by volume."""
    volumes = folder.records()
    samples: list[tuple[VolumeRecord, Any, list[Box]]] = []
    total = 0
    for volume in volumes:
        array = open_image(folder, volume.volume_id)
        chunk = array.chunks[-3:]
        boxes = sample_boxes(volume.shape_zyx, chunk, SAMPLE_VOXELS // len(volumes), "triage", volume.volume_id)
        samples.append((volume, array, boxes))
        total += int(np.prod([-(-n // c) for n, c in zip(volume.shape_zyx, chunk, strict=True)]))
    n_read, n_boxes = 0, sum(len(boxes) for _, _, boxes in samples)
    measures, places = {}, {}
    for volume, array, boxes in samples:
        name, chunks = volume.volume_id, []
        for box in boxes:
            chunks.append((box, np.asarray(array[(channel, *box.slices)])))
            n_read += 1
            if progress is not None:
                progress("chunk", n_read, n_boxes)
        measures[name] = measure_chunks(chunks, volume.spacing_um_zyx)
        places[name] = [
            place for box, values in chunks for place in ranges(box, values, shapes[name], volume.shape_zyx)
        ]
    return Sample(measures, places, n_read, total)
