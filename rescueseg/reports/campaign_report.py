"""The campaign report: one HTML page that stands alone, with what a lab lead asks first at the top."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

from rescueseg.campaign import Campaign, layout
from rescueseg.campaign.stage_results import TRIAL
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.errors import EvaluationError
from rescueseg.evaluation.answer import answer
from rescueseg.evaluation.calibration import CALIBRATION
from rescueseg.evaluation.champion import Judgement, compare_models, dice_interval
from rescueseg.evaluation.comparison import GroupComparison, compare_generations
from rescueseg.evaluation.metric_table import METRICS
from rescueseg.evaluation.pooled import Group, group_scores
from rescueseg.evaluation.scores import BoxScore, Evaluation, about_objects
from rescueseg.evaluation.stored_scores import scored_today
from rescueseg.evaluation.threshold_baseline import ThresholdBaseline, threshold_baseline
from rescueseg.evaluation.uncertain_boxes import UncertainBox, most_uncertain
from rescueseg.queue.effort import EffortRow, effort_by
from rescueseg.queue.store import open_queue
from rescueseg.records import AcceptedAnnotation, Part
from rescueseg.reports.gallery import generation_figures
from rescueseg.reports.html import family, inline, render_page, shown_metrics, with_pictures

REPORT = layout.REPORT.path(file="report.html")
SHOWN = 3
"""Boxes in each gallery."""


@dataclass(frozen=True)
class Report:
    """A written report.

    Parameters
    ----------
    path : str
        Of the page, below the campaign.
    figures : dict of bytes
        The PNGs in it by file name, for MLflow.
    """

    path: str
    figures: dict[str, bytes]


@dataclass(frozen=True)
class Effort:
    """What people did for one generation: the annotations accepted for its snapshot.

    Parameters
    ----------
    label : str
        For which generation, or the holdout.
    patches, voxels, voxels_corrected : int
        Patches, the voxels in them, and those changed from the mask they started from.
    minutes : float
        As the tools reported.
    annotators : int
        How many people.
    """

    label: str
    patches: int
    voxels: int
    voxels_corrected: int
    minutes: float
    annotators: int

    @property
    def corrected_share(self) -> float:
        """Share of the voxels that had to be changed."""
        return self.voxels_corrected / self.voxels if self.voxels else 0.0


def write_report(campaign: Campaign, links: Sequence[tuple[str, str]] = ()) -> Report:
    """Write the report on all generations judged so far; the last one is the candidate it opens with.

    Parameters
    ----------
    campaign : Campaign
        With at least one judged generation.
    links : sequence of (label, URL)
        Where to look further, such as MLflow's page of the campaign.

    Returns
    -------
    Report
        The page is written atomically; written again, it is replaced.

    Raises
    ------
    EvaluationError
        If no generation was judged yet.
    """
    history, remarks = scored_today(campaign, choose_scored_objects)
    if not history:
        raise EvaluationError(
            "there is nothing to report yet",
            where=campaign.url,
            todo=f"Run a generation: 'rescueseg generation {campaign.url}'",
        )
    baseline = threshold_baseline(campaign) if history[-1].evaluation.validation else None
    places = most_uncertain(campaign, history[-1].generation, SHOWN)
    figures = generation_figures(campaign, history, baseline.test_dice if baseline else None, places)
    effort, workers = _efforts(campaign)
    content = _Content(history, remarks, baseline, effort, workers, places, figures, links)
    page = _render(campaign, content)
    campaign.storage.write_bytes(REPORT, page.encode())
    return Report(path=REPORT, figures=figures)


@dataclass(frozen=True)
class _Content:
    """What a report is made of: see `write_report`; `remarks` are on scores that were counted anew, or could not be."""

    history: Sequence[Judgement]
    remarks: Sequence[str]
    baseline: ThresholdBaseline | None
    effort: Sequence[Effort]
    workers: Sequence[EffortRow]
    places: Sequence[UncertainBox]
    figures: dict[str, bytes]
    links: Sequence[tuple[str, str]]


def _render(campaign: Campaign, content: _Content) -> str:
    """Return the page."""
    history, figures = content.history, content.figures
    last = history[-1]
    champion = next(j for j in history if j.generation == last.champion)
    volumes = campaign.volumes.records()
    before = next((j for j in history if last.comparison and j.generation == last.comparison.champion), None)
    classes = campaign.config.classes
    groups = _groups(classes, last.evaluation)
    older = last.comparison is not None and last.comparison.level is None
    return render_page(
        "report.html",
        name=campaign.config.name,
        classes=classes,
        volumes=volumes,
        voxels=sum(v.shape_zyx[0] * v.shape_zyx[1] * v.shape_zyx[2] for v in volumes),
        url=campaign.url,
        last=last,
        champion=champion,
        one_box=rests_on_one_box(champion.evaluation),
        before=before,
        models={j.generation: family(campaign.generation(j.generation)) for j in history},
        groups=groups,
        group_metrics=shown_metrics(groups),
        compared=_comparison_with(classes, before, last),
        today=compare_models(before.evaluation, last.evaluation, history) if older and before else None,
        remarks=content.remarks,
        about_objects=about_objects({"": last.evaluation}, classes),
        about_both=about_objects({f"generation {j.generation}": j.evaluation for j in (before, last) if j}, classes),
        metrics=METRICS,
        answer=answer(campaign, last),
        against=against_threshold(champion, content.baseline),
        intervals={j.generation: dice_interval(j.evaluation, "test") for j in history},
        history=history,
        trials=[(g.number, trial) for g in campaign.generations() if (trial := g.read(TRIAL)) is not None],
        baseline=content.baseline,
        effort=content.effort,
        workers=content.workers,
        learning_curve=inline(figures["learning_curve.png"]),
        uncertainty=inline(figures.get("uncertainty_against_error.png", b"")),
        calibration=campaign.generation(last.generation).read(CALIBRATION),
        shown_part=last.evaluation.test or last.evaluation.validation,
        worst=with_pictures(last.evaluation.worst(SHOWN), "worst", figures),
        places=with_pictures(content.places, "uncertain", figures),
        explain=explain_box,
        links=content.links,
    )


def against_threshold(champion: Judgement, baseline: ThresholdBaseline | None) -> str:
    """Say how the champion compares with the tuned threshold on the test boxes; empty without test boxes that have a Dice."""
    score = champion.evaluation.test
    if baseline is None or baseline.test_dice is None or score is None or score.dice is None:
        return ""
    gain = score.dice - baseline.test_dice
    word = "above" if gain > 0 else "below"
    return f"{abs(gain):.2f} {word} the best threshold with clean-up ({baseline.test_dice:.2f})"


def rests_on_one_box(evaluation: Evaluation) -> str:
    """Say how much of the structure in the test boxes lies in one of them, where that is more than half; else nothing."""
    truth = [sum(c.tp + c.fn for c in box.counts) for box in evaluation.boxes_with_truth("test")]
    if len(truth) < 2 or max(truth) <= 0.5 * sum(truth):
        return ""
    return f"{100 * max(truth) / sum(truth):.0f} % of the structure in them lies in one of the {len(truth)} boxes"


def explain_box(score: BoxScore) -> str:
    """Say what is mostly wrong in a box."""
    missed, invented = sum(c.fn for c in score.counts), sum(c.fp for c in score.counts)
    if not missed and not invented:
        return "nothing is wrong here"
    if not any(c.tp + c.fn for c in score.counts):
        return "nothing is there, yet something was found"
    if missed > 2 * invented:
        return "mostly missed"
    if invented > 2 * missed:
        return "mostly invented"
    return "missed and invented alike"


def _efforts(campaign: Campaign) -> tuple[list[Effort], list[EffortRow]]:
    """Return the effort by generation, and what each person put in, by name: all leases, and reviewing."""
    with closing(open_queue(campaign)) as store:
        people = effort_by(store.views.efforts(), lambda work: work.annotator)
        return effort_by_generation(store.views.accepted(purpose=None)), people


def effort_by_generation(accepted: Iterable[AcceptedAnnotation]) -> list[Effort]:
    """Return what people did, by the generation that queried the accepted patches; holdout boxes come first."""
    groups: dict[tuple[bool, int], list[AcceptedAnnotation]] = defaultdict(list)
    for annotation in accepted:
        holdout = annotation.purpose != "pool"
        groups[not holdout, 0 if holdout else annotation.generation].append(annotation)
    return [
        Effort(
            label=f"generation {generation}" if pool else "holdout boxes",
            patches=len(annotations),
            voxels=sum(a.box.size for a in annotations),
            voxels_corrected=sum(a.voxels_corrected for a in annotations),
            minutes=sum(a.seconds for a in annotations) / 60,
            annotators=len({a.annotator for a in annotations}),
        )
        for (pool, generation), annotations in sorted(groups.items())
    ]


def _shown_part(evaluation: Evaluation) -> Part:
    return "test" if evaluation.test else "validation"


def _groups(classes: Sequence[str], evaluation: Evaluation) -> list[Group]:
    """Return the scores of the shown part by class, stratum and domain; none where the boxes' details were not stored."""
    if not evaluation.complete:
        return []
    return group_scores(evaluation, _shown_part(evaluation), classes)


def _comparison_with(classes: Sequence[str], before: Judgement | None, last: Judgement) -> GroupComparison | None:
    """Compare the last generation with the champion before it; None where that cannot be done box by box."""
    if before is None or not (before.evaluation.complete and last.evaluation.complete):
        return None
    part: Part = "validation"
    if not {b.key for b in before.evaluation.boxes_with_truth(part)} & {
        b.key for b in last.evaluation.boxes_with_truth(part)
    }:
        return None
    return compare_generations(before.evaluation, last.evaluation, part, classes)[0]
