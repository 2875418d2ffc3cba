"""The figures of a delivery are those of the evaluation, of what lies in the delivery, on the test boxes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.records import CleanUp, Delivery, DeliveryRule, Score
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.delivery.scores import delivered_scores
from rescueseg.evaluation.holdout_scores import evaluate_generation
from rescueseg.evaluation.pooled import flat_scores
from rescueseg.evaluation.truth import HoldoutTruth
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import HoldoutBox
from tests.delivered_campaign import source, write_labels
from tests.evaluated_campaign import SHAPE, holdout_boxes, make_campaign, phantom_truth, write_maps, write_model

IMAGE = np.zeros(SHAPE, np.uint8)
RULE = DeliveryRule(model_digest="m", truth_digest="t", threshold=0.4, temperature=1.5, cleanup=(CleanUp(),))


def foreground_of(mask: np.ndarray, noise: float = 1.0) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=SHAPE), (0.7, 1.5, 1.5))
    logit = 4 * ndimage.gaussian_filter(mask - 0.5, 0.6) + noise * field / field.std()
    return np.asarray(1 / (1 + np.exp(-2 * logit)), np.float16)


def write_model_maps(campaign: Campaign, foreground: np.ndarray) -> None:
    write_maps(campaign, 0, np.stack([1 - foreground.astype(float), foreground]), np.zeros(SHAPE))
    write_model(campaign, 0)


def score(
    campaign: Campaign, folder: DeliveryFolder, rule: DeliveryRule = RULE, names: tuple[str, ...] = ("phantom",)
) -> tuple[dict[str, Score], int]:
    model = campaign.generation(0).model()
    assert model is not None
    delivery = Delivery(
        campaign_url=campaign.url, campaign_name="c", classes=campaign.config.classes, model=model, rule=rule
    )
    scores, boxes = delivered_scores(campaign, folder, delivery, [source(campaign, name) for name in names])
    return {s.name: s for s in scores}, boxes


def boxes_of_the_test() -> list[HoldoutBox]:
    return [box for box in holdout_boxes().boxes if box.part == "test"]


def dice_on_test_boxes(mask: np.ndarray, truth: np.ndarray) -> float:
    pairs = [(mask[b.box.slices] > 0, truth[b.box.slices] > 0) for b in boxes_of_the_test()]
    both = sum(int((m & t).sum()) for m, t in pairs)
    return 2 * both / sum(int(m.sum() + t.sum()) for m, t in pairs)


def test_figures_of_the_three_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign, folder = make_campaign(tmp_path), DeliveryFolder(str(tmp_path / "out"))
    truth, foreground = phantom_truth(), foreground_of(phantom_truth() > 0)
    write_model_maps(campaign, foreground)
    delivered = ndimage.binary_dilation(truth).astype(np.uint8)
    write_labels(folder, "phantom", IMAGE, delivered, None)
    evaluated = flat_scores(evaluate_generation(campaign, 0, choose_scored_objects), campaign.config.classes)
    read = HoldoutTruth._read

    def watched(self: HoldoutTruth, box: HoldoutBox) -> np.ndarray:
        assert box.part == "test"
        return read(self, box)

    monkeypatch.setattr(HoldoutTruth, "_read", watched)
    scores, boxes = score(campaign, folder)
    assert boxes == len(boxes_of_the_test()) == 8
    assert list(scores) == ["dice", "cldice", "betti0_error", "betti1_error", "betti2_error"]
    for name, figure in scores.items():
        assert figure.most_likely == pytest.approx(evaluated[f"test_{name}"], abs=1e-9)
    assert scores["dice"].delivered == pytest.approx(dice_on_test_boxes(delivered, truth), abs=1e-9)
    sure = np.clip(foreground.astype(float), 1e-6, 1 - 1e-6)
    tempered = 1 / (1 + (1 / sure - 1) ** (1 / RULE.temperature))
    at_threshold = tempered > RULE.threshold
    assert scores["dice"].rule == pytest.approx(dice_on_test_boxes(at_threshold, truth), abs=1e-4)

    write_labels(folder, "phantom", IMAGE, truth, None)
    perfect, _ = score(campaign, folder)
    assert (perfect["dice"].delivered, perfect["cldice"].delivered, perfect["betti0_error"].delivered) == (1, 1, 0)
    assert perfect["dice"].most_likely == scores["dice"].most_likely


def test_delivered_objects_are_cropped_from_the_volume(tmp_path: Path) -> None:
    """Bars side by side: as a mask they are one piece, as delivered objects they are those of the truth."""
    truth = np.zeros(SHAPE, np.uint16)
    for number, y in enumerate(range(0, 96, 6), start=1):
        truth[3:20, y : y + 6, 2:90] = number
    campaign, folder = make_campaign(tmp_path, labels=truth, truth_type="instance"), DeliveryFolder(str(tmp_path / "o"))
    write_model_maps(campaign, np.where(truth > 0, 0.9, 0.1))
    write_labels(folder, "phantom", IMAGE, (truth > 0).astype(np.uint8), truth.astype(np.uint32))
    scores, _ = score(campaign, folder, RULE.model_copy(update={"objects": ObjectRule(source="distance")}))
    for name in ("ap50", "ap75", "pq"):
        assert (scores[name].most_likely, scores[name].rule, scores[name].delivered) == (0, 0, 1), name
    assert scores["vi"].delivered == 0
    assert scores["vi"].rule is not None
    assert scores["vi"].rule > 1
    masks_alone, _ = score(campaign, folder)
    assert masks_alone["ap50"].delivered == 0, "pieces of the mask, where no objects are made"


def test_several_classes_have_a_dice_each(tmp_path: Path) -> None:
    truth = phantom_truth()
    truth[:, 48:] *= 2
    campaign = make_campaign(tmp_path, labels=truth, classes=("long", "round"))
    folder, rule = DeliveryFolder(str(tmp_path / "out")), RULE.model_copy(update={"cleanup": (CleanUp(),) * 2})
    write_maps(campaign, 0, np.stack([(truth == c) * 0.9 + 0.03 for c in range(3)]), np.zeros(SHAPE))
    write_model(campaign, 0)
    mask = truth.copy()
    mask[:, :, ::2] = 0
    write_labels(folder, "phantom", IMAGE, mask, None)
    scores, _ = score(campaign, folder, rule)
    one, two = (scores[f"dice of {name}"].delivered for name in ("long", "round"))
    assert one is not None
    assert two is not None
    assert one == pytest.approx(dice_on_test_boxes(mask == 1, truth == 1))
    assert scores["dice"].delivered == pytest.approx((one + two) / 2)
    assert scores["dice of round"].most_likely == 1


def test_without_maps_only_what_was_delivered_has_figures(tmp_path: Path) -> None:
    campaign, folder = make_campaign(tmp_path), DeliveryFolder(str(tmp_path / "out"))
    write_model(campaign, 0)
    write_labels(folder, "phantom", IMAGE, phantom_truth(), None)
    scores, boxes = score(campaign, folder)
    assert boxes == 8
    assert scores["dice"] == Score(name="dice", most_likely=None, rule=None, delivered=1.0)


def test_without_test_boxes_there_are_no_scores(tmp_path: Path) -> None:
    campaign, folder = make_campaign(tmp_path), DeliveryFolder(str(tmp_path / "out"))
    write_model(campaign, 0)
    assert score(campaign, folder, names=()) == ({}, 0)
    campaign.storage.write_json("holdout.json", holdout_boxes(("validation",)).to_json())
    assert score(campaign, folder) == ({}, 0)
