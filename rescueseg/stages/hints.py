"""Where the structure probably is, told from one annotated patch or from scribbles, before the holdout is drawn.

A quick pixel classifier (`rescueseg.weak_labels.classifier`) learns from the hint and looks at some hundred voxels of each place
that could be sampled. It only chooses places: nothing is trained on what it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.errors import SamplingError, WeakLabelError
from rescueseg.geometry import Box, Floats, Patch, zyx
from rescueseg.queue.store import QueueStore
from rescueseg.randomness import random_generator
from rescueseg.records import VolumeRecord
from rescueseg.sampling.holdout import expected_shapes
from rescueseg.sampling.patches import Hint, volume_reader
from rescueseg.sampling.starting_patches import EXAMPLE, EXAMPLE_REASON
from rescueseg.stages.ticket_making import make_ticket
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
        If the holdout is frozen, the place is none, or too near to another example. In an example it is that one.
    """
    if campaign.holdout() is not None:
        raise SamplingError(
            "the holdout is frozen: an example cannot tell any more where to draw it",
            where=campaign.url,
            todo="Annotate the patches that are queued",
        )
    volume, middle = parse_place(place, campaign.volumes.records())
    examples = campaign.example_patches()
    point = Box(zyx(middle), (1, 1, 1))
    patch = next((p for p in examples if p.volume_id == volume.volume_id and p.box.contains(point)), None)
    if patch is None:
        patch = _around(campaign, volume, middle)
        campaign.save_example_patches([*examples, patch])
    store.migrate()
    ticket = make_ticket(campaign.config, 0, patch, "pool", stratum=EXAMPLE, reason=EXAMPLE_REASON, score=1.0)
    store.tickets.add([ticket])
    return ticket.ticket_id


def _around(campaign: Campaign, volume: VolumeRecord, middle: Sequence[int]) -> Patch:
    """Return a patch of the expected shape around a voxel; it must not touch another example."""
    shape = expected_shapes(campaign)[volume.volume_id]
    start = [min(max(0, m - n // 2), limit - n) for m, n, limit in zip(middle, shape, volume.shape_zyx, strict=True)]
    box = Box(zyx(start), shape)
    for other in campaign.volumes.shared_places().boxes_in(volume.volume_id, campaign.example_patches()):
        if box.intersects(other):
            raise SamplingError(
                f"a patch there, {box}, would share voxels with the example {other}",
                where=volume.volume_id,
                todo="Choose a place further away",
            )
    return Patch(volume.volume_id, box)


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
        If an example waits for its annotation: the holdout is frozen for good.
    """
    if campaign.holdout() is not None or not (campaign.example_patches() or scribbles):
        return None
    patches = _examples(campaign, store()) if campaign.example_patches() else []
    records = {v.volume_id: v for v in campaign.volumes.records()}
    for name, file in scribbled_volumes(scribbles, records).items():
        patches += read_scribbles(campaign, records[name], file)
    return hint_from(campaign, patches, dense=not scribbles) if patches else None


def hint_from(campaign: Campaign, patches: Sequence[AnnotatedPatch], *, dense: bool) -> Hint:
    """Return the hint that annotated patches give.

    Parameters
    ----------
    campaign : Campaign
        Its volumes are looked at; its classes and seed count.
    patches : sequence of AnnotatedPatch
        At least one.
    dense : bool
        Whether they are annotated whole.

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
            dense=dense,
            seed=config.seed,
        )
    except WeakLabelError as error:
        raise SamplingError(
            f"the example tells nothing about where the structure is: {error.what}",
            where=campaign.url,
            todo="Give one more, where structure and background are: rescueseg sample CAMPAIGN --example VOLUME:z,y,x",
        ) from error
    return partial(_shares, campaign.volumes, classifier, config.seed)


def _examples(campaign: Campaign, store: QueueStore) -> list[AnnotatedPatch]:
    """Read the accepted examples; those that were skipped tell nothing."""
    places = set(campaign.example_patches())
    waiting = [t for t in store.views.tickets(purpose="pool") if t.patch in places and t.status not in _SETTLED]
    if waiting:
        raise SamplingError(
            f"the example {waiting[0].ticket_id} is not annotated yet, and a holdout is frozen for good",
            where=campaign.url,
            todo=f"Annotate it first: 'rescueseg queue next CAMPAIGN --ticket {waiting[0].ticket_id}', or skip it",
        )
    shared, n_classes = campaign.volumes.shared_places(), campaign.config.n_classes
    accepted = [a for a in store.views.accepted("pool") if a.patch in places]
    return [read_accepted(campaign.volumes, a, n_classes, None, shared) for a in accepted]


_SETTLED = ("accepted", "skipped")


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
