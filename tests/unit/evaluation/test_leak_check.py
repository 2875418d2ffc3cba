"""Evaluation refuses what would flatter: boxes that a training has read, its own snapshot, missing truth, foreign maps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.cli.main import app
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.errors import CampaignError, EvaluationError, LeakError
from rescueseg.evaluation.holdout_scores import check_evaluation, evaluate_generation
from rescueseg.evaluation.leak_check import require_unseen
from rescueseg.evaluation.stored_scores import current_evaluation
from rescueseg.evaluation.truth import holdout_boxes
from rescueseg.geometry import Box
from rescueseg.records import Relations
from tests.evaluated_campaign import make_campaign, write_generation


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    campaign = make_campaign(tmp_path_factory.mktemp("refused"))
    for generation, noise in enumerate((2.4, 1.2)):
        write_generation(campaign, generation, noise)
    return campaign


@pytest.fixture
def train_on(judged: Campaign):  # type: ignore[no-untyped-def]
    """Return a function that rewrites the first item of a generation's snapshot; the old one comes back."""
    kept = {g.number: g.require(SNAPSHOT) for g in judged.generations()}

    def rewrite(generation: int, box: Box, read_box: Box | None = None, volume_id: str = "phantom") -> None:
        snapshot = judged.generation(generation).snapshot()
        assert snapshot is not None
        item = snapshot.items[0].model_copy(update={"box": box, "read_box": read_box or box, "volume_id": volume_id})
        changed = snapshot.model_copy(update={"items": (item, *snapshot.items[1:])})
        judged.generation(generation).write(SNAPSHOT, changed)

    yield rewrite
    for generation, snapshot in kept.items():
        judged.generation(generation).write(SNAPSHOT, snapshot)


Rewrite = Callable[..., None]
TEST_BOX = Box((0, 0, 30), (8, 24, 24))


def test_what_nobody_has_read_is_evaluated(judged: Campaign) -> None:
    assert len(check_evaluation(judged, 1).boxes) == 16


def test_a_test_box_touched_by_training_is_refused(judged: Campaign, train_on: Rewrite) -> None:
    train_on(1, Box((0, 24, 30), (8, 6, 24)), read_box=Box((0, 23, 30), (8, 8, 24)))
    with pytest.raises(
        LeakError, match=r"test box phantom .*the training of generation 1 has read .* touches this box"
    ):
        evaluate_generation(judged, 1, choose_scored_objects)
    check_evaluation(judged, 0)


def test_a_model_is_not_evaluated_on_its_own_snapshot(judged: Campaign, train_on: Rewrite) -> None:
    train_on(1, TEST_BOX)
    with pytest.raises(LeakError, match="generation 1 would be evaluated on its own snapshot") as refused:
        evaluate_generation(judged, 1, choose_scored_objects)
    assert "Train again without ticket t0" in str(refused.value)


def test_what_an_earlier_generation_has_read_counts(judged: Campaign, train_on: Rewrite) -> None:
    train_on(0, TEST_BOX)
    with pytest.raises(
        LeakError, match="generation 1 would be evaluated on its own snapshot: generation 0 was trained"
    ):
        check_evaluation(judged, 1)


def test_a_copy_of_the_volume_hides_nothing(judged: Campaign, train_on: Rewrite) -> None:
    copy = judged.volumes.record("phantom").model_copy(update={"volume_id": "copy"})
    judged.volumes.save(copy)
    try:
        train_on(1, TEST_BOX, volume_id="copy")
        with pytest.raises(LeakError, match="copy, which shows what phantom shows,"):
            check_evaluation(judged, 1)
        other = copy.model_copy(update={"digest": "another image"})
        judged.volumes.save(other)
        with pytest.raises(CampaignError, match="never compared: copy"):
            check_evaluation(judged, 1)
        found = judged.volumes.relations()
        judged.volumes.save_relations(Relations(compared={v.volume_id: v.digest for v in judged.volumes.records()}))
        check_evaluation(judged, 1)
        judged.volumes.save_relations(found)
    finally:
        judged.storage.remove("volumes/copy.json")


