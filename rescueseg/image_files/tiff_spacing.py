"""The voxel size that a TIFF's metadata state, by the rules of the program that wrote it."""

from __future__ import annotations

import xml.etree.ElementTree
from collections.abc import Mapping
from typing import Any

from rescueseg.geometry import Spacing
from rescueseg.image_files.units import to_um

Found = tuple[Spacing | None, str]
"""Voxel size z, y, x in micrometre, and what the metadata say where that is not enough."""

_RESOLUTION_UNITS = {2: "inch", 3: "cm"}


def spacing_of_tiff(tif: Any, image: int = 0) -> Found:
    """Return the voxel size of one image of a TIFF.

    Parameters
    ----------
    tif : tifffile.TiffFile
        Open.
    image : int
        Number of the image in the file.
    """
    if tif.is_ome and tif.ome_metadata:
        return _ome_spacing(tif.ome_metadata, image)
    if tif.is_imagej:
        return imagej_spacing(tif, tif.imagej_metadata or {})
    if tif.is_lsm and tif.lsm_metadata:
        return _lsm_spacing(tif.lsm_metadata)
    if tif.is_micromanager and tif.micromanager_metadata:
        return _micromanager_spacing(tif.micromanager_metadata.get("Summary") or {})
    return None, _what_is_there(tif)


def _ome_spacing(text: str, image: int) -> Found:
    elements = xml.etree.ElementTree.fromstring(text).iter()
    images = [e for e in elements if e.tag.rsplit("}", 1)[-1] == "Pixels"]
    if image >= len(images):
        return None, ""
    pixels = images[image]
    values = [pixels.get(f"PhysicalSize{a}") for a in "ZYX"]
    units = [pixels.get(f"PhysicalSize{a}Unit", "µm") for a in "ZYX"]
    sizes = [None if v is None else to_um(float(v), u) for v, u in zip(values, units, strict=True)]
    z, y, x = sizes
    if z is None or y is None or x is None:
        parts = [f"{a}={v} {u if v else ''}".strip() for a, v, u in zip("zyx", values, units, strict=True)]
        return None, f"the OME metadata say {', '.join(parts)}" if any(values) else ""
    return (z, y, x), ""


def imagej_spacing(tif: Any, meta: Mapping[str, Any]) -> Found:
    """Return the voxel size of ImageJ metadata.

    ImageJ writes ``yunit`` and ``zunit`` only where they differ from ``unit``, and ``spacing`` only where it is not 1.
    The resolution tags count pixels per unit, whatever their own unit says.
    """
    units = {
        a: str(meta.get(key, meta.get("unit", ""))) for a, key in zip("zyx", ("zunit", "yunit", "unit"), strict=True)
    }
    tags = tif.pages[0].aspage().tags
    resolution = [tags.valueof(name) for name in ("YResolution", "XResolution")]
    if any(not r or not r[0] or not r[1] for r in resolution):
        return None, f"the ImageJ metadata give no resolution in the plane (unit '{units['x']}')" if meta.get(
            "unit"
        ) else ""
    numbers = [abs(float(meta.get("spacing") or 1.0)), *(r[1] / r[0] for r in resolution)]
    sizes = [to_um(n, u) for n, u in zip(numbers, units.values(), strict=True)]
    z, y, x = sizes
    if z is None or y is None or x is None:
        text = " × ".join(f"{n:.6g}" for n in numbers)
        named = "', '".join(dict.fromkeys(units.values()))
        return None, f"the ImageJ metadata say {text} without a unit of length ('{named}')"
    return (z, y, x), ""


def _lsm_spacing(meta: Mapping[str, Any]) -> Found:
    """Return the voxel size of a Zeiss LSM, which is in metre."""
    sizes = [float(meta.get(f"VoxelSize{a}", 0.0)) * 1e6 for a in "ZYX"]
    if min(sizes) <= 0:
        return None, f"the LSM metadata say {' × '.join(f'{s:.6g}' for s in sizes)} µm (z y x)"
    return (sizes[0], sizes[1], sizes[2]), ""


def _micromanager_spacing(summary: Mapping[str, Any]) -> Found:
    plane = float(summary.get("PixelSize_um") or 0.0)
    step = abs(float(summary.get("z-step_um") or summary.get("ZStep_um") or 0.0))
    if plane <= 0 or step <= 0:
        return None, f"Micro-Manager says {plane:g} µm in the plane and a z step of {step:g} µm"
    return (step, plane, plane), ""


def _what_is_there(tif: Any) -> str:
    """Say what a TIFF without metadata of a known program holds of sizes: never enough, for no tag knows z."""
    tags, parts = tif.pages[0].aspage().tags, []
    unit = _RESOLUTION_UNITS.get(int(tags.valueof("ResolutionUnit", 1)))
    resolution = [tags.valueof(name) for name in ("YResolution", "XResolution")]
    if all(r and r[0] and r[1] and r[0] != r[1] for r in resolution):
        numbers = " × ".join(f"{r[1] / r[0]:.6g}" for r in resolution)
        parts.append(f"the resolution tags say {numbers} {unit or 'of no unit'} a pixel (y x) and nothing of z")
    shaped: Mapping[str, Any] = (tif.shaped_metadata or ({},))[0] if tif.is_shaped else {}
    told = {k: v for k, v in shaped.items() if k.lower() in ("spacing", "unit", "axes", "resolution", "voxel_size")}
    if set(told) - {"axes"}:
        parts.append("its description says " + ", ".join(f"{k} {v}" for k, v in told.items()))
    return "; ".join(parts)
