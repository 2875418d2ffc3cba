"""Cross-validation folds that share no voxel: whole volumes, or guarded blocks of one volume. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rescueseg.geometry import Box, Patch
from rescueseg.shared_places import SharedPlaces

_LEAST_GROUPS = 3


@dataclass(frozen=True)
class Case:
    """One case of the dataset.

    Parameters
    ----------
    name : str
        As nnU-Net names it.
    volume_id : str
        Volume it was cut from.
    box : Box
        What was read of the volume.
    voxels : int
        Labelled voxels.
    """

    name: str
    volume_id: str
    box: Box
    voxels: int


def group_cases(cases: Sequence[Case], places: SharedPlaces) -> list[list[Case]]:
    """Return the cases that must stay together.

    With several volumes those of one volume do, and of volumes that share places with it; with a single volume, or only
    such as share places, those whose boxes overlap, context included, or are linked by others that do.

    Parameters
    ----------
    cases : sequence of Case
        All of the dataset.
    places : SharedPlaces
        Which places of the volumes are the same.

    Examples
    --------
    In one volume, the first two patches overlap:

    >>> boxes = {"a": Box((0, 0, 0), (8, 64, 64)), "b": Box((4, 0, 0), (8, 64, 64)), "c": Box((0, 200, 0), (8, 64, 64))}
    >>> groups = group_cases([Case(name, "v", box, 100) for name, box in boxes.items()], SharedPlaces({}))
    >>> [[case.name for case in group] for group in groups]
    [['a', 'b'], ['c']]
    """
    groups: list[list[Case]] = []
    single = {case.volume_id for case in cases} <= set(places.related(cases[0].volume_id)) if cases else True
    for case in cases:
        related = places.related(case.volume_id)
        near = [
            group
            for group in groups
            if any(_share(case, c, places) if single else c.volume_id in related for c in group)
        ]
        groups = [group for group in groups if group not in near] + [[*(c for group in near for c in group), case]]
    return groups


def _share(one: Case, other: Case, places: SharedPlaces) -> bool:
    return any(one.box.intersects(b) for b in places.boxes_in(one.volume_id, [Patch(other.volume_id, other.box)]))


def choose_folds(cases: Sequence[Case], count: int, places: SharedPlaces) -> list[dict[str, list[str]]]:
    """Return nnU-Net's folds for an ensemble: as many as networks, about alike in labelled voxels.

    Parameters
    ----------
    cases : sequence of Case
        All of the dataset.
    count : int
        Networks.
    places : SharedPlaces
        Which places of the volumes are the same.

    Returns
    -------
    list of dict
        ``train`` and ``val`` case names of each fold; none, so that every network trains on all cases, for fewer than
        two networks or with fewer than three groups, or fewer groups than networks.

    Examples
    --------
    Three volumes of one patch each, for three networks:

    >>> box = Box((0, 0, 0), (8, 64, 64))
    >>> cases = [Case("a", "v1", box, 500), Case("b", "v2", box, 300), Case("c", "v3", box, 400)]
    >>> [fold["val"] for fold in choose_folds(cases, 3, SharedPlaces({}))]
    [['a'], ['c'], ['b']]
    >>> choose_folds(cases, 3, SharedPlaces({}))[0]["train"]
    ['b', 'c']
    >>> choose_folds(cases[:2], 2, SharedPlaces({}))
    []
    """
    groups = group_cases(cases, places)
    if count < 2 or len(groups) < max(_LEAST_GROUPS, count):
        return []
    validation: list[list[Case]] = [[] for _ in range(count)]
    for group in sorted(groups, key=lambda g: (-sum(c.voxels for c in g), g[0].name)):
        min(validation, key=lambda fold: (sum(c.voxels for c in fold), len(fold))).extend(group)
    return [
        {
            "train": [c.name for c in cases if c not in fold],
            "val": [c.name for c in cases if c in fold],
        }
        for fold in validation
    ]
