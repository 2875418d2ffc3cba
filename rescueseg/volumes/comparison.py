"""Compares a campaign's volumes with each other: which show the same piece of the specimen, and how they lie.

Every volume is compared once with every other, refused ones too: an import does it before the volume belongs to the
campaign; `ensure_compared` does it for campaigns of earlier versions. First equal voxels are looked for
(`rescueseg.volumes.same_voxels`), then near copies among what equal voxels do not connect for certain (`rescueseg.volumes.near_copies`).
On one core, a volume of 10⁹ voxels takes 20 s to read for its windows; a pair takes 0.01 s (24³ voxels) to 2 s, whatever
its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rescueseg.campaign import Campaign
from rescueseg.geometry import Box
from rescueseg.progress import Progress
from rescueseg.records import Relation, Relations, VolumeRecord
from rescueseg.shared_places import IDENTITY, GridMap
from rescueseg.volumes.anchors import Anchors, bits_of, find_anchors
from rescueseg.volumes.coarse_reading import Pyramid
from rescueseg.volumes.import_lock import one_at_a_time
from rescueseg.volumes.near_copies import near_copy
from rescueseg.volumes.same_voxels import equal_voxels

_SURE_SHARE = 0.9
"""Of equal voxels: where fewer are, they may be the few that a rescaling left alone, and near copies are looked for too."""
_STORED = 2**21
"""Voxels above which the windows of a volume are kept in a file: of smaller ones they are found as quickly as read."""


def ensure_compared(campaign: Campaign, progress: Progress | None = None) -> None:
    """Compare the volumes that never were; nothing is done, and next to nothing read, where all are.

    Parameters
    ----------
    campaign : Campaign
        What is found is written to its ``relations.json``.
    progress : callable, optional
        Called with what is done, how many volumes are compared and how many there are.
    """
    records = campaign.volumes(refused=True)
    if _open_ones(campaign.relations(), records):
        with one_at_a_time(campaign):
            _compare(campaign, campaign.volumes(refused=True), progress)


def compare_import(campaign: Campaign, record: VolumeRecord) -> None:
    """Compare a volume whose image is in place, and whose record is about to be written, with all others.

    Parameters
    ----------
    campaign : Campaign
        Nobody else may import into it meanwhile.
    record : VolumeRecord
        Of the new volume.
    """
    others = [v for v in campaign.volumes(refused=True) if v.volume_id != record.volume_id]
    _compare(campaign, [*others, record], None)


def declare_distinct(campaign: Campaign, volume_id: str) -> None:
    """Take a person's word that a volume shows another specimen than its near copies; equal voxels stay what they are."""
    with one_at_a_time(campaign):
        found = campaign.relations()
        relations = tuple(
            r.model_copy(update={"distinct": True})
            if volume_id in (r.one, r.other) and r.found == "near copy"
            else r
            for r in found.relations
        )  # fmt: skip
        if relations != found.relations:
            campaign.save_relations(found.model_copy(update={"relations": relations}))


def relation_lines(campaign: Campaign, volume_id: str = "") -> list[str]:
    """Return what the comparison found of a volume, or of all, a sentence for each pair."""
    volumes = {v.volume_id: v for v in campaign.volumes(refused=True)}
    known = [r for r in campaign.relations().relations if r.one in volumes and r.other in volumes]
    if volume_id:
        known = [r for r in known if volume_id in (r.one, r.other)]
    return [_sentence(r, volumes[r.one], volumes[r.other]) for r in known]


def _open_ones(known: Relations, records: Iterable[VolumeRecord]) -> list[VolumeRecord]:
    return [v for v in records if known.compared.get(v.volume_id) != v.digest]


def _compare(campaign: Campaign, records: list[VolumeRecord], progress: Progress | None) -> None:
    """Compare what was not compared yet, volume by volume; each is written down when it is done."""
    known = campaign.relations()
    open_ones = {v.volume_id for v in _open_ones(known, records)}
    done = [v for v in records if v.volume_id not in open_ones]
    names = {v.volume_id for v in done}
    relations = [r for r in known.relations if r.one in names and r.other in names]
    for record in (v for v in records if v.volume_id in open_ones):
        if progress is not None:
            progress(f"{record.volume_id}: compared with the others", len(done), len(records))
        relations += _relations_of(campaign, record, done, relations)
        done.append(record)
        compared = {v.volume_id: v.digest for v in done}
        campaign.save_relations(Relations(compared=compared, relations=tuple(relations)))


