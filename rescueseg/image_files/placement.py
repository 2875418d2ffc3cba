"""Where a voxel grid lies in the space of its file, and how labels are laid on the grid of an image.

NIfTI and NRRD state an affine: which way each axis runs, how long a step is, where the first voxel lies. Labels that a
tool saved turned or flipped say so there. An image keeps the order of its file; labels are turned to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.errors import LabelError
from rescueseg.geometry import ZYX, zyx

Affine = npt.NDArray[np.float64]

_TURNED = 1e-3
"""Largest deviation of a direction or of a step that rounding explains."""
_MOVED = 0.25
"""Largest deviation of the first voxel, in voxels."""


@dataclass(frozen=True, eq=False)
class Placement:
    """The affine of a voxel grid.

    Parameters
    ----------
    affine : ndarray, 4×4
        Voxel indices x, y, z (the file's fastest axis first) to right, anterior, superior in the file's unit.
    um_per_unit : float or None
        Micrometre per unit; None where the file names no unit.
    """

    affine: Affine
    um_per_unit: float | None = None
    space: str = "anatomical"
    """Which kind of space: only grids of one kind can be compared."""

    def __post_init__(self) -> None:
        matrix = np.asarray(self.affine, np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-300:
            raise LabelError(
                "the directions or the position in its header are not valid",
                todo="Save the file on a grid with a place",
            )
        object.__setattr__(self, "affine", matrix)

    @property
    def steps(self) -> tuple[float, float, float]:
        """Length of a voxel along z, y, x in the file's unit."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x

    @property
    def is_rectangular(self) -> bool:
        """Whether the axes are at right angles."""
        unit = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return bool(np.abs(unit.T @ unit - np.eye(3)).max() <= _TURNED)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {"affine": self.affine.tolist(), "um_per_unit": self.um_per_unit, "space": self.space}

    @classmethod
    def from_json(cls, value: Any) -> Placement:
        """Return a placement from `to_json`."""
        return cls(np.asarray(value["affine"], np.float64), value["um_per_unit"], value["space"])


@dataclass(frozen=True)
class Turn:
    """How an array of labels is brought to the axes of its image: axes permuted first, then flipped.

    Parameters
    ----------
    axes : tuple of int
        The z, y, x axis of the image is this axis of the labels, both counted in z, y, x.
    flipped : tuple of bool
        Whether the image's axis runs the other way.
    start_zyx : tuple of int
        First voxel of the turned labels on the image's grid.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)
    start_zyx: ZYX = (0, 0, 0)

    def shape(self, shape_zyx: ZYX) -> ZYX:
        """Return the turned shape."""
        return zyx(shape_zyx[a] for a in self.axes)

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a zyx array turned.

        Examples
        --------
        >>> Turn((0, 2, 1), (False, False, True)).apply(np.arange(4).reshape(1, 2, 2)).tolist()
        [[[2, 0], [3, 1]]]
        """
        turned = array.transpose(self.axes)
        return turned[tuple(slice(None, None, -1 if f else 1) for f in self.flipped)]

    @property
    def is_none(self) -> bool:
        """Whether the labels have the image's axes already."""
        return self.axes == (0, 1, 2) and not any(self.flipped)

    def __str__(self) -> str:
        order = "".join("zyx"[a] for a in self.axes)
        flips = ", ".join(a for a, f in zip("zyx", self.flipped, strict=True) if f)
        parts = [f"axes {order} taken as zyx"] * (order != "zyx") + [f"{flips} flipped"] * bool(flips)
        return " and ".join(parts) or "as it is"


def turn_onto(image: Placement, labels: Placement, labels_shape_zyx: ZYX) -> Turn:
    """Return how labels lie on the grid of their image.

    Parameters
    ----------
    image, labels : Placement
        Of the two files. Where one of them names no unit, both are taken to use the same.
    labels_shape_zyx : tuple of int
        Shape of the labels in their file.

    Returns
    -------
    Turn
        With the position of the first turned voxel on the image's grid; it may lie outside.

    Raises
    ------
    LabelError
        If the labels have other voxel sizes, are rotated by anything but right angles, or lie between the voxels.

    Examples
    --------
    >>> image = Placement(np.diag([0.1, 0.1, 0.3, 1.0]))
    >>> flipped = Placement(np.array([[-0.1, 0, 0, 0.4], [0, 0.1, 0, 0], [0, 0, 0.3, 0], [0, 0, 0, 1]]))
    >>> print(turn_onto(image, flipped, (2, 3, 5)))
    x flipped
    """
    factor = 1.0
    if image.um_per_unit is not None and labels.um_per_unit is not None:
        factor = labels.um_per_unit / image.um_per_unit
    scale = np.diag([factor, factor, factor, 1.0])
    relative = np.linalg.inv(image.affine) @ scale @ labels.affine
    rotation = relative[:3, :3]
    rounded = np.rint(rotation)
    is_turn = np.array_equal(np.abs(rounded).sum(0), np.ones(3)) and np.array_equal(np.abs(rounded).sum(1), np.ones(3))
    if not is_turn or np.abs(rotation - rounded).max() > _TURNED:
        sizes = [" × ".join(f"{s:.6g}" for s in p.steps) for p in (labels, image)]
        raise LabelError(
            f"the labels are not on the grid of their image: voxels of {sizes[0]} against {sizes[1]} (z, y, x), or turned",
            todo="Save them on the grid of the image, unresampled",
        )
    last = np.array(labels_shape_zyx[::-1], float) - 1
    corners = np.stack([relative[:3, 3], rounded @ last + relative[:3, 3]])
    start = corners.min(0)
    if np.abs(start - np.rint(start)).max() > _MOVED:
        raise LabelError(
            f"the labels begin at voxel {', '.join(f'{v:.6g}' for v in start[::-1])} of their image (z, y, x)",
            todo="Save them on the grid of the image, unresampled",
        )
    in_zyx = rounded[::-1, ::-1]
    axes = [int(np.flatnonzero(row)[0]) for row in in_zyx]
    flips = [bool(row.sum() < 0) for row in in_zyx]
    return Turn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]), zyx(int(v) for v in np.rint(start[::-1])))


