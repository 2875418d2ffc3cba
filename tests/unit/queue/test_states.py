"""The pure state machine: each event in each status."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rescueseg.errors import LeaseExpiredError, NotYourLeaseError, QueueError, TicketNotFoundError
from rescueseg.queue.events import (
    Accept,
    Audit,
    Claim,
    Compare,
    Decide,
    EndLease,
    Event,
    Expire,
    ExtendLease,
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
from rescueseg.queue.states import TicketState, transition

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEW = TicketState("t", "queued", (7,))


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def after(*events: Event, ticket: TicketState = NEW) -> TicketState:
    for event in events:
        ticket = transition(ticket, event).ticket
    return ticket


CLAIM = Claim("L", "anna", T0, 60)
SUBMIT = Submit("L", "anna", at(30), "d1")
LEASED, SUBMITTED = after(CLAIM), after(CLAIM, SUBMIT)
ACCEPTED = after(CLAIM, SUBMIT, Accept("lead"))
SKIPPED = after(CLAIM, Skip("L", "anna", at(1), "blurred"))
STATES = {"queued": NEW, "leased": LEASED, "submitted": SUBMITTED, "accepted": ACCEPTED, "skipped": SKIPPED}


def kinds(ticket: TicketState, event: Event) -> list[type]:
    return [type(step) for step in transition(ticket, event).steps]


def test_the_way_of_a_ticket() -> None:
    assert [STATES[name].status for name in STATES] == list(STATES)
    assert kinds(NEW, CLAIM) == [GrantLease, SetStatus, Audit]
    assert kinds(LEASED, SUBMIT) == [EndLease, StoreAnnotation, SetStatus, Audit]
    assert kinds(SUBMITTED, Accept("lead")) == [Decide, SetStatus, Audit]
    assert kinds(LEASED, Heartbeat("L", "anna", at(10))) == [ExtendLease, Audit]


def test_a_rejected_ticket_is_queued_again_and_its_next_version_counts_on() -> None:
    steps = transition(SUBMITTED, Reject("lead", "misses one")).steps
    audits = [(s.event, s.before, s.after) for s in steps if isinstance(s, Audit)]
    assert audits == [("rejected", "submitted", "rejected"), ("requeued", "rejected", "queued")]
    again = after(
        Reject("lead", "x"), Claim("M", "anna", at(40), 60), Submit("M", "anna", at(50), "d1"), ticket=SUBMITTED
    )
    assert [(a.version, a.verdict) for a in again.annotations] == [(1, "rejected"), (2, "submitted")]
    assert len({a.annotation_id for a in again.annotations}) == 2


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (state, event)
        for state, allowed in {
            "queued": "Claim",
            "leased": "Heartbeat Submit Release Skip",
            "submitted": "Accept Reject Submit",
            "accepted": "Accept Submit",
            "skipped": "Skip",
        }.items()
        for event in [
            Claim("M", "bob", at(1), 60),
            Heartbeat("L", "anna", at(1)),
            SUBMIT,
            Release("L", "anna", at(1)),
            Skip("L", "anna", at(1), "blurred"),
            Accept("lead"),
            Reject("lead", "x"),
        ]
        if type(event).__name__ not in allowed
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_a_status_does_not_allow_is_an_error(state: str, event: Event) -> None:
    with pytest.raises(QueueError):
        transition(STATES[state], event)


@pytest.mark.parametrize(
    ("ticket", "event"),
    [
        (SUBMITTED, SUBMIT),
        (ACCEPTED, SUBMIT),
        (ACCEPTED, Accept("lead")),
        (SKIPPED, Skip("L", "anna", at(2), "blurred")),
        (after(CLAIM, Release("L", "anna", at(1))), Release("L", "anna", at(2))),
        (after(CLAIM, SUBMIT, Reject("lead", "x")), Reject("lead", "x")),
        (LEASED, Expire(at(59))),
        (after(CLAIM, Expire(at(60))), Expire(at(60))),
    ],
)
def test_a_replay_gives_no_instructions(ticket: TicketState, event: Event) -> None:
    result = transition(ticket, event)
    assert result.steps == ()
    assert result.ticket == ticket


@pytest.mark.parametrize(
    "event", [Heartbeat("L", "bob", at(1)), Submit("L", "bob", at(1), "d"), Release("L", "bob", at(1))]
)
def test_only_the_holder_may_use_a_lease(event: Event) -> None:
    with pytest.raises(NotYourLeaseError, match="belongs to 'anna'"):
        transition(LEASED, event)


@pytest.mark.parametrize("ticket", [LEASED, after(CLAIM, Expire(at(60)))])
def test_a_lease_that_ran_out_is_over_whether_or_not_it_was_swept(ticket: TicketState) -> None:
    with pytest.raises(LeaseExpiredError, match="claim the ticket again"):
        transition(ticket, Submit("L", "anna", at(60), "d"))


def test_an_unknown_lease_is_not_found() -> None:
    with pytest.raises(TicketNotFoundError):
        transition(LEASED, Release("nope", "anna", at(1)))


def test_other_labels_under_a_used_lease_are_refused() -> None:
    with pytest.raises(QueueError, match="it was submitted"):
        transition(SUBMITTED, Submit("L", "anna", at(31), "other"))


def test_a_claim_ends_the_lease_that_ran_out_before() -> None:
    result = transition(LEASED, Claim("M", "bob", at(60), 60))
    assert [lease.annotator for lease in result.ticket.running_leases] == ["bob"]
    assert [s.event for s in result.steps if isinstance(s, Audit)] == ["expired", "claimed"]


def test_a_skipped_ticket_is_taken_up_again_only_by_its_id() -> None:
    assert after(Claim("M", "bob", at(5), 60, by_id=True), ticket=SKIPPED).status == "leased"
    with pytest.raises(QueueError, match="skipped"):
        transition(SKIPPED, Claim("M", "bob", at(5), 60))


def test_two_assignments_go_to_two_people_and_the_ticket_waits_for_both() -> None:
    pair = TicketState("t", "queued", (1, 2))
    both = after(Claim("A", "anna", T0, 60), Claim("B", "bob", T0, 60), ticket=pair)
    assert {lease.assignment_id for lease in both.running_leases} == {1, 2}
    with pytest.raises(QueueError):
        transition(after(Claim("A", "anna", T0, 60), ticket=pair), Claim("C", "anna", T0, 60))
    one = after(Submit("A", "anna", at(1), "d", accept=True), ticket=both)
    assert one.status == "leased"
    with pytest.raises(QueueError, match="somebody else"):
        transition(one, Skip("B", "bob", at(2), "why"))
    assert after(Submit("B", "bob", at(2), "e"), ticket=one).status == "submitted"


def test_a_heartbeat_never_shortens_a_lease() -> None:
    longer = after(Heartbeat("L", "anna", at(30)), ticket=LEASED)
    assert longer.running_leases[0].expires_at == at(90)
    assert transition(longer, Heartbeat("L", "anna", at(20))).steps == ()


PAIR = TicketState("t", "queued", (1, 2))
DONE = after(
    Claim("A", "anna", T0, 60),
    Submit("A", "anna", at(1), "d"),
    Claim("B", "bob", at(2), 60),
    Submit("B", "bob", at(3), "e", accept=True),
    ticket=PAIR,
)
IDS = tuple(a.annotation_id for a in DONE.annotations)


def test_a_pair_waits_to_be_compared_then_one_version_is_accepted() -> None:
    assert DONE.status == "submitted", "nobody's half is accepted before both were compared"
    with pytest.raises(QueueError, match="Compare those"):
        transition(DONE, Compare((IDS[0], "other"), 0.9))
    compared = after(Compare(IDS, 0.9), ticket=DONE)
    assert (compared.status, compared.agreement) == ("submitted", 0.9)
    assert transition(compared, Compare(IDS, 0.9)).steps == ()
    with pytest.raises(QueueError, match="no version 3"):
        transition(compared, Accept("lead", 3))
    taken = after(Accept("lead", 1), ticket=compared)
    assert [a.verdict for a in taken.annotations] == ["accepted", "submitted"]
    assert transition(taken, Accept("lead", 1)).steps == ()
    with pytest.raises(QueueError, match="accepted"):
        transition(taken, Accept("lead", 2))


def test_a_reviewers_own_version_is_accepted_beside_the_others() -> None:
    fixed = after(Fix("lead", "f", "reviewer", 12.0), ticket=DONE)
    assert fixed.status == "accepted"
    last = fixed.annotations[-1]
    assert (last.version, last.verdict, last.assignment_id, last.lease_id) == (3, "accepted", None, None)
    assert transition(fixed, Fix("lead", "f", "reviewer", 12.0)).steps == ()
    with pytest.raises(QueueError, match="accepted"):
        transition(fixed, Fix("lead", "g", "reviewer"))
    with pytest.raises(QueueError, match="leased"):
        transition(LEASED, Fix("lead", "f", "reviewer"))


def test_work_that_was_sent_back_is_kept_for_who_did_it() -> None:
    rejected = after(Reject("lead", "x", at(100)), ticket=SUBMITTED)
    assert rejected.open_assignments("bob", at(99)) == []
    assert rejected.open_assignments("anna", at(99)) == [7]
    assert rejected.open_assignments("bob", at(100)) == [7]
    with pytest.raises(QueueError, match="sent back to 'anna'"):
        transition(rejected, Claim("M", "bob", at(50), 60, by_id=True))


def test_nobody_sees_both_halves_of_a_pair() -> None:
    rejected = after(Reject("lead", "x"), ticket=DONE)
    assert [rejected.open_assignments(who, at(9)) for who in ("anna", "bob", "carl")] == [[1], [2], [1, 2]]
    taken = after(Claim("C", "carl", at(9), 60), Release("C", "carl", at(10)), ticket=rejected)
    assert taken.open_assignments("carl", at(11)) == [1], "carl has seen anna's labels"
    untouched = after(Claim("C", "carl", at(9), 60), Release("C", "carl", at(10)), ticket=PAIR)
    assert untouched.open_assignments("carl", at(11)) == [1, 2]


def account(*events: Event) -> float:
    return after(*events).leases[0].active_seconds


def test_idle_time_is_cut_out_of_the_account() -> None:
    long = Claim("L", "anna", T0, 10_000, idle_seconds=60)

    def beat(seconds: float, active: float = 0.0) -> Heartbeat:
        return Heartbeat("L", "anna", at(seconds), active)

    assert account(long, beat(30), beat(60)) == 60
    assert account(long, beat(30), beat(1000)) == 30 + 60
    assert account(long, beat(100, 80), beat(1000, 200)) == 80 + 200
    assert account(long, beat(100, 5000)) == 100, "nobody works longer than the clock"
    assert account(long, beat(30), beat(30, 9), beat(20, 9)) == 30, "a replay adds nothing"
    assert account(long, beat(30), Submit("L", "anna", at(500), "d")) == 30 + 60
    assert account(long, beat(30), Submit("L", "anna", at(500), "d", active_seconds=100)) == 30 + 100
    assert account(long, Submit("L", "anna", at(500), "d")) == 500, "a file gives no signs of life"
    assert account(long, Submit("L", "anna", at(500), "d", seconds=77.0)) == 77
    assert account(long, beat(30), Release("L", "anna", at(70))) == 30 + 40
    assert account(long, beat(30), Expire(at(20_000))) == 30


def test_a_withdrawn_ticket_is_out_of_the_queue() -> None:
    gone = after(Withdraw("check", "refused"))
    assert gone.status == "skipped"
    assert transition(gone, Withdraw("check", "refused")).steps == ()
    for busy in (LEASED, SUBMITTED, after(Claim("A", "a", T0, 9), Submit("A", "a", at(1), "d"), ticket=PAIR)):
        with pytest.raises(QueueError, match="nobody works on"):
            transition(busy, Withdraw("check", "refused"))
