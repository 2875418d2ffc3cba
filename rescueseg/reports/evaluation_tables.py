"""Scores and differences as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rescueseg.evaluation.comparison import Difference, GroupComparison
from rescueseg.evaluation.intervals import Interval
from rescueseg.evaluation.metric_table import METRICS, Metric
from rescueseg.evaluation.pooled import CEILING, Figure, Group
from rescueseg.reports.cells import number
from rescueseg.reports.html import shown_metrics


def show_groups(console: Console, groups: Sequence[Group]) -> None:
    """Print every score over all boxes, then the main ones by class, stratum and domain."""
    if not groups:
        console.print("No voxel of these boxes has a known truth")
        return
    whole = groups[0]
    ceiling = ("perfect mask",) if whole.ceilings else ()
    table = _table(f"{whole.boxes} {whole.part} boxes", ("score", "value", "95 %", "boxes", *ceiling))
    for metric in (m for m in METRICS if m.name in whole.scores):
        figure = whole.scores[metric.name]
        best = [number(whole.ceilings.get(metric.name), metric.digits) for _ in ceiling]
        table.add_row(_label(metric), *_figure(metric, figure), str(figure.boxes), *best)
    console.print(table)
    if whole.ceilings:
        console.print(CEILING, style="dim", soft_wrap=True, highlight=False)
    about = f"{whole.about_intervals()}; 'boxes' are those in which a score says something"
    console.print(about, style="dim", soft_wrap=True, highlight=False)
    if len(groups) > 1:
        shown = shown_metrics(groups)
        table = _table("By class, stratum and domain", ("", "boxes", "in truth", *(_label(m) for m in shown)))
        for group in groups[1:]:
            values = (_figure(m, group.scores.get(m.name))[0] for m in shown)
            table.add_row(f"{group.kind} {group.name}", str(group.boxes), f"{group.foreground:.1%}", *values)
        console.print(table)


def show_differences(console: Console, groups: Sequence[GroupComparison], names: Sequence[str]) -> None:
    """Print every paired difference over all boxes, then that of Dice group by group."""
    whole = groups[0]
    columns = ("score", *names, "difference", "95 %")
    table = _table(f"{whole.boxes} {whole.part} boxes", columns)
    for metric in (m for m in METRICS if m.name in whole.differences):
        table.add_row(_label(metric), *_difference(metric, whole.differences[metric.name]))
    console.print(table)
    console.print(whole.about_intervals())
    if len(groups) > 1:
        dice = METRICS[0]
        table = _table("Dice by class, stratum and domain", ("", "boxes", *columns[1:]))
        for group in groups[1:]:
            cells = _difference(dice, group.differences[dice.name])
            table.add_row(f"{group.kind} {group.name}", str(group.boxes), *cells)
        console.print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    return table


def _label(metric: Metric) -> str:
    return f"{metric.label} {'↑' if metric.higher else '↓'}"


def _figure(metric: Metric, figure: Figure | None) -> tuple[str, str]:
    if figure is None:
        return "–", "–"
    return number(figure.value, metric.digits), _range(figure.interval, metric.digits)


def _difference(metric: Metric, difference: Difference) -> tuple[str, ...]:
    digits = metric.digits
    return (
        number(difference.first, digits),
        number(difference.second, digits),
        number(difference.difference, digits, signed=True),
        _range(difference.interval, digits, signed=True),
    )


def _range(ends: Interval | None, digits: int, *, signed: bool = False) -> str:
    return "–" if ends is None else " to ".join(number(end, digits, signed=signed) for end in ends)
