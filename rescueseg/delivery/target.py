"""One volume on its way to what is delivered: what every step over it is given."""

from __future__ import annotations

from dataclasses import dataclass

from rescueseg.delivery.folder import DeliveryFolder, SourceVolume
from rescueseg.delivery.label_arrays import LabelArray
from rescueseg.delivery.records import DeliveryRule
from rescueseg.geometry import ZYX, Spacing


@dataclass(frozen=True)
class TargetVolume:
    """A volume whose labels are made; it can be pickled and holds no voxels, so blocks get it.

    Parameters
    ----------
    source : SourceVolume
        Its image and its maps.
    out : DeliveryFolder
        Where its labels go.
    rule : DeliveryRule
        How they are made.
    shape_zyx : tuple of int
        In voxels.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    block_zyx : tuple of int
        Blocks of all passes, and shards of its labels. No result depends on them.
    """

    source: SourceVolume
    out: DeliveryFolder
    rule: DeliveryRule
    shape_zyx: ZYX
    spacing_um_zyx: Spacing
    block_zyx: ZYX

    @property
    def volume_id(self) -> str:
        """Its id."""
        return self.source.volume_id

    @property
    def image_url(self) -> str:
        """The OME-Zarr that holds its labels."""
        return self.out.image_url(self.volume_id)

    def label_url(self, name: str) -> str:
        """Return the URL of a label image, such as "mask"."""
        return f"{self.image_url}/labels/{name}"

    def labels(self, name: str) -> LabelArray:
        """Return a label image at full resolution."""
        return LabelArray(self.label_url(name), "0")
