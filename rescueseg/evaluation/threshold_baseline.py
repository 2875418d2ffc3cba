"""The baseline: a global threshold per class with clean-up, tuned on the validation boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import model_validator
from scipy import ndimage

from rescueseg.campaign import Campaign, RecordFolder, VolumeFolder
from rescueseg.campaign.layout import REPORT
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import EvaluationError
from rescueseg.evaluation.metrics import Counts, count_voxels, mean_over_classes
from rescueseg.evaluation.truth import HoldoutTruth, holdout_truth
from rescueseg.labels import IGNORE
from rescueseg.records import HoldoutBox, Normalisation, Record
from rescueseg.storage import digest_json
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import limits, normalise, parts_of, read_box
from rescueseg.voxels.components import label_components

SIGMAS = (0.0, 1.0, 2.0)
"""Smoothing in multiples of the finest voxel size; isotropic in micrometre."""
MINIMUM_VOXELS = (0, 16, 64, 256, 1024)
SHORTLIST = 6
BINS = 2048
FAR, FAR_BINS = 32, 32
"""Beyond the limits: how far thresholds are tried, in standard deviations, and how many for each."""


class ClassThreshold(Record):
    """The threshold of one class against everything else, and what it reaches."""

    channel: int
    sigma: float
    """Gaussian smoothing in multiples of the finest voxel size."""
    polarity: Literal["bright", "dark"]
    """Whether the class lies above or below the threshold."""
    threshold: float | None
    """In normalised intensity: see `rescueseg.volumes.normalise.normalise`; None where no validation box holds the class,
    and nothing is found."""
    min_voxels: int
    """Connected components with fewer voxels are dropped."""
    name: str = ""
    """The class; empty in the only one of files written before each class had its own."""
    validation: Counts | None = None
    test: Counts | None = None
    """Voxels of all boxes of the part; None in such files."""

    def segment(self, smoothed: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Return the voxels of the class (1) in a smoothed image, zyx."""
        if self.threshold is None:
            return np.zeros(smoothed.shape, np.uint8)
        mask = smoothed >= self.threshold if self.polarity == "bright" else smoothed < self.threshold
        if self.min_voxels > 0 and mask.any():
            labels, count = label_components(mask, 6)
            sizes = np.bincount(labels.ravel(), minlength=count + 1)
            sizes[0] = 0
            mask = (sizes >= self.min_voxels)[labels]
        return mask.astype(np.uint8)

    @property
    def in_words(self) -> str:
        """Say for people what is done."""
        if self.threshold is None:
            return "not in the validation boxes"
        return f"{self.polarity} voxels, smoothing {self.sigma:g}, objects ≥ {self.min_voxels} voxels"


