"""What StarDist learns is what its own functions measure, cut rays are only least lengths, and its maps make whole objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rescueseg.config import InferenceConfig
from rescueseg.delivery.objects import objects_of_box
from rescueseg.errors import ConfigError
from rescueseg.evaluation.instances import compare_instances
from rescueseg.geometry import Box
from rescueseg.inference.engine import infer_volume
from rescueseg.inference.maps import VolumeMaps
from rescueseg.models.polyhedra import star_directions
from rescueseg.models.registry import get_trainer
from rescueseg.models.stardist.losses import StarObjective, _at_voxels
from rescueseg.models.stardist.plan import StarDistPlan, make_stardist_plan
from rescueseg.models.stardist.predictor import StarDistPredictor
from rescueseg.models.stardist.targets import RayTracer, star_targets
from rescueseg.models.survey import Survey
from rescueseg.models.trainer import TrainingRequest, ignore_progress
from rescueseg.models.training_items import measure_objects
from rescueseg.models.unet.network import build_network
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import Holdout, HoldoutBox, ModelReference
from rescueseg.voxels.peaks import find_peaks
from tests.touching_balls import SHAPE, SPACING, rule_of, truth
from tests.training_rig import BOXES, make_campaign, make_snapshot

stardist = pytest.importorskip("stardist", reason="the extra 'stardist' is not installed")
NOTHING = np.zeros(SHAPE, np.bool_)
INSIDE = ((False, False),) * 3
"""A patch that ends nowhere with its volume."""


def small_plan(rays: int = 18, **changes: object) -> StarDistPlan:
    settings = make_settings(rays)
    survey = Survey(in_channels=1, spacing_um_zyx=SPACING, volume_zyx=SHAPE, field_zyx=(8, 32, 32))
    plan = make_stardist_plan(settings, survey, 1, radius_um=2.0, whole_seen=True)
    return plan.model_copy(update=changes)


def make_settings(rays: int):  # type: ignore[no-untyped-def]
    from rescueseg.config import check_config

    table = {"channels": [4, 8, 16], "rays": rays}
    training = {"trainer": "stardist", "window_zyx": [8, 32, 32], "iterations": 10, "stardist": table}
    return check_config({"name": "n", "classes": ["ball"], "annotation": {"labels": "instance"}, "training": training})


def test_the_probability_is_that_of_stardist_where_objects_are_whole() -> None:
    from stardist import edt_prob

    balls = truth().astype(np.int32)
    probability, numbers = star_targets(whole_seen=True)(balls, NOTHING, SPACING, INSIDE)
    known = probability >= 0
    np.testing.assert_array_equal(numbers, balls)
    np.testing.assert_allclose(probability[known], edt_prob(balls, anisotropy=SPACING)[known], atol=1e-5)
    assert known.mean() > 0.99


def test_what_is_cut_is_not_known_and_labels_under_the_unknown_change_nothing() -> None:
    balls = truth().astype(np.int32)
    unlabelled = NOTHING.copy()
    unlabelled[:, :, :18] = True  # more than half of the first ball
    make = star_targets(whole_seen=True)
    probability, numbers = make(balls, unlabelled, SPACING, INSIDE)
    first = balls[10, 15, 15]
    assert first > 0
    assert (probability[balls == first] < 0).all(), "of its largest ball too little is seen"
    assert (numbers[unlabelled] == -1).all()
    assert (probability[unlabelled] == -1).all()
    other = balls.copy()
    other[unlabelled] = 77
    for one, two in zip((probability, numbers), make(other, unlabelled, SPACING, INSIDE), strict=True):
        np.testing.assert_array_equal(one, two)
    as_if_whole = star_targets(whole_seen=False)(balls, unlabelled, SPACING, INSIDE)[0]
    assert (as_if_whole[~unlabelled] >= 0).all()


def test_rays_are_as_long_as_stardist_measures_them() -> None:
    from stardist import star_dist3D
    from stardist.rays3d import Rays_Explicit, Rays_Octo

    balls, rays = truth(), 66
    tracer = RayTracer(torch.from_numpy(star_directions(rays)), SPACING, 2.0)
    octahedron = Rays_Octo(3)
    in_voxels = octahedron.vertices / np.array(SPACING, np.float32)
    per_um = np.linalg.norm(in_voxels, axis=1)
    steps = Rays_Explicit(in_voxels / per_um[:, None], octahedron.faces)
    points = np.argwhere(balls > 0)[::97]
    expected = star_dist3D(balls.astype(np.uint16), steps, mode="cpp")[tuple(points.T)] / per_um
    numbers = torch.from_numpy(balls.astype(np.float32))
    lengths, is_known = tracer.lengths(numbers, torch.from_numpy(points))
    assert is_known.all()
    difference = np.abs(lengths.numpy() + tracer.step_um / 2 - expected)  # StarDist's end in the first voxel outside
    assert np.median(difference) < 0.1, "half a voxel"
    assert np.percentile(difference, 95) < 0.3


def test_a_ray_that_is_cut_is_at_least_so_long() -> None:
    balls = truth().astype(np.float32)
    cut = balls.copy()
    cut[:, :, 15:] = -1
    points = torch.from_numpy(np.argwhere(cut > 0)[::31])
    tracer = RayTracer(torch.from_numpy(star_directions(66)), SPACING, 2.0)
    whole, _ = tracer.lengths(torch.from_numpy(balls), points)
    seen, is_known = tracer.lengths(torch.from_numpy(cut), points)
    assert 0.2 < float((~is_known).float().mean()) < 0.8
    torch.testing.assert_close(seen[is_known], whole[is_known])
    assert (seen[~is_known] <= whole[~is_known] + 1e-6).all()


def logits_of(plan: StarDistPlan, labels: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    """Return logits that say all that is known, as if the network computed all of them at full resolution."""
    probability, numbers = torch.from_numpy(targets)
    tracer = RayTracer(torch.from_numpy(star_directions(plan.rays)), plan.spacing_um_zyx, plan.radius_um)
    points = torch.nonzero(numbers > 0)
    lengths = torch.ones(plan.rays, *labels.shape)
    lengths[:, points[:, 0], points[:, 1], points[:, 2]] = tracer.lengths(numbers, points)[0].T / plan.radius_um
    inside = torch.from_numpy((labels == 1).astype(np.float32)) * 20 - 10
    star = torch.logit(probability.clamp(0, 1), eps=1e-4)
    return torch.cat([-inside[None], inside[None], star[None], torch.log(torch.expm1(lengths))])[None]


def loss_of(objective: StarObjective, logits: torch.Tensor, known: torch.Tensor, seen: torch.Tensor) -> float:
    return float(objective(logits[:, :2], [logits[:, 2:]], known, 0, seen))


def test_the_loss_is_least_where_all_is_right_and_minds_nothing_unknown() -> None:
    plan, balls = small_plan(), truth().astype(np.int32)
    unlabelled = NOTHING.copy()
    unlabelled[:, :, 40:] = True
    labels = np.where(unlabelled, 255, balls > 0).astype(np.int64)
    targets = star_targets(whole_seen=True)(balls, unlabelled, SPACING, INSIDE)
    right, objective = logits_of(plan, labels, targets), StarObjective(plan)
    known, seen = torch.from_numpy(labels)[None], torch.from_numpy(targets)[None]
    least = loss_of(objective, right, known, seen)
    for channel, change in ((1, -30.0), (2, 2.0), (3, 1.0), (9, -1.0)):
        wrong = right.clone()
        wrong[:, channel, :, :, :40] += change
        assert loss_of(objective, wrong, known, seen) > least + 1e-3
        beyond = right.clone()
        beyond[:, channel, :, :, 40:] += change
        assert loss_of(objective, beyond, known, seen) == pytest.approx(least, abs=1e-6)
    longer = right.clone()
    tracer_says = StarObjective(plan).tracer.lengths(seen[0, 1], torch.nonzero(seen[0, 1] > 0))[1]
    assert not tracer_says.all(), "some rays are cut"
    longer[:, 3:] += 0.5
    assert loss_of(objective, longer, known, seen) > least


def test_a_window_without_objects_has_a_loss_and_finite_gradients() -> None:
    plan = small_plan()
    logits = torch.zeros(1, 3 + plan.rays, 8, 32, 32, requires_grad=True)
    targets = torch.zeros(1, 2, 8, 32, 32)
    known = torch.zeros(1, 8, 32, 32, dtype=torch.long)
    StarObjective(plan)(logits[:, :2], [logits[:, 2:]], known, 0, targets).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_what_the_network_says_of_a_turned_window_is_turned_back() -> None:
    """A network that sees no directions at all says the same of every ray; one that is turned must not mix them up."""
    plan = small_plan()
    network = build_network(plan.network, 0)
    predictor = StarDistPredictor([network], plan, InferenceConfig(mc_samples=1, tta_symmetries=16), "cpu")
    rays = predictor.outputs[-1]
    assert len(predictor.symmetries) == 16
    logits = torch.randn(1, 3 + plan.rays, 8, 32, 32)
    for symmetry in predictor.symmetries:
        held = [channel for channel, _ in symmetry.held_by(rays)]
        turned = symmetry.apply(logits[:, 3:])
        as_said = torch.empty_like(turned)
        as_said[:, held] = turned
        torch.testing.assert_close(symmetry.invert(as_said, rays), logits[:, 3:])


def test_too_few_levels_are_refused(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="stardist", iterations=2, stardist={"channels": [8, 16]})
    request = TrainingRequest(
        campaign.config, campaign.volumes, None, make_snapshot(campaign, BOXES), tmp_path / "work", 3
    )
    with pytest.raises(ConfigError, match=r"training\.stardist\.channels: too few levels"):
        get_trainer("stardist").train(request, ignore_progress)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A campaign with a StarDist model of two hundred steps and the maps of its volume."""
    folder = tmp_path_factory.mktemp("stardist")
    campaign = make_campaign(folder, trainer="stardist", iterations=200, checkpoint_every=200)
    request = TrainingRequest(
        campaign.config, campaign.volumes, None, make_snapshot(campaign, BOXES), folder / "work", 3
    )
    model = get_trainer("stardist").train(request, ignore_progress)
    for file in sorted(model.path.iterdir()):
        campaign.storage.write_bytes(f"model/{file.name}", file.read_bytes())
    reference = ModelReference(generation=0, trainer="stardist", path="model", digest=model.digest)
    infer_volume(campaign, reference, "v0")
    return campaign, reference


