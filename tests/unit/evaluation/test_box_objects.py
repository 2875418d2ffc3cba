"""Objects of holdout boxes: each counted once and whole; fragments; what lies in the unknown; the perfect mask's scores."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.evaluation.box_objects import TrueObjects, centroids_inside, slivers
from rescueseg.evaluation.holdout_scores import assign, score_boxes, stored_maps
from rescueseg.evaluation.instances import Instances, compare_instances, connected_components, renumber_objects
from rescueseg.evaluation.pooled import group_scores
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.geometry import ZYX, Box
from rescueseg.queue.store import make_queue
from rescueseg.records import Holdout, HoldoutBox
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.benchmarks import object_counts
from tests.evaluated_campaign import SHAPE, SPACING, write_volume_maps

BOX: ZYX = (12, 48, 48)
"""Eight of them tile the volume."""


def balls(seed: int) -> np.ndarray:
    """Return numbered objects apart from each other, up to 4 voxels high and 10 wide."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros(SHAPE, np.uint16)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for corner in itertools.product(*(range(0, n - 5, step) for n, step in zip(SHAPE, (6, 14, 14), strict=True))):
        centre = np.array(corner) + (3, 7, 7) + rng.uniform(-1, 1, 3) * (0.4, 1.5, 1.5)
        ball = ((z - centre[0]) * 2) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= rng.uniform(3.5, 5) ** 2
        numbers[ball] = numbers.max() + 1
    return numbers


def evaluated(
    folder: Path, classes: dict[str, np.ndarray], mask: np.ndarray, guard: ZYX, boxes: list[Box]
) -> Evaluation:
    """Score a mask of one class against an instance truth on boxes."""
    campaign = Campaign.create(str(folder / "c"), check_config({"name": "objects", "classes": ["nucleus"]}))
    make_queue(campaign)
    for name, array in classes.items():
        tifffile.imwrite(folder / f"{name}.tif", array)
    files = VolumeImport(
        str(folder / "image.tif"),
        volume_id="phantom",
        spacing=SPACING,
        truth=str(folder / "truth.tif"),
        truth_type="instance",
    )
    import_volume(campaign, files)
    held = tuple(HoldoutBox(volume_id="phantom", box=box, part="test", stratum="grid") for box in boxes)
    campaign.freeze_holdout(Holdout(boxes=held, guard_zyx=guard))
    write_volume_maps(campaign, 0, mask)
    model = campaign.generation(0).model()
    assert model is not None
    assignment = assign(campaign, model, holdout_truth(campaign))
    return score_boxes(assignment, stored_maps(campaign.generation(0), assignment))


def instances(evaluation: Evaluation) -> list[Instances]:
    """Return the objects' scores of each box."""
    return [box.details[0].instances for box in evaluation.boxes if box.details[0].instances]


def test_boxes_that_tile_the_volume_count_as_the_whole_volume(tmp_path: Path) -> None:
    """The guard band is as wide as the largest object: each box then sees all that is counted in it."""
    truth = balls(0)
    rng = np.random.default_rng(1)
    missed = np.isin(truth, 1 + np.nonzero(rng.random(truth.max()) < 0.2)[0])
    mask = (object_counts.shifted(np.where(missed, 0, truth), (0, 1, 1)) > 0) | (balls(7) > 0)
    whole = compare_instances(connected_components(mask), renumber_objects(truth))
    boxes = object_counts.tiles(SHAPE, BOX)
    found = instances(evaluated(tmp_path, {"image": truth, "truth": truth}, mask, (6, 12, 12), boxes))
    assert len(found) == len(boxes)
    assert whole.true > 60
    assert 0.2 < whole.matched[0] / whole.true < 0.9
    assert sum(b.true for b in found) == whole.true
    assert (sum(b.matched[0] for b in found), sum(b.matched[1] for b in found)) == whole.matched
    assert sum(b.iou for b in found) == pytest.approx(whole.iou)
    assert sum(b.found for b in found) == pytest.approx(whole.found, abs=2), (
        "a piece as wide as two boxes has two places"
    )


def test_a_shift_by_a_voxel_costs_no_object_at_the_faces(tmp_path: Path) -> None:
    """All objects are matched in the whole volume, and so they are in the box; cut out of it, some were not."""
    truth = balls(0)
    prediction = object_counts.shifted(truth, (0, 0, 1))
    [box] = boxes = [Box((5, 30, 30), (8, 24, 24))]
    fragments = compare_instances(renumber_objects(prediction[box.slices]), renumber_objects(truth[box.slices]))
    [found] = instances(evaluated(tmp_path, {"image": truth, "truth": truth}, prediction > 0, (6, 12, 12), boxes))
    assert fragments.matched[0] / fragments.true < 0.9
    assert found.found == found.true == found.matched[0] > 3


