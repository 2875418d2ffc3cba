"""What annotation costs: working time and corrected voxels, per person, generation and patch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rescueseg.queue.records import Effort
from rescueseg.records import Record


class EffortRow(Record):
    """Effort summed over a person, a generation or a patch."""

    label: str
    patches: int
    people: int
    minutes: float
    """Under leases, idle time cut out, and in reviewing; what was released or ran out counts too."""
    voxels_corrected: int
    versions: int
    accepted: int
    rejected: int

    @property
    def minutes_per_patch(self) -> float:
        """Working time over patches."""
        return self.minutes / self.patches


def effort_by(efforts: Iterable[Effort], label: Callable[[Effort], str]) -> list[EffortRow]:
    """Return one row per label, by label."""
    groups: dict[str, list[Effort]] = defaultdict(list)
    for effort in efforts:
        groups[label(effort)].append(effort)
    return [
        EffortRow(
            label=name,
            patches=len({effort.ticket_id for effort in group}),
            people=len({effort.annotator for effort in group}),
            minutes=sum(effort.seconds for effort in group) / 60,
            voxels_corrected=sum(effort.voxels_corrected for effort in group),
            versions=sum(effort.versions for effort in group),
            accepted=sum(effort.accepted for effort in group),
            rejected=sum(effort.rejected for effort in group),
        )
        for name, group in sorted(groups.items())
    ]


def generation_label(effort: Effort) -> str:
    """Return the generation that the effort was for; holdout boxes come first."""
    return "holdout boxes" if effort.purpose != "pool" else f"generation {effort.generation:>3}"


def effort_table(title: str, rows: Sequence[EffortRow]) -> Table:
    """Return rows as a table for the terminal."""
    result = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("", overflow="fold")
    for name in ("patches", "people", "min", "min each", "corrected", "versions", "accepted", "rejected"):
        result.add_column(name, justify="right")
    for row in rows:
        result.add_row(
            row.label,
            str(row.patches),
            str(row.people),
            f"{row.minutes:.1f}",
            f"{row.minutes_per_patch:.1f}",
            f"{row.voxels_corrected:,}",
            str(row.versions),
            str(row.accepted),
            str(row.rejected),
        )
    return result
