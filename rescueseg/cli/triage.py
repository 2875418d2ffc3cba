"""`rescueseg triage`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import TRIAGE_PICTURE
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.options import CampaignArgument
from rescueseg.triage.tree import Mask
from rescueseg.triage.words import Named, choices

if TYPE_CHECKING:
    from rescueseg.queue.store import QueueStore
    from rescueseg.triage.records import Triage
    from rescueseg.triage.tree import Step


def triage(
    campaign: CampaignArgument,
    structure: Annotated[Named | None, typer.Option(help=f"What it is: {choices()}. Or its shape.")] = None,
    mask: Annotated[
        Mask,
        typer.Option(
            help="Where a rough mask comes from. Of the truth a few seeded patches are taken, which count as annotated; "
            "auto takes annotations where there are some, else a threshold."
        ),
    ] = "auto",
    channel: Annotated[int, typer.Option(min=0, help="Channel of the image.")] = 0,
) -> None:
    """Say what the problem is, with the evidence: boundary, SNR or topology, and which route it calls for.

    A bounded sample of the volumes is read, however large they are. The route becomes the campaign's default trainer,
    query strategy and cleaning of first masks; set training.trainer, query.strategy or annotation.postprocessing to
    decide yourself.
    """
    from rescueseg.queue.store import open_queue
    from rescueseg.stages.triage import triage_campaign

    opened = Campaign.open(campaign)
    store = open_queue(opened)
    store.migrate()
    with shown_progress(console) as progress:
        result = triage_campaign(
            opened,
            store,
            structure=structure,
            mask=mask,
            channel=channel,
            progress=progress,
        )
    show(result)
    say_line(
        f"Read {result.chunks_read} of {result.chunks} chunks. Picture: {opened.storage.url_of(TRIAGE_PICTURE.path())}"
    )
    console.print(f"Next: rescueseg check {campaign}", style="dim")
    if opened.holdout() is None and result.mask in ("threshold", "none"):
        for line in _hint_lines(campaign, opened, store, result):
            console.print(line, style="dim")


def _hint_lines(url: str, campaign: Campaign, store: QueueStore, result: Triage) -> list[str]:
    """Say how to show the structure, or that somebody was asked to; a place is named only where the threshold sees structure."""
    waiting = {t.patch for t in store.views.tickets(purpose="pool") if t.status in ("queued", "leased")}
    if waiting & set(campaign.example_patches()):
        return [f"or annotate the example that waits: rescueseg queue next {url} --out todo; then triage again"]
    place, near = f"{campaign.volumes.records()[0].volume_id}:z,y,x", result.suggested
    if near is not None and result.is_guess:
        middle = [o + n // 2 for o, n in zip(near.offset_zyx, near.shape_zyx, strict=True)]
        place = f"{near.volume_id}:{','.join(map(str, middle))}"
    return [
        "or show the structure first, at a voxel where you see it:",
        f"  rescueseg sample {url} --example {place}",
        "annotate it, triage again",
    ]


def show(result: Triage) -> None:
    """Print the evidence, the answers, and what follows from them."""
    table = Table(title="Evidence", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("how")
    for item in result.evidence:
        table.add_row(item.name, "unknown" if item.value is None else f"{item.value:.4g}", item.unit, item.how)
    console.print(table)
    console.print()
    values = {item.name: item.value for item in result.evidence}
    counted = (
        f", {values['objects']:.0f} objects, {values['whole_objects']:.0f} of them whole" if "objects" in values else ""
    )
    say_line(f"Rough mask from: {result.mask}{counted}")
    for step in result.steps:
        say_line(_answer_line(step, is_word=result.structure is not None))
    console.print()
    say_line(f"Problem {result.title}; trainer {result.trainer}; complexity {result.complexity}", style="bold")
    if result.disagreement:
        say_line(f"Word and measurement disagree: {result.disagreement}", style="yellow")
    for line in result.advice:
        say_line(line)
    shapes = ", ".join(f"{v} {'×'.join(map(str, s))}" for v, s in result.patch_zyx.items())
    say_line(f"Patches will be of (zyx, voxels): {shapes}")
    if result.suggested is not None:
        (z, y, x), (depth, height, width) = result.suggested.offset_zyx, result.suggested.shape_zyx
        say_line(
            f"Suggested patch to annotate: {result.suggested.volume_id}, from z {z}, y {y}, x {x} (from 0) "
            f"to z {z + depth - 1}, y {y + height - 1}, x {x + width - 1}"
        )


def _answer_line(step: Step, *, is_word: bool) -> str:
    """Return a question with its answer; by the person's word only where one was said that measuring did not say."""
    measured = None if step.measured is None else step.measured >= 1
    words = {True: "yes", False: "no", None: "not known"}
    answer = words[step.answer]
    if is_word and step.answer is not None and step.answer != measured:
        answer += f", by your word (measured: {words[measured]})"
    distance = "" if step.measured is None else f" ({step.measured:.2g} of the threshold)"
    return f"{step.question} {answer}{distance}: {step.detail}"
