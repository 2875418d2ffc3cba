"""A campaign's queue is made once; afterwards a lost one is an error, and a copied folder does not share one."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.campaign.identity import IDENTITY
from rescueseg.cli.main import app
from rescueseg.config import check_config
from rescueseg.errors import QueueError, StorageError
from rescueseg.geometry import Box
from rescueseg.queue import owner as owner_module
from rescueseg.queue.database import Database
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import make_queue, open_queue
from rescueseg.queue.tables import metadata, owner

TICKET = NewTicket(ticket_id="t", volume_id="v", box=Box((0, 0, 0), (1, 1, 1)))


def make(folder: Path, url: str = "", name: str = "liver") -> Campaign:
    settings = {"name": name, "classes": ["organelle"]} | ({"database_url": url} if url else {})
    return Campaign.create(str(folder), check_config(settings))


@pytest.fixture
def shared(tmp_path: Path, database_url: str) -> Campaign:
    """A campaign with a ticket, whose database lies outside its folder."""
    campaign = make(tmp_path / "liver", database_url)
    open_queue(campaign).tickets.add([TICKET])
    return campaign


def tickets(campaign: Campaign) -> list[str]:
    return [ticket.ticket_id for ticket in open_queue(Campaign.open(campaign.url)).views.tickets()]


def moved(campaign: Campaign, target: Path) -> Campaign:
    shutil.move(campaign.url, target)
    return Campaign.open(str(target))


def copied(campaign: Campaign, target: Path) -> Campaign:
    shutil.copytree(campaign.url, target)
    return Campaign.open(str(target))


def refused(campaign: Campaign, match: str, error: type[Exception] = QueueError) -> None:
    with pytest.raises(error, match=match):
        open_queue(campaign)


# lost ----------------------------------------------------------------------------------------------------------------


def test_a_new_campaign_gets_a_queue_and_an_id(tmp_path: Path, database_url: str) -> None:
    campaign = make(tmp_path / "liver", database_url)
    assert campaign.records.read(IDENTITY) is None
    open_queue(campaign)
    identity = campaign.records.read(IDENTITY)
    assert identity is not None
    assert len(identity.campaign_id) == 32
    make_queue(campaign)
    assert campaign.records.read(IDENTITY) == identity


def lose(database_url: str, how: str) -> None:
    """Delete a database, empty it, or leave another program's tables in it."""
    database = Database(database_url)
    if database.file is not None:
        database.file.unlink()
        if how != "missing":
            database.file.touch()
        if how == "foreign":
            with closing(sqlite3.connect(database.file)) as connection, connection:
                connection.execute("CREATE TABLE cells (number INTEGER)")
        return
    with database.engine.begin() as connection:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE rescueseg_schema")
        if how == "foreign":
            connection.exec_driver_sql("CREATE TABLE cells (number INTEGER)")
    database.engine.dispose()


@pytest.mark.parametrize("how", ["missing", "empty", "foreign"])
@pytest.mark.parametrize("kept", ["identity.json", "holdout.json", "annotations", "generations"])
def test_a_lost_queue_is_said_so_and_stays_lost(tmp_path: Path, database_url: str, how: str, kept: str) -> None:
    campaign = make(tmp_path / "liver", database_url)
    open_queue(campaign).close()
    if kept != "identity.json":
        campaign.storage.remove("identity.json")
        campaign.storage.write_bytes(kept if "." in kept else f"{kept}/x", b"{}")
    lose(database_url, how)
    for _ in range(2):
        refused(campaign, "missing or empty, and with it who annotated what.*Restore it from a backup", StorageError)
    database = Database(database_url)
    assert database.version() is None
    assert database.file is None or database.file.exists() == (how != "missing")


@pytest.mark.parametrize("command", [["status"], ["queue", "status"], ["sample"], ["generation", "--dry-run"]])
def test_every_command_says_that_the_queue_is_lost(campaign: Campaign, command: list[str]) -> None:
    file = Path(campaign.url, "campaign.db")
    file.unlink()
    told = CliRunner().invoke(app, [*command, campaign.url])
    assert (told.exit_code, told.output.count("\n")) == (1, 1)
    assert f"{file}: the database of the queue is missing or empty" in told.output
    assert not file.exists()


def test_init_makes_the_queue(tmp_path: Path) -> None:
    import numpy as np
    import tifffile

    tifffile.imwrite(tmp_path / "raw.tif", np.arange(720, dtype=np.uint16).reshape(8, 9, 10))
    options = ["--classes", "o", "--spacing", "1,1,1"]
    told = CliRunner().invoke(app, ["init", str(tmp_path / "c"), str(tmp_path / "raw.tif"), *options])
    assert told.exit_code == 0, told.output
    (tmp_path / "c" / "campaign.db").unlink()
    refused(Campaign.open(str(tmp_path / "c")), "missing or empty", StorageError)


def test_a_lost_id_is_said_so_and_the_database_is_asked_for_it(shared: Campaign) -> None:
    before = shared.storage.read_bytes("identity.json")
    shared.storage.remove("identity.json")
    shared.storage.write_bytes("annotations/x", b"")
    refused(shared, r"identity.json: the file is missing.*rescueseg upgrade", StorageError)
    assert not shared.storage.exists("identity.json")
    assert CliRunner().invoke(app, ["upgrade", shared.url]).exit_code == 0
    assert shared.storage.read_bytes("identity.json") == before
    assert tickets(shared) == ["t"]