def nifti_has_position(header: Any) -> bool:
    """Tell whether a NIfTI header says where its image lies."""
    return bool(header["sform_code"] or header["qform_code"])


NRRD_LETTERS = {
    "right": (0, 1), "left": (0, -1), "anterior": (1, 1), "posterior": (1, -1), "superior": (2, 1), "inferior": (2, -1),
    "r": (0, 1), "l": (0, -1), "a": (1, 1), "p": (1, -1), "s": (2, 1), "i": (2, -1),
}  # fmt: skip
"""RAS axis and sign of each word in an NRRD's space."""


def nrrd_to_ras(space: str) -> Affine:
    """Return the 4×4 matrix from an NRRD space to RAS; a space that names no directions counts as RAS."""
    words = space.lower().split("-") if "-" in space else list(space.lower())
    turn = np.eye(4)
    directions = [NRRD_LETTERS[word] for word in words[:3] if word in NRRD_LETTERS]
    if sorted(axis for axis, _ in directions) == [0, 1, 2]:
        turn[:3, :3] = 0
        for position, (axis, sign) in enumerate(directions):
            turn[axis, position] = sign
    return turn


def nifti_placement(image: Any) -> Placement | None:
    """Return the placement of a nibabel image, None where its header says nothing of it."""
    header = image.header
    if "sform_code" not in header or not nifti_has_position(header) or len(image.shape) < 3:
        return None
    unit = str(header.get_xyzt_units()[0])
    factors = {"micron": 1.0, "mm": 1e3, "meter": 1e6}
    return Placement(np.array(image.affine, float), factors.get(unit))
