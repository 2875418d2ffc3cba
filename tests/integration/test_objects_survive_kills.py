"""Workers are killed again and again while objects are made; the objects are those of a box in memory."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from rescueseg.config import ClusterConfig
from rescueseg.delivery.objects import make_objects, objects_of_box
from rescueseg.delivery.step import Step
from rescueseg.errors import InferenceError
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.services.dask_cluster import open_cluster
from tests.touching_balls import SPACING, make_target, maps_of, read_objects, rule_of, truth

KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_workers_do_not_show(tmp_path: Path) -> None:
    balls, rng = truth(), random.Random(5)
    mask, maps = (balls > 0).astype(np.uint8), maps_of(balls)
    rule = rule_of(ObjectRule(source="distance", smoothing_um=0.2, depth=0.2))
    expected, kills = objects_of_box(mask, maps, rule, SPACING), 0
    with open_cluster(ClusterConfig(workers=2)) as client:

        def kill(_done: int, _total: int) -> None:
            nonlocal kills
            workers = client.run_on_scheduler(lambda dask_scheduler: [w.pid for w in dask_scheduler.workers.values()])
            if workers and kills < KILLS and rng.random() < 0.2:
                os.kill(rng.choice(workers), signal.SIGKILL)
                kills += 1

        for volume in range(KILLS):
            target = make_target(tmp_path / str(volume), mask, maps, rule, (8, 20, 22))
            count, step = None, Step(str(tmp_path / str(volume) / "step"), "d", client, kill)
            while count is None:
                with suppress(InferenceError):  # a block that lost four workers in a row; a rerun goes on with it
                    count = make_objects(target, step)
            assert count == expected.max() == 5
            np.testing.assert_array_equal(read_objects(target), expected)
            if kills >= KILLS:
                break
    assert kills >= KILLS
