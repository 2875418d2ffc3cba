"""A backup taken while people annotate and a generation runs goes on to the same model, and holds every accepted label."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.annotation.label_files import read_version
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import INFERENCE, QUERY, TRAINING
from rescueseg.geometry import Box
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from rescueseg.queue.submission import Work
from rescueseg.upkeep.backup import back_up
from rescueseg.upkeep.backup_records import BackupFolder
from rescueseg.upkeep.restore import restore
from rescueseg.upkeep.verify import verify
from tests.postgres import throw_away_postgres
from tests.whole_campaign import SETTINGS, forget_caches, make_annotated_campaign, run_generation

BOX = Box((0, 0, 0), (2, 4, 4))
TRAINING_SETTINGS = SETTINGS["training"] | {"iterations": 60, "checkpoint_every": 5}


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Return the URLs of a database for the campaign and of three empty ones."""
    if request.param == "sqlite":
        yield [""] * 4
        return
    with throw_away_postgres() as socket:
        names = [f"queue{n}" for n in range(4)]
        engine = sa.create_engine(
            f"postgresql+psycopg2://postgres@/postgres?host={socket}", isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            for name in names:
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        yield [f"postgresql+psycopg2://postgres@/{name}?host={socket}" for name in names]


def annotate(campaign: Campaign, stop: threading.Event) -> None:
    """Queue patches of the next generation, annotate and accept them, until told to stop."""
    number = 0
    with closing(open_queue(campaign)) as store:
        while not stop.is_set():
            ticket = NewTicket(ticket_id=f"later{number}", volume_id="a", box=BOX, generation=1)
            store.tickets.add([ticket])
            lease = store.leases.claim("anna", 60, ticket_id=ticket.ticket_id)
            assert lease is not None
            labels = np.full(BOX.shape_zyx, number % 2, np.uint8)
            submit_labels(campaign, store, lease, "anna", labels, Work("test", 1.0))
            number += 1


def model_and_maps(campaign: Campaign) -> tuple[str, list[str]]:
    folder = campaign.generation(0)
    assert folder.read(QUERY) is not None
    return folder.require(TRAINING).model.digest, [maps.digest for maps in folder.require(INFERENCE)]


def test_it_goes_on_to_the_same_model(databases: list[str], tmp_path: Path) -> None:
    mine, *others = databases
    settings = {"database_url": mine} if mine else {}
    campaign = make_annotated_campaign(tmp_path / "made", training=TRAINING_SETTINGS, **settings)
    with closing(open_queue(campaign)) as store:
        store.ledger.begin_generation(0, len(store.views.accepted("pool")))
    folder, stop = BackupFolder(tmp_path / "backups"), threading.Event()
    people = threading.Thread(target=annotate, args=(campaign, stop))
    generation = threading.Thread(target=run_generation, args=(campaign,))
    generation.start()
    while campaign.generation(0).snapshot() is None:  # from then on new labels are the next generation's
        time.sleep(0.01)
    people.start()
    names = []
    try:
        while len(names) < len(others):
            names.append(back_up(campaign, folder)[0])
            time.sleep(0.7)
    finally:
        generation.join()
        stop.set()
        people.join()
    expected, counts = model_and_maps(campaign), []
    for number, (name, url) in enumerate(zip(names, others, strict=True)):
        restored = restore(folder, tmp_path / f"restored{number}", name, database_url=url)
        assert verify(restored).damage == []
        with closing(open_queue(restored)) as store:
            accepted = store.views.accepted(purpose=None)
            counts.append(len(accepted))
            assert all(read_version(restored.storage, version).classes.size for version in accepted)
        forget_caches()
        run_generation(restored)
        assert model_and_maps(restored) == expected
        assert verify(restored).damage == []
    assert counts == sorted(counts)
    assert counts[-1] > counts[0], "people went on while backups were made"
