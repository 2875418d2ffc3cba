"""The contact sheet of a sampling: every chosen patch in three planes under its stratum, as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch
from matplotlib.patches import Rectangle

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.layout import REPORT
from rescueseg.geometry import Box, Spacing
from rescueseg.progress import Progress
from rescueseg.records import Holdout, QueriedPatch
from rescueseg.reports.figures import BLUE, GREEN, GREY, ORANGE, PINK, png
from rescueseg.sampling.patches import volume_reader
from rescueseg.volumes.normalise import limits, normalise

SHEET = REPORT.path(file="sampling.png")
"""Where it lies below the campaign."""

KINDS = {
    "validation": ("validation box (held out)", ORANGE),
    "test": ("test box (held out)", BLUE),
    "starting": ("starting patch", GREEN),
    "rough": ("starting patch, seen by the triage", PINK),
}
_COLUMNS = 6
_CELL, _CAPTION, _HEAD, _MARGIN = 2.05, 0.62, 0.36, 0.18
"""Inches: side of a picture, text below it, heading of a stratum, space around."""
_ROW = _HEAD + _CELL + _CAPTION
_LONGEST = 240
"""Pixels along an axis of a picture."""
_GAP = 3
"""Pixels between the planes."""

Picture = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One patch on the sheet.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    volume_id : str
        Its volume.
    box : Box
        Where.
    stratum : str
        Under which it is shown.
    reason : str
        The measured numbers.
    """

    kind: str
    volume_id: str
    box: Box
    stratum: str
    reason: str


def entries(holdout: Holdout, starting: Sequence[QueriedPatch]) -> list[Entry]:
    """Return what is on the sheet: starting patches first, then the holdout, strata in the order of appearance."""
    sheet = [
        Entry(
            "rough" if p.stratum == "rough_mask" else "starting",
            p.volume_id,
            p.box,
            p.stratum,
            p.reason.partition(": ")[2] or p.reason,
        )
        for p in starting
    ]
    sheet += [Entry(b.part, b.volume_id, b.box, b.stratum, b.reason or "") for b in holdout.all_boxes]
    order = list(dict.fromkeys(entry.stratum for entry in sheet))
    return sorted(sheet, key=lambda entry: order.index(entry.stratum))


