"""Which boxes are held out, and where annotation starts.

Volumes are never read whole: boxes are drawn on a grid, at most a few hundred of them are measured, one by one
(see `strata`). Everything follows from the campaign's seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.config import CampaignConfig
from rescueseg.errors import SamplingError
from rescueseg.geometry import Box, Patch
from rescueseg.progress import Progress
from rescueseg.randomness import random_generator
from rescueseg.records import Holdout, HoldoutBox, QueriedPatch, VolumeRecord
from rescueseg.sampling.box_sampler import BoxSampler, volume_turns
from rescueseg.sampling.holdout import plan_holdout
from rescueseg.sampling.patches import (
    Hint,
    candidates,
    measure_places,
    patch_shape,
    subsample_places,
)
from rescueseg.sampling.strata import HINTED_STARTING_STRATA, STARTING_STRATA
from rescueseg.shared_places import SharedPlaces

_Row = tuple[str, Box, str, str]
"""Of a starting patch: volume, box, stratum, reason."""
ROUGH_REASON = "rough mask of the triage"
EXAMPLE, EXAMPLE_REASON = "example", "example of the structure, chosen by a person"
"""Stratum and reason of a patch that a person chose before the holdout was drawn; see `rescueseg.stages.hints`."""


def draw_holdout(
    campaign: Campaign,
    trained: Sequence[Patch] = (),
    progress: Progress | None = None,
    hint: Hint | None = None,
    skipped: Sequence[Patch] = (),
) -> Holdout:
    """Return the frozen holdout; draw and freeze it at the first call, let it grow when volumes were added.

    Validation and test boxes take turns through the same strata (see `strata.HOLDOUT_STRATA`: the difficult ones
    are guaranteed, one in eight is drawn at random) and through the volumes by their size. Boxes never share
    a voxel, by whatever name the place goes. On small volumes boxes and guard band shrink until 30 patches fit beside them; on very small ones
    fewer boxes are drawn. With the boxes the patch shape of each volume is fixed.

    Parameters
    ----------
    campaign : Campaign
        With at least one volume.
    trained : sequence of Patch
        Patches that were, or may soon be, trained on (those with a ticket); new boxes keep clear of them and of
        everything that earlier snapshots read, and of the patches of the rough mask.
    progress : callable, optional
        Called with what is counted, how many are done and how many there are.
    hint : callable, optional
        Tells how much of a place is structure; see `strata.HINTED_HOLDOUT_STRATA`.
    skipped : sequence of Patch
        Examples that nobody annotated: boxes keep clear of them, but a volume may be held out whole in spite of them.

    Returns
    -------
    Holdout
        Frozen boxes stay as they are; only volumes that it was not drawn from before add boxes.

    Raises
    ------
    SamplingError
        If there is no volume, or no room for a single validation and test box.
    """
    holdout = plan_holdout(campaign, trained, progress, hint, skipped)
    if holdout != campaign.holdout():
        campaign.freeze_holdout(holdout)
    return holdout


def holdout_tickets(volumes: Iterable[VolumeRecord], holdout: Holdout) -> list[HoldoutBox]:
    """Return the holdout boxes that people must annotate: those in usable volumes without ground truth.

    Parameters
    ----------
    volumes : iterable of VolumeRecord
        Those that may be used; they tell which came with truth.
    holdout : Holdout
        The frozen boxes.

    Returns
    -------
    list of HoldoutBox
        Each with its volume, box, part (the ticket's purpose) and stratum. They become the first tickets, without a prefill.
    """
    without = {v.volume_id for v in volumes if v.truth is None}
    return [box for box in holdout.boxes if box.volume_id in without]


def candidate_boxes(campaign: Campaign, volume_id: str, occupied: Iterable[Patch] = ()) -> list[Box]:
    """Return the boxes of a volume that may be queried, in z, y, x order.

    Parameters
    ----------
    campaign : Campaign
        Its holdout must be frozen.
    volume_id : str
        The volume.
    occupied : iterable of Patch
        Patches that have a ticket already, in whichever volumes.

    Returns
    -------
    list of Box
        Patches on a grid of half a patch (coarser where that gives more than 100000), clear of every holdout
        box and its guard band, and of `occupied`, by whatever name the place goes. They overlap each other; a query strategy takes none that do.
        None in a volume added since the holdout was last drawn: it has to grow first.

    Raises
    ------
    SamplingError
        If the holdout is not frozen yet.
    """
    return _candidates(
        campaign.config,
        campaign.volumes.record(volume_id),
        _frozen(campaign.holdout(), campaign.url),
        campaign.volumes.shared_places(),
        occupied,
    )


def all_candidates(campaign: Campaign, occupied: Iterable[Patch] = ()) -> tuple[dict[str, list[Box]], SharedPlaces]:
    """Return the boxes of every volume that may be queried, see `candidate_boxes`, and which places are the same."""
    holdout, volumes, taken = (
        _frozen(campaign.holdout(), campaign.url),
        campaign.volumes.records(refused=True),
        list(occupied),
    )
    places = campaign.volumes.shared_places(volumes)
    usable = [v for v in volumes if not v.refused]
    return {v.volume_id: _candidates(campaign.config, v, holdout, places, taken) for v in usable}, places


def _candidates(
    config: CampaignConfig, volume: VolumeRecord, holdout: Holdout, places: SharedPlaces, occupied: Iterable[Patch]
) -> list[Box]:
    if not holdout.covers(volume.volume_id):
        return []
    blocked = [*holdout.guarded(volume.volume_id, places), *places.boxes_in(volume.volume_id, occupied)]
    return list(candidates(volume, patch_shape(config, volume, holdout), blocked))


def starting_patches(
    campaign: Campaign,
    count: int | None = None,
    occupied: Sequence[Patch] = (),
    holdout: Holdout | None = None,
    progress: Progress | None = None,
    hint: Hint | None = None,
) -> list[QueriedPatch]:
    """Draw the patches that generation 0 is trained on.

    The examples and the patches of the rough mask come first: they are annotated. Then strata take turns, those that promise objects
    first (see `strata.STARTING_STRATA`), and so do the domains and their volumes, by their size. A stratum that the
    data do not have is left out. No label is read: a live campaign has none.

    Parameters
    ----------
    campaign : Campaign
        Its holdout must be frozen.
    count : int, optional
        Patches to draw, examples and those of the rough mask counted; `sampling.starting_patches` when omitted.
    occupied : sequence of Patch
        Patches that have a ticket already, in whichever volumes; an example among them is left out.
    holdout : Holdout, optional
        A holdout about to be frozen, in place of the campaign's.
    progress : callable, optional
        Called with what is counted, how many are done and how many there are.
    hint : callable, optional
        Tells how much of a place is structure; see `strata.HINTED_STARTING_STRATA`.

    Returns
    -------
    list of QueriedPatch
        At most `count` patches, fewer where no more fit, more where the rough mask has more; those drawn overlap
        neither each other nor the others nor the guarded holdout. The score falls from 1 in this order, so that
        annotators get them in it; the reason holds the measured numbers.

    Raises
    ------
    SamplingError
        If the holdout is not frozen yet, or nothing fits.
    """
    count = campaign.config.sampling.starting_patches if count is None else count
    holdout = holdout or _frozen(campaign.holdout(), campaign.url)
    places = campaign.volumes.shared_places()
    rows = _annotated_rows(campaign, places, occupied)
    if len(rows) < count:
        taken = [*occupied, *(Patch(volume_id, box) for volume_id, box, _, _ in rows)]
        sampler = _starting_sampler(campaign.config, campaign.volumes, holdout, places, taken, progress, hint)
        rows += _sampled_rows(sampler, count - len(rows), HINTED_STARTING_STRATA if hint else STARTING_STRATA)
    if not rows:
        raise SamplingError(
            "no patch fits beside the holdout",
            where=campaign.url,
            todo="Make sampling.patch_zyx smaller, or add a volume",
        )
    most = max(count, len(rows))
    return [
        QueriedPatch(volume_id=v, box=box, score=(most - i) / most, stratum=stratum, reason=reason)
        for i, (v, box, stratum, reason) in enumerate(rows)
    ]


def _annotated_rows(campaign: Campaign, places: SharedPlaces, occupied: Sequence[Patch]) -> list[_Row]:
    """Return the examples, then the patches of the rough mask that share no voxel with one."""
    usable = {v.volume_id for v in campaign.volumes.records()}
    examples = [p for p in campaign.example_patches() if p not in occupied]
    taken = [*occupied, *examples]
    rough = [
        p
        for p in campaign.rough_patches()
        if not any(p.box.intersects(box) for box in places.boxes_in(p.volume_id, taken))
    ]
    rows = [(p.volume_id, p.box, EXAMPLE, EXAMPLE_REASON) for p in examples]
    rows += [(p.volume_id, p.box, "rough_mask", ROUGH_REASON) for p in rough]
    return [row for row in rows if row[0] in usable]


def _sampled_rows(sampler: BoxSampler, count: int, strata: Sequence[str]) -> list[_Row]:
    """Draw patches by strata."""
    samples = sampler.draw(volume_turns(sampler.volumes, count, sampler.rng), strata)
    return [(d.volume_id, d.box, d.stratum, f"{d.stratum.replace('_', ' ')}: {d.reason}") for d in samples]


def _starting_sampler(
    config: CampaignConfig,
    folder: VolumeFolder,
    holdout: Holdout,
    places: SharedPlaces,
    occupied: Sequence[Patch],
    progress: Progress | None,
    hint: Hint | None,
) -> BoxSampler:
    """Return what draws starting patches: places measured, clear of the guarded holdout and of what is occupied."""
    volumes = [v for v in folder.records() if holdout.covers(v.volume_id)]
    rng = random_generator(config.seed, "starting patches")
    free: dict[str, list[Box]] = {}
    for volume in volumes:
        boxes = _candidates(config, volume, holdout, places, occupied)
        free[volume.volume_id] = subsample_places(boxes, volume, volumes, rng)
    return BoxSampler(volumes, free, places, rng, measure_places(folder, volumes, free, progress, hint))


def _frozen(holdout: Holdout | None, url: str) -> Holdout:
    if holdout is None:
        raise SamplingError("the holdout is not frozen yet", where=url, todo="Draw the holdout first")
    return holdout
