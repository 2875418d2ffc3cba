"""What members say of objects becomes their numbering, and the disagreement is the one computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rescueseg.config import ClusterConfig
from rescueseg.errors import InferenceError
from rescueseg.geometry import Box
from rescueseg.inference import engine
from rescueseg.inference.engine import infer_volume
from rescueseg.inference.maps import OBJECT_DISAGREEMENT, VolumeMaps
from rescueseg.inference.member_objects import MemberObjects
from rescueseg.models.predictor import AXES, Group, Output, class_probabilities
from rescueseg.services.dask_cluster import open_cluster
from tests import trivial_predictors
from tests.block_rig import MODEL, SHAPE, make_campaign

SPACING = (0.4, 0.2, 0.2)
WINDOW = (12, 24, 48)
RADIUS_UM = 2.0
MIDDLES_UM = ((2.2, 2.4, 2.8), (2.2, 2.4, 6.2))
"""The balls touch over a disc, so that a member can take them for one object."""

FLOW = Output(name="flow", channels=3, kind="flow", directions=AXES)
BORDER = Output(name="border_distance", channels=1, kind="distance")
Member = dict[str, torch.Tensor]


def places() -> np.ndarray:
    """Return where each voxel lies, in micrometre, (3, z, y, x)."""
    return np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(WINDOW, SPACING, strict=True)), indexing="ij"))


def depth_in(middle: tuple[float, ...]) -> np.ndarray:
    """Return how deep each voxel lies in a ball; negative outside."""
    return RADIUS_UM - np.linalg.norm(places() - np.asarray(middle)[:, None, None, None], axis=0)


def balls() -> np.ndarray:
    first, second = map(depth_in, MIDDLES_UM)
    return np.where(np.maximum(first, second) <= 0, 0, np.where(first >= second, 1, 2))


def to_point(middle: tuple[float, ...]) -> np.ndarray:
    toward = np.asarray(middle)[:, None, None, None] - places()
    return np.asarray(toward / np.maximum(np.linalg.norm(toward, axis=0), 1e-6))


def member(outside: float = 0.0, **others: np.ndarray) -> Member:
    """Return what a member says of one window; `outside` is its probability of background in the balls."""
    background = np.where(balls() > 0, outside, 1.0)
    said = {"probability": np.stack([background, 1 - background])} | others
    return {name: torch.from_numpy(np.asarray(values, np.float32))[None] for name, values in said.items()}


def flow_members() -> tuple[Member, Member]:
    """Return a member whose flow leads to the middles of both balls, and one whose flow leads to the point between."""
    numbers, between = balls(), tuple(np.mean(MIDDLES_UM, axis=0))
    parted = np.where(numbers == 1, to_point(MIDDLES_UM[0]), to_point(MIDDLES_UM[1])) * (numbers > 0)
    return member(flow=parted), member(flow=to_point(between) * (numbers > 0))


def border_members() -> tuple[Member, Member]:
    """Return a member whose distance falls to nothing between the balls, and one whose distance rises to there."""
    inside = balls() > 0
    parted = np.maximum(*map(depth_in, MIDDLES_UM)) * inside
    between = np.linalg.norm(places() - np.mean(MIDDLES_UM, axis=0)[:, None, None, None], axis=0)
    return member(border_distance=parted[None]), member(border_distance=((6.0 - between) * inside)[None])


def disagree(outputs: list[Output], members: list[tuple[Group, Member]]) -> np.ndarray:
    objects = MemberObjects([class_probabilities(1), *outputs], SPACING)
    for group, said in members:
        objects.add(group, said)
    [found] = objects.disagreement().numpy()
    return np.asarray(found)


def merged_against_parted(numbers: np.ndarray) -> np.ndarray:
    """Return 1 − IoU by hand, of one pair of members: each ball is its share of the merged object."""
    voxels = np.bincount(numbers.reshape(-1))
    return np.where(numbers > 0, 1 - voxels[numbers] / voxels[1:].sum(), 0)


@pytest.mark.parametrize(("output", "make"), [(FLOW, flow_members), (BORDER, border_members)], ids=["flow", "border"])
def test_balls_that_one_symmetry_parts_and_another_joins(output: Output, make: Any) -> None:
    parted, merged = make()
    found = disagree([output], [(Group(0, 0), parted), (Group(0, 1), merged)])
    # both voxels where the balls touch may go to either of them
    np.testing.assert_allclose(found, merged_against_parted(balls()), atol=0.01)
    assert found[balls() > 0].min() > 0.45
    three = disagree([output], [(Group(0, 0), parted), (Group(0, 1), merged), (Group(1, 0), merged)])
    np.testing.assert_allclose(three, 2 / 3 * found, atol=1e-6)
    assert not disagree([output], [(Group(0, 0), parted), (Group(0, 1), parted)]).any()


def test_dropout_samples_are_members_where_they_differ_in_objects() -> None:
    parted, merged = border_members()
    found = disagree([BORDER], [(Group(0, 0), parted), (Group(0, 0), merged)])
    assert found[balls() > 0].min() > 0.45


def test_samples_that_say_the_same_of_objects_are_one_member_with_their_mean_foreground() -> None:
    shared = BORDER.model_copy(update={"sampled": False})
    parted, _ = border_members()
    surely, hardly = parted, member(outside=0.9) | {"border_distance": parted["border_distance"]}
    once = [(Group(0, 0), surely), (Group(0, 0), hardly)]
    assert not disagree([shared], [*once, (Group(0, 1), surely)]).any(), "of 0 and 0.9 the mean is 0.45: foreground"
    missed = disagree([shared], [*once, (Group(0, 0), hardly), (Group(0, 1), surely)])
    np.testing.assert_array_equal(missed, (balls() > 0).astype(np.float32)), "0.6 is background: present in one alone"
    with pytest.raises(InferenceError, match="one member alone"):
        disagree([shared], once)


def test_polyhedra_at_peaks() -> None:
    pytest.importorskip("stardist", reason="the extra 'stardist' is not installed")
    from rescueseg.models.polyhedra import star_directions

    rays = star_directions(66)
    outputs = [
        Output(name="object_probability", channels=1, kind="share", sampled=False),
        Output(
            name="star_distance", channels=66, kind="distance", at_peaks_of="object_probability", sampled=False,
            directions=tuple((float(z), float(y), float(x)) for z, y, x in rays),
        ),
    ]  # fmt: skip
    numbers, between = balls(), np.mean(MIDDLES_UM, axis=0)
    to_middle = places() - np.where(numbers == 1, *(np.asarray(m)[:, None, None, None] for m in MIDDLES_UM))
    along = np.einsum("rc,czyx->rzyx", rays, to_middle)
    lengths = -along + np.sqrt(np.maximum(along**2 + RADIUS_UM**2 - (to_middle**2).sum(axis=0), 0))  # to the sphere
    parted = member(
        object_probability=np.maximum(*map(depth_in, MIDDLES_UM))[None].clip(0) / RADIUS_UM, star_distance=lengths
    )
    far = np.linalg.norm(places() - between[:, None, None, None], axis=0)
    whole = np.full((66, *WINDOW), 6.0)
    merged = member(object_probability=(1 - far / 10)[None] * (far < 1), star_distance=whole)
    found = disagree(outputs, [(Group(0, 0), parted), (Group(0, 1), merged)])
    np.testing.assert_allclose(found, merged_against_parted(numbers), atol=0.02)
    half = parted | {"object_probability": parted["object_probability"] * 0.3}
    lost = disagree(outputs, [(Group(0, 0), parted), (Group(0, 1), half)])
    assert (lost[numbers > 0] > 0.99).mean() > 0.99, "peaks of 0.3 propose nothing: present in one member alone"


# the map of a volume ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Cut even small volumes into several blocks; no predictor outlives its test."""
    monkeypatch.setattr(engine, "choose_chunks", lambda shape: ((8, 16, 16), (8, 16, 16)))
    engine._predictor.cache_clear()
    engine._context.cache_clear()
    yield
    engine._predictor.cache_clear()


