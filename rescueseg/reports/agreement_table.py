"""How well people agree, per pair, per annotator and over time: what is counted, as rows and as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rescueseg.annotation.label_files import read_version
from rescueseg.campaign import Campaign
from rescueseg.evaluation.surface import surface_scores
from rescueseg.labels import IGNORE
from rescueseg.progress import Progress
from rescueseg.queue.records import AnnotationRecord, Comparison
from rescueseg.queue.store import QueueStore
from rescueseg.reports.cells import number


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class MaskComparison:
    """A comparison of two versions, with what is computed from their label arrays.

    Parameters
    ----------
    comparison : Comparison
        Of two versions.
    surface_dice : dict
        By class name; see `rescueseg.evaluation.surface.surface_scores`.
    voxels : tuple of int
        Foreground voxels of each of the two, of what both annotated.
    """

    comparison: Comparison
    surface_dice: dict[str, float]
    voxels: tuple[int, int]


@dataclass(frozen=True)
class Row:
    """Comparisons together: of a pair, of a person, of a person in one generation."""

    who: str
    patches: int
    agreement: float
    """Mean over the patches."""
    lowest: float
    dice: dict[str, float]
    """By class, mean over the patches in which either drew it."""
    surface_dice: dict[str, float]
    objects: float | None
    disputed: int
    """Patches below the campaign's threshold."""
    voxel_ratio: float | None
    """Voxels drawn, over those that the others drew in the same patches; of a pair, the first's over the second's."""


def measure(campaign: Campaign, store: QueueStore, progress: Progress = no_progress) -> list[MaskComparison]:
    """Return every comparison of the campaign, oldest first, with surface Dice and voxels drawn.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    progress : callable, optional
        Called with (what is counted, how many are done, how many there are).
    """
    records = store.views.comparisons()
    comparisons = []
    for index, comparison in enumerate(records):
        progress("patches compared", index, len(records))
        one, two = (read_version(campaign.storage, v) for v in versions_of(store, comparison))
        spacing = campaign.volumes.record(comparison.volume_id).spacing_um_zyx
        annotated = ~(one.ignore | two.ignore)
        truth = np.where(annotated, two.classes, np.uint8(IGNORE))
        surfaces = {}
        for value, name in enumerate(campaign.config.classes, start=1):
            scores = surface_scores(one.classes, truth, value, spacing)
            if scores is not None:
                surfaces[name] = scores.dice
        first, second = (int(np.count_nonzero((labels.classes > 0) & annotated)) for labels in (one, two))
        comparisons.append(MaskComparison(comparison, surfaces, (first, second)))
    return comparisons


def versions_of(store: QueueStore, comparison: Comparison) -> list[AnnotationRecord]:
    """Return the two versions that were compared."""
    versions = {v.version: v for v in store.views.annotations(comparison.ticket_id)}
    return [versions[number] for number in comparison.versions]


def by_pair(comparisons: Iterable[MaskComparison], threshold: float) -> list[Row]:
    """Return one row per pair of people, by name."""
    groups: dict[tuple[str, ...], list[tuple[MaskComparison, int]]] = defaultdict(list)
    for one in comparisons:
        names = one.comparison.annotators
        groups[tuple(sorted(names))].append((one, int(names[0] > names[1])))
    return [_row(" and ".join(names), group, threshold) for names, group in sorted(groups.items())]


def by_annotator(comparisons: Iterable[MaskComparison], threshold: float) -> list[Row]:
    """Return one row per person, by name: agreement with all others."""
    return [_row(name, group, threshold) for (name, _), group in _of_person(comparisons, lambda _: 0)]


def over_time(comparisons: Iterable[MaskComparison], threshold: float) -> list[Row]:
    """Return one row per person and month, by name and month: agreement with all others."""
    months = _of_person(comparisons, lambda one: 12 * one.comparison.at.year + one.comparison.at.month - 1)
    return [_row(f"{name}, {n // 12}-{n % 12 + 1:02d}", group, threshold) for (name, n), group in months]


def _of_person(
    comparisons: Iterable[MaskComparison], key: Callable[[MaskComparison], int]
) -> list[tuple[tuple[str, int], list[tuple[MaskComparison, int]]]]:
    groups: dict[tuple[str, int], list[tuple[MaskComparison, int]]] = defaultdict(list)
    for one in comparisons:
        for side, name in enumerate(one.comparison.annotators):
            groups[name, key(one)].append((one, side))
    return sorted(groups.items())


def _row(who: str, group: Sequence[tuple[MaskComparison, int]], threshold: float) -> Row:
    """Return the row of some comparisons, each with the side (0 or 1) whose voxels count as one's own."""
    records = [one.comparison for one, _ in group]
    values = [c.agreement for c in records]
    objects = [c.objects for c in records if c.objects is not None]
    mine = sum(one.voxels[side] for one, side in group)
    theirs = sum(one.voxels[1 - side] for one, side in group)
    return Row(
        who=who,
        patches=len(group),
        agreement=_mean(values),
        lowest=min(values),
        dice=_means([c.dice for c in records]),
        surface_dice=_means([one.surface_dice for one, _ in group]),
        objects=_mean(objects) if objects else None,
        disputed=sum(value < threshold for value in values),
        voxel_ratio=mine / theirs if theirs else None,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _means(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: _mean([table[name] for table in tables if name in table]) for name in names}


def columns(classes: Sequence[str], objects: bool) -> list[str]:
    """Return the headings of a table of rows."""
    per_class = [f"{score} {name}" for name in classes for score in ("Dice", "surface")]
    return ["patches", "agreement", "lowest", *per_class, *(["objects F1"] if objects else []), "disputed", "drawn"]


def cells(row: Row, classes: Sequence[str], objects: bool) -> list[str]:
    """Return a row as text, in the order of `columns`."""
    per_class = [table.get(name) for name in classes for table in (row.dice, row.surface_dice)]
    scores = [row.agreement, row.lowest, *per_class, *([row.objects] if objects else [])]
    return [str(row.patches), *map(number, scores), str(row.disputed), number(row.voxel_ratio)]


def table(title: str, rows: Sequence[Row], classes: Sequence[str]) -> Table:
    """Return rows as a table for the terminal."""
    objects = any(row.objects is not None for row in rows)
    result = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("", overflow="fold")
    for name in columns(classes, objects):
        result.add_column(name, justify="right")
    for row in rows:
        result.add_row(row.who, *cells(row, classes, objects))
    return result


LEGEND = (
    "agreement: mean Dice over the classes, or F1 of the objects where that is lower; surface: share of both surfaces "
    "within two voxels of the finest axis; disputed: patches below annotation.agreement_dice; drawn: voxels drawn over "
    "those that the other drew in the same patches"
)
