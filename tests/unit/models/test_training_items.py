"""What a training reads: labels on the grid of their image at the working spacing, and windows around any labelled voxel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rescueseg.geometry import Box
from rescueseg.models.border_distance import UNKNOWN
from rescueseg.models.training_items import load_item
from rescueseg.volumes import open_truth
from tests import ball_pairs
from tests.training_rig import make_snapshot


def test_labels_and_objects_at_a_coarser_spacing_are_decided_by_the_shares_of_each_cell(tmp_path: Path) -> None:
    campaign = ball_pairs.make_campaign(tmp_path)
    box = Box((4, 11, 20), (12, 42, 50))
    labels = np.asarray(open_truth(campaign.volumes, "v0")[box.slices], np.uint8)
    labels[:, :9, :9] = 255
    snapshot = make_snapshot(campaign, [box], halo=(2, 9, 8), labels={0: labels})
    read, coarse = snapshot.items[0].read_box, (0.2, 0.2, 0.2)
    item = load_item(campaign.volumes, snapshot.items[0], coarse, border_um=0.4)
    context = np.full(read.shape_zyx, 255, np.uint8)
    context[box.relative_to(read).slices] = labels
    depth, rows, columns = (n // step for n, step in zip(read.shape_zyx, (1, 2, 2), strict=True))
    cells = context.reshape(depth, rows, 2, columns, 2)
    known, foreground = (cells != 255).sum(axis=(2, 4)), (cells == 1).sum(axis=(2, 4))
    assert {1, 2, 3} & set(known.ravel()), "some cells are labelled in part"
    expected = np.where(known == 0, 255, np.where(2 * foreground >= known, 1, 0))
    np.testing.assert_array_equal(item.labels, expected)
    assert item.border is not None
    assert (item.border > 0).sum() > 200
    assert ((item.border == 0) == (item.labels == 0))[item.border != UNKNOWN].all()
