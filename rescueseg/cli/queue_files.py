"""`rescueseg queue next`, `export` and `submit`: patches as files, and back."""

from __future__ import annotations

import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from rescueseg.cli.options import AnnotatorOption, CampaignOrServerArgument, option_groups, plain_console
from rescueseg.errors import ConfigError, LabelError, LabelWarningsError
from rescueseg.queue.records import AnnotationRecord, Lease
from rescueseg.records import Purpose

if TYPE_CHECKING:
    from rescueseg.annotation.client import AnnotationClient

FormatName = Literal["nifti", "nrrd", "imagej", "ome-zarr", "cvat", "npz"]
FORMAT_EXTENSIONS: dict[FormatName, str] = {
    "nifti": ".nii.gz",
    "nrrd": ".seg.nrrd",
    "imagej": ".tif",
    "ome-zarr": ".ome.zarr",
    "cvat": ".zip",
    "npz": ".npz",
}
"""First extension of each of `rescueseg.annotation.formats.FORMATS`, named here so that ``--help`` need not import them."""
PURPOSES: tuple[Purpose, ...] = ("validation", "test", "pool")

FormatOption = Annotated[FormatName, typer.Option("--format", help="Of the files.")]
PurposeOption = Annotated[Purpose | None, typer.Option(help="Only patches of the pool, or of a part of the holdout.")]
TicketOption = Annotated[str | None, typer.Option(help="This ticket; a skipped one is taken up again.")]


def next_(
    campaign: CampaignOrServerArgument,
    annotator: AnnotatorOption,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write image and mask here as NIfTI.", file_okay=False)
    ] = None,
    purpose: PurposeOption = None,
    ticket: TicketOption = None,
) -> None:
    """Take the next patch, or go on with the one you hold."""
    _take(campaign, annotator, "nifti", out, purpose, ticket)


def export(
    campaign: CampaignOrServerArgument,
    annotator: AnnotatorOption,
    format_: FormatOption = "nifti",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.", file_okay=False)] = Path(),
    purpose: PurposeOption = None,
    ticket: TicketOption = None,
    cvat: Annotated[
        str,
        typer.Option(
            metavar="URL", help="With --format cvat: a CVAT server to make a task on; needs CVAT_ACCESS_TOKEN."
        ),
    ] = "",
) -> None:
    """Take the next patch, or the one you hold, as files for a tool of your choice."""
    if cvat and format_ != "cvat":
        raise ConfigError("--cvat needs --format cvat", todo="Say both, or neither")
    _take(campaign, annotator, format_, out, purpose, ticket, cvat)


def _take(
    campaign: str,
    annotator: str,
    format_: FormatName,
    out: Path | None,
    purpose: Purpose | None,
    ticket: str | None,
    cvat: str = "",
) -> None:
    from rescueseg.annotation.client import Filters
    from rescueseg.annotation.clients import open_client
    from rescueseg.annotation.cvat_server import upload
    from rescueseg.annotation.formats import format_named
    from rescueseg.annotation.formats.base import Frame
    from rescueseg.annotation.formats.handout import write_patch

    kind, client = format_named(format_), open_client(campaign, annotator)
    lease = client.next(Filters(purpose=purpose), ticket)
    console = plain_console()
    if lease is None:
        console.print("Nothing to annotate now.")
        return
    describe(console, lease)
    hand_in = f"rescueseg queue submit {quote(campaign)} {lease.lease_id} FILE -a {quote(annotator)}"
    if out is not None:
        view, info = client.view(lease.lease_id), client.info()
        files = write_patch(kind, out, lease, view, info)
        console.print(f"image     {files.image}", markup=False)
        console.print(f"mask      {files.labels}" + (" (was there, kept)" if files.is_resumed else ""), markup=False)
        for path in (files.ignore, *files.others):
            if path is not None:
                console.print(f"          {path}", markup=False)
        hand_in = f"rescueseg queue submit {quote(campaign)} {quote(str(files.labels))} -a {quote(annotator)}"
        if cvat:
            task = upload(cvat, files, Frame.of(view, info))
            console.print(f"task      {task}", markup=False)
            hand_in = f"rescueseg queue submit {quote(campaign)} {quote(task)} -a {quote(annotator)}"
    console.print(f"hand in   {hand_in}", markup=False)


