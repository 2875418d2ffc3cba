"""Whether enough patches are accepted for a generation, and the locks under which that is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rescueseg.config import CampaignConfig
from rescueseg.errors import QueueError
from rescueseg.queue.ledger import Lock
from rescueseg.queue.store import QueueStore


def patches_due(config: CampaignConfig, store: QueueStore) -> tuple[bool, str]:
    """Tell whether enough patches were accepted since the last generation, and in a sentence how many.

    Enough are ``trigger.accepted_patches``, or all tickets of the pool when those are fewer.
    """
    accepted, threshold = store.ledger.accepted_since_last_generation(), config.trigger.accepted_patches
    reason = f"{accepted} of {threshold} patches accepted since the last generation"
    if 0 < accepted < threshold:
        states = {ticket.status for ticket in store.views.tickets(purpose="pool")}
        if states <= {"accepted", "skipped"}:
            return True, f"{reason}, and no more were asked for"
    return accepted >= threshold, reason


@contextmanager
def campaign_lock(
    config: CampaignConfig, store: QueueStore, *, name: str = "generation", refuse: bool = True
) -> Iterator[Lock | None]:
    """Hold one of the campaign's locks during the block.

    Parameters
    ----------
    config : CampaignConfig
        Its name is written into the lock.
    store : QueueStore
        Its queue, which keeps the locks.
    name : str
        What is locked.
    refuse : bool
        Raise when somebody else holds it; yield None otherwise.

    Raises
    ------
    QueueError
        If somebody else holds it and `refuse` is set.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(store.ledger.lock(name, f"{name} of {config.name}"))
        except QueueError:
            if refuse:
                raise
            yield None
            return
        yield lock
