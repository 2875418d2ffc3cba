"""Cellpose's planes, flows and network: what is learned, what is not, and that turning a volume turns what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cellpose", reason="the extra 'cellpose' is not installed")

from cellpose.dynamics import compute_masks, masks_to_flows

from rescueseg.campaign import Campaign
from rescueseg.config import InferenceConfig, TrainingConfig
from rescueseg.delivery.objects import objects_of_box
from rescueseg.errors import ConfigError
from rescueseg.evaluation.instances import compare_instances
from rescueseg.geometry import Box
from rescueseg.models.cellpose.network import FLOW_SCALE, CellposeNetwork, build_network, set_weights
from rescueseg.models.cellpose.plan import CellposePlan, make_plan, outline, plan_training, working_spacing
from rescueseg.models.cellpose.planes import PlaneSet, apply_warp, draw_warp, margin_of
from rescueseg.models.cellpose.predictor import FLOWS, CellposePredictor
from rescueseg.models.cellpose.sections import cut_warnings, measure_diameter, median_width, section_diameters
from rescueseg.models.cellpose.targets import FlowLoss, decode_flows, plane_flows
from rescueseg.models.cellpose.trainer import CellposeTrainer
from rescueseg.models.files import read_model
from rescueseg.models.survey import Survey
from rescueseg.models.trainer import TrainedModel, TrainingRequest, ignore_progress
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import Snapshot
from tests.touching_balls import rule_of
from tests.training_rig import BOXES, make_campaign, make_snapshot

SIDE = 40


def plan_of(axes: tuple[int, ...] = (0, 1, 2), **changes: Any) -> CellposePlan:
    fields: dict[str, Any] = {
        "in_channels": 1, "channels": (4, 8, 16), "dropout": 0.3, "diameter_um": 2.0, "axes": axes,
        "spacing_um_zyx": (0.2, 0.2, 0.2), "side": 16, "inference_window_zyx": (8, 16, 16), "batch_size": 6,
        "iterations": 2, "learning_rate": 1e-3,
    }  # fmt: skip
    return CellposePlan(**fields | changes)


def touching_balls() -> np.ndarray:
    """Return three balls that touch, and one apart, on a grid of equal spacing."""
    places = np.indices((SIDE, SIDE, SIDE)).reshape(3, -1).T
    centres = np.array([(12, 11, 11), (12, 11, 24), (14, 23, 17), (29, 29, 28)])
    distances = np.linalg.norm(places[:, None] - centres, axis=2)
    numbers = np.where(distances.min(axis=1) <= 6.8, distances.argmin(axis=1) + 1, 0)
    return numbers.reshape(SIDE, SIDE, SIDE)


def discs() -> tuple[np.ndarray, np.ndarray]:
    """Return one plane with a whole disc, one beside unlabelled pixels and one at the edge, and which pixels nobody labelled."""
    y, x = np.ogrid[:30, :60]
    objects = np.zeros((1, 30, 60), np.int32)
    for number, centre in enumerate(((15, 15), (15, 38), (0, 55)), start=1):
        objects[0][(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= 36] = number
    unlabelled = np.zeros(objects.shape, bool)
    unlabelled[0, :, 42:48] = True
    return objects, unlabelled


# targets --------------------------------------------------------------------------------------------------------------


def test_flows_are_those_of_the_library_where_sections_are_whole() -> None:
    balls = touching_balls()
    nothing = np.zeros(balls.shape, bool)
    whole = masks_to_flows(balls)  # of planes of three orientations, added up
    own = np.zeros_like(whole)
    for axis in range(3):
        flows = 2 * plane_flows(balls, nothing, axis) - 1
        for flow, along in zip(flows, (a for a in range(3) if a != axis), strict=True):
            own[along] += np.where(flow < -1.5, 0, flow)
    np.testing.assert_allclose(own, whole, atol=1e-5)


def test_a_section_that_is_cut_has_no_flow_but_is_a_cell() -> None:
    objects, unlabelled = discs()
    first, second = plane_flows(objects, unlabelled, 0)[:, 0]
    assert (first[objects[0] == 1] >= 0).mean() > 0.98, "all but its middle"
    assert first[15, 11] == pytest.approx(0.5, abs=0.01)
    assert second[15, 11] == pytest.approx(1, abs=0.01)
    for number in (2, 3):
        assert (first[objects[0] == number] == -1).all()
    assert (first[(objects[0] == 0) & ~unlabelled[0]] == 0.5).all()
    assert (first[unlabelled[0]] == -1).all()


def test_what_stands_where_nobody_labelled_changes_nothing() -> None:
    objects, unlabelled = discs()
    other = np.where(unlabelled, np.random.default_rng(0).integers(0, 9, objects.shape), objects)
    for axis in range(3):
        np.testing.assert_array_equal(plane_flows(objects, unlabelled, axis), plane_flows(other, unlabelled, axis))


def test_the_loss_is_that_of_cellpose_and_blind_to_what_is_not_known() -> None:
    from cellpose.train import _loss_fn_seg

    rng = np.random.default_rng(1)
    said = torch.tensor(rng.normal(size=(2, 3, 8, 8)), dtype=torch.float32, requires_grad=True)
    labels, flows = torch.tensor(rng.integers(0, 2, (2, 8, 8))), torch.tensor(rng.uniform(-1, 1, (2, 2, 8, 8))).float()
    theirs = _loss_fn_seg(torch.cat([labels[:, None].float(), flows], dim=1).numpy(), said, torch.device("cpu"))
    assert FlowLoss()(said, labels, flows).item() == pytest.approx(theirs.item(), rel=1e-5)
    labels[0], flows[1, :, :4] = 255, torch.nan
    FlowLoss()(said, labels, flows).backward()
    assert said.grad is not None
    assert (said.grad[0, 2] == 0).all()
    assert (said.grad[1, :2, :4] == 0).all()
    assert (said.grad[1, 2] != 0).all()
    assert FlowLoss()(said, torch.full_like(labels, 255), torch.full_like(flows, torch.nan)).item() == 0


@pytest.mark.parametrize("key", range(8))
def test_flows_turn_with_their_plane(key: int) -> None:
    side, warp = 32, draw_warp(key)
    (first, second), size = margin_of(warp, 32), 32 + 2 * 24
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = ((y - 4) ** 2 + (x + 5) ** 2 <= 64).astype(np.int32)[None]
    whole = np.concatenate([disc, plane_flows(disc, np.zeros(disc.shape, bool), 0)[:, 0]]).astype(np.float32)
    inner = (slice(24 - first, size - 24 + first), slice(24 - second, size - 24 + second))
    label = torch.from_numpy(whole[(slice(None), *inner)].copy())
    image, labels, flows = apply_warp(warp, label[:1], label, side)
    assert image.shape == (1, side, side)
    inside = (labels == 1) & torch.isfinite(flows[0])
    assert inside.sum() > 60
    places = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 2, indexing="ij"))
    middle = np.linalg.solve(warp, [4, -5]) + (side - 1) / 2
    ways = torch.tensor(middle).float().view(2, 1, 1) - places
    far = inside & (ways.norm(dim=0) > 3)
    agreement = (flows * ways / ways.norm(dim=0))[:, far].sum(dim=0)
    assert agreement.min() > 0.8
    assert agreement.mean() > 0.97
    assert torch.allclose(flows.norm(dim=0)[inside], torch.ones(int(inside.sum())), atol=1e-4)


def test_planes_of_a_step_follow_from_its_key_and_are_of_every_orientation(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="cellpose")
    data = PlaneSet(campaign.volumes, make_snapshot(campaign, BOXES), plan_of(spacing_um_zyx=(0.1, 0.1, 0.1)))
    first, again, other = (data.batch(*key) for key in ((3, 0), (3, 0), (3, 1)))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert (first.images.shape, first.labels.shape, first.flows.shape) == (
        (6, 1, 16, 16),
        (6, 16, 16),
        (6, 2, 16, 16),
    )
    assert (first.flows[:, 0][first.labels == 255].isnan()).all()
    assert (first.flows[:, 0][first.labels == 0] == 0).all()
    assert any(len(set(x.unique().tolist()) & {0, 1}) == 2 for x in first.labels)


# plan -----------------------------------------------------------------------------------------------------------------


def test_the_working_spacing_follows_from_the_objects(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="cellpose")
    snapshot = make_snapshot(campaign, BOXES)
    measured = measure_diameter(campaign.volumes, snapshot)
    assert measured == pytest.approx(1.6 * 3**0.5 / 2, rel=0.2), "the median section of balls, most of which are cut"
    plan = plan_training(campaign.config, campaign.volumes, snapshot)
    assert (plan.diameter_um, plan.axes, plan.window_zyx) == (measured, (0, 1, 2), (32, 32, 32))
    assert outline(campaign.config, campaign.volumes, snapshot).window_zyx == plan.window_zyx
    wider = make_campaign(tmp_path / "wider", trainer="cellpose", cellpose={"diameter_um": 3.6})
    plan = plan_training(wider.config, wider.volumes, make_snapshot(wider, BOXES))
    assert plan.spacing_um_zyx == pytest.approx((0.3, 0.3, 0.3))
    named = make_campaign(tmp_path / "named", trainer="cellpose", spacing_um_zyx=(0.3, 0.2, 0.2))
    plan = plan_training(named.config, named.volumes, make_snapshot(named, BOXES))
    assert plan.spacing_um_zyx == (0.3, 0.2, 0.2)


def test_patches_smaller_than_the_objects_do_not_make_these_small() -> None:
    y, x = np.mgrid[:400, :400] % 40 - 20
    objects = ((np.arange(400)[:, None] // 40 * 10 + np.arange(400) // 40 + 1) * (y**2 + x**2 <= 324))[None]
    widths, cuts = [], []
    for corner in np.random.default_rng(0).integers(0, 374, (60, 2)):
        patch = objects[:, corner[0] : corner[0] + 26, corner[1] : corner[1] + 26]
        found, cut = section_diameters(patch, np.zeros(patch.shape, bool), (1.0, 1.0, 1.0), 0)
        widths, cuts = [*widths, *found], [*cuts, *cut]
    assert sum(cuts) > 0.9 * len(cuts)
    assert 24 < median_width(np.array(widths), np.array(cuts)) < 40


def test_patches_that_show_no_whole_object_are_told_of(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="cellpose", iterations=1)
    boxes = [Box((z, y, x), (3, 6, 6)) for z in range(2, 20, 6) for y in range(0, 90, 12) for x in range(0, 90, 12)]
    assert cut_warnings(campaign.volumes, make_snapshot(campaign, BOXES)) == []
    model = train(campaign, make_snapshot(campaign, boxes), tmp_path / "work")
    assert "annotate larger patches" in model.warnings[0]


def test_spacings_that_are_near_stay() -> None:
    assert working_spacing((0.25, 0.2, 0.2), 0.22, (0, 1, 2)) == (0.25, 0.2, 0.2)
    assert working_spacing((0.5, 0.2, 0.2), 0.05, (0, 1, 2)) == (0.2, 0.2, 0.2)
    assert working_spacing((0.1, 0.4, 0.1), 0.2, (1,)) == (0.2, 0.4, 0.2)


@pytest.mark.parametrize(("axes", "multiple"), [((0, 1, 2), (8, 8, 8)), ((1,), (8, 1, 8))])
def test_windows_are_multiples_of_the_strides(axes: tuple[int, ...], multiple: tuple[int, int, int]) -> None:
    survey = Survey(1, spacing_um_zyx=(0.2, 0.2, 0.2), volume_zyx=(20, 90, 90), field_zyx=(20, 50, 50))
    plan = make_plan(TrainingConfig.model_validate({}), survey, 2.0, axes)
    assert plan.multiple_zyx == multiple
    assert all(n % m == 0 for n, m in zip(plan.inference_window_zyx, multiple, strict=True))
    assert plan.side == 56
    assert plan.square == (axes != (1,))


def test_one_level_is_no_network() -> None:
    survey = Survey(1, spacing_um_zyx=(0.2, 0.2, 0.2), volume_zyx=(20, 90, 90), field_zyx=(20, 50, 50))
    with pytest.raises(ConfigError, match="too few levels"):
        make_plan(TrainingConfig.model_validate({"cellpose": {"channels": [8]}}), survey, 2.0, (0, 1, 2))


# network and predictor ------------------------------------------------------------------------------------------------


def trained_a_little(plan: CellposePlan) -> CellposeNetwork:
    """Return a network whose normalisations have seen data, in evaluation mode."""
    network = build_network(plan, 5)
    for step in range(3):
        network(torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(step)))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("axes", [(0, 1, 2), (0,), (2,)])
def test_a_window_is_the_mean_of_cellposes_network_on_its_planes(axes: tuple[int, ...]) -> None:
    network = trained_a_little(plan_of(axes))
    windows = torch.randn(2, 1, 8, 16, 24, generator=torch.Generator().manual_seed(9))
    found = network.head(network.features(windows), None)
    assert found.shape == (2, 4, 8, 16, 24)
    total, count = torch.zeros_like(found), torch.zeros(4)
    for axis in axes:
        channels = [*(a for a in range(3) if a != axis), 3]
        count[channels] += 1
        for n, index in np.ndindex(2, windows.shape[2 + axis]):
            said = network.cpnet(windows[n].select(1 + axis, index)[None])[0][0]
            for channel, values in zip(channels, said, strict=True):
                total[n, channel].select(axis, index).add_(values)
    assert torch.allclose(found, total / count.clamp(min=1).view(1, 4, 1, 1, 1), atol=1e-4)


@pytest.mark.parametrize("axes", [(0, 1, 2), (0,)])
def test_each_symmetry_says_what_the_turned_window_says(axes: tuple[int, ...]) -> None:
    plan = plan_of(axes, dropout=0.0)
    predictor = CellposePredictor(
        [trained_a_little(plan)], plan, InferenceConfig(mc_samples=1, tta_symmetries=16), "cpu"
    )
    plain = CellposePredictor([trained_a_little(plan)], plan, InferenceConfig(mc_samples=1, tta_symmetries=1), "cpu")
    windows = np.random.default_rng(0).normal(size=(1, 1, 8, 16, 16)).astype(np.float32)
    members = list(predictor.members(windows, [1]))
    assert len(members) == len(predictor.symmetries) == 16
    for (_, member), symmetry in zip(members, predictor.symmetries, strict=True):
        turned = symmetry.apply(torch.from_numpy(windows)).contiguous().numpy()
        [(_, alone)] = plain.members(turned, [1])
        assert torch.allclose(member["flow"], symmetry.invert(alone["flow"], FLOWS), atol=1e-4)
        assert torch.allclose(member["probability"], symmetry.invert(alone["probability"]), atol=1e-4)


def train(campaign: Campaign, snapshot: Snapshot, folder: Path, **more: Any) -> TrainedModel:
    request = TrainingRequest(campaign.config, campaign.volumes, campaign.holdout(), snapshot, folder, 3, **more)
    return CellposeTrainer().train(request, ignore_progress)


def test_its_flows_part_what_it_has_learned(tmp_path: Path) -> None:
    from rescueseg.models.registry import load_predictor
    from rescueseg.records import ModelReference
    from rescueseg.volumes import open_image, open_truth
    from rescueseg.volumes.normalise import normalise

    campaign = make_campaign(tmp_path, trainer="cellpose", iterations=150)
    model = train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work")
    for file in model.path.iterdir():
        campaign.storage.write_bytes(f"model/{file.name}", file.read_bytes())
    reference = ModelReference(generation=0, trainer="cellpose", path="model", digest=model.digest)
    config = InferenceConfig(mc_samples=2, tta_symmetries=2, window_zyx=(48, 96, 96))
    predictor = load_predictor(campaign.storage, reference, config, "cpu")
    image = normalise(np.asarray(open_image(campaign.volumes, "v0")[...]), campaign.volumes.record("v0").normalisation)
    members = [member for _, member in predictor.members(image[None], [1])]
    maps = {name: np.mean([np.asarray(m[name][0]) for m in members], axis=0) for name in ("probability", "flow")}
    mask = (maps["probability"][1] > 0.5).astype(np.uint8)
    truth = np.asarray(open_truth(campaign.volumes, "v0", instances=True)[...])
    objects = objects_of_box(
        mask, maps, rule_of(ObjectRule(source="flow", depth=0.1, smallest_um3=0.2)), (0.2, 0.1, 0.1)
    )
    pairs = compare_instances(objects, truth)
    assert pairs.matched[0] >= 0.7 * pairs.true
    lengths = np.linalg.norm(maps["flow"], axis=0)
    assert lengths[truth > 0].mean() > 3 * lengths[truth == 0].mean()


def test_an_ensemble_and_a_warm_start(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "a", trainer="cellpose", iterations=2, members=2)
    snapshot = make_snapshot(campaign, BOXES)
    first = train(campaign, snapshot, tmp_path / "first")
    warm = train(campaign, snapshot, tmp_path / "warm", warm_start=first.path)
    assert (first.iterations, warm.iterations, warm.warnings) == (4, 4, ())
    other = make_campaign(
        tmp_path / "b", trainer="cellpose", iterations=2, cellpose={"channels": [8, 16], "diameter_um": 3.0}
    )
    scratch = train(other, make_snapshot(other, BOXES), tmp_path / "scratch", warm_start=first.path)
    assert scratch.warnings == ("trained from scratch: the model to start from has another training.cellpose.channels",)
    model = read_model(scratch.path)
    assert model is not None
    assert CellposePlan.model_validate(model.description["plan"]).diameter_um == 3.0
    with pytest.raises(ValueError, match="another architecture"):
        set_weights(build_network(plan_of(), 0), build_network(plan_of(channels=(8, 16)), 0).state_dict())


# objects --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_objects_are_those_that_cellpose_makes_of_the_same_flows(noise: float) -> None:
    balls = touching_balls()
    flow = masks_to_flows(balls) / 2 + noise * np.random.default_rng(0).normal(size=(3, *balls.shape))
    flow = flow.astype(np.float32)
    rule = rule_of(ObjectRule(source="flow", farthest_um=3.0, depth=1.0))
    own = objects_of_box((balls > 0).astype(np.uint8), {"flow": flow}, rule, (1.0, 1.0, 1.0))
    theirs, _ = compute_masks(FLOW_SCALE * flow, np.where(balls > 0, 1.0, -1.0), do_3D=True)
    for objects in (own, theirs):
        pairs = compare_instances(objects, balls)
        assert (pairs.found, pairs.matched[0]) == (4, 4)
        assert pairs.iou > 4 * 0.97
    assert compare_instances(own, theirs).iou > 4 * 0.97


def test_decoded_targets_are_not_known_where_they_were_not() -> None:
    targets = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    assert decode_flows(targets)[1:].tolist() == [-1.0, 0.0, 1.0]
    assert decode_flows(targets)[0].isnan()
