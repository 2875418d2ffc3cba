"""From patches to tickets: the holdout and the starting patches first, then what each generation asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from rescueseg.active_learning.candidates import score_candidates
from rescueseg.active_learning.stopping import should_stop
from rescueseg.active_learning.strategies import choose_patches, needed_maps
from rescueseg.campaign import Campaign, GenerationFolder, VolumeFolder
from rescueseg.campaign.layout import PREFILL
from rescueseg.campaign.route import TRIAGE_SUMMARY, frozen_choice, profile_of
from rescueseg.campaign.stage_results import QUERY, TICKETS, QueryResult, TicketsResult
from rescueseg.config import CampaignConfig, StoppingConfig
from rescueseg.errors import QueueError, SamplingError
from rescueseg.evaluation.learning_curve import generation_results
from rescueseg.geometry import Patch
from rescueseg.inference.maps import VolumeMaps
from rescueseg.labels import class_names, most_likely
from rescueseg.postprocessing.clean import clean
from rescueseg.progress import Progress
from rescueseg.queue.due import campaign_lock
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore
from rescueseg.randomness import random_generator
from rescueseg.records import Holdout, QueriedPatch, VolumeRecord
from rescueseg.sampling import starting_patches
from rescueseg.sampling.holdout import plan_holdout, undrawn_volumes
from rescueseg.sampling.patches import Hint
from rescueseg.stages.hints import hint_of, queue_examples, skipped_examples
from rescueseg.stages.holdout_growth import holdout_ticket, more_boxes
from rescueseg.stages.stage import run_stage
from rescueseg.stages.ticket_making import make_ticket
from rescueseg.volumes.comparison import ensure_compared


def prepare(
    campaign: Campaign, store: QueueStore, progress: Progress | None = None, scribbles: Sequence[str] = ()
) -> int:
    """Freeze the holdout and queue the first tickets; a rerun changes nothing.

    Holdout boxes in volumes without ground truth become the first tickets, without a mask that could bias them; then
    come the starting patches, examples and those of the rough mask first. An example or scribbles tell where the structure is:
    see `rescueseg.stages.hints`.

    Parameters
    ----------
    campaign : Campaign
        With at least one volume.
    store : QueueStore
        Its queue.
    progress : callable, optional
        Called with what is counted, how many are done and how many there are.
    scribbles : sequence of str
        Label images of volumes, as ``VOLUME=FILE``.

    Returns
    -------
    int
        Number of new tickets.

    Raises
    ------
    SamplingError
        If the volumes leave no room, an example waits for its annotation, scribbles come too late or show nothing, or the
        holdout would grow while a generation is unfinished.
    QueueError
        If it would grow while a generation is running.
    """
    store.migrate()
    ensure_compared(campaign.volumes, progress)
    if campaign.starting_patches() is None:
        queue_examples(campaign, store)
    hint, skipped = hint_of(campaign, lambda: store, scribbles), skipped_examples(campaign, lambda: store)
    holdout = _draw_holdout(campaign, store, progress, hint, skipped)
    if campaign.starting_patches() is None:
        new = starting_patches.starting_patches(campaign, occupied=skipped, progress=progress, hint=hint)
        campaign.save_starting_patches(new)
    starting = campaign.starting_patches() or []
    return store.tickets.add(first_tickets(campaign.config, campaign.volumes.records(), holdout, starting))


def preview_sampling(
    campaign: Campaign,
    open_store: Callable[[], QueueStore],
    progress: Progress | None = None,
    scribbles: Sequence[str] = (),
) -> tuple[Holdout, list[QueriedPatch]]:
    """Return the holdout and the starting patches that `prepare` would leave; neither is written. Raises as it does.

    The queue is opened only when there is an example, or the holdout would grow: its tickets tell which patches were trained on.
    """
    ensure_compared(campaign.volumes, progress, write=False)
    trained: list[Patch] = []
    if campaign.holdout() is not None and (new := undrawn_volumes(campaign.holdout(), campaign.volumes.records())):
        trained = _trained(campaign, open_store(), new)
    hint, skipped = hint_of(campaign, open_store, scribbles), skipped_examples(campaign, open_store)
    holdout = plan_holdout(campaign, trained, progress, hint, skipped)
    starting = campaign.starting_patches()
    if starting is None:
        starting = starting_patches.starting_patches(
            campaign, occupied=skipped, holdout=holdout, progress=progress, hint=hint
        )
    return holdout, starting


def first_tickets(
    config: CampaignConfig, volumes: Sequence[VolumeRecord], holdout: Holdout, starting: Sequence[QueriedPatch]
) -> list[NewTicket]:
    """Return the tickets of a sampling, in the volumes that may be used; the queue takes those that it does not have."""
    usable = {volume.volume_id for volume in volumes}
    holdout_tickets = [holdout_ticket(config, 0, box) for box in starting_patches.holdout_tickets(volumes, holdout)]
    return holdout_tickets + [_queried(config, 0, patch) for patch in starting if patch.volume_id in usable]


def _draw_holdout(
    campaign: Campaign, store: QueueStore, progress: Progress | None, hint: Hint | None, skipped: Sequence[Patch]
) -> Holdout:
    """Draw the holdout. It grows between generations only: an unfinished one may have no maps of the new boxes."""
    if campaign.holdout() is None or not (new := undrawn_volumes(campaign.holdout(), campaign.volumes.records())):
        return starting_patches.draw_holdout(campaign, (), progress, hint, skipped)
    with campaign_lock(campaign.config, store):
        return starting_patches.draw_holdout(campaign, _trained(campaign, store, new), progress, hint, skipped)


def _trained(campaign: Campaign, store: QueueStore, new: Sequence[VolumeRecord]) -> list[Patch]:
    """Return the patches that were, or may soon be, trained on; refuse while a generation is unfinished."""
    last = store.ledger.last_generation()
    if last is not None and last.finished_at is None:
        raise SamplingError(
            f"generation {last.generation} was begun and not finished; the holdout grows after it",
            where=", ".join(v.volume_id for v in new),
            todo=f"Finish it with 'rescueseg generation {campaign.url}', then sample again",
        )
    return [ticket.patch for ticket in store.views.tickets(purpose="pool")]


def withdraw_refused(volumes: VolumeFolder, store: QueueStore) -> int:
    """Skip the waiting tickets of refused volumes, so that nobody annotates them; return how many."""
    refused = {v.volume_id for v in volumes.records(refused=True) if v.refused}
    waiting = [ticket for ticket in store.views.tickets("queued") if ticket.volume_id in refused]
    for ticket in waiting:
        with suppress(QueueError):  # leased to somebody in the meantime
            store.tickets.withdraw(ticket.ticket_id, "rescueseg check", "the volume was refused")
    return len(waiting)


def query(campaign: Campaign, generation: int, store: QueueStore) -> QueryResult:
    """Choose the patches to ask for next by the campaign's query strategy; see `rescueseg.active_learning.strategies`.

    Patches that had a ticket before are left out, and so is the guarded holdout.
    """
    return run_stage(campaign.generation(generation), QUERY, lambda: _query(campaign, generation, store))


def _query(campaign: Campaign, generation: int, store: QueueStore) -> QueryResult:
    campaign.require_volumes()
    config, strategy = campaign.config, frozen_choice(campaign, generation).strategy
    occupied = [ticket.patch for ticket in store.views.tickets(purpose="pool") if ticket.generation <= generation]
    boxes, places = starting_patches.all_candidates(campaign, occupied)
    further = needed_maps(strategy)
    table = score_candidates(campaign.generation(generation), boxes, config.n_classes, places, further=further)
    rng = random_generator(config.seed, "query", generation, strategy)
    patches = choose_patches(config, strategy, table, generation, rng) if len(table) else []
    rows = {Patch(v, b): row for row, (v, b) in enumerate(zip(table.volume_ids, table.boxes, strict=True))}
    entropy = [table.scores["predictive_entropy"][rows[Patch(p.volume_id, p.box)]] for p in patches]
    return QueryResult(
        strategy=strategy,
        candidates=len(table),
        patches=tuple(patches),
        uncertainty=round(float(np.mean(entropy)), 6) if entropy else None,
    )


def stop_decision(generation: GenerationFolder, config: StoppingConfig) -> str:
    """Return why the campaign should stop after a generation, empty when it should go on."""
    history = generation_results(folder for folder in generation.all() if folder.number <= generation.number)
    decision = should_stop(history, config)
    return decision.reason if decision.stop else ""


def enqueue(campaign: Campaign, generation: int, store: QueueStore) -> TicketsResult:
    """Make tickets of the queried patches, each with the model's prediction, cleaned by the route's profile, as first mask.

    With them come the next boxes of a holdout that grows. Nothing is queued once the stopping rule says stop.
    """
    return run_stage(campaign.generation(generation), TICKETS, lambda: _enqueue(campaign, generation, store))


def _enqueue(campaign: Campaign, generation: int, store: QueueStore) -> TicketsResult:
    if stop := stop_decision(campaign.generation(generation), campaign.config.stopping):
        return TicketsResult(tickets=(), stop=stop)
    folder, config, tickets = campaign.generation(generation), campaign.config, []
    profile = profile_of(config, campaign.records.read(TRIAGE_SUMMARY))
    for patch in folder.require(QUERY).patches:
        ticket = _queried(config, generation + 1, patch)
        prefill = PREFILL.path(generation=generation, ticket=ticket.ticket_id)
        probability = VolumeMaps(folder, patch.volume_id).open("probability")
        mask = most_likely(np.asarray(probability[(slice(None), *patch.box.slices)]))
        mask = clean(mask, campaign.volumes.record(patch.volume_id).spacing_um_zyx, *profile)
        campaign.storage.write_array(prefill, mask)
        tickets.append(ticket.model_copy(update={"prefill": prefill, "classes": class_names(config.classes, mask)}))
    tickets += more_boxes(campaign, generation + 1, store)
    store.tickets.add(tickets)
    return TicketsResult(tickets=tuple(ticket.ticket_id for ticket in tickets), stop="")


def _queried(config: CampaignConfig, generation: int, patch: QueriedPatch) -> NewTicket:
    return make_ticket(
        config,
        generation,
        Patch(patch.volume_id, patch.box),
        "pool",
        stratum=patch.stratum,
        reason=patch.reason,
        score=patch.score,
    )
