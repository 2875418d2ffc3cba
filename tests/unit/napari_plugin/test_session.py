"""Sessions of napari without its window: what is taken, kept, handed in, and counted."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rescueseg import volumes
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import LeaseExpiredError, StorageError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.napari_plugin.drafts import Drafts
from rescueseg.napari_plugin.review import Review, choose_pair, disagreement
from rescueseg.napari_plugin.session import IDLE_AFTER, ActiveClock, Session, top_spots
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore, make_queue
from rescueseg.records import LabelReference

BOX = Box((2, 3, 4), (3, 4, 5))


class Hands:
    """A campaign of two patches, its clock, and clients of it."""

    def __init__(self, folder: Path) -> None:
        self.seconds = 0.0
        self.folder = folder
        settings = {"name": "test", "classes": ["organelle"], "annotation": {"review": True}}
        self.campaign = Campaign.create(str(folder / "campaign"), check_config(settings))
        tifffile.imwrite(folder / "raw.tif", np.arange(720, dtype=np.uint16).reshape(8, 9, 10))
        volumes.import_volume(
            self.campaign, volumes.VolumeImport(str(folder / "raw.tif"), volume_id="v", spacing=(0.4, 0.2, 0.1))
        )
        make_queue(self.campaign)
        self.store = QueueStore(self.campaign.database_url, clock=self.now)
        boxes = {"a": BOX, "b": Box((5, 0, 0), (2, 3, 4))}
        self.store.tickets.add(
            [NewTicket(ticket_id=name, volume_id="v", box=box, score=-ord(name)) for name, box in boxes.items()]
        )

    def now(self) -> Any:
        from datetime import UTC, datetime, timedelta

        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def client(self, name: str = "anna") -> LocalClient:
        return LocalClient(self.campaign, self.store, name)

    def session(self, name: str = "anna") -> Session:
        drafts = Drafts(self.folder / "drafts", self.campaign.url, name)
        return Session(self.client(name), drafts, lambda: self.seconds)


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    return Hands(tmp_path)


def drawing(hands: Hands, at: tuple[int, int, int] = (1, 2, 3)) -> PatchLabels:
    classes = np.zeros(BOX.shape_zyx, np.uint8)
    classes[at] = 1
    return PatchLabels(classes)


def test_a_drawing_outlives_its_window_and_is_gone_when_handed_in(hands: Hands) -> None:
    first = hands.session()
    work = first.take()
    assert work is not None
    assert not first.keep(work.labels), "nothing was drawn"
    assert first.keep(drawing(hands))
    assert not first.keep(drawing(hands)), "nothing changed"

    second = hands.session()
    again = second.take()
    assert again is not None
    assert again.is_restored
    assert again.labels == drawing(hands)
    second.hand_in(again.labels)
    assert list((hands.folder / "drafts").rglob("*.npz")) == []
    first.keep(drawing(hands, (0, 0, 0)))
    third = hands.session()
    third.take()
    assert third.work is not None
    assert not third.work.is_restored


def test_a_drawing_is_not_given_back_over_another_start(hands: Hands) -> None:
    drafts = hands.session().drafts
    empty = PatchLabels(np.zeros(BOX.shape_zyx, np.uint8))
    drafts.save("a", empty, drawing(hands))
    assert drafts.load("a", empty) == drawing(hands)
    assert drafts.load("a", drawing(hands)) is None
    [file] = (hands.folder / "drafts").rglob("*.npz")
    file.write_bytes(file.read_bytes()[:40])
    assert drafts.load("a", empty) is None, "a damaged file stops nobody"


@settings(deadline=None, max_examples=40)
@given(
    arrays.arrays(np.uint32, (2, 3, 4), elements=st.integers(0, 2**32 - 1)),
    arrays.arrays(np.bool_, (2, 3, 4)),
)
def test_objects_and_what_was_not_annotated_are_kept_as_they_are(ids: np.ndarray, ignore: np.ndarray) -> None:
    drawn = PatchLabels.of_instances(ids, ignore)
    start = PatchLabels.of_instances(np.zeros_like(ids))
    with tempfile.TemporaryDirectory() as folder:
        drafts = Drafts(Path(folder), "somewhere", "anna")
        drafts.save("a", start, drawn)
        found = Drafts(Path(folder), "somewhere", "anna").load("a", start)
        assert found == drawn
        assert Drafts(Path(folder), "elsewhere", "anna").load("a", start) is None
        assert Drafts(Path(folder), "somewhere", "bob").load("a", start) is None


def test_a_save_that_comes_late_does_not_bring_a_drawing_back(hands: Hands) -> None:
    session = hands.session()
    work = session.take()
    assert work is not None
    session.hand_in(drawing(hands))
    session.drafts.save("a", work.view.start, drawing(hands))
    assert session.drafts.load("a", work.view.start) is None


def test_a_patch_that_cannot_be_loaded_is_skipped_and_the_next_one_comes(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = hands.session()
    view = LocalClient.view

    def broken(client: LocalClient, lease_id: str) -> Any:
        if client.store.views.lease(lease_id).ticket_id == "a":
            raise StorageError("the file is missing", where="image")
        return view(client, lease_id)

    monkeypatch.setattr(LocalClient, "view", broken)
    for _ in range(2):
        with pytest.raises(StorageError):
            session.take()
        assert session.lease is not None
        assert session.work is None
    session.skip("cannot be loaded")
    work = session.take()
    assert work is not None
    assert work.lease.ticket_id == "b"


def test_work_goes_on_after_the_lease_ran_out(hands: Hands) -> None:
    session = hands.session()
    work = session.take()
    assert work is not None
    assert session.seconds_left() == 7200
    hands.seconds = 7201
    assert session.seconds_left() == 0
    session.active.touch()
    session.beat()
    assert session.seconds_left() == 7200
    assert session.lease is not None
    assert session.lease.lease_id != work.lease.lease_id
    hands.seconds = 20_000
    session.hand_in(drawing(hands))
    assert hands.store.views.counts()["submitted"] == 1


def test_a_patch_that_somebody_else_has_by_now_is_not_handed_in_but_kept(hands: Hands) -> None:
    session = hands.session()
    session.take()
    hands.seconds = 8000
    assert hands.client("bob").next() is not None
    with pytest.raises(LeaseExpiredError, match="stays on this machine"):
        session.hand_in(drawing(hands))
    assert len(list((hands.folder / "drafts").rglob("*.npz"))) == 1
    assert hands.store.views.counts()["submitted"] == 0


def test_a_lease_on_what_somebody_else_has_changed_is_given_back(hands: Hands) -> None:
    session = hands.session()
    work = session.take()
    assert work is not None
    older = work.lease.model_copy(update={"previous": LabelReference(path="older.npz", digest="0")})
    session.work = replace(work, lease=older)
    hands.seconds = 8000
    with pytest.raises(LeaseExpiredError, match="somebody else has worked"):
        session.hand_in(drawing(hands))
    assert hands.store.views.leases() == []
    assert len(list((hands.folder / "drafts").rglob("*.npz"))) == 1


def test_nobody_at_work_keeps_no_lease(hands: Hands) -> None:
    session = hands.session()
    session.take()
    hands.seconds = 100
    session.beat()
    assert session.seconds_left() == 7100
    session.active.touch()
    session.beat()
    assert session.seconds_left() == 7200


def test_pauses_count_up_to_a_limit_and_what_was_not_sent_is_sent_later() -> None:
    now = [0.0]
    clock = ActiveClock(lambda: now[0])
    for gap in (5, 10, 3 * IDLE_AFTER, 1):
        now[0] += gap
        clock.touch()
    assert clock.total == 16 + IDLE_AFTER
    taken = clock.take()
    assert taken == 16 + IDLE_AFTER
    assert clock.take() == 0
    clock.give_back(taken)
    assert clock.take() == taken
    assert clock.total == taken
    clock.restart()
    assert clock.total == 0


def test_spots_are_the_peaks_highest_first() -> None:
    score = np.zeros((12, 40, 40), np.float32)
    places = {(3, 10, 10): 3.0, (9, 30, 8): 5.0, (6, 20, 32): 4.0}
    for place, value in places.items():
        score[place] = value
    assert top_spots(score, (1.0, 1.0, 1.0)) == [(9, 30, 8), (6, 20, 32), (3, 10, 10)]
    assert top_spots(score, (1.0, 1.0, 1.0), 1) == [(9, 30, 8)]
    assert top_spots(np.zeros((3, 4, 5), np.float32), (1.0, 1.0, 1.0)) == []
    assert len(top_spots(np.ones((3, 4, 5), np.float32), (5.0, 1.0, 1.0))) == 1


def test_two_versions_are_compared_by_outlines_not_by_numbers() -> None:
    a = np.zeros((1, 4, 6), np.uint32)
    a[0, :, :3], a[0, :, 3:] = 1, 2
    renumbered = np.where(a == 1, 300, 7).astype(np.uint32)
    assert not disagreement(PatchLabels.of_instances(a), PatchLabels.of_instances(renumbered)).any()
    merged = PatchLabels.of_instances(np.ones_like(a))
    assert np.array_equal(np.unique(np.nonzero(disagreement(PatchLabels.of_instances(a), merged))[2]), [2])
    ignore = np.zeros(a.shape, bool)
    ignore[..., 2] = True
    assert not disagreement(PatchLabels.of_instances(a, ignore), merged).any(), "where one did not look"
    classes = np.zeros((1, 2, 2), np.uint8)
    other = classes.copy()
    other[0, 0, 1] = 1
    assert disagreement(PatchLabels(classes), PatchLabels(other)).sum() == 1


def test_a_reviewer_sees_the_two_versions_that_wait_else_the_last_two(hands: Hands) -> None:
    session = hands.session()
    session.take()
    session.hand_in(drawing(hands))
    review = Review(hands.client("rita"), hands.session("rita").drafts)
    work = review.open("a")
    assert [record.version for record in work.pair] == [1]
    assert work.differs is None
    review.reject("more")
    session.take()
    session.hand_in(drawing(hands, (0, 0, 0)))
    work = review.open("a")
    assert [record.version for record in work.pair] == [1, 2]
    assert work.differs is not None
    assert np.argwhere(work.differs).tolist() == [[0, 0, 0], [1, 2, 3]]
    assert work.spots, "in voxels of the volume"
    assert set(work.spots) <= {(2, 3, 4), (3, 5, 7)}
    assert review.keep(drawing(hands, (2, 2, 2)))
    again = Review(review.client, review.drafts).open("a")
    assert again.fix == drawing(hands, (2, 2, 2))
    done = review.accept(2)
    assert done.verdict == "accepted"
    assert list((hands.folder / "drafts").rglob("*.npz")) == []
    waiting = [record.model_copy(update={"verdict": verdict}) for record in work.versions for verdict in ("submitted",)]
    assert choose_pair([*waiting, waiting[0].model_copy(update={"verdict": "rejected"})]) == waiting
