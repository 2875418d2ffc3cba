"""Predict one image file with a campaign's champion: ``python -m rescueseg.server.predict_file URL IN OUT``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rescueseg.campaign import Campaign
from rescueseg.errors import RescuesegError, UnreadableVolumeError
from rescueseg.geometry import Box, Spacing
from rescueseg.image_files.registry import open_source
from rescueseg.records import Normalisation, VolumeRecord
from rescueseg.server.uploads import nifti_bytes
from rescueseg.volumes.normalise import normalise
from rescueseg.weak_labels.champion import load_champion


def predict(url: str, source: str, out: Path) -> None:
    """Write the champion's classes (uint8) of an image that states its spacing, on the image's own grid.

    Its intensities are scaled as those of the campaign's volume whose spacing is nearest.

    Raises
    ------
    RescuesegError
        If there is no champion, or the image does not fit it.
    """
    campaign = Campaign.open(url)
    labeller, _ = load_champion(url, campaign.config.classes, campaign.volumes.records())
    image = open_source(source)
    spacing = image.spacing_um_zyx
    if spacing is None:
        raise UnreadableVolumeError("the image does not say its spacing", where="image", todo="Save it with one")
    voxels = np.asarray(image.read(Box((0, 0, 0), image.shape_zyx)))
    voxels = voxels[np.newaxis] if voxels.ndim == 3 else voxels
    label = labeller.label(normalise(voxels, _nearest(campaign.volumes.records(), spacing)), spacing)
    out.write_bytes(nifti_bytes(label.labels, spacing, (0, 0, 0)))


def _nearest(volumes: Sequence[VolumeRecord], spacing: Spacing) -> Normalisation:
    def distance(other: Spacing) -> float:
        return sum(abs(math.log(a / b)) for a, b in zip(spacing, other, strict=True))

    return min(volumes, key=lambda v: distance(v.spacing_um_zyx)).normalisation


if __name__ == "__main__":
    try:
        predict(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except RescuesegError as error:
        sys.exit(str(error))
