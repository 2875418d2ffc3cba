"""`rescueseg init`, `add` and `check`: volumes come in and are compared."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, TypedDict, cast

import typer

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.options import CampaignArgument, SetOption
from rescueseg.errors import ConfigError
from rescueseg.image_files.slices import join_planes
from rescueseg.image_files.source import Statement
from rescueseg.records import LabelType
from rescueseg.storage import write_atomically

_DRAWN = 8
"""Volumes on the picture of a dry run."""

Volumes = Annotated[
    list[str],
    typer.Argument(
        metavar="VOLUME…",
        help="Image files: TIFF, NIfTI, NRRD, HDF5 (file.h5:dataset), Zarr, OME-Zarr; a folder of planes, or a pattern of theirs in quotes.",
    ),
]
AxesOption = Annotated[
    str,
    typer.Option(
        metavar="LETTERS",
        help="Axes of the files in their order, when they do not say them: z, y, x, c (channel), t, p (position); such as czyx.",
    ),
]
SeriesOption = Annotated[
    int | None, typer.Option(metavar="N", help="Which image of a file that holds several, from 0.")
]
PositionOption = Annotated[
    int | None, typer.Option(metavar="N", help="Which position of a file that holds several, from 0.")
]
SlicesOption = Annotated[bool, typer.Option("--slices", help="The files given are the planes of one volume.")]
HolesOption = Annotated[
    bool,
    typer.Option(
        "--accept-holes", help="Take parts of a chunked file that are absent as they read, even where they look lost."
    ),
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
DistinctOption = Annotated[
    bool,
    typer.Option(
        "--distinct",
        help="These volumes show other specimens than the near copies found; equal voxels are never distinct.",
    ),
]
DistinctFromOption = Annotated[
    list[str],
    typer.Option(
        "--distinct-from",
        metavar="NAME",
        help="The same of one near copy only: these volumes show another specimen than it; repeat the option.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say and show what the files hold and how much they take, and change nothing.")
]
PictureOption = Annotated[
    str,
    typer.Option(metavar="FILE.png", help="Where a dry run draws the volumes; a temporary folder when omitted."),
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
    axes: AxesOption = "",
    series: SeriesOption = None,
    position: PositionOption = None,
    slices: SlicesOption = False,
    accept_holes: HolesOption = False,
    distinct: DistinctOption = False,
    distinct_from: DistinctFromOption = [],  # noqa: B006
    dry_run: DryRunOption = False,
    picture: PictureOption = "",
) -> None:
    """Start a campaign and import its volumes as OME-Zarr."""
    from rescueseg.models.registry import complete_families
    from rescueseg.volumes.batch_import import start_campaign

    given = settings_of(name or default_name(campaign), classes.split(","), settings)
    config = complete_families(given, "--set")
    files = [join_planes(volumes)] if slices else volumes
    said = Statement(parse_axes(axes), series, position, accept_holes)
    options = _options(spacing, ids, truth, truth_type, said)
    check_picture(picture, dry_run)
    if dry_run:
        Campaign.free_place(campaign, config)
        show_volumes(files, config.classes, options, picture)
        return
    with shown_progress(console) as progress:
        created = start_campaign(
            campaign,
            config,
            files,
            **options,
            domain=domain or None,
            distinct=distinct,
            distinct_from=distinct_from,
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
    axes: AxesOption = "",
    series: SeriesOption = None,
    position: PositionOption = None,
    slices: SlicesOption = False,
    accept_holes: HolesOption = False,
    distinct: DistinctOption = False,
    distinct_from: DistinctFromOption = [],  # noqa: B006
    dry_run: DryRunOption = False,
    picture: PictureOption = "",
) -> None:
    """Add volumes to a campaign; the next sampling lets the holdout grow into them."""
    from rescueseg.volumes.batch_import import add_volumes

    opened = Campaign.open(campaign)
    files = [join_planes(volumes)] if slices else volumes
    said = Statement(parse_axes(axes), series, position, accept_holes)
    options = _options(spacing, ids, truth, truth_type, said)
    check_picture(picture, dry_run)
    if dry_run:
        show_volumes(files, opened.config.classes, options, picture)
        return
    with shown_progress(console) as progress:
        add_volumes(
            opened,
            files,
            **options,
            domain=domain or None,
            distinct=distinct,
            distinct_from=distinct_from,
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
            store.migrate()
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


class ImportOptions(TypedDict):
    """What `init` and `add` were told of their volumes."""

    spacing: tuple[float, float, float] | None
    truths: list[str]
    truth_type: LabelType
    names: list[str]
    said: Statement


def _options(spacing: str, ids: list[str], truth: list[str], truth_type: str, said: Statement) -> ImportOptions:
    return {
        "spacing": parse_spacing(spacing),
        "truths": truth,
        "truth_type": parse_truth_type(truth_type),
        "names": ids,
        "said": said,
    }


def check_picture(picture: str, dry_run: bool) -> None:
    """Refuse a picture that nobody would draw.

    Raises
    ------
    ConfigError
        If it is asked for without a dry run, or is no PNG.
    """
    if picture and (not dry_run or not picture.lower().endswith(".png")):
        raise ConfigError(
            "a dry run draws it, as PNG", where=f"--picture {picture}", todo="Add --dry-run, and end its name in .png"
        )


def show_volumes(files: Sequence[str], classes: Sequence[str], options: ImportOptions, picture: str) -> None:
    """Print what a dry run found, one line per volume and one per remark on its file, and draw the volumes.

    Parameters
    ----------
    files : sequence of str
        The volumes.
    classes : sequence of str
        Names of the classes 1…K.
    options : ImportOptions
        As for the import.
    picture : str
        Where the picture goes; a folder of its own among the system's temporary files when empty.
    """
    from rescueseg.reports.preview_picture import draw_previews
    from rescueseg.volumes.batch_import import preview_volumes

    with shown_progress(console) as progress:
        looks = preview_volumes(files, classes=classes, **options, planes=_DRAWN, progress=progress)
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


def parse_axes(text: str) -> str:
    """Return the letters of ``--axes``.

    Raises
    ------
    ConfigError
        If a letter is not known, comes twice, or z, y and x are not among them.

    Examples
    --------
    >>> parse_axes("CZYX")
    'czyx'
    """
    letters = text.strip().lower()
    if letters and (set(letters) - set("zyxctp") or len(set(letters)) < len(letters) or not set("zyx") <= set(letters)):
        raise ConfigError(
            f"'{text}' names no axes",
            where="--axes",
            todo="One letter per axis in the file's order: z, y, x, c (channel), t, p (position); such as czyx",
        )
    return letters


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
