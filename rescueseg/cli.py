"""The command line. Importing it imports neither torch, MONAI, MLflow nor Prefect."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from rescueseg.annotation.commands import OneLineErrors, queue_app
from rescueseg.annotation.napari_plugin.command import annotate
from rescueseg.annotation.server.commands import serve, token_app
from rescueseg.campaign import Campaign
from rescueseg.config import settings_of
from rescueseg.errors import ConfigError
from rescueseg.judging import compare, evaluate
from rescueseg.progress import shown_progress
from rescueseg.records import LabelType
from rescueseg.training.command import train
from rescueseg.triage.command import triage

console = Console()
if not console.is_terminal:  # a log or a pipe: do not squeeze tables into 80 columns
    console.width = 140


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rescue hard 3D microscopy segmentations with the fewest annotated voxels.",
)
app.add_typer(queue_app, name="queue")
app.add_typer(token_app, name="token")
app.command(epilog="Example: rescueseg serve liver")(serve)
app.command(epilog="Example: rescueseg triage liver --structure network")(triage)
app.command(epilog="Example: rescueseg train liver --trainer nnunet --dry-run")(train)
app.command(epilog="Example: rescueseg evaluate liver --generation 3 --json scores.json; or --training NAME")(evaluate)
app.command(epilog="Example: rescueseg compare liver 2 3 --json differences.json; or the name of a training")(compare)
app.command(epilog="Example: rescueseg annotate liver --annotator anna")(annotate)

CampaignArgument = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign.")]
Volumes = Annotated[
    list[str],
    typer.Argument(metavar="VOLUME…", help="Image files: TIFF, NIfTI, NRRD, HDF5 (file.h5:dataset), Zarr, OME-Zarr."),
]
SpacingOption = Annotated[
    str, typer.Option(metavar="Z,Y,X", help="Voxel size in micrometre, when the files do not say it or say it wrong.")
]
IdOption = Annotated[
    list[str],
    typer.Option(
        "--id",
        metavar="NAME",
        help="Name of each volume in the campaign, in their order; made from the file's when omitted.",
    ),
]
TruthOption = Annotated[
    list[str], typer.Option(metavar="FILE", help="Ground truth of each volume, in their order; repeat the option.")
]
TruthTypeOption = Annotated[str, typer.Option(metavar="semantic|instance", help="What the truth's numbers mean.")]
DomainOption = Annotated[
    str, typer.Option(help="Acquisition group of these volumes: same microscope, objective, bit depth, spacing.")
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the campaign file, such as training.iterations=300."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what the files hold and how much they take, and change nothing.")
]


@app.command(epilog="Example: rescueseg init liver stack.tif --classes mitochondria --spacing 0.05,0.01,0.01")
def init(
    campaign: CampaignArgument,
    volumes: Volumes,
    classes: Annotated[str, typer.Option(help="Names of the classes 1, 2…, separated by commas.")],
    name: Annotated[str, typer.Option(help="Name of the campaign; the folder's name when omitted.")] = "",
    spacing: SpacingOption = "",
    ids: IdOption = [],  # noqa: B006
    truth: TruthOption = [],  # noqa: B006
    truth_type: TruthTypeOption = "semantic",
    domain: DomainOption = "",
    settings: SetOption = [],  # noqa: B006
    dry_run: DryRunOption = False,
) -> None:
    """Start a campaign and import its volumes as OME-Zarr."""
    from rescueseg.intake import look, start_campaign

    config = settings_of(name or default_name(campaign), classes.split(","), settings)
    size, kind = parse_spacing(spacing), parse_truth_type(truth_type)
    if dry_run:
        Campaign.free_place(campaign, config)
        say_looks(look(volumes, spacing=size, truths=truth, names=ids))
        return
    with shown_progress(console) as progress:
        made = start_campaign(
            campaign,
            config,
            volumes,
            spacing=size,
            truths=truth,
            truth_type=kind,
            domain=domain or None,
            names=ids,
            say=say_line,
            progress=progress,
        )
    console.print(f"Campaign '{made.config.name}' in {made.url}")
    console.print(f"Next: rescueseg sample {campaign}", style="dim")


@app.command(epilog="Example: rescueseg add liver second_stack.nii.gz")
def add(
    campaign: CampaignArgument,
    volumes: Volumes,
    spacing: SpacingOption = "",
    ids: IdOption = [],  # noqa: B006
    truth: TruthOption = [],  # noqa: B006
    truth_type: TruthTypeOption = "semantic",
    domain: DomainOption = "",
    dry_run: DryRunOption = False,
) -> None:
    """Add volumes to a campaign; the next sampling lets the holdout grow into them."""
    from rescueseg.intake import add_volumes, look

    opened = Campaign.open(campaign)
    size, kind = parse_spacing(spacing), parse_truth_type(truth_type)
    if dry_run:
        say_looks(look(volumes, spacing=size, truths=truth, names=ids))
        return
    with shown_progress(console) as progress:
        add_volumes(
            opened,
            volumes,
            spacing=size,
            truths=truth,
            truth_type=kind,
            domain=domain or None,
            names=ids,
            say=say_line,
            progress=progress,
        )
    console.print(f"Next: rescueseg sample {campaign}", style="dim")


@app.command(epilog="Example: rescueseg check liver, then rescueseg check liver --apply")
def check(
    campaign: CampaignArgument,
    apply: Annotated[
        bool, typer.Option("--apply", help="Record the domains and refuse what the check refuses; else only report.")
    ] = False,
) -> None:
    """Check that volumes fit together: accept, normalise, separate domain or refuse, each with its reason.

    Spacing, bit depth, clipping, intensities, noise, sharpness and texture are measured on a sample of each volume.
    Everything measured goes to consistency.json in the campaign.
    """
    from rescueseg import tickets
    from rescueseg.annotation.store import open_queue
    from rescueseg.generation import campaign_lock
    from rescueseg.volumes import consistency
    from rescueseg.volumes.consistency_page import change_lines, page

    opened = Campaign.open(campaign)
    with ExitStack() as held:
        if apply:  # no generation may train meanwhile on what is judged as untrained
            store = open_queue(opened)
            store.migrate()
            held.enter_context(campaign_lock(opened, store))
        with shown_progress(console) as progress:
            report = consistency.check(opened, progress)
        changes = consistency.changes(opened, report)
        if apply:
            consistency.apply(opened, report)
            tickets.withdraw_refused(opened, store)
    for part in page(report):
        console.print(part)
    for line in change_lines(changes, applied=apply):
        say_line(line)
    console.print(f"{report.chunks_read} chunks read; everything measured is in consistency.json", style="dim")
    if not apply:
        console.print(f"Nothing was changed; rescueseg check {campaign} --apply records the domains", style="dim")


@app.command(epilog="Example: rescueseg sample liver --dry-run --preview")
def sample(
    campaign: CampaignArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be frozen and queued, and change nothing.")
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Write a contact sheet: every patch in three planes under its stratum.")
    ] = False,
) -> None:
    """Freeze the holdout and queue the first tickets.

    Patches are drawn by strata: best and worst case, low SNR, dense, sparse, edge of volume, artifact. What they were
    chosen for is shown with the measured numbers.
    """
    from rescueseg import sampling_page, tickets
    from rescueseg.annotation.store import open_queue

    opened = Campaign.open(campaign)
    with shown_progress(console) as progress:
        new = 0 if dry_run else tickets.prepare(opened, open_queue(opened), progress)
        holdout, starting = tickets.rehearse(opened, lambda: open_queue(opened), progress)
        sheet = sampling_page.write_sheet(opened, holdout, starting, progress) if preview else ""
    console.print(sampling_page.table(holdout, starting))
    for line in sampling_page.remarks(opened, holdout, starting):
        say_line(line)
    parts = [box.part for box in holdout.boxes]
    counted = f"{parts.count('validation')} validation and {parts.count('test')} test boxes"
    if sheet:
        say_line(f"Contact sheet: {sheet}")
    if dry_run:
        queued = len(tickets.first_tickets(opened, holdout, starting))
        console.print(f"{counted} would be frozen and {queued} tickets queued, less those that are already")
        beside = " beside the contact sheet" if sheet else ""
        console.print(f"Nothing was changed{beside}; run again without --dry-run", style="dim")
        return
    console.print(f"{counted} are frozen, {new} new tickets")
    console.print(f"Next: rescueseg queue next {campaign} --out todo", style="dim")


@app.command(epilog="Example: rescueseg weak-label liver --method classifier --scribbles scribbles.tif")
def weak_label(
    campaign: CampaignArgument,
    method: Annotated[
        str, typer.Option(help="auto, threshold, blobs, tubes, membranes, classifier, ilastik or champion.")
    ] = "auto",
    scribbles: Annotated[
        list[str],
        typer.Option(
            metavar="[VOLUME=]FILE",
            help="Label image of a volume for the classifier: 0 background, 1…K classes, 255 not drawn; repeat the option.",
        ),
    ] = [],  # noqa: B006
    ilp: Annotated[str, typer.Option(metavar="FILE", help="Pixel classification project of ilastik.")] = "",
    from_campaign: Annotated[str, typer.Option(metavar="URL", help="Campaign whose champion predicts.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Choose the method, and write nothing.")] = False,
) -> None:
    """Give the queued pool tickets a first mask, so that nobody starts from an empty one.

    By default the method is the one that agrees best with the accepted annotations. Run it again when the first are in.
    """
    from rescueseg.annotation.store import open_queue
    from rescueseg.weak_labels.run import Sources, describe
    from rescueseg.weak_labels.run import weak_label as label

    opened = Campaign.open(campaign)
    sources = Sources(tuple(scribbles), ilp, from_campaign)
    with shown_progress(console) as progress:
        result = label(opened, open_queue(opened), method, sources, dry_run=dry_run, progress=progress)
    for line in describe(result, dry_run):
        say_line(line)


@app.command(epilog="Example: rescueseg generation liver --dry-run")
def generation(
    campaign: CampaignArgument,
    only_if_due: Annotated[bool, typer.Option(help="Do nothing unless enough patches were accepted.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Run the next generation, or go on with the one that was interrupted."""
    from rescueseg import generation as stages
    from rescueseg.annotation.store import open_queue
    from rescueseg.serving import run_flow

    opened = Campaign.open(campaign)
    store = open_queue(opened)
    due = stages.count_due(opened, store)
    stages.check_ready(opened, store)
    if dry_run:
        console.print(f"Generation {due.generation}: {due.reason} ({'due' if due.due else 'not due'})")
        for stage in stages.STAGES:
            done = opened.stage_result(due.generation, stage) is not None
            console.print(f"  {stage}: {'done, would be skipped' if done else 'would run'}")
        return
    if only_if_due and not due.due:
        console.print(f"Nothing to do: {due.reason}")
        return
    run_flow(opened, "generation", {"campaign_url": opened.url, "only_if_due": only_if_due}, console)
    show_generations(opened)


