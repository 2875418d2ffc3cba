"""`rescueseg queue …`: work through the annotation queue from the command line."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from rescueseg.annotation.files import read_labels, write_patch
from rescueseg.annotation.labels import starting_labels, submit_labels
from rescueseg.annotation.records import STATUSES, AnnotationRecord, Lease
from rescueseg.annotation.store import QueueStore, open_queue, utc_now
from rescueseg.campaign import Campaign
from rescueseg.errors import ConfigError, LabelError, RescuesegError
from rescueseg.records import Purpose
from rescueseg.storage import digest_array


class OneLineErrors(TyperGroup):
    """Shows our errors as one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RescuesegError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error


queue_app = typer.Typer(
    name="queue",
    cls=OneLineErrors,
    no_args_is_help=True,
    help="Work through the annotation queue: take a patch, correct its mask in any tool, hand it in.",
)

_PURPOSES: tuple[Purpose, ...] = ("validation", "test", "pool")


def login_name() -> str:
    """Return the name of who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without that user
        return "annotator"


CampaignArgument = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign.")]
LeaseArgument = Annotated[str, typer.Argument(metavar="LEASE", help="Lease id, as 'queue next' printed it.")]
TicketArgument = Annotated[str, typer.Argument(metavar="TICKET", help="Ticket id.")]
AnnotatorOption = Annotated[
    str,
    typer.Option(
        "--annotator",
        "-a",
        default_factory=login_name,
        envvar="RESCUESEG_ANNOTATOR",
        help="Who you are.",
        show_default="your login name",
    ),
]


def _open(url: str) -> tuple[Campaign, QueueStore]:
    campaign = Campaign.open(url)
    return campaign, open_queue(campaign)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _wake(campaign: Campaign, store: QueueStore) -> None:
    """Tell a served campaign that patches were accepted."""
    from rescueseg.orchestration import wake

    wake(campaign, store)


@queue_app.command(epilog="Example: rescueseg queue status ./mito")
def status(campaign: CampaignArgument) -> None:
    """Show how many tickets are in which state, and who works on what."""
    opened, store = _open(campaign)
    store.expire()
    console = _console()
    table = Table("", *STATUSES, title=f"queue of {opened.config.name}")
    everything = store.tickets()
    for purpose in _PURPOSES:
        found = [ticket.status for ticket in everything if ticket.purpose == purpose]
        if found:
            table.add_row(purpose, *(str(found.count(name)) for name in STATUSES))
    console.print(table)
    for lease in store.leases():
        minutes = (lease.expires_at - utc_now()).total_seconds() / 60
        console.print(f"{lease.ticket_id}  {lease.annotator}, {minutes:.0f} min left, lease {lease.lease_id}")
    wanted = opened.config.trigger.accepted_patches
    console.print(f"{store.accepted_since_last_generation()} of {wanted} accepted patches towards the next generation")


@queue_app.command("next", epilog="Example: rescueseg queue next ./mito --annotator anna --out patches")
def next_(
    campaign: CampaignArgument,
    annotator: AnnotatorOption,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write image and mask here as NIfTI.", file_okay=False)
    ] = None,
    purpose: Annotated[str | None, typer.Option(help="Only pool, validation or test patches.")] = None,
    ticket: Annotated[str | None, typer.Option(help="This ticket; a skipped one is taken up again.")] = None,
) -> None:
    """Take the next patch, or go on with the one you hold."""
    chosen = next((name for name in _PURPOSES if name == purpose), None)
    if purpose is not None and chosen is None:
        raise ConfigError(f"unknown purpose '{purpose}'", todo=f"Use one of {', '.join(_PURPOSES)}")
    opened, store = _open(campaign)
    seconds = opened.config.annotation.lease_minutes * 60
    lease = store.claim(annotator, seconds, purpose=chosen, ticket_id=ticket, resume=True)
    console = _console()
    if lease is None:
        console.print("Nothing to annotate now.")
        return
    _describe(console, lease)
    if out is not None:
        files = write_patch(opened, lease, out)
        console.print(f"image     {files.image}")
        console.print(f"mask      {files.labels}" + (" (was there, kept)" if files.kept else ""))
        hand_in = quote(str(files.labels))
    else:
        hand_in = "FILE"
    command = f"rescueseg queue submit {quote(campaign)} {lease.lease_id} {hand_in} -a {quote(annotator)}"
    console.print(f"hand in   {command}", markup=False)


def _describe(console: Console, lease: Lease) -> None:
    ticket = lease.ticket
    console.print(f"lease     {lease.lease_id} until {lease.expires_at:%Y-%m-%d %H:%M} UTC")
    console.print(f"ticket    {ticket.ticket_id}", markup=False)
    console.print(f"patch     {ticket.volume_id} {ticket.box} (z, y, x)", markup=False)
    if ticket.reason or ticket.stratum:
        console.print(f"why       {ticket.reason or ticket.stratum}", markup=False)
    if lease.comment:
        console.print(f"reviewer  {lease.comment}", markup=False)


@queue_app.command(epilog="Example: rescueseg queue submit ./mito 3f2a… patches/pool-0001-ab12_labels.nii.gz -a anna")
def submit(
    campaign: CampaignArgument,
    lease: LeaseArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Mask of the patch: .nii.gz, .nii, .tif or .npz.")],
    annotator: AnnotatorOption,
    tool: Annotated[str, typer.Option(help="What you worked with.")] = "file",
    seconds: Annotated[
        float | None, typer.Option(help="Time you took.", min=0, show_default="since the lease began")
    ] = None,
    unchanged: Annotated[bool, typer.Option(help="The mask is right as it was handed out.")] = False,
) -> None:
    """Hand in a mask. Handing in the same mask again changes nothing."""
    opened, store = _open(campaign)
    held = store.lease(lease)
    labels = read_labels(file, held.ticket.box)
    store.check_submit(lease, annotator, digest_array(labels))
    if not unchanged and np.array_equal(labels, starting_labels(opened, held)):
        raise LabelError(
            "the mask is as it was handed out", where=str(file), todo="Correct it, or say --unchanged if it is right"
        )
    took = (datetime.now(UTC) - held.granted_at).total_seconds() if seconds is None else seconds
    annotation = submit_labels(opened, store, held, annotator, labels, tool, took)
    _confirm(annotation)
    _wake(opened, store)


def _confirm(annotation: AnnotationRecord) -> None:
    _console().print(
        f"{annotation.ticket_id}: version {annotation.version} {annotation.verdict}, "
        f"{annotation.voxels_corrected} voxels corrected"
    )


@queue_app.command(epilog="Example: rescueseg queue skip ./mito 3f2a… --reason 'out of focus' -a anna")
def skip(
    campaign: CampaignArgument,
    lease: LeaseArgument,
    annotator: AnnotatorOption,
    reason: Annotated[str, typer.Option(help="Why nobody can annotate it.")],
) -> None:
    """Take a patch out of the queue because it cannot be annotated."""
    opened, store = _open(campaign)
    store.skip(lease, annotator, reason)
    _console().print(f"{store.lease(lease).ticket_id}: skipped")
    _wake(opened, store)  # the last patch that was waited for may be this one


@queue_app.command(epilog="Example: rescueseg queue release ./mito 3f2a… -a anna")
def release(campaign: CampaignArgument, lease: LeaseArgument, annotator: AnnotatorOption) -> None:
    """Give a patch back to the queue untouched."""
    _, store = _open(campaign)
    store.release(lease, annotator)
    _console().print(f"{store.lease(lease).ticket_id}: back in the queue")


@queue_app.command(epilog="Example: rescueseg queue accept ./mito pool-0001-ab12 -a lead")
def accept(campaign: CampaignArgument, ticket: TicketArgument, annotator: AnnotatorOption) -> None:
    """Accept the latest mask of a submitted ticket."""
    opened, store = _open(campaign)
    _confirm(store.accept(ticket, annotator))
    _wake(opened, store)


@queue_app.command(
    epilog="Example: rescueseg queue reject ./mito pool-0001-ab12 --comment 'misses the left one' -a lead"
)
def reject(
    campaign: CampaignArgument,
    ticket: TicketArgument,
    annotator: AnnotatorOption,
    comment: Annotated[str, typer.Option(help="What the next annotator should change.")],
) -> None:
    """Send a submitted ticket back; the next annotator goes on from its mask."""
    _, store = _open(campaign)
    store.reject(ticket, annotator, comment)
    _console().print(f"{ticket}: back in the queue")


@queue_app.command(epilog="Example: rescueseg queue history ./mito pool-0001-ab12")
def history(campaign: CampaignArgument, ticket: TicketArgument) -> None:
    """Show every change of a ticket."""
    _, store = _open(campaign)
    console = _console()
    for entry in store.history(ticket):
        details = ", ".join(f"{key} {value}" for key, value in entry.details.items() if value not in ("", None))
        step = entry.after if entry.before in ("", entry.after) else f"{entry.before} → {entry.after}"
        line = f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.event:<9}  {entry.actor}  {step}"
        console.print(f"{line}  ({details})" if details else line, markup=False)
