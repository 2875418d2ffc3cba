"""`rescueseg demo`: a campaign on an example volume with a simulated annotator, from nothing to the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
from rich.console import Console

from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.campaign.layout import CAMPAIGN_FILE, REPORT
from rescueseg.cli.flows import watch_flow
from rescueseg.errors import ExampleUnavailable
from rescueseg.models.registry import complete_families, find_entry
from rescueseg.reports.generation_table import rows, table
from rescueseg.services.local_servers import Servers, exit_on_sigterm
from rescueseg.services.prefect_api import LOOP_FLOW
from rescueseg.storage import Storage
from rescueseg.volumes.batch_import import add_volumes, start_campaign
from rescueseg.volumes.examples import Example, load_example
from rescueseg.volumes.volume_files import VolumeImport

DEFAULT_DATASET = "gonuclear_1135"
PHANTOM_SEED = 7
QUICK, PHANTOM_QUICK = "training.iterations=1000", "training.iterations=500"
"""A quarter of the default steps, so that the demo ends within minutes; fewer still for the small phantom."""


def run_demo(
    out: Path, dataset: str, data_dir: str, generations: int, settings: Sequence[str], console: Console
) -> Campaign:
    """Run the demo; a campaign that is in `out` already is continued.

    Parameters
    ----------
    out : Path
        Folder of the campaign.
    dataset : str
        Name of an example volume; a default, or the phantom when that is out of reach, when empty.
    data_dir : str
        Folder of example volumes, searched before the cache and the network.
    generations : int
        Generations in all.
    settings : sequence of str
        ``section.key=value`` pairs for a new campaign.
    console : rich.console.Console
        Where progress and the table go.

    Returns
    -------
    Campaign
        With its generations run.

    Raises
    ------
    ExampleUnavailable
        If a dataset was named that cannot be had.
    ServiceError
        If a server does not start or the flow fails.
    """
    campaign = open_or_start(out, dataset, data_dir, (*demo_settings(generations), *settings), console)
    console.print("Starting the servers…", style="dim")
    with (
        exit_on_sigterm(),
        Servers(
            campaign.services_folder, campaign.tracking_uri, mlflow_uri=campaign.config.tracking.mlflow_uri
        ) as servers,
    ):
        watch_flow(
            campaign,
            LOOP_FLOW,
            {"campaign_url": campaign.url, "generations": generations},
            servers.environment,
            console,
        )
        mlflow_uri = servers.mlflow_uri
    show_table(campaign, console)
    where_to_look(campaign.storage, mlflow_uri, console)
    return campaign


def demo_settings(generations: int) -> tuple[str, ...]:
    """Return the settings of a demo of so many generations, as ``section.key=value`` pairs."""
    return QUICK, "training.warm_start=true", f"stopping.max_generations={max(2, generations)}"


def open_or_start(out: Path, dataset: str, data_dir: str, settings: Sequence[str], console: Console) -> Campaign:
    """Return the campaign in `out`, made when there is none, with its volume; parameters as `run_demo`."""
    existing = Campaign.open(str(out)) if (out / CAMPAIGN_FILE.path()).exists() else None
    if existing is not None:
        console.print(f"Going on with campaign '{existing.config.name}' in {existing.url}", highlight=False)
        if existing.volumes.records():
            return existing
    try:
        example = load_example(dataset or DEFAULT_DATASET, data_dir or None)
    except ExampleUnavailable as error:
        if dataset and dataset != "phantom":
            raise
        if not dataset:
            console.print(f"{error.what}; taking a phantom instead.", style="dim", highlight=False)
        example = make_phantom_example(out.parent / f"{out.name}-phantom")
        settings = tuple(PHANTOM_QUICK if setting == QUICK else setting for setting in settings)
    volume = VolumeImport(
        example.raw_path,
        volume_id=example.name,
        spacing=example.spacing,
        truth=example.truth_path,
        truth_type=example.truth_type,
    )

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    if existing is not None:  # killed before its volume was in
        add_volumes(existing, [volume], say=say)
        return existing
    given = settings_of(example.name, example.classes, settings)
    trainer = given.training.trainer
    if trainer != "auto" and find_entry(trainer).needs_instances and example.truth_type == "instance":
        given = settings_of(example.name, example.classes, (*settings, "annotation.labels=instance"))
    config = complete_families(given, "--set")
    return start_campaign(str(out), config, [volume], say=say)


def make_phantom_example(folder: Path) -> Example:
    """Write the phantom as TIFF files and return it as an example."""
    import tifffile

    from rescueseg.volumes.phantom import make_phantom

    image, truth, spacing = make_phantom(seed=PHANTOM_SEED)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "raw.tif", folder / "labels.tif"
    arrays: tuple[npt.NDArray[Any], ...] = (image, truth)
    for path, array in zip(paths, arrays, strict=True):
        tifffile.imwrite(path, array, metadata={"axes": "ZYX"}, compression="zlib")
    return Example("phantom", str(paths[0]), str(paths[1]), spacing, "semantic", ("organelle",))


def show_table(campaign: Campaign, console: Console) -> None:
    """Print one row per generation, and what a tuned threshold reaches."""
    from rescueseg.evaluation.answer import last_answer
    from rescueseg.evaluation.threshold_baseline import threshold_baseline

    shown = table(campaign.config.name, rows(campaign.generations()))
    baseline = threshold_baseline(campaign)
    scores = (baseline.test_dice, baseline.test_precision, baseline.test_recall)
    shown.add_section()
    shown.add_row("threshold", "", "", *("–" if s is None else f"{s:.3f}" for s in scores))
    console.print(shown)
    if answer := last_answer(campaign):
        for line in answer.lines():
            console.print(line, highlight=False, soft_wrap=True)


def where_to_look(storage: Storage, mlflow_uri: str, console: Console) -> None:
    """Print where the campaign, its pages and its runs in MLflow are."""
    reports = RecordFolder(storage, REPORT.top)
    lines = [
        f"Campaign  {storage.url}",
        *(f"Report    {storage.path(reports.path(n))}" for n in storage.list(REPORT.top) if n.endswith(".html")),
        f"MLflow    {mlflow_uri} (stopped; start it again with: rescueseg up {storage.url})",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
