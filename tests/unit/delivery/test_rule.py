"""The rule is what the validation boxes say, and the test boxes say nothing to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import TRIAGE_SUMMARY, AdvisedRoute, TriageSummary
from rescueseg.delivery import validation
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.delivery.request import DeliveryModel
from rescueseg.delivery.rule import choose_rule, is_thin
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.calibration import CALIBRATION, Calibration
from rescueseg.evaluation.holdout_scores import evaluate_generation
from rescueseg.evaluation.pooled import flat_scores
from rescueseg.evaluation.truth import HoldoutTruth, truth_of_part
from rescueseg.inference.engine import InferenceJob, infer_volume
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import HoldoutBox
from tests import trivial_predictors
from tests.evaluated_campaign import (
    SHAPE,
    SPACING,
    holdout_boxes,
    make_campaign,
    phantom_truth,
    write_maps,
    write_model,
)

VOXEL = float(np.prod(SPACING))


def model_of(campaign: Campaign) -> DeliveryModel:
    folder = campaign.generation(0)
    model = folder.model()
    assert model is not None
    return DeliveryModel(model, folder, "", frozenset())


def campaign_with(folder: Path, foreground: np.ndarray, labels: np.ndarray | None = None) -> Campaign:
    """Return a campaign of one class whose model says these probabilities."""
    campaign = make_campaign(folder, labels=labels)
    write_maps(campaign, 0, np.stack([1 - foreground, foreground]), np.zeros(SHAPE))
    write_model(campaign, 0)
    return campaign


def chosen_words(rule: DeliveryRule) -> list[str]:
    return [trial.what for trial in rule.trials if trial.chosen]


def tubes() -> np.ndarray:
    """Return smooth structures of one class, 6 to 8 voxels thick, through all boxes."""
    labels = np.zeros(SHAPE, np.uint8)
    for y in range(6, 96, 15):
        labels[4:9, y : y + 8] = labels[16:21, y : y + 8] = 1
    return labels


def test_a_model_that_says_too_little_gets_a_low_threshold(tmp_path: Path) -> None:
    truth = phantom_truth() > 0
    rim = ndimage.binary_dilation(truth, iterations=2) & ~truth
    campaign = campaign_with(tmp_path, np.where(truth, 0.38, np.where(rim, 0.27, 0.02)))
    rule = choose_rule(campaign, model_of(campaign))
    assert rule.threshold == 0.35  # of 0.30 and 0.35, both perfect, the one nearer to a half
    assert chosen_words(rule) == ["threshold 0.35"]
    assert rule.cleanup == (CleanUp(),), "a perfect mask is not cleaned"
    assert {t.what: t.score for t in rule.trials}["threshold 0.30"] == 1.0
    assert rule.temperature == 1.0
    assert rule.truth_digest


def test_without_reason_nothing_is_changed(tmp_path: Path) -> None:
    truth = phantom_truth() > 0
    campaign = campaign_with(tmp_path, np.where(truth, 0.99, 0.01))
    rule = choose_rule(campaign, model_of(campaign))
    assert (rule.threshold, rule.cleanup) == (0.5, (CleanUp(),))


def test_specks_are_dropped_and_holes_filled_where_that_is_better(tmp_path: Path) -> None:
    """Specks of two voxels far from structures of some thousand; cavities of one voxel within these."""
    labels = tubes()
    foreground = np.where(labels > 0, 0.95, 0.05)
    for z, y, x in np.ndindex(3, 12, 24):
        at = (3 + 9 * z, 8 * y + 1, 4 * x + 1)
        if not labels[at[0] - 2 : at[0] + 3, max(0, at[1] - 2) : at[1] + 3].any():
            foreground[at[0], at[1], at[2] : at[2] + 2] = 0.9
    inside = ndimage.binary_erosion(labels, iterations=2)
    hole = np.zeros(SHAPE, bool)
    hole[::2, ::2, ::3] = True
    foreground[inside & hole] = 0.1
    campaign = campaign_with(tmp_path, foreground, labels)
    rule = choose_rule(campaign, model_of(campaign))
    [cleanup] = rule.cleanup
    assert cleanup.smallest_um3 > 2 * VOXEL
    assert cleanup.cavities_um3 >= VOXEL
    assert (cleanup.bridge_um, cleanup.spurs_um, cleanup.largest) == (0, 0, False)
    words = chosen_words(rule)
    assert [w.split(":")[0] for w in words] == ["threshold 0.50", "organelle", "organelle"]
    assert words[1] == f"organelle: pieces below {cleanup.smallest_um3:g} µm³ dropped"
    assert words[2] == f"organelle: cavities up to {cleanup.cavities_um3:g} µm³ filled"
    scores = {t.what: t.score for t in rule.trials}
    assert scores[words[0]] + 0.002 <= scores[words[1]] <= scores[words[2]] - 0.002
    assert len(rule.trials) <= 43


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    """Return probabilities with specks and gaps, so that the rule has something to choose."""
    rng = np.random.default_rng(1)
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), (0.5, 1, 1))
    logit = 4 * ndimage.gaussian_filter((phantom_truth() > 0) - 0.5, 0.6) + 1.2 * field / field.std() - 0.7
    return np.asarray(1 / (1 + np.exp(-2 * logit)))


def test_the_truth_of_the_test_boxes_changes_nothing(tmp_path: Path, noisy: np.ndarray) -> None:
    truth, other, third = phantom_truth(), phantom_truth(), phantom_truth()
    for box in holdout_boxes().boxes:
        (other if box.part == "test" else third)[box.box.slices] = 1
    plain, altered, changed = (
        choose_rule(campaign, model_of(campaign))
        for campaign in (campaign_with(tmp_path / n, noisy, t) for n, t in (("a", truth), ("b", other), ("c", third)))
    )
    assert plain == altered
    assert chosen_words(plain) != ["threshold 0.50"]
    assert plain.truth_digest != changed.truth_digest
    assert plain.trials != changed.trials


def test_no_truth_of_a_test_box_is_read(tmp_path: Path, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign, read = campaign_with(tmp_path, noisy), HoldoutTruth._read

    def watched(self: HoldoutTruth, box: HoldoutBox) -> np.ndarray:
        assert box.part == "validation"
        return read(self, box)

    monkeypatch.setattr(HoldoutTruth, "_read", watched)
    assert choose_rule(campaign, model_of(campaign)).trials


def test_without_validation_boxes_the_rule_is_the_plain_one(tmp_path: Path, noisy: np.ndarray) -> None:
    campaign = campaign_with(tmp_path, noisy)
    campaign.storage.write_json("holdout.json", holdout_boxes(("test",)).to_json())
    rule = choose_rule(campaign, model_of(campaign))
    plain = DeliveryRule(model_digest=f"{0:064x}", truth_digest="", cleanup=(CleanUp(),))
    assert rule == plain


def test_the_temperature_is_that_of_the_evaluation_of_this_model(tmp_path: Path, noisy: np.ndarray) -> None:
    campaign = campaign_with(tmp_path, noisy)
    for digest, temperature in ((f"{0:064x}", 1.7), ("another", 1.0)):
        fitted = Calibration(generation=0, model_digest=digest, temperature=1.7, validation=None, test=None)
        campaign.generation(0).write(CALIBRATION, fitted)
        assert choose_rule(campaign, model_of(campaign)).temperature == temperature


def test_few_voxels_are_read_of_large_boxes(tmp_path: Path, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = campaign_with(tmp_path, noisy)
    truth = truth_of_part(campaign, "validation")
    for most in (10**7, 200_000, 36_864, 20_000, 1):
        monkeypatch.setattr(validation, "MOST_VOXELS", most)
        boxes = validation.read_validation(campaign, model_of(campaign).model, truth, stored=True)
        voxels = sum(box.maps["probability"][0].size for box in boxes)
        assert voxels <= most or len(boxes) == 1
        for box in boxes:
            assert box.maps["probability"][(0, *box.inner)].shape == box.truth.shape == (8, 24, 24)
        assert (len(boxes) == 8) == (most >= 36_864)


def test_predicted_boxes_hold_what_maps_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training has no maps of its own: its model predicts the boxes, to the last bit as in a whole volume."""
    campaign = make_campaign(tmp_path)
    write_model(campaign, 0)
    chosen, job_of = model_of(campaign).model, InferenceJob.of
    infer_volume(campaign, chosen, "phantom", load=trivial_predictors.blur)
    truth = truth_of_part(campaign, "validation")
    stored = validation.read_validation(campaign, chosen, truth, stored=True)
    monkeypatch.setattr(InferenceJob, "of", lambda *args: replace(job_of(*args), load=trivial_predictors.blur))
    predicted = validation.read_validation(campaign, chosen, truth, stored=False)
    for one, other in zip(stored, predicted, strict=True):
        assert set(one.maps) == set(other.maps) == {"probability"}
        assert np.array_equal(one.maps["probability"], other.maps["probability"])
        assert one.maps["probability"].std() > 0


