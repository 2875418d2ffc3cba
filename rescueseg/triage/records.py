"""What the triage of a campaign writes down."""

from __future__ import annotations

from rescueseg.campaign.record_file import RecordFile
from rescueseg.geometry import ZYX
from rescueseg.records import Record
from rescueseg.triage.evidence import Evidence
from rescueseg.triage.tree import Complexity, Problem, Route, Step, Structure


class ClassTriage(Record):
    """What was found of one class of several, each measured by itself."""

    name: str
    route: str
    """Name of the route that would suit it alone."""
    voxels: int
    """Annotated, in what was measured."""
    steps: tuple[Step, ...]
    evidence: tuple[Evidence, ...]


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
    classes: tuple[ClassTriage, ...] = ()
    """Where several classes are annotated; the evidence and steps of the triage are then those of the one that decides."""

    @property
    def title(self) -> str:
        """The problem for people; not known where no question could be answered, or the patches cut what would tell."""
        is_open = self.route.name == "custom" and any(s.answer is None and s.measured is not None for s in self.steps)
        return "not known yet" if is_open or all(s.answer is None for s in self.steps) else self.route.title


TRIAGE = RecordFile("triage", Triage)
"""Other rooms read `rescueseg.campaign.route.TRIAGE_SUMMARY` from it."""
