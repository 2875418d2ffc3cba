"""`rescueseg serve` and `rescueseg token …`."""

from __future__ import annotations

import ipaddress
import socket
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rescueseg.annotation.roles import Role
from rescueseg.campaign import Campaign
from rescueseg.cli.console import OneLineErrors, shown_progress
from rescueseg.cli.options import CampaignArgument
from rescueseg.config import ANNOTATION_PORT
from rescueseg.errors import AccessError, ServiceError

STOP_SECONDS = 3
"""Grace period for running requests when the server stops."""

token_app = typer.Typer(
    name="token",
    cls=OneLineErrors,
    no_args_is_help=True,
    help="Who may use the annotation server from other machines.",
)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    campaign: CampaignArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine, tokens are needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any free one.", min=0, max=65535)] = ANNOTATION_PORT,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Ask for tokens on this machine too, such as behind a proxy.")
    ] = False,
) -> None:
    """Serve the annotation queue until Ctrl-C: browser page, REST API, MONAI Label.

    On the loopback interface people say who they are; elsewhere each needs a token, see 'rescueseg token add --help'.
    """
    from rescueseg.annotation.login import login_name
    from rescueseg.server import access

    opened = Campaign.open(campaign)
    is_open = is_loopback(host) and not tokens
    if not is_open and not access.list_tokens(opened.storage):
        raise AccessError(
            "there is no token yet, so nobody could use the server",
            where=opened.url,
            todo=f"rescueseg token add {campaign} NAME --role annotator",
        )
    import uvicorn

    from rescueseg.server.app import create_app
    from rescueseg.volumes.comparison import ensure_compared

    console = Console(highlight=False, soft_wrap=True)
    with shown_progress(console) as progress:
        ensure_compared(opened.volumes, progress)
    app = create_app(opened, is_open=is_open, login=login_name())
    with _listen(host, port) as listener:
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{listener.getsockname()[1]}"
        console.print(f"Annotation {url}  (API: {url}/api/v1/openapi.json)")
        console.print("no token is needed on this machine" if is_open else "a token is needed", style="dim")
        settings = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=STOP_SECONDS, proxy_headers=False, server_header=False
        )
        uvicorn.Server(settings).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise ServiceError(
            f"the server cannot listen there: {error.strerror or error}",
            where=f"{host}:{port}",
            todo="Choose another --port, or --port 0 for any free one",
        ) from error


@token_app.command(epilog="Example: rescueseg token add liver anna --role annotator")
def add(
    campaign: CampaignArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The annotator's name in the queue.")],
    role: Annotated[Role, typer.Option(help="Each may do what the ones before may.")],
) -> None:
    """Make a token and print it: it cannot be shown again."""
    from rescueseg.server import access

    typer.echo(access.add_token(Campaign.open(campaign).storage, name, role))


@token_app.command("list", epilog="Example: rescueseg token list liver")
def list_(campaign: CampaignArgument) -> None:
    """Show who has a token; the tokens themselves are not kept."""
    from rescueseg.server import access

    table = Table("id", "name", "role", "since")
    for token in access.list_tokens(Campaign.open(campaign).storage):
        table.add_row(token.token_id, token.name, token.role, f"{token.created_at:%Y-%m-%d %H:%M} UTC")
    Console(highlight=False).print(table)


@token_app.command(epilog="Example: rescueseg token revoke liver 3f2a91c0")
def revoke(
    campaign: CampaignArgument,
    token: Annotated[str, typer.Argument(metavar="ID", help="As 'token list' shows it.")],
) -> None:
    """Take a token back; it stops working at once."""
    from rescueseg.server import access

    access.revoke_token(Campaign.open(campaign).storage, token)
    typer.echo(f"{token}: revoked")
