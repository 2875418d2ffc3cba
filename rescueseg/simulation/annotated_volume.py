"""The annotated volume that a benchmark runs on: read from files or from a campaign, and cropped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.errors import ConfigError, LabelError
from rescueseg.geometry import ZYX, Box, Spacing
from rescueseg.records import LabelType
from rescueseg.storage import replace_atomically
from rescueseg.volumes.opening import open_image, open_truth
from rescueseg.volumes.volume_files import VolumeImport

VOLUME = "volume"
"""Its id in the campaigns of a benchmark."""


@dataclass(frozen=True, eq=False)
class AnnotatedVolume:
    """A volume with its truth.

    Parameters
    ----------
    image : ndarray, (c, z, y, x)
        As acquired.
    truth : ndarray of integers, (z, y, x)
        Classes or numbered objects.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    truth_type : {"semantic", "instance"}
        What the truth's numbers mean.
    classes : tuple of str
        Names of classes 1…K.
    """

    image: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    spacing_um_zyx: Spacing
    truth_type: LabelType
    classes: tuple[str, ...]

    @property
    def shape_zyx(self) -> ZYX:
        """Shape in voxels."""
        z, y, x = self.truth.shape
        return z, y, x

    def write(self, folder: Path) -> VolumeImport:
        """Write image and truth as TIFF files, and return what a campaign imports."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "image.tif", folder / "truth.tif"
        stack, axes = (self.image[0], "ZYX") if len(self.image) == 1 else (self.image.swapaxes(0, 1), "ZCYX")
        for path, array, order in zip(paths, (stack, _writable(self.truth)), (axes, "ZYX"), strict=True):
            with replace_atomically(path) as part:
                tifffile.imwrite(part, array, photometric="minisblack", metadata={"axes": order})
        return VolumeImport(
            str(paths[0]),
            volume_id=VOLUME,
            spacing=self.spacing_um_zyx,
            truth=str(paths[1]),
            truth_type=self.truth_type,
        )


def read_files(volume: VolumeImport, classes: Sequence[str], crop: Box | None = None) -> AnnotatedVolume:
    """Read an image and its truth.

    Parameters
    ----------
    volume : VolumeImport
        The files.
    classes : sequence of str
        Names of classes 1…K.
    crop : Box, optional
        The part that is read; all of it when omitted.

    Raises
    ------
    VolumeError, LabelError
        If they cannot be read, or there is no truth.
    ConfigError
        If the crop reaches beyond the image.
    """
    with closing(volume.open_image()) as image:
        truth = volume.open_truth(image, classes)
        if truth is None:
            raise LabelError("a benchmark needs ground truth", where=volume.path, todo="Give it with --truth")
        with closing(truth):
            box = checked_crop(crop, image.shape_zyx, volume.path)
            labels = truth.read(box)[0]
            spacing = volume.spacing_of(image)
            return AnnotatedVolume(image.read(box), labels, spacing, volume.truth_type, tuple(classes))


def read_campaign(campaign: Campaign, volume_id: str = "", crop: Box | None = None) -> AnnotatedVolume:
    """Read a volume of a campaign that came with truth.

    Parameters
    ----------
    campaign : Campaign
        Nothing is changed in it.
    volume_id : str
        Which volume; the only one with truth when empty.
    crop : Box, optional
        The part that is read; all of it when omitted.

    Raises
    ------
    ConfigError
        If no volume has a truth, several have and none is named, or the crop reaches beyond it.
    """
    known = {v.volume_id: v for v in campaign.volumes.records() if v.truth is not None}
    if volume_id not in known and (volume_id or len(known) != 1):
        raise ConfigError(
            f"there is no volume '{volume_id}' with ground truth"
            if volume_id
            else f"{len(known)} volumes have a truth",
            where=campaign.url,
            todo=f"Name one with --volume: {', '.join(known)}" if known else "Import a volume with --truth",
        )
    record = known[volume_id or next(iter(known))]
    box = checked_crop(crop, record.shape_zyx, record.volume_id)
    truth = open_truth(campaign.volumes, record.volume_id, instances=record.truth == "instance")
    image = np.asarray(open_image(campaign.volumes, record.volume_id)[(slice(None), *box.slices)])
    assert record.truth is not None, "those without were left out"
    return AnnotatedVolume(
        image, np.asarray(truth[box.slices]), record.spacing_um_zyx, record.truth, tuple(campaign.config.classes)
    )


def checked_crop(crop: Box | None, shape_zyx: ZYX, where: str) -> Box:
    """Return the crop, all of the volume where there is none.

    Raises
    ------
    ConfigError
        If it reaches beyond the volume.

    Examples
    --------
    >>> str(checked_crop(None, (4, 8, 8), "stack.tif"))
    '[0:4, 0:8, 0:8]'
    >>> checked_crop(Box((0, 0, 4), (4, 8, 8)), (4, 8, 8), "stack.tif")
    Traceback (most recent call last):
    ...
    rescueseg.errors.ConfigError: stack.tif: the crop [0:4, 0:8, 4:12] reaches beyond 4×8×8 voxels. Give a smaller one
    """
    whole = Box((0, 0, 0), shape_zyx)
    if crop is not None and not whole.contains(crop):
        size = "×".join(map(str, shape_zyx))
        raise ConfigError(f"the crop {crop} reaches beyond {size} voxels", where=where, todo="Give a smaller one")
    return crop or whole


def _writable(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return labels as a type that readers of TIFF take: masks as 8 bit, and 64-bit numbers as 32 bit where they fit."""
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if labels.dtype.itemsize == 8 and labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < 2**32:
        return labels.astype(np.uint32)
    return labels
