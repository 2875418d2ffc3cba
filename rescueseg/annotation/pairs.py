"""Blind pairs: which patches two people annotate, how well they agree, and what becomes of their labels.

Two who agree at least `annotation.agreement_dice` are settled without a reviewer (unless `annotation.review` wants one):
``pick`` accepts the version with fewer voxels left out, the first handed in where both left out as many; ``staple``
accepts a consensus of both as a version of its own. The others wait for a reviewer, who sees both.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from rescueseg.annotation.agreement import agreement
from rescueseg.annotation.consensus import staple
from rescueseg.annotation.label_files import read_version, store_labels
from rescueseg.campaign import Campaign
from rescueseg.errors import QueueError, RescuesegError
from rescueseg.labels import PatchLabels, corrected_voxels
from rescueseg.queue.records import AnnotationRecord, TicketRecord
from rescueseg.queue.store import QueueStore
from rescueseg.randomness import random_generator

SETTLED_BY = "rescueseg"

_log = logging.getLogger(__name__)


def annotators_of(campaign: Campaign, ticket_id: str) -> int:
    """Return how many people annotate a pool ticket: two of `annotation.double_fraction`, the same in every run."""
    share = campaign.config.annotation.double_fraction
    return 1 + int(random_generator(campaign.config.seed, "double", ticket_id).random() < share)


def settle_all(campaign: Campaign, store: QueueStore) -> None:
    """Settle the pairs that a killed process left."""
    review = campaign.config.annotation.review
    for ticket_id in store.undecided_pairs(2.0 if review else campaign.config.annotation.agreement_dice):
        try_to_settle(campaign, store, ticket_id)


def try_to_settle(campaign: Campaign, store: QueueStore, ticket_id: str) -> None:
    """Settle a pair, or say in the log why not: one that cannot be read stops nobody's work on the others."""
    try:
        settle(campaign, store, ticket_id)
    except RescuesegError as error:
        _log.warning("ticket %s is not settled: %s", ticket_id, error)


def settle(campaign: Campaign, store: QueueStore, ticket_id: str) -> None:
    """Compare the halves of a submitted pair, and accept one or their consensus where they agree; again changes nothing."""
    ticket = store.ticket(ticket_id)
    if ticket.status != "submitted" or ticket.annotators < 2:
        return
    config = campaign.config
    pair = [v for v in store.annotations(ticket_id) if v.verdict == "submitted" and v.origin == "annotator"]
    labels = [read_version(campaign, version) for version in pair]
    if len(pair) != 2:  # settled, or sent back, just now
        return
    found = agreement(labels[0], labels[1], config.n_classes)
    details = {
        "versions": [v.version for v in pair],
        "annotators": [v.annotator for v in pair],
        "agreement": found.value,
        "dice": {config.classes[c - 1]: dice for c, dice in found.dice.items()},
        "objects": found.objects,
    }
    with suppress(QueueError):  # somebody settled it, or sent it back, just now
        store.record_agreement(ticket_id, (pair[0].annotation_id, pair[1].annotation_id), found.value, details)
        if found.value >= config.annotation.agreement_dice and not config.annotation.review:
            if config.annotation.consensus == "staple":
                accept_consensus(campaign, store, ticket, pair, labels, SETTLED_BY)
            else:
                store.accept(ticket_id, SETTLED_BY, pair[more_complete(labels)].version)


def more_complete(labels: list[PatchLabels]) -> int:
    """Return which of several labels leaves fewest voxels out; the first of those that leave out as many."""
    left_out = [int(one.ignore.sum()) for one in labels]
    return left_out.index(min(left_out))


def accept_consensus(
    campaign: Campaign,
    store: QueueStore,
    ticket: TicketRecord,
    pair: list[AnnotationRecord],
    labels: list[PatchLabels],
    actor: str,
) -> AnnotationRecord:
    """Store the STAPLE consensus of a submitted ticket's versions as a version of its own, and accept it."""
    made, provenance = staple(labels, campaign.config.n_classes)
    classes, instances = store_labels(campaign, ticket.ticket_id, made)
    return store.fix(
        ticket.ticket_id,
        actor,
        classes,
        "staple",
        corrected_voxels(made, labels[0]),
        instances=instances,
        origin="consensus",
        provenance=provenance | {"versions": [v.version for v in pair]},
    )
