"""Intensities as models from elsewhere expect them: two percentiles of the volume become 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rescueseg.records import Normalisation
from rescueseg.volumes.normalise import denormalise
from rescueseg.weak_labels.base import Float32

_LEAST_RANGE = 1e-6
"""Of the percentiles, as a share of the larger: below it the volume has one value, and nothing but zeros is shown."""


@dataclass(frozen=True)
class PercentileScaling:
    """Takes this project's scaling of a volume back, and scales by percentiles.

    Parameters
    ----------
    normalisation : Normalisation
        Of the volume.
    lows, highs : tuple of float
        Of each channel, as imported: what becomes 0 and 1.
    """

    normalisation: Normalisation
    lows: tuple[float, ...]
    highs: tuple[float, ...]

    @classmethod
    def of(cls, images: Sequence[Float32], normalisation: Normalisation, low: float, high: float) -> PercentileScaling:
        """Measure the percentiles of each channel on parts of a volume, normalised czyx.

        Examples
        --------
        >>> values = np.arange(101, dtype=np.float32).reshape(1, 1, 1, 101)
        >>> plain = Normalisation(low=-1e6, high=1e6, mean=0, std=1, linear=0)
        >>> scaling = PercentileScaling.of([values], plain, 10, 90)
        >>> scaling.apply(values)[0, 0, 0, [10, 50, 90, 100]].tolist()
        [0.0, 0.5, 1.0, 1.125]
        """
        parts = [denormalise(image, normalisation) for image in images]
        ends = [
            np.percentile(np.concatenate([part[channel].ravel() for part in parts]), (low, high))
            for channel in range(len(parts[0]))
        ]
        return cls(normalisation, tuple(float(e[0]) for e in ends), tuple(float(e[1]) for e in ends))

    def apply(self, image: Float32) -> Float32:
        """Return a normalised image, float32 czyx, scaled anew; what lies beyond the percentiles stays beyond 0 and 1."""
        scaled = denormalise(image, self.normalisation)
        for channel, low, high in zip(scaled, self.lows, self.highs, strict=True):
            if high - low <= _LEAST_RANGE * max(abs(low), abs(high)):
                channel[...] = 0
            else:
                channel -= np.float32(low)
                channel /= np.float32(high - low)
        return scaled
