"""`rescueseg evaluate` and `rescueseg compare`."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.options import CampaignArgument
from rescueseg.errors import ConfigError, EvaluationError, storage_errors
from rescueseg.progress import Progress
from rescueseg.records import HoldoutBox, Part, Record

if TYPE_CHECKING:
    from rescueseg.evaluation.holdout_scores import Assignment
    from rescueseg.evaluation.pooled import Group
    from rescueseg.evaluation.scores import Evaluation


PartOption = Annotated[Part, typer.Option(help="Boxes to show; the files hold both parts.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write every score with its interval there.")
]


def evaluate(
    campaign: CampaignArgument,
    generation: Annotated[int, typer.Option(help="Which generation; the champion when omitted.")] = -1,
    training: Annotated[
        str, typer.Option(metavar="NAME", help="A training of 'rescueseg train' instead: only the boxes are predicted.")
    ] = "",
    part: PartOption = "test",
    json_file: JsonOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and say what would be evaluated; no more.")] = False,
) -> None:
    """Score a generation on the holdout: by class, stratum and domain, with intervals.

    Refused where a training has read a box, where a truth is missing, and where the maps are another model's. The page
    it writes also shows the worst boxes, and the most uncertain ones of the whole data that nobody has annotated. The
    champion stays as it was chosen. Of a training outside the loop the scores are kept beside it, without a page.
    """
    opened = Campaign.open(campaign)
    _compare_volumes(opened.volumes, write=not dry_run)
    if training:
        if generation >= 0:
            raise ConfigError("a generation and a training are two models", where="--training", todo="Name one of them")
        _evaluate_training(opened, training, part, json_file, dry_run=dry_run)
        return
    from rescueseg.delivery.scored_objects import scored_objects
    from rescueseg.evaluation.calibration import CALIBRATION
    from rescueseg.evaluation.champion import champion
    from rescueseg.evaluation.holdout_scores import check_evaluation
    from rescueseg.evaluation.stored_scores import store_scores
    from rescueseg.reports.evaluation_pages import write_evaluation_page
    from rescueseg.reports.evaluation_tables import show_groups
    from rescueseg.reports.html import family

    number = generation if generation >= 0 else champion(opened.generations())
    if number is None:
        raise EvaluationError(
            "there is no champion yet",
            where=opened.url,
            todo="Run 'rescueseg generation', or name a generation that has maps: --generation 0",
        )
    assignment = check_evaluation(opened, number)
    folder = opened.generation(number)
    if _announce(f"Generation {number} ({family(folder)})", assignment.boxes, dry_run=dry_run):
        return
    with shown_progress(console) as progress:
        before = folder.read(CALIBRATION)
        count = functools.partial(progress, "boxes")
        evaluation, calibration = store_scores(opened, assignment, scored_objects(progress), count)
        groups = _groups(opened.config.classes, evaluation, part)
        page = write_evaluation_page(opened, evaluation, groups, progress)
    show_groups(console, groups[part])
    _say_objects({"": evaluation}, opened.config.classes)
    say_line(calibration.sentence())
    if before is not None and before != calibration:
        say_line(
            f"It was {before.temperature:.2f}, for another model or truth, or by an earlier version; a model stored in "
            "MLflow keeps that one"
        )
    if json_file is not None:
        _write(json_file, {"generation": number, "model": family(folder), "groups": _json(groups)})
    say_line(f"Page: {opened.storage.url_of(page)}")


def _compare_volumes(volumes: VolumeFolder, *, write: bool) -> None:
    """Look for volumes that show the same, where that was never done."""
    from rescueseg.volumes.comparison import ensure_compared

    with shown_progress(console) as progress:
        ensure_compared(volumes, progress, write=write)


def _announce(who: str, boxes: Sequence[HoldoutBox], *, dry_run: bool) -> bool:
    """Print what is to be evaluated; return whether the command ends with that."""
    from rescueseg.evaluation.truth import PARTS

    counted = ", ".join(f"{sum(b.part == p for b in boxes)} {p}" for p in PARTS)
    voxels = sum(b.box.size for b in boxes)
    say_line(f"{who}: {counted} boxes, {voxels:,} voxels; no training has read any of them")
    if dry_run:
        console.print("Nothing was changed; run again without --dry-run", style="dim")
    return dry_run


def _evaluate_training(opened: Campaign, name: str, part: Part, json_file: Path | None, *, dry_run: bool) -> None:
    from rescueseg.delivery.scored_objects import scored_objects
    from rescueseg.evaluation.training_scores import TRAINING_EVALUATION, check_training, evaluate_training
    from rescueseg.reports.evaluation_tables import show_groups

    assignment = check_training(opened, name)
    if _announce(f"Training {name}", assignment.boxes, dry_run=dry_run):
        return
    with shown_progress(console) as progress:
        count = functools.partial(progress, "boxes")
        evaluation, calibration = evaluate_training(opened, name, scored_objects(progress), count)
        groups = _groups(opened.config.classes, evaluation, part)
    show_groups(console, groups[part])
    _say_objects({"": evaluation}, opened.config.classes)
    say_line(calibration.sentence())
    if json_file is not None:
        _write(json_file, {"training": name, "model": assignment.model.trainer, "groups": _json(groups)})
    say_line(f"Kept: {opened.storage.url_of(TRAINING_EVALUATION.path(opened.training(name).folder))}")


def compare(
    campaign: CampaignArgument,
    first: Annotated[
        str, typer.Argument(metavar="A", help="A generation, or the name of a training outside the loop.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The one to compare with it.")],
    part: PartOption = "validation",
    json_file: JsonOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be evaluated first, and how many boxes are common; no more."),
    ] = False,
) -> None:
    """Compare two generations, of one model family or two: paired differences with intervals, score by score.

    Dice on the validation boxes decides, by the exact test that moves the champion, whichever boxes are shown. What was
    not evaluated yet, or on other truth, is evaluated first. The page needs the maps of two generations.
    """
    from rescueseg.evaluation.champion import compare_models, judgements
    from rescueseg.evaluation.comparison import compare_generations
    from rescueseg.evaluation.learning_curve import advise
    from rescueseg.reports.evaluation_pages import write_comparison_page
    from rescueseg.reports.evaluation_tables import show_differences

    opened = Campaign.open(campaign)
    if first == second:
        raise ConfigError("both generations are the same", where=first, todo="Name two of them")
    _compare_volumes(opened.volumes, write=not dry_run)
    if dry_run:
        _preview_comparison(opened, (first, second))
        return
    generations = first.isdecimal() and second.isdecimal()
    with shown_progress(console) as progress:
        a, b = (_evaluation(opened, which, progress) for which in (first, second))
        classes = opened.config.classes
        parts = [p for p in _order(part) if p == part or (a.boxes_with_truth(p) and b.boxes_with_truth(p))]
        differences = {p: compare_generations(a, b, p, classes) for p in parts}
        comparison = compare_models(a, b, judgements(opened.generations()))
        advice = advise(opened) if generations else ""
        page = write_comparison_page(opened, a, b, comparison, differences, advice) if generations else ""
    models = [_family(opened, which) for which in (first, second)]
    names = [f"{_name(which)} ({model})" for which, model in zip((first, second), models, strict=True)]
    say_line(comparison.sentence(names[1], names[0]))
    show_differences(console, differences[part], names)
    _say_objects(dict(zip(names, (a, b), strict=True)), classes)
    if advice:
        say_line(f"{advice}.")
    if json_file is not None:
        both = [int(which) if which.isdecimal() else which for which in (first, second)]
        content = {"generations": both, "models": models, "comparison": comparison.to_json(), "advice": advice}
        _write(json_file, content | {"groups": _json(differences)})
    if page:
        say_line(f"Page: {opened.storage.url_of(page)}")


def _say_objects(evaluations: Mapping[str, Evaluation], classes: Sequence[str]) -> None:
    """Print which objects are scored, where the truth numbers any."""
    from rescueseg.evaluation.scores import about_objects

    about = about_objects(evaluations, classes)
    if about:
        say_line(about)


def _preview_comparison(campaign: Campaign, both: Sequence[str]) -> None:
    """Print which evaluations a comparison would make first, and how many boxes it would be over."""
    from rescueseg.evaluation.holdout_scores import check_evaluation
    from rescueseg.evaluation.scores import Evaluation
    from rescueseg.evaluation.stored_scores import box_keys, stored_evaluation
    from rescueseg.evaluation.training_scores import stored_training_evaluation
    from rescueseg.evaluation.truth import PARTS

    evaluations: list[Evaluation | Assignment] = []
    for which in both:
        if which.isdecimal():
            evaluation = stored_evaluation(campaign, int(which)) or check_evaluation(campaign, int(which))
        else:
            previous, assignment = stored_training_evaluation(campaign, which)
            evaluation = previous or assignment
        evaluations.append(evaluation)
        is_evaluated = isinstance(evaluation, Evaluation)
        todo = "evaluated already" if is_evaluated else f"to be evaluated first, on {len(evaluation.boxes)} boxes"
        say_line(f"{_name(which).capitalize()} ({_family(campaign, which)}): {todo}")
    common = {
        part: len(set.intersection(*(box_keys(evaluation, part) for evaluation in evaluations))) for part in PARTS
    }
    say_line(f"Boxes in common: {', '.join(f'{count} {part}' for part, count in common.items())}")
    console.print("Nothing was changed; run again without --dry-run", style="dim")


def _name(which: str) -> str:
    return f"{'generation' if which.isdecimal() else 'training'} {which}"


def _family(campaign: Campaign, which: str) -> str:
    from rescueseg.evaluation.training_scores import require_training_model
    from rescueseg.reports.html import family

    return (
        family(campaign.generation(int(which)))
        if which.isdecimal()
        else require_training_model(campaign, which).trainer
    )


def _evaluation(campaign: Campaign, which: str, progress: Progress) -> Evaluation:
    """Return the evaluation of a generation or a training, which is made where there is none yet."""
    from rescueseg.delivery.scored_objects import scored_objects
    from rescueseg.evaluation.stored_scores import current_evaluation
    from rescueseg.evaluation.training_scores import current_training_evaluation

    def count(done: int, total: int) -> None:
        progress(f"{_name(which)}: boxes", done, total)

    choose = scored_objects(lambda what, done, total: progress(f"{_name(which)}: {what}", done, total))
    if which.isdecimal():
        return current_evaluation(campaign, int(which), choose, count, say_line)
    return current_training_evaluation(campaign, which, choose, count, say_line)


def _order(first: Part) -> list[Part]:
    return [first, "validation" if first == "test" else "test"]


def _groups(classes: Sequence[str], evaluation: Evaluation, first: Part) -> dict[Part, list[Group]]:
    from rescueseg.evaluation.pooled import group_scores

    return {part: group_scores(evaluation, part, classes) for part in _order(first)}


def _json(records: Mapping[Part, Sequence[Record]]) -> list[Any]:
    return [record.to_json() for of_part in records.values() for record in of_part]


def _write(path: Path, content: Any) -> None:
    with storage_errors(str(path)):
        path.write_text(json.dumps(content, indent=1) + "\n")
    say_line(f"Scores: {path}")
