"""Segmentations of 3D Slicer (.seg.nrrd): classes by the names of their segments, layers merged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.errors import LabelError

_SEGMENT = re.compile(r"^Segment(\d+)_(LabelValue|Layer|Name)$")


def read_segments(header: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return label value, layer and name of each segment of an NRRD header; empty for other files."""
    segments: dict[str, dict[str, str]] = {}
    for key, value in header.items():
        if match := _SEGMENT.match(key):
            segments.setdefault(match[1], {})[match[2]] = str(value)
    return [segments[key] for key in sorted(segments, key=int) if "LabelValue" in segments[key]]


def merge_segments(
    layers: npt.NDArray[Any], segments: Sequence[Mapping[str, str]], names: Mapping[str, int]
) -> npt.NDArray[Any]:
    """Return one array of the layers of a segmentation.

    Parameters
    ----------
    layers : ndarray, layer x y z
        As the file holds them.
    segments : sequence of mapping
        From `read_segments`.
    names : mapping of str to int
        Number by the name of a class; empty where the numbers are objects. Where no segment has a name, numbers count.

    Returns
    -------
    ndarray, xyz
        Class or object numbers.

    Raises
    ------
    LabelError
        If a segment is no class, two mean the same, or two cover the same voxels.
    """
    has_names = bool(names) and any(segment.get("Name") for segment in segments)
    names_by_number: dict[int, str] = {}
    merged = np.zeros(layers.shape[1:], np.result_type(layers.dtype, np.uint8))
    for index, layer in enumerate(layers):
        numbers = layer.copy()
        for segment in (s for s in segments if int(s.get("Layer", 0)) == index):
            name, value = segment.get("Name", ""), int(segment["LabelValue"])
            if has_names and name not in names:
                raise LabelError(f"the segment '{name[:64]}' is no class", todo=f"Name segments {', '.join(names)}")
            number = names.get(name, value)
            if number in names_by_number:
                raise LabelError(
                    f"the segments '{names_by_number[number]}' and '{name}' both mean label {number}",
                    todo="Name each segment like its class",
                )
            names_by_number[number] = name
            numbers[layer == value] = number
        both = np.argwhere((merged != 0) & (numbers != 0))
        if len(both):
            first, last = both.min(0)[::-1], both.max(0)[::-1] + 1
            place = ", ".join(f"{a} {i}:{j}" for a, i, j in zip("zyx", first, last, strict=True))
            raise LabelError(
                f"segments overlap in {len(both)} voxels, at {place}", todo="Let each voxel belong to one segment alone"
            )
        merged[numbers != 0] = numbers[numbers != 0]
    return merged
