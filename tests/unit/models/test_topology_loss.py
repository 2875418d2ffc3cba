"""Losses that mind topology, on shapes whose topology is known; class weights, coarse losses and the average of weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rescueseg.config import TrainingConfig
from rescueseg.models.network_run import RunStart
from rescueseg.models.overlap_loss import PartialDiceCELoss
from rescueseg.models.registry import get_trainer
from rescueseg.models.survey import Survey
from rescueseg.models.trainer import TrainingRequest, ignore_progress
from rescueseg.models.training_items import TrainingSet
from rescueseg.models.unet.loop import Run
from rescueseg.models.unet.losses import BettiMatchingLoss, Objective, SoftTopologyLoss
from rescueseg.models.unet.network import build_network
from rescueseg.models.unet.plan import make_plan
from rescueseg.models.unet.trainer import plan_training
from rescueseg.records import Snapshot
from tests.puncta import puncta
from tests.training_rig import BOXES, make_campaign, make_snapshot

SHAPE = (12, 24, 24)
SURE = 8.0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Train in one thread: two that wait for each other on a busy machine take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def betti_matching() -> nn.Module:
    pytest.importorskip("topolosses", reason="the extra 'topology' is not installed")
    return BettiMatchingLoss()


@pytest.fixture(params=["cldice", "betti"])
def loss(request: pytest.FixtureRequest) -> nn.Module:
    return SoftTopologyLoss(4) if request.param == "cldice" else betti_matching()


def logits_of(mask: np.ndarray) -> Tensor:
    """Return logits (1, 2, z, y, x) that are sure of a mask."""
    foreground = torch.from_numpy(np.where(mask, SURE, -SURE)).float()
    return torch.stack([-foreground, foreground])[None].requires_grad_(True)


def labels_of(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask.astype(np.int64))[None]


def tube() -> np.ndarray:
    z, y, _ = np.indices(SHAPE)
    return (z - 6) ** 2 + (y - 12) ** 2 <= 6


def broken(mask: np.ndarray) -> np.ndarray:
    prediction = mask.copy()
    prediction[:, :, 11:13] = False
    return prediction


def eroded_as_much(mask: np.ndarray, voxels: int) -> np.ndarray:
    """Take voxels off one side of the tube, along its length: the same overlap, and still one piece."""
    prediction = mask.copy()
    side = np.argwhere(mask & (np.indices(SHAPE)[1] == np.argwhere(mask)[:, 1].min()))
    prediction[tuple(side[:voxels].T)] = False
    assert mask.sum() - prediction.sum() == voxels
    return prediction


def ring(inner: float) -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    radius = np.hypot(y - 12, x - 12)
    return (abs(z - 6) <= 1) & (radius >= inner) & (radius <= 8)


def value(loss: nn.Module, prediction: np.ndarray, truth: np.ndarray) -> float:
    return float(loss(logits_of(prediction), labels_of(truth)).detach())


@pytest.mark.parametrize("truth", [tube(), ring(4), np.zeros(SHAPE, bool)], ids=["tube", "ring", "nothing"])
def test_the_truth_itself_costs_nothing(loss: nn.Module, truth: np.ndarray) -> None:
    assert value(loss, truth, truth) == pytest.approx(0, abs=1e-3)


def test_a_broken_tube_costs_more_than_as_large_an_error_at_its_side(loss: nn.Module) -> None:
    truth = tube()
    gap = broken(truth)
    side = eroded_as_much(truth, int(truth.sum() - gap.sum()))
    assert value(PartialDiceCELoss(), gap, truth) == pytest.approx(value(PartialDiceCELoss(), side, truth), rel=1e-4)
    assert value(loss, gap, truth) > 2 * value(loss, side, truth)


def test_a_filled_ring_costs_more_than_as_many_voxels_around_it(loss: nn.Module) -> None:
    truth, filled = ring(4), ring(0)
    outside = np.argwhere((abs(np.indices(SHAPE)[0] - 6) <= 1) & ~filled)
    nearest = outside[np.argsort(np.hypot(outside[:, 1] - 12, outside[:, 2] - 12), kind="stable")]
    thick = truth.copy()
    thick[tuple(nearest[: filled.sum() - truth.sum()].T)] = True
    assert value(loss, filled, truth) > 1.5 * value(loss, thick, truth)


def test_descent_closes_the_gap(loss: nn.Module) -> None:
    truth = tube()
    prediction = broken(truth)
    soft = logits_of(prediction).detach() / SURE
    gap = truth & ~prediction
    soft[:, 0, torch.from_numpy(gap)], soft[:, 1, torch.from_numpy(gap)] = 0.5, -0.5
    soft.requires_grad_(True)
    loss(soft, labels_of(truth)).backward()
    assert soft.grad is not None
    gradient = (soft.grad[0, 1] - soft.grad[0, 0]).numpy()
    assert gradient[gap].sum() < 0, "more foreground in the gap is a smaller loss"
    assert (gradient[gap] <= 1e-7).all()


def test_voxels_nobody_labelled_have_no_say(loss: nn.Module) -> None:
    truth = tube()
    labels = labels_of(truth)
    labels[:, :, :, 12:] = 255
    one, other = logits_of(truth), logits_of(truth & (np.indices(SHAPE)[2] < 12))
    values = [loss(logits, labels) for logits in (one, other)]
    assert float(values[0].detach()) == pytest.approx(float(values[1].detach()), abs=1e-6)
    spoilt = logits_of(broken(truth) ^ (np.indices(SHAPE)[2] > 15))
    loss(spoilt, labels).backward()
    assert spoilt.grad is not None
    assert (spoilt.grad[..., 12:] == 0).all()
    nothing = logits_of(truth)
    total = loss(nothing, torch.full_like(labels, 255))
    total.backward()
    assert float(total.detach()) == pytest.approx(0, abs=1e-4)
    assert nothing.grad is not None
    assert (nothing.grad == 0).all()


# what the plan asks for ---------------------------------------------------------------------------------------------


ON = {"deep_supervision": True, "balanced_classes": True}


def plan_of(topology: bool = False, **own: object):
    settings = {"window_zyx": (8, 32, 32), "iterations": 10, "unet": {"channels": [8, 16, 32, 32], **own}}
    return make_plan(
        TrainingConfig.model_validate(settings),
        Survey(in_channels=1, spacing_um_zyx=(0.2, 0.1, 0.1), volume_zyx=(16, 64, 64), field_zyx=(16, 64, 64)),
        2,
        topology=topology,
    )


def labelled(tmp_path: Path, labels: np.ndarray, **training: object) -> tuple[TrainingSet, Snapshot]:
    campaign = make_campaign(tmp_path, n_classes=2, **training)
    snapshot = make_snapshot(campaign, BOXES[:1], labels={0: labels})
    return TrainingSet(campaign.volumes, snapshot, plan_training(campaign.config, campaign.volumes, snapshot)), snapshot


def test_thickness_and_class_weights_are_those_of_the_labels(tmp_path: Path) -> None:
    labels = np.zeros(BOXES[0].shape_zyx, np.uint8)
    labels[2:9, 10:17, :] = 1
    labels[0, 40, :12] = 2
    labels[11] = 255
    data, _ = labelled(tmp_path, labels)
    assert data.half_thickness() == 4, "a bar of seven by seven voxels"
    voxels = np.array([(labels == c).sum() for c in (0, 1, 2)])
    weights = np.array(data.class_weights())
    assert (weights * voxels).sum() == pytest.approx(voxels.sum())
    assert weights[2] / weights[1] == pytest.approx(np.sqrt(voxels[1] / voxels[2]))


def test_a_heavier_class_costs_more_where_it_is_missed() -> None:
    labels = torch.tensor([[[[0, 0, 0, 1]]]])
    missed = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 4)
    plain, weighted = (float(PartialDiceCELoss(w)(missed, labels)) for w in ((), (0.5, 2.5)))
    dice = plain - float(nn.functional.cross_entropy(missed, labels))
    expected = float(nn.functional.cross_entropy(missed, labels, weight=torch.tensor([0.5, 2.5])))
    assert weighted - dice == pytest.approx(expected, rel=1e-5)


def test_topology_counts_in_the_later_steps_alone(tmp_path: Path) -> None:
    data, _ = labelled(tmp_path, (np.indices(BOXES[0].shape_zyx)[1] // 8 % 2).astype(np.uint8))
    image, label = data.batch(1, 0)[0]
    logits = torch.randn(1, 3, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    plain, topology = (Objective(data, plan_of(topology=t)) for t in (False, True))
    differences = [
        float(topology(logits, [], label.long(), step) - plain(logits, [], label.long(), step)) for step in range(10)
    ]
    assert [d > 0.01 for d in differences] == [step in (6, 8) for step in range(10)]


def test_coarse_stages_see_the_labels_at_their_resolution_and_leave_the_network_as_it_is(tmp_path: Path) -> None:
    plan = plan_of(deep_supervision=True)
    network = build_network(plan.network, 1)
    image = torch.randn(1, 1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    (features, _), coarse = network.coarse_logits(image)
    assert torch.equal(features, network.features(image)[0])
    assert [tuple(c.shape[1:]) for c in coarse] == [(3, 4, 8, 8), (3, 4, 4, 4)]
    data, _ = labelled(tmp_path, np.zeros(BOXES[0].shape_zyx, np.uint8))
    labels = torch.zeros(1, 8, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 1
    right = [-SURE * torch.ones(1, 3, *c.shape[2:]) for c in [torch.zeros(1, 3, 8, 32, 32), *coarse]]
    for logits in right:
        half = logits.shape[3] // 2
        logits[:, 0, :, :half] = logits[:, 1, :, half:] = SURE
    objective = Objective(data, plan)
    assert float(objective(right[0], right[1:], labels, 0)) < 0.01
    wrong = [right[0], right[1], -right[2]]
    assert float(objective(wrong[0], wrong[1:], labels, 0)) > 1


def test_a_coarse_stage_is_taught_whole_cells_so_that_a_mirrored_window_teaches_it_the_same(tmp_path: Path) -> None:
    data, _ = labelled(tmp_path, np.zeros(BOXES[0].shape_zyx, np.uint8))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (1, 8, 32, 32), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    stages = [torch.randn(1, 2, *shape, generator=generator) for shape in ((8, 32, 32), (4, 8, 8), (2, 4, 4))]
    objective = Objective(data, plan_of(deep_supervision=True))
    loss = objective(stages[0], stages[1:], labels, 0)
    turned = [stage.flip(2, 3, 4) for stage in stages]
    torch.testing.assert_close(objective(turned[0], turned[1:], labels.flip(1, 2, 3), 0), loss)


def test_the_average_follows_the_weights_and_survives_a_kill(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, iterations=6, unet={"ema": 0.5, **ON})
    snapshot = make_snapshot(campaign, BOXES)
    plan = plan_training(campaign.config, campaign.volumes, snapshot)

    def start() -> Run:
        data = TrainingSet(campaign.volumes, snapshot, plan)
        return Run(RunStart(tmp_path / "run", "id", seed=1), data, plan, Objective(data, plan))

    run = start()
    name = next(iter(run.weights))
    average = run.weights[name].clone()
    for step in range(3):
        run.advance()
        average.lerp_(run.network.state_dict()[name], 1 - min(0.5, (1 + step) / (10 + step)))
    torch.testing.assert_close(run.weights[name], average)
    assert not torch.equal(run.weights[name], run.network.state_dict()[name])
    run.save()
    run.advance()
    resumed = start()
    resumed.resume()
    resumed.advance()
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in run.weights.items())


def test_with_everything_on_it_learns(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, iterations=30, unet={"ema": 0.9, **ON})
    request = TrainingRequest(
        campaign.config, campaign.volumes, campaign.holdout(), make_snapshot(campaign, BOXES), tmp_path / "work", seed=3
    )
    losses = [e["loss"] for e in get_trainer("monai_unet_topology").train(request, ignore_progress).losses]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def shares_of(labels: np.ndarray, stride: tuple[int, int, int]) -> np.ndarray:
    """Return the share of class 1 in each cell, by reshaping."""
    shape = [n for length, s in zip(labels.shape, stride, strict=True) for n in (length // s, s)]
    return np.asarray((labels == 1).reshape(shape).mean(axis=(1, 3, 5)))


def test_a_coarse_stage_is_taught_the_share_of_structure_smaller_than_its_cells(tmp_path: Path) -> None:
    """The exact shares are the least loss, and nothing pulls a punctum of seven voxels down to the ground."""
    _, truth = puncta((8, 32, 32), 0.005, 150)
    labels = torch.from_numpy(truth.astype(np.int64))[None]
    data, _ = labelled(tmp_path, np.zeros(BOXES[0].shape_zyx, np.uint8))
    objective = Objective(data, plan_of(deep_supervision=True))
    sure = SURE * torch.stack([labels == 0, labels == 1], dim=1).float()
    shares = [
        torch.from_numpy(shares_of(truth, stride))[None].clamp(1e-7, 1 - 1e-7) for stride in ((2, 4, 4), (4, 8, 8))
    ]
    assert all(0 < share.max() < 0.5 for share in shares), "the majority of each cell is ground"
    exact = [torch.stack([1 - share, share], dim=1).log().float() for share in shares]
    least = float(objective(sure, exact, labels, 0))
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 1.0):
        for _ in range(10):
            other = [stage + size * torch.randn(stage.shape, generator=generator) for stage in exact]
            assert float(objective(sure, other, labels, 0)) > least
    flat = [torch.full_like(e, float(s.mean())).log().requires_grad_() for e, s in zip(exact, shares, strict=True)]
    for stage, share in zip(flat, shares, strict=True):
        stage.data[:, 0] = float((1 - share.mean()).log())
    objective(sure, flat, labels, 0).backward()
    for stage, share in zip(flat, shares, strict=True):
        assert stage.grad is not None
        pull = -stage.grad[:, 1]
        assert (pull[share > 2 * share.mean()] > 0).all()
        assert (pull[share < 1e-6] < 0).all()