def test_volumes_that_were_never_compared_are_before_an_evaluation(judged: Campaign, train_on: Rewrite) -> None:
    """In a campaign of an earlier version, of which nobody knows yet that a volume is in it twice."""
    judged.volumes.save(
        judged.volumes.record("phantom").model_copy(
            update={"volume_id": "copy", "digest": "with another truth", "files": ""}
        )
    )
    shutil.copytree(judged.storage.path("volumes/phantom.ome.zarr"), judged.storage.path("volumes/copy.ome.zarr"))
    try:
        train_on(1, TEST_BOX, volume_id="copy")
        done = CliRunner().invoke(app, ["evaluate", judged.url, "--generation", "1", "--dry-run"])
        assert isinstance(done.exception, LeakError) or "copy, which shows what phantom shows" in done.stderr
        assert "copy" not in judged.volumes.relations().compared, "a dry run writes nothing"
    finally:
        for part in ("json", "ome.zarr"):
            judged.storage.remove(f"volumes/copy.{part}")


def test_a_kept_evaluation_is_refused_all_the_same(judged: Campaign, train_on: Rewrite) -> None:
    assert current_evaluation(judged, 1, choose_scored_objects).generation == 1
    train_on(1, TEST_BOX)
    with pytest.raises(LeakError):
        current_evaluation(judged, 1, choose_scored_objects)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_single_voxel_is_a_touch_and_a_neighbour_is_none(
    judged: Campaign, train_on: Rewrite, axis: int, side: int
) -> None:
    boxes = [
        b
        for b in holdout_boxes(judged.holdout(), judged.volumes.records(refused=True), judged.url)
        if b.box == TEST_BOX
    ]
    assert boxes
    offset = list(TEST_BOX.offset_zyx)
    offset[axis] += side * TEST_BOX.shape_zyx[axis]
    beside = Box((offset[0], offset[1], offset[2]), TEST_BOX.shape_zyx)
    train_on(1, beside)
    require_unseen(judged.generation(1), boxes, judged.volumes.shared_places())
    offset[axis] -= side
    train_on(1, beside, read_box=Box((offset[0], offset[1], offset[2]), TEST_BOX.shape_zyx))
    with pytest.raises(LeakError):
        require_unseen(judged.generation(1), boxes, judged.volumes.shared_places())


def test_maps_of_another_model_are_refused(judged: Campaign) -> None:
    path = judged.generation(1).path("maps", "phantom.json")
    data = judged.storage.read_json(path)
    judged.storage.write_json(path, data | {"model_digest": "another"})
    try:
        with pytest.raises(EvaluationError, match="another model than that of generation 1 made the maps"):
            check_evaluation(judged, 1)
    finally:
        judged.storage.write_json(path, data)


def test_without_its_snapshot_nobody_can_tell(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, 1.0, judged=False)
    campaign.storage.remove(campaign.generation(0).path("snapshot.json"))
    with pytest.raises(EvaluationError, match="nobody can tell what its model has read"):
        check_evaluation(campaign, 0)


def test_a_missing_truth_is_refused_by_the_commands_in_one_line(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, truth=False)
    write_generation(campaign, 0, 1.0, judged=False)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    for command in (["evaluate", campaign.url, "--generation", "0"], ["compare", campaign.url, "0", "1"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1
        assert "16 of 16 holdout boxes" in done.stderr or "generation 1 has no model" in done.stderr
    assert [p for p in sorted(str(p) for p in tmp_path.rglob("*")) if p not in before and "campaign.db" not in p] == []


def test_a_leak_is_refused_by_the_commands_in_one_line(judged: Campaign, train_on: Rewrite) -> None:
    train_on(0, TEST_BOX)
    for command in (["evaluate", judged.url, "--generation", "1"], ["compare", judged.url, "0", "1"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1
        assert "on its own snapshot" in done.stderr
    assert not judged.storage.exists("reports/compare_0000_0001.html")
