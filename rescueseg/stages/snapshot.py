"""The snapshot stage: the training set of a generation, and the effort of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rescueseg.campaign import Campaign
from rescueseg.campaign import snapshot as snapshots
from rescueseg.campaign.route import freeze_choice
from rescueseg.queue.store import QueueStore
from rescueseg.records import AcceptedAnnotation
from rescueseg.stages.stage import run_stage
from rescueseg.volumes.comparison import ensure_compared


def make_snapshot(campaign: Campaign, generation: int, store: QueueStore) -> Any:
    """Write the generation's immutable training set from the accepted annotations; see `rescueseg.campaign.snapshot`."""

    def work() -> Any:
        campaign.apply_domains()
        ensure_compared(campaign)
        accepted = store.accepted("pool")
        previous = campaign.snapshot(generation - 1) if generation else None
        earlier = {item.annotation_id for item in previous.items} if previous else set()
        new = [a for a in accepted if a.annotation_id not in earlier]
        names = sorted({a.annotator for a in new})
        effort = {
            **_effort(new),
            "annotators": {who: _effort([a for a in new if a.annotator == who]) for who in names},
            "patches": {a.ticket_id: {"annotator": a.annotator, **_effort([a])} for a in new},
        }
        campaign.finish_stage(generation, "effort", effort)
        freeze_choice(campaign, generation)
        return snapshots.make_snapshot(campaign, generation, accepted).to_json()

    result = run_stage(campaign, generation, "snapshot", work)
    store.count_accepted(generation, len(result["items"]))
    return result


def _effort(accepted: Sequence[AcceptedAnnotation]) -> dict[str, float]:
    """Return the effort of accepted labels: corrected voxels and working time in seconds."""
    return {
        "voxels_corrected": sum(a.voxels_corrected for a in accepted),
        "annotation_seconds": round(sum(a.seconds for a in accepted), 1),
    }