def _relations_of(
    campaign: Campaign, record: VolumeRecord, others: list[VolumeRecord], known: list[Relation]
) -> list[Relation]:
    """Return the relations of one volume to others."""
    image = Pyramid.open(campaign.image_url(record.volume_id))
    anchors = _anchors(campaign, record, image)
    found: list[Relation] = []
    for other in others:
        if other.digest == record.digest:
            grids = [(IDENTITY, 1.0)]
        else:
            there = Pyramid.open(campaign.image_url(other.volume_id))
            theirs = _anchors(campaign, other, there)
            grids = equal_voxels(there.levels[0], image.levels[0], theirs, anchors)
        found += [_relation(other, record, grid, share) for grid, share in grids]
    volumes = [*others, record]
    compared = {v.volume_id: v.digest for v in volumes}
    for other in others:
        sure = tuple(r for r in (*known, *found) if r.found == "near copy" or r.equal_share >= _SURE_SHARE)
        places = Relations(compared=compared, relations=sure).shared_places(volumes)
        if other.volume_id not in places.related(record.volume_id):
            there = Pyramid.open(campaign.image_url(other.volume_id))
            near = near_copy(there, image, other.spacing_um_zyx, record.spacing_um_zyx)
            if near is not None:
                found.append(_relation(other, record, near, None))
    return found


def _relation(one: VolumeRecord, other: VolumeRecord, grid: GridMap, equal_share: float | None) -> Relation:
    return Relation(
        one=one.volume_id,
        other=other.volume_id,
        axes=grid.axes,
        steps=grid.steps,
        start=grid.start,
        tolerance=grid.tolerance,
        found="near copy" if equal_share is None else "equal voxels",
        equal_share=round(equal_share or 0.0, 4),
    )


def _anchors(campaign: Campaign, record: VolumeRecord, image: Pyramid) -> Anchors:
    """Return the windows of a volume, from their file where there is one; a large volume gets one."""
    level = image.levels[0]
    if math.prod(record.shape_zyx) * record.channels <= _STORED:
        return find_anchors(level)
    path = f"volumes/anchors/{record.digest}.npz"
    if campaign.storage.exists(path):
        return Anchors(campaign.storage.read_array(path), bits_of(level))
    anchors = find_anchors(level)
    campaign.storage.write_array(path, anchors.rows)
    return anchors


def _sentence(relation: Relation, one: VolumeRecord, other: VolumeRecord) -> str:
    grid = relation.grid
    how = []
    if grid.axes != (0, 1, 2):
        how.append("axes exchanged")
    if mirrored := [name for name, step in zip("zyx", grid.steps, strict=True) if step < 0]:
        how.append(f"mirrored along {' and '.join(mirrored)}")
    sizes = [abs(step) for step in grid.steps]
    if any(size != 1 for size in sizes):
        how.append(f"its voxels {' × '.join(f'{size:.3g}' for size in sizes)} times as long (z y x)")
    common = grid.box(Box((0, 0, 0), other.shape_zyx)).intersection(Box((0, 0, 0), one.shape_zyx))
    if common is not None and common.shape_zyx != one.shape_zyx:
        how.append(f"at {common} of it")
    text = f"'{other.volume_id}' shows what '{one.volume_id}' shows{', ' if how else ''}{', '.join(how)}"
    if relation.found == "equal voxels":
        which = "" if relation.equal_share >= _SURE_SHARE else "some "
        return f"{text}: {which}voxels are equal, so holdout boxes of one count in the other"
    if relation.distinct:
        return f"{text}, it seems; a person said that they are different specimens, so both are used as such"
    off = max(relation.tolerance)
    near = f" (to {off:.2g} voxels)" if off else ""
    return (
        f"{text}{near}: a near copy, so holdout boxes of one count in the other; "
        "if they are different specimens, add it with --distinct"
    )
