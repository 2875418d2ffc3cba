"""Blind pairs: which patches two people annotate, how well they agree, and what becomes of their labels.

A pair that agrees at least `annotation.agreement_dice` is resolved without a reviewer (unless `annotation.review` asks for
one): ``pick`` accepts the version with fewer voxels not annotated, the first handed in where both have as many; ``staple``
accepts a consensus of both as a version of its own. The other pairs wait for a reviewer, who sees both versions.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from rescueseg.annotation.agreement import agreement
from rescueseg.annotation.consensus import staple
from rescueseg.annotation.label_files import read_version, store_labels
from rescueseg.campaign import Campaign
from rescueseg.config import CampaignConfig
from rescueseg.errors import QueueError, RescuesegError
from rescueseg.labels import PatchLabels, corrected_voxels
from rescueseg.queue.records import AnnotationRecord, TicketRecord
from rescueseg.queue.store import QueueStore
from rescueseg.queue.submission import Work
from rescueseg.randomness import random_generator
from rescueseg.storage import Storage

AUTOMATIC_ACTOR = "rescueseg"

_log = logging.getLogger(__name__)


def annotators_of(config: CampaignConfig, ticket_id: str) -> int:
    """Return how many people annotate a pool ticket: two of `annotation.double_fraction`, the same in every run."""
    share = config.annotation.double_fraction
    return 1 + int(random_generator(config.seed, "double", ticket_id).random() < share)


def resolve_pairs(campaign: Campaign, store: QueueStore) -> None:
    """Resolve the pairs that a killed process left unresolved."""
    review = campaign.config.annotation.review
    for ticket_id in store.views.undecided_pairs(2.0 if review else campaign.config.annotation.agreement_dice):
        try_to_resolve(campaign, store, ticket_id)


def try_to_resolve(campaign: Campaign, store: QueueStore, ticket_id: str) -> None:
    """Resolve a pair; one that cannot be read is only logged, so that work on the others goes on."""
    try:
        resolve_pair(campaign, store, ticket_id)
    except RescuesegError as error:
        _log.warning("the pair of ticket %s is not resolved: %s", ticket_id, error)


def resolve_pair(campaign: Campaign, store: QueueStore, ticket_id: str) -> None:
    """Compare the two versions of a submitted pair; where they agree, accept one or their consensus.

    A second call changes nothing.
    """
    ticket = store.views.ticket(ticket_id)
    if ticket.status != "submitted" or ticket.annotators < 2:
        return
    config = campaign.config
    pair = [v for v in store.views.annotations(ticket_id) if v.verdict == "submitted" and v.origin == "annotator"]
    labels = [read_version(campaign.storage, version) for version in pair]
    if len(pair) != 2:  # resolved, or sent back, in the meantime
        return
    result = agreement(labels[0], labels[1], config.n_classes)
    details = {
        "versions": [v.version for v in pair],
        "annotators": [v.annotator for v in pair],
        "agreement": result.value,
        "dice": {config.classes[c - 1]: dice for c, dice in result.dice.items()},
        "objects": result.objects,
    }
    with suppress(QueueError):  # resolved, or sent back, in the meantime
        store.reviews.record_agreement(ticket_id, (pair[0].annotation_id, pair[1].annotation_id), result.value, details)
        if result.value >= config.annotation.agreement_dice and not config.annotation.review:
            if config.annotation.consensus == "staple":
                accept_consensus(campaign.storage, config.n_classes, store, ticket, pair, labels, AUTOMATIC_ACTOR)
            else:
                store.reviews.accept(ticket_id, AUTOMATIC_ACTOR, pair[more_complete(labels)].version)


def more_complete(labels: list[PatchLabels]) -> int:
    """Return the index of the labels with the fewest voxels not annotated, the first of equals.

    Examples
    --------
    >>> import numpy as np
    >>> first = PatchLabels(np.array([[[1, 255, 255]]], np.uint8))
    >>> second = PatchLabels(np.array([[[1, 0, 255]]], np.uint8))
    >>> more_complete([first, second])
    1
    """
    n_ignored = [int(one.ignore.sum()) for one in labels]
    return n_ignored.index(min(n_ignored))


def accept_consensus(
    storage: Storage,
    n_classes: int,
    store: QueueStore,
    ticket: TicketRecord,
    pair: list[AnnotationRecord],
    labels: list[PatchLabels],
    actor: str,
) -> AnnotationRecord:
    """Store the STAPLE consensus of a submitted ticket's versions as a version of its own, and accept it."""
    consensus, provenance = staple(labels, n_classes)
    corrected = corrected_voxels(consensus, labels[0])
    stored = store_labels(storage, ticket.ticket_id, consensus, corrected)
    return store.reviews.fix(
        ticket.ticket_id,
        actor,
        stored,
        Work("staple"),
        origin="consensus",
        provenance=provenance | {"versions": [v.version for v in pair]},
    )
