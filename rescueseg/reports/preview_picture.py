"""Volumes before they are imported: three planes through the middle of each, in true proportions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure

from rescueseg.geometry import Spacing
from rescueseg.reports.figures import CLASS_COLOURS, GREY, png
from rescueseg.volumes.batch_import import VolumePreview
from rescueseg.volumes.middle_planes import MiddlePlanes

_WIDTH, _TALLEST, _LEFT, _TEXT, _GAP = 11.0, 7.0, 0.5, 1.15, 0.34
"""Inches: the page, the most that the planes of a volume take of it, their left edge, the text above, between planes."""
_DYES = ("white",), ("#ff00ff", "#00ff00"), ("#ff0000", "#00ff00", "#0000ff")
"""Colours of one, two and three channels, which add up to white."""
_LINE = 118
"""Letters in a line of remarks."""
_LEAST = 0.1
"""A volume thinner than this share of its longest side is drawn that thick, and the picture says so."""
_SHOWN = (0.2, 99.8)
"""Percentiles that are drawn black and white."""


def draw_previews(previews: Sequence[VolumePreview]) -> bytes:
    """Return a page with the middle planes of volumes as PNG, one volume below the other.

    Parameters
    ----------
    previews : sequence of VolumePreview
        With planes.
    """
    drawn = [(p, p.planes) for p in previews if p.planes is not None]
    heights = [_planes_height(p) + _TEXT + 0.19 * len(_remarks(p)) for p, _ in drawn]
    figure = Figure(figsize=(_WIDTH, sum(heights)))
    parts = figure.subfigures(len(drawn), 1, height_ratios=heights, squeeze=False)
    for part, height, (preview, planes) in zip(parts[:, 0], heights, drawn, strict=True):
        _draw_volume(part, height, preview, planes)
    return png(figure)


def _remarks(preview: VolumePreview) -> list[str]:
    return [line for remark in preview.remarks for line in textwrap.wrap(f"• {remark}", _LINE, subsequent_indent="   ")]


def _extent(preview: VolumePreview) -> tuple[float, float, float]:
    """Return the size z, y, x in micrometre as it is drawn."""
    z, y, x = (n * s for n, s in zip(preview.shape_zyx, preview.spacing_um_zyx, strict=True))
    least = _LEAST * max(z, y, x)
    return max(z, least), max(y, least), max(x, least)


def _scale(preview: VolumePreview) -> float:
    """Return inches per micrometre."""
    z, y, x = _extent(preview)
    return min((_WIDTH - 1.6) / (x + z), (_TALLEST - 0.6) / (y + z))


def _planes_height(preview: VolumePreview) -> float:
    z, y, _ = _extent(preview)
    return _scale(preview) * (y + z) + 0.87


def _draw_volume(part: SubFigure, height: float, preview: VolumePreview, planes: MiddlePlanes) -> None:
    size_z, size_y, size_x = _extent(preview)
    scale = _scale(preview)
    low, high = _range(planes)
    part.text(_LEFT / _WIDTH, 1 - 0.3 / height, preview.volume_id, fontsize=14, weight="bold", va="center")
    part.text(_LEFT / _WIDTH, 1 - 0.57 / height, _facts(preview), fontsize=9.5, va="center")
    part.text(
        _LEFT / _WIDTH, 1 - 0.79 / height, _shown_range(preview, low, high), fontsize=8.5, color=GREY, va="center"
    )
    for row, line in enumerate(_remarks(preview)):
        part.text(_LEFT / _WIDTH, 1 - (1.02 + 0.19 * row) / height, line, fontsize=8.5, color=GREY, va="center")
    top = _TEXT + 0.19 * len(_remarks(preview)) + 0.24
    boxes = (  # inches from the top left corner: left, top, width, height
        (_LEFT, top, size_x * scale, size_y * scale),
        (_LEFT, top + size_y * scale + _GAP, size_x * scale, size_z * scale),
        (_LEFT + size_x * scale + _GAP, top, size_z * scale, size_y * scale),
    )
    images = (planes.image[0], planes.image[1], planes.image[2].swapaxes(1, 2))
    truths = (planes.truth[0], planes.truth[1], planes.truth[2].T) if planes.truth else (None, None, None)
    letters, depth = (("y", "x"), ("z", "x"), ("y", "z")), ("z", "y", "x")
    for box, image, truth, (down, across), axis, at in zip(
        boxes, images, truths, letters, depth, planes.at, strict=True
    ):
        x, y, width, tall = box
        axes = part.add_axes((x / _WIDTH, 1 - (y + tall) / height, width / _WIDTH, tall / height))
        axes.imshow(composite(image, low, high), aspect="auto", interpolation="nearest", extent=(0, 1, 1, 0))
        if truth is not None:
            _outline(axes, truth)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color="#d1d5db", linewidth=0.6)
        axes.set_xlabel(f"{across} →", fontsize=8, color=GREY, labelpad=2, loc="left")
        axes.set_ylabel(f"← {down}", fontsize=8, color=GREY, labelpad=2, loc="top")
        axes.set_title(f"{axis} = {at}", fontsize=8, color=GREY, pad=3, loc="right")
    _scale_bar(part, height, boxes[0], scale)


def _facts(preview: VolumePreview) -> str:
    channels = f", {preview.channels} channels" if preview.channels > 1 else ""
    spacing = " × ".join(f"{s:.4g}" for s in preview.spacing_um_zyx)
    whole = " × ".join(f"{n * s:.4g}" for n, s in zip(preview.shape_zyx, preview.spacing_um_zyx, strict=True))
    shape = " × ".join(map(str, preview.shape_zyx))
    thin = "; its thin side is drawn thicker than it is" if not _is_true(preview) else ""
    return f"{shape} voxels (z y x) of {preview.dtype}{channels}; a voxel is {spacing} µm, the volume {whole} µm{thin}"


def _is_true(preview: VolumePreview) -> bool:
    true: Spacing = preview.spacing_um_zyx
    return all(e == n * s for e, n, s in zip(_extent(preview), preview.shape_zyx, true, strict=True))


def _range(planes: MiddlePlanes) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the values drawn black and white, by channel."""
    flat = np.concatenate([p.reshape(len(p), -1).astype(np.float64) for p in planes.image], axis=1)
    low, high = np.nanpercentile(flat, _SHOWN, axis=1)
    return low, high


