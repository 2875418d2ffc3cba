"""`rescueseg queue …` for reviewers: verdicts, agreement of annotators, what annotation costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescueseg.campaign import Campaign
from rescueseg.cli.options import (
    AnnotatorOption,
    CampaignArgument,
    CampaignOrServerArgument,
    TicketArgument,
    plain_console,
)
from rescueseg.cli.queue_files import confirm
from rescueseg.errors import ConfigError, QueueError

if TYPE_CHECKING:
    from rescueseg.queue.store import QueueStore


def open_with_queue(url: str) -> tuple[Campaign, QueueStore]:
    """Return a campaign and its queue."""
    from rescueseg.queue.store import open_queue

    campaign = Campaign.open(url)
    return campaign, open_queue(campaign)


def review(
    campaign: CampaignOrServerArgument,
    annotator: AnnotatorOption,
    ticket: Annotated[str | None, typer.Argument(metavar="[TICKET]", help="Draw what was handed in for it.")] = None,
    picture: Annotated[Path, typer.Option("--picture", "-o", help="Where to draw it.", dir_okay=False)] = Path(
        "review.png"
    ),
) -> None:
    """Show what waits for a reviewer; draw both masks of a pair, or one person's beside the first mask."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from rescueseg.annotation.clients import open_client
    from rescueseg.queue.store import utc_now

    if ticket is not None:
        _draw(campaign, ticket, picture)
        return
    client = open_client(campaign, annotator)
    waiting = client.to_review()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("ticket", "volume", "versions", "agreement", "hours"):
        table.add_column(name, overflow="fold")
    for ticket_record in waiting:
        versions = [
            f"{v.version} by {v.annotator}"
            for v in client.versions(ticket_record.ticket_id)
            if v.verdict == "submitted"
        ]
        agreement = "" if ticket_record.agreement is None else f"{ticket_record.agreement:.3f}"
        hours = (utc_now() - ticket_record.updated_at).total_seconds() / 3600
        table.add_row(ticket_record.ticket_id, ticket_record.volume_id, ", ".join(versions), agreement, f"{hours:.1f}")
    plain_console().print(table if waiting else "Nothing waits for a reviewer.")


def _draw(url: str, ticket_id: str, picture: Path) -> None:
    from rescueseg.reports.agreement_page import disagreement_view, single_version_view

    campaign, store = open_with_queue(url)
    comparisons = [c for c in store.views.comparisons() if c.ticket_id == ticket_id]
    if not comparisons:
        picture.write_bytes(single_version_view(campaign, store, ticket_id))
        plain_console().print(f"{picture}: what changed from the first mask")
        return
    picture.write_bytes(disagreement_view(campaign, store, comparisons[-1]))
    plain_console().print(
        f"{picture}: {' and '.join(comparisons[-1].annotators)}, agreement {comparisons[-1].agreement:.3f}"
    )


def accept(
    campaign: CampaignOrServerArgument,
    ticket: TicketArgument,
    annotator: AnnotatorOption,
    version: Annotated[int | None, typer.Option(help="Which.", min=1, show_default="the latest")] = None,
    consensus: Annotated[bool, typer.Option("--consensus", help="The STAPLE consensus of all that wait.")] = False,
) -> None:
    """Accept a mask of a submitted ticket."""
    from rescueseg.annotation.clients import open_client

    if consensus and version is not None:
        raise ConfigError("a consensus is no version yet", todo="Give --version or --consensus, not both")
    if consensus:
        from rescueseg.annotation.local_client import LocalClient

        confirm(LocalClient(*open_with_queue(campaign), annotator).accept_consensus(ticket))
        return
    confirm(open_client(campaign, annotator).accept(ticket, version))


def reject(
    campaign: CampaignOrServerArgument,
    ticket: TicketArgument,
    annotator: AnnotatorOption,
    comment: Annotated[str, typer.Option(help="What should be changed.")],
) -> None:
    """Send a submitted ticket back to who annotated it; after annotation.return_hours others get it too."""
    from rescueseg.annotation.clients import open_client

    open_client(campaign, annotator).reject(ticket, comment)
    plain_console().print(f"{ticket}: back in the queue")


def fix(
    campaign: CampaignOrServerArgument,
    ticket: TicketArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Mask of the patch, as for 'queue submit'.")],
    annotator: AnnotatorOption,
    seconds: Annotated[float, typer.Option(help="Time you took.", min=0)] = 0.0,
) -> None:
    """Hand in your own mask of a submitted ticket and accept it."""
    from rescueseg.annotation.clients import open_client
    from rescueseg.annotation.formats import read_labels
    from rescueseg.annotation.formats.base import Frame

    client = open_client(campaign, annotator)
    labels = read_labels(file, Frame.of(client.review_view(ticket), client.info()))
    confirm(client.fix(ticket, labels, "file", active_seconds=seconds))


def agreement(
    campaign: CampaignArgument,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures here.", dir_okay=False)] = None,
    pictures: Annotated[int, typer.Option(help="Disputed patches on the page.", min=0)] = 6,
) -> None:
    """Show how well people agree who annotated the same patches blind."""
    from rescueseg.annotation.pairs import resolve_pairs
    from rescueseg.cli.console import shown_progress
    from rescueseg.reports import agreement_table as report

    opened, store = open_with_queue(campaign)
    resolve_pairs(opened, store)
    console = plain_console()
    with shown_progress(console) as progress:
        pairs = report.measure(opened, store, progress)
        if not pairs:
            raise QueueError(
                "no patch was annotated by two people yet",
                where=opened.config.name,
                todo="Set annotation.double_fraction; new tickets then go to two people",
            )
        if html is not None:
            from rescueseg.reports.agreement_page import agreement_page

            html.write_text(agreement_page(opened, store, pairs, pictures, progress))
    threshold, classes = opened.config.annotation.agreement_dice, opened.config.classes
    console.print(report.table("pairs", report.by_pair(pairs, threshold), classes))
    console.print(report.table("annotators, each against all others", report.by_annotator(pairs, threshold), classes))
    console.print(report.table("over time", report.over_time(pairs, threshold), classes))
    console.print(report.LEGEND)
    if html is not None:
        console.print(f"page      {html}", markup=False)


def effort(
    campaign: CampaignArgument,
    patches: Annotated[bool, typer.Option("--patches", help="Also patch by patch.")] = False,
) -> None:
    """Show what annotation costs: working time and corrected voxels per person and generation."""
    from rescueseg.queue.effort import effort_by, effort_table, generation_label

    _, store = open_with_queue(campaign)
    work, console = store.views.efforts(), plain_console()
    console.print(effort_table("by generation", effort_by(work, generation_label)))
    console.print(effort_table("by person", effort_by(work, lambda entry: entry.annotator)))
    if patches:
        console.print(effort_table("by patch", effort_by(work, lambda entry: entry.ticket_id)))
    console.print(
        "min: minutes under leases, idle time cut out, and in reviewing; work that was given back counts too; "
        "corrected: voxels changed from the mask they started from"
    )
