"""The threshold of each class: tuned against brute force, scored as a model is, and read from files of earlier versions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.campaign.layout import REPORT
from rescueseg.config import check_config
from rescueseg.evaluation.threshold_baseline import (
    BASELINE,
    MINIMUM_VOXELS,
    SIGMAS,
    BoxImages,
    ThresholdBaseline,
    threshold_baseline,
)
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.geometry import Box
from rescueseg.labels import IGNORE
from rescueseg.queue.store import make_queue
from rescueseg.records import Holdout, HoldoutBox, Part
from rescueseg.storage import digest_json
from rescueseg.volumes.normalise import with_linear
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.puncta import puncta

SHAPE = (16, 40, 40)
CLASSES = ["bright", "dark"]
BOXES: dict[Part, list[Box]] = {
    "validation": [Box((2, 4, 4), (4, 9, 9)), Box((2, 24, 24), (4, 9, 9))],
    "test": [Box((10, 4, 24), (4, 9, 9)), Box((10, 24, 4), (4, 9, 9))],
}


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy image of bright and dark blobs on grey, and its labels; some of them are unknown."""
    rng = np.random.default_rng(5)
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    truth = np.where(field > 0.06, 1, np.where(field < -0.12, 2, 0)).astype(np.uint8)
    image = 1000 + 300 * (truth == 1) - 180 * (truth == 2) + rng.normal(scale=180, size=SHAPE)
    truth[:, 30:32] = IGNORE
    return image.astype(np.uint16), truth


def campaign_of(
    folder: Path, image: np.ndarray, truth: np.ndarray, classes: list[str], boxes: dict[Part, list[Box]] = BOXES
) -> Campaign:
    """Return a campaign with a volume and its holdout."""
    campaign = Campaign.create(str(folder / "c"), check_config({"name": "two", "classes": classes}))
    make_queue(campaign)
    for name, array in (("image", image), ("truth", truth)):
        tifffile.imwrite(folder / f"{name}.tif", array)
    files = VolumeImport(
        str(folder / "image.tif"), volume_id="v", spacing=(0.1, 0.1, 0.1), truth=str(folder / "truth.tif")
    )
    import_volume(campaign, files)
    held = [HoldoutBox(volume_id="v", box=b, part=part, stratum="grid") for part, of in boxes.items() for b in of]
    campaign.freeze_holdout(Holdout(boxes=tuple(held), guard_zyx=(1, 2, 2)))
    return campaign


def dice(masks: list[np.ndarray], truths: list[np.ndarray], class_index: int) -> float:
    """Return the Dice of a class over several boxes together, where the truth is known."""
    both = sum(int((m & (t == class_index)).sum()) for m, t in zip(masks, truths, strict=True))
    either = sum(int((m & (t != IGNORE)).sum() + (t == class_index).sum()) for m, t in zip(masks, truths, strict=True))
    return 2 * both / either


