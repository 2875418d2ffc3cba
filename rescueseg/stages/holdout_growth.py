"""The holdout that people annotate grows with the campaign: each generation asks for two more boxes of each part.

All boxes are drawn and kept apart from the start (`rescueseg.sampling.holdout`). Those put off become tickets with a
generation's queried patches; the next generation is judged by those of them that are annotated by then, and waits for none.
"""

from __future__ import annotations

from rescueseg.campaign import Campaign
from rescueseg.config import CampaignConfig
from rescueseg.geometry import Patch
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore
from rescueseg.records import HoldoutBox
from rescueseg.sampling.holdout import MORE_BOXES, PARTS
from rescueseg.stages.ticket_making import make_ticket


def more_boxes(campaign: Campaign, generation: int, store: QueueStore) -> list[NewTicket]:
    """Return the tickets of the boxes that people are asked for before a generation; they come first in the queue.

    Parameters
    ----------
    campaign : Campaign
        Its holdout has boxes that were put off.
    generation : int
        The one that they will be judged by first.
    store : QueueStore
        Tells which boxes were asked for before; a rerun returns the same tickets.
    """
    holdout, usable = campaign.holdout(), {v.volume_id for v in campaign.volumes.records()}
    if holdout is None or not holdout.later:
        return []
    new: list[NewTicket] = []
    for part in PARTS:
        earlier = {t.patch for t in store.views.tickets(purpose=part) if t.generation != generation}
        due = [b for b in holdout.later if b.part == part and b.volume_id in usable and b.patch not in earlier]
        new += [holdout_ticket(campaign.config, generation, box) for box in due[:MORE_BOXES]]
    return new


def holdout_ticket(config: CampaignConfig, generation: int, box: HoldoutBox) -> NewTicket:
    """Return the ticket of a holdout box."""
    reason = f"{box.part} box: annotate all of it"
    return make_ticket(config, generation, box.patch, box.part, stratum=box.stratum, reason=reason)


def take_annotated(campaign: Campaign, store: QueueStore) -> int:
    """Let the boxes that were put off and are annotated now count from the next generation on; return how many.

    One that was skipped in the queue counts too: it scores nothing. Call it under the campaign's lock, before a snapshot.
    """
    holdout = campaign.holdout()
    if holdout is None or not holdout.later:
        return 0
    places: set[Patch] = set()
    for part in PARTS:
        places |= {a.patch for a in store.views.accepted(part)}
        places |= {t.patch for t in store.views.tickets("skipped", part)}
    grown = holdout.with_annotated(places)
    if grown != holdout:
        campaign.freeze_holdout(grown)
    return len(grown.boxes) - len(holdout.boxes)