@app.command(epilog="Example: rescueseg infer liver second_stack")
def infer(
    campaign: CampaignArgument,
    volume: Annotated[str, typer.Argument(metavar="VOLUME_ID", help="Id of a volume of the campaign.")],
    generation: Annotated[int, typer.Option(help="Generation whose model predicts; the champion when omitted.")] = -1,
) -> None:
    """Predict one volume with the champion."""
    from rescueseg import generation as stages
    from rescueseg.serving import run_flow

    opened = Campaign.open(campaign)
    opened.volume(volume)
    number = generation if generation >= 0 else stages.champion(opened)
    run_flow(opened, "infer-volume", {"campaign_url": opened.url, "volume_id": volume, "generation": number}, console)
    assert number is not None, "the flow refuses without a champion"
    console.print(f"Maps: {opened.map_url(number, volume)}")


@app.command(epilog="Example: rescueseg status liver")
def status(campaign: CampaignArgument) -> None:
    """Show volumes, queue, generations and servers of a campaign."""
    from rescueseg import generation as stages
    from rescueseg.annotation.store import open_queue
    from rescueseg.services import read_state

    opened = Campaign.open(campaign)
    store = open_queue(opened)
    console.print(f"Campaign '{opened.config.name}' in {opened.url}")
    for volume in opened.volumes(refused=True):
        truth = f", {volume.truth} truth" if volume.truth else ""
        truth += f", refused: {volume.refused}" if volume.refused else ""
        console.print(
            f"  {volume.volume_id}: {'×'.join(map(str, volume.shape_zyx))} voxels (zyx), "
            f"{' × '.join(f'{s:g}' for s in volume.spacing_um_zyx)} µm{truth}"
        )
    console.print("Queue: " + (", ".join(f"{n} {state}" for state, n in store.counts().items() if n) or "empty"))
    due = stages.count_due(opened, store)
    console.print(f"Generation {due.generation} is {'due' if due.due else 'not due'}: {due.reason}")
    show_generations(opened)
    state = read_state(opened.services_folder) if opened.storage.is_local else None
    if state:
        if state.annotation_url:
            console.print(f"Annotation: {state.annotation_url}")
        console.print(f"Prefect: {state.prefect_api_url.removesuffix('/api')}   MLflow: {state.mlflow_uri}")
    else:
        console.print(f"No servers run; start them with: rescueseg up {campaign}", style="dim")


