"""Changes of the queue as server-sent events, read off the audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import ServerSentEvent

from rescueseg.annotation.client import ROLES
from rescueseg.queue.records import AuditEntry
from rescueseg.server.access import Person
from rescueseg.server.clients import Service

POLL_SECONDS = 1.0
_OVERLAP = 100
"""On PostgreSQL a smaller number may become visible after a larger one: this many are looked at again."""


async def follow(office: Service, who: Person, after: int | None) -> AsyncIterator[ServerSentEvent]:
    """Yield changes with larger numbers than `after`, from now on when None, until the client leaves."""
    last = after if after is not None else await run_in_threadpool(office.store.last_change)
    told = {entry.number for entry in await run_in_threadpool(office.store.changes, last - _OVERLAP, last)}
    yield ServerSentEvent(comment="connected", retry=2000)
    while True:
        for entry in await run_in_threadpool(office.store.changes, last - _OVERLAP):
            if entry.number not in told:
                told.add(entry.number)
                last = max(last, entry.number)
                yield ServerSentEvent(data=_shown(entry, who), event="queue", id=str(entry.number))
        told = {number for number in told if number > last - _OVERLAP}
        await anyio.sleep(POLL_SECONDS)


def _shown(entry: AuditEntry, who: Person) -> dict[str, Any]:
    """Return what somebody may see of a change: who made it is for reviewers, leases are for their holders."""
    shown = entry.model_dump(mode="json", include={"number", "at", "event", "ticket_id", "before", "after"})
    return shown | ({"actor": entry.actor} if ROLES.index(who.role) > 0 else {})
