"""`rescueseg queue …`: work through the annotation queue from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from rescueseg.cli import queue_files, queue_review
from rescueseg.cli.console import OneLineErrors
from rescueseg.cli.options import AnnotatorOption, CampaignArgument, LeaseArgument, TicketArgument, plain_console
from rescueseg.cli.queue_review import open_with_queue
from rescueseg.queue.records import STATUSES

if TYPE_CHECKING:
    pass


queue_app = typer.Typer(
    name="queue",
    cls=OneLineErrors,
    no_args_is_help=True,
    help="Work through the annotation queue: take a patch, correct its mask in any tool, hand it in.",
)


@queue_app.command(epilog="Example: rescueseg queue status ./mito")
def status(campaign: CampaignArgument) -> None:
    """Show how many tickets are in which state, and who works on what."""
    from rescueseg.queue.store import utc_now

    opened, store = open_with_queue(campaign)
    store.leases.expire()
    console = plain_console()
    table = Table("", *STATUSES, title=f"queue of {opened.config.name}")
    everything = store.views.tickets()
    for purpose in queue_files.PURPOSES:
        statuses = [ticket.status for ticket in everything if ticket.purpose == purpose]
        if statuses:
            table.add_row(purpose, *(str(statuses.count(name)) for name in STATUSES))
    console.print(table)
    for lease in store.views.leases():
        minutes = (lease.expires_at - utc_now()).total_seconds() / 60
        console.print(f"{lease.ticket_id}  {lease.annotator}, {minutes:.0f} min left, lease {lease.lease_id}")
    threshold = opened.config.trigger.accepted_patches
    console.print(
        f"{store.ledger.accepted_since_last_generation()} of {threshold} accepted patches towards the next generation"
    )


queue_app.command("next", epilog="Example: rescueseg queue next ./mito --annotator anna --out patches")(
    queue_files.next_
)
queue_app.command(epilog="Example: rescueseg queue export ./mito --format nrrd --out patches -a anna")(
    queue_files.export
)
queue_app.command(epilog="Example: rescueseg queue submit ./mito patches/pool-0001-ab12_labels.nii.gz -a anna")(
    queue_files.submit
)
queue_app.command(epilog="Example: rescueseg queue watch ./mito todo -n 3 -a anna")(queue_files.watch)


@queue_app.command(epilog="Example: rescueseg queue skip ./mito 3f2a… --reason 'out of focus' -a anna")
def skip(
    campaign: CampaignArgument,
    lease: LeaseArgument,
    annotator: AnnotatorOption,
    reason: Annotated[str, typer.Option(help="Why nobody can annotate it.")],
) -> None:
    """Take a patch out of the queue because it cannot be annotated."""
    from rescueseg.services.prefect_api import wake

    opened, store = open_with_queue(campaign)
    store.leases.skip(lease, annotator, reason)
    plain_console().print(f"{store.views.lease(lease).ticket_id}: skipped")
    wake(opened, store)  # a generation may have waited for this patch alone


@queue_app.command(epilog="Example: rescueseg queue release ./mito 3f2a… -a anna")
def release(campaign: CampaignArgument, lease: LeaseArgument, annotator: AnnotatorOption) -> None:
    """Give a patch back to the queue untouched."""
    _, store = open_with_queue(campaign)
    store.leases.release(lease, annotator)
    plain_console().print(f"{store.views.lease(lease).ticket_id}: back in the queue")


queue_app.command(epilog="Example: rescueseg queue review ./mito")(queue_review.review)
queue_app.command(epilog="Example: rescueseg queue accept ./mito pool-0001-ab12 --version 1 -a lead")(
    queue_review.accept
)
queue_app.command(
    epilog="Example: rescueseg queue reject ./mito pool-0001-ab12 --comment 'misses the left one' -a lead"
)(queue_review.reject)
queue_app.command(epilog="Example: rescueseg queue fix ./mito pool-0001-ab12 fixed.nii.gz -a lead")(queue_review.fix)
queue_app.command(epilog="Example: rescueseg queue agreement ./mito --html agreement.html")(queue_review.agreement)
queue_app.command(epilog="Example: rescueseg queue effort ./mito --patches")(queue_review.effort)


@queue_app.command(epilog="Example: rescueseg queue history ./mito pool-0001-ab12")
def history(campaign: CampaignArgument, ticket: TicketArgument) -> None:
    """Show every change of a ticket."""
    _, store = open_with_queue(campaign)
    console = plain_console()
    for entry in store.views.history(ticket):
        details = ", ".join(f"{key} {value}" for key, value in entry.details.items() if value not in ("", None))
        step = entry.after if entry.before in ("", entry.after) else f"{entry.before} → {entry.after}"
        line = f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.event:<9}  {entry.actor}  {step}"
        console.print(f"{line}  ({details})" if details else line, markup=False)
