"""Temperature scaling against cases whose temperature is known, and on a campaign."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.cli.main import app
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.calibration import (
    CALIBRATION,
    Calibration,
    fit_temperature,
    keep_calibration,
    score_and_calibrate,
)
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.holdout_scores import check_evaluation, stored_maps
from rescueseg.evaluation.stored_scores import SCORES, store_scores
from rescueseg.evaluation.temperature import temper
from rescueseg.stages.evaluate import evaluate
from tests.evaluated_campaign import holdout_boxes, make_campaign, write_generation


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max(axis=0))
    return (values / values.sum(axis=0)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_probabilities_too_sure_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (3, 60_000))
    truth = (softmax(logits).cumsum(axis=0) < rng.random(logits.shape[1])).sum(axis=0).clip(0, 2).astype(np.uint8)
    assert fit_temperature(softmax(logits * temperature), truth) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("spread", [1.5, 3.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0, 4.0, 6.0])
def test_what_maps_in_float16_hold_is_enough_for_the_temperature(
    temperature: float, spread: float, classes: int
) -> None:
    """Of a spread of 3 and a temperature of 6 a quarter to a half of the maps is 0, for what may be 1e-8 or 1e-20."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, spread, (classes + 1, 60_000))
    below = softmax(logits).cumsum(axis=0) < rng.random(logits.shape[1])
    maps = softmax(logits * temperature).astype(np.float16).astype(np.float32)
    within = 0.15 if (temperature, spread) == (6.0, 3.0) else 0.03
    truth = below.sum(axis=0).clip(0, classes).astype(np.uint8)
    assert fit_temperature(maps, truth) == pytest.approx(temperature, rel=within)


