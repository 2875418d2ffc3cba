"""A delivery: what is to be delivered, one volume after the other, and what closes it. Each can be killed and called again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import check_id
from rescueseg.delivery.corrections import merge_corrections
from rescueseg.delivery.delivered_image import arrays_identity, create_delivered_image
from rescueseg.delivery.export import export_labels
from rescueseg.delivery.folder import MASK, OBJECTS, PROGRESS, DeliveryFolder
from rescueseg.delivery.joined_tables import join_tables
from rescueseg.delivery.label_pyramid import add_label_pyramid
from rescueseg.delivery.masks import make_mask
from rescueseg.delivery.new_volumes import NewVolumes, expand, new_volume
from rescueseg.delivery.object_table import write_table
from rescueseg.delivery.objects import make_objects
from rescueseg.delivery.places import keep_places
from rescueseg.delivery.records import DELIVERY, RULE, DeliveredVolume, Delivery, DeliveryRule
from rescueseg.delivery.request import (
    DeliveryModel,
    Format,
    SegmentRequest,
    campaign_id,
    check_request,
    delivery_model,
    require_same,
)
from rescueseg.delivery.rule import choose_rule, is_current, makes_what_is_asked
from rescueseg.delivery.scores import delivered_scores
from rescueseg.delivery.sources import is_of_another_rule, labels_digest, make_maps, source_of
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.errors import CampaignError, InferenceError, RescuesegError, UnreadableVolumeError, VolumeError
from rescueseg.progress import CountProgress, Progress
from rescueseg.queue.store import QueueStore
from rescueseg.records import Record
from rescueseg.reports.delivery_page import write_page
from rescueseg.stages.proofreading import queue_places
from rescueseg.storage import digest_json
from rescueseg.volumes.image_layout import choose_chunks

if TYPE_CHECKING:
    from distributed import Client

_NOTE_EVERY = 1.0
"""Seconds between two notes of progress."""


class Targets(Record):
    """What is to be delivered."""

    request: SegmentRequest
    """What was asked for, with what it left open."""
    volumes: tuple[str, ...]
    failures: dict[str, str]
    """Reason by file: those that could not be imported."""


def prepare(campaign: Campaign, request: SegmentRequest, progress: Progress) -> Targets:
    """Import the files, choose the rule, and write what the delivery is made with.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    request : SegmentRequest
        What is asked for.
    progress : callable
        Called with what is counted, how many are done and how many there are.

    Returns
    -------
    Targets
        The volumes; those that were delivered by another rule are among them, so that all have the same.

    Raises
    ------
    RescuesegError
        If the place, the model or all of the files are of no use.
    """
    request = check_request(campaign, request)
    chosen, folder = delivery_model(campaign, request), DeliveryFolder(request.out)
    note = _Noted(folder, progress)
    volumes, failures = list(request.volumes), dict[str, str]()
    new = NewVolumes(campaign, folder, chosen.trained)
    for file in expand(request.files, request.template)[0]:
        try:
            volumes.append(new.add(file, note).record.volume_id)
        except RescuesegError as error:
            failures[file.path] = str(error)
    if failures and not volumes:
        raise UnreadableVolumeError(
            f"none of the files can be delivered; the first: {next(iter(failures.values()))}", where=request.out
        )
    earlier = folder.records.read(DELIVERY)
    rule = _rule(campaign, chosen, request, earlier, note)
    delivery = Delivery(
        campaign_url=campaign.url,
        campaign_id=campaign_id(campaign),
        campaign_name=campaign.config.name,
        classes=tuple(campaign.config.classes),
        model=chosen.model,
        training=chosen.training,
        rule=rule,
        with_image=request.with_image is not False,
    )
    if earlier is None or (earlier.rule, earlier.with_image) != (rule, delivery.with_image):
        folder.records.write(DELIVERY, delivery)
    volumes += [v.volume_id for v in folder.delivered() if is_of_another_rule(campaign, folder, delivery, v)]
    return Targets(request=request, volumes=tuple(dict.fromkeys(volumes)), failures=failures)


def _rule(
    campaign: Campaign, chosen: DeliveryModel, request: SegmentRequest, earlier: Delivery | None, progress: Progress
) -> DeliveryRule:
    """Return the rule of this delivery so far, else that of the model, else choose it."""
    if earlier is not None and makes_what_is_asked(earlier.rule, campaign, request):
        return earlier.rule
    known = chosen.folder.read(RULE)
    if known is not None and is_current(known, campaign, chosen) and makes_what_is_asked(known, campaign, request):
        return known
    rule = choose_rule(
        campaign,
        chosen,
        with_objects=request.makes_objects(campaign),
        boundary_class=request.boundary_class,
        progress=progress,
    )
    chosen.folder.write(RULE, rule)
    return rule


def deliver(
    campaign: Campaign,
    store: QueueStore,
    request: SegmentRequest,
    volume_id: str,
    client: Client | None,
    progress: Progress,
) -> DeliveredVolume:
    """Deliver one volume: maps, mask, objects, corrections, pyramids, table, files; its record comes last.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue, with the corrections.
    request : SegmentRequest
        What is asked for.
    volume_id : str
        Of the campaign, or one that `prepare` imported.
    client : distributed.Client or None
        Where blocks are computed; in this process when None.
    progress : callable
        Called with what is counted, blocks done, blocks in all.

    Raises
    ------
    RescuesegError
        If the volume cannot be delivered; what is there of it goes on the next time.
    """
    started, folder = time.perf_counter(), DeliveryFolder(request.out)
    chosen, note = delivery_model(campaign, request), _Noted(folder, progress)
    delivery = _prepared(campaign, chosen, folder)
    source = source_of(campaign, folder, chosen, delivery, volume_id)
    record = source.volumes.record(volume_id)
    blocks = choose_chunks(record.shape_zyx)[1]
    target = TargetVolume(source, folder, delivery.rule, record.shape_zyx, record.spacing_um_zyx, blocks)
    digest = labels_digest(delivery, record)
    file = folder.volume_record(volume_id)
    known = folder.records.read(file)
    if known is None or known.digest != digest or not _is_there(target, known):
        make_maps(campaign, chosen, source, client, note.of(f"{volume_id}: maps"))
        files = known.files if known else ()
        known = _make_labels(target, request, digest, client, note).model_copy(update={"files": files})
    version = merge_corrections(campaign, store, target, digest)
    changed = version != known.version
    if changed or request.review:
        make_maps(
            campaign, chosen, source, client, note.of(f"{volume_id}: maps")
        )  # the table and the choice of places tell of them
    known = known.model_copy(update={"version": version})
    done = _bring_up_to_date(target, delivery, request.formats, known, client, note, changed=changed)
    if done != folder.records.read(file):
        done = done.model_copy(update={"seconds": round(known.seconds + time.perf_counter() - started, 1)})
        folder.records.write(file, done)
    for name in ("scratch", "passes"):
        folder.storage.remove(f"work/{name}/{check_id(volume_id, 'volume id')}")
    return done


def _prepared(campaign: Campaign, chosen: DeliveryModel, folder: DeliveryFolder) -> Delivery:
    """Return what the delivery is made with; nobody else may have taken the folder since it was prepared."""
    delivery = folder.records.read(DELIVERY)
    if delivery is None:
        raise CampaignError("the delivery was not prepared", where=folder.url, todo="Give the command again")
    require_same(campaign, delivery, chosen.model, folder.url)
    return delivery


def _is_there(target: TargetVolume, known: DeliveredVolume) -> bool:
    """Tell whether nobody has removed the labels since they were delivered."""
    labels = [f"{target.volume_id}.ome.zarr/labels/{name}/0/zarr.json" for name in known.labels]
    return all(target.out.storage.exists(path) for path in labels)


def _make_labels(
    target: TargetVolume, request: SegmentRequest, digest: str, client: Client | None, note: _Noted
) -> DeliveredVolume:
    """Write the labels of a volume at full resolution, and return what stands in its record when nothing is corrected."""

    def step(name: str, *given: str) -> Step:
        url = target.out.pass_url(target.volume_id, name)
        return Step(url, digest_json([digest, *given]), client, note.of(f"{target.volume_id}: {name}"))

    rule, labels = target.rule, (MASK, OBJECTS) if target.rule.objects else (MASK,)
    identity = create_delivered_image(
        target.image_url,
        target.source,
        step("image"),
        labels,
        target.block_zyx,
        with_image=request.with_image is not False,
    )
    make_mask(target, step("mask", identity))
    objects = make_objects(target, step("objects", identity)) if rule.objects else None
    new = new_volume(target.out, target.volume_id)
    return DeliveredVolume(
        volume_id=target.volume_id,
        source=new.path if new else target.source.volumes.record(target.volume_id).source,
        in_campaign=new is None,
        shape_zyx=target.shape_zyx,
        spacing_um_zyx=target.spacing_um_zyx,
        digest=digest,
        version=0,
        labels=labels,
        objects=objects,
        warnings=new.warnings if new else (),
    )


def _bring_up_to_date(
    target: TargetVolume,
    delivery: Delivery,
    formats: Sequence[Format],
    known: DeliveredVolume,
    client: Client | None,
    note: _Noted,
    *,
    changed: bool,
) -> DeliveredVolume:
    """Write pyramids and table when the labels have changed, and files that are missing or older."""
    identity = arrays_identity(target.image_url)

    def step(name: str) -> Step:
        url = target.out.pass_url(target.volume_id, name)
        digest = digest_json([known.digest, identity, known.version])
        return Step(url, digest, client, note.of(f"{target.volume_id}: {name}"))

    there = {file.format for file in known.files if target.out.storage.exists(file.path)}
    every = sorted({file.format for file in known.files}.union(formats))
    objects = known.objects
    if changed:
        for name in known.labels:
            pyramid = add_label_pyramid(
                target.image_url,
                name,
                step("pyramid"),
                target.spacing_um_zyx,
                delivery.classes if name == MASK else None,
            )
            objects = len(pyramid.ids) if name == OBJECTS else objects
        write_table(target, step("table"), delivery.classes)
    if changed or there != set(every):
        files = export_labels(target, step("files"), every)
        for path in {file.path for file in known.files}.difference(file.path for file in files):
            target.out.storage.remove(path)
        return known.model_copy(update={"objects": objects, "files": files})
    return known


def finish(campaign: Campaign, store: QueueStore, request: SegmentRequest, progress: Progress) -> Delivery:
    """Join the tables, score the masks on the test boxes, queue places for review, draw the summary page.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    request : SegmentRequest
        What was asked for.
    progress : callable
        Called with what is counted, how many are done and how many there are.

    Returns
    -------
    Delivery
        With its scores.
    """
    folder, chosen = DeliveryFolder(request.out), delivery_model(campaign, request)
    delivery = _prepared(campaign, chosen, folder)
    join_tables(folder)
    delivered = folder.delivered()
    sources = []
    for volume in delivered:
        with suppress(InferenceError, VolumeError):  # what its labels were made of is gone; they stay as they are
            sources.append(source_of(campaign, folder, chosen, delivery, volume.volume_id))
    scores, boxes = delivered_scores(campaign, folder, delivery, sources)
    delivery = delivery.model_copy(update={"scores": scores, "boxes": boxes})
    folder.records.write(DELIVERY, delivery)
    predicted = [source for source in sources if source.maps.reference()]
    keep_places(campaign, folder, predicted)
    write_page(folder)
    if request.review:
        tickets = queue_places(campaign, store, folder, predicted, request.review, _Noted(folder, progress))
        delivery = delivery.model_copy(update={"queued": len(tickets)})
        folder.records.write(DELIVERY, delivery)
    folder.storage.remove(PROGRESS.path())
    return delivery


class _Noted:
    """Progress that is also written into the delivery, for whoever looks on."""

    def __init__(self, folder: DeliveryFolder, progress: Progress) -> None:
        self._folder, self._progress, self._last = folder, progress, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        self._progress(what, done, total)
        if time.monotonic() - self._last > _NOTE_EVERY or done == total:
            self._last = time.monotonic()
            self._folder.records.write(PROGRESS, (what, done, total))

    def of(self, what: str) -> CountProgress:
        """Return the progress of one thing."""
        return lambda done, total: self(what, done, total)
