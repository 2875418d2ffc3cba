"""Which trainers are to be tried against each other before a generation is trained. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rescueseg.active_learning.strategies import needed_maps
from rescueseg.campaign import Campaign
from rescueseg.campaign.route import frozen_choice, last_trial
from rescueseg.campaign.stage_results import TRIAL
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.stored_scores import latest_evaluation
from rescueseg.evaluation.threshold_baseline import threshold_baseline
from rescueseg.inference.maps import OBJECT_DISAGREEMENT
from rescueseg.models.registry import find_entry
from rescueseg.triage.records import TRIAGE
from rescueseg.triage.trainer_choice import pick_trainer


@dataclass(frozen=True)
class Pairing:
    """Which trainers are to be tried.

    Parameters
    ----------
    trainers : tuple of str
        Two, in the order of the route.
    route : str
        Its name.
    occasion : str
        Why, for people.
    """

    trainers: tuple[str, str]
    route: str
    occasion: str


def pairing(campaign: Campaign, generation: int) -> Pairing | None:
    """Return the trainers to be tried before a generation is trained; None where there is nothing to try.

    That is so where a person named the trainer, without a triage, where the route has no other trainer that can be used
    here, learn from what is annotated and serve the query strategy, and without validation boxes.

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout.
    generation : int
        Its snapshot must exist.
    """
    triage, holdout = campaign.records.read(TRIAGE), campaign.holdout()
    if campaign.config.training.trainer != "auto" or triage is None or holdout is None:
        return None
    if not any(box.part == "validation" for box in holdout.boxes):
        return None
    route = triage.route.name
    usable = pick_trainer(triage.route, numbered=campaign.config.annotation.labels == "instance").usable
    if OBJECT_DISAGREEMENT in needed_maps(frozen_choice(campaign, generation).strategy):
        settings = campaign.config.training
        usable = tuple(n for n in usable if find_entry(n).settings.of(settings).tells_objects_apart)
    if not usable:
        return None
    held = last_trial(campaign, route, before=generation)
    present = held.trainer if held else usable[0]
    tried = _tried(campaign, route, generation) | {present}
    following = next((name for name in usable if name not in tried), None)
    if following is None:
        return None
    before = campaign.generation(generation - 1).model() if generation else None
    if before is None or before.trainer not in (present, *tried):
        return Pairing((present, following), route, f"the route '{triage.route.title}' is followed for the first time")
    if failed := below_threshold(campaign, generation - 1):
        return Pairing((present, following), route, failed)
    return None


def _tried(campaign: Campaign, route: str, generation: int) -> set[str]:
    """Return the trainers of all trials on a route before a generation."""
    trials = (folder.read(TRIAL) for folder in campaign.generations() if folder.number < generation)
    return {c.trainer for trial in trials if trial and trial.route == route for c in trial.contestants}


def below_threshold(campaign: Campaign, generation: int) -> str:
    """Say that a generation does no better than the tuned threshold by Dice on the validation boxes; empty where it does."""
    folder = campaign.generation(generation)
    judgement = folder.read(EVALUATION)
    if judgement is None or judgement.evaluation.validation is None:
        return ""
    validation = latest_evaluation(folder, judgement).validation
    dice, baseline = validation.dice if validation else None, threshold_baseline(campaign).validation_dice
    if dice is None or baseline is None or dice > baseline:
        return ""
    return (
        f"generation {generation} does no better than a tuned threshold on the validation boxes "
        f"(Dice {dice:.3f}, the threshold {baseline:.3f})"
    )
