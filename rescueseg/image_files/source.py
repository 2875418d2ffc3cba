"""What every image file is opened as: one Protocol, one implementation over a lazily read array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rescueseg.errors import InvalidVolumeError, RescuesegError, UnreadableVolumeError
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.image_files.placement import Placement

POSITION_AXES = "prm"
"""Axes that count places on a stage: positions, regions, mosaic tiles."""


@dataclass(frozen=True)
class Statement:
    """What a person says of a file that the file itself does not say.

    Parameters
    ----------
    axes : str
        One letter per axis in the file's order: z, y, x, c (channel), t, p (position). Empty: the file decides.
    series : int, optional
        Which image of a file that holds several, counted from 0.
    position : int, optional
        Which position of a file that holds several, counted from 0.
    accept_holes : bool
        Take chunks that are absent as they read, where they look lost.
    """

    axes: str = ""
    series: int | None = None
    position: int | None = None
    accept_holes: bool = False


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
        """What the metadata say of microscope, objective and preprocessing; see `rescueseg.image_files.hints`."""
        ...

    @property
    def chunked(self) -> bool:
        """Whether a box can be read without reading the whole file."""
        ...

    @property
    def placement(self) -> Placement | None:
        """Where the grid lies in the file's space; None where the file says nothing of it."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was understood of the file that a person should look at, a sentence each."""
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
        One letter per axis of `array`: z, y, x, c (channel), t (must have length 1), s (colour samples, taken as
        channels), p, r or m (positions).
    spacing_um_zyx : tuple of float or None
        Voxel size in micrometre.
    where : str
        Path, for messages.
    said : Statement
        Its position picks one of several.
    """

    array: Any
    axes: str
    spacing_um_zyx: Spacing | None
    where: str
    chunked: bool = True
    spacing_note: str = ""
    hints: dict[str, str] = field(default_factory=dict)
    on_close: tuple[Callable[[], object], ...] = field(default=(), repr=False)
    placement: Placement | None = None
    remarks: tuple[str, ...] = ()
    said: Statement = Statement()

    def __post_init__(self) -> None:
        self.axes = _colours_as_channels(self.axes.lower())
        shape = tuple(int(n) for n in self.array.shape)
        self._fixed: dict[str, int] = {}
        self._length = self._check_axes(shape)
        if np.dtype(self.array.dtype).kind not in "biuf":
            raise InvalidVolumeError(
                f"voxel type {self.array.dtype} is no real number", where=self.where, todo="Convert to 8 or 16 bit"
            )
        if self.spacing_um_zyx is not None and not all(np.isfinite(s) and s > 0 for s in self.spacing_um_zyx):
            self.spacing_note = f"the metadata say {self.spacing_um_zyx}"
            self.spacing_um_zyx = None

    def _check_axes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the length of each axis, and pick the position that was asked for."""
        todo = "Give one 3D image: axes z, y, x and perhaps channels"
        if len(shape) != len(self.axes) or len(set(self.axes)) != len(self.axes):
            raise InvalidVolumeError(f"axes '{self.axes}' do not fit shape {shape}", where=self.where, todo=todo)
        length = dict(zip(self.axes, shape, strict=True))
        if 0 in shape:
            raise InvalidVolumeError(f"the image is empty: shape {shape}", where=self.where, todo=todo)
        if self.said.position and not set(self.axes) & set(POSITION_AXES):
            raise InvalidVolumeError(
                f"there is no position {self.said.position}: it holds none",
                where=self.where,
                todo="Leave --position out",
            )
        for axis in (a for a in self.axes if a in POSITION_AXES):
            self._fixed[axis] = self._position(length[axis])
        if "z" not in length or "y" not in length or "x" not in length:
            raise InvalidVolumeError(
                f"not a 3D image: axes '{self.axes}', shape {shape}", where=self.where, todo=_missing_axis(length)
            )
        extra = [a for a in self.axes if a not in "czyx" and a not in self._fixed and length[a] > 1]
        if extra:
            name = "time points" if extra[0] == "t" else f"entries along axis '{extra[0]}'"
            raise InvalidVolumeError(
                f"it holds {length[extra[0]]} {name}; axes '{self.axes}', shape {shape}",
                where=self.where,
                todo="Save one time point per file, or, where the axis is something else, say so with --axes",
            )
        return length

    def _position(self, count: int) -> int:
        said = self.said.position
        if said is None and count == 1:
            return 0
        if said is None or not 0 <= said < count:
            asked = "" if said is None else f", there is no position {said}"
            raise InvalidVolumeError(
                f"it holds {count} positions{asked}; axes '{self.axes}'",
                where=self.where,
                todo=f"Say which with --position, 0 to {count - 1}",
            )
        return said

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
        native: np.dtype[Any] = np.dtype(np.dtype(self.array.dtype).newbyteorder("=").str)
        return native  # of two names for one type, such as long and long long, the one Zarr knows

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box that lies inside the volume, as ``czyx``."""
        selection: dict[str, slice] = dict(zip("zyx", box.slices, strict=True))
        selection |= {axis: slice(index, index + 1) for axis, index in self._fixed.items()}
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


def _colours_as_channels(axes: str) -> str:
    """Return axes with colour samples as the channel axis, where there is no other."""
    return axes if "c" in axes else axes.replace("s", "c")


def _missing_axis(length: dict[str, int]) -> str:
    if length.get("t", 1) > 1 and "z" not in length:
        return "If its time points are really the planes of a stack, say so with --axes, z in the place of t"
    if length.get("c", 1) > 1 and "z" not in length:
        return "If its channels are really the planes of a stack, say so with --axes, z in the place of c"
    if "z" not in length:
        return (
            "A plane is no volume. Give the folder of the planes, or a pattern in quotes such as 'planes/*.tif', or "
            "list the planes and add --slices"
        )
    return "Give one 3D image: axes z, y, x and perhaps channels"


@dataclass(frozen=True)
class Scaled:
    """An array whose voxels mean ``raw × slope + intercept``, converted when they are read.

    Whole numbers stay whole: slope and intercept that are integers give the smallest integer type that holds every
    possible voxel. All else becomes float32.

    Parameters
    ----------
    raw : array-like
        The voxels as stored.
    slope, intercept : float
        The calibration.

    Examples
    --------
    >>> voxels = Scaled(np.array([0, 65535], np.uint16), 1, -32768)
    >>> voxels.dtype, voxels[:].tolist()
    (dtype('int16'), [-32768, 32767])
    """

    raw: Any
    slope: float
    intercept: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored array."""
        return tuple(self.raw.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the converted voxels."""
        raw = np.dtype(self.raw.dtype)
        if raw.kind in "iu" and float(self.slope).is_integer() and float(self.intercept).is_integer():
            limits = np.iinfo(raw)
            ends = [int(v) * int(self.slope) + int(self.intercept) for v in (limits.min, limits.max)]
            for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"):
                kind = np.iinfo(name)
                if kind.min <= min(ends) and max(ends) <= kind.max:
                    return np.dtype(name)
        return np.dtype(np.float32)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Return converted voxels."""
        voxels = np.asarray(self.raw[key])
        if self.dtype.kind in "iu":
            return (voxels.astype(np.int64) * int(self.slope) + int(self.intercept)).astype(self.dtype)
        return (voxels.astype(np.float64) * self.slope + self.intercept).astype(np.float32)


def scaled(raw: Any, slope: float, intercept: float) -> Any:
    """Return an array with a calibration; the array itself where that changes nothing."""
    return raw if (slope, intercept) == (1, 0) else Scaled(raw, slope, intercept)


@contextmanager
def unreadable(where: str) -> Iterator[None]:
    """Turn a reader's error into an `UnreadableVolumeError`: the readers of damaged files raise nearly anything."""
    try:
        yield
    except RescuesegError as error:
        if error.where:
            raise
        raise type(error)(error.what, where=where, todo=error.todo) from error
    except FileNotFoundError as error:
        raise UnreadableVolumeError("there is no such file", where=where, todo="Check the path") from error
    except ImportError as error:
        raise UnreadableVolumeError(
            f"a package that reads it is not installed ({error})", where=where, todo=f"pip install {error.name or ''}"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableVolumeError(
            f"the file cannot be read ({reason})", where=where, todo="Check that it is complete and of a known format"
        ) from error
