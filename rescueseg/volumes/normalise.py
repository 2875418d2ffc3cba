"""Intensity scaling, and reading boxes that reach beyond the volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box, partition, zyx
from rescueseg.randomness import seeded_generator
from rescueseg.records import Normalisation

_PERCENTILES = (0.5, 99.5)
_SAMPLE_BOXES = 64
_SAMPLE_STEP = 3
_SAMPLE_SEED = 0x5EED


class Array(Protocol):
    """What `read_box` and `measure` need: a NumPy or Zarr array whose last axes are z, y, x."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, the last three axes being z, y, x."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    def __getitem__(self, selection: Any, /) -> Any:
        """Return the voxels of a basic selection."""
        ...


def read_box(array: Array, box: Box) -> npt.NDArray[Any]:
    """Read a box; where it reaches beyond the volume, the image is mirrored at its border.

    Parameters
    ----------
    array : zarr.Array or ndarray
        ``(…, z, y, x)``.
    box : Box
        May start below zero, end beyond the volume, or be larger than it.

    Returns
    -------
    ndarray
        ``(…, *box.shape_zyx)``, the leading axes kept whole. Mirroring does not repeat the border voxel.

    Examples
    --------
    A line of four voxels along x, read from two voxels before it to one behind it:

    >>> line = np.array([[[10, 11, 12, 13]]])
    >>> read_box(line, Box((0, 0, -2), (1, 1, 7))).tolist()
    [[[12, 11, 10, 11, 12, 13, 12]]]
    """
    indices = [_mirrored(o, s, n) for o, s, n in zip(box.offset_zyx, box.shape_zyx, array.shape[-3:], strict=True)]
    first = [int(i.min()) for i in indices]
    lead = (slice(None),) * (array.ndim - 3)
    inside = tuple(slice(f, int(i.max()) + 1) for f, i in zip(first, indices, strict=True))
    voxels = np.asarray(array[(*lead, *inside)])
    for axis, (index, start) in enumerate(zip(indices, first, strict=True)):
        if len(index) != inside[axis].stop - start or np.any(np.diff(index) != 1):
            voxels = np.take(voxels, index - start, axis=axis - 3)
    return voxels


def _mirrored(offset: int, length: int, size: int) -> npt.NDArray[np.int64]:
    """Return the indices in [0, size) that a mirrored axis shows from `offset` on."""
    period = max(1, 2 * (size - 1))
    index = np.arange(offset, offset + length) % period
    return np.where(index >= size, period - index, index).astype(np.int64)


def normalise(voxels: npt.NDArray[Any], normalisation: Normalisation) -> npt.NDArray[np.float32]:
    """Scale intensities: clip to [low, high], subtract the mean, divide by the standard deviation.

    Parameters
    ----------
    voxels : ndarray
        ``czyx``, any real dtype.
    normalisation : Normalisation
        As measured at import; where it has one entry per channel, each channel gets its own.

    Returns
    -------
    ndarray
        float32, same shape.

    Examples
    --------
    Counts of a camera; what lies beyond the limits 100 and 500 is clipped:

    >>> scaling = Normalisation(low=100, high=500, mean=300, std=100)
    >>> normalise(np.array([[[[0, 100, 300, 400, 900]]]], np.uint16), scaling).tolist()
    [[[[-2.0, -2.0, 0.0, 1.0, 2.0]]]]
    """
    parts: Sequence[Normalisation] = normalisation.per_channel or (normalisation,) * len(voxels)
    scaled = np.empty(voxels.shape, np.float32)
    for out, channel, part in zip(scaled, voxels, parts, strict=True):
        np.clip(channel.astype(np.float32), part.low, part.high, out=out)
        out -= np.float32(part.mean)
        out /= np.float32(part.std)
    return scaled


def measure(array: Array, chunk_zyx: Sequence[int]) -> Normalisation:
    """Measure the intensity scaling of a ``czyx`` image from a fixed sample of its chunks.

    Percentiles 0.5 and 99.5 are the limits; mean and standard deviation are those of the clipped sample. Every
    third voxel of at most 64 chunks is taken, the same ones for the same shape.

    Parameters
    ----------
    array : zarr.Array or ndarray
        ``czyx``.
    chunk_zyx : sequence of int
        Shape of the boxes sampled.

    Returns
    -------
    Normalisation
        With one entry per channel where there are several.
    """
    boxes = partition(array.shape[-3:], zyx(chunk_zyx))
    if len(boxes) > _SAMPLE_BOXES:
        indices = seeded_generator(_SAMPLE_SEED).choice(len(boxes), _SAMPLE_BOXES, replace=False)
        boxes = [boxes[i] for i in sorted(indices.tolist())]
    samples = [
        np.concatenate([np.ravel(array[(c, *box.slices)])[::_SAMPLE_STEP].astype(np.float32) for box in boxes])
        for c in range(array.shape[0])
    ]
    return measure_samples(samples)


def measure_samples(samples: Sequence[npt.NDArray[np.float32]]) -> Normalisation:
    """Return the intensity scaling of samples of voxels, one for each channel; see `measure`."""
    overall = _measure(np.concatenate(samples) if len(samples) > 1 else samples[0])
    if len(samples) == 1:
        return overall
    return overall.model_copy(update={"per_channel": tuple(_measure(sample) for sample in samples)})


def rescaled(normalisation: Normalisation, maps: Sequence[tuple[float, float]]) -> Normalisation:
    """Return the scaling of a volume whose intensities have to be mapped first.

    Parameters
    ----------
    normalisation : Normalisation
        Of a domain.
    maps : sequence of (float, float)
        Gain (positive) and offset of each channel: ``gain * v + offset`` is on the domain's scale.

    Returns
    -------
    Normalisation
        Gives for ``v`` what `normalisation` gives for the mapped value.

    Examples
    --------
    A volume of half the gain: 200 counts there mean what 400 mean in its domain.

    >>> domain = Normalisation(low=0, high=1000, mean=400, std=100)
    >>> own = rescaled(domain, [(2.0, 0.0)])
    >>> own.low, own.high, own.mean, own.std
    (0.0, 500.0, 200.0, 50.0)
    """
    if all(m == (1.0, 0.0) for m in maps):
        return normalisation
    parts = normalisation.per_channel or (normalisation,) * len(maps)
    mapped = tuple(_unmapped(p, gain, offset) for p, (gain, offset) in zip(parts, maps, strict=True))
    if len(mapped) == 1:
        return mapped[0]
    return _unmapped(normalisation, *maps[0]).model_copy(update={"per_channel": mapped})


def _unmapped(part: Normalisation, gain: float, offset: float) -> Normalisation:
    low, high, mean = ((v - offset) / gain for v in (part.low, part.high, part.mean))
    return Normalisation(low=low, high=high, mean=mean, std=part.std / gain)


def _measure(sample: npt.NDArray[np.float32]) -> Normalisation:
    low, high = (float(v) for v in np.percentile(sample, _PERCENTILES))
    if high <= low:
        low, high = float(sample.min()), float(sample.max())
    clipped = np.clip(sample, low, high)
    std = float(clipped.std(dtype=np.float64))
    return Normalisation(low=low, high=high, mean=float(clipped.mean(dtype=np.float64)), std=std if std > 0 else 1.0)
