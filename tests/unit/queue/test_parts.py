"""Small parts of the queue by themselves."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from rescueseg.errors import QueueError
from rescueseg.queue.store import QueueStore
from rescueseg.queue.submission import Work
from rescueseg.queue.tables import locks


@pytest.mark.parametrize("seconds", [-0.001, -math.inf, math.inf, math.nan])
def test_a_working_time_is_a_number_from_0_on(seconds: float) -> None:
    with pytest.raises(QueueError, match="no working time"):
        Work("napari", seconds)
    with pytest.raises(QueueError, match="no working time"):
        Work("napari", active_seconds=seconds)
    assert Work("napari", 0.0).seconds == 0
    assert Work("napari").seconds is None


def test_a_row_is_inserted_once_and_not_replaced(database_url: str) -> None:
    store = QueueStore(database_url)
    store.migrate()
    now = datetime(2026, 1, 1, tzinfo=UTC)
    others = {"token": "t", "host": "h", "pid": 1, "started": 0.0, "acquired_at": now, "expires_at": now}
    with store.database.write() as connection:
        insert = store.database.insert_if_new(locks).values(**others)
        counts = [connection.execute(insert.values(name="one", owner=owner)).rowcount for owner in ("ann", "ben")]
        counts.append(connection.execute(insert.values(name="two", owner="ben")).rowcount)
        rows = connection.execute(sa.select(locks.c.name, locks.c.owner).order_by(locks.c.name)).all()
    store.close()
    assert counts == [1, 0, 1]
    assert [tuple(row) for row in rows] == [("one", "ann"), ("two", "ben")]
