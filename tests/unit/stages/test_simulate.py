"""A benchmark of query strategies with real trainings of four steps: what is shared, what resumes, what is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.campaign.outside_trainings import read_request
from rescueseg.cli.main import app
from rescueseg.errors import ConfigError, EvaluationError, SamplingError
from rescueseg.geometry import Box
from rescueseg.simulation.annotator import AnnotatorOptions
from rescueseg.simulation.protocol import Regime
from rescueseg.simulation.rows import SimulationRow
from rescueseg.simulation.settings import curves
from rescueseg.stages.simulate import plan_setting, run_setting
from rescueseg.stages.simulated_campaign import ANNOTATIONS, guarded_boxes, locked
from tests.simulation_rig import STEPS, ball_volume, run, same, small_setting

ROOT = Path(__file__).parents[3]
NAMES = ["oracle_error-01", "random-01", "start"]


class Steps:
    """Counts the steps of each training that runs."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def __call__(self, what: str, done: int, total: int) -> None:
        assert total == STEPS
        assert done <= total
        self.count[", ".join(what.split(", ")[3:5])] += 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SimulationRow], Steps]:
    folder, steps = tmp_path_factory.mktemp("undisturbed"), Steps()
    return folder, run(small_setting(), folder, steps), steps


def campaign_of(folder: Path) -> Campaign:
    return Campaign.open(str(folder / "balls" / "low-0" / "campaign"))


def test_the_first_training_serves_every_strategy(undisturbed: tuple[Path, list[SimulationRow], Steps]) -> None:
    folder, rows, steps = undisturbed
    assert steps.count == {"random, loop 0": STEPS, "random, loop 1": STEPS, "oracle_error, loop 1": STEPS}
    assert campaign_of(folder).trainings() == NAMES
    keys = [(row.strategy, row.loop) for row in rows]
    assert keys == [("random", 0), ("random", 1), ("oracle_error", 0), ("oracle_error", 1)]
    assert rows[2] == rows[0].model_copy(update={"strategy": "oracle_error"})
    assert [row.patches for row in rows] == [4, 8, 4, 8]
    assert {row.iterations for row in rows} == {STEPS}


def test_amounts_are_those_of_the_annotations(undisturbed: tuple[Path, list[SimulationRow], Steps]) -> None:
    folder, rows, _ = undisturbed
    campaign, truth = campaign_of(folder), ball_volume().truth
    accepted = [a for name in ("start", "oracle_error-01") for a in campaign.training(name).read(ANNOTATIONS) or ()]
    row = rows[3]
    assert row.voxels_drawn == sum(a.box.size for a in accepted) == 8 * 4 * 12 * 12
    assert row.foreground_drawn == sum(np.count_nonzero(truth[a.box.slices]) for a in accepted)
    pool = truth.copy()
    for box in guarded_boxes(campaign):
        pool[box.slices] = 0
    assert row.pool_foreground == np.count_nonzero(pool)
    for a in accepted:
        np.testing.assert_array_equal(campaign.storage.read_array(a.labels), truth[a.box.slices])
        assert a.seconds == pytest.approx(AnnotatorOptions().seconds(a.voxels_corrected))
    start = accepted[:4]  # drawn from nothing: every voxel of a ball is one that was corrected
    assert sum(a.voxels_corrected for a in start) == sum(np.count_nonzero(truth[a.box.slices]) for a in start)
    assert row.voxels_corrected == sum(a.voxels_corrected for a in accepted)


def test_nothing_of_the_holdout_is_annotated_and_no_patch_twice(
    undisturbed: tuple[Path, list[SimulationRow], Steps],
) -> None:
    folder, rows, _ = undisturbed
    campaign = campaign_of(folder)
    holdout = campaign.holdout()
    assert holdout is not None
    for name in NAMES:
        items = read_request(campaign.training(name)).snapshot.items
        assert len(items) == (4 if name == "start" else 8)
        for index, item in enumerate(items):
            assert not any(item.box.intersects(box) for box in guarded_boxes(campaign))
            assert not any(item.box.intersects(other.box) for other in items[:index])
            assert not any(item.read_box.intersects(box.box) for box in holdout.boxes)
    assert {box.name for box in rows[0].boxes} == {str(b.box) for b in holdout.boxes if b.part == "test"}


