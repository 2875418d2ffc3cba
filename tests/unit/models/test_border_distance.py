"""The border distance: its targets against brute force, what patches hide of it, its loss, and what a training learns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from rescueseg.campaign import Campaign
from rescueseg.config import TrainingConfig
from rescueseg.errors import TrainingError
from rescueseg.evaluation.instances import connected_components
from rescueseg.geometry import Box, partition
from rescueseg.inference.engine import InferenceJob, predict_boxes
from rescueseg.models.border_distance import UNKNOWN, border_distance, choose_cap, inscribed_radii
from rescueseg.models.predictor import BORDER_DISTANCE
from rescueseg.models.survey import Survey
from rescueseg.models.trainer import TrainedModel
from rescueseg.models.training_items import TrainingSet, border_targets, load_item
from rescueseg.models.unet.augment import Augmentation
from rescueseg.models.unet.losses import BORDER_WEIGHT, BorderDistanceLoss, Objective
from rescueseg.models.unet.network import build_network, get_weights, take_over
from rescueseg.models.unet.plan import TrainingPlan, make_plan
from rescueseg.models.unet.trainer import plan_training
from rescueseg.models.unet.warp import Warp
from rescueseg.records import ModelReference
from rescueseg.storage import digest_json
from rescueseg.volumes import open_truth
from tests import ball_pairs
from tests.contracts.test_trainer import publish, train
from tests.training_rig import BOXES, make_campaign, make_snapshot

SPACING = (0.3, 0.1, 0.2)
CAP = 0.45
BEYOND = 6
"""Voxels around a small volume that stand for what lies beyond it: further away than `CAP`."""


@pytest.fixture(params=range(4))
def volume(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of objects that touch, and what nobody labelled: a corner."""
    rng = np.random.default_rng(request.param)
    coarse = rng.choice([0, 3, 4, 9], size=(2, 2, 3))
    objects = coarse.repeat(3, 0).repeat(4, 1).repeat(3, 2)
    unlabelled = np.zeros(objects.shape, bool)
    unlabelled[rng.integers(3, 6) :, rng.integers(3, 7) :, 5:] = True
    return objects, unlabelled


def nearest(mask: np.ndarray, place: np.ndarray) -> float:
    """Return the distance of a voxel to the nearest of a mask, by trying all."""
    return float(min(np.linalg.norm((np.argwhere(mask) - place) * SPACING, axis=1), default=np.inf))


def test_the_target_is_the_distance_to_the_nearest_voxel_of_another_object(
    volume: tuple[np.ndarray, np.ndarray],
) -> None:
    objects, unlabelled = volume
    found = border_distance(objects, unlabelled, SPACING, CAP)
    seen = np.pad(np.where(unlabelled, -1, objects), BEYOND, constant_values=-1)
    assert found.dtype == np.float32
    assert (found[unlabelled] == UNKNOWN).all()
    assert (found[~unlabelled & (objects == 0)] == 0).all()
    known = 0
    for place in np.argwhere(~unlabelled & (objects > 0)):
        value, at = objects[tuple(place)], place + BEYOND
        # what nobody has seen may be all of the same object, or none of it
        most, least = nearest((seen != value) & (seen != -1), at), nearest(seen != value, at)
        if found[tuple(place)] == UNKNOWN:
            assert least < CAP
            assert least == pytest.approx(nearest(seen == -1, at))
        else:
            known += 1
            assert min(most, CAP) == pytest.approx(min(least, CAP))
            assert found[tuple(place)] == pytest.approx(min(least, CAP) / CAP, rel=1e-5)
    assert known > 10


def test_what_a_patch_cuts_off_is_not_learned() -> None:
    whole = np.zeros((9, 20, 20), int)
    whole[2:7, 3:17, 3:17] = 5
    nothing = np.zeros(whole.shape, bool)
    of_all = border_distance(whole, nothing, (1.0, 1.0, 1.0), 3.0)
    patch = np.s_[:, :, 7:]
    of_patch = border_distance(whole[patch], nothing[patch], (1.0, 1.0, 1.0), 3.0)
    known = of_patch != UNKNOWN
    np.testing.assert_array_equal(of_patch[known], of_all[patch][known])
    assert (of_patch[4, 5:15, 0] == UNKNOWN).all(), "the cut is nearer than any border"
    assert of_patch[4, 10, 2] == 1, "three voxels from the cut, as many as count"


def test_radii_of_cut_objects_stand_apart_and_count_where_there_are_no_others() -> None:
    objects = np.zeros((9, 12, 12), int)
    objects[2:7, 2:7, 2:7] = 1
    objects[2:7, 2:9, 9:] = 2
    nothing = np.zeros(objects.shape, bool)
    whole, cut = inscribed_radii(objects, nothing, (0.5, 0.5, 0.5))
    assert (whole, cut) == ([1.5], [1.0])
    assert choose_cap([(whole, cut)], (0.5, 0.5, 0.5)) == 1.5
    assert choose_cap([([], [2.0])], (0.5, 0.5, 0.5)) == 2.0


