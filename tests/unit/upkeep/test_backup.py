from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.annotation.label_files import read_version
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import TRAINING, TrainingResult
from rescueseg.config import check_config
from rescueseg.errors import CampaignError, ServiceError, StorageError
from rescueseg.geometry import Box
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from rescueseg.queue.submission import Work
from rescueseg.records import ModelReference
from rescueseg.upkeep.backup import back_up, files_of, plan_backup
from rescueseg.upkeep.backup_records import BackupFolder
from rescueseg.upkeep.restore import check_content, restore
from tests.postgres import throw_away_postgres

BOX = Box((0, 0, 0), (2, 4, 4))


def fill(campaign: Campaign, first: int, count: int) -> None:
    """Queue patches, annotate and accept them."""
    with closing(open_queue(campaign)) as store:
        store.tickets.add([NewTicket(ticket_id=f"t{n}", volume_id="v", box=BOX) for n in range(first, first + count)])
        for number in range(first, first + count):
            lease = store.leases.claim("anna", 60)
            assert lease is not None
            submit_labels(
                campaign, store, lease, "anna", np.full(BOX.shape_zyx, number % 2, np.uint8), Work("test", 1.0)
            )


@pytest.fixture
def filled(campaign: Campaign) -> Campaign:
    campaign.storage.write_bytes("volumes/v.ome.zarr/0/c/0/0/0/0", b"voxels" * 1000)
    campaign.storage.write_bytes("image_key", b"k" * 32)
    fill(campaign, 0, 4)
    return campaign


@pytest.fixture
def folder(tmp_path: Path) -> BackupFolder:
    return BackupFolder(tmp_path / "backups")


def contents(campaign: Campaign) -> dict[str, bytes]:
    return {file.path: campaign.storage.read_bytes(file.path) for file in files_of(campaign)}


def accepted(campaign: Campaign) -> list[tuple[str, str, int]]:
    with closing(open_queue(campaign)) as store:
        return sorted(
            (a.ticket_id, a.labels_digest, int(read_version(campaign.storage, a).classes.sum()))
            for a in store.views.accepted(purpose=None)
        )


def test_what_was_backed_up_is_restored(filled: Campaign, folder: BackupFolder, tmp_path: Path) -> None:
    name, backup = back_up(filled, folder)
    assert folder.names() == [name]
    restored = restore(folder, tmp_path / "elsewhere")
    assert contents(restored) == contents(filled)
    assert accepted(restored) == accepted(filled) != []
    assert restored.config == filled.config
    assert backup.size > 6000


def test_a_second_backup_reads_and_stores_only_what_is_new(filled: Campaign, folder: BackupFolder) -> None:
    _, first = back_up(filled, folder)
    before = set(folder.path.rglob("objects/*/*"))
    fill(filled, 4, 1)
    plan = plan_backup(filled, folder)
    assert (plan.new_files, plan.files) == (1, len(files_of(filled)))
    _, second = back_up(filled, folder)
    new = set(folder.path.rglob("objects/*/*")) - before
    labels = {f.sha256 for f in second.files} - {f.sha256 for f in first.files}
    assert {path.name for path in new} == labels | {second.database_sha256}
    assert len(folder.names()) == 2


def test_an_earlier_backup_can_be_chosen(filled: Campaign, folder: BackupFolder, tmp_path: Path) -> None:
    name, _ = back_up(filled, folder)
    before = accepted(filled)
    fill(filled, 4, 2)
    back_up(filled, folder)
    assert accepted(restore(folder, tmp_path / "earlier", name)) == before
    assert len(accepted(restore(folder, tmp_path / "latest"))) == 6
    with pytest.raises(StorageError, match="there is no backup 1999"):
        restore(folder, tmp_path / "none", "1999")


def test_a_changed_file_of_equal_size_is_read_again(filled: Campaign, folder: BackupFolder, tmp_path: Path) -> None:
    back_up(filled, folder)
    filled.storage.write_bytes("volumes/v.ome.zarr/0/c/0/0/0/0", b"VOXELS" * 1000)
    back_up(filled, folder)
    assert contents(restore(folder, tmp_path / "elsewhere")) == contents(filled)


