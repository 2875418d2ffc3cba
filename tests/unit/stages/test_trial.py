"""Where nobody named a trainer, the validation boxes choose between two that trained on the same snapshot for equal time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rescueseg.campaign import Campaign
from rescueseg.campaign.outside_trainings import RESULT, OutsideResult, read_losses
from rescueseg.campaign.route import TRIAGE_SUMMARY, current_choice, current_trainer, freeze_choice, frozen_choice
from rescueseg.campaign.stage_results import LOSSES, SNAPSHOT, TRIAL, TRIAL_LENGTH, Contestant, TrainerTrial
from rescueseg.errors import QueueError
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.pooled import group_scores
from rescueseg.evaluation.threshold_baseline import threshold_baseline
from rescueseg.evaluation.training_scores import stored_training_evaluation
from rescueseg.models.files import committed_files
from rescueseg.queue.store import open_queue
from rescueseg.records import Holdout
from rescueseg.reports.campaign_report import write_report
from rescueseg.stages import train_outside
from rescueseg.stages import trial as stage
from rescueseg.stages.train import train
from rescueseg.stages.trial_pairing import Pairing, pairing
from rescueseg.triage.records import TRIAGE
from rescueseg.upkeep.verify import verify
from tests import evaluated_campaign
from tests.training_rig import BOXES, make_campaign, make_snapshot
from tests.triage_summaries import whole_triage
from tests.unit.evaluation.test_training_scores import HELD

GOOD, BAD = 0.5, 30.0
"""Noise of a model that beats the threshold by far, and of one that says nothing."""


# who is tried -------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path: Path) -> Campaign:
    made = evaluated_campaign.make_campaign(tmp_path)
    made.records.write(TRIAGE, whole_triage("topology"))
    return made


def held(campaign: Campaign, generation: int, trainers: tuple[str, ...], winner: str, route: str = "topology") -> None:
    """Write down a trial."""
    contestants = tuple(Contestant(trainer=t, training=t, iterations=1, seconds=1.0, score=0.5) for t in trainers)
    campaign.generation(generation).write(
        TRIAL,
        TrainerTrial(
            route=route, occasion="new", metric="dice", contestants=contestants, trainer=winner, reason="better"
        ),
    )


def pair_of(campaign: Campaign, generation: int, *refused: str) -> Pairing | None:
    return pairing(campaign, generation, refused=lambda name: name in refused, baseline=threshold_baseline)


def tried(campaign: Campaign, generation: int, *refused: str) -> tuple[str, str] | None:
    pair = pair_of(campaign, generation, *refused)
    return None if pair is None else pair.trainers


def test_the_first_generation_tries_the_first_two_of_the_route(judged: Campaign) -> None:
    pair = pair_of(judged, 0)
    assert pair is not None
    assert (pair.trainers, pair.route) == (("monai_unet_topology", "nnunet"), "topology")
    assert "first time" in pair.occasion


def test_only_trainers_that_tell_objects_apart_are_tried_where_the_query_strategy_needs_them(judged: Campaign) -> None:
    query = judged.config.query.model_copy(update={"strategy": "object_disagreement"})
    judged.config = judged.config.model_copy(update={"query": query})
    assert tried(judged, 0) is None, "neither of the two does"
    training = judged.config.training.model_copy(update={"unet": {"border_distance": True}})
    judged.config = judged.config.model_copy(update={"training": training})
    assert tried(judged, 0) == ("monai_unet_topology", "monai_unet"), "nnU-Net, the second of the route, does not"


def test_nothing_is_tried_where_a_person_chose_or_nothing_was_triaged(judged: Campaign) -> None:
    training = judged.config.training.model_copy(update={"trainer": "nnunet"})
    named = Campaign(judged.storage, judged.config.model_copy(update={"training": training}))
    assert pair_of(named, 0) is None
    judged.storage.remove(TRIAGE.path(""))
    assert pair_of(judged, 0) is None


def test_a_good_generation_is_followed_by_no_trial_and_a_bad_one_by_the_next_of_the_route(judged: Campaign) -> None:
    held(judged, 0, ("monai_unet_topology", "nnunet"), "nnunet")
    evaluated_campaign.write_generation(judged, 0, GOOD, trainer="nnunet")
    assert pair_of(judged, 1) is None
    evaluated_campaign.write_generation(judged, 1, BAD, trainer="nnunet")
    pair = pair_of(judged, 2)
    assert pair is not None
    assert pair.trainers == ("nnunet", "monai_unet")
    judgement = judged.generation(1).read(EVALUATION)
    assert judgement is not None
    assert judgement.evaluation.validation is not None
    dice, threshold = judgement.evaluation.validation.dice, threshold_baseline(judged).validation_dice
    assert dice is not None
    assert threshold is not None
    assert dice < threshold
    assert f"(Dice {dice:.3f}, the threshold {threshold:.3f})" in pair.occasion
    held(judged, 2, ("nnunet", "monai_unet"), "monai_unet")
    evaluated_campaign.write_generation(judged, 2, BAD, trainer="monai_unet")
    assert pair_of(judged, 3) is None, "the route has no other"


def test_a_triage_that_finds_another_route_asks_anew(judged: Campaign) -> None:
    held(judged, 0, ("monai_unet_topology", "nnunet"), "monai_unet_topology")
    evaluated_campaign.write_generation(judged, 0, GOOD, trainer="monai_unet_topology")
    judged.records.write(TRIAGE, whole_triage("low_snr"))
    assert tried(judged, 1) == ("nnunet", "monai_unet")
    assert current_trainer(judged) == "nnunet", "the trial was of another route"


def test_a_triage_after_the_snapshot_changes_the_next_generation_only(judged: Campaign) -> None:
    freeze_choice(judged, 0)
    judged.records.write(TRIAGE, whole_triage("low_snr"))
    assert tried(judged, 0) == ("monai_unet_topology", "nnunet")
    assert tried(judged, 1) == ("nnunet", "monai_unet")


def test_a_trainer_that_is_named_after_the_snapshot_is_the_next_generations(judged: Campaign) -> None:
    freeze_choice(judged, 0)
    training = judged.config.training.model_copy(update={"trainer": "nnunet"})
    named = Campaign(judged.storage, judged.config.model_copy(update={"training": training}))
    assert tried(named, 0) == ("monai_unet_topology", "nnunet")
    assert tried(named, 1) is None


@pytest.mark.parametrize("trainer", ["monai_unet_topology", "monai_unet"])
def test_a_campaign_that_follows_its_route_since_before_there_were_trials_goes_on_so(
    judged: Campaign, trainer: str
) -> None:
    """Also where a better trainer of the route was installed since its triage."""
    judged.records.write(TRIAGE, whole_triage("topology", trainer))
    evaluated_campaign.write_generation(judged, 0, GOOD, trainer=trainer)
    assert pair_of(judged, 1) is None
    evaluated_campaign.write_generation(judged, 0, BAD, trainer=trainer)
    assert tried(judged, 1) == (trainer, "nnunet" if trainer == "monai_unet_topology" else "monai_unet_topology")


def test_the_trainer_of_the_generation_before_meets_the_one_that_the_route_takes(judged: Campaign) -> None:
    evaluated_campaign.write_generation(judged, 0, GOOD, trainer="monai_unet")
    pair = pair_of(judged, 1)
    assert pair is not None
    assert pair.trainers == ("monai_unet_topology", "monai_unet")
    assert pair.occasion.startswith("monai_unet made generation 0")


def test_a_trainer_that_the_settings_rule_out_is_passed_over(judged: Campaign) -> None:
    assert tried(judged, 0, "nnunet") == ("monai_unet_topology", "monai_unet")
    assert tried(judged, 0, "nnunet", "monai_unet") is None


def test_what_the_settings_rule_out_is_known_before_anything_trains(judged: Campaign) -> None:
    nothing = stage.nothing_annotated(0, 1)
    assert not stage.is_refused(judged, nothing, "monai_unet")
    assert stage.is_refused(judged, nothing, "stardist") is False, "of no patch nobody can say that it numbers nothing"
    for changes, names in (
        ({"gpus": 2}, ["monai_unet", "monai_unet_topology"]),
        ({"unet": {"cldice_weight": 0.9}}, ["monai_unet"]),
    ):
        training = type(judged.config.training).model_validate(judged.config.training.model_dump() | changes)
        other = Campaign(judged.storage, judged.config.model_copy(update={"training": training}))
        assert [
            n for n in ("monai_unet", "monai_unet_topology", "nnunet") if stage.is_refused(other, nothing, n)
        ] == names


def test_the_winner_is_the_trainer_until_another_trial(judged: Campaign) -> None:
    held(judged, 0, ("monai_unet_topology", "nnunet"), "nnunet")
    assert current_choice(judged).trainer == "nnunet"
    assert judged.records.read(TRIAGE_SUMMARY).trainer == "monai_unet_topology"  # type: ignore[union-attr]
    held(judged, 1, ("nnunet", "monai_unet"), "monai_unet")
    assert current_choice(judged).trainer == "monai_unet"


# a trial ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    made = make_campaign(
        tmp_path_factory.mktemp("trial"),
        trainer="auto",
        iterations=12,
        annotates_objects=True,
        unet={"channels": [8, 16, 32]},
    )
    made.freeze_holdout(Holdout(boxes=HELD, guard_zyx=(1, 4, 4)))
    made.generation(0).write(SNAPSHOT, make_snapshot(made, BOXES))
    made.records.write(TRIAGE, whole_triage("star_convex"))
    return made


@pytest.fixture(scope="module")
def trial(campaign: Campaign) -> TrainerTrial:
    found = stage.try_trainers(campaign, open_queue(campaign), 0)
    assert found is not None
    return found


def test_both_train_for_equal_time_and_the_better_one_is_taken(campaign: Campaign, trial: TrainerTrial) -> None:
    assert [c.trainer for c in trial.contestants] == ["stardist", "cellpose"]
    assert trial.metric == "pq"
    scores = []
    for contestant in trial.contestants:
        evaluation, _ = stored_training_evaluation(campaign, contestant.training)
        assert evaluation is not None
        figure = group_scores(evaluation, "validation", campaign.config.classes)[0].scores["pq"]
        assert contestant.score == pytest.approx(figure.value)
        scores.append(figure.value)
    better = trial.contestants[0 if scores[0] >= scores[1] else 1]
    assert trial.winner == better
    assert frozen_choice(campaign, 0).trainer == current_trainer(campaign) == better.trainer
    first, second = trial.contestants
    assert first.iterations == 12
    length = campaign.generation(0).read(TRIAL_LENGTH)
    assert length is not None
    assert (length.trainer, length.iterations) == ("cellpose", second.iterations)
    assert f"{second.trainer} {scores[1]:.3f} ({second.iterations:,} steps" in trial.reason


def test_it_is_held_once(campaign: Campaign, trial: TrainerTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "run_tracked", lambda *_: pytest.fail("trained again"))
    assert stage.try_trainers(campaign, open_queue(campaign), 0) == trial


def test_killed_after_the_trainings_it_ends_as_undisturbed(
    campaign: Campaign, trial: TrainerTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of the second trainer were written down, so that neither training is done again."""
    campaign.storage.remove(TRIAL.path(campaign.generation(0).folder))
    monkeypatch.setattr(stage, "steps_within", lambda *_: pytest.fail("measured again"))
    assert stage.try_trainers(campaign, open_queue(campaign), 0) == trial


