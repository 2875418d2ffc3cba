"""What holds for every sequence of events, found by hypothesis."""

from __future__ import annotations

import itertools
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from rescueseg.errors import QueueError
from rescueseg.geometry import Box
from rescueseg.queue.check import check_rows
from rescueseg.queue.events import (
    Accept,
    Audit,
    Claim,
    Decide,
    EndLease,
    Event,
    Expire,
    Fix,
    GrantLease,
    Heartbeat,
    Reject,
    Release,
    SetStatus,
    Skip,
    StoreAnnotation,
    Submit,
    Withdraw,
)
from rescueseg.queue.records import AuditEntry, Lease, NewTicket
from rescueseg.queue.states import TicketState, transition
from rescueseg.queue.store import QueueStore
from rescueseg.queue.submission import StoredLabels, Work
from rescueseg.records import AcceptedAnnotation, LabelReference

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PEOPLE = ("anna", "bob", "carl")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# the pure machine ----------------------------------------------------------------------------------------------------

times = st.integers(0, 300).map(lambda s: T0 + timedelta(seconds=s))
names, ids, digests = st.sampled_from(PEOPLE), st.sampled_from("LMNOP"), st.sampled_from("de")
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Claim, ids, names, times, st.sampled_from([10.0, 100.0]), st.booleans()),
    st.builds(Heartbeat, ids, names, times, st.sampled_from([0.0, 5.0, 500.0])),
    st.builds(Submit, ids, names, times, digests, st.booleans(), active_seconds=st.sampled_from([0.0, 5.0])),
    st.builds(Release, ids, names, times),
    st.builds(Skip, ids, names, times, st.just("why")),
    st.builds(Expire, times),
    st.builds(Withdraw, names, st.just("why")),
    st.builds(Accept, names, st.sampled_from([None, 1, 2])),
    st.builds(Reject, names, st.just("why"), st.none() | times),
    st.builds(Fix, names, digests, st.sampled_from(["reviewer", "consensus"])),
)


