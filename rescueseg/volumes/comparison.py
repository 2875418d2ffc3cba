"""Compares a campaign's volumes with each other: which show the same piece of the specimen, and how they lie.

Every volume is compared once with every other, refused ones too: an import does it before the volume belongs to the
campaign; `ensure_compared` does it for campaigns of earlier versions. First equal voxels are looked for
(`rescueseg.volumes.same_voxels`), then near copies among what equal voxels do not connect for certain (`rescueseg.volumes.near_copies`).
On one core, a volume of 10⁹ voxels takes 20 s to read for its windows. Near copies take 0.03 to 0.1 s a pair of 24³
voxels, 0.3 to 0.4 s of 64×512×512 and 0.2 to 0.8 s of 40×1536×1536, as no more than 8 million voxels of a volume are read
on the coarse grid, once for all pairs (measured with ``python tests/benchmarks/near_copy_cost.py``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from rescueseg.campaign import VolumeFolder
from rescueseg.campaign.layout import ANCHORS
from rescueseg.errors import VolumeError
from rescueseg.geometry import Box
from rescueseg.progress import Progress
from rescueseg.records import Relation, Relations, VolumeRecord
from rescueseg.shared_places import IDENTITY, GridMap
from rescueseg.storage import Storage
from rescueseg.volumes.anchors import Anchors, bits_of, find_anchors
from rescueseg.volumes.coarse_reading import Pyramid
from rescueseg.volumes.import_lock import one_at_a_time
from rescueseg.volumes.near_copies import near_copy
from rescueseg.volumes.opening import open_levels
from rescueseg.volumes.same_voxels import equal_voxels

_STORED = 2**21
"""Voxels above which the windows of a volume are kept in a file: of smaller ones they are found as quickly as read."""


def ensure_compared(volumes: VolumeFolder, progress: Progress | None = None, *, write: bool = True) -> None:
    """Compare the volumes that never were; nothing is done, and next to nothing read, where all are.

    Every command that asks which places are the same begins with it.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's; what is found is written to its ``relations.json``.
    progress : callable, optional
        Called with what is done, how many volumes are compared and how many there are.
    write : bool
        Whether to write it; else, in a dry run, only this object knows what was found.

    Raises
    ------
    VolumeError
        If the image of a volume is not there.
    """
    records = volumes.records(refused=True)
    if not volumes.relations().uncompared(records):
        return
    if not write:
        _Comparison(volumes, {}, write=False).compare(records, progress)
        return
    with one_at_a_time(volumes.storage):
        _Comparison(volumes, {}).compare(volumes.records(refused=True), progress)


def compare_import(volumes: VolumeFolder, record: VolumeRecord, url: str) -> None:
    """Compare a volume whose record is about to be written with all others.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's; nobody else may import into it meanwhile.
    record : VolumeRecord
        Of the new volume.
    url : str
        Where its image lies for now.

    Raises
    ------
    VolumeError
        If the image of another volume is not there.
    """
    others = [v for v in volumes.records(refused=True) if v.volume_id != record.volume_id]
    _Comparison(volumes, {record.volume_id: url}).compare([*others, record], None)


def declare_distinct(folder: VolumeFolder, volume_id: str, others: Collection[str] | None = None) -> None:
    """Take a person's word that a volume shows another specimen than its near copies; equal voxels stay what they are.

    What was known only through one of these relations is compared directly.

    Parameters
    ----------
    folder : VolumeFolder
        The campaign's volumes.
    volume_id : str
        The volume.
    others : collection of str, optional
        The near copies that are meant; all when omitted.
    """
    with one_at_a_time(folder.storage):
        while True:
            found = folder.relations()
            relations = tuple(
                r.model_copy(update={"distinct": True})
                if volume_id in (pair := {r.one, r.other})
                and r.found == "near copy"
                and (others is None or not pair.isdisjoint({*others} - {volume_id}))
                else r
                for r in found.relations
            )  # fmt: skip
            if relations == found.relations:
                break
            folder.save_relations(found.model_copy(update={"relations": relations}))
            _Comparison(folder, {}).compare(folder.records(refused=True), None)


def relation_lines(folder: VolumeFolder, volume_id: str = "") -> list[str]:
    """Return what the comparison found of a volume, or of all, a sentence for each pair."""
    volumes = {v.volume_id: v for v in folder.records(refused=True)}
    known = [r for r in folder.relations().relations if r.one in volumes and r.other in volumes]
    if volume_id:
        known = [r for r in known if volume_id in (r.one, r.other)]
    return [_sentence(r, volumes[r.one], volumes[r.other]) for r in known]


class _Comparison:
    """Compares volumes pair by pair, and opens each image once.

    Parameters
    ----------
    volumes : VolumeFolder
        Gets what is found.
    places : mapping of str to str
        Where the images of volumes lie that are not in their places yet.
    write : bool
        Whether anything is written.
    """

    def __init__(self, volumes: VolumeFolder, places: Mapping[str, str], *, write: bool = True) -> None:
        self._volumes, self._places, self._write = volumes, places, write
        self._images: dict[str, Pyramid] = {}

    def compare(self, records: Sequence[VolumeRecord], progress: Progress | None) -> None:
        """Compare what was not compared yet, volume by volume; each is written down when it is done."""
        known = self._volumes.relations()
        done = [v for v in records if known.compared.get(v.volume_id) == v.digest]
        names = {v.volume_id for v in done}
        known = Relations(
            compared={v.volume_id: v.digest for v in done},
            relations=tuple(r for r in known.relations if r.one in names and r.other in names),
            through=tuple(p for p in known.through if names.issuperset(p)),
        )
        for record in (v for v in records if v.volume_id not in names):
            if progress is not None:
                progress(f"{record.volume_id}: compared with the others", len(done), len(records))
            known = self._with(record, done, known)
            done.append(record)
            self._volumes.save_relations(known, write=self._write)
        while pairs := known.open_pairs(done):
            volumes = {v.volume_id: v for v in done}
            near = self._near_copy(volumes[pairs[0][0]], volumes[pairs[0][1]])
            through = tuple(p for p in known.through if p != pairs[0])
            known = known.model_copy(update={"relations": (*known.relations, *near), "through": through})
            self._volumes.save_relations(known, write=self._write)

    def _with(self, record: VolumeRecord, others: Sequence[VolumeRecord], known: Relations) -> Relations:
        """Return what is known once a volume is compared with others."""
        anchors = self._anchors(record)
        found: list[Relation] = []
        for other in others:
            if other.digest == record.digest:
                grids = [(IDENTITY, 1.0)]
            else:
                there, here = self._image(other).levels[0], self._image(record).levels[0]
                grids = equal_voxels(there, here, self._anchors(other), anchors)
            found += [_relation(other, record, grid, share) for grid, share in grids]
        compared = {**known.compared, record.volume_id: record.digest}
        known = known.model_copy(update={"compared": compared, "relations": (*known.relations, *found)})
        groups, through = known.groups([*others, record]), list(known.through)
        for other in others:
            if groups[other.volume_id] == groups[record.volume_id]:
                through.append((other.volume_id, record.volume_id))
            elif near := self._near_copy(other, record):
                known = known.model_copy(update={"relations": (*known.relations, *near)})
                groups = known.groups([*others, record])
        return known.model_copy(update={"through": tuple(through)})

    def _near_copy(self, one: VolumeRecord, other: VolumeRecord) -> list[Relation]:
        near = near_copy(self._image(one), self._image(other), one.spacing_um_zyx, other.spacing_um_zyx)
        return [] if near is None else [_relation(one, other, near, None)]

    def _image(self, record: VolumeRecord) -> Pyramid:
        """Open an image, once."""
        name = record.volume_id
        if name not in self._images:
            place = self._places.get(name)
            url = place or self._volumes.image_url(name)
            if not Storage(url).exists("zarr.json"):
                raise VolumeError(
                    f"the image of volume '{name}' is not there, so nobody can tell what it shares with the others",
                    where=url,
                    todo=f"Restore it, or remove volumes/{name}.json as well",
                )
            self._images[name] = Pyramid.open(url) if place else Pyramid(open_levels(self._volumes, record))
        return self._images[name]

    def _anchors(self, record: VolumeRecord) -> Anchors:
        """Return the windows of a volume, from their file where there is one; a large volume gets one."""
        level, storage = self._image(record).levels[0], self._volumes.storage
        if math.prod(record.shape_zyx) * record.channels <= _STORED:
            return find_anchors(level)
        path = ANCHORS.path(digest=record.digest)
        if storage.exists(path):
            return Anchors(storage.read_array(path), bits_of(level))
        anchors = find_anchors(level)
        if self._write:
            storage.write_array(path, anchors.rows)
        return anchors


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
        which = "" if relation.sure else "some "
        return f"{text}: {which}voxels are equal, so holdout boxes of one count in the other"
    if relation.distinct:
        return f"{text}, it seems; a person said that they are different specimens, so both are used as such"
    off = max(relation.tolerance)
    near = f" (to {off:.2g} voxels)" if off else ""
    return (
        f"{text}{near}: a near copy, so holdout boxes of one count in the other; "
        f"if they are different specimens, add it with --distinct-from {one.volume_id}"
    )
