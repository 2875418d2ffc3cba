"""Loss, network, augmentation, windows and files of the U-Net trainer, each against what it must do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rescueseg.config import TrainingConfig
from rescueseg.geometry import Box
from rescueseg.models import checkpoints
from rescueseg.models.files import CHECKPOINT_FILE
from rescueseg.models.learning_rate import cosine_rate
from rescueseg.models.members import symmetries
from rescueseg.models.overlap_loss import PartialDiceCELoss
from rescueseg.models.precision import autocast_dtype, bfloat16_verdict
from rescueseg.models.survey import Survey
from rescueseg.models.training_items import TrainingSet
from rescueseg.models.trial import Trial
from rescueseg.models.unet.augment import Augmentation
from rescueseg.models.unet.network import build_network, get_weights, set_weights
from rescueseg.models.unet.plan import TrainingPlan, make_plan
from rescueseg.models.unet.trainer import MonaiUNetTrainer, plan_training
from rescueseg.models.unet.warp import Warp
from tests.training_rig import BOXES, make_campaign, make_snapshot


def small_plan(channels: Sequence[int] = (8, 16, 32), **config: object) -> TrainingPlan:
    return make_plan(
        TrainingConfig.model_validate({"window_zyx": (8, 32, 32), "unet": {"channels": [*channels]}, **config}),
        Survey(in_channels=1, spacing_um_zyx=(0.2, 0.1, 0.1), volume_zyx=(16, 64, 64), field_zyx=(16, 64, 64)),
        2,
    )


# loss ---------------------------------------------------------------------------------------------------------------


def test_the_loss_of_even_odds_is_known() -> None:
    labels = torch.tensor([[[[0, 1]]]])
    expected = math.log(2) + 1 - 2 * 0.5 / (0.5 + 0.5 + 1)
    assert float(PartialDiceCELoss()(torch.zeros(1, 2, 1, 1, 2), labels)) == pytest.approx(expected, abs=1e-4)


def test_ignored_voxels_have_no_gradient_and_no_say() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, 6, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 6, 6))
    labels[:, :2] = 255
    loss = PartialDiceCELoss()(logits, labels)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, :2] == 0).all()
    assert (logits.grad[:, :, 2:] != 0).any()
    alone = PartialDiceCELoss()(logits[:, :, 2:], labels[:, 2:])
    assert float(loss.detach()) == pytest.approx(float(alone.detach()), rel=1e-5)


def test_nothing_labelled_is_no_loss_and_absent_classes_do_not_count() -> None:
    logits = torch.randn(1, 3, 2, 4, 4, requires_grad=True)
    loss = PartialDiceCELoss()(logits, torch.full((1, 2, 4, 4), 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
    sure = torch.zeros(1, 3, 2, 4, 4)
    sure[:, 1] = 30
    assert float(PartialDiceCELoss()(sure, torch.ones(1, 2, 4, 4, dtype=torch.long))) < 1e-4


# network ------------------------------------------------------------------------------------------------------------


def test_dropout_costs_the_head_alone_and_follows_its_key() -> None:
    network = build_network(small_plan(dropout=0.4).network, seed=1).eval()
    image = torch.randn(2, 1, 8, 32, 32)
    with torch.inference_mode():
        features = network.features(image)
        assert torch.equal(network.head(features, None), network(image))
        one, two = (network.dropout_masks([(key, 0, 0), (7, 0, 1)], image.device) for key in (1, 2))
        first = network.head(features, one)
        second = network.head(features, two)
    assert not torch.allclose(first[0], second[0])
    torch.testing.assert_close(first[1], second[1])


def test_masks_keep_the_mean_and_at_least_one_channel() -> None:
    network = build_network(small_plan(dropout=0.25).network, seed=1)
    masks = torch.stack(network.dropout_masks([(key,) for key in range(2000)], torch.device("cpu")))
    assert masks.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(masks.mean()) == pytest.approx(1, abs=0.02)
    harsh = build_network(small_plan(dropout=0.99).network, seed=1)
    rows = torch.stack(harsh.dropout_masks([(key,) for key in range(200)], torch.device("cpu")))
    assert (rows.amax(dim=2) > 0).all()


def test_weights_follow_from_the_seed_and_travel() -> None:
    plan = small_plan().network
    first, same, other = (build_network(plan, seed) for seed in (1, 1, 2))
    weights = get_weights(first)
    assert all(torch.equal(weights[n], t) for n, t in get_weights(same).items())
    assert any(not torch.equal(weights[n], t) for n, t in get_weights(other).items())
    set_weights(other, weights)
    image = torch.randn(1, 1, 8, 32, 32)
    assert torch.equal(first(image), other(image))
    with pytest.raises(ValueError, match="architecture"):
        set_weights(build_network(small_plan(channels=(4, 8, 16)).network, 1), weights)


@pytest.mark.skipif(autocast_dtype(torch.device("cpu")) is None, reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("window", [(8, 32, 32), (16, 48, 48), (10, 64, 64), (4, 32, 32), (1, 64, 64)])
def test_bfloat16_gradients_are_those_of_float32(window: tuple[int, int, int]) -> None:
    plan = small_plan(window_zyx=window, channels=(16, 32, 64, 64))
    threads = torch.get_num_threads()
    trial = Trial(network=plan.network, window=plan.window_zyx, batches=(2,), threads=threads, backward=True)
    verdict = bfloat16_verdict(trial)
    if not verdict.holds:
        assert verdict.final, verdict.reason
        return  # it may write where it must not: not in this process
    image = torch.randn(2, 1, *plan.window_zyx, generator=torch.Generator().manual_seed(0))
    gradients = []
    for enabled in (False, True):
        network = build_network(plan.network, seed=1)
        poison = [torch.full((size,), 1e30) for size in (1_000, 30_000, 100_000, 500_000)]
        del poison
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(image)
        logits.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    exact, fast = gradients
    assert float((exact - fast).norm() / exact.norm()) < 0.5, "rounding is a few per cent, uninitialised memory is not"


# augmentation -------------------------------------------------------------------------------------------------------


STILL = Warp((8, 32, 32), np.eye(3))
"""Rotates, scales and bends nothing."""


def test_image_and_label_turn_together() -> None:
    augment = Augmentation(small_plan())
    label = torch.zeros(1, 8, 32, 32, dtype=torch.uint8)
    label[0, :5, :10, :20] = 1
    turned = 0
    for key in range(12):
        image, moved = augment(label.float() * 10, label.clone(), STILL, 3, key)
        assert image.shape == moved.shape == label.shape
        assert np.corrcoef(image.numpy().ravel(), moved.numpy().ravel())[0, 1] > 0.8
        assert moved.sum() == label.sum()
        turned += not torch.equal(moved, label)
    assert turned > 8


def test_augmentation_follows_its_key_alone() -> None:
    augment = Augmentation(small_plan())
    image, label = torch.randn(1, 8, 32, 32), torch.zeros(1, 8, 32, 32, dtype=torch.uint8)
    first, _ = augment(image.clone(), label.clone(), STILL, 3, 5)
    other, _ = augment(image.clone(), label.clone(), STILL, 3, 6)
    again, _ = Augmentation(small_plan())(image.clone(), label.clone(), STILL, 3, 5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert type(first) is torch.Tensor


def test_a_saturated_voxel_does_not_move_the_ground() -> None:
    augment = Augmentation(small_plan())
    image, label = torch.randn(1, 8, 32, 32), torch.zeros(1, 8, 32, 32, dtype=torch.uint8)
    image[0, 4, 16, 16] = 25
    medians = [float(augment(image.clone(), label, STILL, 3, key)[0].median()) for key in range(60)]
    assert max(map(abs, medians)) < 0.6  # shifted by 0.3 at most; contrast by the range of the window moved it by 3


def test_unequal_planes_are_not_turned_by_quarters() -> None:
    plan = small_plan(window_zyx=(8, 32, 64))
    augment = Augmentation(plan)
    for key in range(8):
        image, _ = augment(
            torch.randn(1, 8, 32, 64), torch.zeros(1, 8, 32, 64, dtype=torch.uint8), Warp((8, 32, 64), np.eye(3)), key
        )
        assert image.shape == (1, 8, 32, 64)


# windows ------------------------------------------------------------------------------------------------------------


def test_windows_follow_from_seed_and_step(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    snapshot = make_snapshot(campaign, BOXES, halo=(2, 8, 8))
    plan = plan_training(campaign.config, campaign.volumes, snapshot)
    data, tight = (
        TrainingSet(campaign.volumes, snapshot, plan),
        TrainingSet(campaign.volumes, snapshot, plan, cache_bytes=1),
    )
    data.batch(1, 0)
    for (image, label), (same, same_label) in zip(data.batch(1, 5), tight.batch(1, 5), strict=True):
        assert torch.equal(image, same)
        assert torch.equal(label, same_label)
        assert image.shape == (1, *plan.window_zyx)
        assert label.shape == (1, *plan.window_zyx)
    assert not torch.equal(data.batch(1, 5)[0][0], data.batch(1, 6)[0][0])
    assert not torch.equal(data.batch(1, 5)[0][0], data.batch(2, 5)[0][0])


def test_rare_foreground_is_seen_often_and_context_is_ignored(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    labels = np.zeros(BOXES[0].shape_zyx, np.uint8)
    labels[6, 24, 24] = 1
    snapshot = make_snapshot(campaign, BOXES[:1], halo=(4, 16, 16), labels={0: labels})
    plan = plan_training(campaign.config, campaign.volumes, snapshot)
    windows = [label for step in range(30) for _, label in TrainingSet(campaign.volumes, snapshot, plan).batch(1, step)]
    assert np.mean([bool((w == 1).any()) for w in windows]) > 0.6
    assert all((w != 255).any() for w in windows)
    assert any((w == 255).any() for w in windows)


def test_a_patch_smaller_than_the_window_is_mirrored_and_ignored_beyond(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    box = Box((0, 0, 0), (3, 10, 12))
    snapshot = make_snapshot(campaign, [box])
    plan = plan_training(campaign.config, campaign.volumes, snapshot)
    for _, label in TrainingSet(campaign.volumes, snapshot, plan).batch(1, 0):
        assert int((label != 255).sum()) == box.size


def test_a_margin_is_more_of_the_same_window(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    snapshot = make_snapshot(campaign, BOXES, halo=(2, 8, 8))
    data = TrainingSet(campaign.volumes, snapshot, plan_training(campaign.config, campaign.volumes, snapshot))
    for step in range(4):
        larger = data.batch(1, step, [(3, 40, 0), (0, 0, 5)])
        for (image, label), (all_image, all_label), core in zip(
            data.batch(1, step), larger, (np.s_[:, 3:-3, 40:-40], np.s_[:, :, :, 5:-5]), strict=True
        ):
            assert torch.equal(all_image[core], image)
            assert torch.equal(all_label[core], label)
        assert (larger[0][1] != 255).sum() <= BOXES[0].size, "what is mirrored beyond the patch is not labelled"


# predictor, schedule, files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("square", "count"), [(True, 16), (False, 8)])
def test_symmetries_differ_and_turn_back(square: bool, count: int) -> None:
    tensor = torch.arange(2 * 3 * 3.0).reshape(1, 1, 2, 3, 3)
    every = symmetries(99, square)
    assert len(every) == count
    assert torch.equal(every[0].apply(tensor), tensor)
    assert len({tuple(s.apply(tensor).flatten().tolist()) for s in every}) == count
    assert all(torch.equal(s.invert(s.apply(tensor)), tensor) for s in every)
    assert symmetries(2, square) == every[:2]


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [cosine_rate(0.01, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(0.01)
    assert rates[0] == pytest.approx(0.001)
    assert 0 < rates[-1] < 1e-5
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_torn_or_foreign_checkpoint_counts_as_none(tmp_path: Path) -> None:
    checkpoints.save_checkpoint(tmp_path, {"request": "a", "step": 3})
    assert checkpoints.load_checkpoint(tmp_path, "a") == {"request": "a", "step": 3}
    assert checkpoints.load_checkpoint(tmp_path, "b") is None
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoints.load_checkpoint(tmp_path, "a") is None
    torch.save(MonaiUNetTrainer(), path)
    assert checkpoints.load_checkpoint(tmp_path, "a") is None, "nothing may be unpickled"
