"""Boxes in three planes, side by side: image, truth, prediction, error, uncertainty, with a scale bar.

Rows are the planes xy, zy and zx through the voxels that matter most; each is drawn in its true proportions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from rescueseg.campaign import Campaign, GenerationFolder, VolumeFolder
from rescueseg.evaluation.champion import Judgement
from rescueseg.evaluation.scores import BoxScore, Evaluation
from rescueseg.evaluation.truth import HoldoutTruth, Labels, holdout_truth
from rescueseg.evaluation.uncertain_boxes import UncertainBox
from rescueseg.geometry import Box, Spacing
from rescueseg.inference.maps import VolumeMaps
from rescueseg.labels import IGNORE, PatchLabels, most_likely, predecessors
from rescueseg.records import Normalisation
from rescueseg.reports.figures import (
    CLASS_COLOURS,
    INVENTED,
    MISSED,
    PINK,
    learning_curve,
    png,
    uncertainty_against_error,
)
from rescueseg.reports.html import family
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import limits, normalise, parts_of

PLANES = (("xy", 0), ("zy", 2), ("zx", 1))
"""Name and the axis that is cut."""
Style = Literal["image", "labels", "error", "uncertainty"]
_LONGEST_BAR = 0.35
"""Share of the picture's width that the scale bar takes at most."""


@dataclass(frozen=True)
class Column:
    """One column of a gallery: a box drawn in one way.

    Parameters
    ----------
    title : str
        Above it.
    style : str
        "image"; "labels" over the image; "error", 1 missed, 2 invented and 3 something else, over the image;
        "uncertainty" alone.
    voxels : ndarray, zyx
        What is drawn.
    """

    title: str
    style: Style
    voxels: npt.NDArray[Any]


@dataclass(frozen=True)
class BoxPictures:
    """Draws boxes of a campaign's volumes.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's.
    n_classes : int
        Its foreground classes; the highest entropy follows from them.
    """

    volumes: VolumeFolder
    n_classes: int

    def worst(self, generation: GenerationFolder, score: BoxScore, truth: HoldoutTruth) -> bytes:
        """Draw a holdout box: image, truth, prediction, what is wrong, uncertainty.

        The planes go through the voxels with most errors along each axis.

        Parameters
        ----------
        generation : GenerationFolder
            Whose prediction.
        score : BoxScore
            The box.
        truth : HoldoutTruth
            Of the holdout.
        """
        labels, prediction = _truth(score, truth), _prediction(generation, score.volume_id, score.box)
        wrong = errors(prediction, labels)
        columns = [
            Column("truth", "labels", labels),
            Column("prediction", "labels", prediction),
            Column("what is wrong", "error", wrong),
            Column("uncertainty", "uncertainty", _entropy(generation, score.volume_id, score.box)),
        ]
        return self._draw(score.volume_id, score.box, columns, wrong > 0)

    def uncertain(self, generation: GenerationFolder, place: UncertainBox) -> bytes:
        """Draw a box without truth: image, prediction, uncertainty; planes through the most uncertain voxels."""
        entropy = _entropy(generation, place.volume_id, place.box)
        columns = [
            Column("prediction", "labels", _prediction(generation, place.volume_id, place.box)),
            Column("uncertainty", "uncertainty", entropy),
        ]
        return self._draw(place.volume_id, place.box, columns, entropy)

    def changed(self, generations: Mapping[str, GenerationFolder], score: BoxScore, truth: HoldoutTruth) -> bytes:
        """Draw a holdout box for two generations: truth, and prediction and errors of both.

        The planes go through the voxels about which they disagree most.

        Parameters
        ----------
        generations : mapping of str to GenerationFolder
            The two, by what they are called.
        score : BoxScore
            The box.
        truth : HoldoutTruth
            Of the holdout.
        """
        labels = _truth(score, truth)
        columns, predictions = [Column("truth", "labels", labels)], []
        for name, generation in generations.items():
            predictions.append(_prediction(generation, score.volume_id, score.box))
            columns.append(Column(name, "labels", predictions[-1]))
            columns.append(Column("what is wrong", "error", errors(predictions[-1], labels)))
        return self._draw(score.volume_id, score.box, columns, predictions[0] != predictions[1])

    def disagreeing(
        self, volume_id: str, box: Box, masks: Sequence[tuple[str, PatchLabels]], accepted: PatchLabels | None
    ) -> bytes:
        """Draw what two people drew in a box, and what only one of them did; planes through the most of that.

        Parameters
        ----------
        volume_id, box
            The patch.
        masks : sequence of (str, PatchLabels)
            The two, with the names of who drew them.
        accepted : PatchLabels, optional
            What was accepted in the end, where that is neither.
        """
        (one, first), (two, second) = masks
        apart = disagreement(first, second)
        columns = [Column(name, "labels", _countable(labels)) for name, labels in masks]
        columns.append(Column("they differ", "error", apart))
        if accepted is not None:
            columns.append(Column("accepted", "labels", _countable(accepted)))
        legend = {f"only {one}": MISSED, f"only {two}": INVENTED}
        if (apart == 3).any():
            legend["both, as something else"] = PINK
        return self._draw(volume_id, box, columns, apart > 0, legend)

    def _draw(
        self,
        volume_id: str,
        box: Box,
        columns: Sequence[Column],
        weight: npt.NDArray[Any],
        legend: Mapping[str, str] | None = None,
    ) -> bytes:
        """Draw the image and the columns, in planes through the maxima of a weight (zyx); a legend names colours below."""
        volume = self.volumes.record(volume_id)
        raw = np.asarray(open_image(self.volumes, volume_id)[(slice(None), *box.slices)])
        image = normalise(raw, volume.normalisation)[0]
        shown = [Column("image", "image", image), *columns]
        spacing = volume.spacing_um_zyx
        z, y, x = (n * s for n, s in zip(box.shape_zyx, spacing, strict=True))
        sizes = [(y, x), (z, y), (z, x)]
        ratios = [max(0.3, height / width) for height, width in sizes]
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        figure = Figure(figsize=(2.1 * len(shown), 0.35 + 2.08 * sum(ratios)), layout=layout)
        grid = figure.subplots(len(PLANES), len(shown), gridspec_kw={"height_ratios": ratios}, squeeze=False)
        highest = math.log(self.n_classes + 1)
        greys = grey_values(image, parts_of(volume.normalisation, len(raw))[0])
        for row, (name, axis), (_, width) in zip(grid, PLANES, sizes, strict=True):
            index = int(weight.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64).argmax())
            for axes, column in zip(row, shown, strict=True):
                _panel(
                    axes,
                    column,
                    index,
                    axis,
                    image,
                    (spacing, greys, highest),
                )
            _scale_bar(row[0], width)
            row[0].set_ylabel(f"{name}, {'zyx'[axis]} = {index + box.offset_zyx[axis]}", fontsize=8)
        for axes, column in zip(grid[0], shown, strict=True):
            axes.set_title(column.title, fontsize=9)
        if legend:
            swatches = [Patch(color=colour, label=name) for name, colour in legend.items()]
            figure.legend(handles=swatches, loc="outside lower right", ncols=len(swatches), fontsize=8, frameon=False)
        return png(figure, dpi=95)