@app.command(epilog="Example: rescueseg up liver")
def up(campaign: CampaignArgument) -> None:
    """Serve a campaign until Ctrl-C: annotation, Prefect, MLflow, a worker, and its deployments.

    Generations start by themselves, on the schedule and when enough patches were accepted (see [trigger] in
    campaign.toml). Everything listens on the loopback interface only.
    """
    from rescueseg.serving import serve

    serve(Campaign.open(campaign), console)


@app.command(
    epilog="Example: rescueseg demo --dataset cdeep3m_mito_train --data-dir /data/volumes --generations 3 --out demo"
)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the campaign; a campaign there is continued.")] = Path("demo"),
    dataset: Annotated[str, typer.Option(help="Example volume; see `rescueseg.examples`.")] = "",
    data_dir: Annotated[str, typer.Option(help="Folder of example volumes that are here already.")] = "",
    generations: Annotated[int, typer.Option(min=1, help="Generations to run in all.")] = 3,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Run generations of active learning on an example volume with a simulated annotator."""
    from rescueseg.demo import run_demo

    run_demo(out, dataset, data_dir, generations, settings, console)


def say_line(line: str) -> None:
    """Print a line as it is, however long."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def say_looks(looks: Iterable[object]) -> None:
    """Print what a dry run found."""
    for line in looks:
        say_line(str(line))
    console.print("Nothing was changed; run again without --dry-run", style="dim")


