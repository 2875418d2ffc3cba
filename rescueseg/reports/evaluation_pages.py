"""The HTML pages of `rescueseg evaluate` and `rescueseg compare`; each stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import REPORT
from rescueseg.evaluation.calibration import CALIBRATION
from rescueseg.evaluation.champion import Comparison
from rescueseg.evaluation.comparison import GroupComparison
from rescueseg.evaluation.metric_table import METRICS
from rescueseg.evaluation.pooled import Group
from rescueseg.evaluation.scores import BoxScore, Evaluation, about_objects
from rescueseg.evaluation.truth import PARTS, holdout_truth
from rescueseg.evaluation.uncertain_boxes import UncertainBox, most_uncertain
from rescueseg.progress import Progress
from rescueseg.records import Part
from rescueseg.reports.campaign_report import SHOWN, explain_box
from rescueseg.reports.figures import differences
from rescueseg.reports.gallery import BoxPictures, evaluation_figures
from rescueseg.reports.html import family, inline, render_page, shown_metrics, with_pictures


def write_evaluation_page(
    campaign: Campaign,
    evaluation: Evaluation,
    groups: Mapping[Part, Sequence[Group]],
    progress: Progress | None = None,
) -> str:
    """Write the page of one evaluation with its galleries and return its path below the campaign.

    Parameters
    ----------
    campaign : Campaign
        With the generation's maps.
    evaluation : Evaluation
        Complete.
    groups : mapping of str to sequence of Group
        Scores by part, the part to show first in front.
    progress : callable, optional
        Called with (what is counted, how many are done, how many there are) while whole maps are read.
    """
    g = evaluation.generation
    places: list[UncertainBox] = most_uncertain(campaign, g, SHOWN, progress)
    figures = evaluation_figures(campaign, evaluation, places)
    page = render_page(
        "evaluation.html",
        name=campaign.config.name,
        generation=g,
        model=family(campaign.generation(g)),
        parts=[(part, part_groups, shown_metrics(part_groups)) for part, part_groups in groups.items() if part_groups],
        metrics=METRICS,
        about_objects=about_objects({"": evaluation}, campaign.config.classes),
        shown_part=evaluation.test or evaluation.validation,
        worst=with_pictures(evaluation.worst(SHOWN), "worst", figures),
        places=with_pictures(places, "uncertain", figures),
        uncertainty=inline(figures.get("uncertainty_against_error.png", b"")),
        calibration=campaign.generation(g).read(CALIBRATION),
        explain=explain_box,
        url=campaign.url,
    )
    path = REPORT.path(file=f"evaluation_{g:04d}.html")
    campaign.storage.write_bytes(path, page.encode())
    return path


def write_comparison_page(
    campaign: Campaign,
    first: Evaluation,
    second: Evaluation,
    comparison: Comparison,
    groups: Mapping[Part, Sequence[GroupComparison]],
    advice: str = "",
) -> str:
    """Write the page of a comparison and return its path below the campaign.

    The boxes shown are validation boxes, for people who look at them act on them.

    Parameters
    ----------
    campaign : Campaign
        With the maps of both generations.
    first, second : Evaluation
        Complete.
    comparison : Comparison
        The second against the first.
    groups : mapping of str to sequence of GroupComparison
        Differences by part; the validation boxes are shown first.
    advice : str
        Whether to go on, as `rescueseg.evaluation.learning_curve.advise` says it.
    """
    names = [f"generation {e.generation}" for e in (first, second)]
    pairs = most_changed(first, second)
    truth, draw = holdout_truth(campaign), BoxPictures(campaign.volumes, campaign.config.n_classes)
    folders = [campaign.generation(e.generation) for e in (first, second)]
    figures = {
        f"changed_{n}.png": draw.changed(dict(zip(names, folders, strict=True)), pair[0], truth)
        for n, pair in enumerate(pairs, start=1)
    }
    parts = [(part, groups[part]) for part in PARTS if groups.get(part)]
    page = render_page(
        "comparison.html",
        name=campaign.config.name,
        names=names,
        models=[family(campaign.generation(e.generation)) for e in (first, second)],
        comparison=comparison,
        advice=advice,
        parts=parts,
        forest=inline(differences(parts[0][1], names)),
        changed=with_pictures(pairs, "changed", figures),
        metrics=METRICS,
        about_objects=about_objects(dict(zip(names, (first, second), strict=True)), campaign.config.classes),
        url=campaign.url,
    )
    path = REPORT.path(file=f"compare_{first.generation:04d}_{second.generation:04d}.html")
    campaign.storage.write_bytes(path, page.encode())
    return path


def most_changed(first: Evaluation, second: Evaluation, count: int = SHOWN) -> list[tuple[BoxScore, BoxScore]]:
    """Return the validation boxes whose share of wrong voxels differs most between two evaluations."""
    other = {b.key: b for b in second.boxes_with_truth("validation")}
    pairs = [(b, other[b.key]) for b in first.boxes_with_truth("validation") if b.key in other]
    return sorted(pairs, key=lambda p: (-abs(p[0].errors - p[1].errors) / p[0].voxels, p[0].key))[:count]
