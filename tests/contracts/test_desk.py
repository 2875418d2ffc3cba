"""What every desk promises, wherever the campaign lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation import NewTicket, open_queue
from rescueseg.annotation.desk import Desk, Filters
from rescueseg.annotation.local_desk import LocalDesk
from rescueseg.annotation.patch_labels import PatchLabels
from rescueseg.annotation.remote_desk import RemoteDesk
from rescueseg.campaign import Campaign
from rescueseg.errors import LabelError, NotYourLeaseError
from rescueseg.geometry import Box
from tests.annotation_server import served

BOX = Box((2, 3, 4), (3, 4, 5))
IMAGE = np.arange(8 * 9 * 10, dtype=np.uint16).reshape(8, 9, 10)


@pytest.fixture
def filled(campaign: Campaign, tmp_path: Path) -> Campaign:
    tifffile.imwrite(tmp_path / "raw.tif", IMAGE)
    volumes.import_volume(campaign, str(tmp_path / "raw.tif"), volume_id="v", spacing=(0.4, 0.2, 0.1))
    prefill = np.zeros(BOX.shape_zyx, np.uint8)
    prefill[0, 1, 2] = 1
    campaign.storage.write_array("weak_labels/t/a.npz", prefill)
    tickets = [
        NewTicket(ticket_id="a", volume_id="v", box=BOX, prefill="weak_labels/t/a.npz", score=2.0),
        NewTicket(ticket_id="b", volume_id="v", box=Box((5, 0, 0), (2, 3, 4)), score=1.0),
    ]
    open_queue(campaign).add_tickets(tickets)
    return campaign


@pytest.fixture(params=["local", "remote"])
def sit(request: pytest.FixtureRequest, filled: Campaign) -> Iterator[Callable[[str], Desk]]:
    """Yield a function that seats somebody at a desk."""
    if request.param == "local":
        yield lambda name: LocalDesk(filled, open_queue(filled), name)
        return
    with served(filled) as url:
        yield lambda name: RemoteDesk(url, annotator=name)


def test_a_patch_is_taken_seen_and_handed_in(sit: Callable[[str], Desk]) -> None:
    desk = sit("anna")
    lease = desk.next()
    assert lease is not None
    assert lease.ticket_id == "a"
    again = desk.next()
    assert again is not None
    assert again.lease_id == lease.lease_id, "one goes on with the patch one holds"
    view = desk.view(lease.lease_id)
    assert view.context == Box((0, 1, 1), (7, 8, 9))
    assert np.array_equal(view.image[0], IMAGE[view.context.slices])
    assert np.array_equal(view.image[0][view.inside.slices], IMAGE[BOX.slices])
    assert view.spacing_um_zyx == (0.4, 0.2, 0.1)
    assert view.start.classes.sum() == view.start.classes[0, 1, 2] == 1
    drawn = view.start.classes.copy()
    drawn[1, 1, 1] = 1
    done = desk.submit(lease.lease_id, PatchLabels(drawn), "test")
    assert (done.voxels_corrected, done.verdict) == (1, "accepted")
    assert desk.version_labels("a", 1) == PatchLabels(drawn)
    assert [entry.event for entry in desk.history("a")][-1] == "accepted"
    assert desk.info().counts["accepted"] == 1


def test_two_people_never_hold_one_patch(sit: Callable[[str], Desk]) -> None:
    anna, bob, carl = sit("anna"), sit("bob"), sit("carl")
    first, second = anna.next(), bob.next()
    assert first is not None
    assert second is not None
    assert {first.ticket_id, second.ticket_id} == {"a", "b"}
    assert carl.next() is None
    with pytest.raises(NotYourLeaseError):
        bob.release(first.lease_id)
    anna.release(first.lease_id)
    taken = carl.next(Filters(purpose="pool"))
    assert taken is not None
    assert taken.ticket_id == "a"


def test_labels_of_another_shape_or_class_are_refused(sit: Callable[[str], Desk]) -> None:
    desk = sit("anna")
    lease = desk.next()
    assert lease is not None
    for wrong in (np.zeros((1, 2, 3), np.uint8), np.full(BOX.shape_zyx, 7, np.uint8)):
        with pytest.raises(LabelError):
            desk.submit(lease.lease_id, PatchLabels(wrong), "test")
    assert desk.versions("a") == []
