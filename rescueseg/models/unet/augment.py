"""Augmentation of windows on the device that trains, the random state of each window set from its key."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandFlipd, RandRotate90d
from monai.transforms.transform import Randomizable
from monai.utils.misc import MAX_SEED
from torch import Tensor

from rescueseg.geometry import Spacing
from rescueseg.models.unet.plan import TrainingPlan
from rescueseg.models.unet.warp import Warp
from rescueseg.randomness import keyed_generator

_BLUR = 0.3, 1.0
"""Standard deviation of a blur along each axis, as a length: in voxels of the finest spacing."""


class Augmentation:
    """A warp, flips, quarter turns where the plane is square, then intensity changes of the image alone, by MONAI.

    Parameters
    ----------
    plan : TrainingPlan
        Tells whether y and x may be exchanged, and how long a voxel is.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        both, image = ["image", "label"], ["image"]
        steps: list[Any] = [RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)]
        if plan.square:
            steps.append(RandRotate90d(both, prob=0.5, max_k=3, spatial_axes=(1, 2)))
        steps += [
            random_blur(plan.spacing_um_zyx, prob=0.1),
            RandScaleIntensityd(image, prob=0.5, factors=0.3),
            RandShiftIntensityd(image, prob=0.5, offsets=0.3),
            RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            RandGaussianNoised(image, prob=0.3, std=0.2),
        ]
        self._steps = Compose(steps)

    def reseed(self, seed: int) -> None:
        """Set the random state of every step as MONAI's `Compose.set_random_state` does.

        That makes a generator for each of some fifteen parts, which took a quarter of a window's time; here they are kept.
        """
        self._steps.R.seed(seed)
        for step in self._steps.transforms:
            own = int(self._steps.R.randint(MAX_SEED, dtype="uint32"))
            for part in (step, *(value for value in vars(step).values() if isinstance(value, Randomizable))):
                part.R.seed(own)

    def __call__(self, image: Tensor, label: Tensor, warp: Warp, *key: int | str) -> tuple[Tensor, Tensor]:
        """Augment one window.

        Parameters
        ----------
        image : Tensor of float32, shape (c, z, y, x)
            Normalised; the window with the margin of its warp.
        label : Tensor, shape (channels, z, y, x)
            The labels, uint8; or float32 with what else is learned in further channels.
        warp : Warp
            How the window is rotated, scaled and bent.
        *key : int or str
            What the random numbers derive from.
        """
        seed = int(keyed_generator(*key, "augmentation").integers(np.iinfo(np.uint32).max))
        self.reseed(seed)
        tracked = get_track_meta()
        set_track_meta(False)
        try:
            image, label = warp.apply(image, label)
            out = self._steps({"image": image, "label": label})
        finally:
            set_track_meta(tracked)
        return torch.as_tensor(out["image"]).contiguous(), torch.as_tensor(out["label"]).contiguous()


def random_blur(spacing_um_zyx: Spacing, prob: float) -> RandGaussianSmoothd:
    """Return a blur of the image that reaches as far in micrometre along each axis, in a share of the windows."""
    finest = min(spacing_um_zyx)
    z, y, x = ((_BLUR[0] * finest / s, _BLUR[1] * finest / s) for s in spacing_um_zyx)
    return RandGaussianSmoothd(["image"], prob=prob, sigma_x=z, sigma_y=y, sigma_z=x)  # MONAI's x is the first axis
