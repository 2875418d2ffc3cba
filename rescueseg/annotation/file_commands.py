"""`rescueseg queue next`, `export` and `submit`: patches as files, and back."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console

from rescueseg.annotation.arguments import AnnotatorOption, DeskArgument, plain_console
from rescueseg.annotation.desk import Filters
from rescueseg.annotation.desks import desk_for
from rescueseg.annotation.formats import FORMATS, Frame, format_named, read_labels, stated_by
from rescueseg.annotation.formats.handout import write_patch
from rescueseg.annotation.records import AnnotationRecord, Lease
from rescueseg.errors import ConfigError, LabelError, LabelWarningsError, QueueError
from rescueseg.records import Purpose

PURPOSES: tuple[Purpose, ...] = ("validation", "test", "pool")

FormatOption = Annotated[str, typer.Option("--format", help=f"One of {', '.join(f.name for f in FORMATS)}.")]
PurposeOption = Annotated[str | None, typer.Option(help="Only pool, validation or test patches.")]
TicketOption = Annotated[str | None, typer.Option(help="This ticket; a skipped one is taken up again.")]


def next_(
    campaign: DeskArgument,
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
    campaign: DeskArgument,
    annotator: AnnotatorOption,
    format_: FormatOption = "nifti",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.", file_okay=False)] = Path(),
    purpose: PurposeOption = None,
    ticket: TicketOption = None,
) -> None:
    """Take the next patch, or the one you hold, as files for a tool of your choice."""
    _take(campaign, annotator, format_, out, purpose, ticket)


def _take(
    campaign: str, annotator: str, format_: str, out: Path | None, purpose: str | None, ticket: str | None
) -> None:
    kind, desk = format_named(format_), desk_for(campaign, annotator)
    lease = desk.next(Filters(purpose=_purpose(purpose)), ticket)
    console = plain_console()
    if lease is None:
        console.print("Nothing to annotate now.")
        return
    describe(console, lease)
    hand_in = f"rescueseg queue submit {quote(campaign)} {lease.lease_id} FILE -a {quote(annotator)}"
    if out is not None:
        files = write_patch(kind, out, lease, desk.view(lease.lease_id), desk.info())
        console.print(f"image     {files.image}", markup=False)
        console.print(f"mask      {files.labels}" + (" (was there, kept)" if files.kept else ""), markup=False)
        for path in (files.ignore, *files.others):
            if path is not None:
                console.print(f"          {path}", markup=False)
        hand_in = f"rescueseg queue submit {quote(campaign)} {quote(str(files.labels))} -a {quote(annotator)}"
    console.print(f"hand in   {hand_in}", markup=False)


def _purpose(name: str | None) -> Purpose | None:
    chosen = next((known for known in PURPOSES if known == name), None)
    if name is not None and chosen is None:
        raise ConfigError(f"unknown purpose '{name}'", todo=f"Use one of {', '.join(PURPOSES)}")
    return chosen


def describe(console: Console, lease: Lease) -> None:
    """Print what somebody holds."""
    ticket = lease.ticket
    console.print(f"lease     {lease.lease_id} until {lease.expires_at:%Y-%m-%d %H:%M} UTC")
    console.print(f"ticket    {ticket.ticket_id}", markup=False)
    console.print(f"patch     {ticket.volume_id} {ticket.box} (z, y, x)", markup=False)
    if ticket.reason or ticket.stratum:
        console.print(f"why       {ticket.reason or ticket.stratum}", markup=False)
    if lease.comment:
        console.print(f"reviewer  {lease.comment}", markup=False)


def submit(
    campaign: DeskArgument,
    first: Annotated[
        str, typer.Argument(metavar="[LEASE]", help="Lease id; found from the file and what you hold when omitted.")
    ],
    annotator: AnnotatorOption,
    second: Annotated[
        str, typer.Argument(metavar="FILE", help=f"Mask of the patch: {', '.join(f.extensions[0] for f in FORMATS)}…")
    ] = "",
    tool: Annotated[str, typer.Option(help="What you worked with.")] = "file",
    seconds: Annotated[
        float, typer.Option(help="Time you took.", min=0, show_default="told by the lease's account")
    ] = 0.0,
    unchanged: Annotated[bool, typer.Option(help="The mask is right as it was handed out.")] = False,
    override: Annotated[bool, typer.Option("--override", help="Hand in in spite of warnings.")] = False,
) -> None:
    """Hand in a mask. Handing in the same mask again changes nothing."""
    file, desk = Path(second or first), desk_for(campaign, annotator)
    lease_id = first if second else lease_of(file, desk.held()).lease_id
    labels = read_labels(file, Frame.of(desk.view(lease_id), desk.info()))
    try:
        done = desk.submit(lease_id, labels, tool, active_seconds=seconds, override=override)
    except LabelWarningsError as error:
        if not unchanged or any(warning.code != "unchanged" for warning in error.warnings):
            todo = "Correct it, or say --override (--unchanged if it is right as it was handed out)"
            raise LabelError(error.what, where=str(file), todo=todo) from error
        done = desk.submit(lease_id, labels, tool, active_seconds=seconds, override=True)
    confirm(done)


def confirm(annotation: AnnotationRecord) -> None:
    """Print what became of a mask."""
    plain_console().print(
        f"{annotation.ticket_id}: version {annotation.version} {annotation.verdict}, "
        f"{annotation.voxels_corrected} voxels corrected"
    )


def lease_of(file: Path, held: list[Lease]) -> Lease:
    """Return the lease whose patch a label file is of: by what the file says, else by its name.

    Parameters
    ----------
    file : Path
        The label file.
    held : list of Lease
        What its annotator holds.

    Raises
    ------
    QueueError
        If it is of none of them, or it cannot be told.
    """
    if not file.exists():
        raise LabelError("there is no such file", where=str(file), todo="Check the path")
    stated = stated_by(file)
    if stated.ticket_id is not None:
        found = [lease for lease in held if lease.ticket_id == stated.ticket_id]
        if not found:
            raise QueueError(
                f"the mask is of ticket {stated.ticket_id}, which you do not hold",
                where=str(file),
                todo="It may be handed in already, or its lease has run out: see 'rescueseg queue history'",
            )
        return found[0]
    found = [lease for lease in held if file.name.startswith(f"{lease.ticket_id}_")] or held
    if stated.offset_zyx is not None:
        place = tuple(round(value) for value in stated.offset_zyx)
        found = [lease for lease in found if lease.ticket.box.offset_zyx == place]
    if len(found) != 1:
        what = "no patch that you hold lies there" if not found else f"it may be of {len(found)} patches that you hold"
        raise QueueError(what, where=str(file), todo="Name the lease: queue submit CAMPAIGN LEASE FILE")
    return found[0]
