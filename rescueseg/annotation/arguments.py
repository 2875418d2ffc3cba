"""Arguments and options that the commands of the queue share."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer
from rich.console import Console


def login_name() -> str:
    """Return the name of who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without that user
        return "annotator"


CampaignArgument = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign.")]
DeskArgument = Annotated[
    str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign, or address of its annotation server.")
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