def three_planes(image: npt.NDArray[np.float32], spacing_um_zyx: Spacing) -> Picture:
    """Return the middle planes of a box in one picture with square pixels: xy, right of it yz, below it xz.

    Parameters
    ----------
    image : ndarray of float32, zyx
        The box.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre: gives the true aspect ratio.

    Returns
    -------
    ndarray of float32, (row, column)
        The finest spacing is one pixel, unless the picture would have more than 240; nan between the planes.

    Examples
    --------
    Planes twice as far apart in z as pixels in y and x, and 3 pixels between the pictures:

    >>> three_planes(np.zeros((4, 10, 20), np.float32), (0.2, 0.1, 0.1)).shape
    (21, 31)
    """
    lengths = [n * s for n, s in zip(image.shape, spacing_um_zyx, strict=True)]
    pixel = max(min(spacing_um_zyx), max(lengths) / _LONGEST)
    z, y, x = (_nearest(n, max(1, round(length / pixel))) for n, length in zip(image.shape, lengths, strict=True))
    mz, my, mx = (n // 2 for n in image.shape)
    sheet = np.full((len(y) + _GAP + len(z), len(x) + _GAP + len(z)), np.nan, np.float32)
    sheet[: len(y), : len(x)] = image[mz][np.ix_(y, x)]
    sheet[: len(y), len(x) + _GAP :] = image[:, :, mx].T[np.ix_(y, z)]
    sheet[len(y) + _GAP :, : len(x)] = image[:, my][np.ix_(z, x)]
    return sheet


def _nearest(length: int, pixels: int) -> npt.NDArray[np.int64]:
    return ((np.arange(pixels) + 0.5) * length / pixels).astype(np.int64)


def contact_sheet(
    campaign: Campaign, holdout: Holdout, starting: Sequence[QueriedPatch], progress: Progress | None = None
) -> bytes:
    """Draw the contact sheet of a sampling.

    Parameters
    ----------
    campaign : Campaign
        Holds the images.
    holdout : Holdout
        Frozen, or about to be.
    starting : sequence of QueriedPatch
        Starting patches.
    progress : callable, optional
        Called after each patch.

    Returns
    -------
    bytes
        PNG. Grey values run from the low to the high limit of each volume's normalisation.
    """
    shown = entries(holdout, starting)
    groups: dict[str, list[Entry]] = {}
    for entry in shown:
        groups.setdefault(entry.stratum, []).append(entry)
    places = layout([len(group) for group in groups.values()])
    rows = 1 + max(row for row, _ in places)
    width = _COLUMNS * (_CELL + _MARGIN) + _MARGIN
    height = 0.7 + rows * _ROW
    figure = Figure(figsize=(width, height))
    figure.text(_MARGIN / width, 1 - 0.2 / height, f"{campaign.config.name}: sampled patches", fontsize=14, va="top")
    kinds = [kind for kind in KINDS if any(entry.kind == kind for entry in shown)]
    swatches = [Swatch(facecolor="none", edgecolor=KINDS[k][1], linewidth=2.5, label=KINDS[k][0]) for k in kinds]
    figure.legend(handles=swatches, loc="upper right", ncols=len(kinds), frameon=False, fontsize=9)
    stratum = ""
    for number, (entry, (row, column)) in enumerate(zip(shown, places, strict=True), 1):
        x, top = _MARGIN + column * (_CELL + _MARGIN), height - 0.6 - row * _ROW - _HEAD
        if entry.stratum != stratum:
            stratum = entry.stratum
            words = stratum.replace("_", " ")
            figure.text(x / width, (top + 0.07) / height, words, fontsize=11, weight="bold", va="bottom")
        _draw(figure, campaign.volumes, entry, (x / width, top / height, _CELL / width, _CELL / height))
        if progress is not None:
            progress("patches drawn", number, len(shown))
    return png(figure)


def layout(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return row and column of each picture of groups of these sizes; a group that fits in a row of 6 is not broken.

    Examples
    --------
    >>> layout([4, 3])
    [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    """
    places: list[tuple[int, int]] = []
    row = column = 0
    for size in sizes:
        if column and column + min(size, _COLUMNS) > _COLUMNS:
            row, column = row + 1, 0
        for _ in range(size):
            if column == _COLUMNS:
                row, column = row + 1, 0
            places.append((row, column))
            column += 1
    return places


def _draw(figure: Figure, folder: VolumeFolder, entry: Entry, place: tuple[float, float, float, float]) -> None:
    """Draw one patch with its upper left corner at a place (x, top, width, height in shares of the figure)."""
    volume = folder.record(entry.volume_id)
    voxels = normalise(volume_reader(folder, volume)(entry.box), volume.normalisation).mean(axis=0, dtype=np.float32)
    picture = three_planes(voxels, volume.spacing_um_zyx)
    low, high = limits(volume.normalisation)
    x, top, width, height = place
    axes = figure.add_axes((x, top - height, width, height), anchor="NW")
    axes.imshow(
        picture,
        cmap="gray",
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    axes.set_axis_off()
    rows, columns = picture.shape
    colour = KINDS[entry.kind][1]
    frame = Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor=colour, linewidth=2.5, clip_on=False)
    axes.add_patch(frame)
    side = max(rows, columns)
    lines = [f"{entry.volume_id} {entry.box}", *textwrap.wrap(entry.reason, 44)[:3]]
    axes.text(0, rows + 0.03 * side, "\n".join(lines), fontsize=6.5, color=GREY, va="top", linespacing=1.25)
