"""`rescueseg verify`, `backup` and `restore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rescueseg.campaign import Campaign
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.options import CampaignArgument
from rescueseg.errors import ConfigError, RescuesegError, storage_errors

_SHOWN = 20
BackupsArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the campaign's backups.")]


def backup(
    campaign: CampaignArgument,
    out: BackupsArgument,
    full: Annotated[
        bool, typer.Option("--full", help="Read every file again, those too whose size and time did not change.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read and stored; no more.")] = False,
) -> None:
    """Back a campaign up while people annotate and a generation runs; later backups store only what is new.

    Holds the queue's database as it is at one moment, and every file that it and the campaign's records speak of. Left
    out are the logs and databases of local servers, MLflow's own excepted, and checkpoints of finished trainings.
    """
    from rescueseg.upkeep.backup import back_up, plan_backup
    from rescueseg.upkeep.backup_records import BackupFolder

    opened, folder = Campaign.open(campaign), BackupFolder(out)
    plan = plan_backup(opened, folder)
    say_line(
        f"{plan.files:,} files, {_bytes(plan.size)}; to be read: {plan.new_files:,}, {_bytes(plan.new_size)}, and the database"
    )
    if dry_run:
        console.print("Nothing was changed; run again without --dry-run", style="dim")
        return
    with shown_progress(console) as progress:
        name, made = back_up(opened, folder, full=full, progress=progress)
    for line in made.left_out:
        say_line(f"Left out: {line}")
    say_line(f"Backup {name}: {len(made.files):,} files, {_bytes(made.size)}, {made.seconds:.1f} s")
    console.print(f"Restore it with: rescueseg restore {out} NEW_FOLDER", style="dim")


def restore(
    out: BackupsArgument,
    target: Annotated[
        str, typer.Argument(metavar="CAMPAIGN", help="New or empty folder for the campaign; not needed with --list.")
    ] = "",
    name: Annotated[str, typer.Option("--backup", metavar="NAME", help="Which backup; the latest when omitted.")] = "",
    database_url: Annotated[
        str, typer.Option(help="Empty database for the queue, instead of the one that the settings name.")
    ] = "",
    show: Annotated[bool, typer.Option("--list", help="Show the backups; no more.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be restored; no more.")] = False,
) -> None:
    """Make a campaign again from a backup, in a new folder; the digest of every file is checked on the way.

    There is no campaign until all is there. A restore that was cut off goes on with the same command.
    """
    from rescueseg.queue.database import HEAD, Database
    from rescueseg.upkeep import restore as upkeep
    from rescueseg.upkeep.backup_records import BackupFolder

    folder = BackupFolder(out)
    if show:
        _show(folder.names(), out)
        return
    if not target:
        raise typer.BadParameter("name the folder for the campaign, or --list", param_hint="CAMPAIGN")
    held = folder.read(name)
    say_line(
        f"Campaign '{held.campaign}' of {held.made_at:%Y-%m-%d %H:%M} UTC, {len(held.files):,} files, {_bytes(held.size)}"
    )
    if dry_run:
        with shown_progress(console):
            upkeep.check_content(folder, held, anew=True)
        say_line("All content is what was backed up")
        console.print("Nothing was changed; run again without --dry-run", style="dim")
        return
    with shown_progress(console) as progress:
        restored = upkeep.restore(folder, Path(target), name, database_url=database_url, progress=progress)
    say_line(f"Restored: {restored.url}")
    older = Database(restored.database_url).version() != HEAD
    console.print(f"Next: rescueseg {'upgrade' if older else 'verify'} {target}", style="dim")


def _show(names: list[str], out: Path) -> None:
    from rescueseg.upkeep.backup_records import BackupFolder

    table = Table("backup", "campaign", "files", "bytes", "seconds", "from")
    for name in names:
        try:
            made = BackupFolder(out).read(name)
        except RescuesegError as error:
            table.add_row(name, "damaged", "", "", "", error.what)
            continue
        cells = (f"{len(made.files):,}", f"{made.size:,}", f"{made.seconds:.1f}")
        table.add_row(name, made.campaign, *cells, made.url)
    console.print(table if names else f"There is no backup in {out} yet")


def _bytes(count: int) -> str:
    """Return a number of bytes for people.

    Examples
    --------
    >>> _bytes(1_500), _bytes(2_500_000_000)
    ('1.5 kB', '2.5 GB')
    """
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def verify(
    campaign: CampaignArgument,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write there what is damaged, as JSON.")
    ] = None,
) -> None:
    """Read everything that a campaign holds, and say what is not what was stored; nothing is changed.

    Records, labels, images, maps, models, first masks and the queue are held against their checksums, digests and each
    other. Ends with 1 when something is damaged.
    """
    from rescueseg.upkeep.verify import verify as look

    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise ConfigError(
            "nothing can be written there", where=str(json_file), todo="Name a file in a folder that exists"
        )
    with shown_progress(console) as progress:
        found = look(Campaign.open(campaign), progress)
    say_line(f"{found.files:,} files, {_bytes(found.size)} and the queue, {found.seconds:.1f} s")
    for path in found.unknown[:_SHOWN]:
        say_line(f"Not of this campaign: {path}", style="dim")
    for error in found.unchecked:
        say_line(f"Not checked: {error}")
    for error in found.damage:
        say_line(f"Damaged: {error}")
    if json_file is not None:
        damage, unchecked = (
            [{"where": error.where, "what": error.what, "todo": error.todo} for error in errors]
            for errors in (found.damage, found.unchecked)
        )
        content = {"damage": damage, "unchecked": unchecked, "unknown": found.unknown}
        with storage_errors(str(json_file)):
            json_file.write_text(json.dumps(content, indent=1) + "\n")
    if found.damage:
        say_line(f"{len(found.damage)} found; a backup brings back what was lost: rescueseg restore")
    if found.damage or found.unchecked:
        raise typer.Exit(1)
    say_line("Nothing is damaged")
