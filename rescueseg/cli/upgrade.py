"""`rescueseg upgrade`: a campaign of an earlier version is brought to this one."""

from __future__ import annotations

from typing import Annotated

import typer

from rescueseg.campaign import Campaign
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.options import CampaignArgument


def upgrade(
    campaign: CampaignArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    moved: Annotated[
        bool,
        typer.Option(
            "--moved", help="The campaign was moved here: its folder elsewhere, if any, no longer uses the database."
        ),
    ] = False,
) -> None:
    """Bring a campaign of an earlier version to this one; its database is copied first.

    Images are checked against the digest of their import, and their files listed, so that damage is found from then on.
    Stop the campaign's servers and generations before. A run that was cut off goes on when it is called again.
    """
    from rescueseg.upkeep.upgrade import upgrade_steps

    opened = Campaign.open(campaign)
    with shown_progress(console) as progress:
        steps = upgrade_steps(opened, moved=moved, progress=progress)
        for step in steps:
            say_line(f"Would {step.what}" if dry_run else step.what[:1].upper() + step.what[1:])
            if not dry_run:
                step.act()
    if not steps:
        say_line("Nothing to do: the campaign is of this version")
    elif dry_run:
        console.print("Nothing was changed; run again without --dry-run", style="dim")
