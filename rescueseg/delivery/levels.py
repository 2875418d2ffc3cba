"""The resolution levels of delivered images, and planes of them that need little memory whatever the volume's size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.errors import damaged
from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.volumes.ome_zarr import level_paths


@dataclass(frozen=True)
class Levels:
    """An image or a label image with its coarser levels.

    Parameters
    ----------
    arrays : tuple of zarr.Array
        ``czyx`` or ``zyx``, finest first; empty where there is no image.
    """

    arrays: tuple[zarr.Array[Any], ...]

    @classmethod
    def open(cls, url: str) -> Levels:
        """Open an image read-only; what is not there has no levels.

        Raises
        ------
        StorageError
            If its metadata are damaged.
        """
        try:
            group = zarr.open_group(zarr_store(url), mode="r", zarr_format=3)
        except FileNotFoundError:
            return cls(())
        attributes: dict[str, Any] = group.attrs.asdict()
        if "multiscales" not in attributes.get("ome", {}):
            return cls(())
        arrays = [group.get(path) for path in level_paths(attributes)]
        if not all(isinstance(array, zarr.Array) for array in arrays):
            raise damaged(url, "a resolution level is missing")
        return cls(tuple(array for array in arrays if isinstance(array, zarr.Array)))

    def __bool__(self) -> bool:
        return bool(self.arrays)

    @property
    def shape_zyx(self) -> ZYX:
        """Shape at full resolution."""
        return zyx(self.arrays[0].shape[-3:])

    def factors(self, number: int) -> ZYX:
        """Return how many voxels of full resolution one of a level stands for, along each axis."""
        shape = self.arrays[number].shape[-3:]
        return zyx(2 ** round(math.log2(n / m)) for n, m in zip(self.shape_zyx, shape, strict=True))

    def finest(self, box: Box, most_voxels: int) -> int:
        """Return the finest level at which a box has at most so many voxels; the coarsest where none has so few."""
        for number in range(len(self.arrays)):
            if self._inside(box, number).size <= most_voxels:
                return number
        return len(self.arrays) - 1

    def read(self, box: Box, number: int) -> tuple[npt.NDArray[Any], Box]:
        """Return the voxels of a level that cover a box, and what they cover, in voxels of full resolution."""
        inside, factors = self._inside(box, number), self.factors(number)
        array = self.arrays[number]
        voxels = np.asarray(array[(*(slice(None),) * (array.ndim - 3), *inside.slices)])
        start = [o * f for o, f in zip(inside.offset_zyx, factors, strict=True)]
        stop = [o * f for o, f in zip(inside.stop_zyx, factors, strict=True)]
        return voxels, Box.from_bounds(start, stop)

    def _inside(self, box: Box, number: int) -> Box:
        """Return the voxels of a level that a box touches."""
        factors, shape = self.factors(number), self.arrays[number].shape[-3:]
        start = [min(o // f, n - 1) for o, f, n in zip(box.offset_zyx, factors, shape, strict=True)]
        stop = [min(math.ceil(o / f), n) for o, f, n in zip(box.stop_zyx, factors, shape, strict=True)]
        return Box.from_bounds(start, [max(a + 1, b) for a, b in zip(start, stop, strict=True)])