def _countable(labels: PatchLabels) -> npt.NDArray[np.uint8]:
    """Return classes, or object numbers as a few colours."""
    if labels.instances is None:
        return labels.classes
    colours = (labels.instances % len(CLASS_COLOURS) + 1).astype(np.uint8)
    return np.where((labels.instances > 0) | labels.ignore, np.where(labels.ignore, np.uint8(IGNORE), colours), 0)


def grey_values(image: npt.NDArray[np.float32], scaling: Normalisation) -> tuple[float, float]:
    """Return the scaled values that are drawn black and white: a saturated voxel does not make all else black.

    Examples
    --------
    >>> scaling = Normalisation(low=100, high=500, mean=300, std=100, linear=10)
    >>> grey_values(np.float32([-0.5, 0, 1]), scaling), grey_values(np.float32([-0.5, 0, 25]), scaling)
    ((-0.5, 1.0), (-0.5, 2.0))
    """
    low, high = limits(scaling)
    return float(np.clip(image.min(), low, high)), float(np.clip(image.max(), low, high))


def disagreement(first: PatchLabels, second: PatchLabels) -> Labels:
    """Return 1 where only the first drew something, 2 where only the second did, 3 where both drew something else.

    Something else is another class, or another object. What either did not annotate is 0.

    Examples
    --------
    >>> one, two = (PatchLabels(np.array([[row]], np.uint8)) for row in ([1, 1, 0, 0, 2], [1, 0, 1, 0, 1]))
    >>> disagreement(one, two).tolist()
    [[[0, 1, 2, 0, 3]]]
    """
    annotated = ~(first.ignore | second.ignore)
    one, two = annotated & (first.classes > 0), annotated & (second.classes > 0)
    other = one & two & (first.classes != second.classes)
    if first.instances is not None and second.instances is not None:
        other |= one & two & (predecessors(second.instances, first.instances) != first.instances)
    return np.asarray((one & ~two) + 2 * (two & ~one) + 3 * other, np.uint8)


def errors(prediction: Labels, truth: Labels) -> Labels:
    """Return 1 where the truth's class is missed, 2 where something is invented, 0 elsewhere and without truth.

    Examples
    --------
    The last voxel was not annotated (255):

    >>> errors(np.array([1, 0, 1, 1]), np.array([1, 1, 0, 255])).tolist()
    [0, 1, 2, 0]
    """
    has_truth = truth != IGNORE
    missed = has_truth & (truth > 0) & (prediction != truth)
    invented = has_truth & (truth == 0) & (prediction > 0)
    return np.asarray(missed + 2 * invented, np.uint8)


def _truth(score: BoxScore, truth: HoldoutTruth) -> Labels:
    return truth.labels(next(b for b in truth.boxes if (b.volume_id, b.box) == (score.volume_id, score.box)))