def test_the_score_of_a_perfect_mask_goes_with_that_of_the_prediction(tmp_path: Path) -> None:
    truth = np.zeros(SHAPE, np.uint16)
    truth[2:6, 30:50, 10:20], truth[2:6, 30:50, 20:30], truth[2:6, 30:50, 40:50] = 1, 2, 3  # two of them touch
    box = Box((0, 20, 0), (10, 40, 60))
    result = evaluated(tmp_path, {"image": truth, "truth": truth}, np.isin(truth, (1, 3)), (2, 4, 4), [box])
    [detail] = result.boxes[0].details
    assert detail.instances is not None
    assert detail.ceiling is not None
    assert (detail.instances.found, detail.instances.true, detail.instances.matched[0]) == (2, 3, 2)
    assert (detail.ceiling.found, detail.ceiling.true, detail.ceiling.matched[0]) == (2, 3, 1)
    [group] = group_scores(result, "test", ("nucleus",))[:1]
    assert group.scores["ap50"].value == pytest.approx(2 / 3)
    assert group.ceilings["ap50"] == pytest.approx(1 / 4)
    assert group.ceilings["vi_merge"] == pytest.approx(2 / 3)
    assert group.ceilings["vi_split"] == pytest.approx(0)


def test_centroids_are_those_of_scipy() -> None:
    numbers, inner = balls(3).astype(np.int64), Box((4, 20, 40), (10, 30, 30))
    centres = np.array(ndimage.center_of_mass(numbers > 0, numbers, range(1, numbers.max() + 1)))
    inside = ((centres >= np.array(inner.offset_zyx) - 0.5) & (centres < np.array(inner.stop_zyx) - 0.5)).all(axis=1)
    assert 0 < inside.sum() < len(inside)
    assert centroids_inside(numbers, inner)[1:].tolist() == inside.tolist()


def test_of_a_box_alone_slivers_at_its_cut_faces_are_left_out() -> None:
    """Truth and prediction differ by a voxel; behind the first face that leaves an object that nothing can match."""
    truth = np.zeros((4, 12, 12), np.int64)
    truth[:, 0:2, 0:4], truth[:, 6:12, 2:8] = 1, 2
    prediction = np.zeros_like(truth)
    prediction[:, 0:1, 0:4], prediction[:, 6:12, 3:9] = 1, 2
    faces = ((False, False), (True, False), (False, False))
    true = TrueObjects(
        truth,
        ~slivers(truth, faces, (1, 2, 2)),
        np.zeros(truth.shape, bool),
        Box((0, 0, 0), truth.shape),
        faces,
        (1, 2, 2),
    )
    scores = true.compare(prediction)
    assert (scores.found, scores.true, scores.matched) == (1, 1, (1, 0))
    everything = compare_instances(prediction, truth)
    assert (everything.found, everything.true, everything.matched) == (2, 2, (1, 0))


def test_what_lies_mostly_in_the_unknown_is_no_false_object() -> None:
    """Kirillov et al., arXiv:1801.00868: unknown voxels are in no union, unmatched predictions mostly in them are dropped."""
    unknown = np.zeros((2, 10, 20), bool)
    unknown[..., 10:] = True
    truth, sliver, long, known = (np.zeros(unknown.shape, np.int64) for _ in range(4))
    truth[:, 1:9, 2:10] = 1
    sliver[:, 1:9, 9:19] = 1  # a tenth of it is known
    long[:, 1:9, 2:20] = 1  # the object, going on into the unknown
    known[:, 1:9, 4:14] = 1  # 6 of 10 columns are known
    nothing = np.zeros_like(truth)
    assert compare_instances(np.where(unknown, 0, sliver), nothing).found == 1, "cut away first, it is a false object"
    assert compare_instances(sliver, nothing, unknown).found == 0
    assert compare_instances(known, nothing, unknown).found == 1
    scores = compare_instances(long, truth, unknown)
    assert (scores.found, scores.matched, scores.iou) == (1, (1, 1), 1.0)


@pytest.mark.parametrize(
    ("name", "what", "context", "others"),
    [
        ("gonuclear_1135", "shifted x", 0.001, 0.1),
        ("gonuclear_1135", "shifted zyx", 0.001, 0.3),
        ("gonuclear_1135", "eroded, merged, missed", 0.001, 0.1),
        ("stardist_img3d", "shifted x", 0.001, 0.3),
        ("stardist_img3d", "shifted zyx", 0.03, 0.5),
        ("stardist_img3d", "eroded, merged, missed", 0.06, 0.3),
    ],
)
def test_boxes_of_real_volumes_score_as_the_whole(
    real_rows: dict[str, dict[str, dict[str, float]]], name: str, what: str, context: float, others: float
) -> None:
    """How far off they are, with context; all fragments are further off than `others`, and what a box alone says less."""
    row = real_rows[name][what]
    off = {rule: abs(value - row["whole"]) for rule, value in row.items()}
    assert off["context"] <= context
    assert min(off["fragments"], off["frame"]) > others
    assert off["slivers"] < min(off["fragments"], off["frame"])


@pytest.fixture(scope="module")
def real_rows(real_data: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return AP50 by volume, prediction and rule."""
    volumes = ("gonuclear_1135", "stardist_img3d")
    return {name: dict(itertools.islice(object_counts.figures(real_data, name), 3)) for name in volumes}
