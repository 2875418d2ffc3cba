"""Tells whether a generation is due, and begins it."""

from __future__ import annotations

from dataclasses import dataclass

from rescueseg.active_learning.strategies import find_strategy, needed_maps
from rescueseg.campaign import Campaign
from rescueseg.campaign.route import current_choice
from rescueseg.campaign.stage_results import TICKETS, Choice
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError, EvaluationError, QueueError
from rescueseg.evaluation.truth import missing_truth
from rescueseg.inference.maps import OBJECT_DISAGREEMENT
from rescueseg.models.registry import check_families, find_entry
from rescueseg.queue.due import patches_due
from rescueseg.queue.store import QueueStore
from rescueseg.services.dask_address import check_address


@dataclass(frozen=True)
class Due:
    """Whether a generation is to run.

    Parameters
    ----------
    generation : int
        Its number: the unfinished one, or the next.
    due : bool
        True when it should run now.
    reason : str
        One sentence for people.
    """

    generation: int
    due: bool
    reason: str


def count_due(campaign: Campaign, store: QueueStore) -> Due:
    """Recount in the database whether a generation is due; call it under the campaign's lock.

    Parameters
    ----------
    campaign : Campaign
        Its ``trigger.accepted_patches`` is the threshold.
    store : QueueStore
        Queue and ledger.
    """
    last = store.ledger.last_generation()
    if last is not None and last.finished_at is None:
        return Due(last.generation, True, f"generation {last.generation} was begun and not finished")
    following = 0 if last is None else last.generation + 1
    holdout = campaign.holdout()
    if holdout is None:
        return Due(following, False, "nothing is sampled yet: there is no holdout to judge by")
    if waiting := len(missing_truth(campaign, holdout)):
        return Due(following, False, f"{waiting} holdout boxes are not annotated yet")
    if last is not None and (stop := campaign.generation(last.generation).require(TICKETS).stop):
        return Due(following, False, f"the campaign says stop: {stop}")
    enough, reason = patches_due(campaign.config, store)
    return Due(following, enough, reason)


def begin(campaign: Campaign, store: QueueStore) -> int:
    """Write the generation to run into the ledger and return its number; an unfinished one is continued.

    Raises
    ------
    QueueError
        If no patch was accepted yet.
    EvaluationError
        If there is no holdout yet, or boxes of it wait for their annotation.
    ConfigError
        If the campaign names a query strategy that there is not or that the models cannot serve, or a Dask scheduler that may
        not be spoken to, or has a table of a model family that is not installed or holds what it may not: better now than
        after the training.
    """
    accepted = check_ready(campaign, store)
    due = count_due(campaign, store)
    store.ledger.begin_generation(due.generation, accepted)
    return due.generation


def check_ready(campaign: Campaign, store: QueueStore) -> int:
    """Make sure that a generation could begin, and return the number of accepted patches; see `begin` for what it raises."""
    choice = current_choice(campaign)
    find_strategy(choice.strategy)
    check_families(campaign.config.training, campaign.file)
    if OBJECT_DISAGREEMENT in needed_maps(choice.strategy):
        _check_objects(campaign.config, choice)
    check_address(campaign.config.cluster)
    accepted = len(store.views.accepted("pool"))
    if not accepted:
        raise QueueError(
            "no accepted patch to train on", where=campaign.url, todo=f"Annotate: 'rescueseg queue next {campaign.url}'"
        )
    holdout = campaign.holdout()
    if holdout is None:
        raise EvaluationError(
            "there is no holdout to judge a generation by",
            where=campaign.url,
            todo=f"Run 'rescueseg sample {campaign.url}'",
        )
    if waiting := len(missing_truth(campaign, holdout)):
        raise EvaluationError(
            f"{waiting} holdout boxes are not annotated yet",
            where=campaign.url,
            todo="Their tickets come first in the queue; annotate and accept them",
        )
    return accepted


def _check_objects(config: CampaignConfig, choice: Choice) -> None:
    """Refuse a strategy that asks how members disagree about objects where the models tell none, or have one member."""
    own = find_entry(choice.trainer).settings.of(config.training)
    if not own.tells_objects_apart:
        raise ConfigError(
            f"'{choice.strategy}' needs models that tell objects apart; those of '{choice.trainer}' do not, as it is set",
            where="query.strategy",
            todo="Choose another strategy; or training.trainer stardist or cellpose, or training.unet.border_distance = true",
        )
    samples = config.inference.mc_samples if own.samples_objects and config.training.dropout != 0 else 1
    if max(config.inference.tta_symmetries, config.training.members, samples) < 2:
        more = " or inference.mc_samples" if own.samples_objects and config.training.dropout != 0 else ""
        raise ConfigError(
            f"'{choice.strategy}' needs at least two members that may differ in objects, and there is one",
            where="query.strategy",
            todo=f"Set inference.tta_symmetries or training.members{more} to 2 or more",
        )
