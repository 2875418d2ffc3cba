"""The simulated annotator: what it draws is the truth, its errors are those asked for and the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from rescueseg.annotation.label_files import ticket_id
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import LabelError
from rescueseg.geometry import Box, Patch
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.simulation.annotator import AnnotatorOptions, SimulatedAnnotator, jitter_boundaries, miss_objects
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

BOXES = [Box((0, 0, 0), (8, 16, 16)), Box((4, 16, 8), (8, 16, 16)), Box((8, 0, 16), (8, 16, 16))]


@pytest.fixture
def truth() -> np.ndarray:
    z, y, x = np.indices((16, 32, 32))
    balls = [(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 20 for a, b, c in [(4, 8, 8), (10, 24, 20), (10, 8, 24)]]
    return np.any(balls, axis=0).astype(np.uint8)


@pytest.fixture
def queue(campaign: Campaign, tmp_path: Path, truth: np.ndarray) -> QueueStore:
    tifffile.imwrite(tmp_path / "raw.tif", (truth * 100 + 20).astype(np.uint8), metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "truth.tif", truth, metadata={"axes": "ZYX"})
    import_volume(
        campaign,
        VolumeImport(str(tmp_path / "raw.tif"), volume_id="v", spacing=(1, 1, 1), truth=str(tmp_path / "truth.tif")),
    )
    store = open_queue(campaign)
    store.tickets.add(
        [NewTicket(ticket_id=ticket_id("test", 0, Patch("v", b), "pool"), volume_id="v", box=b) for b in BOXES]
    )
    return store


def test_without_errors_it_hands_in_the_truth(campaign: Campaign, queue: QueueStore, truth: np.ndarray) -> None:
    options = AnnotatorOptions(seconds_per_voxel=0.5, seconds_per_patch=3.0)
    assert SimulatedAnnotator(campaign, queue, options=options).drain() == len(BOXES)
    accepted = queue.views.accepted()
    assert {a.box for a in accepted} == set(BOXES)
    for annotation in accepted:
        labels = campaign.storage.read_array(annotation.labels)
        np.testing.assert_array_equal(labels, truth[annotation.box.slices])
        assert annotation.voxels_corrected == np.count_nonzero(labels)
        assert annotation.seconds == pytest.approx(3.0 + 0.5 * annotation.voxels_corrected)
    assert SimulatedAnnotator(campaign, queue).drain() == 0


def test_an_abandoned_lease_comes_back_and_nothing_is_lost(campaign: Campaign, queue: QueueStore) -> None:
    annotator = SimulatedAnnotator(campaign, queue, options=AnnotatorOptions(abandoned=1.0))
    assert annotator.drain() == len(BOXES)
    for annotation in queue.views.accepted():
        events = [entry.event for entry in queue.views.history(annotation.ticket_id)]
        assert events.count("expired") == 1


def test_a_lease_from_before_a_kill_is_taken_up_again(campaign: Campaign, queue: QueueStore) -> None:
    assert queue.leases.claim("simulated", 3600) is not None
    assert SimulatedAnnotator(campaign, queue).drain() == len(BOXES)


def test_errors_depend_on_the_ticket_alone(campaign: Campaign, queue: QueueStore, truth: np.ndarray) -> None:
    options = AnnotatorOptions(jitter_voxels=1.0, missed_objects=0.3)
    tickets = queue.views.tickets()
    first = [SimulatedAnnotator(campaign, queue, options=options).draw(t) for t in tickets]
    again = [SimulatedAnnotator(campaign, queue, name="x", options=options).draw(t) for t in reversed(tickets)]
    for a, b in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((labels != truth[t.box.slices]).any() for labels, t in zip(first, tickets, strict=True))


def test_truth_is_needed(campaign: Campaign, tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "raw.tif", np.arange(4096, dtype=np.uint16).reshape(16, 16, 16), metadata={"axes": "ZYX"}
    )
    import_volume(campaign, VolumeImport(str(tmp_path / "raw.tif"), volume_id="v", spacing=(1, 1, 1)))
    store = open_queue(campaign)
    store.tickets.add([NewTicket(ticket_id="pool-1", volume_id="v", box=Box((0, 0, 0), (8, 8, 8)))])
    with pytest.raises(LabelError, match="needs ground truth"):
        SimulatedAnnotator(campaign, store).drain()
    assert store.views.accepted() == []


def test_missed_objects_vanish_whole() -> None:
    labels = np.zeros((4, 40, 40), np.uint8)
    for y in range(0, 40, 4):
        for x in range(0, 40, 4):
            labels[1:3, y : y + 2, x : x + 2] = 1 + (x // 4) % 2
    labels[0] = 255
    kept = miss_objects(labels, 0.3, np.random.default_rng(0))
    assert (kept[0] == 255).all()
    objects, count = ndimage.label((labels > 0) & (labels < 255))
    shares = ndimage.mean(kept > 0, objects, range(1, count + 1))
    assert set(np.unique(shares)) == {0.0, 1.0}
    assert np.mean(shares) == pytest.approx(0.7, abs=0.12)


def test_jitter_moves_the_boundary_by_about_what_was_asked() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[:, :, 20:] = 3
    moved = jitter_boundaries(labels, 1.5, np.random.default_rng(1))
    assert set(np.unique(moved)) == {0, 3}
    position = 40 - (moved == 3).sum(axis=2)
    assert abs(position.mean() - 20) < 1
    assert 0.7 < (position - 20.0).std() < 2.5


@pytest.fixture
def nuclei(tmp_path: Path) -> tuple[Campaign, QueueStore, np.ndarray]:
    """Return a campaign of numbered objects, its queue, and the truth: many cubes that touch, numbered beyond 255."""
    numbers = np.zeros((16, 32, 32), np.uint16)
    corners = [(z, y, x) for z in (0, 8) for y in range(0, 32, 8) for x in range(0, 32, 8)]
    for number, (z, y, x) in enumerate(corners, start=240):
        numbers[z : z + 7, y : y + 8, x : x + 8] = number
    for name, array in (("raw", (numbers % 7 * 30 + 20).astype(np.uint8)), ("truth", numbers)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array, metadata={"axes": "ZYX"})
    settings = {"name": "n", "classes": ["nucleus"], "annotation": {"labels": "instance"}}
    campaign = Campaign.create(str(tmp_path / "objects"), check_config(settings))
    raw, truth = (str(tmp_path / f"{name}.tif") for name in ("raw", "truth"))
    import_volume(campaign, VolumeImport(raw, volume_id="v", spacing=(1, 1, 1), truth=truth, truth_type="instance"))
    store = open_queue(campaign)
    store.tickets.add([NewTicket(ticket_id=f"pool-{i}", volume_id="v", box=b) for i, b in enumerate(BOXES)])
    return campaign, store, numbers


def test_touching_objects_stay_apart(nuclei: tuple[Campaign, QueueStore, np.ndarray]) -> None:
    campaign, store, numbers = nuclei
    assert SimulatedAnnotator(campaign, store).drain() == len(BOXES)
    for annotation in store.views.accepted():
        drawn, truth = campaign.storage.read_array(str(annotation.instances)), numbers[annotation.box.slices]
        pairs = np.unique(np.stack([drawn.ravel(), truth.ravel()]), axis=1)
        assert len(pairs[0]) == len(np.unique(truth)) == len(np.unique(drawn)) > 4, "each object of the truth is one"
        assert drawn.max() == len(np.unique(drawn)) - 1, "numbered anew"
        assert ((drawn > 0) == (truth > 0)).all()
        assert ndimage.label(truth > 0)[1] <= 2, "by their connected parts they would be one layer each"


def test_errors_are_those_of_whole_objects(nuclei: tuple[Campaign, QueueStore, np.ndarray]) -> None:
    campaign, store, numbers = nuclei
    ticket = NewTicket(ticket_id="pool-x", volume_id="v", box=Box((0, 0, 0), numbers.shape))
    missed = SimulatedAnnotator(campaign, store, options=AnnotatorOptions(missed_objects=0.4)).draw_labels(ticket)
    assert missed.instances is not None
    shares = ndimage.mean(missed.instances > 0, numbers, np.unique(numbers)[1:])
    assert set(np.unique(shares)) == {0.0, 1.0}
    assert 0.3 < np.mean(shares) < 0.9
    grown = SimulatedAnnotator(campaign, store, options=AnnotatorOptions(grown_voxels=1)).draw_labels(ticket)
    assert grown.instances is not None
    assert (grown.instances > 0).all()
    assert len(np.unique(grown.instances)) == 32
    jittered = SimulatedAnnotator(campaign, store, options=AnnotatorOptions(jitter_voxels=1)).draw_labels(ticket)
    assert jittered.instances is not None
    same = [np.bincount(jittered.instances[numbers == n]).max() / (numbers == n).sum() for n in np.unique(numbers)[1:]]
    assert 0.4 < np.mean(same) < 1
