"""What every image format is opened as: one Protocol, one implementation over a lazily read array."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import nibabel.filebasedimages
import nrrd
import numpy as np
import numpy.typing as npt
import tifffile
import zarr.errors

from rescueseg.errors import InvalidVolumeError, RescuesegError, UnreadableVolumeError
from rescueseg.geometry import ZYX, Box, Spacing, zyx

UNITS_UM = {
    "m": 1e6, "meter": 1e6, "metre": 1e6, "cm": 1e4, "centimeter": 1e4, "mm": 1e3, "millimeter": 1e3,
    "millimetre": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0, "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3, "angstrom": 1e-4, "å": 1e-4, "pm": 1e-6,
    "picometer": 1e-6,
}  # fmt: skip
"""Micrometre per unit, by the names that file formats use."""


class Source(Protocol):
    """A 3D image in some file, read box by box."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``zyx``, or ``czyx`` where there are several channels."""
        ...

    @property
    def shape_zyx(self) -> ZYX:
        """Shape without channels."""
        ...

    @property
    def channels(self) -> int:
        """Number of channels, at least 1."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type, native byte order."""
        ...

    @property
    def spacing_um_zyx(self) -> Spacing | None:
        """Voxel size in micrometre; None when the metadata do not state it with a unit."""
        ...

    @property
    def spacing_note(self) -> str:
        """What the metadata say about the spacing when that is not enough."""
        ...

    @property
    def hints(self) -> dict[str, str]:
        """What the metadata say of microscope, objective and preprocessing; see `rescueseg.volumes.hints`."""
        ...

    @property
    def chunked(self) -> bool:
        """Whether a box can be read without reading the whole file."""
        ...

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box that lies inside the volume, as ``czyx``.

        Raises
        ------
        UnreadableVolumeError
            If the file is damaged there.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@dataclass
class ArraySource:
    """A `Source` over anything that slices like an array.

    Parameters
    ----------
    array : array-like
        With `shape`, `dtype` and basic slicing.
    axes : str
        One letter per axis of `array`: z, y, x, c (channel), t (must have length 1), and s (colour samples, taken as
        channels).
    spacing_um_zyx : tuple of float or None
        Voxel size in micrometre.
    where : str
        Path, for messages.
    """

    array: Any
    axes: str
    spacing_um_zyx: Spacing | None
    where: str
    chunked: bool = True
    spacing_note: str = ""
    hints: dict[str, str] = field(default_factory=dict)
    on_close: tuple[Callable[[], object], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.axes = self.axes.lower().replace("s", "c")
        shape = tuple(int(n) for n in self.array.shape)
        todo = "Give one 3D image: axes z, y, x and perhaps channels"
        if len(shape) != len(self.axes) or len(set(self.axes)) != len(self.axes):
            raise InvalidVolumeError(f"axes '{self.axes}' do not fit shape {shape}", where=self.where, todo=todo)
        length = dict(zip(self.axes, shape, strict=True))
        if 0 in shape:
            raise InvalidVolumeError(f"the image is empty: shape {shape}", where=self.where, todo=todo)
        if length.get("t", 1) > 1 and "z" not in length:
            todo = "If the planes are a z-stack saved as time points, re-save it with z and t swapped"
        if "z" not in length or "y" not in length or "x" not in length:
            raise InvalidVolumeError(f"not a 3D image: axes '{self.axes}', shape {shape}", where=self.where, todo=todo)
        extra = [a for a in self.axes if a not in "czyx" and length[a] > 1]
        if extra:
            raise InvalidVolumeError(
                f"axis '{extra[0]}' has length {length[extra[0]]}; axes '{self.axes}', shape {shape}",
                where=self.where,
                todo="Save one time point or position per file",
            )
        if np.dtype(self.array.dtype).kind not in "biuf":
            raise InvalidVolumeError(
                f"voxel type {self.array.dtype} is no real number", where=self.where, todo="Convert to 8 or 16 bit"
            )
        if self.spacing_um_zyx is not None and not all(np.isfinite(s) and s > 0 for s in self.spacing_um_zyx):
            self.spacing_note = f"the metadata say {self.spacing_um_zyx}"
            self.spacing_um_zyx = None
        self._length = length

    @property
    def shape_zyx(self) -> ZYX:
        """Shape without channels."""
        return zyx(self._length[a] for a in "zyx")

    @property
    def channels(self) -> int:
        """Number of channels, at least 1."""
        return self._length.get("c", 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """``zyx``, or ``czyx`` where there are several channels."""
        return self.shape_zyx if self.channels == 1 else (self.channels, *self.shape_zyx)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type, native byte order."""
        native: np.dtype[Any] = np.dtype(self.array.dtype).newbyteorder("=")
        return native

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box that lies inside the volume, as ``czyx``."""
        selection: dict[str, slice] = dict(zip("zyx", box.slices, strict=True))
        with unreadable(self.where):
            voxels = np.asarray(self.array[tuple(selection.get(a, slice(None)) for a in self.axes)])
        extra = tuple(i for i, a in enumerate(self.axes) if a not in "czyx")
        axes = "".join(a for a in self.axes if a in "czyx")
        voxels = voxels.squeeze(extra)
        if "c" not in axes:
            voxels, axes = voxels[np.newaxis], "c" + axes
        return voxels.transpose([axes.index(a) for a in "czyx"]).astype(self.dtype, copy=False)

    def close(self) -> None:
        """Close the file."""
        for action in self.on_close:
            action()


@contextmanager
def unreadable(where: str) -> Iterator[None]:
    """Turn a reader's error into an `UnreadableVolumeError`."""
    try:
        yield
    except RescuesegError:
        raise
    except FileNotFoundError as error:
        raise UnreadableVolumeError("there is no such file", where=where, todo="Check the path") from error
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, EOFError, RuntimeError, MemoryError, zlib.error,
        tifffile.TiffFileError, nibabel.filebasedimages.ImageFileError, nrrd.NRRDError, zarr.errors.BaseZarrError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableVolumeError(
            f"the file cannot be read ({reason})", where=where, todo="Check that it is complete and of a known format"
        ) from error


def to_um(value: float, unit: str | None) -> float | None:
    """Return a length in micrometre, None for an unknown unit."""
    factor = UNITS_UM.get((unit or "").strip().lower())
    return None if factor is None else float(value) * factor
