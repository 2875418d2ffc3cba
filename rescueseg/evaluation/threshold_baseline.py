"""The baseline: a global threshold with clean-up, tuned on the validation boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.campaign import Campaign, RecordFolder, VolumeFolder
from rescueseg.campaign.layout import REPORT
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import EvaluationError
from rescueseg.evaluation.metrics import Counts, count_voxels
from rescueseg.evaluation.truth import HoldoutTruth, holdout_truth
from rescueseg.labels import IGNORE
from rescueseg.records import HoldoutBox, Record
from rescueseg.storage import digest_json
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import normalise, read_box
from rescueseg.voxels.components import label_components

SIGMAS = (0.0, 1.0, 2.0)
"""Smoothing in multiples of the finest voxel size; isotropic in micrometre."""
MINIMUM_VOXELS = (0, 16, 64, 256, 1024)
SHORTLIST = 6
BINS = 2048


class ThresholdBaseline(Record):
    """A tuned global threshold and what it reaches."""

    channel: int
    sigma: float
    """Gaussian smoothing in multiples of the finest voxel size."""
    polarity: Literal["bright", "dark"]
    """Whether foreground lies above or below the threshold."""
    threshold: float
    """In normalised intensity: (clipped intensity − mean) / std of the volume."""
    min_voxels: int
    """Connected components with fewer voxels are dropped."""
    validation_dice: float | None
    """None when neither truth nor prediction holds a foreground voxel."""
    test_dice: float | None
    test_iou: float | None
    test_precision: float | None
    test_recall: float | None
    """None when the holdout has no test boxes, or neither truth nor prediction holds a foreground voxel."""
    key: str
    """Digest of the boxes and their truth; another one calls for tuning again."""


BASELINE = RecordFile("threshold_baseline", ThresholdBaseline)


@dataclass(frozen=True)
class _Setting:
    channel: int
    sigma: float
    bright: bool
    threshold: float
    min_voxels: int = 0

    def segment(self, smoothed: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Return the foreground (1) of a smoothed image, zyx."""
        mask = smoothed >= self.threshold if self.bright else smoothed < self.threshold
        if self.min_voxels > 0 and mask.any():
            labels, count = label_components(mask, 6)
            sizes = np.bincount(labels.ravel(), minlength=count + 1)
            sizes[0] = 0
            mask = (sizes >= self.min_voxels)[labels]
        return mask.astype(np.uint8)


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
    """Tune a global threshold on the validation boxes and report it on the test boxes.

    Every channel, smoothing of 0, 1 and 2 (in multiples of the finest voxel size), both polarities and all
    thresholds are tried; the best of each are tried again with every minimum component size. All foreground classes are
    merged into one. Boxes are smoothed with a margin, so that the box face leaves no trace. The result is stored
    below `reports/` and computed again only when the holdout or its truth changed.

    Raises
    ------
    EvaluationError
        If there is no holdout, no validation box, or boxes without truth.
    """
    truth = holdout_truth(campaign)
    volumes = [[v.digest, v.normalisation.to_json()] for v in truth.volumes.values()]
    key = digest_json([truth.digest_of_all, volumes])
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
    best, dice = _tune(images, validation)
    test = [b for b in truth.boxes if b.part == "test"]
    counts = _pooled(images, test, [best])[0]
    result = ThresholdBaseline(
        channel=best.channel,
        sigma=best.sigma,
        polarity="bright" if best.bright else "dark",
        threshold=best.threshold,
        min_voxels=best.min_voxels,
        validation_dice=dice,
        test_dice=counts.dice,
        test_iou=counts.iou,
        test_precision=counts.precision,
        test_recall=counts.recall,
        key=key,
    )
    folder.write(BASELINE, result)
    return result


def _tune(images: BoxImages, boxes: list[HoldoutBox]) -> tuple[_Setting, float | None]:
    """Return the setting with the highest pooled Dice on `boxes`, and that Dice."""
    channels = min(images.truth.volumes[b.volume_id].channels for b in boxes)
    best, best_dice = _Setting(0, 0.0, True, 0.0), None
    for channel in range(channels):
        for sigma in SIGMAS:
            settings = [
                _Setting(channel, sigma, bright, threshold, size)
                for bright, threshold in _shortlist(images, boxes, channel, sigma)
                for size in MINIMUM_VOXELS
            ]
            for setting, counts in zip(settings, _pooled(images, boxes, settings), strict=True):
                if counts.dice is not None and (best_dice is None or counts.dice > best_dice):
                    best, best_dice = setting, counts.dice
    return best, best_dice


def _shortlist(images: BoxImages, boxes: list[HoldoutBox], channel: int, sigma: float) -> list[tuple[bool, float]]:
    """Return the best thresholds of both polarities before clean-up, from one histogram per truth."""
    scalings = [images.truth.volumes[b.volume_id].normalisation for b in boxes]
    limits = [n.per_channel[channel] if n.per_channel else n for n in scalings]
    low = min((n.low - n.mean) / n.std for n in limits)
    high = max((n.high - n.mean) / n.std for n in limits)
    edges = np.linspace(low, high, BINS + 1)
    histograms = np.zeros((2, BINS))  # of background and of foreground voxels
    for box, smoothed in images.smoothed(boxes, channel, sigma):
        truth = images.truth.labels(box)
        for is_foreground in (0, 1):
            values = smoothed[(truth != IGNORE) & ((truth > 0) == bool(is_foreground))]
            histograms[is_foreground] += np.histogram(np.clip(values, low, high), bins=edges)[0]
    shortlist: list[tuple[bool, float]] = []
    for bright in (True, False):
        # voxels on the foreground side of each inner edge
        side = histograms[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] if bright else histograms.cumsum(axis=1)[:, :-1]
        dice = 2 * side[1] / np.maximum(side.sum(axis=0) + histograms[1].sum(), 1)
        best = int(dice.argmax())
        # clean-up moves the optimum towards looser thresholds: take others near it
        near = sorted({min(max(best + d, 0), BINS - 2) for d in _steps(dice, best)})
        shortlist += [(bright, float(edges[i + 1])) for i in near]
    return shortlist


def _steps(dice: npt.NDArray[np.float64], best: int) -> list[int]:
    """Return offsets from the best threshold to others within 10 % of its Dice, evenly spread."""
    good = np.nonzero(dice >= 0.9 * dice[best])[0]
    return [int(i) - best for i in np.linspace(good[0], good[-1], SHORTLIST).round()] + [0]


def _pooled(images: BoxImages, boxes: list[HoldoutBox], settings: list[_Setting]) -> list[Counts]:
    """Return the pooled counts of settings that share channel and smoothing."""
    pooled = [Counts() for _ in settings]
    for box, smoothed in images.smoothed(boxes, settings[0].channel, settings[0].sigma):
        truth = images.truth.labels(box)
        merged = np.where(truth == IGNORE, IGNORE, truth > 0)
        pooled = [
            total + count_voxels(setting.segment(smoothed), merged, 1)[0]
            for total, setting in zip(pooled, settings, strict=True)
        ]
    return pooled