def show_generations(campaign: Campaign) -> None:
    """Print one row per generation, once there is one."""
    from rescueseg.summary import rows, table

    if rows(campaign):
        console.print(table(campaign))


def default_name(campaign: str) -> str:
    """Return a campaign's name made from its folder's, whatever that is."""
    folder = campaign.rstrip("/").rsplit("/", 1)[-1] if "://" in campaign else Path(campaign).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-._")[:63] or "campaign"


def parse_spacing(text: str) -> tuple[float, float, float] | None:
    """Return the spacing of a ``Z,Y,X`` option, None when it is empty.

    Raises
    ------
    ConfigError
        If it is not three positive numbers.
    """
    if not text:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"'{text}' is no spacing", where="--spacing", todo="Three numbers in µm: Z,Y,X, such as 0.3,0.1,0.1"
        ) from error
    if min(z, y, x) <= 0:
        raise ConfigError(f"'{text}' is not positive", where="--spacing", todo="Three numbers in µm: Z,Y,X")
    return z, y, x


def parse_truth_type(text: str) -> LabelType:
    """Return a truth type.

    Raises
    ------
    ConfigError
        If it is unknown.
    """
    if text not in ("semantic", "instance"):
        raise ConfigError(f"'{text}' is no truth type", where="--truth-type", todo="'semantic' or 'instance'")
    return cast(LabelType, text)
