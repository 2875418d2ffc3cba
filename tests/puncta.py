"""Images of sparse bright puncta, and how well a threshold tells them from the rest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.geometry import ZYX

BALL = ndimage.generate_binary_structure(3, 1)
"""A punctum: seven voxels."""


def puncta(
    shape: ZYX, share: float, amplitude: float, *, look_alikes: bool = False, hot: int = 0, seed: int = 0
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_]]:
    """Return an image (uint16 czyx, one channel) and the truth (zyx).

    Puncta lie on a grid, so that they do not touch, on a background of 100 ± 10.

    Parameters
    ----------
    shape : tuple of int
        zyx.
    share : float
        Of the voxels that belong to puncta.
    amplitude : float
        Of puncta above the background.
    look_alikes : bool
        Whether there are twice as many of 0.4 times the amplitude.
    hot : int
        Voxels set to 65,535.
    seed : int
        Of places and noise.
    """
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 10, shape)
    grid = np.stack(np.meshgrid(*(np.arange(2, n - 2, 4) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    count = round(share * image.size / BALL.sum())
    truth = np.zeros(shape, bool)
    for index, centre in enumerate(rng.permutation(grid)[: 3 * count if look_alikes else count]):
        around = tuple(slice(c - 1, c + 2) for c in centre.tolist())
        image[around] += BALL * (amplitude if index < count else 0.4 * amplitude)
        if index < count:
            truth[around] |= BALL
    image.flat[rng.choice(np.flatnonzero(~truth), hot, replace=False)] = 65535
    return np.rint(image).astype(np.uint16)[np.newaxis], truth


def best_dice(image: npt.NDArray[np.generic], truth: npt.NDArray[np.bool_]) -> float:
    """Return the best Dice that any threshold reaches on a bright structure."""
    values, index = np.unique(image, return_inverse=True)
    inside = np.bincount(index.ravel(), weights=truth.ravel(), minlength=len(values))[::-1].cumsum()
    every = np.bincount(index.ravel(), minlength=len(values))[::-1].cumsum()
    return float((2 * inside / (every + truth.sum())).max())