@given(seed=st.integers(0, 99), temperature=st.floats(0.2, 8), classes=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_tempering_keeps_the_class_and_the_sum(seed: int, temperature: float, classes: int) -> None:
    probabilities = softmax(np.random.default_rng(seed).normal(0, 2, (classes, 50)))
    tempered = temper(probabilities, temperature)
    np.testing.assert_allclose(tempered.sum(axis=0), 1, rtol=1e-5)
    assert np.array_equal(tempered.argmax(axis=0), probabilities.argmax(axis=0))
    surer = tempered.max(axis=0) - probabilities.max(axis=0)
    assert (surer >= -1e-5).all() if temperature <= 1 else (surer <= 1e-5).all()
    np.testing.assert_allclose(temper(probabilities, 1.0), probabilities, rtol=1e-4)


def test_certain_probabilities_stay_finite() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert np.isfinite(temper(certain, 10.0)).all()
    assert np.isfinite(fit_temperature(certain, np.array([1, 1], np.uint8)))


def fitted(campaign: Campaign) -> Calibration:
    """Return the temperature of generation 0 for its model and truth as they are; nothing is written."""
    assignment = check_evaluation(campaign, 0)
    return score_and_calibrate(assignment, stored_maps(campaign.generation(0), assignment))[1]


def test_a_generation_keeps_the_temperature_that_its_validation_boxes_want(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, noise=3.0, judged=False)
    found = fitted(campaign)
    assert campaign.generation(0).read(CALIBRATION) is None, "nothing was written"
    assert found.temperature > 1.2, "its logits are doubled, so it is too sure"
    assert found.validation is not None
    assert found.test is not None
    for part in (found.validation, found.test):
        assert part.nll[1] < part.nll[0]
        assert part.ece[1] < part.ece[0]

    assert f"test calibration error {found.test.ece[0]:.3f} → {found.test.ece[1]:.3f}" in found.sentence()
    judgement = evaluate(campaign, 0)
    assert campaign.generation(0).read(CALIBRATION) == found
    assert judgement.evaluation.test is not None
    assert judgement.evaluation.test.ece == pytest.approx(found.test.ece[0], abs=1e-6)
    campaign.storage.remove(EVALUATION.path(campaign.generation(0).path()))
    changed = found.model_copy(update={"temperature": 9.0})
    campaign.generation(0).write(CALIBRATION, changed)
    evaluate(campaign, 0)
    assert campaign.generation(0).read(CALIBRATION) == changed, "what is kept is not fitted again"
    assert Calibration.model_validate(found.to_json()).metrics().keys() >= {"temperature", "test_ece_tempered"}


def current_calibration(campaign: Campaign) -> Calibration:
    """Return the temperature of generation 0 for its model and truth as they are, and store it."""
    return store_scores(campaign, check_evaluation(campaign, 0), choose_scored_objects)[1]


def test_another_truth_or_another_model_is_fitted_anew(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, noise=3.0, judged=False)
    found = current_calibration(campaign)
    assert campaign.generation(0).read(CALIBRATION) == found == fitted(campaign)
    stales = (
        {"model_digest": "another"},
        {"truth_digest": "another"},
        {"truth_digest": ""},
        {"least_probability": 1e-6},
    )
    for stale in stales:
        campaign.generation(0).write(CALIBRATION, found.model_copy(update={**stale, "temperature": 9.0}))
        assert current_calibration(campaign) == found == campaign.generation(0).read(CALIBRATION)

    volume = campaign.volumes.record("phantom")
    campaign.volumes.save(volume.model_copy(update={"files": ""}))  # so that its files may be altered
    truth = zarr.open_array(f"{campaign.volumes.image_url('phantom')}/labels/truth/0", mode="r+")
    box = next(b.box for b in holdout_boxes().boxes if b.part == "validation")
    corrected = np.asarray(truth[box.slices])
    truth[box.slices] = 1 - corrected
    assert current_calibration(campaign).temperature > found.temperature, "it is wrong more often than was thought"
    shown = CliRunner().invoke(app, ["evaluate", campaign.url, "--generation", "0"])
    assert shown.exit_code == 0, shown.output
    assert "for another model or truth" not in shown.output
    truth[box.slices] = corrected
    again = CliRunner().invoke(app, ["evaluate", campaign.url, "--generation", "0"])
    assert f"Temperature {found.temperature:.2f}, fitted" in again.output
    assert "for another model or truth" in again.output


def test_a_stored_temperature_is_kept_while_it_fits(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, noise=3.0, judged=False)
    folder, assignment, found = campaign.generation(0), check_evaluation(campaign, 0), fitted(campaign)
    assert keep_calibration(folder, assignment, found) == found == folder.read(CALIBRATION)
    other = found.model_copy(update={"temperature": 9.0})
    assert keep_calibration(folder, assignment, other) == found == folder.read(CALIBRATION)
    for stale in ({"model_digest": "another"}, {"truth_digest": "another"}):
        folder.write(CALIBRATION, other.model_copy(update=stale))
        assert keep_calibration(folder, assignment, found) == found == folder.read(CALIBRATION)


def test_the_temperature_is_stored_before_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, noise=3.0, judged=False)
    folder, assignment = campaign.generation(0), check_evaluation(campaign, 0)

    def full(*_: object) -> None:
        raise OSError("no space left on the device")

    monkeypatch.setattr("rescueseg.evaluation.calibration.RecordFolder.write", full)
    with pytest.raises(OSError, match="no space"):
        store_scores(campaign, assignment, choose_scored_objects)
    assert not folder.has(SCORES)
    monkeypatch.undo()
    evaluation, calibration = store_scores(campaign, assignment, choose_scored_objects)
    assert (folder.read(SCORES), folder.read(CALIBRATION)) == (evaluation, calibration)


def test_of_many_voxels_a_sample_tells_about_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, noise=3.0, judged=False)
    found = fitted(campaign)
    monkeypatch.setattr("rescueseg.evaluation.calibration.MOST_VOXELS", 10_000)
    sampled = fitted(campaign)
    assert found.validation is not None
    assert sampled.validation is not None
    assert sampled.validation.voxels <= 10_000 < found.validation.voxels
    assert sampled.temperature == pytest.approx(found.temperature, rel=0.1)


def test_without_a_known_validation_voxel_the_temperature_is_one(tmp_path: Path) -> None:
    from rescueseg.records import Holdout

    campaign = make_campaign(tmp_path)
    holdout = campaign.holdout()
    assert holdout is not None
    alone = Holdout(boxes=tuple(b for b in holdout.boxes if b.part == "test"), guard_zyx=holdout.guard_zyx)
    campaign.storage.write_json("holdout.json", alone.to_json())
    write_generation(campaign, 0, noise=3.0, judged=False)
    found = fitted(campaign)
    assert (found.temperature, found.validation) == (1.0, None)
    assert found.test is not None
    assert found.test.ece[0] == pytest.approx(found.test.ece[1], abs=1e-6)
