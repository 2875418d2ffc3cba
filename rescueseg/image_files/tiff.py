"""TIFF, with the metadata of OME, ImageJ, Zeiss LSM and Micro-Manager."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import tifffile
import zarr

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.geometry import Spacing
from rescueseg.image_files import hints
from rescueseg.image_files.source import ArraySource, Statement, scaled
from rescueseg.image_files.tiff_spacing import spacing_of_tiff

_DAMAGE = re.compile(
    r"offset|corrupt|truncat|out of range|failed to read|missing|zeroed|invalid page|not found", re.IGNORECASE
)
_STRAIGHT_LINE = 0
"""ImageJ's number of the calibration value = c0 + c1 × raw."""
_NO_CALIBRATION = 20


def is_tiff(path: str) -> bool:
    """Tell a TIFF by its name."""
    return path.lower().endswith((".tif", ".tiff", ".lsm", ".btf", ".tf8", ".tf2", ".stk"))


def open_tiff(path: str, said: Statement) -> ArraySource:
    """Open one image of a TIFF; its planes are read when asked for.

    Raises
    ------
    InvalidVolumeError
        If the file holds several images and nobody says which, or its axes are not told.
    UnreadableVolumeError
        If planes are missing, damaged, or unlike the others.
    """
    with complaints() as messages:
        tif = tifffile.TiffFile(path)
    try:
        with complaints() as series_messages:
            series, index, remarks = _choose_series(tif, path, said)
            _require_every_plane(tif, series, path)
            require_upright(series.keyframe)
            len(tif.pages)
        if messages := messages + series_messages:
            raise UnreadableVolumeError(
                f"the file cannot be read in full ({_plain(messages[0])})",
                where=path,
                todo="Give all files of the series together, or save it again as one file",
            )
        axes = _axes(series, path, said)
        spacing, note = spacing_of_tiff(tif, index)
        values, value_remarks = calibrated(tif, _array(tif, series, path))
        return ArraySource(
            values, axes, spacing, path, spacing_note=note, hints=_hints(tif), on_close=(tif.close,),
            remarks=(*remarks, *value_remarks, *_step_remark(tif, spacing), *_shade_remark(series.keyframe)), said=said,
        )  # fmt: skip
    except BaseException:
        tif.close()
        raise


def _choose_series(tif: Any, path: str, said: Statement) -> tuple[Any, int, tuple[str, ...]]:
    """Return the image to read, its number, and what is to be said of the choice."""
    companion = _companion(tif)
    if companion:
        raise UnreadableVolumeError(
            f"its metadata are in another file, {companion}", where=path, todo="Save the image again as one OME-TIFF"
        )
    images = [(i, s) for i, s in enumerate(tif.series) if not getattr(s.keyframe, "is_reduced", False)]
    if not images:
        raise UnreadableVolumeError("it holds no image", where=path, todo="Check that it is complete")
    listed = "; ".join(f"{i}: {_described(s)}" for i, s in images[:6]) + ("; …" if len(images) > 6 else "")
    if said.series is not None:
        chosen = [(i, s) for i, s in images if i == said.series]
        if not chosen:
            raise InvalidVolumeError(f"there is no image {said.series}", where=path, todo=f"It holds {listed}")
        remark = f"image {said.series} of {len(images)} is taken ({listed})"
        return chosen[0][1], said.series, (remark,) if len(images) > 1 else ()
    stacks = [(i, s) for i, s in images if sum(n > 1 for n in s.shape) > 2]
    if len(images) > 1 and not (tif.is_ome and len(stacks) == 1):
        raise InvalidVolumeError(
            f"it holds {len(images)} images: {listed}",
            where=path,
            todo="Say which with --series; if they are parts of one stack, save them as one",
        )
    index, series = (stacks or images)[0]
    remark = f"image {index} of {len(images)} is taken, the only stack ({listed})"
    return series, index, (remark,) if len(images) > 1 else ()


def _companion(tif: Any) -> str:
    """Return the file that holds the metadata of an OME-TIFF which has none itself."""
    if not tif.is_ome or "BinaryOnly" not in (tif.pages[0].description or ""):
        return ""
    match = re.search(r'MetadataFile="([^"]+)"', tif.pages[0].description)
    return match[1] if match else "which it does not name"


def _described(series: Any) -> str:
    name = f"'{series.name}' " if series.name else ""
    return f"{name}{series.axes.lower()} {'×'.join(map(str, series.shape))} {series.dtype}"


def _require_every_plane(tif: Any, series: Any, path: str) -> None:
    """Refuse an image of which planes are missing, unlike the first one, or left over."""
    keyframe = series.keyframe
    needed = prod(series.shape) // max(1, prod(keyframe.shape))
    in_one_piece = series.dataoffset is not None and len(series) < needed
    pages = [] if in_one_piece else [series[i] for i in range(len(series))]
    missing = [i for i, page in enumerate(pages) if page is None] or list(range(len(pages), needed))
    if missing and not in_one_piece:
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise UnreadableVolumeError(
            f"{len(missing)} of {needed} planes are not there: {shown}",
            where=path,
            todo="Give all files of the series together, or save the stack again",
        )
    if len(tif.series) == 1 and not in_one_piece and needed < len(tif.pages):
        raise UnreadableVolumeError(
            f"it holds {len(tif.pages)} planes, its metadata speak of {needed}",
            where=path,
            todo="Save the stack again, so that both agree",
        )
    if len(tif.pages) > 1:
        _require_equal_planes(path, [p.index for p in pages if p is not None and p.parent is tif])


