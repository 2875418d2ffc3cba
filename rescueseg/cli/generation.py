"""`rescueseg generation`, `infer`, `status`, `up` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescueseg.campaign import STAGES, Campaign
from rescueseg.campaign.stage_results import EFFORT
from rescueseg.cli.console import console, say_line
from rescueseg.cli.options import CampaignArgument, SetOption


def generation(
    campaign: CampaignArgument,
    only_if_due: Annotated[bool, typer.Option(help="Do nothing unless enough patches were accepted.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Run the next generation, or go on with the one that was interrupted."""
    from rescueseg.cli.flows import run_flow
    from rescueseg.queue.store import open_queue
    from rescueseg.services.prefect_api import GENERATION_FLOW
    from rescueseg.stages.due import check_ready, count_due

    opened = Campaign.open(campaign)
    store = open_queue(opened)
    due = count_due(opened, store)
    check_ready(opened, store)
    if dry_run:
        console.print(f"Generation {due.generation}: {due.reason} ({'due' if due.due else 'not due'})")
        done = opened.generation(due.generation).finished_stages()
        for stage in STAGES:
            console.print(f"  {stage}: {'done, would be skipped' if stage in done else 'would run'}")
        if line := _trial_line(opened, due.generation):
            say_line(line)
        return
    if only_if_due and not due.due:
        console.print(f"Nothing to do: {due.reason}")
        return
    run_flow(opened, GENERATION_FLOW, {"campaign_url": opened.url, "only_if_due": only_if_due}, console)
    show_generations(opened)


def _trial_line(campaign: Campaign, number: int) -> str:
    """Say which trainers would be tried before a generation is trained; empty where none."""
    from functools import partial

    from rescueseg.stages.trial import is_refused, nothing_annotated
    from rescueseg.stages.trial_pairing import pairing

    snapshot = campaign.generation(number).snapshot() or nothing_annotated(number, campaign.config.n_classes)
    with console.status("Asking the trainers…"):  # which may take ten seconds to import
        pair = pairing(campaign, number, refused=partial(is_refused, campaign, snapshot))
    if pair is None:
        return ""
    names = " and ".join(pair.trainers)
    return f"  before the training {names} would train for equal time, as {pair.occasion}: the better one is taken"


def infer(
    campaign: CampaignArgument,
    volume: Annotated[str, typer.Argument(metavar="VOLUME_ID", help="Id of a volume of the campaign.")],
    generation: Annotated[int, typer.Option(help="Generation whose model predicts; the champion when omitted.")] = -1,
) -> None:
    """Predict one volume with the champion."""
    from rescueseg.cli.flows import run_flow
    from rescueseg.evaluation.champion import champion
    from rescueseg.inference.maps import VolumeMaps
    from rescueseg.services.prefect_api import INFER_FLOW

    opened = Campaign.open(campaign)
    opened.volumes.record(volume)
    number = generation if generation >= 0 else champion(opened.generations())
    run_flow(opened, INFER_FLOW, {"campaign_url": opened.url, "volume_id": volume, "generation": number}, console)
    assert number is not None, "the flow refuses without a champion"
    console.print(f"Maps: {VolumeMaps(opened.generation(number), volume).url}")


def status(campaign: CampaignArgument) -> None:
    """Show volumes, queue, generations and servers of a campaign."""
    from rescueseg.queue.store import open_queue
    from rescueseg.reports.sampling_table import waiting_lines
    from rescueseg.sampling.effort import pace
    from rescueseg.services.prefect_server import where_prefect
    from rescueseg.services.state import read_state
    from rescueseg.stages.due import count_due

    opened = Campaign.open(campaign)
    store = open_queue(opened)
    console.print(f"Campaign '{opened.config.name}' in {opened.url}")
    for volume in opened.volumes.records(refused=True):
        truth = f", {volume.truth} truth" if volume.truth else ""
        truth += f", refused: {volume.refused}" if volume.refused else ""
        console.print(
            f"  {volume.volume_id}: {'×'.join(map(str, volume.shape_zyx))} voxels (zyx), "
            f"{' × '.join(f'{s:g}' for s in volume.spacing_um_zyx)} µm{truth}"
        )
    console.print(
        "Queue: " + (", ".join(f"{n} {status}" for status, n in store.views.counts().items() if n) or "empty")
    )
    for line in waiting_lines(store.views.tickets(), pace(store.views.accepted(purpose=None))):
        say_line(line)
    due = count_due(opened, store)
    console.print(f"Generation {due.generation} is {'due' if due.due else 'not due'}: {due.reason}")
    show_generations(opened)
    generations = opened.generations()
    last = generations[-1].read(EFFORT) if generations else None
    for ticket in last.left_out if last else ():
        say_line(f"Left out of training: {ticket} lies in a holdout box of another volume that shows the same")
    state = read_state(opened.services_folder) if opened.storage.is_local else None
    if state:
        if state.annotation_url:
            console.print(f"Annotation: {state.annotation_url}")
        prefect = where_prefect(state.prefect(opened.services_folder), opened.services_folder)
        console.print(f"Prefect: {prefect}", soft_wrap=True)
        console.print(f"MLflow: {state.mlflow_uri}")
    else:
        console.print(f"No servers run; start them with: rescueseg up {campaign}", style="dim")


def up(campaign: CampaignArgument) -> None:
    """Serve a campaign until Ctrl-C: annotation, Prefect, MLflow, a worker, and its deployments.

    Generations start by themselves, on the schedule and when enough patches were accepted (see [trigger] in
    campaign.toml). Everything listens on the loopback interface only; beside the address of Prefect's page stands what
    shows the secret that its login asks for.
    """
    from rescueseg.cli.flows import serve

    serve(Campaign.open(campaign), console)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the campaign; a campaign there is continued.")] = Path("demo"),
    dataset: Annotated[str, typer.Option(help="Example volume; see `rescueseg.volumes.examples`.")] = "",
    data_dir: Annotated[str, typer.Option(help="Folder of example volumes that are here already.")] = "",
    generations: Annotated[int, typer.Option(min=1, help="Generations to run in all.")] = 3,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Run generations of active learning on an example volume with a simulated annotator."""
    from rescueseg.cli.demo import run_demo

    run_demo(out, dataset, data_dir, generations, settings, console)


def show_generations(campaign: Campaign) -> None:
    """Print one row per generation, once there is one, and what the last one answers."""
    from rescueseg.evaluation.answer import last_answer
    from rescueseg.reports.generation_table import rows, table

    if lines := rows(campaign.generations()):
        console.print(table(campaign.config.name, lines))
    if answer := last_answer(campaign):
        for line in answer.lines():
            say_line(line)