# loss and network ---------------------------------------------------------------------------------------------------


def test_unknown_distances_have_no_gradient_and_no_say() -> None:
    logit = torch.tensor([[[[0.0, 1.0, -1.0, 2.0]]]], requires_grad=True)
    target = torch.tensor([[[[0.5, -1.0, 0.0, 1.0]]]])
    loss = BorderDistanceLoss()(logit, target)
    loss.backward()
    share = torch.sigmoid(logit.detach()).ravel()
    expected = (((share[0] - 0.5) ** 2 + (share[3] - 1) ** 2) / 2 + share[2] ** 2) / 2
    assert float(loss.detach()) == pytest.approx(float(expected))
    assert logit.grad is not None
    assert logit.grad.ravel()[1] == 0
    assert logit.grad.ravel()[2] > 0
    logit.grad = None
    nothing = BorderDistanceLoss()(logit, torch.full_like(target, -1))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert (logit.grad == 0).all()


def small_plan(border_um: float | None = None) -> TrainingPlan:
    config = TrainingConfig.model_validate({"window_zyx": (8, 32, 32), "unet": {"channels": [8, 16, 32]}})
    survey = Survey(in_channels=1, spacing_um_zyx=(0.2, 0.1, 0.1), volume_zyx=(16, 64, 64), field_zyx=(16, 64, 64))
    return make_plan(config, survey, 2, border_um=border_um)


def test_plans_without_numbered_objects_keep_their_digest() -> None:
    digest = "d6655048c3fd9f177f41dc27e97918c38ba8eab3593a16d68f7e9a753926ea76"
    assert digest_json(small_plan().to_json()) == digest
    plan = small_plan(0.7)
    assert digest_json(plan.to_json()) != digest
    assert TrainingPlan.model_validate(plan.to_json()) == plan
    assert TrainingPlan.model_validate(small_plan().to_json()) == small_plan()


def test_the_distance_is_a_channel_behind_the_classes_which_can_come_later_and_go_again() -> None:
    image = torch.randn(1, 1, 8, 32, 32)
    plain, first, other = (
        build_network(small_plan(cap).network, seed) for cap, seed in ((None, 1), (0.7, 2), (None, 3))
    )
    fresh = first(image)[:, 3:]
    assert first(image).shape == (1, 4, 8, 32, 32)
    take_over(first, get_weights(plain))
    torch.testing.assert_close(first(image)[:, :3], plain(image))
    assert not torch.allclose(first(image)[:, 3:], fresh), "its own last weights, on what the other network sees"
    take_over(other, get_weights(first))
    torch.testing.assert_close(other(image), plain(image))


# trainings ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A model trained on one volume of pairs of balls."""

    campaign: Campaign
    model: TrainedModel
    reference: ModelReference


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("pairs")
    campaign = ball_pairs.make_campaign(root, seeds=(0, 1), iterations=900, checkpoint_every=1000)
    snapshot = make_snapshot(campaign, partition(ball_pairs.SHAPE, (24, 48, 48)))
    model = train(campaign, snapshot, root / "work")
    return Trained(campaign, model, publish(campaign, model))


def test_windows_hold_the_distances_beside_the_classes_and_turn_with_them(trained: Trained) -> None:
    boxes = [Box((0, 0, 0), (24, 48, 48))]
    snapshot = make_snapshot(trained.campaign, boxes, halo=(0, 8, 8))
    plan = plan_training(trained.campaign.config, trained.campaign.volumes, snapshot)
    assert plan.border_um is not None
    item = load_item(trained.campaign.volumes, snapshot.items[0], plan.spacing_um_zyx, border_targets(plan.border_um))
    assert item.targets is not None
    objects = np.asarray(open_truth(trained.campaign.volumes, "v0", instances=True)[:, :56, :56])
    unlabelled = np.ones(objects.shape, bool)
    unlabelled[:, :48, :48] = False
    np.testing.assert_array_equal(
        item.targets[0], border_distance(objects, unlabelled, plan.spacing_um_zyx, plan.border_um)
    )
    data = TrainingSet(trained.campaign.volumes, snapshot, plan, make_targets=border_targets(plan.border_um))
    augment = Augmentation(plan)
    turned = 0
    for step in range(4):
        for image, label in data.batch(1, step):
            assert label.dtype == torch.float32
            assert ((label[1] == UNKNOWN) | ((label[1] > 0) == (label[0] == 1))).all()
            _, moved = augment(image, label.clone(), Warp(plan.window_zyx, np.eye(3)), 1, step)
            assert ((moved[1] == UNKNOWN) | ((moved[1] > 0) == (moved[0] == 1))).all()
            assert torch.equal(moved[1].ravel().sort().values, label[1].ravel().sort().values)
            turned += not torch.equal(moved, label)
    assert turned > 0
    plain = TrainingSet(trained.campaign.volumes, snapshot, plan)
    for (image, label), (same, both) in zip(plain.batch(1, 0), data.batch(1, 0), strict=True):
        assert torch.equal(image, same)
        assert torch.equal(label[0].float(), both[0])


