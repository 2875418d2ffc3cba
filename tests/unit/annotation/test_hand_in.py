"""Labels on their way into the queue."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.annotation.label_checks import check_labels
from rescueseg.annotation.label_files import ticket_id
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import LabelError, LeaseExpiredError, NotYourLeaseError, StorageError
from rescueseg.geometry import Box, Patch
from rescueseg.queue.records import Lease, NewTicket
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import Work

BOX = Box((1, 2, 3), (2, 3, 4))
PREFILL = "generations/0000/prefills/t.npz"


@pytest.fixture
def store(campaign: Campaign) -> QueueStore:
    prefill = np.zeros(BOX.shape_zyx, np.uint8)
    prefill[0] = 1
    campaign.storage.write_array(PREFILL, prefill)
    opened = open_queue(campaign)
    opened.tickets.add([NewTicket(ticket_id="t", volume_id="v", box=BOX, prefill=PREFILL)])
    return opened


def claim(store: QueueStore, who: str = "anna", seconds: float = 60) -> Lease:
    lease = store.leases.claim(who, seconds)
    assert lease is not None
    return lease


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint32, np.float32, np.float64, bool])
def test_any_whole_numbers_become_uint8(dtype: Any) -> None:
    labels = np.zeros(BOX.shape_zyx, dtype)
    labels[0, 1, 2] = 1
    checked = check_labels(np.asfortranarray(labels), BOX, 1)
    assert checked.dtype == np.uint8
    assert checked.flags.c_contiguous
    assert checked.sum() == checked[0, 1, 2] == 1


@pytest.mark.parametrize("value", [2, 254, 256, 257, -1, 0.5, np.nan, np.inf])
def test_values_outside_the_classes_are_refused(value: float) -> None:
    labels = np.zeros(BOX.shape_zyx, np.float64)
    labels[0, 0, 0] = value
    with pytest.raises(LabelError, match="no class"):
        check_labels(labels, BOX, 1)


def test_every_class_and_ignore_are_allowed() -> None:
    labels = np.zeros(BOX.shape_zyx, np.uint8)
    labels[0, 0] = [1, 2, 3, 255]
    assert check_labels(labels, BOX, 3)[0, 0].tolist() == [1, 2, 3, 255]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (4, 3, 2), (1, 2, 3, 4)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LabelError, match="shape"):
        check_labels(np.zeros(shape, np.uint8), BOX, 1)


@pytest.mark.parametrize(
    "labels", [np.full(BOX.shape_zyx, 255, np.uint8), np.full(BOX.shape_zyx, "1"), np.zeros(BOX.shape_zyx, complex)]
)
def test_nothing_annotated_and_no_numbers_are_refused(labels: Any) -> None:
    with pytest.raises(LabelError):
        check_labels(labels, BOX, 1)


def test_ticket_ids_depend_on_everything_and_on_nothing_else() -> None:
    patch = Patch("v", BOX)
    ids = [
        ticket_id("a", 0, patch, "pool"),
        ticket_id("b", 0, patch, "pool"),
        ticket_id("a", 1, patch, "pool"),
        ticket_id("a", 0, patch, "test"),
        ticket_id("a", 0, Patch("w", BOX), "pool"),
        ticket_id("a", 0, Patch("v", Box((1, 2, 4), (2, 3, 4))), "pool"),
    ]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "pool-0000-280e494b0521f950"


def test_submitted_labels_are_stored_counted_and_accepted(campaign: Campaign, store: QueueStore) -> None:
    labels = np.zeros(BOX.shape_zyx, np.uint8)
    labels[0, 0, :] = 255
    labels[1, 0, 0] = 1
    record = submit_labels(campaign, store, claim(store), "anna", labels, Work("napari", 12.0))
    assert record.voxels_corrected == 8 + 1, "eight wiped from the prefill, one drawn, four not annotated"
    assert np.array_equal(campaign.storage.read_array(record.labels), labels)
    assert record.labels == f"annotations/t/{record.labels_digest}.npz"
    assert (record.verdict, record.tool, record.seconds) == ("accepted", "napari", 12.0)


def test_with_review_labels_wait_and_a_rejected_mask_is_counted_against(tmp_path: Path) -> None:
    config = check_config({"name": "test", "classes": ["organelle"], "annotation": {"review": True}})
    campaign = Campaign.create(str(tmp_path / "reviewed"), config)
    store = open_queue(campaign)
    store.tickets.add([NewTicket(ticket_id="t", volume_id="v", box=BOX)])
    labels = np.ones(BOX.shape_zyx, np.uint8)
    first = submit_labels(campaign, store, claim(store), "anna", labels, Work("x", 1))
    assert (first.verdict, first.voxels_corrected) == ("submitted", 24)
    store.reviews.reject("t", "lead", "one too many")
    labels[0, 0, 0] = 0
    second = submit_labels(campaign, store, claim(store), "anna", labels, Work("x", 1))
    assert (second.version, second.voxels_corrected) == (2, 1)
    assert len(campaign.storage.list("annotations/t")) == 2


def test_what_is_refused_leaves_nothing_behind(campaign: Campaign, store: QueueStore) -> None:
    good, bad = np.zeros(BOX.shape_zyx, np.uint8), np.full(BOX.shape_zyx, 9, np.uint8)
    lease = claim(store)
    for who, labels, error in [("anna", bad, LabelError), ("bob", good, NotYourLeaseError)]:
        with pytest.raises(error):
            submit_labels(campaign, store, lease, who, labels, Work("x", 1))
    store.leases.expire(lease.expires_at)
    with pytest.raises(LeaseExpiredError):
        submit_labels(campaign, store, lease, "anna", good, Work("x", 1))
    assert campaign.storage.list("annotations") == []
    assert store.views.annotations("t") == []


def test_a_full_disk_is_one_error_and_the_lease_goes_on(
    campaign: Campaign, store: QueueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, labels = claim(store), np.zeros(BOX.shape_zyx, np.uint8)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rescueseg.storage.os.fsync", full)
        with pytest.raises(StorageError, match="disk is full"):
            submit_labels(campaign, store, lease, "anna", labels, Work("x", 1))
    assert list(Path(campaign.url, "annotations").rglob("*.*")) == []
    assert submit_labels(campaign, store, lease, "anna", labels, Work("x", 1)).verdict == "accepted"
