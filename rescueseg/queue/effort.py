"""What annotation costs: working time and corrected voxels, per person, generation and patch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rescueseg.queue.records import WorkDone
from rescueseg.records import Record


class EffortRow(Record):
    """Work together: of a person, a generation, a patch."""

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


def effort_by(work: Iterable[WorkDone], label: Callable[[WorkDone], str]) -> list[EffortRow]:
    """Return one row per label, by label."""
    groups: dict[str, list[WorkDone]] = defaultdict(list)
    for done in work:
        groups[label(done)].append(done)
    return [
        EffortRow(
            label=name,
            patches=len({done.ticket_id for done in found}),
            people=len({done.annotator for done in found}),
            minutes=sum(done.seconds for done in found) / 60,
            voxels_corrected=sum(done.voxels_corrected for done in found),
            versions=sum(done.versions for done in found),
            accepted=sum(done.accepted for done in found),
            rejected=sum(done.rejected for done in found),
        )
        for name, found in sorted(groups.items())
    ]


def generation_label(done: WorkDone) -> str:
    """Return for which generation work was done; holdout boxes come first."""
    return "holdout boxes" if done.purpose != "pool" else f"generation {done.generation:>3}"


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