def test_a_rerun_trains_nothing_and_another_strategy_only_its_own(
    undisturbed: tuple[Path, list[SimulationRow], Steps], tmp_path: Path
) -> None:
    folder, rows, _ = undisturbed
    copied = shutil.copytree(folder, tmp_path / "copy")
    again = Steps()
    assert run(small_setting(), copied, again) == rows
    assert not again.count
    more = small_setting(strategies=("random", "oracle_error", "entropy"))
    assert plan_setting(more, ball_volume(), copied, copied / "rows.jsonl").trainings == 1
    found = run(more, copied, again)
    assert again.count == {"entropy, loop 1": STEPS}
    assert found[:4] == rows
    assert [(r.strategy, r.loop) for r in found[4:]] == [("entropy", 0), ("entropy", 1)]


@pytest.mark.parametrize(
    "line",
    [
        "random, loop 1, 2 trainings left",
        pytest.param("random, loop 0, 3 trainings left 3", marks=pytest.mark.slow),
        pytest.param("oracle_error, loop 1, 1 training left", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_rows_of_an_undisturbed_one(
    line: str, undisturbed: tuple[Path, list[SimulationRow], Steps], tmp_path: Path
) -> None:
    _, rows, _ = undisturbed
    command = [sys.executable, "-m", "tests.simulation_rig", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert any(line in said for said in process.stdout), "the run ended before"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    steps = Steps()
    found = run(small_setting(), tmp_path, steps)
    assert same(found) == same(rows)
    assert line.split(", loop")[0] in " ".join(steps.count), "what was cut off goes on"


def test_rows_alone_are_enough_and_lead_to_the_same(
    undisturbed: tuple[Path, list[SimulationRow], Steps], tmp_path: Path
) -> None:
    """Published rows lie without campaigns: what is there is not trained, and what is missing comes out the same."""
    folder, rows, _ = undisturbed
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    steps = Steps()
    assert run(small_setting(), tmp_path, steps) == rows
    assert not steps.count
    assert not (tmp_path / "balls" / "low-0").exists()
    (tmp_path / "rows.jsonl").write_text("".join(lines[:3]))
    assert same(run(small_setting(), tmp_path, steps)) == same(rows)
    assert steps.count == {"oracle_error, loop 0": STEPS, "oracle_error, loop 1": STEPS}


def test_what_was_chosen_and_is_lost_is_chosen_again(
    undisturbed: tuple[Path, list[SimulationRow], Steps], tmp_path: Path
) -> None:
    folder, rows, _ = undisturbed
    copied = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copied / "balls" / "low-0" / "campaign" / "trainings" / "oracle_error-01")
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (copied / "rows.jsonl").write_text("".join(lines[:3]) + lines[3][:50])
    steps = Steps()
    assert same(run(small_setting(), copied, steps)) == same(rows)
    assert steps.count == {"oracle_error, loop 1": STEPS}


def test_two_processes_do_not_work_on_one_seed(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "balls" / "low-0.lock"),
        pytest.raises(EvaluationError, match="another process works on this regime and seed"),
    ):
        run(small_setting(), tmp_path)


def test_all_data_is_everything_beside_the_holdout(tmp_path: Path) -> None:
    regimes = (Regime(name="low", patches=8), Regime(name="high", patches=12))
    steps = Steps()
    rows = run(small_setting(strategies=("full_data",), regimes=regimes), tmp_path, steps)
    assert steps.count == {"full_data, loop 0": STEPS}
    low, high = rows
    assert high == low.model_copy(update={"regime": "high"})
    campaign = campaign_of(tmp_path)
    count = np.zeros(ball_volume().shape_zyx, int)
    for a in campaign.training("full_data").read(ANNOTATIONS) or ():
        count[a.box.slices] += 1
    for box in guarded_boxes(campaign):
        assert not count[box.slices].any()
        count[box.slices] = 1
    assert (count == 1).all()
    assert low.foreground_drawn == low.pool_foreground


def test_every_strategy_of_the_benchmark_chooses(tmp_path: Path) -> None:
    names = ("oracle_fg33", "oracle_fg66", "live_fg66", "foreground_random", "clasp_entropy")
    rows = run(small_setting(strategies=names), tmp_path)
    assert [(r.strategy, r.loop, r.patches) for r in rows] == [
        (n, loop, 4 + 4 * loop) for n in names for loop in range(2)
    ]
    campaign = campaign_of(tmp_path)
    truth = ball_volume().truth
    for name, share in (("oracle_fg33", 1), ("oracle_fg66", 3)):
        new = campaign.training(f"{name}-01").read(ANNOTATIONS) or ()
        assert sum(truth[a.box.slices].any() for a in new) >= share
    assert not list(Path(campaign.storage.path("trainings")).glob("*/pool")), "maps are not kept"


def test_steps_are_measured_once(tmp_path: Path) -> None:
    setting = small_setting(steps=None, cpu_seconds=0.2, strategies=("random",))
    first = run(setting, tmp_path)
    steps = {row.iterations for row in first}
    assert len(steps) == 1
    assert run(setting.model_copy(update={"seeds": (0, 1)}), tmp_path)[2].iterations in steps


def test_another_setting_is_refused(undisturbed: tuple[Path, list[SimulationRow], Steps], tmp_path: Path) -> None:
    copied = shutil.copytree(undisturbed[0], tmp_path / "copy")
    (copied / "rows.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"another setting \(loops\)"):
        run(small_setting(loops=3), copied)
    with pytest.raises(ConfigError, match="a benchmark decides"):
        run(small_setting(settings=("training.iterations=3",)), tmp_path / "new")
    with pytest.raises(SamplingError, match="patches fit beside the holdout, 4000 are to be annotated"):
        run(small_setting(regimes=(Regime(name="low", patches=4000),)), tmp_path / "many")


@pytest.mark.parametrize(("only_there", "place"), [(False, "in the test boxes"), (True, "beside the holdout")])
def test_a_volume_by_which_nothing_can_be_judged_is_refused_before_a_training(
    only_there: bool, place: str, undisturbed: tuple[Path, list[SimulationRow], Steps], tmp_path: Path
) -> None:
    volume, holdout = ball_volume(), campaign_of(undisturbed[0]).holdout()
    assert holdout is not None
    truth = np.zeros_like(volume.truth) if only_there else volume.truth.copy()
    for box in (b.box for b in holdout.boxes if b.part == "test"):
        truth[box.slices] = int(only_there)
    with pytest.raises(SamplingError, match=f"no voxel {place} belongs to a class"):
        run_setting(small_setting(), dataclasses.replace(volume, truth=truth), tmp_path, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_its_rows_are_those_that_the_statistics_take(undisturbed: tuple[Path, list[SimulationRow], Steps]) -> None:
    rows = undisturbed[1]
    found = curves(rows, "patches")
    assert [(c.strategy, c.x.tolist()) for c in found] == [("oracle_error", [4, 8]), ("random", [4, 8])]
    assert [c.dice[0] for c in found] == [rows[0].dice] * 2


def test_rows_of_other_boxes_are_refused(undisturbed: tuple[Path, list[SimulationRow], Steps], tmp_path: Path) -> None:
    text = (undisturbed[0] / "rows.jsonl").read_text().splitlines()[0]
    name = undisturbed[1][0].boxes[0].name
    (tmp_path / "rows.jsonl").write_text(text.replace(name, str(Box((1, 2, 3), (4, 16, 16)))) + "\n")
    with pytest.raises(EvaluationError, match="other test boxes"):
        run(small_setting(), tmp_path)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    volume = ball_volume()
    files = [str(tmp_path / "image.tif"), str(tmp_path / "truth.tif")]
    for path, array in zip(files, (volume.image[0], volume.truth), strict=True):
        tifffile.imwrite(path, array, metadata={"axes": "ZYX"})
    out = tmp_path / "out"
    options = ["--spacing", "0.2,0.1,0.1", "--regime", "low=24", "--loops", "4", "--out", str(out), "--dry-run"]
    strategies = [o for n in ("random", "live_fg66", "clasp_entropy", "oracle_error") for o in ("--strategy", n)]
    done = CliRunner().invoke(app, ["simulate", files[0], "--truth", files[1], *options, *strategies])
    assert done.exit_code == 0, done.output
    assert "image: 16×80×80 voxels (zyx), low: 6 patches at the start and in each of 3 queries" in done.output
    assert "52 trainings to run for 64 rows, 120 s of processor time each: about 1.7 CPU hours" in done.output
    assert not out.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"image.tif", "truth.tif"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "best"], "unknown query strategy 'best'"),
        (["--crop", "0:9,0:9"], "no part of a volume"),
        (["--crop", "0:9,0:9,0:900"], "reaches beyond 16×80×80 voxels"),
        (["--regime", "low"], "'low' is no budget"),
        (["--seeds", "1,x"], "Give whole numbers"),
        (["--patch", "4,8"], "patch_zyx"),
        (["--trainer", "auto"], "auto"),
        (["--set", "training.iteration=3"], "unknown key"),
    ],
)
def test_what_cannot_be_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    volume = ball_volume()
    files = [str(tmp_path / "image.tif"), str(tmp_path / "truth.tif")]
    for path, array in zip(files, (volume.image[0], volume.truth), strict=True):
        tifffile.imwrite(path, array, metadata={"axes": "ZYX"})
    command = ["simulate", files[0], "--truth", files[1], "--spacing", "0.2,0.1,0.1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 1
    assert message in done.output
    assert not (tmp_path / "out").exists()
