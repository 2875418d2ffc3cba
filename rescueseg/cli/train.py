"""`rescueseg train`."""

from __future__ import annotations

from typing import Annotated

import typer

from rescueseg.campaign import Campaign
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.options import CampaignArgument


def train(
    campaign: CampaignArgument,
    generation: Annotated[
        int,
        typer.Option(min=-1, help="Generation whose snapshot is trained on; all that is accepted now when omitted."),
    ] = -1,
    trainer: Annotated[str, typer.Option(help="Trainer; the campaign's own when omitted.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and change nothing.")] = False,
) -> None:
    """Train a model outside the loop, on accepted annotations; generations, champion and queue stay as they are.

    Killed and given again, it goes on from its last checkpoint.
    """
    from rescueseg.campaign.outside_trainings import RESULT, read_losses, step_of
    from rescueseg.cli.flows import run_flow
    from rescueseg.models.registry import get_trainer
    from rescueseg.models.trainer import check_settings
    from rescueseg.queue.store import open_queue
    from rescueseg.services.prefect_api import TRAIN_FLOW
    from rescueseg.stages import train_outside
    from rescueseg.volumes.comparison import ensure_compared

    opened = Campaign.open(campaign)
    with shown_progress(console) as progress:
        ensure_compared(opened.volumes, progress, write=not dry_run)
    number = None if generation < 0 else generation
    planned = train_outside.plan(opened, open_queue(opened), trainer, number)
    folder = opened.training(planned.name)
    expected, seconds = train_outside.estimate(opened, planned)
    with console.status("Asking the trainer…"):  # which may take ten seconds to import
        check_settings(get_trainer(planned.trainer), opened.config.training)
    size = expected.window_zyx
    window = "chosen by the trainer" if size is None else f"{'×'.join(map(str, size))} voxels (zyx)"
    time = "expected time not known before its first training" if seconds is None else f"about {seconds / 60:.1f} min"
    networks = "" if expected.networks == 1 else f" over {expected.networks} networks"
    say_line(
        f"{planned.trainer} on {expected.cases} patches, window {window}, {expected.steps:,} steps{networks}: {time}"
    )
    say_line(f"Folds: {expected.folds}")
    if dry_run:
        say_line("Nothing was changed; run again without --dry-run")
        return
    run_flow(
        opened,
        TRAIN_FLOW,
        {"campaign_url": opened.url, "trainer": planned.trainer, "generation": number},
        console,
        progress=lambda: step_of(folder),
    )
    result = folder.read(RESULT)
    assert result is not None, "the flow writes it as its last act"
    for warning in result.warnings:
        say_line(f"Warning: {warning}")
    losses = [entry["loss"] for entry in read_losses(folder)]
    change = f", loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
    say_line(f"{result.iterations:,} steps in {result.seconds:.0f} s{change}")
    say_line(f"Next: rescueseg evaluate {campaign} --training {planned.name}")
    say_line(f"Model: {opened.storage.url_of(folder.model_folder())}")