def _shown_range(preview: VolumePreview, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> str:
    dyes = {1: ("",), 2: ("magenta ", "green "), 3: ("red ", "green ", "blue ")}[len(low)]
    ranges = [f"{dye}{a:.4g} to {b:.4g}" for dye, a, b in zip(dyes, low, high, strict=True)]
    of = f" (the first {len(low)} of {preview.channels} channels)" if preview.channels > len(low) else ""
    truth = "; outlined: the ground truth" if preview.truth else ""
    return f"{'black to white' if len(low) == 1 else 'black to full colour'}: {', '.join(ranges)}{of}{truth}"


def composite(
    image: npt.NDArray[np.generic], low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return a plane of one to three channels in colour.

    Parameters
    ----------
    image : ndarray
        Channel, row, column.
    low, high : ndarray of float64
        Values drawn black and in full colour, by channel.

    Returns
    -------
    ndarray of float64
        Row, column, RGB from 0 to 1.
    """
    picture = np.zeros((*image.shape[1:], 3))
    for channel, a, b, dye in zip(image, low, high, _DYES[len(image) - 1], strict=True):
        light = np.clip((np.nan_to_num(channel.astype(np.float64)) - a) / max(b - a, 1e-12), 0, 1)
        picture += light[..., None] * np.array(to_rgb(dye))
    return np.clip(picture, 0, 1)


def _outline(axes: Axes, truth: npt.NDArray[Any]) -> None:
    """Draw the border of what is labelled; objects of one colour where there are more numbers than colours."""
    numbers = [int(n) for n in np.unique(truth) if n not in (0, 255)]
    if len(numbers) > len(CLASS_COLOURS):
        truth, numbers = (truth > 0).astype(np.uint8), [1]
    rows, columns = truth.shape
    x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    if min(rows, columns) < 2:
        return
    for number in numbers:
        colour = CLASS_COLOURS[(number - 1) % len(CLASS_COLOURS)]
        axes.contour(x, y, truth == number, levels=[0.5], colors=[colour], linewidths=0.9)


def _scale_bar(part: SubFigure, height: float, box: tuple[float, float, float, float], scale: float) -> None:
    """Draw a bar of a round length below the text, above the plane across z."""
    x, y, width, _ = box
    length = round_length(width / scale / 3)
    bar = part.add_axes((x / _WIDTH, 1 - (y - 0.23) / height, length * scale / _WIDTH, 0.045 / height))
    bar.set_facecolor("black")
    bar.set(xticks=[], yticks=[])
    part.text((x + length * scale + 0.08) / _WIDTH, 1 - (y - 0.25) / height, f"{length:g} µm", fontsize=8, va="center")


def round_length(most: float) -> float:
    """Return the largest round number, 1, 2 or 5 times a power of ten, up to `most`.

    Examples
    --------
    >>> round_length(34.0), round_length(0.7)
    (20.0, 0.5)
    """
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(f * power for f in (1, 2, 5) if f * power <= most))