def best_of_all(campaign: Campaign, class_index: int) -> float:
    """Try every threshold that there is between the voxels, of every smoothing, polarity and smallest size."""
    truth = holdout_truth(campaign)
    images, boxes = BoxImages(campaign.volumes, truth), [b for b in truth.boxes if b.part == "validation"]
    labels, best = [truth.labels(b) for b in boxes], 0.0
    for sigma in SIGMAS:
        smoothed = [image for _, image in images.smoothed(boxes, 0, sigma)]
        for threshold, bright in itertools.product(np.unique(smoothed), (True, False)):
            masks = [image >= threshold if bright else image < threshold for image in smoothed]
            pieces = [ndimage.label(mask)[0] for mask in masks]
            sizes = [np.bincount(p.ravel()) for p in pieces]
            for least in MINIMUM_VOXELS:
                kept = [m & (s[p] >= least) for m, p, s in zip(masks, pieces, sizes, strict=True)]
                best = max(best, dice(kept, labels, class_index))
    return best


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Return the campaign of two classes."""
    return campaign_of(tmp_path_factory.mktemp("two"), *phantom(), CLASSES)


def test_each_class_is_tuned_as_well_as_by_brute_force(two: Campaign) -> None:
    result = threshold_baseline(two)
    assert [(c.name, c.polarity) for c in result.classes] == [("bright", "bright"), ("dark", "dark")]
    values = []
    for number, c in enumerate(result.classes, start=1):
        assert c.validation is not None
        assert c.validation.dice is not None
        best = best_of_all(two, number)
        assert best - 0.02 <= c.validation.dice <= best
        values.append(c.validation.dice)
    assert result.validation_dice == pytest.approx(np.mean(values))


def test_the_test_score_is_the_mean_over_classes_of_pooled_counts(two: Campaign) -> None:
    result, truth = threshold_baseline(two), holdout_truth(two)
    images, boxes = BoxImages(two.volumes, truth), [b for b in truth.boxes if b.part == "test"]
    labels, values, merged = [truth.labels(b) for b in boxes], [], [np.zeros((4, 9, 9), bool) for _ in boxes]
    for number, c in enumerate(result.classes, start=1):
        masks = [c.segment(image) == 1 for _, image in images.smoothed(boxes, c.channel, c.sigma)]
        values.append(dice(masks, labels, number))
        merged = [a | b for a, b in zip(merged, masks, strict=True)]
    assert result.test_dice == pytest.approx(np.mean(values))
    all_of_it = dice(merged, [np.where(t == IGNORE, t, t > 0) for t in labels], 1)
    assert abs(all_of_it - np.mean(values)) > 0.02, "what all classes together would get is another figure"


def test_a_class_that_no_validation_box_holds_is_not_found(tmp_path: Path) -> None:
    image, truth = phantom()
    for box in BOXES["validation"]:
        truth[box.slices][truth[box.slices] == 2] = 0
    result = threshold_baseline(campaign_of(tmp_path, image, truth, CLASSES))
    bright, dark = result.classes
    assert dark.threshold is None
    assert result.in_words.endswith("; dark: not in the validation boxes")
    assert dark.test is not None
    assert (dark.test.tp + dark.test.fp, dark.test.dice) == (0, 0)
    assert bright.validation is not None
    assert result.validation_dice == bright.validation.dice
    assert bright.test is not None
    assert bright.test.dice is not None
    assert result.test_dice == pytest.approx(bright.test.dice / 2)


def test_without_a_voxel_of_a_class_there_is_no_score(tmp_path: Path) -> None:
    image, truth = phantom()
    truth[truth != IGNORE] = 0
    truth[0, 0, 0] = 1  # in no box
    result = threshold_baseline(campaign_of(tmp_path, image, truth, ["nothing"]))
    assert (result.validation_dice, result.test_dice, result.test_precision) == (None, None, None)


def test_what_an_earlier_version_stored_of_one_class_is_kept_and_of_several_is_tuned_anew(tmp_path: Path) -> None:
    image, truth = phantom()
    for name, classes, labels in (("one", ["bright"], np.where(truth == 2, 0, truth)), ("two", CLASSES, truth)):
        (tmp_path / name).mkdir()
        campaign = campaign_of(tmp_path / name, image, labels, classes)
        read = holdout_truth(campaign)
        volumes = [[v.digest, v.normalisation.to_json()] for v in read.volumes.values()]
        old = {
            "channel": 0, "sigma": 1.0, "polarity": "bright", "threshold": 0.5, "min_voxels": 16,
            "validation_dice": 0.25, "test_dice": 0.125, "test_iou": 0.1, "test_precision": 0.1, "test_recall": 0.1,
            "key": digest_json([read.digest_of_all, volumes]),
        }  # fmt: skip
        path = BASELINE.path(RecordFolder(campaign.storage, REPORT.top).folder)
        campaign.storage.write_json(path, old)
        result = threshold_baseline(campaign)
        assert (result.test_dice == 0.125) == (name == "one")
        assert len(result.classes) == len(classes)
        assert ThresholdBaseline.model_validate(result.to_json()) == result
        assert name == "two" or result.in_words == "bright voxels, smoothing 1, objects ≥ 16 voxels"


def test_the_threshold_of_sparse_bright_puncta_is_above_their_look_alikes(tmp_path: Path) -> None:
    image, truth = puncta((24, 64, 64), 0.002, 150, look_alikes=True)
    boxes: dict[Part, list[Box]] = {
        "validation": [Box((0, 0, 0), (24, 30, 64))],
        "test": [Box((0, 34, 0), (24, 30, 64))],
    }
    campaign = campaign_of(tmp_path, image[0], truth.astype(np.uint8), ["punctum"], boxes)
    result = threshold_baseline(campaign)
    assert result.test_dice is not None
    assert result.test_dice > 0.99
    record = campaign.volumes.record("v")
    campaign.volumes.save(record.model_copy(update={"normalisation": with_linear(record.normalisation, 0)}))
    clipped = threshold_baseline(campaign).test_dice
    assert clipped is not None
    assert clipped < 0.8, "as in earlier versions"
