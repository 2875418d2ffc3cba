"""One row per generation: what was annotated, what it brought, how long it took."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rescueseg.campaign import STAGES, Campaign
from rescueseg.campaign.record_file import RecordFile, seconds_file
from rescueseg.campaign.stage_results import EFFORT, QUERY, TICKETS, StageResult
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.records import QueriedPatch
from rescueseg.reports.cells import number

COLUMNS = ("gen", "patches", "voxels", "test Dice", "precision", "recall", "uncertainty", "corrected", *STAGES)
LEGEND = (
    "uncertainty: mean predictive entropy of the queried patches (nats); corrected: voxels the annotator changed; "
    "under each stage its seconds"
)


class Row(StageResult):
    """One generation in the table."""

    generation: int
    patches: int
    """Annotated patches in the snapshot."""
    voxels: int
    """Voxels in them."""
    test_dice: float | None
    test_precision: float | None
    test_recall: float | None
    queried_uncertainty: float | None
    """Mean predictive entropy of the queried patches, in nats."""
    voxels_corrected: int
    """By the annotators, in the patches that are new in this generation."""
    seconds: dict[str, float]
    """By stage."""
    champion: int
    stop: str

    def cells(self) -> list[str]:
        """Return the row as text, in the order of `COLUMNS`."""
        return [
            str(self.generation),
            str(self.patches),
            f"{self.voxels:,}",
            *(number(v) for v in (self.test_dice, self.test_precision, self.test_recall, self.queried_uncertainty)),
            f"{self.voxels_corrected:,}",
            *(f"{self.seconds[stage]:.0f}" if stage in self.seconds else "–" for stage in STAGES),
        ]


REPORT = RecordFile("report", Row)


def row(campaign: Campaign, generation: int) -> Row:
    """Return the row of a generation whose tickets stage is done."""
    judgement = campaign.require(EVALUATION, generation)
    test = judgement.evaluation.test
    return Row(
        generation=generation,
        patches=judgement.annotated_patches,
        voxels=judgement.annotated_voxels,
        test_dice=test.dice if test else None,
        test_precision=test.precision if test else None,
        test_recall=test.recall if test else None,
        queried_uncertainty=campaign.require(QUERY, generation).uncertainty,
        voxels_corrected=campaign.require(EFFORT, generation).voxels_corrected,
        seconds=stage_seconds(campaign, generation),
        champion=judgement.champion,
        stop=campaign.require(TICKETS, generation).stop,
    )


def rows(campaign: Campaign) -> list[Row]:
    """Return the rows of all generations that have queried their next patches, in order."""
    return [row(campaign, g) for g in campaign.generations() if campaign.has(TICKETS, g)]


def table(campaign: Campaign) -> Table:
    """Return the rows of all generations as a table for the terminal."""
    lines = rows(campaign)
    title = f"{campaign.config.name}: champion is generation {lines[-1].champion}"
    result = Table(title=title, caption=LEGEND, box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for name in COLUMNS:
        result.add_column(name, justify="right", overflow="fold")
    for line in lines:
        result.add_row(*line.cells())
    return result


def stage_seconds(campaign: Campaign, generation: int) -> dict[str, float]:
    """Return how long the last attempt at each finished stage took."""
    results = {stage: campaign.result(seconds_file(stage), generation) for stage in STAGES}
    return {stage: seconds for stage, seconds in results.items() if seconds is not None}


def to_markdown(campaign: Campaign, generation: int) -> str:
    """Return a page on one generation: the table up to it, and the patches it queried."""
    table = [r for r in rows(campaign) if r.generation <= generation]
    lines = [
        f"# {campaign.config.name}, generation {generation}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(r.cells()) + " |" for r in table),
        "",
        LEGEND + ".",
        "",
        f"Champion: generation {table[-1].champion}.",
        *([f"The campaign says stop: {table[-1].stop}."] if table[-1].stop else []),
        "",
        "| queried patch | box zyx | score | why |",
        "|---|---|---|---|",
        *(_patch_line(patch) for patch in campaign.require(QUERY, generation).patches),
        "",
        f"Campaign: `{campaign.url}`",
    ]
    return "\n".join(lines)


def _patch_line(patch: QueriedPatch) -> str:
    return f"| {patch.volume_id} | {patch.box} | {patch.score:.4f} | {patch.reason or patch.stratum} |"
