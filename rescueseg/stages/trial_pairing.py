"""Which trainers are to be tried against each other before a generation is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rescueseg.active_learning.strategies import needed_maps
from rescueseg.campaign import Campaign
from rescueseg.campaign.route import current_choice
from rescueseg.campaign.stage_results import CHOICE, TRAINING, TRIAL, Choice
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.stored_scores import latest_evaluation
from rescueseg.evaluation.threshold_baseline import ThresholdBaseline, last_baseline
from rescueseg.inference.maps import OBJECT_DISAGREEMENT
from rescueseg.models.registry import find_entry
from rescueseg.triage.trainer_choice import pick_trainer
from rescueseg.triage.tree import ROUTES


@dataclass(frozen=True)
class Pairing:
    """Which trainers are to be tried.

    Parameters
    ----------
    trainers : tuple of str
        Two; of equal scores the first is taken.
    route : str
        Name of the route that they are of.
    occasion : str
        Why, for people.
    """

    trainers: tuple[str, str]
    route: str
    occasion: str


def pairing(
    campaign: Campaign,
    generation: int,
    *,
    refused: Callable[[str], bool],
    baseline: Callable[[Campaign], ThresholdBaseline | None] = last_baseline,
) -> Pairing | None:
    """Return the trainers to be tried before a generation is trained; None where there is nothing to try.

    What is tried follows from the choice that was frozen with the generation's snapshot: nothing where a person named the
    trainer, without a triage, without validation boxes, or where no other trainer of the route can be used here, learn from
    what is annotated and serve the query strategy. A generation whose trainer made the one before tries only where that did
    no better than a tuned threshold.

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout.
    generation : int
        Not trained yet; before its snapshot the choice is what it would be now.
    refused : callable
        Whether a trainer, by its name, cannot do what the settings and the annotations ask for.
    baseline : callable
        Returns the tuned threshold: the one that was tuned last when omitted.
    """
    folder, holdout = campaign.generation(generation), campaign.holdout()
    if folder.has(TRIAL) or folder.has(TRAINING) or holdout is None:
        return None
    choice = folder.read(CHOICE) or current_choice(campaign)
    if choice.route not in ROUTES or not any(box.part == "validation" for box in holdout.boxes):
        return None
    route, present = ROUTES[choice.route], choice.trainer
    others = [n for n in _usable(campaign, choice) if n != present and not refused(n)]
    untried = next((n for n in others if n not in _tried(campaign, route.name, generation)), None)
    before = campaign.generation(generation - 1).model() if generation else None
    if before is not None and before.trainer != present and before.trainer in others:
        occasion = f"{before.trainer} made generation {generation - 1} and the route '{route.title}' takes {present}"
        return Pairing((present, before.trainer), route.name, occasion)
    if untried is None:
        return None
    if before is None or before.trainer != present:
        occasion = f"the route '{route.title}' is followed for the first time"
        return Pairing((present, untried), route.name, occasion)
    failed = below_threshold(campaign, generation - 1, baseline)
    return Pairing((present, untried), route.name, failed) if failed else None


def _usable(campaign: Campaign, choice: Choice) -> tuple[str, ...]:
    """Return the trainers of a choice's route that can be used here and serve its query strategy, best first."""
    config = campaign.config
    usable = pick_trainer(ROUTES[choice.route], numbered=config.annotation.labels == "instance").usable
    if OBJECT_DISAGREEMENT in needed_maps(choice.strategy):
        return tuple(n for n in usable if find_entry(n).settings.of(config.training).tells_objects_apart)
    return usable


def _tried(campaign: Campaign, route: str, generation: int) -> set[str]:
    """Return the trainers of all trials on a route before a generation."""
    trials = (folder.read(TRIAL) for folder in campaign.generations() if folder.number < generation)
    return {c.trainer for trial in trials if trial and trial.route == route for c in trial.contestants}


def below_threshold(
    campaign: Campaign, generation: int, baseline: Callable[[Campaign], ThresholdBaseline | None]
) -> str:
    """Say that a generation does no better than the tuned threshold by Dice on the validation boxes; empty where it does."""
    folder = campaign.generation(generation)
    judgement = folder.read(EVALUATION)
    if judgement is None or judgement.evaluation.validation is None:
        return ""
    validation, tuned = latest_evaluation(folder, judgement).validation, baseline(campaign)
    dice, threshold = validation.dice if validation else None, tuned.validation_dice if tuned else None
    if dice is None or threshold is None or dice > threshold:
        return ""
    return (
        f"generation {generation} does no better than a tuned threshold on the validation boxes "
        f"(Dice {dice:.3f}, the threshold {threshold:.3f})"
    )
