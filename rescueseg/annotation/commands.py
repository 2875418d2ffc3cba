"""`rescueseg queue …`: work through the annotation queue from the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from rescueseg.annotation import file_commands, review_commands
from rescueseg.annotation.arguments import (
    AnnotatorOption,
    CampaignArgument,
    LeaseArgument,
    TicketArgument,
    plain_console,
)
from rescueseg.annotation.records import STATUSES
from rescueseg.annotation.store import QueueStore, open_queue, utc_now
from rescueseg.campaign import Campaign
from rescueseg.errors import RescuesegError


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


def _open(url: str) -> tuple[Campaign, QueueStore]:
    campaign = Campaign.open(url)
    return campaign, open_queue(campaign)


def _wake(campaign: Campaign, store: QueueStore) -> None:
    """Tell a served campaign that patches were accepted."""
    from rescueseg.orchestration import wake

    wake(campaign, store)


@queue_app.command(epilog="Example: rescueseg queue status ./mito")
def status(campaign: CampaignArgument) -> None:
    """Show how many tickets are in which state, and who works on what."""
    opened, store = _open(campaign)
    store.expire()
    console = plain_console()
    table = Table("", *STATUSES, title=f"queue of {opened.config.name}")
    everything = store.tickets()
    for purpose in file_commands.PURPOSES:
        found = [ticket.status for ticket in everything if ticket.purpose == purpose]
        if found:
            table.add_row(purpose, *(str(found.count(name)) for name in STATUSES))
    console.print(table)
    for lease in store.leases():
        minutes = (lease.expires_at - utc_now()).total_seconds() / 60
        console.print(f"{lease.ticket_id}  {lease.annotator}, {minutes:.0f} min left, lease {lease.lease_id}")
    wanted = opened.config.trigger.accepted_patches
    console.print(f"{store.accepted_since_last_generation()} of {wanted} accepted patches towards the next generation")


queue_app.command("next", epilog="Example: rescueseg queue next ./mito --annotator anna --out patches")(
    file_commands.next_
)
queue_app.command(epilog="Example: rescueseg queue export ./mito --format nrrd --out patches -a anna")(
    file_commands.export
)
queue_app.command(epilog="Example: rescueseg queue submit ./mito patches/pool-0001-ab12_labels.nii.gz -a anna")(
    file_commands.submit
)
queue_app.command(epilog="Example: rescueseg queue watch ./mito todo -n 3 -a anna")(file_commands.watch)


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
    plain_console().print(f"{store.lease(lease).ticket_id}: skipped")
    _wake(opened, store)  # the last patch that was waited for may be this one


@queue_app.command(epilog="Example: rescueseg queue release ./mito 3f2a… -a anna")
def release(campaign: CampaignArgument, lease: LeaseArgument, annotator: AnnotatorOption) -> None:
    """Give a patch back to the queue untouched."""
    _, store = _open(campaign)
    store.release(lease, annotator)
    plain_console().print(f"{store.lease(lease).ticket_id}: back in the queue")


queue_app.command(epilog="Example: rescueseg queue review ./mito")(review_commands.review)
queue_app.command(epilog="Example: rescueseg queue accept ./mito pool-0001-ab12 --version 1 -a lead")(
    review_commands.accept
)
queue_app.command(
    epilog="Example: rescueseg queue reject ./mito pool-0001-ab12 --comment 'misses the left one' -a lead"
)(review_commands.reject)
queue_app.command(epilog="Example: rescueseg queue fix ./mito pool-0001-ab12 fixed.nii.gz -a lead")(review_commands.fix)
queue_app.command(epilog="Example: rescueseg queue agreement ./mito --html agreement.html")(review_commands.agreement)
queue_app.command(epilog="Example: rescueseg queue effort ./mito --patches")(review_commands.effort)


@queue_app.command(epilog="Example: rescueseg queue history ./mito pool-0001-ab12")
def history(campaign: CampaignArgument, ticket: TicketArgument) -> None:
    """Show every change of a ticket."""
    _, store = _open(campaign)
    console = plain_console()
    for entry in store.history(ticket):
        details = ", ".join(f"{key} {value}" for key, value in entry.details.items() if value not in ("", None))
        step = entry.after if entry.before in ("", entry.after) else f"{entry.before} → {entry.after}"
        line = f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.event:<9}  {entry.actor}  {step}"
        console.print(f"{line}  ({details})" if details else line, markup=False)
