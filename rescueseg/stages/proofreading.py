"""From a delivery back to the queue: its most doubtful places become tickets that start from the delivered labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.layout import DELIVERED_LABELS
from rescueseg.delivery.folder import MASK, OBJECTS, DeliveryFolder, SourceVolume
from rescueseg.delivery.new_volumes import new_volume
from rescueseg.delivery.places import PROOFREADING, DoubtfulPlace, are_free, doubtful_places
from rescueseg.errors import StorageError, VolumeError
from rescueseg.labels import class_names
from rescueseg.progress import Progress
from rescueseg.queue.due import campaign_lock
from rescueseg.queue.records import NewTicket, TicketStatus
from rescueseg.queue.store import QueueStore
from rescueseg.records import Domain, Domains, Normalisation, VolumeRecord
from rescueseg.stages.ticket_making import make_ticket
from rescueseg.storage import Storage
from rescueseg.volumes.comparison import ensure_compared
from rescueseg.volumes.domains import free_name
from rescueseg.volumes.ome_zarr import open_level
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import default_domain, import_volume

_OPEN: tuple[TicketStatus, ...] = ("queued", "leased", "submitted", "rejected")


def queue_places(
    campaign: Campaign,
    store: QueueStore,
    folder: DeliveryFolder,
    sources: Sequence[SourceVolume],
    count: int,
    progress: Progress | None = None,
) -> list[str]:
    """Queue the most doubtful places of a delivery, so that `count` of them wait for people.

    A place that ever had a ticket is not asked for again, and tickets that are open count: asked again, only as many
    are added as were done meanwhile. Nothing is queued in the guarded holdout, by whatever name it goes. Volumes that are
    not in the campaign join it (see `join_campaign`) when one of their places is queued, and only then.

    Parameters
    ----------
    campaign : Campaign
        Whose people correct them.
    store : QueueStore
        Its queue.
    folder : DeliveryFolder
        The delivery, labels written.
    sources : sequence of SourceVolume
        The delivered volumes, their maps finished.
    count : int
        How many are to be open.
    progress : callable, optional
        Called with what is counted, how many are done and how many there are.

    Returns
    -------
    list of str
        Ids of the new tickets, the most doubtful first.

    Raises
    ------
    QueueError
        If a volume has to join the campaign, and a generation is running.
    InferenceError
        If maps are not finished.
    StorageError
        If labels or images are missing or damaged.
    """
    names = {source.volume_id for source in sources}
    tickets = store.views.tickets()
    waiting = [t for t in tickets if t.stratum == PROOFREADING and t.volume_id in names and t.status in _OPEN]
    missing = count - len(waiting)
    if missing < 1:
        return []
    ensure_compared(campaign.volumes, progress)
    half = [name for name in names.intersection(campaign.volumes.ids()) if not _is_covered(campaign, name)]
    given = _joined(campaign, store, folder, sources, half, progress)  # those whose joining was killed
    occupied = [ticket.patch for ticket in tickets]
    while True:
        places = doubtful_places(campaign, given, missing, occupied)
        before, given = given, _joined(campaign, store, folder, given, {place.volume_id for place in places}, progress)
        if given == before or are_free(campaign, given, places, occupied):
            break
    new = [_new_ticket(campaign, folder, place) for place in places]
    store.tickets.add(new)
    return [ticket.ticket_id for ticket in new]


def _is_covered(campaign: Campaign, volume_id: str) -> bool:
    holdout = campaign.holdout()
    return holdout is not None and holdout.covers(volume_id)


def _joined(
    campaign: Campaign,
    store: QueueStore,
    folder: DeliveryFolder,
    sources: Sequence[SourceVolume],
    volume_ids: Collection[str],
    progress: Progress | None,
) -> list[SourceVolume]:
    """Return the sources, those of some volumes in the campaign, compared with all that are in it."""
    url, joined = campaign.volumes.url, []
    for source in sources:
        if source.volume_id in volume_ids and source.volumes_url != url:
            join_campaign(campaign, store, folder, source.volume_id, progress)
            joined.append(replace(source, volumes_url=url))
        else:
            joined.append(source)
    ensure_compared(campaign.volumes, progress)
    return joined


def _new_ticket(campaign: Campaign, folder: DeliveryFolder, place: DoubtfulPlace) -> NewTicket:
    """Return the ticket of a place, the delivered labels stored as its first mask."""
    snapshots = [generation.number for generation in campaign.generations() if generation.snapshot() is not None]
    ticket = make_ticket(
        campaign.config,
        max(snapshots, default=-1) + 1,
        place.patch,
        "pool",
        stratum=PROOFREADING,
        reason=f"doubtful in the delivery: mean entropy {place.entropy:.3f} nat",
        score=place.entropy,
    )
    labels = folder.image_url(place.volume_id) + "/labels"
    mask = np.asarray(open_level(f"{labels}/{MASK}")[place.box.slices])
    path = DELIVERED_LABELS.path(ticket=ticket.ticket_id)
    record = folder.records.read(folder.volume_record(place.volume_id))
    if campaign.config.annotation.labels == "instance" and record is not None and OBJECTS in record.labels:
        ids = np.asarray(open_level(f"{labels}/{OBJECTS}")[place.box.slices])
        mask = (ids > 0).astype(np.uint8)
        numbers, index = np.unique(np.append(ids, 0), return_inverse=True)
        local = np.arange(len(numbers), dtype=np.uint32)[index[:-1]].reshape(ids.shape)
        campaign.storage.write_array(path, local)
    else:
        campaign.storage.write_array(path, mask)
    return ticket.model_copy(update={"prefill": path, "classes": class_names(campaign.config.classes, mask)})


# volumes that were not in the campaign --------------------------------------------------------------------------------


def join_campaign(
    campaign: Campaign, store: QueueStore, folder: DeliveryFolder, volume_id: str, progress: Progress | None = None
) -> VolumeRecord:
    """Make a volume that was imported for a delivery one of the campaign, from the copy in the delivery's work folder.

    It keeps the intensity scale that its labels were made with, and the domain where the campaign has that one; else it gets
    a domain of its own. It is marked as looked through by the sampling of the holdout: no holdout box is ever drawn in it. A
    rerun changes nothing.

    Parameters
    ----------
    campaign : Campaign
        Where it goes.
    store : QueueStore
        Its queue, which keeps the lock.
    folder : DeliveryFolder
        The delivery.
    volume_id : str
        Its name, there and then.
    progress : callable, optional
        Called while it is copied.

    Raises
    ------
    StorageError
        If the delivery has no copy of it, or an image file is damaged.
    QueueError
        If a generation is running: its volumes stay as they are.
    VolumeError
        If the campaign has another volume of that name.
    """
    new = new_volume(folder, volume_id)
    if new is None:
        raise StorageError(
            f"the copy of volume '{volume_id}' is gone", where=folder.work_url(), todo="Deliver the file again"
        )
    holdout = campaign.holdout()
    if holdout is not None and volume_id in holdout.volumes and volume_id in campaign.volumes.ids():
        return campaign.volumes.record(volume_id)
    with campaign_lock(campaign.config, store):
        if volume_id not in campaign.volumes.ids():
            copy = VolumeFolder(Storage(folder.work_url())).image_url(volume_id)
            report = None if progress is None else lambda done, total: progress(f"join {volume_id}", done, total)
            import_volume(campaign, VolumeImport(copy, volume_id, spacing=new.record.spacing_um_zyx), report)
        record = campaign.volumes.record(volume_id)
        if record.digest != new.record.digest:
            raise VolumeError(
                f"the campaign has another volume '{volume_id}'",
                where=campaign.volumes.url,
                todo="Rename the file, and deliver it elsewhere",
            )
        _put_in_domain(campaign.volumes, record, new.record)
        if (holdout := campaign.holdout()) is not None and volume_id not in holdout.volumes:
            known = holdout.volumes or tuple(name for name in campaign.volumes.ids() if name != volume_id)
            campaign.freeze_holdout(holdout.model_copy(update={"volumes": (*known, volume_id)}))
    return campaign.volumes.record(volume_id)


def _put_in_domain(volumes: VolumeFolder, record: VolumeRecord, delivered: VolumeRecord) -> None:
    """Give a volume the domain and the scaling of its delivery, unless the campaign has put it in one meanwhile."""
    domains, name = volumes.domains(), record.volume_id
    if domains.of(name) is not None:
        return
    domain = _domain_name(volumes, domains, delivered)
    kept = ("source", "hints", "placement", "normalisation")
    as_delivered = {field: getattr(delivered, field) for field in kept}
    volumes.save(record.model_copy(update={**as_delivered, "domain": domain}))
    if not domains.domains:
        return
    alone = Domain(
        name=domain,
        spacing_um_zyx=delivered.spacing_um_zyx,
        normalisation=delivered.normalisation,
        volumes={},
    )
    joined = next((d for d in domains.domains if d.name == domain), alone)
    larger = joined.model_copy(update={"volumes": {**joined.volumes, name: delivered.normalisation}})
    others = tuple(d for d in domains.domains if d.name != domain)
    volumes.save_domains(Domains(domains=(*others, larger), refused=domains.refused))


def _domain_name(volumes: VolumeFolder, domains: Domains, delivered: VolumeRecord) -> str:
    """Return the domain that a delivered volume has in the campaign.

    Its name was chosen beside the volumes that the model has learned from alone: a domain of another scaling may have it here.
    Where no domains are recorded, the name that any import gets says nothing of what is in it, and stays.
    """
    name = delivered.domain
    if not domains.domains and name == default_domain(delivered.dtype, delivered.spacing_um_zyx):
        return name
    records = [r for r in volumes.records(refused=True) if r.volume_id != delivered.volume_id]
    names = {*(r.domain for r in records), *(d.name for d in domains.domains)}
    scalings = [r.normalisation for r in records if r.domain == name]
    scalings += [d.normalisation for d in domains.domains if d.name == name]
    if name not in names or any(_same_scaling(delivered.normalisation, other) for other in scalings):
        return name
    return free_name(name, names)


def _same_scaling(one: Normalisation, other: Normalisation) -> bool:
    """Tell whether two scalings are the same up to a gain and an offset of the microscope."""
    first, second = list(_shape(one)), list(_shape(other))
    return len(first) == len(second) and all(map(_close, first, second))


def _shape(scaling: Normalisation) -> Iterator[float]:
    """Yield, channel by channel, what no gain and no offset changes."""
    for channel in scaling.per_channel or (scaling,):
        yield (channel.low - channel.mean) / channel.std
        yield (channel.high - channel.mean) / channel.std


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
