"""`rescueseg init`, `add` and `check`: volumes come in and are compared."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.import_options import ImportOptions
from rescueseg.cli.options import CampaignArgument, SetOption, option_groups
from rescueseg.storage import write_atomically

if TYPE_CHECKING:
    from rescueseg.volumes.volume_files import VolumeImport

_DRAWN = 8
"""Volumes on the picture of a dry run."""

Volumes = Annotated[
    list[str],
    typer.Argument(
        metavar="VOLUME…",
        help="Image files: TIFF, NIfTI, NRRD, HDF5 (file.h5:dataset), Zarr, OME-Zarr; a folder of planes, or a pattern of theirs in quotes.",
    ),
]


@option_groups
def init(
    campaign: CampaignArgument,
    volumes: Volumes,
    classes: Annotated[str, typer.Option(help="Names of the classes 1, 2…, separated by commas.")],
    options: ImportOptions,
    name: Annotated[str, typer.Option(help="Name of the campaign; the folder's name when omitted.")] = "",
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Start a campaign and import its volumes as OME-Zarr."""
    from rescueseg.models.registry import complete_families
    from rescueseg.queue.store import make_queue
    from rescueseg.volumes.batch_import import start_campaign

    given = settings_of(name or default_name(campaign), classes.split(","), settings)
    config = complete_families(given, "--set")
    imports = options.imports(volumes)
    if options.dry_run:
        Campaign.free_place(campaign, config)
        show_volumes(imports, config.classes, options.picture)
        return
    with shown_progress(console) as progress:
        created = start_campaign(campaign, config, imports, say=say_line, progress=progress)
    make_queue(created)
    console.print(f"Campaign '{created.config.name}' in {created.url}")
    console.print(
        f"Next: show the structure: rescueseg sample {campaign} --example VOLUME:z,y,x; or rescueseg sample {campaign} --dry-run",
        style="dim",
    )


@option_groups
def add(campaign: CampaignArgument, volumes: Volumes, options: ImportOptions) -> None:
    """Add volumes to a campaign; the next sampling lets the holdout grow into them."""
    from rescueseg.volumes.batch_import import add_volumes

    opened = Campaign.open(campaign)
    imports = options.imports(volumes)
    if options.dry_run:
        show_volumes(imports, opened.config.classes, options.picture)
        return
    with shown_progress(console) as progress:
        add_volumes(opened, imports, say=say_line, progress=progress)
    console.print(f"Next: rescueseg sample {campaign}", style="dim")


def check(
    campaign: CampaignArgument,
    apply: Annotated[
        bool, typer.Option("--apply", help="Record the domains and refuse what the check refuses; else only report.")
    ] = False,
) -> None:
    """Check that volumes fit together: accept, normalise, separate domain or refuse, each with its reason.

    Which volumes show the same piece of a specimen is said too: a holdout box of one counts in all of them.
    Spacing, bit depth, clipping, intensities, variogram noise, sharpness and texture are measured on a sample of each volume.
    Everything measured goes to consistency.json in the campaign.
    """
    from rescueseg.queue.due import campaign_lock
    from rescueseg.queue.store import open_queue
    from rescueseg.reports.consistency_table import change_lines, page
    from rescueseg.stages import tickets
    from rescueseg.volumes import comparison, consistency

    opened = Campaign.open(campaign)
    with ExitStack() as stack:
        if apply:  # no generation may train meanwhile on patches that are judged as untrained
            store = open_queue(opened)
            stack.enter_context(campaign_lock(opened.config, store))
        with shown_progress(console) as progress:
            comparison.ensure_compared(opened.volumes, progress)
            report = consistency.check(opened, progress)
        changes = consistency.changes(opened.volumes, report)
        if apply:
            consistency.apply(opened.volumes, report)
            tickets.withdraw_refused(opened.volumes, store)
    for part in page(report):
        console.print(part)
    for line in comparison.relation_lines(opened.volumes):
        say_line(line)
    for line in change_lines(changes, applied=apply):
        say_line(line)
    console.print(f"{report.chunks_read} chunks read; everything measured is in consistency.json", style="dim")
    if not apply:
        console.print("Nothing was changed but consistency.json and relations.json", style="dim")
        console.print(f"rescueseg check {campaign} --apply records the domains", style="dim")


def show_volumes(volumes: Sequence[VolumeImport], classes: Sequence[str], picture: str) -> None:
    """Print what a dry run found, one line per volume and one per remark on its file, and draw the volumes.

    Parameters
    ----------
    volumes : sequence of VolumeImport
        The volumes.
    classes : sequence of str
        Names of the classes 1…K.
    picture : str
        Where the picture goes; a folder of its own among the system's temporary files when empty.
    """
    from rescueseg.reports.preview_picture import draw_previews
    from rescueseg.volumes.batch_import import preview_volumes

    with shown_progress(console) as progress:
        looks = preview_volumes(volumes, classes, planes=_DRAWN, progress=progress)
    for look in looks:
        say_line(str(look))
        for remark in look.remarks:
            say_line(f"  note: {remark}")
    file = Path(picture) if picture else Path(tempfile.mkdtemp(prefix="rescueseg-")) / "look.png"
    write_atomically(file.absolute(), draw_previews(looks))
    say_line(f"Look at {file}" + (f", the first {_DRAWN} volumes" if len(looks) > _DRAWN else ""))
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