def _prediction(generation: GenerationFolder, volume_id: str, box: Box) -> Labels:
    probability = VolumeMaps(generation, volume_id).open("probability")[(slice(None), *box.slices)]
    return most_likely(np.asarray(probability, np.float32))


def _entropy(generation: GenerationFolder, volume_id: str, box: Box) -> npt.NDArray[np.float32]:
    return np.asarray(VolumeMaps(generation, volume_id).open("predictive_entropy")[box.slices], np.float32)


def _panel(
    axes: Axes,
    column: Column,
    index: int,
    axis: int,
    image: npt.NDArray[np.float32],
    scale: tuple[Spacing, tuple[float, float], float],
) -> None:
    """Draw one plane of a column; `scale` holds the spacing, the grey values shown and the highest entropy."""
    spacing, limits, highest = scale
    rows, across = (s for a, s in enumerate(spacing) if a != axis)
    how: dict[str, Any] = {"aspect": rows / across, "interpolation": "nearest"}
    plane = np.take(column.voxels, index, axis=axis)
    if column.style == "uncertainty":
        axes.imshow(plane, cmap="cividis", vmin=0, vmax=highest, **how)
    else:
        axes.imshow(np.take(image, index, axis=axis), cmap="gray", vmin=limits[0], vmax=limits[1], **how)
    if column.style == "labels":
        axes.imshow(_paint(plane, CLASS_COLOURS), **how)
    elif column.style == "error":
        axes.imshow(_paint(plane, (MISSED, INVENTED, PINK), 0.85), **how)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _scale_bar(axes: Axes, width_um: float) -> None:
    """Draw a bar of a round length in the lower right corner, its length above it."""
    length = round_length(_LONGEST_BAR * width_um)
    share = length / width_um
    outline = [withStroke(linewidth=3.5, foreground="black")]
    right = 0.96
    axes.plot(
        [right - share, right], [0.06, 0.06], color="white", linewidth=2, solid_capstyle="butt",
        transform=axes.transAxes, path_effects=outline, scalex=False, scaley=False,
    )  # fmt: skip
    axes.text(
        right - share / 2, 0.09, f"{length:g} µm", color="white", fontsize=7, ha="center", va="bottom",
        transform=axes.transAxes, path_effects=[withStroke(linewidth=2, foreground="black")],
    )  # fmt: skip


def round_length(longest_um: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not longer.

    Examples
    --------
    >>> round_length(37.0), round_length(0.6)
    (20.0, 0.5)
    """
    power = 10.0 ** math.floor(math.log10(longest_um))
    return max(n * power for n in (1, 2, 5) if n * power <= longest_um * (1 + 1e-9))


def _paint(labels: npt.NDArray[Any], colours: Sequence[str], alpha: float = 0.55) -> npt.NDArray[np.float64]:
    """Return an RGBA image of labels; 0 is clear, ignore is white."""
    rgba = np.zeros((*labels.shape, 4))
    for label in np.unique(labels):
        if label == IGNORE:
            rgba[labels == label] = (1, 1, 1, 0.7)
        elif label > 0:
            code = colours[(int(label) - 1) % len(colours)]
            rgba[labels == label] = (*(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)), alpha)
    return rgba


def evaluation_figures(
    campaign: Campaign, evaluation: Evaluation, places: Sequence[UncertainBox], worst: int = 3
) -> dict[str, bytes]:
    """Return the figures of one evaluation by file name.

    The worst patches are validation boxes: people who look at them act on them, and the test boxes only report.

    Parameters
    ----------
    campaign : Campaign
        With the generation's maps.
    evaluation : Evaluation
        Of the generation.
    places : sequence of UncertainBox
        Boxes without truth to show.
    worst : int
        How many of the worst boxes.

    Returns
    -------
    dict
        `uncertainty_against_error.png`, `worst_1.png` and so on, `uncertain_1.png` and so on.
    """
    figures, draw = {}, BoxPictures(campaign.volumes, campaign.config.n_classes)
    folder = campaign.generation(evaluation.generation)
    part = evaluation.test or evaluation.validation
    if part is not None:
        figures["uncertainty_against_error.png"] = uncertainty_against_error(part)
    if boxes := evaluation.worst(worst):
        truth = holdout_truth(campaign)
    for number, score in enumerate(boxes, start=1):
        figures[f"worst_{number}.png"] = draw.worst(folder, score, truth)
    for number, place in enumerate(places, start=1):
        figures[f"uncertain_{number}.png"] = draw.uncertain(folder, place)
    return figures


def generation_figures(
    campaign: Campaign, history: Sequence[Judgement], threshold_dice: float | None, places: Sequence[UncertainBox] = ()
) -> dict[str, bytes]:
    """Return the figures of the last evaluated generation by file name: `learning_curve.png` and `evaluation_figures`."""
    families = {j.generation: family(campaign.generation(j.generation)) for j in history}
    curve = {"learning_curve.png": learning_curve(history, threshold_dice, families)}
    return curve | evaluation_figures(campaign, history[-1].evaluation, places)
