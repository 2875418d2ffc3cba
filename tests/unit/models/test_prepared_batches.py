"""Batches that a thread prepares are those that are prepared between the steps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from rescueseg.errors import StorageError
from rescueseg.models.network_run import RunStart
from rescueseg.models.prepared_batches import PreparedBatches, leaves_core_idle
from rescueseg.models.training_items import TrainingSet
from rescueseg.models.unet.augment import Augmentation
from rescueseg.models.unet.loop import Run
from rescueseg.models.unet.losses import Objective
from rescueseg.models.unet.trainer import plan_training
from tests.training_rig import BOXES, make_campaign, make_snapshot

STEPS = 6


def following(step: int) -> int | None:
    return step + 1 if step + 1 < STEPS else None


@pytest.mark.parametrize("beside", [False, True])
def test_each_batch_is_that_of_its_key_in_any_order_and_prepared_by_one_thread(beside: bool) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[tuple[int, int]] = []

    def prepare(step: int) -> torch.Tensor:
        seen.append((step, torch.get_num_threads()))
        return torch.full((2,), float(step))

    try:
        with PreparedBatches(prepare, following, beside=beside) as batches:
            for step in (0, 1, 2, 4, 5, 0):
                assert torch.equal(batches.take(step), torch.full((2,), float(step)))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert {count for _, count in seen} == {1}


def test_the_next_batch_is_prepared_while_a_step_computes_and_none_after_the_last() -> None:
    began = [threading.Event() for _ in range(STEPS + 1)]

    def prepare(step: int) -> int:
        began[step].set()
        return step

    with PreparedBatches(prepare, following, beside=True) as batches:
        for step in range(STEPS - 1):
            batches.take(step)
            assert began[step + 1].wait(10), "before anybody asked for it"
            assert not began[step + 2].is_set()
        batches.take(STEPS - 1)
    assert not began[STEPS].is_set()


@pytest.mark.parametrize("beside", [False, True])
def test_an_error_is_raised_where_its_batch_is_asked_for_and_no_thread_stays(beside: bool) -> None:
    def prepare(step: int) -> int:
        if step == 2:
            raise StorageError("the label array is damaged", where="v0", todo="Restore it")
        return step

    before = threading.active_count()
    batches = PreparedBatches(prepare, following, beside=beside)
    with batches:
        assert [batches.take(0), batches.take(1)] == [0, 1]
        with pytest.raises(StorageError, match="damaged"):
            batches.take(2)
    assert threading.active_count() == before


def test_a_kill_or_an_error_of_a_step_ends_the_process_with_its_thread() -> None:
    program = (
        "import time\n"
        "from rescueseg.models.prepared_batches import PreparedBatches\n"
        "with PreparedBatches(lambda step: time.sleep(0.2 * step), lambda step: step + 1, beside=True) as batches:\n"
        "    batches.take(0)\n"
        "    print('taken', flush=True)\n"
        "    {}\n"
    )
    for ending, code in (("raise SystemExit(3)", 3), ("time.sleep(600)", -9)):
        command = [sys.executable, "-c", program.format(ending)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"taken\n"
            if code == -9:
                process.kill()
            began = time.monotonic()
            assert process.wait(30) == code
            assert time.monotonic() - began < 10


def test_a_batch_is_prepared_beside_the_steps_where_a_core_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    try:
        torch.set_num_threads(1)
        assert leaves_core_idle(torch.device("cpu"))
        torch.set_num_threads(2)
        assert not leaves_core_idle(torch.device("cpu"))
        assert leaves_core_idle(torch.device("cuda"))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("cores", "idle"), [(2, True), (1, False), (None, False)])
def test_where_the_system_does_not_say_which_cores_may_be_used_all_of_them_count(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, idle: bool
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    try:
        torch.set_num_threads(1)
        assert leaves_core_idle(torch.device("cpu")) == idle
    finally:
        torch.set_num_threads(threads)


def test_a_training_takes_the_same_steps_whether_a_thread_prepares_its_batches_or_not(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, iterations=STEPS)
    snapshot = make_snapshot(campaign, BOXES)
    plan = plan_training(campaign.config, campaign.volumes, snapshot)
    runs = []
    for beside in (False, True):
        data = TrainingSet(campaign.volumes, snapshot, plan)
        run = Run(RunStart(tmp_path / f"{beside}", "id", seed=1), data, plan, Objective(data, plan))
        run.batches = PreparedBatches(run._prepare, run._following, beside=beside)
        with run.batches:
            for _ in range(STEPS):
                run.advance()
        runs.append(run)
    assert runs[0].losses == runs[1].losses
    assert all(torch.equal(tensor, runs[1].weights[name]) for name, tensor in runs[0].weights.items())


def test_the_random_state_of_every_augmentation_is_the_one_that_monai_would_set(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    plan = plan_training(campaign.config, campaign.volumes, make_snapshot(campaign, BOXES))
    ours, theirs = Augmentation(plan), Augmentation(plan)
    image = torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = 0
    for seed in range(40):
        ours.reseed(seed)
        theirs._steps.set_random_state(seed=seed)
        outputs = [a._steps({"image": image.clone(), "label": image.clone()}) for a in (ours, theirs)]
        assert all(torch.equal(torch.as_tensor(outputs[0][k]), torch.as_tensor(outputs[1][k])) for k in outputs[0])
        changed += not torch.equal(torch.as_tensor(outputs[0]["image"]), image)
    assert changed > 30
