"""A hint of the structure before the holdout is drawn: one annotated patch, or scribbles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import EvaluationError, SamplingError
from rescueseg.geometry import Box, Patch
from rescueseg.queue.records import Filters
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import Work
from rescueseg.records import Holdout, QueriedPatch
from rescueseg.sampling import patches
from rescueseg.stages import tickets
from rescueseg.stages.due import begin, count_due
from rescueseg.stages.hints import ask_example, queue_examples
from rescueseg.upkeep.verify import verify

SHAPE = (16, 128, 128)


@pytest.fixture(autouse=True)
def fewer_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure fewer places, to save time."""
    monkeypatch.setattr(patches, "_MOST_MEASURED", 120)


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch, fewer_places: None) -> None:
    """Measure very few, where it does not matter what is chosen."""
    monkeypatch.setattr(patches, "_MOST_MEASURED", 24)


@pytest.fixture
def truth(campaign: Campaign, tmp_path: Path) -> np.ndarray:
    """Balls where x < 82, bright in volume a."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    mask = np.zeros(SHAPE, bool)
    for place in zip(rng.integers(3, 13, 90), rng.integers(3, 125, 90), rng.integers(3, 78, 90), strict=True):
        mask |= (z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2 <= 9
    add(campaign, tmp_path, "a", image_of(mask))
    return mask


def add(campaign: Campaign, folder: Path, name: str, given: np.ndarray, truth: np.ndarray | None = None) -> None:
    """Import an image of `SHAPE` under a name."""
    tifffile.imwrite(folder / f"{name}.tif", given.astype(np.float32))
    labels = None
    if truth is not None:
        labels = str(folder / f"{name} truth.tif")
        tifffile.imwrite(labels, truth.astype(np.uint8))
    volumes.import_volume(
        campaign,
        volumes.VolumeImport(str(folder / f"{name}.tif"), volume_id=name, spacing=(0.1, 0.1, 0.1), truth=labels),
    )


def image_of(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bright where the mask is; dark stripes with more edges, which draw the strata there, where x > 86."""
    _, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    stripes = -50 * (1 + np.sin(2 * np.pi * (y + x) / 6)) * (x > 86)
    return np.asarray(300 + 80 * mask + stripes + np.random.default_rng(seed).normal(0, 10, SHAPE))


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


def tree(campaign: Campaign) -> dict[Path, bytes]:
    """Every file of a campaign but its queue."""
    files = Path(campaign.storage.path("")).rglob("*")
    return {path: path.read_bytes() for path in files if path.is_file() and not path.name.startswith("queue.")}


def strokes_of(truth: np.ndarray, *labels: int) -> np.ndarray:
    """Scribbles in one plane that hold these labels."""
    strokes = np.full(SHAPE, 255, np.uint8)
    if 0 in labels:
        strokes[8, ::7] = 0
    if 1 in labels:
        strokes[8][truth[8]] = 1
    return strokes


@pytest.mark.parametrize(
    ("labels", "what"),
    [((), "nothing of the structure is drawn"), ((0,), "nothing of the structure"), ((1,), "label 1")],
)
def test_scribbles_that_show_nothing_freeze_nothing(
    campaign: Campaign, truth: np.ndarray, tmp_path: Path, labels: tuple[int, ...], what: str
) -> None:
    tifffile.imwrite(tmp_path / "strokes.tif", strokes_of(truth, *labels))
    store, before = open_queue(campaign), tree(campaign)
    for sample in (tickets.prepare, lambda *args, **given: tickets.preview_sampling(args[0], lambda: store, **given)):
        with pytest.raises(SamplingError, match=what) as error:
            sample(campaign, store, scribbles=[str(tmp_path / "strokes.tif")])
        assert error.value.where == f"{tmp_path / 'strokes.tif'} on volume 'a'"
        assert "example" not in str(error.value)
    assert tree(campaign) == before
    assert store.views.tickets() == []


@pytest.mark.usefixtures("few_places")
def test_scribbles_of_background_alone_help_beside_others(
    campaign: Campaign, truth: np.ndarray, tmp_path: Path
) -> None:
    add(campaign, tmp_path, "b", image_of(truth[::-1], seed=1))
    for name, labels in (("a", (0, 1)), ("b", (0,)), ("none", ())):
        tifffile.imwrite(tmp_path / f"{name} strokes.tif", strokes_of(truth, *labels))
    store = open_queue(campaign)
    with pytest.raises(SamplingError, match=r"none strokes\.tif on volume 'b': nothing of the structure"):
        tickets.prepare(
            campaign, store, scribbles=[f"{v}={tmp_path / f'{n} strokes.tif'}" for v, n in ("aa", ("b", "none"))]
        )
    assert campaign.holdout() is None
    assert tickets.prepare(campaign, store, scribbles=[f"{v}={tmp_path / f'{v} strokes.tif'}" for v in "ab"])


