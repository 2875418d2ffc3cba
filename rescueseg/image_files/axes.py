"""What the axes of an array are: by the names that files give them, or asked for where there are none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rescueseg.errors import InvalidVolumeError
from rescueseg.image_files.source import Statement

_WORDS = {
    "z": ("z", "depth", "plane", "planes", "slice", "slices", "section", "sections"),
    "y": ("y", "row", "rows", "height", "line", "lines"),
    "x": ("x", "column", "columns", "col", "cols", "width"),
    "c": ("c", "channel", "channels", "ch", "band", "bands", "color", "colour", "rgb", "wavelength"),
    "t": ("t", "time", "times", "timepoint", "timepoints", "frame", "frames"),
    "p": ("p", "position", "positions", "scene", "scenes", "tile", "tiles", "fov"),
}
_LETTERS = {word: letter for letter, words in _WORDS.items() for word in words}
_KINDS = {"time": "t", "channel": "c"}
_COLOURS = (3, 4)
_LONG = 16
"""A plane is at least so many voxels wide; an array whose last axis alone is short holds colours."""


def axis_letter(name: str, kind: str = "") -> str:
    """Return the letter of a named axis, nothing where the name says nothing.

    Parameters
    ----------
    name : str
        As a file spells it: ``z``, ``depth``, ``z_axis``, ``c^``.
    kind : str
        OME's type of the axis, which counts more than its name: ``space``, ``time``, ``channel``.

    Examples
    --------
    >>> [axis_letter(name) for name in ("Z", "z_axis", "channel", "dim_0")], axis_letter("c", "time")
    (['z', 'z', 'c', ''], 't')
    """
    if kind.lower() in _KINDS:
        return _KINDS[kind.lower()]
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w not in ("", "axis", "dim", "dimension")]
    letter = _LETTERS.get(words[0], "") if len(words) == 1 else ""
    return "" if kind.lower() == "space" and letter not in ("z", "y", "x") else letter


def axes_of_names(names: Sequence[str], kinds: Sequence[str] = ()) -> str:
    """Return one letter per axis; nothing where one is not known or two are the same.

    Examples
    --------
    >>> axes_of_names(["time", "Channel", "depth", "height", "width"]), axes_of_names(["dim_0", "y", "x"])
    ('tczyx', '')
    """
    padded = [*kinds, *[""] * (len(names) - len(kinds))]
    letters = [axis_letter(name, kind) for name, kind in zip(names, padded, strict=True)]
    return "".join(letters) if all(letters) and len(set(letters)) == len(letters) else ""


def unnamed_axes(shape: tuple[int, ...], where: str) -> tuple[str, str]:
    """Return the axes of an array that names none, and the remark that it does not: three are z, y, x.

    Raises
    ------
    InvalidVolumeError
        If it looks like a colour picture, or has more than three axes: what they are has to be said.

    Examples
    --------
    >>> unnamed_axes((12, 40, 48), "a.h5")
    ('zyx', 'the file does not name its axes; they were taken as z, y, x')
    """
    size = "×".join(map(str, shape))
    if len(shape) == 3:
        if shape[-1] in _COLOURS and min(shape[:2]) >= _LONG:
            raise InvalidVolumeError(
                f"it looks like a 2D colour image: {size}, no axes named",
                where=where,
                todo="Give a 3D image; if it is one, say so with --axes zyx",
            )
        return "zyx", "the file does not name its axes; they were taken as z, y, x"
    if len(shape) > 3:
        candidates = {4: ("czyx", "cxyz", "zyxc", "xyzc"), 5: ("tczyx", "tzyxc")}.get(len(shape), ())
        likely = sorted(candidates, key=lambda axes: shape[axes.index("c")])[:3]
        listed = [f"{axes} ({_told(axes, shape)})" for axes in likely]
        raise InvalidVolumeError(
            f"it has {len(shape)} axes, {size}, and does not say what they are",
            where=where,
            todo=f"Say so with --axes, such as {' or '.join(listed)}" if listed else "Save one 3D image per array",
        )
    return {0: "", 1: "x", 2: "yx"}[len(shape)], ""


def _told(axes: str, shape: tuple[int, ...]) -> str:
    length = dict(zip(axes, shape, strict=True))
    extent = "×".join(str(length[a]) for a in "zyx")
    channels = f"{length['c']} channel{'s' if length['c'] > 1 else ''} of {extent}"
    return channels + (f" at {length['t']} times" if length.get("t", 1) > 1 else "")


def only_image(said: Statement, where: str) -> None:
    """Refuse a series that a file does not have.

    Raises
    ------
    InvalidVolumeError
        If another than the first image is asked of a file that holds one.
    """
    if said.series:
        raise InvalidVolumeError(
            f"there is no image {said.series}: it holds one", where=where, todo="Leave --series out"
        )
