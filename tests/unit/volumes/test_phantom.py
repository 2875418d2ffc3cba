from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from rescueseg.volumes.phantom import make_phantom

SHAPE = (24, 128, 128)


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    image, truth, _ = make_phantom(SHAPE, seed=1)
    return image, truth


def test_image_and_truth_fit_each_other(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = phantom
    assert image.shape == truth.shape == SHAPE
    assert (image.dtype, truth.dtype) == (np.uint16, np.uint8)
    assert set(np.unique(truth)) == {0, 1}
    assert image.max() < 65535


def test_objects_are_sparse_and_several(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    _, truth = phantom
    assert 0.03 < truth.mean() < 0.09
    assert ndimage.label(truth)[1] >= 5


def test_the_same_seed_gives_the_same_voxels(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth, spacing = make_phantom(SHAPE, seed=1)
    np.testing.assert_array_equal(image, phantom[0])
    np.testing.assert_array_equal(truth, phantom[1])
    assert spacing == (0.25, 0.1, 0.1)
    assert (make_phantom(SHAPE, seed=2)[1] != truth).any()


def test_calibre_varies(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    _, truth = phantom
    numbers, count = ndimage.label(truth)
    depth = ndimage.distance_transform_edt(truth, sampling=(0.25, 0.1, 0.1))
    widest = ndimage.maximum(depth, numbers, range(1, count + 1))
    assert np.max(widest) > 1.5 * np.min(widest)


def test_no_threshold_comes_near_the_truth(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = phantom
    best = 0.0
    for sigma in (0, 1, 2):
        smooth = ndimage.gaussian_filter(image.astype(np.float32), (sigma / 3, sigma, sigma))
        for level in np.percentile(smooth, np.linspace(80, 99.5, 40)):
            found = smooth > level
            best = max(best, 2 * (found & (truth > 0)).sum() / (found.sum() + truth.sum()))
    assert best < 0.7


def test_one_region_is_dim_and_one_slab_is_brighter(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, _ = phantom
    signal = ndimage.median_filter(image.mean(axis=0), 15) - 100
    assert signal.min() < 0.5 * np.median(signal)
    planes = np.median(image.reshape(len(image), -1), axis=1) - 100
    assert 1.2 < np.median(planes[-6:]) / np.median(planes[:6]) < 1.8


def test_noise_grows_with_the_signal(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, _ = phantom
    smooth = ndimage.gaussian_filter(image.astype(float), 2)
    noise = np.abs(image - smooth)
    dark, bright = smooth < np.percentile(smooth, 10), smooth > np.percentile(smooth, 90)
    assert noise[bright].mean() > 1.5 * noise[dark].mean()


def test_isotropic_and_tiny_phantoms_work() -> None:
    image, truth, spacing = make_phantom((40, 40, 40), (0.1, 0.1, 0.1), seed=3)
    assert image.shape == truth.shape == (40, 40, 40)
    assert spacing == (0.1, 0.1, 0.1)
    assert truth.any()
