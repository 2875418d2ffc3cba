"""Readers of labels, block by block; they can be pickled, so blocks get them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.errors import storage_errors
from rescueseg.geometry import Box
from rescueseg.image_files.zarr_url import zarr_store


class LabelReader(Protocol):
    """Reads any box of a volume as integers: 0 is background, equal values that touch are connected."""

    def read(self, box: Box) -> npt.NDArray[np.integer[Any]]:
        """Return the labels in a box of the volume, zyx."""
        ...


@dataclass(frozen=True)
class ZarrLabels:
    """Labels in a Zarr array.

    Parameters
    ----------
    url : str
        The Zarr folder.
    path : str
        The array in it, zyx.
    value : int, optional
        Only this label, as a mask of ones; all labels when omitted.
    inverted : bool
        Read what is not the label, or not any label, as ones, and the rest as zeros.
    """

    url: str
    path: str
    value: int | None = None
    inverted: bool = False

    def read(self, box: Box) -> npt.NDArray[np.integer[Any]]:
        """Return the labels in a box of the volume, zyx; masks are uint8."""
        with storage_errors(self.url):
            array = zarr.open_array(store=zarr_store(self.url), path=self.path, mode="r", zarr_format=3)
            labels: npt.NDArray[np.integer[Any]] = np.asarray(array[box.slices])
        if self.value is None:
            return (labels == 0).view(np.uint8) if self.inverted else labels
        equal: npt.NDArray[np.bool_] = labels == self.value
        return (~equal if self.inverted else equal).view(np.uint8)
