"""Augmentation by MONAI transforms, the random state of each sample set from its key."""

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
from torch import Tensor

from rescueseg.models.unet.plan import TrainingPlan
from rescueseg.randomness import keyed_generator


class Augmentation:
    """Flips, quarter turns where the plane is square, then intensity changes of the image alone.

    Parameters
    ----------
    plan : TrainingPlan
        Tells whether y and x may be exchanged.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        both, image = ["image", "label"], ["image"]
        steps: list[Any] = [RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)]
        if plan.square:
            steps.append(RandRotate90d(both, prob=0.5, max_k=3, spatial_axes=(1, 2)))
        steps += [
            RandGaussianSmoothd(image, prob=0.1, sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0), sigma_z=(0.3, 1.0)),
            RandScaleIntensityd(image, prob=0.5, factors=0.3),
            RandShiftIntensityd(image, prob=0.5, offsets=0.3),
            RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5)),
            RandGaussianNoised(image, prob=0.3, std=0.2),
        ]
        self._steps = Compose(steps)

    def __call__(self, image: Tensor, label: Tensor, *key: int | str) -> tuple[Tensor, Tensor]:
        """Augment one window.

        Parameters
        ----------
        image : Tensor of float32, shape (c, z, y, x)
            Normalised.
        label : Tensor, shape (channels, z, y, x)
            The labels, uint8; or float32 with border distances in a second channel.
        *key : int or str
            What the random numbers derive from.
        """
        seed = int(keyed_generator(*key, "augmentation").integers(np.iinfo(np.uint32).max))
        self._steps.set_random_state(seed=seed)
        tracked = get_track_meta()
        set_track_meta(False)
        try:
            out = self._steps({"image": image, "label": label})
        finally:
            set_track_meta(tracked)
        return torch.as_tensor(out["image"]).contiguous(), torch.as_tensor(out["label"]).contiguous()
