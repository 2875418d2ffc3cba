"""Figures of a campaign as PNG bytes: learning curve, calibration and uncertainty, overlays of the worst patches.

Drawn without pyplot, so that nothing is global and any process or thread may draw. Colours are those of Okabe and Ito,
which people with colour-blindness tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rescueseg.evaluation.champion import Judgement, dice_interval
from rescueseg.evaluation.comparison import Difference, GroupComparison
from rescueseg.evaluation.metrics import BinnedCounts
from rescueseg.evaluation.scores import PartScore
from rescueseg.records import Part

BLUE, ORANGE, GREEN, SKY, RED, YELLOW, PINK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#CC79A7",
)
CLASS_COLOURS = (SKY, ORANGE, GREEN, PINK, YELLOW, BLUE, RED)
MISSED, INVENTED = ORANGE, BLUE
GREY = "#6b7280"
_BARS = 30


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def learning_curve(
    history: Sequence[Judgement], threshold_dice: float | None = None, families: Mapping[int, str] | None = None
) -> bytes:
    """Draw Dice against annotated voxels, with 95 % intervals over the boxes.

    Parameters
    ----------
    history : sequence of Judgement
        By generation.
    threshold_dice : float, optional
        Test Dice of the tuned threshold, drawn as a line.
    families : mapping of int to str, optional
        Model family by generation; named where there are several.
    """
    families = families if families and len(set(families.values())) > 1 else {}
    figure = Figure(figsize=(9.4, 4.2), layout="constrained")
    axes = figure.subplots()
    if threshold_dice is not None:
        axes.axhline(threshold_dice, color=GREY, linestyle=(0, (4, 3)), linewidth=1.4, zorder=1)
        axes.text(
            0.012,
            threshold_dice + 0.012,
            f"best threshold with clean-up: {threshold_dice:.2f}",
            transform=axes.get_yaxis_transform(),
            color=GREY,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
        )
    curves: tuple[tuple[Part, str, str, str], ...] = (
        ("validation", ORANGE, "s", "validation boxes (choose the champion)"),
        ("test", BLUE, "o", "test boxes (only reported)"),
    )
    for part, colour, marker, label in curves:
        _draw_curve(axes, history, part, colour, marker, label)
    for judgement in history:
        star = " ★" if judgement.generation == history[-1].champion else ""
        axes.annotate(
            "\n".join(filter(None, (f"generation {judgement.generation}{star}", families.get(judgement.generation)))),
            (judgement.annotated_voxels, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8.5,
            color=GREY,
        )
    axes.set(xlabel="annotated voxels", ylabel="Dice (1 = perfect)", ylim=(0, 1.02))
    axes.set_xlim(0, 1.12 * max((j.annotated_voxels for j in history), default=1))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    _plain(axes)
    return png(figure)


def _draw_curve(axes: Axes, history: Sequence[Judgement], part: Part, colour: str, marker: str, label: str) -> None:
    """Draw the Dice of one part with its intervals; the parts are set apart a little so that both stay visible."""
    shift = (0.004 if part == "test" else -0.004) * max(j.annotated_voxels for j in history)
    scores = ((j, j.evaluation.part(part)) for j in history)
    points = [(j, score.dice) for j, score in scores if score is not None and score.dice is not None]
    if not points:
        return
    dice = np.array([value for _, value in points])
    nothing = (np.nan, np.nan)  # no bar: one of no length would look certain
    errors = np.abs(np.array([dice_interval(j.evaluation, part) or nothing for j, _ in points]).T - dice)
    axes.errorbar(
        [j.annotated_voxels + shift for j, _ in points],
        dice,
        yerr=errors,
        markersize=6,
        linewidth=2 if part == "test" else 1.2,
        elinewidth=1,
        capsize=3,
        zorder=3 if part == "test" else 2,
        color=colour,
        marker=marker,
        label=label,
    )


def uncertainty_against_error(score: PartScore) -> bytes:
    """Draw how often the model is wrong by how uncertain it is, and by how confident it is."""
    figure = Figure(figsize=(9.4, 3.5), layout="constrained")
    error_axes, calibration_axes = figure.subplots(1, 2)
    _error_by_uncertainty(error_axes, score.uncertainty)
    _calibration(calibration_axes, score.calibration, score.ece)
    return png(figure)


def _error_by_uncertainty(axes: Axes, bins: BinnedCounts) -> None:
    x, share, weight = _shares(bins.equal_width(_BARS), wrong=True)
    axes.bar(
        (np.arange(_BARS) + 0.5) / _BARS,
        weight,
        width=1 / _BARS,
        color="#e5e7eb",
        label="share of the voxels",
    )
    axes.plot(
        np.array(x) / bins.high, share, color=RED, marker="o", markersize=3.5, linewidth=1.8, label="wrong voxels"
    )
    auroc = bins.error_auroc()
    title = "Are uncertain voxels the wrong ones?"
    axes.set_title(
        title if auroc is None else f"{title}\nA wrong voxel is the more uncertain one in {auroc:.0%} of pairs",
        fontsize=9.5,
        loc="left",
    )
    axes.set(xlabel="uncertainty (0 = sure, 1 = cannot tell)", ylabel="share", xlim=(0, 1))
    axes.set_ylim(0, 1.25 * max([*share, *weight, 0.04]))
    axes.legend(frameon=False, fontsize=8, loc="upper center")
    _plain(axes)


def _calibration(axes: Axes, bins: BinnedCounts, ece: float) -> None:
    x, share, weight = _shares(bins, wrong=False)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1, label="honest")
    size = [12 + 160 * math.sqrt(w) for w in weight if w > 0]
    axes.plot(x, share, color=BLUE, linewidth=1.2)
    axes.scatter(x, share, s=size, color=BLUE, alpha=0.75, linewidths=0, label="model (size: how many voxels)")
    axes.set_title(f"Can its probabilities be trusted?\nThey are off by {ece:.1%} on average", fontsize=9.5, loc="left")
    low = max(0.0, min([*x, *share], default=0.0) - 0.05)
    axes.set(xlabel="probability the model gives", ylabel="share that is right", ylim=(low, 1.02), xlim=(low, 1.02))
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    _plain(axes)


def _shares(bins: BinnedCounts, wrong: bool) -> tuple[list[float], list[float], list[float]]:
    """Return per filled bin the mean and the share right or wrong, and per bin its share of all voxels."""
    total = max(1, sum(bins.voxels))
    filled = [i for i, n in enumerate(bins.voxels) if n > 0]
    right = [bins.right[i] / bins.voxels[i] for i in filled]
    return [bins.mean[i] for i in filled], [1 - r if wrong else r for r in right], [n / total for n in bins.voxels]


def _thousands(value: float, _position: int | None = None) -> str:
    """Return a count with its unit, as matplotlib asks for the label of a tick.

    Examples
    --------
    >>> _thousands(950), _thousands(131072)
    ('950', '131 k')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)


def differences(groups: Sequence[GroupComparison], names: Sequence[str]) -> bytes:
    """Draw the paired differences of Dice with their 95 % intervals, one line per group of boxes, all boxes on top."""
    lines: list[tuple[str, Difference]] = []
    for group in groups:
        label = "all" if group.kind == "all" else f"{group.kind} {group.name or 'unnamed'}".replace("_", " ")
        lines.append((f"{label} ({group.boxes})", group.differences["dice"]))
    figure = Figure(figsize=(9.4, 0.9 + 0.28 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=GREY, linewidth=1)
    for row, (_, difference) in enumerate(lines):
        colour = BLUE if row == 0 else GREY
        if difference.interval:
            axes.plot(difference.interval, (row, row), color=colour, linewidth=2)
        if difference.difference is not None:
            axes.plot([difference.difference], [row], color=colour, marker="o", markersize=6)
    axes.set_yticks(range(len(lines)), [label for label, _ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(f"Dice of {names[1]} minus Dice of {names[0]}; boxes in brackets")
    _plain(axes)
    return png(figure)
