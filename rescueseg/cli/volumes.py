"""`rescueseg init`, `add` and `check`: volumes come in and are compared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, cast

import typer

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.options import CampaignArgument, SetOption
from rescueseg.errors import ConfigError
from rescueseg.records import LabelType

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
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what the files hold and how much they take, and change nothing.")
]


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
    from rescueseg.volumes.batch_import import preview_volumes, start_campaign

    config = settings_of(name or default_name(campaign), classes.split(","), settings)
    size, kind = parse_spacing(spacing), parse_truth_type(truth_type)
    if dry_run:
        Campaign.free_place(campaign, config)
        say_looks(preview_volumes(volumes, spacing=size, truths=truth, names=ids))
        return
    with shown_progress(console) as progress:
        created = start_campaign(
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
    console.print(f"Campaign '{created.config.name}' in {created.url}")
    console.print(f"Next: rescueseg sample {campaign}", style="dim")


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
    from rescueseg.volumes.batch_import import add_volumes, preview_volumes

    opened = Campaign.open(campaign)
    size, kind = parse_spacing(spacing), parse_truth_type(truth_type)
    if dry_run:
        say_looks(preview_volumes(volumes, spacing=size, truths=truth, names=ids))
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


def check(
    campaign: CampaignArgument,
    apply: Annotated[
        bool, typer.Option("--apply", help="Record the domains and refuse what the check refuses; else only report.")
    ] = False,
) -> None:
    """Check that volumes fit together: accept, normalise, separate domain or refuse, each with its reason.

    Spacing, bit depth, clipping, intensities, variogram noise, sharpness and texture are measured on a sample of each volume.
    Everything measured goes to consistency.json in the campaign.
    """
    from rescueseg.queue.due import campaign_lock
    from rescueseg.queue.store import open_queue
    from rescueseg.reports.consistency_table import change_lines, page
    from rescueseg.stages import tickets
    from rescueseg.volumes import consistency

    opened = Campaign.open(campaign)
    with ExitStack() as stack:
        if apply:  # no generation may train meanwhile on patches that are judged as untrained
            store = open_queue(opened)
            store.migrate()
            stack.enter_context(campaign_lock(opened, store))
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


def say_looks(looks: Iterable[object]) -> None:
    """Print the lines of a dry run, one per volume."""
    for line in looks:
        say_line(str(line))
    console.print("Nothing was changed; run again without --dry-run", style="dim")


def default_name(campaign: str) -> str:
    """Return a campaign's name made from its folder's, whatever that is.

    Examples
    --------
    >>> default_name("s3://bucket/Liver, stack (2)/")
    'Liver-stack-2'
    """
    folder = campaign.rstrip("/").rsplit("/", 1)[-1] if "://" in campaign else Path(campaign).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-._")[:63] or "campaign"


def parse_spacing(text: str) -> tuple[float, float, float] | None:
    """Return the spacing of a ``Z,Y,X`` option, None when it is empty.

    Raises
    ------
    ConfigError
        If it is not three positive numbers.

    Examples
    --------
    >>> parse_spacing("0.3,0.1,0.1")
    (0.3, 0.1, 0.1)
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