def test_a_database_that_says_nothing_of_its_owner_is_damaged(shared: Campaign) -> None:
    database = Database(shared.database_url)
    with database.write() as connection:
        connection.execute(sa.delete(owner))
    refused(shared, "does not say whose queue", StorageError)


# killed while it was made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["tables", "owner"])
def test_a_queue_half_made_is_made_to_its_end(tmp_path: Path, database_url: str, left: str) -> None:
    campaign = make(tmp_path / "liver", database_url)
    database = Database(database_url)
    database.migrate()
    if left == "owner":
        owner_module.claim(database, campaign.storage, campaign.config.name, "0" * 32)
    open_queue(campaign)
    identity = campaign.records.read(IDENTITY)
    assert identity is not None
    assert (identity.campaign_id == "0" * 32) == (left == "owner")


# other campaigns, copies and moves -----------------------------------------------------------------------------------


def test_a_campaign_of_another_name_is_refused(shared: Campaign, tmp_path: Path, database_url: str) -> None:
    refused(make(tmp_path / "other", database_url, "kidney"), "queue of campaign 'liver', not of 'kidney'")


def test_a_campaign_of_the_same_name_is_refused(shared: Campaign, tmp_path: Path, database_url: str) -> None:
    other = make(tmp_path / "other", database_url)
    for _ in range(2):
        refused(other, f"another campaign of the name 'liver', in {shared.url}")
    assert not other.storage.exists("identity.json")
    assert tickets(shared) == ["t"]


def test_so_is_one_made_anew_where_the_first_lay(shared: Campaign, tmp_path: Path, database_url: str) -> None:
    shutil.rmtree(shared.url)
    again = make(tmp_path / "liver", database_url)
    refused(again, "another campaign of the name 'liver', which lay here before")
    assert not again.storage.exists("identity.json"), "it does not get the tickets of the first"


def test_a_copied_folder_cannot_share_the_database(shared: Campaign, tmp_path: Path) -> None:
    copy = copied(shared, tmp_path / "copy")
    for _ in range(2):
        refused(copy, f"copy of the campaign in {shared.url}, which uses the same database")
    assert tickets(shared) == ["t"]
    shutil.rmtree(shared.url)
    assert tickets(copy) == ["t"], "now it is a move"


def test_a_copy_goes_on_instead_when_a_person_says_so(shared: Campaign, tmp_path: Path) -> None:
    copy = copied(shared, tmp_path / "copy")
    told = CliRunner().invoke(app, ["upgrade", "--moved", copy.url])
    assert told.exit_code == 0, told.output
    assert tickets(copy) == ["t"]
    refused(shared, f"copy of the campaign in {copy.url}")


def test_a_copy_with_a_database_of_its_own_is_left_alone(tmp_path: Path) -> None:
    first = make(tmp_path / "liver")
    open_queue(first).tickets.add([TICKET])
    open_queue(first).close()
    copy = copied(first, tmp_path / "copy")
    open_queue(copy).tickets.withdraw("t", "anna", "no use")
    assert open_queue(copy).views.counts()["skipped"] == 1
    assert open_queue(first).views.counts()["queued"] == 1


def test_a_moved_folder_goes_on(shared: Campaign, tmp_path: Path) -> None:
    there = moved(shared, tmp_path / "moved by 20%20 + ü # ?x=y")
    assert tickets(there) == ["t"]
    back = moved(there, tmp_path / "liver")
    assert tickets(back) == ["t"]


def on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "another")


def test_another_machine_sees_the_same_folder(shared: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    on_another_machine(monkeypatch)
    assert tickets(shared) == ["t"]
    monkeypatch.undo()
    assert tickets(shared) == ["t"]


def test_another_machine_may_mount_it_elsewhere(
    shared: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename keeps the folder's number, as a mount elsewhere does."""
    there = moved(shared, tmp_path / "mounted")
    on_another_machine(monkeypatch)
    assert tickets(there) == ["t"]


@pytest.mark.parametrize("place", ["liver", "elsewhere"])
def test_a_folder_that_came_to_another_machine_may_be_a_copy(
    shared: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    kept = moved(shared, tmp_path / "kept")
    there = copied(kept, tmp_path / place)
    on_another_machine(monkeypatch)
    for _ in range(2):
        refused(there, "may be a copy of it.*rescueseg upgrade .* --moved")
    told = CliRunner().invoke(app, ["upgrade", there.url, "--moved"])
    assert told.exit_code == 0, told.output
    assert tickets(there) == ["t"]


def test_a_campaign_in_a_bucket_is_the_same_on_every_machine(
    new_file_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = check_config({"name": "liver", "classes": ["organelle"], "database_url": new_file_database()})
    campaign = Campaign.create("memory://identity/liver", config)
    open_queue(campaign).tickets.add([TICKET])
    on_another_machine(monkeypatch)
    assert tickets(campaign) == ["t"]
    for name in ("campaign.toml", "identity.json"):
        Campaign.open("memory://identity/liver").storage.fs.copy(f"/identity/liver/{name}", f"/identity/copy/{name}")
    refused(Campaign.open("memory://identity/copy"), "copy of the campaign in memory://")


@pytest.fixture
def new_file_database(tmp_path: Path) -> Callable[[], str]:
    return lambda: f"sqlite:///{tmp_path}/queue.db"
