"""One row per generation: what was annotated, what it brought, how long it took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rescueseg.campaign import STAGES, GenerationFolder
from rescueseg.campaign.record_file import RecordFile, seconds_file
from rescueseg.campaign.stage_results import EFFORT, QUERY, TICKETS, StageResult
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.stored_scores import latest_evaluation
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
    test_boxes: int = 0
    """Boxes behind the scores; 0 in rows of earlier versions."""

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


def row(generation: GenerationFolder) -> Row:
    """Return the row of a generation whose tickets stage is done."""
    judgement = generation.require(EVALUATION)
    latest = latest_evaluation(generation, judgement)
    test = latest.test
    return Row(
        generation=generation.number,
        patches=judgement.annotated_patches,
        voxels=judgement.annotated_voxels,
        test_dice=test.dice if test else None,
        test_precision=test.precision if test else None,
        test_recall=test.recall if test else None,
        queried_uncertainty=generation.require(QUERY).uncertainty,
        voxels_corrected=generation.require(EFFORT).voxels_corrected,
        seconds=stage_seconds(generation),
        champion=judgement.champion,
        stop=generation.require(TICKETS).stop,
        test_boxes=len(latest.boxes_with_truth("test")),
    )


def rows(generations: Iterable[GenerationFolder]) -> list[Row]:
    """Return the rows of all generations that have queried their next patches, in order."""
    return [row(generation) for generation in generations if generation.has(TICKETS)]


def legend(lines: Sequence[Row]) -> str:
    """Return what the columns are, and over how many test boxes the scores where that differs between generations."""
    boxes = {line.generation: line.test_boxes for line in lines if line.test_boxes}
    if len(set(boxes.values())) < 2:
        return LEGEND
    counts = ", ".join(f"{count} in generation {number}" for number, count in boxes.items())
    return f"{LEGEND}; test boxes: {counts}, so that their scores are no comparison"


def table(name: str, lines: Sequence[Row]) -> Table:
    """Return the rows of all generations of a campaign as a table for the terminal; at least one."""
    title = f"{name}: champion is generation {lines[-1].champion}"
    result = Table(title=title, caption=legend(lines), box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for column in COLUMNS:
        result.add_column(column, justify="right", overflow="fold")
    for line in lines:
        result.add_row(*line.cells())
    return result


def stage_seconds(generation: GenerationFolder) -> dict[str, float]:
    """Return how long the last attempt at each finished stage took."""
    results = {stage: generation.read(seconds_file(stage)) for stage in STAGES}
    return {stage: seconds for stage, seconds in results.items() if seconds is not None}


def to_markdown(name: str, generation: GenerationFolder) -> str:
    """Return a page on one generation: the table up to it, and the patches it queried."""
    table = rows(g for g in generation.all() if g.number <= generation.number)
    lines = [
        f"# {name}, generation {generation.number}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(r.cells()) + " |" for r in table),
        "",
        legend(table) + ".",
        "",
        f"Champion: generation {table[-1].champion}.",
        *([f"The campaign says stop: {table[-1].stop}."] if table[-1].stop else []),
        "",
        "| queried patch | box zyx | score | why |",
        "|---|---|---|---|",
        *(_patch_line(patch) for patch in generation.require(QUERY).patches),
        "",
        f"Campaign: `{generation.storage.url}`",
    ]
    return "\n".join(lines)


def _patch_line(patch: QueriedPatch) -> str:
    return f"| {patch.volume_id} | {patch.box} | {patch.score:.4f} | {patch.reason or patch.stratum} |"
