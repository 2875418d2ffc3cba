"""How well people agree, per pair and per annotator, over time, and where they do not: tables, a curve, pictures."""

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

NO_PROGRESS: Progress = lambda _what, _done, _total: None  # noqa: E731


@dataclass(frozen=True)
class Measured:
    """A comparison with what only the label arrays tell.

    Parameters
    ----------
    comparison : Comparison
        Of two versions.
    surface_dice : dict
        By class name; see `rescueseg.evaluation.surface.surface_scores`.
    voxels : tuple of int
        Drawn by each of the two, of what both annotated.
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
    drawn: float | None
    """Voxels drawn, over those that the others drew in the same patches; of a pair, the first's over the second's."""


def measure(campaign: Campaign, store: QueueStore, progress: Progress = NO_PROGRESS) -> list[Measured]:
    """Return every comparison of the campaign, oldest first, with surface Dice and voxels drawn.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    progress : callable, optional
        Called with what is counted, how many are done and how many there are.
    """
    found, comparisons = [], store.comparisons()
    for done, comparison in enumerate(comparisons):
        progress("patches compared", done, len(comparisons))
        one, two = (read_version(campaign, v) for v in versions_of(store, comparison))
        spacing = campaign.volume(comparison.volume_id).spacing_um_zyx
        known = ~(one.ignore | two.ignore)
        truth = np.where(known, two.classes, np.uint8(IGNORE))
        surfaces = {}
        for value, name in enumerate(campaign.config.classes, start=1):
            scores = surface_scores(one.classes, truth, value, spacing)
            if scores is not None:
                surfaces[name] = scores[0]
        drawn = [int(np.count_nonzero((labels.classes > 0) & known)) for labels in (one, two)]
        found.append(Measured(comparison, surfaces, (drawn[0], drawn[1])))
    return found


def versions_of(store: QueueStore, comparison: Comparison) -> list[AnnotationRecord]:
    """Return the two versions that were compared."""
    versions = {v.version: v for v in store.annotations(comparison.ticket_id)}
    return [versions[number] for number in comparison.versions]


def by_pair(measured: Iterable[Measured], threshold: float) -> list[Row]:
    """Return one row per pair of people, by name."""
    groups: dict[tuple[str, ...], list[tuple[Measured, int]]] = defaultdict(list)
    for one in measured:
        names = one.comparison.annotators
        groups[tuple(sorted(names))].append((one, int(names[0] > names[1])))
    return [_row(" and ".join(names), found, threshold) for names, found in sorted(groups.items())]


def by_annotator(measured: Iterable[Measured], threshold: float) -> list[Row]:
    """Return one row per person, by name: agreement with all others."""
    return [_row(name, found, threshold) for (name, _), found in _of_person(measured, lambda _: 0)]


def over_time(measured: Iterable[Measured], threshold: float) -> list[Row]:
    """Return one row per person and month, by name and month: agreement with all others."""
    months = _of_person(measured, lambda one: 12 * one.comparison.at.year + one.comparison.at.month - 1)
    return [_row(f"{name}, {n // 12}-{n % 12 + 1:02d}", found, threshold) for (name, n), found in months]


def _of_person(
    measured: Iterable[Measured], key: Callable[[Measured], int]
) -> list[tuple[tuple[str, int], list[tuple[Measured, int]]]]:
    groups: dict[tuple[str, int], list[tuple[Measured, int]]] = defaultdict(list)
    for one in measured:
        for side, name in enumerate(one.comparison.annotators):
            groups[name, key(one)].append((one, side))
    return sorted(groups.items())


def _row(who: str, found: Sequence[tuple[Measured, int]], threshold: float) -> Row:
    comparisons = [one.comparison for one, _ in found]
    values = [c.agreement for c in comparisons]
    objects = [c.objects for c in comparisons if c.objects is not None]
    mine = sum(one.voxels[side] for one, side in found)
    theirs = sum(one.voxels[1 - side] for one, side in found)
    return Row(
        who=who,
        patches=len(found),
        agreement=_mean(values),
        lowest=min(values),
        dice=_means([c.dice for c in comparisons]),
        surface_dice=_means([one.surface_dice for one, _ in found]),
        objects=_mean(objects) if objects else None,
        disputed=sum(value < threshold for value in values),
        drawn=mine / theirs if theirs else None,
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
    return [str(row.patches), *map(_number, scores), str(row.disputed), _number(row.drawn)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


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