def test_objects_are_chosen_with_the_mask(tmp_path: Path) -> None:
    """Rows of bars that lie apart, in truth with a number each."""
    truth = np.zeros(SHAPE, np.uint16)
    for number, y in enumerate(range(2, 92, 9), start=1):
        truth[3:20, y : y + 6, 2:90] = number
    campaign = make_campaign(tmp_path, labels=truth, truth_type="instance")
    write_maps(campaign, 0, np.stack([(truth > 0) * -0.6 + 0.8, (truth > 0) * 0.6 + 0.2]), np.zeros(SHAPE))
    write_model(campaign, 0)
    seen: list[tuple[str, int, int]] = []
    rule = choose_rule(campaign, model_of(campaign), with_objects=True, progress=lambda *counts: seen.append(counts))
    assert rule.objects == ObjectRule(source="pieces")
    assert chosen_words(rule) == ["threshold 0.50", "objects: connected pieces"]
    assert {t.what: t.score for t in rule.trials}["objects: connected pieces"] == 1
    assert [done for _, done, _ in seen] == list(range(1, len(rule.trials) + 1))
    assert {total for *_, total in seen} == {65}
    assert choose_rule(campaign, model_of(campaign)).objects is None
    boundary = choose_rule(campaign, model_of(campaign), with_objects=True, boundary_class="organelle")
    assert boundary.objects is not None
    assert (boundary.objects.source, boundary.object_class) == ("boundary", 1)