def _require_equal_planes(path: str, indices: Sequence[int]) -> None:
    """Refuse planes that the reader would take for copies of the first one's layout while they are not."""
    with complaints(), tifffile.TiffFile(path) as tif:
        tif.pages.useframes = False
        first: Any = None
        for index in indices:
            page: Any = tif.pages[index]
            require_upright(page)
            first = first or page
            if page.hash != first.hash:
                what = [
                    f"{'×'.join(map(str, p.shape))} {p.dtype}, {getattr(p.compression, 'name', p.compression)}".lower()
                    for p in (page, first)
                ]
                raise UnreadableVolumeError(
                    f"plane {index} ({what[0]}) is stored unlike plane {first.index} ({what[1]})",
                    where=path,
                    todo="Save the stack again, all planes alike",
                )


def _axes(series: Any, path: str, said: Statement) -> str:
    """Return the axis letters; pages that nobody named are planes, where there is one such axis only."""
    if said.axes:
        return said.axes
    axes = str(series.axes).lower()
    unknown = [i for i, a in enumerate(axes) if a in "qi" and series.shape[i] > 1]
    if len(unknown) == 1 and "z" not in axes:
        axes = axes[: unknown[0]] + "z" + axes[unknown[0] + 1 :]
    elif unknown:
        shape = "×".join(map(str, series.shape))
        known = "".join(a for a in axes if a not in "qi")
        raise InvalidVolumeError(
            f"it has {len(axes)} axes, {shape}, and does not say what they are",
            where=path,
            todo=f"Say so in the file's order with --axes, such as {'cz' + known if len(axes) == len(known) + 2 else 'zyx'}",
        )
    return "".join("t" if a in "qi" else a for a in axes) if axes.count("q") + axes.count("i") == 1 else axes


def _array(tif: Any, series: Any, path: str) -> Any:
    if series.dataoffset is not None:
        dtype = np.dtype(series.dtype).newbyteorder(tif.byteorder)
        return np.memmap(path, dtype=dtype, mode="r", offset=series.dataoffset, shape=tuple(series.shape))
    return zarr.open_array(series.aszarr(level=0), mode="r")


def calibrated(tif: Any, array: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the voxels as ImageJ's calibration means them: signed 16 bit is such a calibration."""
    meta = (tif.imagej_metadata or {}) if tif.is_imagej else {}
    function = int(meta.get("cf", _NO_CALIBRATION))
    if np.dtype(array.dtype).kind != "u" or function == _NO_CALIBRATION:
        return array, ()
    if function != _STRAIGHT_LINE:
        return array, (
            f"ImageJ shows its grey values through a curve (function {function}); the stored ones are taken",
        )
    intercept, slope = float(meta.get("c0", 0.0)), float(meta.get("c1", 1.0))
    return scaled(array, slope, intercept), (
        f"grey values are {slope:g} × stored {intercept:+g}, as ImageJ shows them",
    )


def require_upright(page: Any) -> None:
    """Refuse a plane whose tag says that it is stored turned or mirrored: programs disagree on what they show then.

    Raises
    ------
    InvalidVolumeError
        If it is.
    """
    orientation = int(page.tags.valueof("Orientation", 1)) if hasattr(page, "tags") else 1
    if orientation != 1:
        raise InvalidVolumeError(
            f"its Orientation tag is {orientation}: rows or columns are stored turned",
            todo="Save it upright, with the orientation 1 (top left), and import it again",
        )


def _shade_remark(page: Any) -> tuple[str, ...]:
    """Say where stored numbers are not the grey values that viewers show."""
    name = getattr(page.photometric, "name", "")
    if name == "PALETTE":
        return ("its numbers are places in a table of colours, not grey values: right for labels, not for an image",)
    return ("0 is stored for white (MinIsWhite); the stored numbers are taken",) if name == "MINISWHITE" else ()


def _step_remark(tif: Any, spacing: Spacing | None) -> tuple[str, ...]:
    """Say where a z step is ImageJ's silence: it writes none that is 1, and other programs forget theirs."""
    if spacing is None or not tif.is_imagej or (tif.imagej_metadata or {}).get("spacing"):
        return ()
    return (f"no z step is given, which ImageJ does where it is 1; if it is not {spacing[0]:g} µm, give --spacing",)


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect what tifffile only logs: a file cut short would otherwise pass for a smaller one."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if _DAMAGE.search(message := record.getMessage()):
                messages.append(message)

    logger, handler = logging.getLogger("tifffile"), Collector(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _plain(message: str) -> str:
    """Return a message of tifffile without the object that it names first."""
    return re.sub(r"^<tifffile\.\S+ [^>]*> ?", "", " ".join(message.split()))[:200]


def _hints(tif: Any) -> dict[str, str]:
    if tif.is_ome and tif.ome_metadata:
        return hints.of_ome(tif.ome_metadata)
    if tif.is_imagej:
        return hints.of_imagej(tif.imagej_metadata or {})
    return hints.of_pairs({"description": "" if tif.is_shaped else tif.pages[0].aspage().description})
