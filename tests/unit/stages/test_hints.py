"""A hint of the structure before the holdout is drawn: one annotated patch, or scribbles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.errors import EvaluationError, SamplingError
from rescueseg.geometry import Box
from rescueseg.queue.records import Filters
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import Work
from rescueseg.records import Holdout, QueriedPatch
from rescueseg.sampling import patches
from rescueseg.stages import tickets
from rescueseg.stages.due import begin, count_due
from rescueseg.stages.hints import ask_example
from rescueseg.upkeep.verify import verify

SHAPE = (16, 128, 128)


@pytest.fixture(autouse=True)
def fewer_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure fewer places, to save time."""
    monkeypatch.setattr(patches, "_MOST_MEASURED", 120)


@pytest.fixture
def truth(campaign: Campaign, tmp_path: Path) -> np.ndarray:
    """Bright balls where x < 82; elsewhere dark stripes with more edges, which draw the strata there."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    mask = np.zeros(SHAPE, bool)
    for place in zip(rng.integers(3, 13, 90), rng.integers(3, 125, 90), rng.integers(3, 78, 90), strict=True):
        mask |= (z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2 <= 9
    stripes = -50 * (1 + np.sin(2 * np.pi * (y + x) / 6)) * (x > 86)
    image = 300 + 80 * mask + stripes + rng.normal(0, 10, SHAPE)
    tifffile.imwrite(tmp_path / "a.tif", image.astype(np.float32))
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(tmp_path / "a.tif"), volume_id="a", spacing=(0.1, 0.1, 0.1))
    )
    return mask


def hand_in(campaign: Campaign, store: QueueStore, ticket: str, truth: np.ndarray) -> Box:
    lease = store.leases.claim("ann", 60, filters=Filters(), ticket_id=ticket)
    assert lease is not None
    box = lease.ticket.box
    submit_labels(campaign, store, lease, "ann", truth[box.slices].astype(np.uint8), Work("test", 60.0))
    return box


def shares(truth: np.ndarray, boxes: list[Box]) -> np.ndarray:
    return np.array([truth[box.slices].mean() for box in boxes])


def check_sees_structure(truth: np.ndarray, holdout: Holdout, starting: list[QueriedPatch]) -> None:
    """Three quarters of what is asked for, and of what comes later, hold structure; some is elsewhere."""
    for boxes in (holdout.boxes, holdout.later or (), starting):
        of = shares(truth, [b.box for b in boxes])
        assert (of > 0.01).mean() >= 0.75
        strata = [b.stratum for b in boxes]
        assert strata.count("elsewhere") == len(boxes) // 4
        elsewhere = np.array([stratum == "elsewhere" for stratum in strata])
        assert of[elsewhere].mean() < of[~elsewhere].mean() / 2, "unlikely is below a third of the fullest places"


def test_an_example_is_annotated_before_anything_is_frozen_and_shows_where_to_look(
    campaign: Campaign, truth: np.ndarray
) -> None:
    store = open_queue(campaign)
    holdout, starting = tickets.preview_sampling(campaign, lambda: store)
    blind = shares(truth, [b.box for b in holdout.boxes])
    assert (blind > 0.01).mean() < 0.75, "strata that cannot see the structure look at the texture"

    ticket = ask_example(campaign, store, "a:8,60,20")
    assert ask_example(campaign, store, "8,60,20") == ticket, "once more changes nothing"
    near = campaign.example_patches()[0].box
    with pytest.raises(SamplingError, match="would share voxels with the example"):
        ask_example(campaign, store, f"a:8,{near.stop_zyx[1] + 1},20")
    assert campaign.holdout() is None
    assert [t.stratum for t in store.views.tickets()] == ["example"]
    assert not verify(campaign).damage, "a campaign that waits for its example has lost nothing"
    with pytest.raises(SamplingError, match=f"the example {ticket} is not annotated yet"):
        tickets.prepare(campaign, store)
    box = hand_in(campaign, store, ticket, truth)
    assert not count_due(campaign, store).due, "nothing to judge by"
    with pytest.raises(EvaluationError, match="there is no holdout"):
        begin(campaign, store)

    planned = tickets.preview_sampling(campaign, lambda: store)
    tickets.prepare(campaign, store)
    assert planned == (campaign.holdout(), campaign.starting_patches())
    holdout, starting = planned
    check_sees_structure(truth, holdout, starting)
    assert starting[0].box == box, "the example is the first training patch"
    assert not any(b.intersects(box) for b in holdout.guarded("a", campaign.volumes.shared_places()))
    assert "structure by the example" in (holdout.boxes[0].reason or "")
    assert len(store.views.tickets(purpose="pool")) == 4
    with pytest.raises(SamplingError, match="the holdout is frozen"):
        ask_example(campaign, store, "a:8,60,20")
    store.close()


def test_scribbles_show_it_too(campaign: Campaign, truth: np.ndarray, tmp_path: Path) -> None:
    strokes = np.full(SHAPE, 255, np.uint8)
    strokes[8, ::7] = 0
    strokes[8][truth[8]] = 1
    tifffile.imwrite(tmp_path / "strokes.tif", strokes)
    store = open_queue(campaign)
    scribbles = [f"a={tmp_path / 'strokes.tif'}"]
    tickets.prepare(campaign, store, scribbles=scribbles)
    holdout = campaign.holdout()
    assert holdout is not None
    check_sees_structure(truth, holdout, campaign.starting_patches() or [])
    store.close()


def test_an_empty_example_is_no_hint_and_says_so(campaign: Campaign, truth: np.ndarray) -> None:
    store = open_queue(campaign)
    hand_in(campaign, store, ask_example(campaign, store, "a:8,60,110"), truth)
    with pytest.raises(SamplingError, match="the example tells nothing about where the structure is"):
        tickets.prepare(campaign, store)
    hand_in(campaign, store, ask_example(campaign, store, "a:8,60,20"), truth)
    assert tickets.prepare(campaign, store)
    store.close()


@pytest.mark.parametrize(
    "place",
    ["8,60,20,1", "a:8,60", "b:8,60,20", "a:16,0,0", "a:-1,0,0", "a", "a:1,,2", "a:²,1,1", "a:" + "9" * 5000 + ",1,1"],
)
def test_what_is_no_place_is_refused(campaign: Campaign, truth: np.ndarray, place: str) -> None:
    with pytest.raises(SamplingError, match=r"no place in a volume.*a \(16×128×128\)"):
        ask_example(campaign, open_queue(campaign), place)
    assert campaign.example_patches() == []