def infer(campaign: Any, predictor: str = "objects", *, asked: bool = True, **options: Any) -> Any:
    load = getattr(trivial_predictors, predictor)
    return infer_volume(campaign, MODEL, "v", load=load, object_disagreement=asked, **options)


def read(campaign: Any, quantity: str = OBJECT_DISAGREEMENT) -> np.ndarray:
    return np.asarray(VolumeMaps(campaign.generation(0), "v").open(quantity)[:])


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    campaign = make_campaign(tmp_path_factory.mktemp("one") / "campaign")
    assert infer(campaign).blocks == 1
    found = read(campaign)
    assert found.shape == SHAPE
    assert found.std() > 0.1, "it is constant: the tests would prove nothing"
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    return found


def test_many_blocks_killed_on_the_way_give_the_map_of_one_block(tmp_path: Path, one_block: np.ndarray) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done == 5:
            raise Killed

    campaign = make_campaign(tmp_path / "campaign", block_voxels=20_000)
    with pytest.raises(Killed):
        infer(campaign, progress=kill)
    seen: list[int] = []
    reference = infer(campaign, progress=lambda done, total: seen.append(done))
    assert reference.blocks > 10
    assert seen[0] == 5
    np.testing.assert_allclose(read(campaign), one_block, atol=1e-5)


