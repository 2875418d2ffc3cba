"""TIFF, with ImageJ and OME metadata."""

from __future__ import annotations

import logging
import re
import xml.etree.ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tifffile
import zarr

from rescueseg.geometry import Spacing
from rescueseg.volumes import hints
from rescueseg.volumes.source import ArraySource, to_um

_DAMAGE = re.compile("offset|corrupt|truncat", re.IGNORECASE)


def is_tiff(path: str) -> bool:
    """Tell a TIFF by its name."""
    return path.lower().endswith((".tif", ".tiff", ".lsm"))


def open_tiff(path: str) -> ArraySource:
    """Open the first series of a TIFF; its planes are read when asked for."""
    with complaints() as open_messages:
        tif = tifffile.TiffFile(path)
    try:
        with complaints() as page_messages:
            series = tif.series[0]
            len(tif.pages)
        if open_messages or page_messages:
            raise tifffile.TiffFileError((open_messages + page_messages)[0])
        axes = series.axes.lower()
        for unknown in "qi":
            if unknown in axes and "z" not in axes:
                axes = axes.replace(unknown, "z", 1)
        spacing, note = _spacing(tif)
        array: Any
        if series.dataoffset is not None:
            array = np.memmap(
                path, dtype=np.dtype(tif.byteorder + series.dtype.char), mode="r", offset=series.dataoffset,
                shape=tuple(series.shape),
            )  # fmt: skip
        else:
            array = zarr.open_array(series.aszarr(level=0), mode="r")
        return ArraySource(array, axes, spacing, path, spacing_note=note, hints=_hints(tif), on_close=(tif.close,))
    except BaseException:
        tif.close()
        raise


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect what tifffile only logs: a file cut short would otherwise pass for a smaller one."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if _DAMAGE.search(message := record.getMessage()):
                messages.append(message)

    logger, handler = logging.getLogger("tifffile"), Collector(logging.ERROR)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _hints(tif: tifffile.TiffFile) -> dict[str, str]:
    if tif.is_ome and tif.ome_metadata:
        return hints.of_ome(tif.ome_metadata)
    if tif.is_imagej:
        return hints.of_imagej(tif.imagej_metadata or {})
    return hints.of_pairs({"description": "" if tif.is_shaped else tif.pages[0].aspage().description})


def _spacing(tif: tifffile.TiffFile) -> tuple[Spacing | None, str]:
    """Return the voxel size that OME or ImageJ metadata state, and what they say when it is not enough."""
    if tif.is_ome and tif.ome_metadata:
        return _ome_spacing(tif.ome_metadata)
    meta = tif.imagej_metadata or {}
    if tif.is_imagej:
        return imagej_spacing(tif, meta)
    return None, ""


def _ome_spacing(text: str) -> tuple[Spacing | None, str]:
    pixels = next((e for e in xml.etree.ElementTree.fromstring(text).iter() if e.tag.endswith("Pixels")), None)
    if pixels is None:
        return None, ""
    values = [pixels.get(f"PhysicalSize{a}") for a in "ZYX"]
    sizes = [
        None if value is None else to_um(float(value), pixels.get(f"PhysicalSize{a}Unit", "µm"))
        for value, a in zip(values, "ZYX", strict=True)
    ]
    z, y, x = sizes
    if z is None or y is None or x is None:
        values_text = ", ".join(f"{a}={value}" for a, value in zip("zyx", values, strict=True))
        return None, f"the OME metadata say {values_text}" if any(values) else ""
    return (z, y, x), ""


def imagej_spacing(tif: tifffile.TiffFile, meta: dict[str, Any]) -> tuple[Spacing | None, str]:
    """Return the voxel size that ImageJ metadata state, and what they say when it is not enough."""
    unit = str(meta.get("unit", "")).replace("\\u00B5", "µ")
    tags = tif.pages[0].aspage().tags
    resolution = [tags.valueof(name) for name in ("YResolution", "XResolution")]
    if "spacing" not in meta or any(not r or not r[0] or not r[1] for r in resolution):
        return None, ""
    numbers = [float(meta["spacing"]), *(r[1] / r[0] for r in resolution)]
    sizes = [to_um(n, unit) for n in numbers]
    z, y, x = sizes
    if z is None or y is None or x is None:
        sizes_text = " × ".join(f"{n:.6g}" for n in numbers)
        return None, f"the ImageJ metadata say {sizes_text} without a unit of length ('{unit}')"
    return (z, y, x), ""
