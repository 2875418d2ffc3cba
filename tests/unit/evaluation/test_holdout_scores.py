"""Evaluation of whole generations on a campaign with real maps and truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.errors import EvaluationError
from rescueseg.evaluation.champion import EVALUATION, judge, judgements
from rescueseg.evaluation.holdout_scores import evaluate_generation
from rescueseg.evaluation.pooled import group_scores
from rescueseg.evaluation.threshold_baseline import threshold_baseline
from rescueseg.evaluation.truth import holdout_truth, missing_truth
from rescueseg.geometry import Box
from rescueseg.inference.maps import VolumeMaps
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import make_queue, open_queue
from rescueseg.queue.submission import Work
from rescueseg.records import Holdout, HoldoutBox
from rescueseg.storage import digest_array
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.evaluated_campaign import (
    SHAPE,
    SPACING,
    make_campaign,
    phantom_truth,
    write_generation,
    write_maps,
    write_volume_maps,
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Return a campaign of three generations, each with fewer errors than the one before."""
    campaign = make_campaign(tmp_path_factory.mktemp("evaluated"))
    for generation, noise in enumerate((2.4, 1.2, 1.15)):
        write_generation(campaign, generation, noise)
    return campaign


def test_a_perfect_map_scores_one(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    truth = phantom_truth()
    write_generation(campaign, 0, 1.0, judged=False)
    write_maps(campaign, 0, np.stack([truth == 0, truth == 1]).astype(float), np.zeros(truth.shape))
    result = evaluate_generation(campaign, 0, choose_scored_objects)
    assert result.test is not None
    assert result.validation is not None
    assert (result.test.dice, result.test.iou, result.test.precision, result.test.recall) == (1.0, 1.0, 1.0, 1.0)
    assert (result.test.surface_dice, result.test.hd95_um, result.test.ece) == (1.0, 0.0, 0.0)
    assert result.validation.boxes == result.test.boxes == 8
    assert all(b.errors == 0 and b.dice == (1.0 if b.foreground else None) for b in result.boxes)


def test_counts_agree_with_the_whole_computed_at_once(evaluated: Campaign) -> None:
    result = evaluated.generation(1).require(EVALUATION).evaluation

    prediction = np.asarray(VolumeMaps(evaluated.generation(1), "phantom").open("probability")[:]).argmax(axis=0)
    truth = phantom_truth()
    inside = np.zeros(truth.shape, dtype=bool)
    holdout = evaluated.holdout()
    assert holdout is not None
    for box in holdout.of("phantom", evaluated.volumes.shared_places(), "test"):
        inside[box.slices] = True
    overlap = ((prediction == 1) & (truth == 1) & inside).sum()
    dice = 2 * overlap / (((prediction == 1) & inside).sum() + ((truth == 1) & inside).sum())
    assert result.test is not None
    assert result.test.dice == pytest.approx(dice)
    assert result.test.voxels == inside.sum()
    assert result.metrics()["test_dice"] == result.test.dice


def test_fewer_errors_score_better_and_uncertainty_finds_them(evaluated: Campaign) -> None:
    first, second, _ = (j.evaluation.test for j in judgements(evaluated.generations()))
    assert first is not None
    assert second is not None
    assert second.dice > first.dice
    assert second.iou < second.dice
    assert (second.uncertainty.error_auroc() or 0) > 0.8


def test_worst_boxes_come_worst_first(evaluated: Campaign) -> None:
    worst = judgements(evaluated.generations())[0].evaluation.worst(4)
    shares = [b.errors / b.voxels for b in worst]
    assert len(worst) == 4
    assert shares == sorted(shares, reverse=True)
    assert {b.part for b in worst} == {"validation"}


def test_the_champion_moves_only_when_the_boxes_say_so(evaluated: Campaign) -> None:
    first, second, third = judgements(evaluated.generations())
    assert (first.champion, first.comparison) == (0, None)
    assert second.comparison is not None
    assert (second.comparison.verdict, second.champion) == ("better", 1)
    assert third.comparison is not None
    assert third.comparison.champion == 1
    assert third.champion == (2 if third.comparison.verdict == "better" else 1)
    assert (second.annotated_patches, second.annotated_voxels) == (8, 8 * 3200)


def test_judging_again_decides_the_same(evaluated: Campaign) -> None:
    assert (
        judge(evaluated.generations(), evaluate_generation(evaluated, 1, choose_scored_objects), evaluated.config)
        == judgements(evaluated.generations())[1]
    )


def test_no_holdout_and_no_model_are_clear_errors(campaign: Campaign, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no holdout"):
        evaluate_generation(campaign, 0, choose_scored_objects)
    with pytest.raises(EvaluationError, match="has no model"):
        evaluate_generation(make_campaign(tmp_path / "with_holdout"), 0, choose_scored_objects)


def test_without_truth_people_annotate_the_holdout(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, truth=False)
    boxes = missing_truth(campaign)
    assert len(boxes) == 16
    with pytest.raises(EvaluationError, match=r"no truth for 16 of 16 holdout boxes: validation box phantom \[0:8"):
        evaluate_generation(campaign, 0, choose_scored_objects)
    store = open_queue(campaign)
    store.tickets.add(
        [
            NewTicket(ticket_id=f"h{i}", volume_id=b.volume_id, box=b.box, purpose=b.part, stratum=b.stratum)
            for i, b in enumerate(boxes)
        ]
    )
    truth = phantom_truth()
    while (lease := store.leases.claim("ann", 60)) is not None:
        submit_labels(campaign, store, lease, "ann", truth[lease.ticket.box.slices], Work("test", 1.0))
    store.close()
    assert missing_truth(campaign) == []
    read = holdout_truth(campaign)
    assert read.boxes == tuple(boxes)
    assert all(np.array_equal(read.labels(b), truth[b.box.slices]) for b in boxes)
    assert not read.labels(boxes[0]).flags.writeable, "what is kept stays what was digested"


def test_a_skipped_holdout_box_scores_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, truth=False)
    boxes = missing_truth(campaign)
    store = open_queue(campaign)
    store.tickets.add(
        [
            NewTicket(ticket_id=f"h{i:02d}", volume_id=b.volume_id, box=b.box, purpose=b.part, stratum=b.stratum)
            for i, b in enumerate(boxes)
        ]
    )
    truth = phantom_truth()
    while (lease := store.leases.claim("ann", 60)) is not None:
        if lease.ticket.purpose == "test" or lease.ticket_id == "h00":
            store.leases.skip(lease.lease_id, "ann", "an artifact covers all of it")
        else:
            submit_labels(campaign, store, lease, "ann", truth[lease.ticket.box.slices], Work("test", 1.0))
    store.close()
    assert missing_truth(campaign) == []
    write_generation(campaign, 0, 0.1, judged=False)
    found = evaluate_generation(campaign, 0, choose_scored_objects)
    assert found.test is None, "no voxel of it is known"
    assert found.validation is not None
    assert found.validation.boxes == 7
    assert [b.voxels for b in found.boxes if b.part == "validation"].count(0) == 1


def test_threshold_baseline_is_tuned_on_validation_and_kept(evaluated: Campaign) -> None:
    result = threshold_baseline(evaluated)
    assert [c.polarity for c in result.classes] == ["bright"]
    assert 0.1 < result.validation_dice <= 1
    assert result.test_dice is not None
    assert 0 < result.test_dice <= 1
    assert threshold_baseline(evaluated) == result
    assert evaluated.storage.exists("reports/threshold_baseline.json")


def test_threshold_baseline_finds_the_perfect_threshold(tmp_path: Path) -> None:
    """An image that is its own truth, dark on bright, is solved exactly."""
    from tests.evaluated_campaign import holdout_boxes

    campaign = Campaign.create(str(tmp_path / "c"), check_config({"name": "easy", "classes": ["a"]}))
    make_queue(campaign)
    truth = phantom_truth()
    tifffile.imwrite(tmp_path / "image.tif", np.where(truth > 0, 10, 200).astype(np.uint8))
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    import_volume(
        campaign,
        VolumeImport(
            str(tmp_path / "image.tif"), volume_id="phantom", spacing=SPACING, truth=str(tmp_path / "truth.tif")
        ),
    )
    campaign.freeze_holdout(holdout_boxes())
    result = threshold_baseline(campaign)
    assert (result.classes[0].polarity, result.validation_dice, result.test_dice) == ("dark", 1.0, 1.0)


def test_objects_that_people_numbered_are_judged(tmp_path: Path) -> None:
    """Holdout boxes of an instance campaign: two touching objects found as one; other numbers are another truth."""
    numbered = np.zeros(SHAPE, np.uint32)
    numbered[1:7, 31:52, 1:10], numbered[1:7, 31:52, 10:20] = 4, 900
    campaign = Campaign.create(
        str(tmp_path / "c"),
        check_config({"name": "objects", "classes": ["nucleus"], "annotation": {"labels": "instance"}}),
    )
    tifffile.imwrite(tmp_path / "image.tif", (numbered > 0) * np.uint16(500))
    import_volume(campaign, VolumeImport(str(tmp_path / "image.tif"), volume_id="phantom", spacing=SPACING))
    box = HoldoutBox(volume_id="phantom", box=Box((0, 30, 0), (8, 24, 24)), part="test", stratum="grid")
    store = open_queue(campaign)
    campaign.freeze_holdout(Holdout(boxes=(box,), guard_zyx=(2, 4, 4)))
    store.tickets.add([NewTicket(ticket_id="h", volume_id="phantom", box=box.box, purpose="test")])
    lease = store.leases.claim("ann", 60)
    assert lease is not None
    drawn = PatchLabels.of_instances(numbered[box.box.slices])
    submit_labels(campaign, store, lease, "ann", drawn, Work("test", 1.0))
    store.close()
    write_volume_maps(campaign, 0, numbered > 0)
    found = evaluate_generation(campaign, 0, choose_scored_objects)
    objects = found.boxes[0].details[0].instances
    assert objects is not None
    assert (objects.found, objects.true, objects.matched[0]) == (1, 2, 1)
    scores = group_scores(found, "test", ("nucleus",))[0].scores
    assert {"ap50", "ap75", "pq", "vi"} <= set(scores)
    assert scores["dice"].value == 1.0
    assert found.boxes[0].truth_digest == holdout_truth(campaign).digest(box)
    assert found.boxes[0].truth_digest != digest_array(drawn.classes)


def test_objects_are_judged_where_the_truth_numbers_them(tmp_path: Path) -> None:
    """Of three objects, two touch: their class is predicted without a flaw, and only one object is found whole."""
    numbered = np.zeros(SHAPE, np.uint16)
    numbered[1:7, 31:52, 1:10], numbered[1:7, 31:52, 10:20] = 4, 9
    numbered[13:19, 31:50, 2:20] = 2
    campaign = Campaign.create(str(tmp_path / "c"), check_config({"name": "objects", "classes": ["nucleus"]}))
    make_queue(campaign)
    for name, array in (("image", (numbered > 0) * np.uint16(500)), ("truth", numbered)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array)
    image, truth = str(tmp_path / "image.tif"), str(tmp_path / "truth.tif")
    import_volume(
        campaign, VolumeImport(image, volume_id="phantom", spacing=SPACING, truth=truth, truth_type="instance")
    )
    boxes = [Box((0, 30, 0), (8, 24, 24)), Box((12, 30, 0), (8, 24, 24)), Box((0, 60, 60), (8, 24, 24))]
    held = tuple(HoldoutBox(volume_id="phantom", box=box, part="test", stratum="grid") for box in boxes)
    campaign.freeze_holdout(Holdout(boxes=held, guard_zyx=(2, 4, 4)))
    write_volume_maps(campaign, 0, numbered > 0)
    found = evaluate_generation(campaign, 0, choose_scored_objects)
    details = [box.details[0].instances for box in found.boxes]
    assert [(d.found, d.true, d.matched[0]) for d in details if d] == [(1, 2, 1), (1, 1, 1), (0, 0, 0)]
    scores = group_scores(found, "test", ("nucleus",))[0].scores
    assert scores["dice"].value == 1.0
    assert scores["ap50"].value == pytest.approx(2 / 3)
    assert scores["vi_split"].value == pytest.approx(0)
    assert scores["vi_merge"].value > 0.4
