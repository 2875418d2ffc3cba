"""Makes the ticket of a patch."""

from __future__ import annotations

from rescueseg.annotation.label_files import ticket_id
from rescueseg.annotation.pairs import annotators_of
from rescueseg.config import CampaignConfig
from rescueseg.geometry import Patch
from rescueseg.queue.records import NewTicket
from rescueseg.records import Purpose


def make_ticket(
    config: CampaignConfig,
    generation: int,
    patch: Patch,
    purpose: Purpose,
    *,
    stratum: str,
    reason: str,
    score: float = 0.0,
) -> NewTicket:
    """Return the ticket of a patch, without a first mask; pool tickets may be for two people."""
    name = ticket_id(config.name, generation, patch, purpose)
    return NewTicket(
        ticket_id=name,
        annotators=annotators_of(config, name) if purpose == "pool" else 1,
        volume_id=patch.volume_id,
        box=patch.box,
        purpose=purpose,
        generation=generation,
        stratum=stratum,
        reason=reason,
        score=score,
    )