def test_steps_that_were_measured_against_another_training_are_measured_again(
    campaign: Campaign, trial: TrainerTrial
) -> None:
    folder = campaign.generation(0)
    length = folder.read(TRIAL_LENGTH)
    assert length is not None
    folder.write(TRIAL_LENGTH, length.model_copy(update={"against": "another", "iterations": 50_000}))
    folder.storage.remove(TRIAL.path(folder.folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "steps_within", lambda *_: trial.contestants[1].iterations)
        assert stage.try_trainers(campaign, open_queue(campaign), 0) == trial
    assert folder.read(TRIAL_LENGTH) == length


def test_a_contestant_whose_training_fails_has_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is no number, of a learning rate that only Cellpose gets."""
    made = make_campaign(tmp_path, trainer="auto", iterations=6, annotates_objects=True)
    made.freeze_holdout(Holdout(boxes=HELD, guard_zyx=(1, 4, 4)))
    made.generation(0).write(SNAPSHOT, make_snapshot(made, BOXES))
    made.records.write(TRIAGE, whole_triage("star_convex"))
    monkeypatch.setattr("rescueseg.models.cellpose.targets.FlowLoss.forward", lambda *_: torch.tensor(float("nan")))
    found = stage.try_trainers(made, open_queue(made), 0)
    assert found is not None
    assert (found.trainer, found.metric) == ("stardist", "")
    assert "no longer a number" in found.contestants[1].failure
    assert "The training of cellpose failed" in found.reason
    assert train(made, 0, lambda *_: None).model.trainer == "stardist"


def test_while_somebody_else_trains_the_same_nothing_is_trained(tmp_path: Path) -> None:
    made = make_campaign(tmp_path, trainer="auto", iterations=6, annotates_objects=True)
    made.freeze_holdout(Holdout(boxes=HELD, guard_zyx=(1, 4, 4)))
    made.generation(0).write(SNAPSHOT, make_snapshot(made, BOXES))
    made.records.write(TRIAGE, whole_triage("star_convex"))
    store = open_queue(made)
    planned = train_outside.plan(made, store, "stardist", 0, {"warm_start": False})
    with store.ledger.lock(planned.name, "somebody"), pytest.raises(QueueError):
        stage.try_trainers(made, store, 0)
    assert not made.training(planned.name).has(RESULT)


def test_the_winners_model_is_the_generations(campaign: Campaign, trial: TrainerTrial) -> None:
    steps: list[int] = []
    result = train(campaign, 0, lambda step, _: steps.append(step))
    made = campaign.training(trial.winner.training).read(RESULT)
    assert isinstance(made, OutsideResult)
    assert result.model.trainer == trial.trainer
    assert result.model.digest == made.model.digest
    assert result.model.path == campaign.generation(0).model_folder()
    assert committed_files(campaign.storage, result.model) == committed_files(campaign.storage, made.model)
    assert steps == list(range(1, trial.winner.iterations + 1)), "the curves are the generation's, too"
    assert campaign.generation(0).read(LOSSES) == read_losses(campaign.training(trial.winner.training))
    assert [str(d) for d in verify(campaign).damage if "trial.json" in str(d) or "trial_length" in str(d)] == []


def test_the_report_says_why(judged: Campaign) -> None:
    held(judged, 0, ("monai_unet_topology", "nnunet"), "nnunet")
    evaluated_campaign.write_generation(judged, 0, GOOD, trainer="nnunet")
    page = judged.storage.read_bytes(write_report(judged).path).decode()
    assert "Why this trainer" in page
    assert "monai_unet_topology and nnunet" in page


def test_the_time_of_a_step_is_that_of_a_settled_training() -> None:
    slow_start: list[Any] = [100.0 + 0.5 * i for i in range(60)]
    slow_start[:3] = [0.0, 40.0, 80.0]
    assert stage.steps_within(slow_start, 240.0, 1) == 480
    assert stage.steps_within(slow_start, 240.0, 3) == 160
    assert stage.steps_within(slow_start, 0.1, 1) == stage.LEAST_STEPS
