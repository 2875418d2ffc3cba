"""`rescueseg sample` and `weak-label`: holdout, starting patches and first masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rescueseg.campaign import Campaign
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.options import CampaignArgument

if TYPE_CHECKING:
    from rescueseg.queue.records import NewTicket
    from rescueseg.queue.store import QueueStore
    from rescueseg.records import Holdout, QueriedPatch

MethodName = Literal[
    "auto",
    "threshold",
    "blobs",
    "tubes",
    "membranes",
    "classifier",
    "ilastik",
    "champion",
    "cellpose",
    "cellpose-sam",
    "stardist",
]
"""`auto` and each of `rescueseg.weak_labels.methods.METHODS`, named here so that ``--help`` need not import them."""


Scribbles = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[VOLUME=]FILE",
        help="Label image of a volume that shows where the structure is, for a quick classifier: 0 background, 1…K classes, "
        "255 not drawn; repeat the option.",
    ),
]
_BLIND = "These places were chosen without knowing the structure."


def sample(
    campaign: CampaignArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be frozen and queued, and change nothing.")
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Write a contact sheet: every patch in three planes under its stratum.")
    ] = False,
    example: Annotated[
        str,
        typer.Option(
            metavar="VOLUME:Z,Y,X",
            help="Queue a patch around this voxel, where the structure is, and freeze nothing yet.",
        ),
    ] = "",
    scribbles: Scribbles = None,
) -> None:
    """Freeze the holdout and queue the first tickets.

    Patches are drawn by strata: best and worst case, low SNR, dense, sparse, edge of volume, imaging artefact. The
    measured numbers that decided are shown with each.

    These cannot see the structure. So show it first: `--example` queues one patch around a voxel, with the usual tools it is
    annotated, and the next `sample` draws three quarters of the boxes and patches where a quick classifier finds the same.
    The example is the first training patch, and no holdout box touches it. `--scribbles` do the same.
    """
    from rescueseg.queue.store import open_queue
    from rescueseg.reports.sampling_table import write_sheet
    from rescueseg.stages import hints, tickets

    if example and (dry_run or preview or scribbles):
        others = "an example is queued at once, and nothing is drawn: leave --dry-run, --preview and --scribbles out"
        raise typer.BadParameter(others, param_hint="--example")
    opened = Campaign.open(campaign)
    store = open_queue(opened)
    if example:
        console.print(f"Example queued: {hints.ask_example(opened, store, example)}")
        console.print(f"Next: rescueseg queue next {campaign} --out todo; then triage and sample again", style="dim")
        return
    given = tuple(scribbles or ())
    with shown_progress(console) as progress:
        new = 0 if dry_run else tickets.prepare(opened, store, progress, given)
        holdout, starting = tickets.preview_sampling(opened, lambda: store, progress, given if dry_run else ())
        sheet = write_sheet(opened, holdout, starting, progress) if preview else ""
    first = tickets.first_tickets(opened.config, opened.volumes.records(), holdout, starting)
    _show_plan(opened, store, holdout, starting, first)
    if sheet:
        say_line(f"Contact sheet: {sheet}")
    parts = [box.part for box in holdout.all_boxes]
    counted = f"{parts.count('validation')} validation and {parts.count('test')} test boxes"
    if dry_run:
        console.print(f"{counted} would be frozen and {len(first)} tickets queued, less those that are already")
        beside = " beside the contact sheet" if sheet else ""
        console.print(f"Nothing was changed{beside}; run again without --dry-run", style="dim")
        if opened.holdout() is None and not hints.drawn_by_hint(holdout):
            say_line(f"{_BLIND} Show it first: rescueseg sample {campaign} --example VOLUME:z,y,x")
        return
    console.print(f"{counted} are frozen, {new} new tickets")
    console.print(f"Next: rescueseg queue next {campaign} --out todo", style="dim")


def _show_plan(
    campaign: Campaign,
    store: QueueStore,
    holdout: Holdout,
    starting: Sequence[QueriedPatch],
    first: Sequence[NewTicket],
) -> None:
    """Print what is drawn and what that asks of people."""
    from rescueseg.reports import sampling_table
    from rescueseg.sampling.effort import pace

    console.print(sampling_table.table(holdout, starting))
    for line in sampling_table.remarks(campaign, holdout, starting):
        say_line(line)
    minutes = pace(store.views.accepted(purpose=None))
    if campaign.generations():
        asked = sampling_table.waiting_lines(store.views.tickets(), minutes)
    else:
        asked = sampling_table.effort_lines(campaign.volumes.records(), holdout, first, minutes)
    for line in asked:
        say_line(line)


def weak_label(
    campaign: CampaignArgument,
    method: Annotated[MethodName, typer.Option(help="How the masks are made.")] = "auto",
    scribbles: Scribbles = None,
    ilp: Annotated[str, typer.Option(metavar="FILE", help="Pixel classification project of ilastik.")] = "",
    from_campaign: Annotated[str, typer.Option(metavar="URL", help="Campaign whose champion predicts.")] = "",
    weights: Annotated[
        str, typer.Option(metavar="PATH", help="Weights file of Cellpose, or folder of a StarDist model.")
    ] = "",
    diameter: Annotated[
        float | None, typer.Option(metavar="UM", min=1e-6, help="Diameter of a typical object in micrometre.")
    ] = None,
    licence: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Licence of the weights, as their publisher says; kept beside the masks."),
    ] = "",
    python: Annotated[
        str, typer.Option(metavar="PYTHON", help="Python of an environment with cellpose 4, for Cellpose-SAM.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Choose the method, and write nothing.")] = False,
) -> None:
    """Give the queued pool tickets a first mask, so that nobody starts from an empty one.

    By default the method is the one that agrees best with the accepted annotations. Run it again when the first are in.
    """
    from rescueseg.queue.store import open_queue
    from rescueseg.weak_labels.choice import Sources, describe
    from rescueseg.weak_labels.prefill import weak_label as label

    opened = Campaign.open(campaign)
    sources = Sources(tuple(scribbles or ()), ilp, from_campaign, weights, diameter, licence, python)
    with shown_progress(console) as progress:
        result = label(opened, open_queue(opened), method, sources, dry_run=dry_run, progress=progress)
    for line in describe(result, dry_run):
        say_line(line)