def test_rays_are_kept_at_the_peaks_alone_and_make_the_balls(predicted) -> None:  # type: ignore[no-untyped-def]
    from rescueseg.volumes import open_truth

    campaign, _ = predicted
    stored = VolumeMaps(campaign.generation(0), "v0")
    names = ("probability", "object_probability", "star_distance")
    maps = {name: np.asarray(array[:]) for name, array in stored.open_several(names).items()}
    kept = (maps["star_distance"] > 0).any(axis=0)
    assert (kept & find_peaks(maps["object_probability"][0])).sum() == find_peaks(maps["object_probability"][0]).sum()
    assert kept.mean() < 0.02
    assert 0 <= maps["object_probability"].min() <= maps["object_probability"].max() <= 1
    mask = maps["probability"].argmax(axis=0).astype(np.uint8)
    record = campaign.volumes.record("v0")
    objects = objects_of_box(mask, maps, rule_of(ObjectRule(source="rays", depth=0.3)), record.spacing_um_zyx)
    numbered = np.asarray(open_truth(campaign.volumes, "v0", instances=True)[:])
    scores = compare_instances(objects.astype(np.int64), numbered.astype(np.int64))
    assert scores.matched[0] >= 0.6 * scores.true, scores


def test_its_evaluation_scores_the_polyhedra_of_the_whole_volume(predicted) -> None:  # type: ignore[no-untyped-def]
    """The figures are those of objects made of the stored maps as a delivery makes them, without boxes and margins."""
    from rescueseg.campaign.stage_results import SNAPSHOT, TRAINING, TrainingResult
    from rescueseg.evaluation.box_objects import ObjectMaker, TrueObjects
    from rescueseg.evaluation.holdout_scores import check_evaluation, score_boxes, stored_maps
    from rescueseg.evaluation.instances import connected_components, renumber_objects
    from rescueseg.evaluation.training_scores import predict_holdout
    from rescueseg.evaluation.truth import holdout_truth
    from rescueseg.stages.evaluate import evaluate

    campaign, reference = predicted
    held = zip(((14, 2, 2), (2, 4, 54), (14, 60, 60), (2, 60, 60)), ("validation", "test") * 2, strict=True)
    boxes = [
        HoldoutBox(volume_id="v0", box=Box(at, (8, 34, 34)), part=part, stratum="dense")  # type: ignore[arg-type]
        for at, part in held
    ]
    campaign.freeze_holdout(Holdout(boxes=tuple(boxes), guard_zyx=(1, 4, 4)))
    campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, BOXES))
    campaign.generation(0).write(TRAINING, TrainingResult(model=reference, iterations=200))
    evaluation = evaluate(campaign, 0).evaluation
    assert evaluation.objects is not None
    rule, spacing = evaluation.objects.rule, campaign.volumes.record("v0").spacing_um_zyx

    names = ("probability", "object_probability", "star_distance")
    stored = VolumeMaps(campaign.generation(0), "v0").open_several(names)
    maps = {name: np.asarray(array[:], np.float32) for name, array in stored.items()}
    mask, truth = maps["probability"].argmax(axis=0).astype(np.uint8), holdout_truth(campaign)
    polyhedra = ObjectRule(source="rays", depth=0.35)
    maker = ObjectMaker(polyhedra, 1, lambda *box: objects_of_box(box[0], box[1], rule_of(polyhedra), box[2]))
    assignment = replace(check_evaluation(campaign, 0), maker=maker)
    of_polyhedra = score_boxes(assignment, stored_maps(campaign.generation(0), assignment))
    found, there = 0, 0
    for made_by, scored in ((rule, evaluation), (polyhedra, of_polyhedra)):
        whole = objects_of_box(mask, maps, rule_of(made_by), spacing)
        for box, frozen in zip(scored.boxes, boxes, strict=True):
            true, context = TrueObjects.of(truth, frozen, lambda labels: labels == 1), truth.context(frozen)
            assert true is not None
            assert box.details[0].instances == true.compare(renumber_objects(whole[context.slices]))
            perfect = connected_components(truth.labels_in(frozen, context) == 1)
            assert box.details[0].ceiling == true.compare(perfect)
            found, there = found + box.details[0].instances.matched[0], there + box.details[0].instances.true
    assert found >= 0.6 * there > 0, (found, there, rule)
    pairs = zip(stored_maps(campaign.generation(0), assignment), predict_holdout(campaign, assignment), strict=True)
    for (_, one, _), (_, two, _) in pairs:  # as a training outside the loop, which has no maps
        assert set(one) == set(two) == set(names)
        np.testing.assert_allclose(one["object_probability"], two["object_probability"], atol=1e-3)
        kept, also = ((m["star_distance"] > 0).any(axis=0) for m in (one, two))
        np.testing.assert_allclose(
            one["star_distance"][:, kept & also], two["star_distance"][:, kept & also], atol=2e-2
        )
        assert (kept & also).sum() > 0.9 * max(kept.sum(), also.sum())


