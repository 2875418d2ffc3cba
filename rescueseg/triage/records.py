"""What the triage of a campaign writes down."""

from __future__ import annotations

from rescueseg.campaign.record_file import RecordFile
from rescueseg.geometry import ZYX
from rescueseg.records import Record
from rescueseg.triage.evidence import Evidence
from rescueseg.triage.tree import Complexity, Problem, Route, Step, Structure


class Triage(Record):
    """What the triage found."""

    problem: Problem
    letter: str
    route: Route
    trainer: str
    """The first of the route's trainers that is installed."""
    missing: tuple[str, ...]
    """Better ones that are not."""
    structure: Structure | None
    """The user's word."""
    disagreement: str
    """What word and measurement disagree about; empty when they agree."""
    mask: str
    """Where the rough mask comes from."""
    steps: tuple[Step, ...]
    evidence: tuple[Evidence, ...]
    thresholds: dict[str, float]
    patch_zyx: dict[str, ZYX]
    """Suggested patch shape by volume, in voxels."""
    complexity: Complexity
    advice: tuple[str, ...]
    chunks_read: int
    chunks: int
    """Chunks of all volumes."""

    @property
    def title(self) -> str:
        """The problem for people; not known where no question could be answered."""
        return "not known yet" if all(step.answer is None for step in self.steps) else self.route.title


TRIAGE = RecordFile("triage", Triage)
"""Other rooms read `rescueseg.campaign.route.TRIAGE_SUMMARY` from it."""
