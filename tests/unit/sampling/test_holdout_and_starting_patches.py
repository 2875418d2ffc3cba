from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.config import check_config
from rescueseg.errors import SamplingError
from rescueseg.geometry import Box, Patch
from rescueseg.records import Holdout, Normalisation, Snapshot, SnapshotItem, VolumeRecord
from rescueseg.sampling import effort, patches, starting_patches
from rescueseg.sampling.free_places import choose_apart
from rescueseg.sampling.holdout import expected_shapes
from rescueseg.sampling.strata import HOLDOUT_STRATA

VOLUMES = {
    "cdeep3m": ((30, 1024, 1024), (0.03, 0.01, 0.01)),
    "vessel": ((15, 512, 512), (5, 0.994, 0.994)),
    "vessel25": ((25, 512, 512), (5, 0.994, 0.994)),
    "bbbc050": ((51, 480, 480), (1.75, 0.8, 0.8)),
    "gonuclear": ((100, 100, 100), (0.28, 0.13, 0.13)),
    "fib25": ((250, 250, 250), (0.01, 0.01, 0.01)),
    "phantom": ((24, 128, 128), (0.3, 0.1, 0.1)),
    "flat": ((1, 2048, 2048), (1, 0.1, 0.1)),
    "tall": ((600, 64, 64), (0.1, 0.1, 0.1)),
    "stardist": ((31, 61, 57), (1, 0.5, 0.5)),
    "large": ((2000, 2000, 2000), (0.1, 0.1, 0.1)),
}

NOISE = np.random.default_rng(0).normal(0, 0.1, 99_991).astype(np.float32)


def add(campaign: Campaign, name: str, volume_id: str = "a", truth: bool = False, domain: str = "d") -> VolumeRecord:
    shape, spacing = VOLUMES[name]
    record = VolumeRecord(
        volume_id=volume_id, domain=domain, shape_zyx=shape, spacing_um_zyx=spacing, channels=1, dtype="uint8",
        source="a.tif", digest=volume_id, normalisation=Normalisation(low=-1e3, high=1e3, mean=0, std=100),
        truth="semantic" if truth else None,
    )  # fmt: skip
    campaign.volumes.save(record)  # without an image, which nothing here reads: it shares nothing with the others
    compared = {v.volume_id: v.digest for v in campaign.volumes.records(refused=True)}
    campaign.volumes.save_relations(campaign.volumes.relations().model_copy(update={"compared": compared}))
    return record


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch) -> list[Box]:
    """A chequered pattern whose contrast rises along y, in noise that rises along x."""
    read_boxes: list[Box] = []

    def reader(campaign: Campaign, volume: VolumeRecord) -> Callable[[Box], np.ndarray]:
        def read(box: Box) -> np.ndarray:
            read_boxes.append(box)
            _, y, x = (np.arange(o, o + n) for o, n in zip(box.offset_zyx, box.shape_zyx, strict=True))
            waves = np.sin(x * np.pi / 6)[None] * (np.sin(y * np.pi / 6) * y / volume.shape_zyx[1])[:, None]
            noise = np.resize(NOISE, box.shape_zyx) * (1 + 3 * x / volume.shape_zyx[2])
            return (100 * (noise + waves))[None].astype(np.float32)

        return read

    monkeypatch.setattr(patches, "volume_reader", reader)
    return read_boxes


def check_holdout(campaign: Campaign, holdout: Holdout) -> None:
    held = 0
    for volume in campaign.volumes.records():
        boxes = holdout.of(volume.volume_id, campaign.volumes.shared_places())
        whole = Box((0, 0, 0), volume.shape_zyx)
        assert all(whole.contains(box) for box in boxes)
        assert not any(a.intersects(b) for i, a in enumerate(boxes) for b in boxes[:i])
        held += sum(box.size for box in boxes)
    assert held <= campaign.config.holdout.fraction * sum(math.prod(v.shape_zyx) for v in campaign.volumes.records())