def test_every_label_that_the_database_names_is_there_while_people_hand_in(
    filled: Campaign, folder: BackupFolder, tmp_path: Path
) -> None:
    stop = threading.Event()

    def annotate() -> None:
        number = 10
        while not stop.is_set():
            fill(filled, number, 1)
            number += 1

    workers = [threading.Thread(target=annotate)]
    for worker in workers:
        worker.start()
    try:
        for turn in range(3):
            back_up(filled, folder)
            restored = restore(folder, tmp_path / f"copy{turn}")
            labels = accepted(restored)  # reads every label file
            assert len(labels) >= 4
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert len(accepted(filled)) > 4


@pytest.mark.parametrize("what", ["removed", "cut", "altered"])
def test_a_damaged_backup_makes_no_campaign(filled: Campaign, folder: BackupFolder, tmp_path: Path, what: str) -> None:
    _, backup = back_up(filled, folder)
    file = next(f for f in backup.files if f.path.startswith("annotations/"))
    path = folder.object(file.sha256)
    path.chmod(0o600)
    content = path.read_bytes()
    if what == "removed":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if what == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError) as caught:
        restore(folder, tmp_path / "elsewhere")
    assert file.sha256 in str(caught.value.where)
    assert not (tmp_path / "elsewhere" / "campaign.toml").exists()
    path.write_bytes(content)
    assert accepted(restore(folder, tmp_path / "elsewhere")) == accepted(filled), "it goes on where it was cut off"


def test_nothing_is_restored_over_anything(filled: Campaign, folder: BackupFolder, tmp_path: Path) -> None:
    back_up(filled, folder)
    before = contents(filled)
    with pytest.raises(CampaignError, match="the folder is not empty"):
        restore(folder, Path(filled.storage.root))
    assert contents(filled) == before


def test_what_servers_and_unfinished_work_leave_is_left_out(filled: Campaign, folder: BackupFolder) -> None:
    for path in (
        "services/prefect.log",
        "volumes/.x.part/zarr.json",
        "generations/0000/training/members/0/checkpoint.pt",
    ):
        filled.storage.write_bytes(path, b"x")
    filled.storage.write_bytes("services/mlflow-artifacts/1/a", b"x")
    filled.storage.write_bytes("generations/0001/training/members/0/checkpoint.pt", b"x")
    model = ModelReference(generation=0, trainer="t", path="generations/0000/model", digest="d")
    filled.generation(0).write(TRAINING, TrainingResult(model=model, iterations=1))
    paths = {file.path for file in back_up(filled, folder)[1].files}
    assert "services/mlflow-artifacts/1/a" in paths
    assert "generations/0001/training/members/0/checkpoint.pt" in paths, "an unfinished training goes on from it"
    assert not {"services/prefect.log", "volumes/.x.part/zarr.json"} & paths
    assert "generations/0000/training/members/0/checkpoint.pt" not in paths


def test_a_backup_inside_the_campaign_is_refused(filled: Campaign, tmp_path: Path) -> None:
    inside = Path(filled.storage.root) / "backups"
    link = tmp_path / "link"
    link.symlink_to(inside)
    for path in (inside, link):
        with pytest.raises(StorageError, match="in the campaign itself"):
            back_up(filled, BackupFolder(path))


def test_only_a_folder_of_its_own_takes_backups(filled: Campaign, folder: BackupFolder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", Path("s3://bucket/x")):
        with pytest.raises(StorageError):
            BackupFolder(path)
    back_up(filled, folder)
    other = Campaign.create(str(tmp_path / "other"), check_config({"name": "other", "classes": ["a"]}))
    fill(other, 0, 1)
    with pytest.raises(StorageError, match="backups of another campaign, 'test'"):
        back_up(other, folder)
    assert len(folder.names()) == 1


def test_what_is_no_file_of_the_campaign_stops_no_backup(
    filled: Campaign, folder: BackupFolder, tmp_path: Path
) -> None:
    root = Path(filled.storage.root)
    os.mkfifo(root / "pipe")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root)
    (root / "back\\slash").touch()
    (root / "mlflow.db").touch()
    _, backup = back_up(filled, folder)
    assert not {"pipe", "out", "loop", "mlflow.db"} & {file.path for file in backup.files}
    assert len(backup.left_out) == 1
    assert "mlflow.db" in backup.left_out[0]
    assert accepted(restore(folder, tmp_path / "a" / ".." / "elsewhere")) == accepted(filled)


