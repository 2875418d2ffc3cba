"""`rescueseg evaluate` and `rescueseg compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rescueseg.campaign import Campaign
from rescueseg.errors import ConfigError, EvaluationError, storage_errors
from rescueseg.progress import shown_progress
from rescueseg.records import Part, Record

if TYPE_CHECKING:
    from rescueseg.evaluation import Evaluation
    from rescueseg.evaluation.pooled import Group

console = Console()
if not console.is_terminal:
    console.width = 140

CampaignArgument = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign.")]
PartOption = Annotated[str, typer.Option(metavar="test|validation", help="Boxes to show; the files hold both parts.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write every score with its interval there.")
]


def evaluate(
    campaign: CampaignArgument,
    generation: Annotated[int, typer.Option(help="Which generation; the champion when omitted.")] = -1,
    part: PartOption = "test",
    json_file: JsonOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and say what would be evaluated; no more.")] = False,
) -> None:
    """Score a generation on the holdout: by class, stratum and domain, plain and weighted to the pool, with intervals.

    Refused where a training has read a box, where a truth is missing, and where the maps are another model's. The page
    it writes also shows the worst boxes, and the most uncertain ones of the whole data that nobody has annotated. The
    champion stays as it was chosen.
    """
    from rescueseg.calibration import kept_calibration
    from rescueseg.evaluation import PARTS, check_evaluation
    from rescueseg.evaluation.kept import evaluate_and_keep
    from rescueseg.evaluation.page import write_evaluation_page
    from rescueseg.evaluation.terminal import show_groups
    from rescueseg.generation import champion
    from rescueseg.pages import family

    opened, first = Campaign.open(campaign), _part(part)
    number = generation if generation >= 0 else champion(opened)
    if number is None:
        raise EvaluationError(
            "there is no champion yet", where=opened.url, todo="Name a generation that has maps: --generation 0"
        )
    assignment = check_evaluation(opened, number)
    voxels = sum(b.box.size for b in assignment.boxes)
    counted = ", ".join(f"{sum(b.part == p for b in assignment.boxes)} {p}" for p in PARTS)
    say(
        f"Generation {number} ({family(opened, number)}): {counted} boxes, {voxels:,} voxels; no training has read any of them"
    )
    if dry_run:
        console.print("Nothing was changed; run again without --dry-run", style="dim")
        return
    with shown_progress(console) as progress:
        evaluation = evaluate_and_keep(opened, number, lambda done, total: progress("boxes", done, total))
        found = _groups(opened, evaluation, first)
        page = write_evaluation_page(opened, evaluation, found)
    show_groups(console, found[first])
    if (calibration := kept_calibration(opened, number)) is not None:
        say(calibration.sentence())
    if json_file is not None:
        _write(json_file, {"generation": number, "model": family(opened, number), "groups": _json(found)})
    say(f"Page: {opened.storage.url_of(page)}")


def compare(
    campaign: CampaignArgument,
    first: Annotated[int, typer.Argument(metavar="A", min=0, help="A generation.")],
    second: Annotated[int, typer.Argument(metavar="B", min=0, help="The one to compare with it.")],
    part: PartOption = "test",
    json_file: JsonOption = None,
) -> None:
    """Compare two generations, of one model family or two: paired differences with intervals, score by score.

    A difference decides when its interval leaves out 0, over at least 8 boxes. Generations that were not evaluated yet,
    or on other truth, are evaluated first.
    """
    from rescueseg.evaluation.comparison import compare_generations
    from rescueseg.evaluation.kept import settled_evaluation
    from rescueseg.evaluation.page import headline, write_comparison_page
    from rescueseg.evaluation.terminal import show_differences
    from rescueseg.pages import family

    opened, shown = Campaign.open(campaign), _part(part)
    if first == second:
        raise ConfigError("both generations are the same", where=str(first), todo="Name two of them")
    with shown_progress(console) as progress:
        a, b = (
            settled_evaluation(opened, g, lambda done, total, g=g: progress(f"generation {g}: boxes", done, total))  # type: ignore[misc]
            for g in (first, second)
        )
        classes = opened.config.classes
        found = {
            p: compare_generations(a, b, p, classes) for p in _order(shown) if p == shown or (a.known(p) and b.known(p))
        }
        page = write_comparison_page(opened, a, b, found)
    names = [f"generation {g} ({family(opened, g)})" for g in (first, second)]
    say(headline(found[shown][0], names))
    show_differences(console, found[shown], names)
    if json_file is not None:
        models = [family(opened, g) for g in (first, second)]
        _write(json_file, {"generations": [first, second], "models": models, "groups": _json(found)})
    say(f"Page: {opened.storage.url_of(page)}")


def say(line: str) -> None:
    """Print a line as it is, however long."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _part(text: str) -> Part:
    from rescueseg.evaluation import PARTS

    if text not in PARTS:
        raise ConfigError(f"'{text}' is no part of the holdout", where="--part", todo="'test' or 'validation'")
    return text


def _order(first: Part) -> list[Part]:
    return [first, "validation" if first == "test" else "test"]


def _groups(campaign: Campaign, evaluation: Evaluation, first: Part) -> dict[Part, list[Group]]:
    from rescueseg.evaluation.pooled import group_scores

    classes = campaign.config.classes
    return {part: group_scores(evaluation, part, classes) for part in _order(first)}


def _json(found: Mapping[Part, Sequence[Record]]) -> list[Any]:
    return [group.to_json() for groups in found.values() for group in groups]


def _write(path: Path, content: Any) -> None:
    with storage_errors(str(path)):
        path.write_text(json.dumps(content, indent=1) + "\n")
    say(f"Scores: {path}")
