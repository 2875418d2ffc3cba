"""Where the structure probably is, told from one annotated patch or from scribbles, before the holdout is drawn.

A quick pixel classifier (`rescueseg.weak_labels.classifier`) learns from the hint and looks at some hundred voxels of each place
that could be sampled. It only chooses places: nothing is trained on what it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.config import CampaignConfig
from rescueseg.errors import SamplingError, WeakLabelError
from rescueseg.geometry import Box, Floats, Patch, zyx
from rescueseg.labels import IGNORE
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore
from rescueseg.randomness import random_generator
from rescueseg.records import Holdout, VolumeRecord
from rescueseg.sampling.holdout import expected_shapes
from rescueseg.sampling.patches import Hint, volume_reader
from rescueseg.sampling.starting_patches import EXAMPLE, EXAMPLE_REASON
from rescueseg.sampling.strata import HINTED_HOLDOUT_STRATA
from rescueseg.stages.ticket_making import make_ticket
from rescueseg.volumes.comparison import ensure_compared
from rescueseg.volumes.normalise import normalise
from rescueseg.weak_labels.classifier import PixelClassifier, features, train_classifier
from rescueseg.weak_labels.methods import AnnotatedPatch
from rescueseg.weak_labels.scribbles import read_accepted, read_scribbles, scribbled_volumes

LOOKED_AT, LOOKED_IN = 500, 2**14
"""Voxels of a place that the classifier looks at, and in how many around its middle they are drawn."""

_THREE_NUMBERS = re.compile(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*){2}")


def ask_example(campaign: Campaign, store: QueueStore, place: str) -> str:
    """Queue a patch at a place as the campaign's example, before anything is sampled; return its ticket's id.

    It is training data: it is written down first, so that no holdout box will touch it.

    Parameters
    ----------
    campaign : Campaign
        Without a holdout yet.
    store : QueueStore
        Its queue.
    place : str
        ``VOLUME:z,y,x``, the middle of the patch in voxels; without ``VOLUME:`` where there is one volume.

    Raises
    ------
    SamplingError
        If the holdout is frozen, the place is none, was skipped, shows a volume that is held out whole, or is too near to
        another example or a patch of the rough mask. In an example it is that one.
    """
    if campaign.holdout() is not None:
        raise SamplingError(
            "the holdout is frozen: an example cannot tell any more where to draw it",
            where=campaign.url,
            todo="Annotate the patches that are queued",
        )
    volume, middle = parse_place(place, campaign.volumes.records())
    ensure_compared(campaign.volumes)
    store.migrate()
    examples, skipped = campaign.example_patches(), skipped_examples(campaign, lambda: store)
    current, point = [p for p in examples if p not in skipped], Box(zyx(middle), (1, 1, 1))
    patch = next((p for p in current if p.volume_id == volume.volume_id and p.box.contains(point)), None)
    if patch is None:
        patch = _around(campaign, volume, middle, skipped)
        if patch in skipped:
            ticket_id = _ticket(campaign.config, patch).ticket_id
            raise SamplingError(
                f"the example there, {ticket_id}, was skipped",
                where=volume.volume_id,
                todo=f"Choose another place, or take it up again: rescueseg queue next {campaign.url} --ticket {ticket_id}",
            )
        _check_apart(campaign, patch, current)
        campaign.save_example_patches([*examples, patch])
    queue_examples(campaign, store)
    return _ticket(campaign.config, patch).ticket_id


def queue_examples(campaign: Campaign, store: QueueStore) -> None:
    """Make the tickets of examples that have none yet: a process may have been killed before it did."""
    usable = {v.volume_id for v in campaign.volumes.records()}
    if examples := [p for p in campaign.example_patches() if p.volume_id in usable]:
        store.tickets.add([_ticket(campaign.config, p) for p in examples])


def skipped_examples(campaign: Campaign, store: Callable[[], QueueStore]) -> list[Patch]:
    """Return the examples that were skipped in the queue: nothing waits for them, and nothing is learned from them.

    Parameters
    ----------
    campaign : Campaign
        With example patches, or not.
    store : callable
        Opens its queue; called only where there is an example.
    """
    examples = campaign.example_patches()
    skipped = {t.patch for t in store().views.tickets("skipped", "pool")} if examples else set()
    return [p for p in examples if p in skipped]


def _ticket(config: CampaignConfig, patch: Patch) -> NewTicket:
    return make_ticket(config, 0, patch, "pool", stratum=EXAMPLE, reason=EXAMPLE_REASON, score=1.0)


def _around(campaign: Campaign, volume: VolumeRecord, middle: Sequence[int], skipped: Sequence[Patch]) -> Patch:
    """Return a patch of the expected shape around a voxel."""
    shape = expected_shapes(campaign, skipped)[volume.volume_id]
    start = [min(max(0, m - n // 2), limit - n) for m, n, limit in zip(middle, shape, volume.shape_zyx, strict=True)]
    return Patch(volume.volume_id, Box(zyx(start), shape))


def _check_apart(campaign: Campaign, patch: Patch, examples: Sequence[Patch]) -> None:
    """Refuse an example where something is annotated already, or nothing may be."""
    places = campaign.volumes.shared_places()
    for name in campaign.config.holdout.volumes:
        if places.boxes_in(name, [patch]):
            raise SamplingError(
                f"a patch there would show '{name}', which is held out whole",
                where=patch.volume_id,
                todo="Choose a place in another volume",
            )
    for what, others in (("the example", examples), ("a patch of the rough mask,", campaign.rough_patches())):
        for other in places.boxes_in(patch.volume_id, others):
            if patch.box.intersects(other):
                raise SamplingError(
                    f"a patch there, {patch.box}, would share voxels with {what} {other}",
                    where=patch.volume_id,
                    todo="Choose a place further away",
                )


def parse_place(text: str, volumes: Sequence[VolumeRecord]) -> tuple[VolumeRecord, tuple[int, ...]]:
    """Read ``VOLUME:z,y,x``.

    Raises
    ------
    SamplingError
        If it is not written so, or lies in no volume.
    """
    name, colon, numbers = text.rpartition(":")
    known = {v.volume_id: v for v in volumes}
    if not colon and len(known) == 1:
        name = next(iter(known))
    middle = tuple(map(int, numbers.split(","))) if _THREE_NUMBERS.fullmatch(numbers) else ()
    if name not in known or not middle or any(m >= n for m, n in zip(middle, known[name].shape_zyx, strict=True)):
        sizes = ", ".join(f"{v.volume_id} ({'×'.join(map(str, v.shape_zyx))})" for v in volumes)
        raise SamplingError(
            "this is no place in a volume",
            where=f"--example {text}",
            todo=f"Write VOLUME:z,y,x in voxels from 0, such as in a viewer's status line; volumes: {sizes}",
        )
    return known[name], middle


def hint_of(campaign: Campaign, store: Callable[[], QueueStore], scribbles: Sequence[str] = ()) -> Hint | None:
    """Return what tells how much of a place is structure, None where the campaign has no hint or was sampled already.

    A run that was killed between the holdout and the starting patches gets the same hint again.

    Parameters
    ----------
    campaign : Campaign
        With example patches, or not.
    store : callable
        Opens its queue; called only where there is an example.
    scribbles : sequence of str
        Label images of volumes; see `rescueseg.weak_labels.scribbles.scribbled_volumes`.

    Raises
    ------
    SamplingError
        If an example waits for its annotation: the holdout is frozen for good. If scribbles come too late, nothing of the
        structure is drawn, or those that the holdout was drawn with are missing.
    """
    holdout, is_sampled = campaign.holdout(), campaign.starting_patches() is not None
    if scribbles and (is_sampled or (holdout is not None and not drawn_by_hint(holdout))):
        raise SamplingError(
            "the holdout is frozen: scribbles cannot tell any more where to draw it",
            where=campaign.url,
            todo=f"Leave --scribbles out: 'rescueseg sample {campaign.url}' queues what is missing",
        )
    if is_sampled:
        return None
    patches = _examples(campaign, store()) if campaign.example_patches() else []
    files = scribbled_volumes(scribbles, {v.volume_id: v for v in campaign.volumes.records()})
    patches += _scribbled(campaign, files)
    if not patches and holdout is not None and drawn_by_hint(holdout):
        raise SamplingError(
            "the holdout was drawn by scribbles, and the run that froze it did not come to the starting patches",
            where=campaign.url,
            todo=f"Give the same once more: rescueseg sample {campaign.url} --scribbles VOLUME=FILE",
        )
    return hint_from(campaign, patches, files) if patches else None


def drawn_by_hint(holdout: Holdout) -> bool:
    """Tell whether a hint told where to draw a holdout; the first box of one that was drawn without is `dense`."""
    return bool(holdout.all_boxes) and all(box.stratum in HINTED_HOLDOUT_STRATA for box in holdout.all_boxes)


def hint_from(campaign: Campaign, patches: Sequence[AnnotatedPatch], files: Mapping[str, str] | None = None) -> Hint:
    """Return the hint that annotated patches give.

    Parameters
    ----------
    campaign : Campaign
        Its volumes are looked at; its classes and seed count.
    patches : sequence of AnnotatedPatch
        At least one.
    files : mapping of str to str, optional
        Files that hold scribbles, by volume; without any, the patches are annotated whole.

    Raises
    ------
    SamplingError
        If they hold one label alone.
    """
    config = campaign.config
    try:
        classifier = train_classifier(
            [p.image for p in patches],
            [p.labels for p in patches],
            [p.spacing_um_zyx for p in patches],
            config.n_classes,
            dense=not files,
            seed=config.seed,
        )
    except WeakLabelError as error:
        what = "the scribbles tell" if files else "the example tells"
        more = (
            f"Give one more, where structure and background are: rescueseg sample {campaign.url} --example VOLUME:z,y,x"
        )
        raise SamplingError(
            f"{what} nothing about where the structure is: {error.what}",
            where=_named(files) if files else campaign.url,
            todo="Draw some of the structure and some of the background" if files else more,
        ) from error
    return partial(_shares, campaign.volumes, classifier, config.seed)


def _examples(campaign: Campaign, store: QueueStore) -> list[AnnotatedPatch]:
    """Read the accepted examples; those that were skipped tell nothing."""
    tickets = {t.patch: t for t in store.views.tickets(purpose="pool")}
    usable = {v.volume_id for v in campaign.volumes.records()}
    for patch in campaign.example_patches():
        ticket = tickets.get(patch)
        if ticket is None and patch.volume_id in usable:
            raise SamplingError(
                f"the example {patch.box} is not queued yet, and a holdout is frozen for good",
                where=patch.volume_id,
                todo=f"Queue it, then annotate it first: rescueseg sample {campaign.url}",
            )
        if ticket is not None and ticket.status not in _SETTLED:
            raise SamplingError(
                f"the example {ticket.ticket_id} is not annotated yet, and a holdout is frozen for good",
                where=campaign.url,
                todo=f"Annotate it first: 'rescueseg queue next {campaign.url} --ticket {ticket.ticket_id}', or skip it",
            )
    places, shared = set(campaign.example_patches()), campaign.volumes.shared_places()
    accepted = [a for a in store.views.accepted("pool") if a.patch in places]
    return [read_accepted(campaign.volumes, a, campaign.config.n_classes, None, shared) for a in accepted]


_SETTLED = ("accepted", "skipped")


def _scribbled(campaign: Campaign, files: Mapping[str, str]) -> list[AnnotatedPatch]:
    """Read scribbles, by volume; something must be drawn in each file, and the structure in one of them at least.

    A box of the holdout that lies in them is read too: what they say only chooses places.
    """
    patches: list[AnnotatedPatch] = []
    empty = {}
    for name, file in files.items():
        drawn = list(read_scribbles(campaign, campaign.volumes.record(name), file, guarded=False))
        if not drawn:
            empty[name] = file
        patches += drawn
    if files and not any(((p.labels > 0) & (p.labels != IGNORE)).any() for p in patches):
        empty = dict(files)
    if empty:
        raise SamplingError(
            "nothing of the structure is drawn",
            where=_named(empty),
            todo="Draw some of it as 1…K and some of the background as 0; 255 is what is not drawn",
        )
    return patches


def _named(files: Mapping[str, str]) -> str:
    """Name files and the volumes that they are drawn on, for messages."""
    return ", ".join(f"{file} on volume '{name}'" for name, file in files.items())


def _shares(
    folder: VolumeFolder, classifier: PixelClassifier, seed: int, volume: VolumeRecord, boxes: Sequence[Box]
) -> Floats | None:
    """Return the share of each box that is structure by the classifier, float64 (n,); None for other channels."""
    if volume.channels != classifier.channels:
        return None
    read, rng = volume_reader(folder, volume), random_generator(seed, "hint", volume.volume_id)
    background = int(np.flatnonzero(classifier.forest.classes_ == 0)[0]) if 0 in classifier.forest.classes_ else None
    if background is None:
        return np.ones(len(boxes))
    tables = []
    for box in boxes:
        image = normalise(read(_middle(box)), volume.normalisation)
        table = features(image, volume.spacing_um_zyx, classifier.scales_um).reshape(-1, image[0].size)
        tables.append(table[:, rng.integers(image[0].size, size=LOOKED_AT)].T)
    if not tables:
        return np.zeros(0)
    is_structure = classifier.forest.predict_proba(np.concatenate(tables))[:, background] < 0.5
    return np.asarray(is_structure.reshape(len(boxes), LOOKED_AT).mean(axis=1), np.float64)


def _middle(box: Box) -> Box:
    """Return the middle of a box, of its own proportions, with at most `LOOKED_IN` voxels."""
    shrink = min(1.0, (LOOKED_IN / box.size) ** (1 / 3))
    shape = [max(1, int(n * shrink)) for n in box.shape_zyx]
    return Box(zyx(o + (n - m) // 2 for o, n, m in zip(box.offset_zyx, box.shape_zyx, shape, strict=True)), zyx(shape))
