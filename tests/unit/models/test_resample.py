"""Resampling keeps places: a voxel of the result shows what lies there in proportion, of images and labels alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rescueseg.models.resample import class_shares, resample, resample_labels
from tests.puncta import puncta

SHAPES = [
    ((6, 8, 10), (3, 4, 10)),
    ((4, 8, 12), (4, 2, 3)),
    ((5, 9, 7), (4, 6, 5)),
    ((6, 6, 6), (9, 4, 6)),
    ((3, 4, 5), (6, 8, 5)),
]


@pytest.mark.parametrize(("length", "target"), [(100, 33), (70, 23), (64, 32), (95, 32), (103, 20), (26, 50), (40, 1)])
def test_a_ramp_stays_in_its_place(length: int, target: int) -> None:
    places = torch.arange(length, dtype=torch.float32) + 0.5
    result = resample(places.expand(1, 1, 2, 2, length), (2, 2, target))[0, 0, 0, 0]
    ratio = length / target
    expected = (torch.arange(target) + 0.5) * ratio
    inside = slice(1, -1) if target > 2 else slice(None)
    assert torch.allclose(result[inside], expected[inside], atol=0.05 * ratio)


def test_what_gets_coarser_is_averaged() -> None:
    noise = torch.randn((1, 1, 24, 60, 60), generator=torch.Generator().manual_seed(0))
    coarse = resample(noise, (8, 20, 20))
    assert coarse.std() < 0.3 * noise.std()
    torch.testing.assert_close(coarse[0, 0, 0, 0, 0], noise[0, 0, :3, :3, :3].mean())


def test_the_same_shape_is_the_same_tensor() -> None:
    tensor = torch.zeros((1, 2, 3, 4, 5))
    assert resample(tensor, (3, 4, 5)) is tensor


def finest(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return for each cell of a grid all equal pieces of voxels that lie in it: (*shape, pieces), by repeating voxels."""
    for axis, cells in enumerate(shape):
        array = array.repeat(cells, axis)
    z, y, x = (n // m for n, m in zip(array.shape, shape, strict=True))
    pieces = array.reshape(shape[0], z, shape[1], y, shape[2], x).transpose(0, 2, 4, 1, 3, 5)
    return pieces.reshape(*shape, -1)


@pytest.mark.parametrize("lengths", [(7, 5), (19, 10), (100, 33), (11, 10)])
def test_an_image_that_gets_coarser_is_the_mean_of_each_cell_at_any_ratio(lengths: tuple[int, int]) -> None:
    voxels, cells = lengths
    image = torch.randn((1, 1, 2, 3, voxels), generator=torch.Generator().manual_seed(0))
    expected = finest(image[0, 0].numpy().astype(np.float64), (2, 3, cells)).mean(axis=-1)
    np.testing.assert_allclose(resample(image, (2, 3, cells))[0, 0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("ratio", [1.5, 1.9, 2.0, 2.5])
def test_noise_falls_with_the_cell_and_not_in_a_jump_at_two(ratio: float) -> None:
    cells = 40
    noise = torch.randn((1, 1, 30, 30, round(cells * ratio)), generator=torch.Generator().manual_seed(0))
    assert float(resample(noise, (30, 30, cells)).var()) == pytest.approx(1 / ratio, rel=0.2)


@pytest.mark.parametrize(("shape", "target"), SHAPES)
def test_labels_are_decided_by_the_shares_of_each_cell(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        coarse = rng.choice([0, 1, 2, 3, 255], [-(-n // 2) for n in shape], p=[0.4, 0.2, 0.1, 0.1, 0.2])
        labels = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[: shape[0], : shape[1], : shape[2]]
        labels = np.where(rng.random(shape) < 0.3, rng.choice([0, 1, 2, 3, 255], shape), labels)
        pieces = finest(labels, target)
        counts = np.stack([(pieces == value).sum(axis=-1) for value in (1, 2, 3)])
        known = (pieces != 255).sum(axis=-1)
        expected = np.where(2 * counts.sum(axis=0) >= known, 1 + counts.argmax(axis=0), 0)
        expected = np.where(known == 0, 255, expected)
        np.testing.assert_array_equal(resample_labels(labels, target, 255), expected)
        numbers = np.where(labels == 255, -1, labels * 40)  # objects: numbers with gaps
        of_objects = np.where(expected == 255, -1, expected * 40)
        np.testing.assert_array_equal(resample_labels(numbers, target, -1), of_objects)
        if all(m <= n for n, m in zip(shape, target, strict=True)):
            shares, labelled = (t[0].numpy() for t in class_shares(torch.from_numpy(labels)[None], target, 3, 255))
            np.testing.assert_allclose(labelled[0], known / pieces.shape[-1], atol=1e-6)
            of_known = np.concatenate([(known - counts.sum(axis=0))[None], counts]) / np.maximum(known, 1)
            np.testing.assert_allclose(shares, of_known, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_sheet_of_one_voxel_outlives_a_grid_twice_as_coarse_wherever_it_lies(axis: int) -> None:
    for place in range(12):
        labels = np.zeros((12, 12, 12), int)
        labels[(slice(None),) * axis + (place,)] = 1
        expected = np.zeros((6, 6, 6), int)
        expected[(slice(None),) * axis + (place // 2,)] = 1
        np.testing.assert_array_equal(resample_labels(labels, (6, 6, 6), 255), expected)


@pytest.mark.parametrize(("shape", "target"), SHAPES)
def test_mirroring_commutes_with_resampling(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 255], shape)
    mirrored = resample_labels(labels[::-1, ::-1, ::-1], target, 255)
    np.testing.assert_array_equal(mirrored[::-1, ::-1, ::-1], resample_labels(labels, target, 255))


def sparse_and_thin() -> list[np.ndarray]:
    """Return puncta of seven voxels (0.1 %) and membranes of one, with a border that nobody labelled, of odd width."""
    _, dots = puncta((28, 44, 44), 0.001, 150)
    sheets = np.zeros((28, 44, 44), np.int64)
    sheets[:, ::12] = sheets[:, :, ::12] = 1
    arrays = [dots.astype(np.int64), sheets]
    for array in arrays:
        array[:, :3] = array[:, :, -5:] = 255
    return arrays


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (2, 4, 4), (2, 8, 8)])
def test_a_coarse_grid_holds_as_much_of_a_class_as_the_voxels_wherever_the_window_lies(stride: tuple[int, ...]) -> None:
    for labels in sparse_and_thin():
        for shift in np.ndindex(*stride):
            place = tuple(slice(s, s + n) for s, n in zip(shift, (24, 32, 32), strict=True))
            window = labels[place]
            target = [n // s for n, s in zip(window.shape, stride, strict=True)]
            shares, known = (t[0].double() for t in class_shares(torch.from_numpy(window)[None], target, 1, 255))
            expected = [(window == value).sum() / (window != 255).sum() for value in (0, 1)]
            mean = (shares * known).sum(dim=(1, 2, 3)) / known.sum()
            assert mean.tolist() == pytest.approx(expected, rel=1e-5)