def test_two_workers_of_which_one_is_killed_give_the_map_of_one_block(tmp_path: Path, one_block: np.ndarray) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    with open_cluster(ClusterConfig(workers=2)) as client:
        infer(campaign, "objects_die_once", client=client)
    assert Path(campaign.storage.path("died")).exists()
    np.testing.assert_allclose(read(campaign), one_block, atol=1e-5)


def test_maps_are_found_again_whoever_asks_for_less(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    plain = infer(campaign, asked=False)
    plan = VolumeMaps(campaign.generation(0), "v").plan()
    assert plan is not None
    assert "object_disagreement" not in plan.to_json(), "digests of maps without it are those of earlier versions"
    assert OBJECT_DISAGREEMENT not in plain.quantities
    more = infer(campaign)
    assert more.quantities == (*plain.quantities[:5], OBJECT_DISAGREEMENT, *plain.quantities[5:])
    assert more.digest != plain.digest
    before = read(campaign)
    seen: list[int] = []
    assert infer(campaign, asked=False, progress=lambda done, total: seen.append(done)) == more
    assert seen == [more.blocks], "nothing is computed, and nothing removed"
    np.testing.assert_array_equal(read(campaign), before)
    job = replace(engine.InferenceJob.of(campaign, MODEL, "v"), load=trivial_predictors.objects)
    box = Box((2, 8, 40), (6, 12, 20))
    [predicted] = engine.predict_boxes(job, [box])
    assert OBJECT_DISAGREEMENT not in predicted, "nobody asked for it"
    [predicted] = engine.predict_boxes(replace(job, object_disagreement=True), [box])
    np.testing.assert_allclose(predicted[OBJECT_DISAGREEMENT], before[box.slices], atol=1e-5)


def test_other_maps_are_the_same_with_and_without(tmp_path: Path) -> None:
    one, other = (make_campaign(tmp_path / name) for name in ("with", "without"))
    for quantity in infer(other, asked=False).quantities:
        if quantity == "probability":
            infer(one)
        np.testing.assert_array_equal(read(one, quantity), read(other, quantity))


def test_a_model_without_objects_and_a_single_member_are_refused(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign")
    with pytest.raises(InferenceError, match="tells no objects apart"):
        infer(campaign, "blur")
    alone = make_campaign(tmp_path / "alone", tta_symmetries=1, mc_samples=1)
    with pytest.raises(InferenceError, match="tta_symmetries to 2"):
        infer(alone)
    assert VolumeMaps(alone.generation(0), "v").reference() is None