@pytest.mark.parametrize(
    ("name", "truth"), [*((name, False) for name in VOLUMES), ("cdeep3m", True), ("gonuclear", True), ("vessel", True)]
)
def test_holdout_and_pool_fit_on_every_shape(campaign: Campaign, name: str, truth: bool, images: list[Box]) -> None:
    add(campaign, name, truth=truth)
    holdout = starting_patches.draw_holdout(campaign)
    check_holdout(campaign, holdout)
    assert [b.part for b in holdout.all_boxes] == ["validation", "test"] * 8
    assert [b.part for b in holdout.boxes] == ["validation", "test"] * (8 if truth else 4)
    for part in ("validation", "test"):
        strata = [b.stratum for b in holdout.all_boxes if b.part == part]
        assert strata == [s for s in HOLDOUT_STRATA if s != "artifact"]
    assert all(b.reason for b in holdout.all_boxes)
    candidates = starting_patches.candidate_boxes(campaign, "a")
    assert not any(
        c.intersects(g) for c in candidates[:3000] for g in holdout.guarded("a", campaign.volumes.shared_places())
    )
    assert len(choose_apart((Patch("a", box) for box in candidates), 30)) == 30
    assert min(holdout.guard_zyx) >= 1
    assert sum(box.size for box in images) < 3e8


def test_the_same_seed_draws_the_same_boxes(tmp_path) -> None:
    def draw(name: str, seed: int) -> tuple[Holdout, list[Box]]:
        campaign = Campaign.create(str(tmp_path / name), check_config({"name": "n", "classes": ["o"], "seed": seed}))
        add(campaign, "phantom")
        holdout = starting_patches.draw_holdout(campaign)
        return holdout, [p.box for p in starting_patches.starting_patches(campaign)]

    assert draw("a", 1) == draw("b", 1)
    assert draw("c", 2)[0] != draw("d", 3)[0]


def test_drawing_again_changes_nothing(campaign: Campaign) -> None:
    add(campaign, "phantom")
    assert starting_patches.draw_holdout(campaign) == starting_patches.draw_holdout(campaign) == campaign.holdout()


def test_strata_are_what_they_say(tmp_path) -> None:
    """Contrast rises along y, noise along x."""
    chosen = {"name": "n", "classes": ["o"], "holdout": {"box_zyx": [30, 66, 66]}}
    campaign = Campaign.create(str(tmp_path / "c"), check_config(chosen))
    add(campaign, "cdeep3m")
    of: dict[str, list[Box]] = {}
    for box in starting_patches.draw_holdout(campaign).all_boxes:
        of.setdefault(box.stratum, []).append(box.box)
    assert min(b.offset_zyx[1] for b in of["dense"] + of["best_case"]) > 600
    assert max(b.offset_zyx[2] for b in of["best_case"]) < 400
    assert min(b.offset_zyx[2] for b in of["low_snr"] + of["worst_case"]) > 400
    assert max(b.offset_zyx[1] for b in of["sparse"]) < 400
    assert all(0 in b.offset_zyx[1:] or 1024 in b.stop_zyx[1:] for b in of["volume_edge"])


def test_configured_shapes_are_kept(tmp_path) -> None:
    chosen = {
        "name": "n", "classes": ["o"], "sampling": {"patch_zyx": [64, 40, 40]},
        "holdout": {"box_zyx": [15, 50, 60], "guard_zyx": [0, 5, 5], "validation_boxes": 3, "test_boxes": 2},
    }  # fmt: skip
    campaign = Campaign.create(str(tmp_path / "c"), check_config(chosen))
    add(campaign, "cdeep3m")
    holdout = starting_patches.draw_holdout(campaign)
    assert {b.box.shape_zyx for b in holdout.boxes} == {(15, 50, 60)}
    assert holdout.guard_zyx == (0, 5, 5)
    assert [b.part for b in holdout.boxes] == ["validation", "test", "validation", "test", "validation"]
    assert {b.shape_zyx for b in starting_patches.candidate_boxes(campaign, "a")} == {(30, 40, 40)}


def test_volumes_take_their_share(campaign: Campaign) -> None:
    add(campaign, "vessel", "small")
    add(campaign, "cdeep3m", "large")
    holdout = starting_patches.draw_holdout(campaign)
    check_holdout(campaign, holdout)
    for part in ("validation", "test"):
        drawn = [b.volume_id for b in holdout.all_boxes if b.part == part]
        assert (drawn.count("small"), drawn.count("large")) == (1, 7)
    assert {p.volume_id for p in starting_patches.starting_patches(campaign, 16)} == {"small", "large"}