def test_other_blocks_leave_the_same_peaks(predicted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from rescueseg.inference.engine import InferenceJob, infer

    campaign, reference = predicted
    job = InferenceJob.of(campaign, reference, "v0")
    inference = campaign.config.inference.model_copy(update={"block_voxels": 60_000, "forward": "eager"})
    other = replace(job, maps_url=str(tmp_path), inference=inference)
    infer(other)
    assert len(other.maps.blocks()) > len(job.maps.blocks())
    one, two = (
        {name: np.asarray(m.open(name)[:], np.float32) for name in ("object_probability", "star_distance")}
        for m in (job.maps, other.maps)
    )
    np.testing.assert_allclose(one["object_probability"], two["object_probability"], atol=1e-3)
    peaks = find_peaks(one["object_probability"][0]) & find_peaks(two["object_probability"][0])
    np.testing.assert_allclose(one["star_distance"][:, peaks], two["star_distance"][:, peaks], atol=2e-2)
    assert peaks.sum() > 0.9 * find_peaks(one["object_probability"][0]).sum()


def test_coarse_channels_at_a_voxel_are_those_of_the_finer_map() -> None:
    coarse = torch.randn(5, 3, 8, 6)
    fine = torch.nn.functional.interpolate(coarse[None], (3, 16, 12), mode="trilinear")[0]
    points = torch.cartesian_prod(torch.arange(3), torch.arange(16), torch.arange(12))
    torch.testing.assert_close(_at_voxels(coarse, points, (3, 16, 12)), fine.reshape(5, -1).T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("planes", [1, 3, 6])
def test_in_a_thin_stack_the_middle_is_that_of_the_plane(planes: int) -> None:
    """Two discs that touch: seen whole in the plane, cut by the volume's faces alone."""
    y, x = np.mgrid[:40, :60] * 0.2
    discs = np.where(np.hypot(y - 4, x - 3.4) <= 2.4, 1, np.where(np.hypot(y - 4, x - 8.2) <= 2.4, 2, 0))
    objects = np.repeat(discs[None], planes, axis=0).astype(np.int32)
    ends = ((True, True), (False, False), (False, False))
    probability, _ = star_targets(whole_seen=True)(objects, np.zeros(objects.shape, bool), (0.2, 0.2, 0.2), ends)
    plane = probability[planes // 2]
    assert (plane[discs > 0] >= 0).mean() > 0.95
    assert plane[20, 17] > 0.95
    assert plane[20, 41] > 0.95
    assert plane[20, 29] < 0.2, "where they touch"
    np.testing.assert_allclose(probability, np.repeat(plane[None], planes, axis=0), atol=1e-6)


def test_the_radius_in_a_thin_stack_is_that_of_the_plane(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="stardist", iterations=2, spacings=((0.6, 0.1, 0.1),))
    shape = campaign.volumes.record("v0").shape_zyx
    assert shape[0] == 8
    snapshot = make_snapshot(campaign, [Box((0, 0, 0), shape)])
    radius, whole = measure_objects(campaign.volumes, snapshot, (0.6, 0.1, 0.1), beyond_volume=True)
    assert whole
    assert 0.5 < radius < 0.95


def test_every_voxel_of_an_object_has_its_turn() -> None:
    plan = small_plan()
    objective, targets = StarObjective(plan), torch.ones(2, 1, 20, 20)
    seen = torch.zeros(400, dtype=torch.bool)
    objective.tracer.lengths = lambda numbers, points: (  # type: ignore[method-assign]
        seen.__setitem__(points[:, 1] * 20 + points[:, 2], True),
        (torch.ones(len(points), plan.rays), torch.ones(len(points), plan.rays, dtype=torch.bool)),
    )[1]
    for step in range(20):
        objective._rays(torch.zeros(plan.rays, 1, 20, 20), targets, step)
    assert seen.all()


def test_boxes_read_the_same_objects_from_stored_and_from_predicted_maps(predicted) -> None:  # type: ignore[no-untyped-def]
    from rescueseg.delivery.validation import _maps

    campaign, reference = predicted
    boxes = [Box((2, 10, 20), (12, 50, 60)), Box((0, 0, 0), (24, 40, 40))]
    rule = rule_of(ObjectRule(source="rays", depth=0.2))
    spacing = campaign.volumes.record("v0").spacing_um_zyx
    read, predicted_anew = (_maps(campaign, reference, "v0", boxes, stored=stored) for stored in (True, False))
    for stored, anew in zip(read, predicted_anew, strict=True):
        assert stored.keys() == anew.keys() == {"probability", "object_probability", "star_distance"}
        one, two = (
            objects_of_box((maps["probability"][1] > 0.5).astype(np.uint8), maps, rule, spacing)
            for maps in (stored, anew)
        )
        assert (one != two).mean() < 0.002
        assert one.max() == two.max() > 0