@pytest.mark.usefixtures("few_places")
def test_scribbles_after_the_holdout_is_frozen_are_refused(
    campaign: Campaign, truth: np.ndarray, tmp_path: Path
) -> None:
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    before = tree(campaign)
    for sample in (tickets.prepare, lambda *args, **given: tickets.preview_sampling(args[0], lambda: store, **given)):
        with pytest.raises(SamplingError, match="the holdout is frozen: scribbles cannot tell any more"):
            sample(campaign, store, scribbles=[str(tmp_path / "nosuch.tif")])
    campaign.storage.remove("starting.json")
    with pytest.raises(SamplingError, match="the holdout is frozen: scribbles"):
        tickets.prepare(campaign, store, scribbles=[str(tmp_path / "nosuch.tif")])
    tickets.prepare(campaign, store)
    assert tree(campaign) == before


@pytest.mark.usefixtures("few_places")
def test_a_skipped_example_is_looked_at_no_more(truth: np.ndarray, tmp_path: Path) -> None:
    settings = {"name": "test", "classes": ["organelle"], "sampling": {"patch_zyx": [16, 32, 32]}}
    campaign = Campaign.create(str(tmp_path / "fixed"), check_config(settings))
    add(campaign, tmp_path, "a", image_of(truth))
    store = open_queue(campaign)
    skipped = ask_example(campaign, store, "a:8,60,20")
    store.tickets.withdraw(skipped, "ann", "blurred")
    with pytest.raises(SamplingError, match=f"the example there, {skipped}, was skipped.*--ticket {skipped}"):
        ask_example(campaign, store, "a:8,60,20")
    beside = ask_example(campaign, store, "a:8,64,24")
    box = hand_in(campaign, store, beside, truth)
    assert box.intersects(campaign.example_patches()[0].box)
    planned = tickets.preview_sampling(campaign, lambda: store)
    tickets.prepare(campaign, store)
    starting = campaign.starting_patches()
    assert planned == (campaign.holdout(), starting)
    assert starting is not None
    assert [p.stratum for p in starting].count("example") == 1
    assert starting[0].box == box
    assert len(starting) == 4
    old = campaign.example_patches()[0].box
    assert not any(p.box.intersects(old) for p in starting[1:])
    assert not any(b.box.intersects(old) for b in campaign.holdout().all_boxes)  # type: ignore[union-attr]


@pytest.mark.usefixtures("few_places")
def test_no_example_shows_a_volume_that_is_held_out_whole(tmp_path: Path, truth: np.ndarray) -> None:
    settings = {"name": "test", "classes": ["organelle"], "holdout": {"volumes": ["b"]}}
    campaign = Campaign.create(str(tmp_path / "whole"), check_config(settings))
    image = image_of(truth)
    add(campaign, tmp_path, "a", image_of(truth[::-1], seed=1))
    add(campaign, tmp_path, "b", image)
    add(campaign, tmp_path, "copy", image)
    store = open_queue(campaign)
    before = tree(campaign)
    for place in ("b:8,60,20", "copy:8,60,20"):
        with pytest.raises(SamplingError, match="would show 'b', which is held out whole"):
            ask_example(campaign, store, place)
    assert tree(campaign) == before
    # as an earlier version let it be asked for
    campaign.save_example_patches([Patch("b", Box((0, 40, 0), (16, 40, 40)))])
    queue_examples(campaign, store)
    with pytest.raises(SamplingError, match="'b' cannot be held out whole"):
        ask_example(campaign, store, "a:8,60,20")
    store.tickets.withdraw(store.views.tickets()[0].ticket_id, "ann", "in the wrong volume")
    hand_in(campaign, store, ask_example(campaign, store, "a:8,60,20"), truth[::-1])
    tickets.prepare(campaign, store)
    assert {b.volume_id for b in campaign.holdout().boxes} == {"b"}  # type: ignore[union-attr]
    assert {p.volume_id for p in campaign.starting_patches() or []} == {"a"}


@pytest.mark.usefixtures("few_places")
def test_no_place_is_annotated_for_the_rough_mask_and_as_an_example(campaign: Campaign, truth: np.ndarray) -> None:
    store = open_queue(campaign)
    rough = Patch("a", Box((0, 40, 4), (16, 32, 32)))
    campaign.save_rough_patches([rough])
    with pytest.raises(SamplingError, match="would share voxels with a patch of the rough mask"):
        ask_example(campaign, store, "a:8,60,20")
    assert campaign.example_patches() == []
    ticket = ask_example(campaign, store, "a:8,100,20")
    example = campaign.example_patches()[0]
    near = Patch("a", Box((0, example.box.offset_zyx[1] + 2, 4), (16, 20, 32)))
    campaign.save_rough_patches([rough, near])  # the triage may look at truth afterwards
    hand_in(campaign, store, ticket, truth)
    tickets.prepare(campaign, store)
    starting = campaign.starting_patches() or []
    assert [Patch(p.volume_id, p.box) for p in starting[:2]] == [example, rough]
    assert not any(a.box.intersects(b.box) for i, a in enumerate(starting) for b in starting[:i])
