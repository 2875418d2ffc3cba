"""Changes of the queue as server-sent events, read from the audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import ServerSentEvent

from rescueseg.annotation.roles import ROLES
from rescueseg.queue.records import AuditEntry
from rescueseg.server.access import Person
from rescueseg.server.dependencies import Service

POLL_SECONDS = 1.0
_OVERLAP = 100
"""On PostgreSQL a smaller number may become visible after a larger one: so many are read again."""


async def follow(service: Service, person: Person, after: int | None) -> AsyncIterator[ServerSentEvent]:
    """Yield changes with larger numbers than `after`, from now on when None, until the client leaves."""
    last = after if after is not None else await run_in_threadpool(service.store.views.last_change)
    sent_numbers = {
        entry.number for entry in await run_in_threadpool(service.store.views.changes, last - _OVERLAP, last)
    }
    yield ServerSentEvent(comment="connected", retry=2000)
    while True:
        for entry in await run_in_threadpool(service.store.views.changes, last - _OVERLAP):
            if entry.number not in sent_numbers:
                sent_numbers.add(entry.number)
                last = max(last, entry.number)
                yield ServerSentEvent(data=_visible(entry, person), event="queue", id=str(entry.number))
        sent_numbers = {number for number in sent_numbers if number > last - _OVERLAP}
        await anyio.sleep(POLL_SECONDS)


def _visible(entry: AuditEntry, person: Person) -> dict[str, Any]:
    """Return the fields of a change that a person may see: only reviewers see who made it, nobody sees lease ids."""
    fields = entry.model_dump(mode="json", include={"number", "at", "event", "ticket_id", "before", "after"})
    return fields | ({"actor": entry.actor} if ROLES.index(person.role) > 0 else {})