def test_distances_part_objects_that_touch_where_connected_pieces_cannot(trained: Trained) -> None:
    cap = json.loads((trained.model.path / "model.json").read_text())["plan"]["border_um"]
    job = InferenceJob.of(trained.campaign, trained.reference, "v1")
    [maps] = predict_boxes(job, [Box((0, 0, 0), ball_pairs.SHAPE)])
    mask, distance = maps["probability"].argmax(axis=0) == 1, maps[BORDER_DISTANCE][0]
    assert maps[BORDER_DISTANCE].shape == (1, *ball_pairs.SHAPE)
    assert 0 <= distance.min() < distance.max() <= cap
    objects = np.asarray(open_truth(trained.campaign.volumes, "v1", instances=True)[:])
    target = border_distance(objects, np.zeros(objects.shape, bool), ball_pairs.SPACING, cap) * cap
    # in micrometre; were a symmetry not turned back, the mean over symmetries would be anything
    assert np.abs(distance - target)[target > 0].mean() < 0.1
    assert np.corrcoef(distance[target >= 0], target[target >= 0])[0, 1] > 0.8
    pieces, pairs = ball_pairs.pairs_told_apart(connected_components(mask), objects)
    parted, _ = ball_pairs.pairs_told_apart(ball_pairs.basins(distance, mask, 0.02), objects)
    assert pairs == 8
    assert pieces == 0
    assert parted >= 4


def test_the_loss_is_that_of_the_classes_and_that_of_the_distance(trained: Trained) -> None:
    snapshot = make_snapshot(trained.campaign, [Box((0, 0, 0), (24, 48, 48))])
    plan = plan_training(trained.campaign.config, trained.campaign.volumes, snapshot)
    data = TrainingSet(trained.campaign.volumes, snapshot, plan, make_targets=border_targets(plan.border_um))
    objective = Objective(data, plan)
    logits, labels = torch.randn(1, 3, 4, 8, 8), torch.randint(0, 2, (1, 4, 8, 8))
    border = torch.rand(1, 4, 8, 8) * labels
    expected = objective(logits[:, :2], [], labels, 0) + BORDER_WEIGHT * BorderDistanceLoss()(logits[:, 2], border)
    torch.testing.assert_close(objective(logits, [], labels, 0, border[:, None]), expected)


def test_distances_are_learned_where_the_settings_say_so_and_objects_are_numbered(
    trained: Trained, tmp_path: Path
) -> None:
    snapshot = make_snapshot(trained.campaign, BOXES)
    config = trained.campaign.config

    def planned(wish: bool, numbered: bool = True) -> TrainingPlan:
        training = TrainingConfig.model_validate(
            config.training.model_dump(mode="json") | {"unet": {"border_distance": wish}}
        )
        items = [i if numbered else i.model_copy(update={"instances": None}) for i in snapshot.items]
        changed = snapshot.model_copy(update={"items": tuple(items)})
        return plan_training(config.model_copy(update={"training": training}), trained.campaign.volumes, changed)

    assert planned(True).border_um
    assert planned(True).network.border_distance
    assert planned(False).border_um is planned(False, numbered=False).border_um is None
    assert not planned(False).network.border_distance
    with pytest.raises(TrainingError, match="no object is numbered"):
        planned(True, numbered=False)


def test_a_model_without_distances_is_a_start_for_one_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = make_campaign(tmp_path / "plain", iterations=2)
    model = train(plain, make_snapshot(plain, BOXES), tmp_path / "plain" / "work")
    campaign = ball_pairs.make_campaign(tmp_path, iterations=2)
    snapshot = make_snapshot(campaign, BOXES)
    warm = train(campaign, snapshot, tmp_path / "warm", warm_start=model.path)
    assert warm.warnings == ()
    assert warm.losses != train(campaign, snapshot, tmp_path / "cold").losses
    cap = json.loads((warm.path / "model.json").read_text())["plan"]["border_um"]
    again = train(campaign, make_snapshot(campaign, BOXES[:1]), tmp_path / "again", warm_start=warm.path)
    assert json.loads((again.path / "model.json").read_text())["plan"]["border_um"] == cap, "what 1 stands for stays"