class ThresholdBaseline(Record):
    """Tuned global thresholds, one per class, and what they reach; scores are means over the classes that have one."""

    classes: tuple[ClassThreshold, ...]
    """Per class 1…K."""
    validation_dice: float | None
    """None when neither truth nor prediction holds a foreground voxel."""
    test_dice: float | None
    test_iou: float | None
    test_precision: float | None
    test_recall: float | None
    """None when the holdout has no test boxes, or what the score is of does not occur in them."""
    key: str
    """Digest of the boxes and their truth; another one calls for tuning again."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_class(cls, data: Any) -> Any:
        """Read a file of an earlier version, which had one threshold for all classes."""
        if not isinstance(data, dict) or "classes" in data or "threshold" not in data:
            return data
        names = ("channel", "sigma", "polarity", "threshold", "min_voxels")
        rest = {key: value for key, value in data.items() if key not in names}
        return rest | {"classes": [{name: data[name] for name in names if name in data}]}

    @property
    def in_words(self) -> str:
        """Say for people how the classes are found."""
        if len(self.classes) == 1:
            return self.classes[0].in_words
        return "; ".join(f"{c.name}: {c.in_words}" for c in self.classes)


BASELINE = RecordFile("threshold_baseline", ThresholdBaseline)


@dataclass(frozen=True)
class BoxImages:
    """The images of holdout boxes, smoothed, with the truth of each.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's.
    truth : HoldoutTruth
        Boxes and truth.
    """

    volumes: VolumeFolder
    truth: HoldoutTruth

    def smoothed(
        self, boxes: list[HoldoutBox], channel: int, sigma: float
    ) -> Iterator[tuple[HoldoutBox, npt.NDArray[np.float32]]]:
        """Yield each box with its normalised, smoothed channel, zyx."""
        for box in boxes:
            volume = self.truth.volumes[box.volume_id]
            finest = min(volume.spacing_um_zyx)
            widths = [sigma * finest / s for s in volume.spacing_um_zyx]
            margin = [int(np.ceil(3 * w)) for w in widths]
            image = read_box(open_image(self.volumes, box.volume_id), box.box.expand(margin))
            smooth = ndimage.gaussian_filter(normalise(image, volume.normalisation)[channel], widths, truncate=3.0)
            inner = tuple(slice(m, m + n) for m, n in zip(margin, box.box.shape_zyx, strict=True))
            yield box, np.asarray(smooth[inner], dtype=np.float32)


def threshold_baseline(campaign: Campaign) -> ThresholdBaseline:
    """Tune a global threshold for each class on the validation boxes and report it on the test boxes.

    Each class is found against everything else. Every channel, smoothing of 0, 1 and 2 (in multiples of the finest voxel
    size), both polarities and all thresholds are tried; the best of each are tried again with every minimum component
    size. As of a model, counts are pooled over the boxes, and scores averaged over the classes. A voxel may be found for
    several classes: that is generous. Boxes are smoothed with a margin, so that the box face leaves no trace. The result
    is stored below `reports/` and computed again only when the holdout or its truth changed.

    Raises
    ------
    EvaluationError
        If there is no holdout, no validation box, or boxes without truth.
    """
    truth, names = holdout_truth(campaign), campaign.config.classes
    volumes = [[v.digest, v.normalisation.to_json()] for v in truth.volumes.values()]
    one_by_one = [] if len(names) == 1 else [list(names)]  # other than what earlier versions did
    key = digest_json([truth.digest_of_all, volumes, *one_by_one])
    folder = RecordFolder(campaign.storage, REPORT.top)
    earlier = folder.read(BASELINE)
    if earlier is not None and earlier.key == key:
        return earlier
    images = BoxImages(campaign.volumes, truth)
    validation = [b for b in truth.boxes if b.part == "validation"]
    if not validation:
        raise EvaluationError(
            "the holdout has no validation boxes to tune a threshold on",
            where=campaign.url,
            todo="Let holdout.validation_boxes be at least 1",
        )
    test = [b for b in truth.boxes if b.part == "test"]
    best = [_tune(images, validation, c) for c in range(1, len(names) + 1)]
    tuned, on_test = (
        [_pooled(images, boxes, c, [setting])[0] for c, setting in enumerate(best, start=1)]
        for boxes in (validation, test)
    )
    result = ThresholdBaseline(
        classes=tuple(
            setting.model_copy(update={"name": name, "validation": before, "test": after})
            for setting, name, before, after in zip(best, names, tuned, on_test, strict=True)
        ),
        validation_dice=mean_over_classes(tuned, "dice"),
        test_dice=mean_over_classes(on_test, "dice"),
        test_iou=mean_over_classes(on_test, "iou"),
        test_precision=mean_over_classes(on_test, "precision"),
        test_recall=mean_over_classes(on_test, "recall"),
        key=key,
    )
    folder.write(BASELINE, result)
    return result


def last_baseline(campaign: Campaign) -> ThresholdBaseline | None:
    """Return the baseline that was tuned last, on whatever holdout; None where none was. Nothing is computed."""
    return RecordFolder(campaign.storage, REPORT.top).read(BASELINE)


def _tune(images: BoxImages, boxes: list[HoldoutBox], class_index: int) -> ClassThreshold:
    """Return the setting with the highest pooled Dice of a class on `boxes`; no threshold where no box holds it."""
    best = ClassThreshold(channel=0, sigma=0.0, polarity="bright", threshold=None, min_voxels=0)
    if not any((images.truth.labels(b) == class_index).any() for b in boxes):
        return best
    channels, best_dice = min(images.truth.volumes[b.volume_id].channels for b in boxes), -1.0
    for channel in range(channels):
        for sigma in SIGMAS:
            settings = [
                ClassThreshold(
                    channel=channel,
                    sigma=sigma,
                    polarity="bright" if bright else "dark",
                    threshold=threshold,
                    min_voxels=size,
                )
                for bright, threshold in _shortlist(images, boxes, class_index, channel, sigma)
                for size in MINIMUM_VOXELS
            ]
            for setting, counts in zip(settings, _pooled(images, boxes, class_index, settings), strict=True):
                if counts.dice is not None and counts.dice > best_dice:
                    best, best_dice = setting, counts.dice
    return best


def _shortlist(
    images: BoxImages, boxes: list[HoldoutBox], class_index: int, channel: int, sigma: float
) -> list[tuple[bool, float]]:
    """Return the best thresholds of both polarities before clean-up, from one histogram per truth."""
    scalings = [images.truth.volumes[b.volume_id].normalisation for b in boxes]
    edges = _edges([parts_of(n, channel + 1)[channel] for n in scalings])
    low, high, n_bins = edges[0], edges[-1], len(edges) - 1
    histograms = np.zeros((2, n_bins))  # of other voxels and of those of the class
    for box, smoothed in images.smoothed(boxes, channel, sigma):
        truth = images.truth.labels(box)
        for is_class in (0, 1):
            values = smoothed[(truth != IGNORE) & ((truth == class_index) == bool(is_class))]
            histograms[is_class] += np.histogram(np.clip(values, low, high), bins=edges)[0]
    shortlist: list[tuple[bool, float]] = []
    for bright in (True, False):
        # voxels on the side of the class of each inner edge
        side = histograms[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] if bright else histograms.cumsum(axis=1)[:, :-1]
        dice = 2 * side[1] / np.maximum(side.sum(axis=0) + histograms[1].sum(), 1)
        best = int(dice.argmax())
        # clean-up moves the optimum towards looser thresholds: take others near it
        near = sorted({min(max(best + d, 0), n_bins - 2) for d in _steps(dice, best)})
        shortlist += [(bright, float(edges[i + 1])) for i in near]
    return shortlist


def _edges(scalings: Sequence[Normalisation]) -> npt.NDArray[np.float64]:
    """Return the thresholds tried: between the limits, and coarser ones beyond them where nothing is clipped."""
    low, high = (end(pair) for end, pair in zip((min, max), zip(*map(limits, scalings), strict=True), strict=True))
    within = np.linspace(low, high, BINS + 1)
    if not any(scaling.linear for scaling in scalings):
        return within
    beyond = np.arange(1, FAR * FAR_BINS + 1) / FAR_BINS
    return np.concatenate([low - beyond[::-1], within, high + beyond])


def _steps(dice: npt.NDArray[np.float64], best: int) -> list[int]:
    """Return offsets from the best threshold to others within 10 % of its Dice, evenly spread."""
    good = np.nonzero(dice >= 0.9 * dice[best])[0]
    return [int(i) - best for i in np.linspace(good[0], good[-1], SHORTLIST).round()] + [0]


def _pooled(
    images: BoxImages, boxes: list[HoldoutBox], class_index: int, settings: list[ClassThreshold]
) -> list[Counts]:
    """Return the pooled counts of a class for settings that share channel and smoothing."""
    pooled = [Counts() for _ in settings]
    for box, smoothed in images.smoothed(boxes, settings[0].channel, settings[0].sigma):
        truth = images.truth.labels(box)
        against_rest = np.where(truth == IGNORE, IGNORE, truth == class_index)
        pooled = [
            total + count_voxels(setting.segment(smoothed), against_rest, 1)[0]
            for total, setting in zip(pooled, settings, strict=True)
        ]
    return pooled
