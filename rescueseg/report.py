"""The campaign report: one HTML page that stands alone, with what a lab lead asks first at the top."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import jinja2

from rescueseg.annotation.records import AcceptedAnnotation
from rescueseg.baseline import ThresholdBaseline, threshold_baseline
from rescueseg.campaign import Campaign
from rescueseg.champion import Judgement, dice_interval, headline, judgements
from rescueseg.errors import EvaluationError
from rescueseg.evaluation import BoxScore

REPORT = "reports/report.html"


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
    from rescueseg.figures import generation_figures

    judged = judgements(campaign)
    if not judged:
        raise EvaluationError(
            "there is nothing to report yet", where=campaign.url, todo="Run a generation: 'rescueseg run CAMPAIGN'"
        )
    baseline = (
        ThresholdBaseline.model_validate(threshold_baseline(campaign)) if judged[-1].evaluation.validation else None
    )
    figures = generation_figures(campaign, judged, baseline.test_dice if baseline else None)
    page = render(campaign, judged, baseline, efforts(campaign), figures, links)
    campaign.storage.write_bytes(REPORT, page.encode())
    return Report(path=REPORT, figures=figures)


def render(
    campaign: Campaign,
    judged: Sequence[Judgement],
    baseline: ThresholdBaseline | None,
    effort: Sequence[Effort],
    figures: dict[str, bytes],
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page.

    Parameters
    ----------
    campaign : Campaign
        Named in the page.
    judged : sequence of Judgement
        By generation, at least one.
    baseline : ThresholdBaseline, optional
        The bar to beat.
    effort : sequence of Effort
        Rows of the effort table.
    figures : dict of bytes
        As `rescueseg.figures.generation_figures` returns them; PNGs go into the page.
    links : sequence of (label, URL)
        For the footer.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rescueseg"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    last = judged[-1]
    champion = next(j for j in judged if j.generation == last.champion)
    volumes = campaign.volumes()
    worst = last.evaluation.worst(3)
    pictures = [_inline(figures[f"worst_{n}.png"]) for n in range(1, len(worst) + 1) if f"worst_{n}.png" in figures]
    return environment.get_template("report.html").render(
        name=campaign.config.name,
        classes=campaign.config.classes,
        volumes=volumes,
        voxels=sum(v.shape_zyx[0] * v.shape_zyx[1] * v.shape_zyx[2] for v in volumes),
        url=campaign.url,
        last=last,
        champion=champion,
        before=next((j for j in judged if last.comparison and j.generation == last.comparison.champion), None),
        headline=headline(last),
        against=against_threshold(champion, baseline),
        intervals={j.generation: dice_interval(j.evaluation, "test") for j in judged},
        judged=judged,
        baseline=baseline,
        effort=effort,
        learning_curve=_inline(figures["learning_curve.png"]),
        uncertainty=_inline(figures["uncertainty_against_error.png"])
        if "uncertainty_against_error.png" in figures
        else "",
        shown_part=last.evaluation.test or last.evaluation.validation,
        worst=list(zip(worst, pictures, strict=False)),
        explain=explain_box,
        links=links,
    )


def against_threshold(champion: Judgement, baseline: ThresholdBaseline | None) -> str:
    """Say how the champion compares with the tuned threshold on the test boxes; empty without test boxes."""
    score = champion.evaluation.test
    if baseline is None or baseline.test_dice is None or score is None:
        return ""
    gain = score.dice - baseline.test_dice
    word = "above" if gain > 0 else "below"
    return f"{abs(gain):.2f} {word} the best threshold with clean-up ({baseline.test_dice:.2f})"


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


def efforts(campaign: Campaign) -> list[Effort]:
    """Return what people did, by the generation the accepted patches were asked for; holdout boxes come first."""
    from rescueseg.annotation.store import open_queue

    with closing(open_queue(campaign)) as store:
        accepted = store.accepted(purpose=None)
    groups: dict[tuple[bool, int], list[AcceptedAnnotation]] = defaultdict(list)
    for annotation in accepted:
        holdout = annotation.purpose != "pool"
        groups[not holdout, 0 if holdout else annotation.generation].append(annotation)
    return [
        Effort(
            label=f"generation {generation}" if pool else "holdout boxes",
            patches=len(found),
            voxels=sum(a.box.size for a in found),
            voxels_corrected=sum(a.voxels_corrected for a in found),
            minutes=sum(a.seconds for a in found) / 60,
            annotators=len({a.annotator for a in found}),
        )
        for (pool, generation), found in sorted(groups.items())
    ]


def _inline(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
