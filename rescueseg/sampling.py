"""Phase 1: which boxes are held out, and where annotation starts.

Volumes are never read whole: boxes are drawn on a grid, at most a few hundred of them are looked at, one by one
(see `strata`). Everything follows from the campaign's seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product, zip_longest
from typing import TypeVar

from rescueseg.campaign import Campaign
from rescueseg.errors import SamplingError
from rescueseg.geometry import ZYX, Box, Patch, choose_non_overlapping, zyx
from rescueseg.patches import (
    Drawing,
    boxes_on_grid,
    candidates,
    patch_shape,
    places_to_look,
    scaled_shape,
    volume_turns,
)
from rescueseg.records import Holdout, HoldoutBox, Part, QueriedPatch, VolumeRecord
from rescueseg.seeds import random_generator
from rescueseg.strata import HOLDOUT_STRATA, STARTING_STRATA

__all__ = ["candidate_boxes", "draw_holdout", "holdout_tickets", "patch_shape", "starting_patches", "undrawn_volumes"]

_SMALLER = (
    *((1.0, 8), (0.7, 8), (0.5, 8), (0.7, 6), (0.5, 6), (0.35, 8), (0.35, 6)),
    *((0.5, 4), (0.35, 4), (0.25, 4), (0.25, 3), (0.15, 3), (0.15, 2), (0.1, 1)),
)
"""Scales of a holdout box (voxels) with widths of its guard band (pixels in plane), tried in this order."""
_FEWER = ((1, 30), (1, 12), (2, 12), (4, 4), (8, 1))
"""Divisors of the number of boxes with the patches that must still fit beside them, tried in this order."""
_SPARE = 2
"""Patches more that must fit in a rehearsal, since the drawing itself lies elsewhere."""
_MOST_GUARDED = 0.7
"""Share of the voxels that the boxes may take with their guard bands."""

T = TypeVar("T")


def draw_holdout(campaign: Campaign, trained: Sequence[Patch] = ()) -> Holdout:
    """Return the frozen holdout; draw and freeze it at the first call, let it grow when volumes were added.

    Validation and test boxes take turns through the same strata (see `strata.HOLDOUT_STRATA`: the difficult ones
    are guaranteed, a quarter is drawn at random) and through the volumes by their size. Boxes never overlap each
    other. On small volumes boxes and guard band shrink until 30 patches fit beside them; on very small ones
    fewer boxes are drawn.

    Parameters
    ----------
    campaign : Campaign
        With at least one volume.
    trained : sequence of Patch
        Patches that were, or may soon be, trained on (those with a ticket); new boxes keep clear of them and of
        everything that earlier snapshots read.

    Returns
    -------
    Holdout
        Frozen boxes stay as they are; only volumes that it was not drawn from before add boxes.

    Raises
    ------
    SamplingError
        If there is no volume, or no room for a single validation and test box.
    """
    frozen, everything = campaign.holdout(), campaign.volumes()
    if not everything:
        raise SamplingError(
            "the campaign has no volume that may be used",
            where=campaign.url,
            todo="Add one with 'rescueseg add'; 'rescueseg status' shows the refused ones",
        )
    volumes = undrawn_volumes(campaign)
    if frozen and not volumes:
        return frozen
    blocked = _trained_boxes(campaign, trained)
    plans = _first_plans(campaign, volumes) if frozen is None else _growth_plans(campaign, volumes, frozen)
    drawn = next((d for plan in plans if (d := _draw_boxes(campaign, volumes, plan, blocked))), None)
    if frozen is None and drawn is None:
        raise SamplingError(
            "there is no room for a holdout and patches beside it",
            where=campaign.url,
            todo="Add a volume, or set holdout.box_zyx, holdout.guard_zyx and sampling.patch_zyx smaller",
        )
    boxes, guard_zyx = drawn or ((), (0, 0, 0))
    holdout = Holdout(
        boxes=(*(frozen.boxes if frozen else ()), *boxes),
        guard_zyx=frozen.guard_zyx if frozen else guard_zyx,
        volumes=tuple(v.volume_id for v in everything),
    )
    campaign.freeze_holdout(holdout)
    return holdout


def undrawn_volumes(campaign: Campaign) -> list[VolumeRecord]:
    """Return the volumes that the holdout was not drawn from yet: all before the first drawing."""
    frozen = campaign.holdout()
    seen = {*frozen.volumes, *(b.volume_id for b in frozen.boxes)} if frozen else set()
    return [v for v in campaign.volumes() if v.volume_id not in seen]


def holdout_tickets(campaign: Campaign, holdout: Holdout) -> list[HoldoutBox]:
    """Return the holdout boxes that people must annotate: those in volumes without ground truth.

    Parameters
    ----------
    campaign : Campaign
        Tells which volumes came with truth.
    holdout : Holdout
        The frozen boxes.

    Returns
    -------
    list of HoldoutBox
        Each with its volume, box, part (the ticket's purpose) and stratum. They become the first tickets, without a prefill.
    """
    truth = {v.volume_id for v in campaign.volumes() if v.truth is not None}
    return [box for box in holdout.boxes if box.volume_id not in truth]


def candidate_boxes(campaign: Campaign, volume_id: str, occupied: Iterable[Box] = ()) -> list[Box]:
    """Return the boxes of a volume that may be queried, in z, y, x order.

    Parameters
    ----------
    campaign : Campaign
        Its holdout must be frozen.
    volume_id : str
        The volume.
    occupied : iterable of Box
        Boxes of the volume that have a ticket already.

    Returns
    -------
    list of Box
        Patches on a grid of half a patch (coarser where that gives more than 100000), clear of every holdout
        box and its guard band, and of `occupied`. They overlap each other; `query.choose` takes none that do.
        None in a volume added since the holdout was last drawn: it has to grow first.

    Raises
    ------
    SamplingError
        If the holdout is not frozen yet.
    """
    holdout, volume = _frozen(campaign), campaign.volume(volume_id)
    if not _covers(holdout, volume_id):
        return []
    return list(candidates(campaign.config, volume, [*holdout.guarded(volume_id), *occupied]))


def starting_patches(
    campaign: Campaign, count: int | None = None, occupied: Sequence[Patch] = ()
) -> list[QueriedPatch]:
    """Draw the patches that generation 0 is trained on.

    Strata take turns, those that promise objects first (see `strata.STARTING_STRATA`), and so do the volumes,
    by their size. No label is looked at: a live campaign has none.

    Parameters
    ----------
    campaign : Campaign
        Its holdout must be frozen.
    count : int, optional
        Patches to draw; `sampling.starting_patches` when omitted.
    occupied : sequence of Patch
        Patches that have a ticket already.

    Returns
    -------
    list of QueriedPatch
        At most `count` patches, fewer where no more fit; they overlap neither each other nor the guarded
        holdout. The score falls from 1 in the order of drawing, so that annotators get them in this order.

    Raises
    ------
    SamplingError
        If the holdout is not frozen yet, or nothing fits.
    """
    count = campaign.config.sampling.starting_patches if count is None else count
    holdout = _frozen(campaign)
    volumes = [v for v in campaign.volumes() if _covers(holdout, v.volume_id)]
    rng = random_generator(campaign.config.seed, "starting patches")
    places: dict[str, list[Box]] = {}
    for volume in volumes:
        blocked = [*holdout.guarded(volume.volume_id), *(p.box for p in occupied if p.volume_id == volume.volume_id)]
        places[volume.volume_id] = places_to_look(
            list(candidates(campaign.config, volume, blocked)), volume, volumes, rng
        )
    drawing = Drawing(campaign, volumes, places, rng)
    drawn = drawing.draw(volume_turns(drawing.volumes, count, rng), STARTING_STRATA)
    if not drawn:
        raise SamplingError(
            "no patch fits beside the holdout",
            where=campaign.url,
            todo="Make sampling.patch_zyx smaller, or add a volume",
        )
    return [
        QueriedPatch(volume_id=v, box=box, score=(count - i) / count, stratum=s, reason=f"starting patch: {s}")
        for i, (v, box, s) in enumerate(drawn)
    ]


def _frozen(campaign: Campaign) -> Holdout:
    holdout = campaign.holdout()
    if holdout is None:
        raise SamplingError("the holdout is not frozen yet", where=campaign.url, todo="Draw the holdout first")
    return holdout


def _covers(holdout: Holdout, volume_id: str) -> bool:
    """Tell whether the holdout was drawn with a volume in view; one written by hand says nothing of it."""
    return not holdout.volumes or volume_id in holdout.volumes


@dataclass(frozen=True)
class _Plan:
    """One attempt at a holdout: how many boxes, how large, how well guarded, how much must remain."""

    validation: int
    test: int
    scale: float
    guard_zyx: ZYX
    apart: bool
    """Whether boxes keep their guard band from each other; side by side they take less room."""
    pool: int


def _first_plans(campaign: Campaign, volumes: Sequence[VolumeRecord]) -> Iterator[_Plan]:
    config = campaign.config.holdout
    for divisor, pool in _FEWER:
        for (scale, pixels), apart in product(_SMALLER, (True, False)):
            guard_zyx = config.guard_zyx or _guard(volumes, pixels)
            validation, test = (math.ceil(n / divisor) for n in (config.validation_boxes, config.test_boxes))
            yield _Plan(validation, test, scale, guard_zyx, apart, pool)


def _growth_plans(campaign: Campaign, volumes: Sequence[VolumeRecord], frozen: Holdout) -> Iterator[_Plan]:
    new = {v.volume_id for v in volumes}
    old = sum(math.prod(v.shape_zyx) for v in campaign.volumes() if v.volume_id not in new)
    growth = sum(math.prod(v.shape_zyx) for v in volumes) / max(1, old)
    parts = [sum(b.part == part for b in frozen.boxes) for part in ("validation", "test")]
    config = campaign.config.holdout
    most = [
        max(1, min(limit, round(n * growth)))
        for n, limit in zip(parts, (config.validation_boxes, config.test_boxes), strict=True)
    ]
    for divisor, pool in _FEWER:
        for (scale, _), apart in product(_SMALLER, (True, False)):
            validation, test = (math.ceil(n / divisor) for n in most)
            yield _Plan(validation, test, scale, frozen.guard_zyx, apart, min(pool, 2))


def _guard(volumes: Sequence[VolumeRecord], pixels: int) -> ZYX:
    """Return the widest guard over volumes, `pixels` of the finest in-plane spacing as a length."""
    widths = [[max(1, round(pixels * min(v.spacing_um_zyx[1:]) / s)) for s in v.spacing_um_zyx] for v in volumes]
    return zyx(max(axis) for axis in zip(*widths, strict=True))


def _box_shape(campaign: Campaign, volume: VolumeRecord, share: float, plan: _Plan) -> ZYX:
    """Return the shape of a holdout box: about a patch, twice that where the truth is there already."""
    config = campaign.config
    if config.holdout.box_zyx is not None:
        return zyx(min(b, n) for b, n in zip(config.holdout.box_zyx, volume.shape_zyx, strict=True))
    shape = patch_shape(config, volume)
    wanted = (1.0 if volume.truth is None else 2.0) * plan.scale
    most = min(share, config.holdout.fraction * math.prod(volume.shape_zyx))
    return scaled_shape(volume, shape, min(wanted, most / math.prod(shape)))


def _draw_boxes(
    campaign: Campaign, volumes: Sequence[VolumeRecord], plan: _Plan, blocked: dict[str, list[Box]]
) -> tuple[tuple[HoldoutBox, ...], ZYX] | None:
    """Draw the boxes of a plan, the layout first, without reading an image; None when one of the two fails."""
    if _try_boxes(campaign, volumes, plan, blocked, look=False) is None:
        return None
    boxes = _try_boxes(campaign, volumes, plan, blocked, look=True)
    return None if boxes is None else (boxes, plan.guard_zyx)


def _try_boxes(
    campaign: Campaign, volumes: Sequence[VolumeRecord], plan: _Plan, blocked: dict[str, list[Box]], look: bool
) -> tuple[HoldoutBox, ...] | None:
    """Draw the boxes of a plan; None when they do not fit or leave too little."""
    allowed = campaign.config.holdout.fraction * sum(math.prod(v.shape_zyx) for v in volumes)
    count = plan.validation + plan.test
    shapes = {v.volume_id: _box_shape(campaign, v, allowed / count, plan) for v in volumes}
    if not _may_fit(volumes, shapes, plan):
        return None
    rng = random_generator(campaign.config.seed, "holdout", *shapes)
    places = {}
    for volume in volumes:
        shape = shapes[volume.volume_id]
        taken = [box.expand(plan.guard_zyx) for box in blocked.get(volume.volume_id, [])]
        boxes = list(boxes_on_grid(volume.shape_zyx, shape, shape, taken))
        places[volume.volume_id] = places_to_look(boxes, volume, volumes, rng)
    drawing = Drawing(campaign, volumes, places, rng, plan.guard_zyx if plan.apart else (0, 0, 0), look)
    turns = [volume_turns(drawing.volumes, n, rng) for n in (plan.validation, plan.test)]
    parts: list[Part] = interleave(["validation"] * plan.validation, ["test"] * plan.test)
    order = interleave(*(list(islice(cycle(HOLDOUT_STRATA), len(t))) for t in turns))
    drawn = drawing.draw(interleave(*turns), order)
    held = tuple(
        HoldoutBox(volume_id=v, box=box, part=part, stratum=stratum)
        for (v, box, stratum), part in zip(drawn, parts, strict=False)
    )
    if len(held) < count or sum(b.box.size for b in held) > allowed:
        return None
    holdout = Holdout(boxes=held, guard_zyx=plan.guard_zyx)
    enough = plan.pool + (0 if look else _SPARE)
    return held if _remaining(campaign, volumes, holdout, enough) >= enough else None


def _may_fit(volumes: Sequence[VolumeRecord], shapes: dict[str, ZYX], plan: _Plan) -> bool:
    """Tell by volume alone, before anything is read, whether a plan could work."""
    total = sum(math.prod(v.shape_zyx) for v in volumes)
    guarded = sum(
        math.prod(v.shape_zyx)
        / total
        * math.prod(min(n, b + 2 * g) for n, b, g in zip(v.shape_zyx, shapes[v.volume_id], plan.guard_zyx, strict=True))
        for v in volumes
    )
    return guarded * (plan.validation + plan.test) <= _MOST_GUARDED * total


def _remaining(campaign: Campaign, volumes: Sequence[VolumeRecord], holdout: Holdout, enough: int) -> int:
    """Count the patches that fit beside a holdout without overlap, up to `enough`."""
    count = 0
    for volume in volumes:
        free = candidates(campaign.config, volume, holdout.guarded(volume.volume_id))
        count += len(choose_non_overlapping(free, enough - count))
    return count


def _trained_boxes(campaign: Campaign, trained: Sequence[Patch]) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    for patch in trained:
        boxes.setdefault(patch.volume_id, []).append(patch.box)
    for generation in campaign.generations():
        snapshot = campaign.snapshot(generation)
        for item in snapshot.items if snapshot else ():
            boxes.setdefault(item.volume_id, []).append(item.read_box)
    return boxes


def interleave(one: Sequence[T], other: Sequence[T]) -> list[T]:
    """Return the elements of two sequences by turns; what is left of the longer one comes last."""
    return [item for pair in zip_longest(one, other) for item in pair if item is not None]