def test_starting_patches_are_apart_and_outside_the_holdout(campaign: Campaign) -> None:
    add(campaign, "bbbc050")
    holdout = starting_patches.draw_holdout(campaign)
    first = starting_patches.starting_patches(campaign)
    assert len(first) == campaign.config.sampling.starting_patches
    assert [p.score for p in first] == [1, 0.75, 0.5, 0.25]
    assert first[0].stratum == "dense"
    more = starting_patches.starting_patches(campaign, 8, occupied=[Patch("a", p.box) for p in first])
    boxes = [p.box for p in first + more]
    assert not any(a.intersects(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(a.intersects(b) for a in boxes for b in holdout.guarded("a", campaign.volumes.shared_places()))


def test_candidates_keep_clear_of_tickets(campaign: Campaign) -> None:
    add(campaign, "phantom")
    starting_patches.draw_holdout(campaign)
    everything = starting_patches.candidate_boxes(campaign, "a")
    rest = starting_patches.candidate_boxes(campaign, "a", [Patch("a", everything[0])])
    assert rest == [box for box in everything if not box.intersects(everything[0])]


def test_a_ticket_for_each_box_without_truth(campaign: Campaign) -> None:
    add(campaign, "cdeep3m", "known", truth=True)
    add(campaign, "cdeep3m", "unknown")
    holdout = starting_patches.draw_holdout(campaign)
    tickets = starting_patches.holdout_tickets(campaign.volumes.records(), holdout)
    assert tickets == [b for b in holdout.boxes if b.volume_id == "unknown"]
    assert {t.part for t in tickets} == {"validation", "test"}


def test_added_volumes_let_the_holdout_grow_where_nothing_was_trained(campaign: Campaign) -> None:
    add(campaign, "phantom", "a")
    first = starting_patches.draw_holdout(campaign)
    add(campaign, "phantom", "b")
    assert starting_patches.candidate_boxes(campaign, "b") == []
    assert {p.volume_id for p in starting_patches.starting_patches(campaign, 8)} == {"a"}
    trained = [Patch("b", Box((0, 0, 0), (24, 128, 60)))]
    second = starting_patches.draw_holdout(campaign, trained)
    check_holdout(campaign, second)
    assert second.boxes[: len(first.boxes)] == first.boxes
    assert {b.part for b in second.boxes[len(first.boxes) :]} == {"validation", "test"}
    assert min(box.offset_zyx[2] for box in second.of("b", campaign.volumes.shared_places())) >= 60 + first.guard_zyx[2]
    assert second.of("a", campaign.volumes.shared_places()) == first.of("a", campaign.volumes.shared_places())
    assert starting_patches.candidate_boxes(campaign, "b")
    assert starting_patches.draw_holdout(campaign) == second


def test_a_volume_trained_on_everywhere_adds_no_box(campaign: Campaign) -> None:
    add(campaign, "phantom", "a")
    first = starting_patches.draw_holdout(campaign)
    add(campaign, "phantom", "b")
    second = starting_patches.draw_holdout(campaign, [Patch("b", Box((0, 0, 0), (24, 128, 128)))])
    assert second.boxes == first.boxes
    assert second.volumes == ("a", "b")


def test_what_snapshots_read_counts_as_trained(campaign: Campaign) -> None:
    add(campaign, "phantom", "a")
    starting_patches.draw_holdout(campaign)
    add(campaign, "phantom", "b")
    item = SnapshotItem(
        ticket_id="t", volume_id="b", box=Box((0, 0, 0), (24, 128, 50)), read_box=Box((0, 0, 0), (24, 128, 60)),
        annotation_id="n", labels="l", labels_digest="d",
    )  # fmt: skip
    snapshot = Snapshot(generation=0, items=(item,), n_classes=1, holdout_digest="h", digest="d")
    campaign.generation(0).write(SNAPSHOT, snapshot)
    holdout = starting_patches.draw_holdout(campaign)
    assert holdout.of("b", campaign.volumes.shared_places())
    assert not any(box.intersects(item.read_box) for box in holdout.of("b", campaign.volumes.shared_places()))


def test_what_cannot_be_sampled_is_said(campaign: Campaign, tmp_path) -> None:
    with pytest.raises(SamplingError, match="no volume"):
        starting_patches.draw_holdout(campaign)
    add(campaign, "phantom")
    with pytest.raises(SamplingError, match="not frozen"):
        starting_patches.candidate_boxes(campaign, "a")
    with pytest.raises(SamplingError, match="not frozen"):
        starting_patches.starting_patches(campaign)
    chosen = {"name": "n", "classes": ["o"], "holdout": {"guard_zyx": [24, 128, 128]}}
    crowded = Campaign.create(str(tmp_path / "c"), check_config(chosen))
    add(crowded, "phantom")
    with pytest.raises(SamplingError, match="no room"):
        starting_patches.draw_holdout(crowded)
    assert crowded.holdout() is None


@pytest.mark.parametrize("name", ["fib25", "large", "cdeep3m", "gonuclear", "bbbc050"])
def test_the_patch_is_about_isotropic_and_as_large_as_time_and_room_allow(campaign: Campaign, name: str) -> None:
    volume = add(campaign, name)
    holdout = starting_patches.draw_holdout(campaign)
    shape = patches.patch_shape(campaign.config, volume, holdout)
    lengths = [n * s for n, s in zip(shape, volume.spacing_um_zyx, strict=True) if n < volume.shape_zyx[0]]
    assert max(lengths) / min(lengths) < 1.35
    guarded = {"a": holdout.guarded("a", campaign.volumes.shared_places())}
    assert patches.count_places([volume], {"a": shape}, guarded, campaign.volumes.shared_places(), 30) == 30
    larger = patches.advised_shape(volume, round(1.2 * math.prod(shape)))
    room = patches.count_places([volume], {"a": larger}, guarded, campaign.volumes.shared_places(), 30) == 30
    assert effort.seconds(shape) <= 8 * 60 + 1, "rounded to whole voxels"
    if name == "gonuclear":
        assert not room
        assert effort.seconds(larger) < 8 * 60
    else:
        assert effort.seconds(larger) > 8 * 60


@pytest.mark.parametrize("side", [128, 512, 2048, 8192])
def test_no_patch_and_no_box_takes_longer_on_a_larger_volume(campaign: Campaign, side: int) -> None:
    """A volume of 1024³ got patches of 16.8 million voxels, some thirty hours of work each."""
    VOLUMES["cube"] = ((side,) * 3, (0.1, 0.1, 0.1))
    volume = add(campaign, "cube")
    holdout = starting_patches.draw_holdout(campaign)
    assert effort.seconds(patches.patch_shape(campaign.config, volume, holdout)) <= 8 * 60
    assert all(effort.seconds(b.box.shape_zyx) <= 5 * 60 for b in holdout.all_boxes)


def test_planes_far_apart_are_at_least_three(campaign: Campaign) -> None:
    VOLUMES["far"] = ((40, 2000, 2000), (20, 0.1, 0.1))
    volume = add(campaign, "far")
    shape = patches.patch_shape(campaign.config, volume, starting_patches.draw_holdout(campaign))
    assert shape[0] == 3
    assert effort.seconds(shape) <= 8 * 60


def test_the_patch_shape_stays_when_volumes_are_added(campaign: Campaign) -> None:
    first = add(campaign, "phantom", "a")
    shape = patches.patch_shape(campaign.config, first, starting_patches.draw_holdout(campaign))
    small = add(campaign, "stardist", "b")
    large = add(campaign, "cdeep3m", "c")
    grown = starting_patches.draw_holdout(campaign)
    assert patches.patch_shape(campaign.config, first, grown) == shape
    # both long sides are even, about 22 voxels: a step of one of them is a tenth
    assert math.prod(patches.patch_shape(campaign.config, large, grown)) == pytest.approx(math.prod(shape), rel=0.2)
    assert math.prod(patches.patch_shape(campaign.config, small, grown)) <= 1.1 * math.prod(shape)
    assert starting_patches.candidate_boxes(campaign, "b")


def test_a_holdout_frozen_before_patch_shapes_were_kept_still_opens(campaign: Campaign) -> None:
    volume = add(campaign, "phantom")
    drawn = starting_patches.draw_holdout(campaign)
    boxes = [{k: b[k] for k in ("volume_id", "box", "part")} | {"stratum": "dim"} for b in drawn.to_json()["boxes"]]
    campaign.storage.write_json("holdout.json", {"boxes": boxes, "guard_zyx": list(drawn.guard_zyx), "volumes": ["a"]})
    old = campaign.holdout()
    assert old is not None
    assert old.to_json() == campaign.storage.read_json("holdout.json")
    shape = patches.reference_shape(campaign.config, volume)
    assert {b.shape_zyx for b in starting_patches.candidate_boxes(campaign, "a")} == {shape}
    add(campaign, "phantom", "b")
    assert starting_patches.draw_holdout(campaign).patch_zyx is None
    assert {p.box.shape_zyx for p in starting_patches.starting_patches(campaign)} == {shape}


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    volume=st.tuples(st.integers(1, 30), st.integers(30, 100), st.integers(30, 100)),
    spacing=st.tuples(st.floats(0.1, 2), st.floats(0.1, 1), st.floats(0.1, 1)),
    rough=st.lists(st.tuples(*[st.floats(0, 1)] * 3, *[st.floats(0.02, 0.4)] * 3), max_size=4),
)
def test_no_rough_patch_touches_the_guarded_holdout(images, tmp_path_factory, volume, spacing, rough) -> None:
    campaign = Campaign.create(str(tmp_path_factory.mktemp("c")), check_config({"name": "n", "classes": ["o"]}))
    VOLUMES["any"] = (volume, spacing)
    add(campaign, "any")
    found = []
    for *at, dz, dy, dx in rough:
        shape = [max(1, round(f * n)) for f, n in zip((dz, dy, dx), volume, strict=True)]
        offset = [int(a * (n - s)) for a, n, s in zip(at, volume, shape, strict=True)]
        found.append(Patch("a", Box(tuple(offset), tuple(shape))))
    campaign.save_rough_patches(found)
    try:
        holdout = starting_patches.draw_holdout(campaign)
    except SamplingError:
        assert campaign.holdout() is None
        return
    assert not any(
        p.box.intersects(box) for p in found for box in holdout.guarded("a", campaign.volumes.shared_places())
    )
    try:
        first = starting_patches.starting_patches(campaign)
    except SamplingError:
        assert not found
        return
    assert [Patch("a", p.box) for p in first[: len(found)]] == found
    assert {p.reason for p in first[: len(found)]} <= {"rough mask of the triage"}
    drawn = first[len(found) :]
    assert len(first) <= max(4, len(found))
    assert not any(p.box.intersects(q.box) for i, p in enumerate(drawn) for q in (*first[: len(found)], *drawn[:i]))
    assert not any(
        p.box.intersects(box) for p in drawn for box in holdout.guarded("a", campaign.volumes.shared_places())
    )


def test_every_domain_gets_a_turn(campaign: Campaign) -> None:
    add(campaign, "cdeep3m", "large")
    add(campaign, "vessel", "small")
    add(campaign, "phantom", "other", domain="e")
    starting_patches.draw_holdout(campaign)
    assert {p.volume_id for p in starting_patches.starting_patches(campaign, 2)} >= {"other"}
    assert {p.volume_id for p in starting_patches.starting_patches(campaign, 4)} == {"large", "small", "other"}


@pytest.mark.parametrize("seed", range(4))
def test_every_domain_is_judged_from_the_first_boxes_on(tmp_path, seed: int) -> None:
    campaign = Campaign.create(str(tmp_path / "c"), check_config({"name": "n", "classes": ["o"], "seed": seed}))
    add(campaign, "vessel", "large")
    add(campaign, "phantom", "small", domain="e")
    add(campaign, "phantom", "other", domain="f")
    holdout = starting_patches.draw_holdout(campaign)
    for part in ("validation", "test"):
        first = [b.volume_id for b in holdout.boxes if b.part == part]
        assert len(first) == 4
        assert set(first) == {"large", "small", "other"}


def test_an_artefact_is_held_out_and_sampled_where_there_is_one(campaign: Campaign, monkeypatch) -> None:
    volume = add(campaign, "phantom")
    clean = patches.volume_reader(campaign.volumes, volume)

    def striped(_campaign: Campaign, _volume: VolumeRecord) -> Callable[[Box], np.ndarray]:
        def read(box: Box) -> np.ndarray:
            y, x = (np.arange(o, o + n) for o, n in zip(box.offset_zyx[1:], box.shape_zyx[1:], strict=True))
            lines = 600 * np.random.default_rng(3).normal(size=128)[y][:, None] * (x < 64)
            return clean(box) + lines.astype(np.float32)

        return read

    monkeypatch.setattr(patches, "volume_reader", striped)
    held = [b for b in starting_patches.draw_holdout(campaign).all_boxes if b.stratum == "artifact"]
    assert {b.part for b in held} == {"validation", "test"}
    started = [p for p in starting_patches.starting_patches(campaign, 7) if p.stratum == "artifact"]
    for box, reason in [(b.box, b.reason) for b in held] + [(p.box, p.reason) for p in started]:
        assert box.offset_zyx[2] < 64
        assert "stripes" in (reason or "") or box.stop_zyx[2] > 64, "where they end there is a seam"
    assert started


def test_the_expected_patch_is_about_the_one_that_is_fixed(campaign: Campaign, images: list[Box]) -> None:
    assert expected_shapes(campaign) == {}
    add(campaign, "fib25")
    expected = expected_shapes(campaign)["a"]
    assert images == []
    fixed = starting_patches.draw_holdout(campaign).patch_zyx
    assert fixed is not None
    assert math.prod(expected) == pytest.approx(math.prod(fixed["a"]), rel=0.5)
    assert expected_shapes(campaign) == fixed
