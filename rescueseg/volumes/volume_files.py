"""Which files become a volume, and what a person says of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rescueseg.campaign import check_id
from rescueseg.errors import MissingSpacingError
from rescueseg.geometry import Spacing
from rescueseg.image_files.label_files import Grid, open_labels
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.slices import is_planes, planes_name
from rescueseg.image_files.source import Source, Statement
from rescueseg.records import LabelType

_EXTENSION = re.compile(
    r"(\.ome)?\.(tiff?|btf|tf[28]|lsm|stk|nii|nii\.(gz|bz2)|hdr|img|img\.gz|nrrd|nhdr|zarr|h5|hdf5|hdf|ims|czi|nd2|lif|mrc|mrcs|rec|map|st|ali|nc)(?=$|[:/])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class VolumeImport:
    """A volume to import: its files, and what a person says of them.

    Parameters
    ----------
    path : str
        Image in any format of `open_source`.
    volume_id : str, optional
        Its name in the campaign; made from the file's when omitted.
    domain : str, optional
        Acquisition group; volumes of one dtype and spacing share one when omitted.
    spacing : sequence of float, optional
        Voxel size z, y, x in micrometre; wins over the metadata.
    truth : str, optional
        Ground truth of the same shape, any format.
    truth_type : {"semantic", "instance"}
        Semantic: 0 background, 1…K classes, 255 ignore. Instance: every object its own number.
    said : Statement, optional
        What the file of the image does not say; of the truth too, where both are of one format.
    distinct : bool
        Whether it shows another specimen than the volumes that it looks like; see `rescueseg.volumes.comparison`.
    distinct_from : sequence of str
        Ids of the volumes of which this is so, where it is not of all.
    """

    path: str
    volume_id: str | None = None
    domain: str | None = None
    spacing: Sequence[float] | None = None
    truth: str | None = None
    truth_type: LabelType = "semantic"
    said: Statement | None = None
    distinct: bool = False
    distinct_from: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Id of the volume.

        Raises
        ------
        CampaignError
            If it is not valid.
        """
        return check_id(default_id(self.origin) if self.volume_id is None else self.volume_id, "volume id")

    @property
    def origin(self) -> str:
        """Path that the volume is named by: the file's, or that of the folder of its planes."""
        return planes_name(self.path) if is_planes(self.path) else self.path

    def open_image(self) -> Source:
        """Open the image. Raises as `open_source` does."""
        return open_source(self.path, self.said)

    def open_truth(self, image: Source, classes: Sequence[str]) -> Source | None:
        """Open the ground truth, laid on the voxels of the image; None where there is none.

        Parameters
        ----------
        image : Source
            The image.
        classes : sequence of str
            Names of classes 1…K, by which a segmentation of 3D Slicer is read.

        Raises
        ------
        UnreadableVolumeError, LabelError
            If it cannot be read, or does not lie on the image.
        """
        if self.truth is None:
            return None
        names = {name: number for number, name in enumerate(classes, start=1)} if self.truth_type == "semantic" else {}
        formats = {(_EXTENSION.search(file) or [""])[0].lower() for file in (self.path, self.truth)}
        return open_labels(self.truth, Grid.of(image), names, self.said if len(formats) == 1 else None)

    def spacing_of(self, image: Source) -> Spacing:
        """Return the voxel size in micrometre, z y x: `spacing` where it is given, else that of the metadata.

        Raises
        ------
        MissingSpacingError
            If there is none, or `spacing` is no voxel size.
        """
        if self.spacing is not None:
            values = [float(v) for v in self.spacing]
            if len(values) != 3 or not all(np.isfinite(v) and v > 0 for v in values):
                raise MissingSpacingError(
                    f"the spacing {values} is no voxel size",
                    where=self.path,
                    todo="Give three lengths in micrometre: z y x",
                )
            return values[0], values[1], values[2]
        if image.spacing_um_zyx is None:
            note = f" ({image.spacing_note})" if image.spacing_note else ""
            raise MissingSpacingError(
                f"the voxel size is not known{note}", where=self.path, todo="Give it in micrometre: --spacing Z,Y,X"
            )
        return image.spacing_um_zyx


def default_id(path: str) -> str:
    """Return a volume id made from a file name, safe whatever the name is."""
    stem = _EXTENSION.sub("", path.rstrip("/"))
    last = re.split(r"[/\\]", stem.split(":")[0] if "://" not in stem else stem)[-1]
    clean = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", last).strip("-._")
    return clean[:64] or "volume"
