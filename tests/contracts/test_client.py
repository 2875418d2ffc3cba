"""What every annotation client promises, wherever the campaign lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation.client import AnnotationClient, Filters
from rescueseg.annotation.local_client import LocalClient
from rescueseg.annotation.remote_client import RemoteClient
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.config import check_config
from rescueseg.errors import (
    AccessError,
    LabelError,
    LabelWarningsError,
    LeaseExpiredError,
    NotYourLeaseError,
    QueueError,
)
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from rescueseg.records import Holdout, HoldoutBox, Snapshot
from tests.annotation_server import served
from tests.evaluated_campaign import write_maps

BOX = Box((2, 3, 4), (3, 4, 5))
IMAGE = np.arange(8 * 9 * 10, dtype=np.uint16).reshape(8, 9, 10)


@pytest.fixture
def filled(campaign: Campaign, tmp_path: Path) -> Campaign:
    tifffile.imwrite(tmp_path / "raw.tif", IMAGE)
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(tmp_path / "raw.tif"), volume_id="v", spacing=(0.4, 0.2, 0.1))
    )
    prefill = np.zeros(BOX.shape_zyx, np.uint8)
    prefill[0, 1, 2] = 1
    campaign.storage.write_array("weak_labels/t/a.npz", prefill)
    tickets = [
        NewTicket(ticket_id="a", volume_id="v", box=BOX, prefill="weak_labels/t/a.npz", score=2.0),
        NewTicket(ticket_id="b", volume_id="v", box=Box((5, 0, 0), (2, 3, 4)), score=1.0),
    ]
    open_queue(campaign).tickets.add(tickets)
    return campaign


@pytest.fixture(params=["local", "remote"])
def open_as(request: pytest.FixtureRequest, filled: Campaign) -> Iterator[Callable[[str], AnnotationClient]]:
    """Yield a function that returns a client of a person."""
    yield from clients(request.param, filled)


def clients(kind: str, campaign: Campaign) -> Iterator[Callable[[str], AnnotationClient]]:
    """Yield a function that returns one kind of client of a person."""
    if kind == "local":
        yield lambda name: LocalClient(campaign, open_queue(campaign), name)
        return
    with served(campaign) as url:
        yield lambda name: RemoteClient(url, annotator=name)


@pytest.fixture
def reviewed(filled: Campaign) -> None:
    """Let every submitted patch wait for a reviewer; asked for before a server reads the settings."""
    path = Path(filled.url, "campaign.toml")
    path.write_text(path.read_text().replace("review = false", "review = true"))
    filled.config = Campaign.open(filled.url).config


def test_a_patch_is_taken_seen_and_handed_in(open_as: Callable[[str], AnnotationClient]) -> None:
    client = open_as("anna")
    lease = client.next()
    assert lease is not None
    assert lease.ticket_id == "a"
    again = client.next()
    assert again is not None
    assert again.lease_id == lease.lease_id, "one goes on with the patch one holds"
    view = client.view(lease.lease_id)
    assert view.context == Box((0, 1, 1), (7, 8, 9))
    assert np.array_equal(view.image[0], IMAGE[view.context.slices])
    assert np.array_equal(view.image[0][view.inside.slices], IMAGE[BOX.slices])
    assert view.spacing_um_zyx == (0.4, 0.2, 0.1)
    assert view.start.classes.sum() == view.start.classes[0, 1, 2] == 1
    drawn = view.start.classes.copy()
    drawn[1, 1, 1] = 1
    done = client.submit(lease.lease_id, PatchLabels(drawn), "test")
    assert (done.voxels_corrected, done.verdict) == (1, "accepted")
    assert client.version_labels("a", 1) == PatchLabels(drawn)
    assert [entry.event for entry in client.history("a")][-1] == "accepted"
    assert client.info().counts["accepted"] == 1


def test_two_people_never_hold_one_patch(open_as: Callable[[str], AnnotationClient]) -> None:
    anna, bob, carl = open_as("anna"), open_as("bob"), open_as("carl")
    first, second = anna.next(), bob.next()
    assert first is not None
    assert second is not None
    assert {first.ticket_id, second.ticket_id} == {"a", "b"}
    assert carl.next() is None
    with pytest.raises(NotYourLeaseError):
        bob.release(first.lease_id)
    assert anna.next(another=True) is None, "bob has the other one"
    anna.release(first.lease_id)
    taken = carl.next(Filters(purpose="pool"))
    assert taken is not None
    assert taken.ticket_id == "a"
    bob.release(second.lease_id)
    more = carl.next(another=True)
    assert more is not None
    assert (more.ticket_id, len(carl.leases())) == (second.ticket_id, 2)


def test_labels_of_another_shape_or_class_are_refused(open_as: Callable[[str], AnnotationClient]) -> None:
    client = open_as("anna")
    lease = client.next()
    assert lease is not None
    for wrong in (np.zeros((1, 2, 3), np.uint8), np.full(BOX.shape_zyx, 7, np.uint8)):
        with pytest.raises(LabelError):
            client.submit(lease.lease_id, PatchLabels(wrong), "test")
    assert client.versions("a") == []


def handed_in(client: AnnotationClient, ticket_id: str, **options: bool) -> PatchLabels:
    """Take a ticket, draw over its mask and hand it in."""
    lease = client.next(ticket_id=ticket_id)
    assert lease is not None
    drawn = client.view(lease.lease_id).start.classes.copy()
    drawn[0, 0, 0] = 1
    client.submit(lease.lease_id, PatchLabels(drawn), "test", **options)
    return PatchLabels(drawn)


def test_odd_labels_are_taken_only_from_who_insists(open_as: Callable[[str], AnnotationClient]) -> None:
    client = open_as("anna")
    lease = client.next()
    assert lease is not None
    start = client.view(lease.lease_id).start
    assert [warning.code for warning in client.check(lease.lease_id, start)] == ["unchanged"]
    with pytest.raises(LabelWarningsError, match="as it was handed out") as caught:
        client.submit(lease.lease_id, start, "test")
    assert [warning.code for warning in caught.value.warnings] == ["unchanged"]
    assert client.versions("a") == []
    done = client.submit(lease.lease_id, start, "test", override=True)
    assert client.submit(lease.lease_id, start, "test").annotation_id == done.annotation_id, "a replay is never doubted"
    submitted = next(entry for entry in client.history("a") if entry.event == "submitted")
    assert submitted.details["overridden"] == ["unchanged"]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_same_labels_again_change_nothing_whatever_their_type(
    open_as: Callable[[str], AnnotationClient], filled: Campaign, dtype: type[np.generic]
) -> None:
    client = open_as("anna")
    lease = client.next(ticket_id="b")
    assert lease is not None
    drawn = np.ones((2, 3, 4), np.uint8)
    drawn[0, 0, 0] = 0
    given = PatchLabels(drawn.astype(dtype))  # type: ignore[arg-type]
    first, again = (client.submit(lease.lease_id, given, "test", override=True) for _ in range(2))
    assert again == first
    for other in (np.uint8, np.uint32, np.float64, np.bool_):
        retyped = PatchLabels(drawn.astype(other))  # type: ignore[arg-type]
        assert client.submit(lease.lease_id, retyped, "test") == first, "numbers count, not their type"
    assert np.array_equal(filled.storage.read_array(first.labels), drawn)


def test_a_pair_that_cannot_be_read_stops_nobody(open_as: Callable[[str], AnnotationClient], filled: Campaign) -> None:
    pairs = [NewTicket(ticket_id=name, volume_id="v", box=BOX, score=9.0, annotators=2) for name in ("p", "q")]
    open_queue(filled).tickets.add(pairs)
    anna, bob, lead = open_as("anna"), open_as("bob"), open_as("lead")
    for name in ("p", "q"):
        handed_in(anna, name)
    damaged, missing = (open_queue(filled).views.annotations(name)[0].labels for name in ("p", "q"))
    filled.storage.write_bytes(damaged, filled.storage.read_bytes(damaged)[:50])
    filled.storage.remove(missing)
    for name in ("p", "q"):
        lease = bob.next(ticket_id=name)
        assert lease is not None
        other = PatchLabels(np.ones(BOX.shape_zyx, np.uint8))
        assert bob.submit(lease.lease_id, other, "test", override=True).verdict == "submitted"
        assert bob.submit(lease.lease_id, other, "test").version == 2
    following = anna.next()
    assert following is not None
    assert following.ticket_id == "a"
    assert [t.ticket_id for t in lead.to_review()] == ["p", "q"]
    assert lead.accept("p", 2).annotator == "bob"


def test_two_who_looked_at_different_voxels_do_not_agree(
    open_as: Callable[[str], AnnotationClient], filled: Campaign
) -> None:
    open_queue(filled).tickets.add([NewTicket(ticket_id="p", volume_id="v", box=BOX, score=9.0, annotators=2)])
    for name, left_out in (("anna", slice(0, 2)), ("bob", slice(2, 3))):
        drawn = np.ones(BOX.shape_zyx, np.uint8)
        drawn[left_out] = 255
        client = open_as(name)
        lease = client.next(ticket_id="p")
        assert lease is not None
        client.submit(lease.lease_id, PatchLabels(drawn), "test", override=True)
    (waiting,) = open_as("lead").to_review()
    assert (waiting.ticket_id, waiting.status, waiting.agreement) == ("p", "submitted", 0.0)


def test_the_model_is_not_seen_in_the_holdout(open_as: Callable[[str], AnnotationClient], filled: Campaign) -> None:
    mapped(filled)
    hidden = [Box((0, 0, 0), (1, 9, 10)), Box((6, 8, 0), (2, 1, 10))]
    boxes = [HoldoutBox(volume_id="v", box=box, part="test", stratum="dense") for box in hidden]
    elsewhere = HoldoutBox(volume_id="w", box=BOX, part="test", stratum="dense")
    filled.freeze_holdout(Holdout(boxes=(*boxes, elsewhere), guard_zyx=(1, 1, 1)))
    client = open_as("anna")
    lease = client.next()
    assert lease is not None
    view = client.view(lease.lease_id)
    assert view.prediction is not None
    assert view.uncertainty is not None
    shown = np.ones(IMAGE.shape, np.bool_)
    for box in hidden:
        shown[box.slices] = False
    shown = shown[view.context.slices]
    assert 0 < np.count_nonzero(~shown) < shown.size
    assert np.array_equal(view.prediction == 1, shown)
    assert np.array_equal(view.uncertainty == 0.5, shown)
    assert not view.uncertainty[~shown].any()
    assert np.array_equal(view.image[0], IMAGE[view.context.slices]), "the image is no secret"


def mapped(campaign: Campaign) -> None:
    """Let a model have found class 1 everywhere."""
    ones = np.ones(IMAGE.shape)
    campaign.generation(0).write(SNAPSHOT, Snapshot(generation=0, items=(), n_classes=1, holdout_digest="", digest=""))
    write_maps(campaign, 0, np.stack([0.2 * ones, 0.8 * ones]), 0.5 * ones, "v")


def test_a_lease_that_ended_shows_nothing_new(
    reviewed: None, open_as: Callable[[str], AnnotationClient], filled: Campaign
) -> None:
    mapped(filled)
    anna, bob, lead = open_as("anna"), open_as("bob"), open_as("lead")
    released = anna.next(ticket_id="a")
    assert released is not None
    anna.release(released.lease_id)
    theirs = handed_in(bob, "a")
    lead.reject("a", "misses one")
    with pytest.raises(LeaseExpiredError, match="released"):
        anna.view(released.lease_id)
    expired = anna.next(ticket_id="b")
    assert expired is not None
    open_queue(filled).leases.expire(expired.expires_at)
    with pytest.raises(LeaseExpiredError, match="expired"):
        anna.view(expired.lease_id)
    lease = anna.next(ticket_id="b")
    assert lease is not None
    assert anna.view(lease.lease_id).prediction is not None
    drawn = PatchLabels(np.ones((2, 3, 4), np.uint8))
    anna.submit(lease.lease_id, drawn, "test", override=True)
    over = anna.view(lease.lease_id)
    assert (over.start, over.prediction, over.uncertainty) == (drawn, None, None), "what was handed in, and no more"
    assert lead.version_labels("a", 1) == theirs


def test_a_reviewer_rejects_then_fixes(reviewed: None, open_as: Callable[[str], AnnotationClient]) -> None:
    anna, lead = open_as("anna"), open_as("lead")
    handed_in(anna, "a")
    assert [t.ticket_id for t in lead.to_review()] == ["a"]
    lead.reject("a", "misses one")
    assert lead.to_review() == []
    with pytest.raises(QueueError, match="sent back to 'anna'"):
        open_as("bob").next(ticket_id="a")
    again = anna.next()
    assert again is not None
    assert (again.ticket_id, again.comment) == ("a", "misses one"), "it comes first to who did it"
    drawn = anna.view(again.lease_id).start.classes.copy()
    drawn[1] = 1
    anna.submit(again.lease_id, PatchLabels(drawn), "test")
    assert lead.review_view("a").start == PatchLabels(drawn)
    drawn[2] = 1
    fixed = lead.fix("a", PatchLabels(drawn), "test", active_seconds=9.0)
    assert (fixed.version, fixed.verdict, fixed.origin, fixed.seconds) == (3, "accepted", "reviewer", 9.0)
    assert fixed.voxels_corrected == 20
    assert lead.version_labels("a", 3) == PatchLabels(drawn)


def test_a_reviewer_accepts_one_version_of_a_blind_pair(
    open_as: Callable[[str], AnnotationClient], filled: Campaign
) -> None:
    open_queue(filled).tickets.add([NewTicket(ticket_id="p", volume_id="v", box=BOX, score=9.0, annotators=2)])
    anna, bob, lead = open_as("anna"), open_as("bob"), open_as("lead")
    first = handed_in(anna, "p")
    assert [v.version for v in anna.versions("p")] == [1]
    assert bob.versions("p") == [], "neither sees the other's labels"
    with pytest.raises(AccessError):
        bob.version_labels("p", 1)
    with pytest.raises(QueueError):
        anna.next(ticket_id="p")
    lease = bob.next(ticket_id="p")
    assert lease is not None
    assert bob.view(lease.lease_id).start == PatchLabels(np.zeros(BOX.shape_zyx, np.uint8))
    bob.submit(lease.lease_id, PatchLabels(np.ones(BOX.shape_zyx, np.uint8)), "test")
    (waiting,) = lead.to_review()
    assert waiting.agreement == pytest.approx(2 / (1 + BOX.size), abs=1e-6)
    assert [v.annotator for v in lead.versions("p")] == ["anna", "bob"]
    assert lead.version_labels("p", 1) == first
    assert lead.accept("p", 1).version == 1


def test_patches_are_asked_for_by_what_they_hold(open_as: Callable[[str], AnnotationClient], filled: Campaign) -> None:
    more = NewTicket(
        ticket_id="c",
        volume_id="v",
        box=Box((0, 0, 0), (1, 2, 3)),
        stratum="dense",
        generation=3,
        classes=("organelle",),
    )
    open_queue(filled).tickets.add([more])
    for wanted in (Filters(stratum="dense"), Filters(generation=3), Filters(class_name="organelle")):
        client = open_as("anna")
        lease = client.next(wanted)
        assert lease is not None
        assert lease.ticket_id == "c"
        client.release(lease.lease_id)
    assert open_as("anna").next(Filters(volume_id="w")) is None
    with pytest.raises(QueueError, match="no class 'nucleus'"):
        open_as("anna").next(Filters(class_name="nucleus"))


def test_work_is_counted_under_the_lease(open_as: Callable[[str], AnnotationClient], filled: Campaign) -> None:
    client = open_as("anna")
    lease = client.next(ticket_id="b")
    assert lease is not None
    assert client.heartbeat(lease.lease_id, 1e-3).active_seconds == pytest.approx(1e-3)
    done = client.submit(lease.lease_id, PatchLabels(np.ones((2, 3, 4), np.uint8)), "test", active_seconds=2e-3)
    assert done.seconds == pytest.approx(3e-3)
    (work,) = open_queue(filled).views.efforts()
    assert (work.annotator, work.voxels_corrected, work.accepted) == ("anna", 24, 1)
    assert work.seconds == pytest.approx(3e-3)


@pytest.fixture
def numbered(tmp_path: Path) -> Campaign:
    config = check_config({"name": "n", "classes": ["nucleus"], "annotation": {"labels": "instance"}})
    campaign = Campaign.create(str(tmp_path / "numbered"), config)
    tifffile.imwrite(tmp_path / "numbered.tif", IMAGE)
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(tmp_path / "numbered.tif"), volume_id="v", spacing=(0.4, 0.2, 0.1))
    )
    prefill = np.zeros(BOX.shape_zyx, np.uint8)
    prefill[0, 0, 0] = prefill[2, 3, 4] = 1
    campaign.storage.write_array("weak_labels/t/a.npz", prefill)
    open_queue(campaign).tickets.add(
        [NewTicket(ticket_id="a", volume_id="v", box=BOX, prefill="weak_labels/t/a.npz", annotators=2)]
    )
    return campaign


@pytest.fixture(params=["local", "remote"])
def open_numbered(request: pytest.FixtureRequest, numbered: Campaign) -> Iterator[Callable[[str], AnnotationClient]]:
    """As `open_as`, where objects are numbered."""
    yield from clients(request.param, numbered)


def test_numbered_objects_come_back_as_they_were_drawn(
    open_numbered: Callable[[str], AnnotationClient], numbered: Campaign
) -> None:
    client = open_numbered("anna")
    assert client.info().kind == "instance"
    lease = client.next()
    assert lease is not None
    start = client.view(lease.lease_id).start
    assert start.instances is not None
    assert start.instances.max() == 2, "the parts of the first mask are objects"
    ids = start.instances.astype(np.uint32) * 1000
    ids[1, 1, 1], ignore = 255, np.zeros(BOX.shape_zyx, np.bool_)
    ignore[0, 3, :] = True
    drawn = PatchLabels.of_instances(ids, ignore)
    with pytest.raises(LabelError, match="not numbered"):
        client.submit(lease.lease_id, PatchLabels(drawn.classes), "test")
    done = client.submit(lease.lease_id, drawn, "test")
    assert done.voxels_corrected == 1, "other numbers for the same objects are no correction"
    assert client.version_labels("a", 1) == drawn
    other = open_numbered("bob")
    second = other.next()
    assert second is not None
    other.submit(second.lease_id, drawn, "test")
    (found,) = open_queue(numbered).views.accepted()
    assert (found.version, found.instances) == (1, done.instances), "two who agree need no reviewer"
    assert np.array_equal(numbered.storage.read_array(found.labels), drawn.classes)
