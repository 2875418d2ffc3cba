"""Keeps two processes that change which volumes a campaign has apart."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rescueseg.campaign import Campaign


@contextmanager
def one_at_a_time(campaign: Campaign) -> Iterator[None]:
    """Keep two imports into a campaign apart; the system lifts the lock when the process dies."""
    if not campaign.storage.is_local:
        yield
        return
    with Path(campaign.storage.path("campaign.toml")).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
