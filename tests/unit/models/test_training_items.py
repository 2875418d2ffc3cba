"""What a training reads: labels on the grid of their image at the working spacing, and windows around any labelled voxel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.models import training_items
from rescueseg.models.border_distance import UNKNOWN
from rescueseg.models.training_items import Item, TrainingSet, border_targets, load_item
from rescueseg.volumes import open_truth
from tests import ball_pairs
from tests.training_rig import SPACING, make_campaign, make_snapshot


class OneVoxel:
    """A plan whose windows are the drawn voxels themselves."""

    spacing_um_zyx: Spacing = SPACING
    window_zyx = zyx((1, 1, 1))
    batch_size = 1000


@pytest.mark.parametrize("length", [19_999, 20_001, 61_234])
def test_the_kth_voxel_of_a_class_is_that_of_the_list_of_all(length: int) -> None:
    labels = np.random.default_rng(length).choice(np.array([0, 1, 255], np.uint8), (1, 1, length), p=(0.9, 0.02, 0.08))
    starts = np.arange(0, length, training_items._run_length(length))
    for value in (0, 1):
        counts = np.add.reduceat(labels.ravel() == value, starts, dtype=np.int64).cumsum()
        assert len(counts) <= 20_000
        every = np.flatnonzero(labels.ravel() == value)
        numbers = [*range(0, len(every), 37), len(every) - 1]
        assert [training_items._find_voxel(labels, value, counts, k) for k in numbers] == every[numbers].tolist()


def test_every_column_of_a_large_patch_is_drawn_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (100, 200, 200)  # a step that is a multiple of a row would meet the same columns in each
    labels = np.zeros(shape, np.uint8)
    labels[50, 100, 100] = 1
    columns = np.broadcast_to(np.arange(200, dtype=np.float32), shape)[None].copy()
    monkeypatch.setattr(training_items, "load_item", lambda *_: Item(columns, labels))
    campaign = make_campaign(tmp_path)
    snapshot = make_snapshot(campaign, [Box((0, 0, 0), (4, 8, 8))])
    data, again = (TrainingSet(campaign.volumes, snapshot, OneVoxel()) for _ in range(2))
    drawn = [(float(image), int(label)) for step in range(8) for image, label in data.batch(1, step)]
    assert drawn[:1000] == [(float(image), int(label)) for image, label in again.batch(1, 0)]
    background = np.array([column for column, label in drawn if label == 0], int)
    counts = np.bincount(background, minlength=200)
    assert len(counts) == 200
    expected = len(background) / 200
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 199) < 5 * np.sqrt(2 * 199), "as often as chance has it"


def test_labels_and_objects_at_a_coarser_spacing_are_decided_by_the_shares_of_each_cell(tmp_path: Path) -> None:
    campaign = ball_pairs.make_campaign(tmp_path)
    box = Box((4, 11, 20), (12, 42, 50))
    labels = np.asarray(open_truth(campaign.volumes, "v0")[box.slices], np.uint8)
    labels[:, :9, :9] = 255
    snapshot = make_snapshot(campaign, [box], halo=(2, 9, 8), labels={0: labels})
    read, coarse = snapshot.items[0].read_box, (0.2, 0.2, 0.2)
    item = load_item(campaign.volumes, snapshot.items[0], coarse, make_targets=border_targets(0.4))
    context = np.full(read.shape_zyx, 255, np.uint8)
    context[box.relative_to(read).slices] = labels
    depth, rows, columns = (n // step for n, step in zip(read.shape_zyx, (1, 2, 2), strict=True))
    cells = context.reshape(depth, rows, 2, columns, 2)
    known, foreground = (cells != 255).sum(axis=(2, 4)), (cells == 1).sum(axis=(2, 4))
    assert {1, 2, 3} & set(known.ravel()), "some cells are labelled in part"
    expected = np.where(known == 0, 255, np.where(2 * foreground >= known, 1, 0))
    np.testing.assert_array_equal(item.labels, expected)
    assert item.targets is not None
    assert (item.targets > 0).sum() > 200
    assert ((item.targets[0] == 0) == (item.labels == 0))[item.targets[0] != UNKNOWN].all()
