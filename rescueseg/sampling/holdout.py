"""Lays out the holdout: how many boxes, how large, how well guarded, and in which strata.

The layout comes first, without reading an image, and is tried ever smaller until it leaves room for patches; then the
boxes are drawn by strata. Only after that is the patch shape fixed, as large as what is left allows: the holdout
depends on no patch, and the patch on the holdout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product, zip_longest
from typing import TypeVar

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import TRIAGE_SUMMARY
from rescueseg.config import CampaignConfig, HoldoutConfig
from rescueseg.errors import SamplingError
from rescueseg.geometry import ZYX, Box, Patch, zyx
from rescueseg.progress import Progress
from rescueseg.randomness import random_generator
from rescueseg.records import Holdout, HoldoutBox, Part, VolumeRecord
from rescueseg.sampling.box_order import asked_at_once, in_both_parts
from rescueseg.sampling.box_sampler import BoxSampler, volume_turns
from rescueseg.sampling.effort import BOX_MINUTES, PATCH_MINUTES
from rescueseg.sampling.guard import guard_of_length, object_guards, plain_guard
from rescueseg.sampling.patches import (
    LEAST_PLACES,
    Hint,
    PatchLimit,
    advised_shape,
    boxes_on_grid,
    count_places,
    measure_places,
    patch_limit,
    patch_shape,
    reference_shape,
    scaled_shape,
    subsample_places,
    suggested_shapes,
    within_time,
)
from rescueseg.sampling.strata import HINTED_HOLDOUT_STRATA, HOLDOUT_STRATA
from rescueseg.shared_places import SharedPlaces

_SMALLER = (
    *((1.0, 8), (0.7, 8), (0.5, 8), (0.7, 6), (0.5, 6), (0.35, 8), (0.35, 6)),
    *((0.5, 4), (0.35, 4), (0.25, 4), (0.25, 3), (0.15, 3), (0.15, 2), (0.1, 1)),
)
"""Scales of a holdout box (voxels) with widths of its guard band (pixels in plane), tried in this order."""
_FEWER = ((1, LEAST_PLACES), (1, 12), (2, 12), (4, 4), (8, 1))
"""Divisors of the number of boxes with the patches that must still fit beside them, tried in this order."""
_ROOM = 0.65
"""Voxels of the places that must remain, over those of a reference patch: larger boxes to be judged by are worth somewhat
smaller patches."""
_SPARE = 2
"""Patches more that must fit in a rehearsal, since the drawing itself lies elsewhere."""
_LEAST_GROWN = 2
"""Patches that must fit in volumes added later."""
MORE_BOXES = 2
"""Boxes of each part that people annotate more with each generation. By simulation (`tests/benchmarks/growing_holdout.py`)
four boxes and two more each generation decide as early and as well as eight at once; in steps of one they do not."""
PARTS: tuple[Part, ...] = ("validation", "test")
_MOST_GUARDED = 0.7
"""Share of the voxels that the boxes may take with their guard bands."""

T = TypeVar("T")


def undrawn_volumes(frozen: Holdout | None, volumes: Sequence[VolumeRecord]) -> list[VolumeRecord]:
    """Return the volumes that the holdout was not drawn from yet: all before the first drawing."""
    drawn_ids = {*frozen.volumes, *(b.volume_id for b in frozen.all_boxes)} if frozen else set()
    return [v for v in volumes if v.volume_id not in drawn_ids]


def plan_holdout(
    campaign: Campaign,
    trained: Sequence[Patch] = (),
    progress: Progress | None = None,
    hint: Hint | None = None,
    skipped: Sequence[Patch] = (),
) -> Holdout:
    """Return the holdout that `starting_patches.draw_holdout` would freeze; nothing is written. Parameters as there."""
    frozen, everything = campaign.holdout(), campaign.volumes.records()
    if not everything:
        raise SamplingError(
            "the campaign has no volume that may be used",
            where=campaign.url,
            todo="Add one with 'rescueseg add'; 'rescueseg status' shows the refused ones",
        )
    volumes = undrawn_volumes(frozen, everything)
    if frozen and not volumes:
        return frozen
    given = replace(_Given.of(campaign, volumes, trained, skipped), hint=hint)
    layout = None
    if frozen is None or not campaign.config.holdout.volumes or any(v.volume_id in given.whole for v in volumes):
        plans = _first_plans(given) if frozen is None else _growth_plans(given, frozen)
        layout = next((drawn for plan in plans if (drawn := _draw_boxes(given, plan, progress))), None)
    if frozen is None and layout is None:
        raise SamplingError(
            "there is no room for a holdout and patches beside it",
            where=campaign.url,
            todo="Add a volume, or set holdout.box_zyx, holdout.guard_zyx and sampling.patch_zyx smaller",
        )
    boxes, guard_zyx = layout or ((), (0, 0, 0))
    holdout = given.holdout(boxes, guard_zyx).model_copy(update={"volumes": tuple(v.volume_id for v in everything)})
    holdout = holdout.model_copy(update={"patch_zyx": _patch_shapes(given, holdout)})
    return _asked_by_and_by(given, holdout)


def _asked_by_and_by(given: _Given, holdout: Holdout) -> Holdout:
    """Put off those new boxes that people need not annotate before the next generation."""
    first = given.campaign.config.holdout.first_boxes if given.frozen is None else MORE_BOXES
    before, waiting = (given.frozen.boxes, given.frozen.later or ()) if given.frozen else ((), ())
    with_truth = {v.volume_id for v in given.volumes if v.truth is not None}
    new = holdout.boxes[len(before) + len(waiting) :]
    asked, later = asked_at_once(new, first, with_truth, given.domains, before)
    return holdout.model_copy(update={"boxes": (*before, *asked), "later": (*waiting, *later) or None})


def expected_shapes(campaign: Campaign, skipped: Sequence[Patch] = ()) -> dict[str, ZYX]:
    """Return the patch shape of each volume: the one fixed with the holdout, else the one to be expected.

    The holdout's layout is rehearsed for that, without reading an image; the drawing itself lies elsewhere, so that the
    shape may still change a little. Where there is no room, `reference_shape`.

    Parameters
    ----------
    campaign : Campaign
        Nothing is written.
    skipped : sequence of Patch
        As in `starting_patches.draw_holdout`.
    """
    holdout, volumes = campaign.holdout(), campaign.volumes.records()
    shapes = {v.volume_id: patch_shape(campaign.config, v, holdout) for v in volumes}
    if holdout is not None or campaign.config.sampling.patch_zyx is not None or not volumes:
        return shapes
    given = _Given.of(campaign, volumes, (), skipped)
    for plan in _first_plans(given):
        boxes = _try_boxes(given, plan, rehearsal=True)
        if boxes is not None:
            guarded = given.guarded(given.holdout(boxes, plan.guard_zyx), volumes)
            return suggested_shapes(volumes, guarded, given.places, LEAST_PLACES, _largest_patches(given))
    return shapes


@dataclass(frozen=True)
class _Given:
    """What a holdout is drawn for, read once: many plans are tried.

    Parameters
    ----------
    campaign : Campaign
        Its settings.
    volumes : sequence of VolumeRecord
        Those that it was not drawn from yet.
    places : SharedPlaces
        Which places of all volumes are the same.
    frozen : Holdout or None
        What stays.
    blocked : sequence of Patch
        What no box may touch.
    whole : tuple of str
        Volumes held out whole; where there are any, boxes are drawn in no other.
    thickness_um : float or None
        What the triage measured as the structure's thickness.
    domains : dict of str to str
        The domain of every volume.
    hint : callable, optional
        Tells how much of a place is structure.
    """

    campaign: Campaign
    volumes: Sequence[VolumeRecord]
    places: SharedPlaces
    frozen: Holdout | None
    blocked: Sequence[Patch]
    whole: tuple[str, ...]
    thickness_um: float | None
    domains: dict[str, str]
    hint: Hint | None = None

    @classmethod
    def of(
        cls, campaign: Campaign, volumes: Sequence[VolumeRecord], trained: Sequence[Patch], skipped: Sequence[Patch]
    ) -> _Given:
        """Read it from a campaign; `trained` and `skipped` as in `starting_patches.draw_holdout`."""
        places, frozen, blocked = (
            campaign.volumes.shared_places(),
            campaign.holdout(),
            _trained_patches(campaign, trained),
        )
        annotated = [patch for patch in blocked if patch not in skipped]
        whole = _whole_volumes(campaign.config.holdout, volumes, places, annotated)
        if frozen is not None:
            whole = tuple(dict.fromkeys([*(frozen.whole or ()), *whole]))
        elif missing := [name for name in campaign.config.holdout.volumes if name not in whole]:
            raise SamplingError(
                f"there is no volume '{missing[0]}' to hold out",
                where="holdout.volumes",
                todo=f"Name some of {', '.join(v.volume_id for v in volumes)}, or add it first",
            )
        triage = campaign.records.read(TRIAGE_SUMMARY)
        thickness = triage.measured("thickness") if triage else None
        domains = {v.volume_id: v.domain for v in campaign.volumes.records(refused=True)}
        return cls(campaign, volumes, places, frozen, blocked, whole, thickness, domains)

    def holdout(self, boxes: Sequence[HoldoutBox], guard_zyx: ZYX) -> Holdout:
        """Return what is frozen, later boxes too, with more boxes; the guard counts where nothing is frozen."""
        before = self.frozen or Holdout(boxes=(), guard_zyx=guard_zyx)
        return Holdout(boxes=(*before.all_boxes, *boxes), guard_zyx=before.guard_zyx, whole=self.whole or None)

    def guarded(self, holdout: Holdout, volumes: Sequence[VolumeRecord]) -> dict[str, list[Box]]:
        """Return what a holdout bars in volumes."""
        return {v.volume_id: holdout.guarded(v.volume_id, self.places) for v in volumes}


def _whole_volumes(
    config: HoldoutConfig, volumes: Sequence[VolumeRecord], places: SharedPlaces, annotated: Sequence[Patch]
) -> tuple[str, ...]:
    """Return the new volumes that the settings hold out whole."""
    names = {v.volume_id for v in volumes}
    whole = tuple(name for name in config.volumes if name in names)
    for name in whole:
        if places.boxes_in(name, annotated):
            raise SamplingError(
                f"'{name}' cannot be held out whole: something that it shows was annotated or trained on",
                where="holdout.volumes",
                todo="Hold out another volume",
            )
    return whole


def _patch_shapes(given: _Given, holdout: Holdout) -> dict[str, ZYX] | None:
    """Fix the patch shapes of new volumes; those fixed before stay, and bound the new ones."""
    frozen, volumes, config = given.frozen, given.volumes, given.campaign.config
    if frozen is not None and frozen.patch_zyx is None:
        return None
    if config.sampling.patch_zyx is not None:
        new = {v.volume_id: reference_shape(config, v) for v in volumes}
    else:
        guarded = given.guarded(holdout, volumes)
        largest = _largest_patches(given)
        if frozen is None or not frozen.patch_zyx:
            new = suggested_shapes(volumes, guarded, given.places, LEAST_PLACES, largest)
        else:
            fixed = max(math.prod(shape) for shape in frozen.patch_zyx.values())
            largest = {name: replace(limit, voxels=min(limit.voxels, fixed)) for name, limit in largest.items()}
            new = suggested_shapes(volumes, guarded, given.places, _LEAST_GROWN, largest)
    return {**((frozen.patch_zyx or {}) if frozen else {}), **new}


def _largest_patches(given: _Given) -> dict[str, PatchLimit]:
    """Return how large a patch people can be asked to annotate, by volume."""
    return {v.volume_id: patch_limit(v, PATCH_MINUTES, given.thickness_um) for v in given.volumes}


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


def _first_plans(given: _Given) -> Iterator[_Plan]:
    config, volumes = given.campaign.config.holdout, given.volumes
    chosen = guard_of_length(volumes, config.guard_um) if config.guard_um else config.guard_zyx
    for wide in object_guards(config, given.campaign.volumes, volumes, given.thickness_um):
        for (scale, pixels), apart in product(_SMALLER[:3], (True, False)):
            guard_zyx = zyx(max(pair) for pair in zip(wide, plain_guard(volumes, pixels), strict=True))
            yield _Plan(config.validation_boxes, config.test_boxes, scale, guard_zyx, apart, LEAST_PLACES)
    for divisor, pool in _FEWER:
        for (scale, pixels), apart in product(_SMALLER, (True, False)):
            guard_zyx = chosen or plain_guard(volumes, pixels)
            validation, test = (math.ceil(n / divisor) for n in (config.validation_boxes, config.test_boxes))
            yield _Plan(validation, test, scale, guard_zyx, apart, pool)


def _growth_plans(given: _Given, frozen: Holdout) -> Iterator[_Plan]:
    campaign, volumes = given.campaign, given.volumes
    new = {v.volume_id for v in volumes}
    old = sum(math.prod(v.shape_zyx) for v in campaign.volumes.records() if v.volume_id not in new)
    growth = sum(math.prod(v.shape_zyx) for v in volumes) / max(1, old)
    parts = [sum(b.part == part for b in frozen.all_boxes) for part in PARTS]
    config = campaign.config.holdout
    most = [
        max(1, min(limit, round(n * growth)))
        for n, limit in zip(parts, (config.validation_boxes, config.test_boxes), strict=True)
    ]
    for divisor, pool in _FEWER:
        for (scale, _), apart in product(_SMALLER, (True, False)):
            validation, test = (math.ceil(n / divisor) for n in most)
            yield _Plan(validation, test, scale, frozen.guard_zyx, apart, min(pool, _LEAST_GROWN))


def _box_shape(
    config: CampaignConfig, volume: VolumeRecord, share: float, plan: _Plan, thickness_um: float | None
) -> ZYX:
    """Return the shape of a holdout box: at most a reference patch, twice that where the truth is there already.

    Where people annotate it, it takes them less time than a patch, unless the patch shape is a person's choice.
    """
    if config.holdout.box_zyx is not None:
        return zyx(min(b, n) for b, n in zip(config.holdout.box_zyx, volume.shape_zyx, strict=True))
    shape = reference_shape(config, volume)
    factor = (1.0 if volume.truth is None else 2.0) * plan.scale
    if volume.truth is None and config.sampling.patch_zyx is None:
        limit = patch_limit(volume, BOX_MINUTES, thickness_um)
        shape = within_time(advised_shape(volume, min(math.prod(shape), limit.voxels)), limit.minutes)
    most = min(share, config.holdout.fraction * math.prod(volume.shape_zyx))
    return scaled_shape(volume, shape, min(factor, most / math.prod(shape)))


def _draw_boxes(given: _Given, plan: _Plan, progress: Progress | None) -> tuple[tuple[HoldoutBox, ...], ZYX] | None:
    """Draw the boxes of a plan, the layout first, without reading an image; None when one of the two fails."""
    if _try_boxes(given, plan, rehearsal=True) is None:
        return None
    boxes = _try_boxes(given, plan, progress=progress)
    return None if boxes is None else (boxes, plan.guard_zyx)


def _try_boxes(
    given: _Given, plan: _Plan, rehearsal: bool = False, progress: Progress | None = None
) -> tuple[HoldoutBox, ...] | None:
    """Draw the boxes of a plan; None when they do not fit or leave too little."""
    campaign, places, whole = given.campaign, given.places, given.whole
    volumes = [v for v in given.volumes if v.volume_id in whole] if whole else given.volumes
    allowed = campaign.config.holdout.fraction * sum(math.prod(v.shape_zyx) for v in volumes)
    count = plan.validation + plan.test
    shapes = {v.volume_id: _box_shape(campaign.config, v, allowed / count, plan, given.thickness_um) for v in volumes}
    if not _may_fit(volumes, shapes, plan):
        return None
    rng = random_generator(campaign.config.seed, "holdout", *shapes)
    gap_zyx = plan.guard_zyx if plan.apart else (0, 0, 0)
    free = {}
    for volume in volumes:
        name, shape = volume.volume_id, shapes[volume.volume_id]
        taken = places.boxes_in(name, given.blocked, plan.guard_zyx)
        taken += places.boxes_in(name, [b.patch for b in given.frozen.all_boxes] if given.frozen else [], gap_zyx)
        boxes = list(boxes_on_grid(volume.shape_zyx, shape, shape, taken))
        free[name] = subsample_places(boxes, volume, volumes, rng)
    features = None if rehearsal else measure_places(campaign.volumes, volumes, free, progress, given.hint)
    sampler = BoxSampler(volumes, free, places, rng, features, gap_zyx)
    turns = [volume_turns(sampler.volumes, n, rng) for n in (plan.validation, plan.test)]
    parts: list[Part] = interleave(["validation"] * plan.validation, ["test"] * plan.test)
    strata = HOLDOUT_STRATA if given.hint is None else HINTED_HOLDOUT_STRATA
    present = [s for s in strata if s not in sampler.absent(strata)]
    order = interleave(*(list(islice(cycle(present), len(t))) for t in turns))
    samples = sampler.draw(interleave(*turns), order)
    by_turns = [
        HoldoutBox(volume_id=d.volume_id, box=d.box, part=p, stratum=d.stratum, reason=d.reason)
        for d, p in zip(samples, parts, strict=False)
    ]
    holdout_boxes = tuple(in_both_parts(by_turns, given.domains, given.frozen.all_boxes if given.frozen else ()))
    if len(holdout_boxes) < count or sum(b.box.size for b in holdout_boxes) > allowed:
        return None
    enough = plan.pool + (_SPARE if rehearsal else 0)
    pool = [v for v in given.volumes if v.volume_id not in whole]
    guarded = given.guarded(given.holdout(holdout_boxes, plan.guard_zyx), pool)
    references = {v.volume_id: scaled_shape(v, reference_shape(campaign.config, v), _ROOM) for v in pool}
    return holdout_boxes if count_places(pool, references, guarded, places, enough) >= enough else None


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


def _trained_patches(campaign: Campaign, trained: Sequence[Patch]) -> list[Patch]:
    """Return what no box may touch: what was or will be trained on, and what the triage read the labels of."""
    patches = [*trained, *campaign.rough_patches(), *campaign.example_patches()]
    patches += [Patch(p.volume_id, p.box) for p in campaign.starting_patches() or []]
    for generation in campaign.generations():
        snapshot = generation.snapshot()
        patches += [Patch(item.volume_id, item.read_box) for item in snapshot.items] if snapshot else []
    return list(dict.fromkeys(patches))


def interleave(first: Sequence[T], second: Sequence[T]) -> list[T]:
    """Return the elements of two sequences by turns; what is left of the longer one comes last."""
    return [item for pair in zip_longest(first, second) for item in pair if item is not None]
