"""What the triage of a campaign writes down."""

from __future__ import annotations

from typing import Self

from rescueseg.campaign.record_file import RecordFile
from rescueseg.geometry import ZYX, Patch
from rescueseg.records import Record
from rescueseg.triage.evidence import Evidence
from rescueseg.triage.tree import Complexity, Problem, Route, Step, Structure, title_of


class ClassTriage(Record):
    """What was found of one class of several, each measured by itself."""

    name: str
    route: str
    """Name of the route that would suit it alone."""
    voxels: int
    """Annotated, in what was measured."""
    steps: tuple[Step, ...]
    evidence: tuple[Evidence, ...]


class SuggestedPatch(Record):
    """A place to annotate."""

    volume_id: str
    offset_zyx: ZYX
    shape_zyx: ZYX

    @classmethod
    def of(cls, patch: Patch) -> Self:
        """Return the record of a patch."""
        return cls(volume_id=patch.volume_id, offset_zyx=patch.box.offset_zyx, shape_zyx=patch.box.shape_zyx)


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
    """The shape that the user's word names."""
    disagreement: str
    """What word and measurement disagree about; empty when they agree."""
    mask: str
    """Where the rough mask comes from."""
    steps: tuple[Step, ...]
    evidence: tuple[Evidence, ...]
    thresholds: dict[str, float]
    patch_zyx: dict[str, ZYX]
    """Patch shape by volume that is to be expected, in voxels."""
    complexity: Complexity
    advice: tuple[str, ...]
    chunks_read: int
    chunks: int
    """Chunks of all volumes."""
    is_guess: bool = False
    """Whether the route follows from what a threshold painted."""
    word: str = ""
    """The user's word, such as mitochondria; empty where none was said, and in files of versions that kept the shape alone."""
    suggested: SuggestedPatch | None = None
    """A place that shows structure and its surroundings, to annotate next; None where none is free."""
    classes: tuple[ClassTriage, ...] = ()
    """Where several classes are annotated; the evidence and steps of the triage are then those of the one that decides."""

    @property
    def title(self) -> str:
        """The problem for people, or that it is not known."""
        title = title_of(self.route, self.steps)
        return f"{title} (by a threshold; confirm it by one annotated patch)" if self.is_guess else title


TRIAGE = RecordFile("triage", Triage)
"""Other rooms read `rescueseg.campaign.route.TRIAGE_SUMMARY` from it."""
