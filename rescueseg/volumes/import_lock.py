"""Keeps two processes that change which volumes a campaign has apart."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rescueseg.campaign.layout import CAMPAIGN_FILE
from rescueseg.storage import Storage

_SECONDS, _TRIES = 2.0, 20
"""After so long, a person is told what is waited for."""
_LOG = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(storage: Storage) -> Iterator[None]:
    """Keep two imports into a campaign apart; the system lifts the lock when the process dies."""
    if not storage.is_local:
        yield
        return
    with Path(storage.path(CAMPAIGN_FILE.path())).open("rb") as file:
        for _ in range(_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_SECONDS / _TRIES)
        else:
            _LOG.warning(
                "%s: another process imports or compares volumes; this one goes on when that has finished", storage.url
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