@given(st.lists(events, max_size=40), st.sampled_from([(1,), (1, 2)]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_sequence_of_events_breaks_a_ticket(sequence: list[Event], assignments: tuple[int, ...]) -> None:
    ticket = TicketState("t", "queued", assignments)
    used: set[str] = set()
    for event in sequence:
        if isinstance(event, Claim) and event.lease_id in used:
            continue  # the store makes a new id for each
        try:
            result = transition(ticket, event)
        except QueueError:
            continue
        used.add(getattr(event, "lease_id", ""))
        if isinstance(event, Claim):
            _check_claim(ticket, event)
        _check_step(ticket, result.ticket, result.steps)
        ticket = result.ticket
        again = event if not isinstance(event, Claim | Heartbeat) else Expire(T0)
        assert transition(ticket, again).steps == (), "a replay changes nothing"


def _check_claim(before: TicketState, event: Claim) -> None:
    """Work that was sent back is kept for who did it, and nobody takes the other half of a pair they have seen."""
    granted = transition(before, event).ticket.lease(event.lease_id)
    kept = [r for r in before.reservations if r.assignment_id == granted.assignment_id and r.until > event.now]
    assert all(r.annotator == event.annotator for r in kept)
    others = {a.assignment_id for a in before.annotations if a.annotator == event.annotator and a.assignment_id}
    assert others <= {granted.assignment_id}, "one person never does both halves"


def _check_step(before: TicketState, after: TicketState, steps: tuple[Any, ...]) -> None:
    holders = [lease.assignment_id for lease in after.running_leases]
    assert len(holders) == len(set(holders)), "one lease per assignment"
    done = [a for a in after.standing_annotations if a.assignment_id is not None]
    parts = [part.annotator for part in (*after.running_leases, *done)]
    assert len(parts) == len(set(parts)), "nobody has two parts of a ticket"
    made = {(a.assignment_id, a.annotator) for a in after.annotations if a.assignment_id is not None}
    assert len({who for _, who in made}) == len(made), "nobody ever makes two parts of a ticket"
    for lease in after.leases:
        longest = (lease.expires_at - lease.granted_at).total_seconds()
        assert 0 <= lease.active_seconds <= longest, "nobody works longer than the lease"
    accepted = {a for a in before.annotations if a.verdict == "accepted"}
    assert accepted <= set(after.annotations), "accepted annotations stay"
    assert [a.version for a in after.annotations] == list(range(1, len(after.annotations) + 1))
    assert len(after.leases) >= len(before.leases)
    audits = [step for step in steps if isinstance(step, Audit)]
    trail = [before.status, *(status for a in audits for status in (a.before, a.after)), after.status]
    assert trail[0::2] == trail[1::2], "the audit trail leads from status to status without a gap"
    if after != before:
        assert audits, "every change is in the trail"
    assert (after.status == "leased") == bool(after.running_leases) or after.status in ("accepted", "skipped")
    _check_instructions(before, after, steps)


def _check_instructions(before: TicketState, after: TicketState, steps: tuple[Any, ...]) -> None:
    """What the store is told to write is exactly the difference."""
    statuses = [step.status for step in steps if isinstance(step, SetStatus)]
    assert (statuses or [before.status])[-1] == after.status
    granted = {step.lease.lease_id for step in steps if isinstance(step, GrantLease)}
    assert granted == {lease.lease_id for lease in after.leases} - {lease.lease_id for lease in before.leases}
    ended = {step.lease_id for step in steps if isinstance(step, EndLease)}
    assert ended == {lease.lease_id for lease in before.running_leases} - {
        lease.lease_id for lease in after.running_leases
    }
    stored = {step.annotation.annotation_id for step in steps if isinstance(step, StoreAnnotation)}
    old = {a.annotation_id: a.verdict for a in before.annotations}
    assert stored == {a.annotation_id for a in after.annotations} - set(old)
    decided = {step.annotation_id: step.verdict for step in steps if isinstance(step, Decide)}
    judged = {
        a.annotation_id: a.verdict for a in after.annotations if old.get(a.annotation_id, "submitted") != a.verdict
    }
    assert decided == judged


# the store -----------------------------------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """Random work on a SQLite queue, beside a model of what was accepted and who holds what."""

    leases = Bundle("leases")
    submitted = Bundle("submitted")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.now = T0
        self.store = QueueStore(f"sqlite:///{Path(self.folder.name)}/queue.db", clock=lambda: self.now)
        self.store.migrate()
        self.held: dict[str, Lease] = {}
        self.accepted: dict[str, AcceptedAnnotation] = {}
        self.assigned: dict[str, int] = {}
        self.trails: dict[str, list[AuditEntry]] = {}

    def teardown(self) -> None:
        assert check_rows(self.store.database) == [], "nothing that happens looks like damage"
        self.store.close()
        self.folder.cleanup()

    @rule(number=st.integers(0, 3))
    def add(self, number: int) -> None:
        new = NewTicket(
            ticket_id=f"t{number}",
            volume_id="v",
            box=Box((number, 0, 0), (1, 1, 1)),
            score=-number,
            annotators=1 + number % 2,
        )
        assert self.store.tickets.add([new]) == (new.ticket_id not in self.trails)

    @rule(target=leases, who=st.sampled_from(PEOPLE), seconds=st.sampled_from([10.0, 1000.0]))
    def claim(self, who: str, seconds: float) -> Any:
        lease = self.store.leases.claim(who, seconds)
        if lease is None:
            return multiple()
        running = [other for other in self.held.values() if other.expires_at > self.now]
        assert lease.assignment_id not in {other.assignment_id for other in running}, "two leases on one assignment"
        assert (lease.ticket_id, who) not in {(other.ticket_id, other.annotator) for other in running}
        others = [
            v for v in self.store.views.annotations(lease.ticket_id) if v.annotator == who and v.origin == "annotator"
        ]
        assert all(self.assigned[v.annotation_id] == lease.assignment_id for v in others), "both halves of a pair"
        self.held[lease.lease_id] = lease
        return lease

    @rule(seconds=st.sampled_from([1, 11, 1001]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(lease=leases)
    def heartbeat(self, lease: Lease) -> None:
        try:
            self.held[lease.lease_id] = self.store.leases.heartbeat(lease.lease_id, lease.annotator)
        except QueueError:
            self.held.pop(lease.lease_id, None)

    @rule(lease=leases, skip=st.booleans())
    def give_back(self, lease: Lease, skip: bool) -> None:
        try:
            if skip:
                self.store.leases.skip(lease.lease_id, lease.annotator, "why")
            else:
                self.store.leases.release(lease.lease_id, lease.annotator)
        except QueueError:
            return
        self.held.pop(lease.lease_id, None)

    @rule(target=submitted, lease=consumes(leases), digest=st.sampled_from("de"), accept=st.booleans())
    def submit(self, lease: Lease, digest: str, accept: bool) -> Any:
        label = LabelReference(path=f"annotations/{lease.ticket_id}/{digest}.npz", digest=digest)
        values = (lease.lease_id, lease.annotator, StoredLabels(label, 1), Work("test", 1.0))
        was_mine = lease.lease_id in self.held and self.held[lease.lease_id].expires_at > self.now
        try:
            record = self.store.leases.submit(*values, accept=accept)
        except QueueError:
            assert not was_mine, "a running lease can be handed in"
            return multiple()
        assert was_mine
        del self.held[lease.lease_id]
        self.assigned[record.annotation_id] = lease.assignment_id
        trail = self.store.views.history(lease.ticket_id)
        assert self.store.leases.submit(*values, accept=accept) == record, "a replay gives the same"
        assert self.store.views.history(lease.ticket_id) == trail, "a replay leaves no trace"
        return lease.ticket_id

    @rule(ticket_id=submitted, who=st.sampled_from(PEOPLE), accept=st.booleans())
    def review(self, ticket_id: str, who: str, accept: bool) -> None:
        try:
            if accept:
                assert self.store.reviews.accept(ticket_id, who).verdict == "accepted"
            else:
                self.store.reviews.reject(ticket_id, who, "why", 100.0)
        except QueueError:
            assert self.store.views.annotations(ticket_id), "what was handed in is still there"

    @rule(ticket_id=submitted, who=st.sampled_from(PEOPLE))
    def fix(self, ticket_id: str, who: str) -> None:
        before = self.store.views.annotations(ticket_id)
        label = LabelReference(path="p", digest="fixed")
        try:
            fixed = self.store.reviews.fix(ticket_id, who, StoredLabels(label, 1), Work("test"))
        except QueueError:
            assert self.store.views.annotations(ticket_id) == before
            return
        assert (fixed.verdict, fixed.origin) == ("accepted", "reviewer")
        assert self.store.reviews.fix(ticket_id, who, StoredLabels(label, 1), Work("test")) == fixed, (
            "a replay gives the same"
        )

    @rule()
    def compare(self) -> None:
        for ticket_id in self.store.views.undecided_pairs(2.0):
            pair = [v for v in self.store.views.annotations(ticket_id) if v.verdict == "submitted"]
            assert len(pair) == 2, "a pair waits for both halves"
            details = {"versions": [v.version for v in pair], "annotators": [v.annotator for v in pair]}
            ids = (pair[0].annotation_id, pair[1].annotation_id)
            self.store.reviews.record_agreement(ticket_id, ids, 0.5, details | {"agreement": 0.5, "dice": {}})
            assert self.store.views.ticket(ticket_id).agreement == 0.5
        assert self.store.views.undecided_pairs(2.0) == []
        assert all(len(set(c.annotators)) == 2 for c in self.store.views.comparisons())

    @invariant()
    def accepted_annotations_stay(self) -> None:
        found = {a.ticket_id: a for a in self.store.views.accepted()}
        assert {name: found.get(name) for name in self.accepted} == self.accepted
        self.accepted = found
        assert self.store.views.counts()["accepted"] == len(found) == self.store.ledger.accepted_since_last_generation()

    @invariant()
    def the_trail_tells_the_whole_story(self) -> None:
        for ticket in self.store.views.tickets():
            trail = self.store.views.history(ticket.ticket_id)
            old = self.trails.get(ticket.ticket_id, [])
            assert trail[: len(old)] == old, "the trail is only ever added to"
            assert trail[0].event == "created"
            assert all(a.after == b.before for a, b in itertools.pairwise(trail))
            assert trail[-1].after == ticket.status
            self.trails[ticket.ticket_id] = trail


QueueMachine.TestCase.settings = settings(
    max_examples=10,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestQueue = QueueMachine.TestCase
