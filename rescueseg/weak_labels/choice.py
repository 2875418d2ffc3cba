"""What the first masks are made from, how their method was chosen, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from rescueseg.campaign.record_file import RecordFile
from rescueseg.records import Record
from rescueseg.weak_labels.methods import METHODS


@dataclass(frozen=True)
class Sources:
    """What a person provides beside the campaign."""

    scribbles: tuple[str, ...] = ()
    ilp: str = ""
    from_campaign: str = ""
    weights: str = ""
    """File, or for StarDist folder, of weights that were made elsewhere."""
    diameter_um: float | None = None
    """Of a typical object, where the method that uses the weights needs it."""
    licence: str = ""
    """Of the weights, as the person says."""
    python: str = ""
    """Python of an environment that has cellpose 4, for Cellpose-SAM."""

    def lacks(self, method: str, *, is_annotated: bool) -> str:
        """Return what a method needs and nobody provides; empty where nothing is missing. Weights are looked at elsewhere.

        Examples
        --------
        >>> Sources().lacks("ilastik", is_annotated=True), Sources().lacks("classifier", is_annotated=True)
        ('--ilp FILE', '')
        """
        needs = {
            "classifier": (is_annotated or bool(self.scribbles), "--scribbles FILE, or annotate a patch first"),
            "ilastik": (bool(self.ilp), "--ilp FILE"),
            "champion": (bool(self.from_campaign), "--from-campaign URL"),
        }
        has, option = needs.get(method, (True, ""))
        return "" if has else option


class ComparedPatch(Record):
    """An accepted annotation that methods were compared on, and the first mask that it was made from."""

    ticket: str
    began_from: str


class MethodChoice(Record):
    """How the method of the first masks was chosen, for people to read."""

    method: str
    reason: str
    agreements: dict[str, float]
    """By method."""
    compared_on: tuple[ComparedPatch, ...]
    doubt: str = ""
    """Why its masks are not painted; empty where they are."""
    invented: float = 0.0
    """Share of the annotated background that the method paints: see `rescueseg.weak_labels.judgement.stands_out`."""
    made_for: str = ""
    """Digest of what the choice depends on; empty where an earlier version chose."""


CHOICE = RecordFile("choice", MethodChoice)


class UsedWeights(Record):
    """Weights from elsewhere that first masks were made with, beside the masks."""

    method: str
    weights: str
    """Name of the file or folder."""
    weights_digest: str
    """The sha256 of what was read of it."""
    licence: str
    diameter_um: float | None = None
    pixels: float | None = None
    """How wide the network is shown objects, where that follows from the name of the file."""


WEIGHTS = RecordFile("weights", UsedWeights)
"""In the folder of the masks."""


class Result(Record):
    """The method, and how many tickets get a first mask by it."""

    method: str
    reason: str
    agreements: dict[str, float]
    tickets: int
    """Tickets that got, or would get, a first mask."""
    n_claimed: int = 0
    """Tickets that somebody took meanwhile; they stay as they are."""
    n_empty: int = 0
    """Tickets that start empty, as what was found there may be mistakes alone."""
    n_taken_back: int = 0
    """Tickets that had a first mask which is doubted now; they start empty again."""
    doubts: dict[str, str]
    """By volume: why its tickets start empty."""
    notes: tuple[str, ...] = ()
    """What is to be known of the method's weights: their licence, and how they are used."""


def describe(result: Result, dry_run: bool = False) -> list[str]:
    """Say in lines what was done, or would be."""
    ranked = sorted(result.agreements.items(), key=lambda item: -item[1])
    lines = [f"  {name:<12} {value:.3f}  {METHODS[name]}" for name, value in ranked]
    if lines:
        lines.insert(0, "Agreement with the accepted annotations (Dice, weighted by confidence):")
    lines.append(f"Method {result.method}: {result.reason}")
    lines += result.notes
    lines += [f"Tickets of '{volume}' start empty: {doubt}" for volume, doubt in sorted(result.doubts.items())]
    if result.doubts:
        lines.append(
            "Annotate one more patch that holds the structure, or give --scribbles, then run the command again"
        )
    verb = "would get" if dry_run else "got"
    lines.append(
        f"{result.tickets} tickets {verb} a first mask"
        + (f", {result.n_claimed} were taken meanwhile" * bool(result.n_claimed))
        + (
            f", {result.n_empty} start empty: no more is found there than the method invents where nothing is"
            * bool(result.n_empty)
        )
    )
    if result.n_taken_back:
        verb = "would be" if dry_run else "were"
        lines.append(
            f"{result.n_taken_back} earlier first masks {verb} taken back: by what is known now they are likely wrong"
        )
    return lines
