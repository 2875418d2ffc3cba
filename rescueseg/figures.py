"""Figures of a campaign as PNG bytes: learning curve, calibration and uncertainty, overlays of the worst patches.

Drawn without pyplot, so that nothing is global and any process or thread may draw. Colours are those of Okabe and Ito,
which people with colour-blindness tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rescueseg.campaign import Campaign
from rescueseg.champion import Judgement, dice_interval
from rescueseg.evaluation import BoxScore, Labels, PartScore, TruthReader, holdout_boxes, open_truths
from rescueseg.metrics import IGNORE, BinnedCounts
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
_PLANES = (("xy", 0), ("xz", 1), ("yz", 2))


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def learning_curve(judged: Sequence[Judgement], threshold_dice: float | None = None) -> bytes:
    """Draw Dice against annotated voxels, with 95 % bootstrap intervals over the boxes.

    Parameters
    ----------
    judged : sequence of Judgement
        By generation.
    threshold_dice : float, optional
        Test Dice of the tuned threshold, drawn as the bar to beat.
    """
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
        _draw_curve(axes, judged, part, colour, marker, label)
    for judgement in judged:
        crowned = " ★" if judged and judgement.generation == judged[-1].champion else ""
        axes.annotate(
            f"generation {judgement.generation}{crowned}",
            (judgement.annotated_voxels, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8.5,
            color=GREY,
        )
    axes.set(xlabel="annotated voxels", ylabel="Dice (1 = perfect)", ylim=(0, 1.02))
    axes.set_xlim(0, 1.12 * max((j.annotated_voxels for j in judged), default=1))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    _plain(axes)
    return png(figure)


def _draw_curve(axes: Axes, judged: Sequence[Judgement], part: Part, colour: str, marker: str, label: str) -> None:
    """Draw the Dice of one part with its intervals; the parts are set apart a little so that both stay visible."""
    shift = (0.004 if part == "test" else -0.004) * max(j.annotated_voxels for j in judged)
    known = [(j, score) for j in judged if (score := j.evaluation.part(part)) is not None]
    if not known:
        return
    dice = np.array([score.dice for _, score in known])
    intervals = [dice_interval(j.evaluation, part) or (score.dice, score.dice) for j, score in known]
    errors = np.abs(np.array(intervals).T - dice)
    axes.errorbar(
        [j.annotated_voxels + shift for j, _ in known],
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
    left, right = figure.subplots(1, 2)
    _error_by_uncertainty(left, score.uncertainty)
    _calibration(right, score.calibration, score.ece)
    return png(figure)


def _error_by_uncertainty(axes: Axes, bins: BinnedCounts) -> None:
    x, share, weight = _shares(bins, wrong=True)
    axes.bar(
        np.arange(len(bins.voxels)) / len(bins.voxels) * 1.0 + 0.5 / len(bins.voxels),
        weight,
        width=1 / len(bins.voxels),
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


def worst_patch(campaign: Campaign, generation: int, score: BoxScore, read_truth: TruthReader) -> bytes:
    """Draw a holdout box in three planes: image, truth, prediction, what is wrong, uncertainty.

    The planes go through the voxel column with most errors along each axis.

    Parameters
    ----------
    campaign : Campaign
        With the generation's maps.
    generation : int
        Whose prediction.
    score : BoxScore
        The box.
    read_truth : callable
        As returned by `rescueseg.evaluation.open_truths`.
    """
    from rescueseg.inference import open_map
    from rescueseg.volumes import normalise, open_image

    volume = campaign.volume(score.volume_id)
    where = score.box.slices
    image = normalise(np.asarray(open_image(campaign, score.volume_id)[(slice(None), *where)]), volume.normalisation)[0]
    probability = np.asarray(open_map(campaign, generation, score.volume_id, "probability")[(slice(None), *where)])
    entropy = np.asarray(open_map(campaign, generation, score.volume_id, "predictive_entropy")[where], np.float32)
    frozen = next(b for b in holdout_boxes(campaign) if (b.volume_id, b.box) == (score.volume_id, score.box))
    truth = read_truth(frozen)
    prediction = probability.astype(np.float32).argmax(axis=0).astype(np.uint8)
    wrong = (prediction != truth) & (truth != IGNORE)
    span = _in_micrometre(score, volume.spacing_um_zyx)
    heights = [span[1], span[0], span[0]]
    widths = [span[2], span[2], span[1]]
    ratios = [max(0.3, h / w) for h, w in zip(heights, widths, strict=True)]
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(10.5, 0.35 + 2.08 * sum(ratios)), layout=layout)
    grid = figure.subplots(3, 5, gridspec_kw={"height_ratios": ratios}, squeeze=False)
    limits = (float(image.min()), float(image.max()))
    for row, (name, axis) in zip(grid, _PLANES, strict=True):
        index = int(wrong.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
        planes = [np.take(array, index, axis=axis) for array in (image, truth, prediction, entropy)]
        other = [s for a, s in enumerate(volume.spacing_um_zyx) if a != axis]
        _draw_row(row, planes, aspect=other[0] / other[1], limits=limits, n_classes=campaign.config.n_classes)
        position = index + score.box.offset_zyx[axis]
        row[0].set_ylabel(f"{name}, {'zyx'[axis]} = {position}", fontsize=8)
    for axes, title in zip(grid[0], ("image", "truth", "prediction", "what is wrong", "uncertainty"), strict=True):
        axes.set_title(title, fontsize=9)
    return png(figure, dpi=95)


def _draw_row(
    row: npt.NDArray[Any], planes: list[npt.NDArray[Any]], aspect: float, limits: tuple[float, float], n_classes: int
) -> None:
    """Draw one plane in the five columns."""
    image, truth, prediction, entropy = planes
    for axes in row[:4]:
        axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=aspect, interpolation="nearest")
    row[1].imshow(_paint(truth, CLASS_COLOURS), aspect=aspect, interpolation="nearest")
    row[2].imshow(_paint(prediction, CLASS_COLOURS), aspect=aspect, interpolation="nearest")
    known = truth != IGNORE
    missed = known & (truth > 0) & (prediction != truth)
    invented = known & (truth == 0) & (prediction > 0)
    row[3].imshow(_paint(missed + 2 * invented, (MISSED, INVENTED), 0.85), aspect=aspect, interpolation="nearest")
    row[4].imshow(entropy, cmap="cividis", vmin=0, vmax=math.log(n_classes + 1), aspect=aspect, interpolation="nearest")
    for axes in row:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def _paint(labels: Labels | npt.NDArray[Any], colours: Sequence[str], alpha: float = 0.55) -> npt.NDArray[np.float64]:
    """Return an RGBA image of labels; 0 is clear, ignore is white."""
    rgba = np.zeros((*labels.shape, 4))
    for label in np.unique(labels):
        if label == IGNORE:
            rgba[labels == label] = (1, 1, 1, 0.7)
        elif label > 0:
            code = colours[(int(label) - 1) % len(colours)]
            rgba[labels == label] = (*(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)), alpha)
    return rgba


def _in_micrometre(score: BoxScore, spacing: Sequence[float]) -> list[float]:
    return [n * s for n, s in zip(score.box.shape_zyx, spacing, strict=True)]


def _thousands(value: float, _position: int | None = None) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)


def generation_figures(
    campaign: Campaign, judged: Sequence[Judgement], threshold_dice: float | None, worst: int = 3
) -> dict[str, bytes]:
    """Return the figures of the last judged generation by file name.

    The worst patches are validation boxes: people who look at them act on them, and the test boxes only report.

    Returns
    -------
    dict
        `learning_curve.png`, `uncertainty_against_error.png`, `worst_1.png` and so on.
    """
    last = judged[-1].evaluation
    found = {"learning_curve.png": learning_curve(judged, threshold_dice)}
    part = last.test or last.validation
    if part is not None:
        found["uncertainty_against_error.png"] = uncertainty_against_error(part)
    boxes = last.worst(worst)
    if boxes:
        read_truth = open_truths(campaign, holdout_boxes(campaign))
        for number, score in enumerate(boxes, start=1):
            found[f"worst_{number}.png"] = worst_patch(campaign, last.generation, score, read_truth)
    return found