def describe(console: Console, lease: Lease) -> None:
    """Print a lease and its patch."""
    ticket = lease.ticket
    console.print(f"lease     {lease.lease_id} until {lease.expires_at:%Y-%m-%d %H:%M} UTC")
    console.print(f"ticket    {ticket.ticket_id}", markup=False)
    console.print(f"patch     {ticket.volume_id} {ticket.box} (z, y, x)", markup=False)
    if ticket.reason or ticket.stratum:
        console.print(f"why       {ticket.reason or ticket.stratum}", markup=False)
    if lease.comment:
        console.print(f"reviewer  {lease.comment}", markup=False)


@dataclass(frozen=True)
class SubmitOptions:
    """How a mask that is handed in was made, and which warnings are overruled."""

    tool: Annotated[str, typer.Option(help="What you worked with.")] = "file"
    seconds: Annotated[
        float, typer.Option(help="Time you took.", min=0, show_default="told by the lease's account")
    ] = 0.0
    unchanged: Annotated[bool, typer.Option(help="The mask is right as it was handed out.")] = False
    override: Annotated[bool, typer.Option("--override", help="Hand in in spite of warnings.")] = False


@option_groups
def submit(
    campaign: CampaignOrServerArgument,
    first: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Mask of the patch (or LEASE FILE, where the file cannot say which patch it is of)."
        ),
    ],
    annotator: AnnotatorOption,
    options: SubmitOptions,
    second: Annotated[
        str,
        typer.Argument(
            metavar="[FILE]",
            help=f"{', '.join(FORMAT_EXTENSIONS.values())}…, or the address of a CVAT task.",
        ),
    ] = "",
) -> None:
    """Hand in a mask. Handing in the same mask again changes nothing."""
    from rescueseg.annotation.clients import open_client
    from rescueseg.annotation.cvat_server import download, is_task

    client = open_client(campaign, annotator)
    with tempfile.TemporaryDirectory() as folder:
        source = second or first
        file = download(source, Path(folder) / "annotations.zip") if is_task(source) else Path(source)
        confirm(_submit(client, file, first if second else "", options))


def _submit(client: AnnotationClient, file: Path, lease_id: str, options: SubmitOptions) -> AnnotationRecord:
    from rescueseg.annotation.formats import read_labels
    from rescueseg.annotation.formats.base import Frame
    from rescueseg.annotation.formats.handout import lease_of

    lease_id = lease_id or lease_of(file, client.leases()).lease_id
    labels = read_labels(file, Frame.of(client.view(lease_id), client.info()))
    tool, seconds = options.tool, options.seconds
    try:
        return client.submit(lease_id, labels, tool, active_seconds=seconds, override=options.override)
    except LabelWarningsError as error:
        if not options.unchanged or any(warning.code != "unchanged" for warning in error.warnings):
            todo = "Correct it, or say --override (--unchanged if it is right as it was handed out)"
            raise LabelError(error.what, where=str(file), todo=todo) from error
        return client.submit(lease_id, labels, tool, active_seconds=seconds, override=True)


def confirm(annotation: AnnotationRecord) -> None:
    """Print the verdict on a mask."""
    plain_console().print(
        f"{annotation.ticket_id}: version {annotation.version} {annotation.verdict}, "
        f"{annotation.voxels_corrected} voxels corrected"
    )


def watch(
    campaign: CampaignOrServerArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the patches.", file_okay=False)],
    annotator: AnnotatorOption,
    count: Annotated[int, typer.Option("-n", help="How many patches lie there at once.", min=1, max=64)] = 3,
    format_: FormatOption = "nifti",
) -> None:
    """Keep a folder filled with patches until Ctrl-C; a mask saved there, by any tool, is handed in.

    What is wrong with a mask stands in FILE.error.txt beside it; what was handed in lies in DIR/done. Patches that
    nobody touched are given back at the end.
    """
    from rescueseg.annotation.clients import open_client
    from rescueseg.annotation.formats import format_named
    from rescueseg.annotation.watch import Watcher

    console = plain_console()
    watcher = Watcher(
        open_client(campaign, annotator),
        folder,
        format_named(format_),
        count,
        lambda line: console.print(line, markup=False),
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # a step is finished first, so that no lease gets lost
        signal.signal(number, lambda *_: stop.set())
    try:
        while not stop.is_set():
            watcher.step()
            stop.wait(1.0)
    finally:
        watcher.close()