@pytest.mark.parametrize("damage", [lambda b: b[:5], lambda b: bytes([b[0] ^ 1]) + b[1:]], ids=["cut", "altered"])
def test_a_damaged_object_is_stored_again(
    filled: Campaign, folder: BackupFolder, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    _, backup = back_up(filled, folder)
    path = folder.object(next(f.sha256 for f in backup.files if f.path.startswith("annotations/")))
    path.chmod(0o600)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match="--full"):
        check_content(folder, backup, anew=True)
    back_up(filled, folder, full=True)
    check_content(folder, folder.read(), anew=True)
    assert accepted(restore(folder, tmp_path / "elsewhere")) == accepted(filled)


def test_settings_and_modes_come_back_as_they_were(filled: Campaign, folder: BackupFolder, tmp_path: Path) -> None:
    settings = Path(filled.storage.path("campaign.toml"))
    settings.write_text(settings.read_text() + "# Anna: do not change\n")
    back_up(filled, folder)
    restored = restore(folder, tmp_path / "elsewhere")
    assert Path(restored.storage.path("campaign.toml")).read_bytes() == settings.read_bytes()
    labels = list(Path(restored.storage.root).glob("annotations/*/*.npz"))
    assert labels
    assert {path.stat().st_mode & 0o777 for path in labels} == {0o444}


def test_the_log_of_a_lost_database_is_not_played_into_the_restored_one(tmp_path: Path) -> None:
    outside = tmp_path / "q" / "queue.db"
    outside.parent.mkdir()
    config = check_config({"name": "test", "classes": ["organelle"], "database_url": f"sqlite:///{outside}"})
    campaign, folder = Campaign.create(str(tmp_path / "campaign"), config), BackupFolder(tmp_path / "backups")
    fill(campaign, 0, 2)
    back_up(campaign, folder)
    shutil.rmtree(campaign.storage.root)
    outside.unlink()
    outside.with_name("queue.db-wal").write_bytes(b"an old log")
    with pytest.raises(CampaignError, match="the log of a database"):
        restore(folder, tmp_path / "campaign")
    outside.with_name("queue.db-wal").unlink()
    assert len(accepted(restore(folder, tmp_path / "campaign"))) == 2


def test_a_damaged_list_does_not_stop_the_next_backup(filled: Campaign, folder: BackupFolder) -> None:
    back_up(filled, folder)
    back_up(filled, folder)
    last = folder.path / "backups" / f"{folder.names()[-1]}.json"
    last.write_text("{")
    (folder.path / "backups" / "._x.json").write_text("")
    back_up(filled, folder)
    assert len(folder.names()) == 3


def test_a_damaged_or_missing_database_is_no_backup(filled: Campaign, folder: BackupFolder) -> None:
    database = Path(filled.storage.path("campaign.db"))
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = database.read_bytes()
    database.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError, match="database"):
        back_up(filled, folder)
    assert folder.names() == []
    database.write_bytes(b"")
    with pytest.raises(StorageError, match="missing or empty"):
        back_up(filled, folder)
    database.unlink()
    with pytest.raises(StorageError, match="missing or empty"):
        back_up(filled, folder)
    assert folder.names() == []


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with throw_away_postgres() as socket:
        yield socket


def make_database(socket: str, name: str) -> str:
    engine = sa.create_engine(f"postgresql+psycopg2://postgres@/postgres?host={socket}", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"postgresql+psycopg2://postgres@/{name}?host={socket}"


def test_a_queue_on_postgresql_is_restored_into_an_empty_database(
    postgres: str, folder: BackupFolder, tmp_path: Path
) -> None:
    url = make_database(postgres, "mine")
    config = check_config({"name": "test", "classes": ["organelle"], "database_url": url})
    campaign = Campaign.create(str(tmp_path / "campaign"), config)
    fill(campaign, 0, 3)
    _, backup = back_up(campaign, folder)
    assert backup.database == "postgresql"
    with pytest.raises(ServiceError, match="holds tables already"):
        restore(folder, tmp_path / "same")
    other = make_database(postgres, "other")
    restored = restore(folder, tmp_path / "elsewhere", database_url=other)
    assert restored.config.database_url == other
    assert accepted(restored) == accepted(campaign) != []
    fill(restored, 10, 1)
    assert len(accepted(restored)) == len(accepted(campaign)) + 1