def write_triage(campaign: Campaign, structure: str) -> None:
    """Say that the problem is topology."""
    summary = TriageSummary(
        problem="topology", trainer="monai_unet_topology", structure=structure, mask="truth", evidence=(),
        route=AdvisedRoute(query="entropy", postprocessing="none"),
    )  # fmt: skip
    campaign.records.write(TRIAGE_SUMMARY, summary)


def test_scores_are_those_of_the_evaluation(tmp_path: Path, noisy: np.ndarray) -> None:
    """At a threshold of a half and a temperature of 1 the mask is the most probable class."""
    campaign = campaign_with(tmp_path, noisy)
    scores = flat_scores(evaluate_generation(campaign, 0, choose_scored_objects), campaign.config.classes)
    dice, cldice = scores["validation_dice"], scores["validation_cldice"]
    for structure, expected in ((None, dice), ("network", (dice + cldice) / 2), ("membrane", dice)):
        if structure:
            write_triage(campaign, structure)
        trials = {t.what: t.score for t in choose_rule(campaign, model_of(campaign)).trials}
        assert trials["threshold 0.50"] == pytest.approx(expected, abs=1e-6)


def test_a_network_is_judged_by_its_centrelines_too(tmp_path: Path) -> None:
    """At a low threshold gaps close and rims thicken: more voxels get wrong than right, and centrelines get whole."""
    labels = np.zeros(SHAPE, np.uint8)
    for y in range(3, 96, 10):
        labels[4:7, y : y + 3] = labels[15:18, y : y + 3] = 1
    foreground = np.where(labels > 0, 0.95, 0.02)
    x = np.arange(96)
    foreground[(labels > 0) & np.isin(x % 12, (4, 5))] = 0.43
    rim = ndimage.binary_dilation(labels, iterations=1) & (labels == 0)
    foreground[rim & np.isin(x % 12, (0, 8, 9))] = 0.43
    campaign = campaign_with(tmp_path, foreground, labels)
    assert not is_thin(campaign)
    assert choose_rule(campaign, model_of(campaign)).threshold == 0.5
    write_triage(campaign, "network")
    assert is_thin(campaign)
    assert choose_rule(campaign, model_of(campaign)).threshold == 0.4
    write_triage(campaign, "membrane")
    assert not is_thin(campaign)
