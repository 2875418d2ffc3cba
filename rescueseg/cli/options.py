"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from rescueseg.annotation.login import login_name

CampaignArgument = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign.")]
CampaignOrServerArgument = Annotated[
    str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign, or address of its annotation server.")
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the campaign file, such as training.iterations=300."),
]
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


def plain_console() -> Console:
    """Return a console that prints lines as they are."""
    return Console(highlight=False, soft_wrap=True)
