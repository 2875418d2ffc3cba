"""Immutable training sets, and the guard that keeps the holdout out of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rescueseg.campaign import Campaign
from rescueseg.errors import LeakError, SamplingError
from rescueseg.geometry import ZYX, Box
from rescueseg.records import Holdout, Snapshot, SnapshotItem
from rescueseg.shared_places import SharedPlaces
from rescueseg.storage import digest_json

if TYPE_CHECKING:
    from rescueseg.records import AcceptedAnnotation


def make_snapshot(campaign: Campaign, generation: int, accepted: Sequence[AcceptedAnnotation]) -> Snapshot:
    """Return the training set of a generation: accepted annotations with what may be read around each.

    The same annotations give the same snapshot, in whatever order they come. Nothing is written.

    Parameters
    ----------
    campaign : Campaign
        Its holdout must be frozen.
    generation : int
        The generation that trains on it.
    accepted : sequence of AcceptedAnnotation
        Accepted pool annotations, one per ticket; those in refused volumes are left out, and those of
        `in_holdout_of_copies`.

    Returns
    -------
    Snapshot
        Items by ticket id. `read_box` is the annotated box grown by the guard band, cut to the volume and to
        what is clear of every holdout box.

    Raises
    ------
    SamplingError
        If the holdout is not frozen yet, or nothing was accepted in a volume that may be used.
    LeakError
        If an annotation lies in a holdout box of its own volume, all lie in holdout boxes, or one was made for the holdout.
    CampaignError
        If an annotation names a volume that the campaign does not have.
    """
    holdout = campaign.holdout()
    if holdout is None:
        raise SamplingError("the holdout is not frozen yet", where=campaign.url, todo="Draw the holdout first")
    if not accepted:
        raise SamplingError(
            f"generation {generation} has no accepted annotation to train on",
            where=campaign.url,
            todo="Annotate a patch and have it accepted",
        )
    _require_pool(accepted)
    records = {v: campaign.volumes.record(v) for v in sorted({a.volume_id for a in accepted})}
    shapes, places = {v: record.shape_zyx for v, record in records.items()}, campaign.volumes.shared_places()
    accepted = [a for a in accepted if not records[a.volume_id].refused]
    if not accepted:
        raise SamplingError(
            f"all accepted annotations lie in refused volumes: {', '.join(records)}",
            where=campaign.url,
            todo="See why with 'rescueseg status', and add volumes that can be used",
        )
    hidden = {a.ticket_id for a in in_holdout_of_copies(holdout, accepted, places)}
    if len(hidden) < len(accepted):  # where nothing else is left, it is refused below, by name
        accepted = [a for a in accepted if a.ticket_id not in hidden]
    items = tuple(
        SnapshotItem(
            ticket_id=a.ticket_id,
            volume_id=a.volume_id,
            box=a.box,
            read_box=clear_box(
                a.box, shapes[a.volume_id], holdout.guard_zyx, holdout.of(a.volume_id, places), a.ticket_id
            ),
            annotation_id=a.annotation_id,
            labels=a.labels,
            labels_digest=a.labels_digest,
            instances=a.instances,
            instances_digest=a.instances_digest,
        )
        for a in sorted(accepted, key=lambda a: a.ticket_id)
    )
    guard(holdout, items, places)
    n_classes, holdout_digest = campaign.config.n_classes, campaign.holdout_digest()
    return Snapshot(
        generation=generation,
        items=items,
        n_classes=n_classes,
        holdout_digest=holdout_digest,
        digest=snapshot_digest(items, n_classes, holdout_digest),
    )


def snapshot_digest(items: Iterable[SnapshotItem], n_classes: int, holdout_digest: str) -> str:
    """Return the digest of a training set.

    An annotation never changes, so its id stands for its objects too, and the digests of older snapshots stay.
    """
    annotated = [item.model_dump(mode="json", exclude={"instances", "instances_digest"}) for item in items]
    return digest_json([annotated, n_classes, holdout_digest])


def in_holdout_of_copies(
    holdout: Holdout, accepted: Iterable[AcceptedAnnotation], places: SharedPlaces
) -> list[AcceptedAnnotation]:
    """Return the annotations that lie in a holdout box under another name only.

    They were made before anybody knew that two volumes show the same; nobody can undo that, so no training reads them.

    Parameters
    ----------
    holdout : Holdout
        The frozen boxes.
    accepted : iterable of AcceptedAnnotation
        Accepted annotations.
    places : SharedPlaces
        Which places of the volumes are the same.
    """
    own = SharedPlaces(places.shapes)
    boxes: dict[str, tuple[list[Box], list[Box]]] = {}
    found = []
    for annotation in accepted:
        name = annotation.volume_id
        if name not in boxes:
            boxes[name] = holdout.of(name, places), holdout.of(name, own)
        in_any, in_own = (any(annotation.box.intersects(box) for box in part) for part in boxes[name])
        found += [annotation] if in_any and not in_own else []
    return found


def _require_pool(accepted: Iterable[AcceptedAnnotation]) -> None:
    for annotation in accepted:
        if annotation.purpose != "pool":
            raise LeakError(
                f"an annotation made for the {annotation.purpose} boxes is never trained on",
                where=annotation.ticket_id,
                todo="Take the annotations of pool tickets only",
            )


def clear_box(box: Box, shape_zyx: ZYX, context_zyx: ZYX, holdout: Iterable[Box], name: str = "") -> Box:
    """Grow a box by its context as far as the volume and the holdout allow.

    Parameters
    ----------
    box : Box
        Annotated voxels.
    shape_zyx : tuple of int
        Shape of the volume.
    context_zyx : tuple of int
        Context in voxels on both sides of each axis, where there is room for it.
    holdout : iterable of Box
        Holdout boxes in the volume, those of volumes that share places with it among them, without their guard.
    name : str
        Ticket id, for the error message.

    Returns
    -------
    Box
        Contains `box` and shares no voxel with any holdout box. Where the full context would, the side that
        faces the holdout box is moved back; of several such sides the one that leaves most voxels.

    Raises
    ------
    LeakError
        If `box` itself overlaps a holdout box.

    Examples
    --------
    The context of 4 voxels would reach into the holdout box on the right; that side is moved back:

    >>> patch, holdout_box = Box((0, 8, 8), (8, 16, 16)), Box((0, 8, 26), (8, 16, 16))
    >>> print(clear_box(patch, (8, 64, 64), (0, 4, 4), [holdout_box]))
    [0:8, 4:28, 4:26]
    """
    read = box.expand(context_zyx).clip(shape_zyx)
    for holdout_box in sorted(holdout):
        if box.intersects(holdout_box):
            raise LeakError(
                f"the annotated box {box} overlaps the holdout box {holdout_box}",
                where=name,
                todo="Skip this ticket; holdout boxes are never trained on",
            )
        if read.intersects(holdout_box):
            read = max(_cuts(read, box, holdout_box), key=lambda cut: cut.size)
    return read


def _cuts(read: Box, box: Box, holdout_box: Box) -> list[Box]:
    """Return `read` cut back along each side on which the holdout box lies beyond `box`."""
    cuts = []
    for axis in range(3):
        start, stop = list(read.offset_zyx), list(read.stop_zyx)
        if holdout_box.offset_zyx[axis] >= box.stop_zyx[axis]:
            stop[axis] = holdout_box.offset_zyx[axis]
            cuts.append(Box.from_bounds(start, stop))
        elif holdout_box.stop_zyx[axis] <= box.offset_zyx[axis]:
            start[axis] = holdout_box.stop_zyx[axis]
            cuts.append(Box.from_bounds(start, stop))
    return cuts


def guard(holdout: Holdout, items: Iterable[SnapshotItem], places: SharedPlaces) -> None:
    """Make sure that no voxel that training reads lies in a holdout box, whatever the volume is called there.

    Parameters
    ----------
    holdout : Holdout
        The frozen boxes, both parts.
    items : iterable of SnapshotItem
        What training is about to read.
    places : SharedPlaces
        Which places of the volumes are the same; see `rescueseg.campaign.Campaign.shared_places`.

    Raises
    ------
    LeakError
        At the first item whose annotated or read box touches a holdout box.
    """
    for item in items:
        for box in holdout.of(item.volume_id, places):
            if item.read_box.intersects(box) or item.box.intersects(box):
                raise LeakError(
                    f"training would read {item.read_box}, which touches the holdout box {box}",
                    where=f"{item.volume_id}, ticket {item.ticket_id}",
                    todo="Skip this ticket, or read less around it",
                )
