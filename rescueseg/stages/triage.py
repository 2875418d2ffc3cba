"""The triage of a campaign, written down: the record and the picture of the decision."""

from __future__ import annotations

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import TRIAGE_PICTURE
from rescueseg.progress import Progress
from rescueseg.queue.store import QueueStore
from rescueseg.reports.triage_picture import draw_decision
from rescueseg.triage import triage
from rescueseg.triage.records import TRIAGE, Triage
from rescueseg.triage.tree import Mask
from rescueseg.triage.words import Named


def triage_campaign(
    campaign: Campaign,
    store: QueueStore,
    *,
    structure: Named | None = None,
    mask: Mask = "auto",
    channel: int = 0,
    progress: Progress | None = None,
) -> Triage:
    """Triage a campaign and write the picture of the decision, then `triage.json`.

    Parameters, result and errors as `rescueseg.triage.triage.triage`.
    """
    result = triage.triage(campaign, store, structure=structure, mask=mask, channel=channel, progress=progress)
    campaign.storage.write_bytes(
        TRIAGE_PICTURE.path(), draw_decision(result, numbered=campaign.config.annotation.labels == "instance")
    )
    campaign.records.write(TRIAGE, result)
    return result
