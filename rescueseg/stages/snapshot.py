"""The snapshot stage: the training set of a generation, and the effort of its labels."""

from __future__ import annotations

from collections.abc import Sequence

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign import snapshot as snapshots
from rescueseg.campaign.route import freeze_choice
from rescueseg.campaign.stage_results import EFFORT, SNAPSHOT, Effort, GenerationEffort, PatchEffort
from rescueseg.queue.store import QueueStore
from rescueseg.records import AcceptedAnnotation, Holdout, Snapshot
from rescueseg.stages.holdout_growth import take_annotated
from rescueseg.stages.stage import run_stage
from rescueseg.volumes.comparison import ensure_compared


def make_snapshot(campaign: Campaign, generation: int, store: QueueStore) -> Snapshot:
    """Write the generation's immutable training set from the accepted annotations; see `rescueseg.campaign.snapshot`.

    Before that, a holdout that grows takes in what was annotated of it: until the generation is judged it stays as it is.
    """
    folder = campaign.generation(generation)

    def work() -> Snapshot:
        campaign.volumes.apply_domains()
        ensure_compared(campaign.volumes)
        take_annotated(campaign, store)
        accepted = store.views.accepted("pool")
        previous = campaign.generation(generation - 1).snapshot() if generation else None
        earlier = {item.annotation_id for item in previous.items} if previous else set()
        new = [a for a in accepted if a.annotation_id not in earlier]
        folder.write(
            EFFORT,
            effort_of(new).model_copy(update={"left_out": left_out(campaign.holdout(), campaign.volumes, accepted)}),
        )
        freeze_choice(campaign, generation)
        return snapshots.make_snapshot(campaign, generation, accepted)

    result = run_stage(folder, SNAPSHOT, work)
    effort = folder.read(EFFORT)
    store.ledger.count_accepted(generation, len(result.items) + (len(effort.left_out) if effort else 0))
    return result


def left_out(holdout: Holdout | None, volumes: VolumeFolder, accepted: Sequence[AcceptedAnnotation]) -> tuple[str, ...]:
    """Return the tickets that a snapshot leaves out; see `rescueseg.campaign.snapshot.in_holdout_of_copies`."""
    usable = {v.volume_id for v in volumes.records()}
    if holdout is None:
        return ()
    mine = [a for a in accepted if a.volume_id in usable]
    return tuple(sorted(a.ticket_id for a in snapshots.in_holdout_of_copies(holdout, mine, volumes.shared_places())))


def effort_of(accepted: Sequence[AcceptedAnnotation]) -> GenerationEffort:
    """Return the effort of accepted labels: in all, by person, by ticket."""
    names = sorted({a.annotator for a in accepted})
    of_person = {who: _sum([a for a in accepted if a.annotator == who]) for who in names}
    of_patch = {
        a.ticket_id: PatchEffort(
            annotator=a.annotator, voxels_corrected=a.voxels_corrected, annotation_seconds=round(a.seconds, 1)
        )
        for a in accepted
    }
    total = _sum(accepted)
    return GenerationEffort(
        voxels_corrected=total.voxels_corrected,
        annotation_seconds=total.annotation_seconds,
        annotators=of_person,
        patches=of_patch,
    )


def _sum(accepted: Sequence[AcceptedAnnotation]) -> Effort:
    return Effort(
        voxels_corrected=sum(a.voxels_corrected for a in accepted),
        annotation_seconds=round(sum(a.seconds for a in accepted), 1),
    )
