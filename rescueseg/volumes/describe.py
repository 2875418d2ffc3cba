"""What can be measured of one volume by a bounded read: bit depth, clipping, intensities, noise, texture, sharpness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.progress import CountProgress
from rescueseg.records import Record, VolumeRecord
from rescueseg.volumes import texture
from rescueseg.volumes.normalise import Array
from rescueseg.volumes.subsample import sample_boxes

VOXELS = 12_000_000
"""Voxels read of a volume, all channels together, about: a few seconds."""
BOX_ZYX = (64, 128, 128)
"""Boxes that are read at a time: long enough to see structures of some ten voxels."""
QUANTILES = np.linspace(0.5, 99.5, 100)
"""Percentiles that stand for an intensity distribution; beyond them lie hot voxels and dust."""
_PLANE_STEP = 8
_SAMPLE = 500_000
"""Intensities per channel that a volume contributes to the normalisation of its domain."""
_NOISE_ALONE = 0.95
"""Share of variogram noise above which edges are chance."""
_SPIKE = 4.0
"""Times as many voxels as at the neighbouring values make a spike of the histogram."""


class Levels(Record):
    """The values that the voxels take."""

    bits: int | None
    """Effective bit depth: what the largest value over the step takes; None for broken numbers."""
    step: float | None
    """Distance between possible values, such as 16 for 12-bit data shifted into 16."""
    unused: float
    """Share of the possible values between the 0.5 and 99.5 percentile that no voxel has."""
    low: float
    high: float
    low_share: float
    """Share of the voxels at the lowest value where it is a spike of the histogram, else 0."""
    high_share: float
    """Share of the voxels at the highest value where it is a spike: clipped, saturated."""
    spikes: tuple[tuple[float, float], ...]
    """Other spikes: value and share of the voxels, the largest first."""


class Description(Record):
    """What was measured of a volume."""

    volume_id: str
    chunks_read: int
    chunks: int
    voxels_read: int
    levels: Levels
    quantiles: tuple[tuple[float, ...], ...]
    """For each channel, at `QUANTILES`."""
    noise_share: float
    """Share of the variance that is white noise, by the variogram (`texture.variogram_noise`)."""
    blur_pixels: float | None
    """Standard deviation of the blur of the strongest edges in the planes; None without edges."""
    structure_voxels: tuple[float | None, float | None, float | None]
    """Lag at which the structure has lost half of its correlation; None where it cannot be seen."""
    variogram: tuple[tuple[float, ...], ...]
    """Along z, y and x at the first of `texture.LAGS`, as a share of the variance."""


@dataclass(frozen=True)
class Measurement:
    """A volume's record, what was measured of it, and a sample of its intensities.

    Parameters
    ----------
    record : VolumeRecord
        Of the campaign.
    description : Description
        The numbers.
    samples : tuple of ndarray of float32
        For each channel, at most half a million intensities.
    """

    record: VolumeRecord
    description: Description
    samples: tuple[npt.NDArray[np.float32], ...]

    @property
    def volume_id(self) -> str:
        """The volume."""
        return self.record.volume_id

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.record.shape_zyx)

    @property
    def spacing(self) -> Spacing:
        """Voxel size in micrometre."""
        return self.record.spacing_um_zyx

    @property
    def quantiles(self) -> npt.NDArray[np.float64]:
        """Quantiles, shape (channels, len(QUANTILES))."""
        return np.array(self.description.quantiles)

    @property
    def blur_um(self) -> float | None:
        """Blur in the planes in micrometre."""
        pixels = self.description.blur_pixels
        return None if pixels is None else pixels * math.sqrt(self.spacing[1] * self.spacing[2])

    @property
    def structure_um(self) -> tuple[float | None, ...]:
        """Length of the structure along z, y, x in micrometre."""
        return tuple(
            None if n is None else n * s for n, s in zip(self.description.structure_voxels, self.spacing, strict=True)
        )


def measure_volume(
    record: VolumeRecord, image: Array, chunk_zyx: Sequence[int], progress: CountProgress | None = None
) -> Measurement:
    """Measure a volume by a deterministic subsample of its chunks.

    Parameters
    ----------
    record : VolumeRecord
        Its record.
    image : zarr.Array or ndarray
        ``czyx``.
    chunk_zyx : sequence of int
        Shape of its chunks.
    progress : callable, optional
        Called with boxes done and boxes in all.
    """
    box_zyx = zyx(
        min(n, c * max(1, round(b / c))) for n, c, b in zip(record.shape_zyx, chunk_zyx, BOX_ZYX, strict=True)
    )
    boxes = sample_boxes(record.shape_zyx, box_zyx, max(1, VOXELS // record.channels), "consistency")
    report = progress or (lambda _done, _total: None)
    parts: list[npt.NDArray[Any]] = []
    for index, box in enumerate(boxes):
        report(index, 2 * len(boxes))
        parts.append(np.asarray(image[(slice(None), *box.slices)]))
    samples = tuple(_sample([part[c].ravel() for part in parts]) for c in range(record.channels))
    quantiles = [np.percentile(sample, QUANTILES) for sample in samples]
    variograms, edges = [texture.Variogram() for _ in range(3)], texture.Edges()
    moments = np.zeros(3)
    for index, part in enumerate(parts):
        report(len(boxes) + index, 2 * len(boxes))
        scaled = texture.standardise(part, [q[0] for q in quantiles], [q[-1] for q in quantiles])
        for axis, variogram in enumerate(variograms):
            variogram.add(scaled, axis)
        edges.add(scaled[::_PLANE_STEP])
        moments += (scaled.size, scaled.sum(dtype=np.float64), float(np.dot(scaled.ravel(), scaled.ravel())))
    report(2 * len(boxes), 2 * len(boxes))
    variance = float(max(0.0, moments[2] / moments[0] - (moments[1] / moments[0]) ** 2))
    curves = [v.values() for v in variograms]
    lengths = [texture.structure_length(c, variance) for c in curves]
    noise_share = _variogram_noise_share(curves, variance)
    return Measurement(
        record,
        Description(
            volume_id=record.volume_id,
            chunks_read=sum(_chunks(box, chunk_zyx) for box in boxes),
            chunks=_chunks(Box((0, 0, 0), record.shape_zyx), chunk_zyx),
            voxels_read=sum(box.size for box in boxes),
            levels=levels_of(parts),
            quantiles=tuple(tuple(q.tolist()) for q in quantiles),
            noise_share=noise_share,
            blur_pixels=edges.blur() if noise_share < _NOISE_ALONE else None,
            structure_voxels=(lengths[0], lengths[1], lengths[2]),
            variogram=tuple(tuple((c / variance).tolist()) if variance > 0 else () for c in curves),
        ),
        samples,
    )


def levels_of(parts: Sequence[npt.NDArray[Any]]) -> Levels:
    """Describe the values that voxels take.

    Parameters
    ----------
    parts : sequence of ndarray
        Boxes of a volume, any shape, one real dtype.

    Examples
    --------
    Values of a 12-bit camera that were shifted into 16 bits:

    >>> levels = levels_of([np.arange(4096, dtype=np.uint16) * 16])
    >>> levels.bits, levels.step, levels.low, levels.high
    (12, 16.0, 0.0, 65520.0)
    """
    values, counts = _histogram(parts)
    total = float(counts.sum())
    low_share, high_share = (
        float(c[0] / total) if len(c) > 1 and c[0] > _SPIKE * np.median(c[1:9]) else 0.0 for c in (counts, counts[::-1])
    )
    inner = counts[1:-1]
    beside = np.maximum(counts[:-2], counts[2:]) if len(counts) > 2 else inner
    spikes = [
        (v, n / total)
        for v, n in zip(
            values[1:-1][inner > _SPIKE * beside].tolist(), inner[inner > _SPIKE * beside].tolist(), strict=True
        )
    ]
    spikes = sorted((s for s in spikes if s[1] >= 0.005), key=lambda s: -s[1])[:3]
    step = _step(values)
    bits, unused = None, 0.0
    if step is not None:
        most = (values[-1] - min(0.0, values[0])) / step if step == 1 else (values[-1] - values[0]) / step
        bits = max(1, math.ceil(math.log2(most + 1)))
        robust = np.interp((0.005, 0.995), np.cumsum(counts) / total, values)
        used = int(((values >= robust[0]) & (values <= robust[1])).sum())
        unused = max(0.0, 1 - used / ((robust[1] - robust[0]) // step + 1))
    return Levels(
        bits=bits,
        step=step,
        unused=unused,
        low=float(values[0]),
        high=float(values[-1]),
        low_share=low_share,
        high_share=high_share,
        spikes=tuple(spikes),
    )


def _histogram(parts: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    if parts[0].dtype in (np.uint8, np.uint16):
        counts = np.zeros(np.iinfo(parts[0].dtype).max + 1, np.int64)
        for part in parts:
            counts += np.bincount(part.ravel(), minlength=len(counts))
        values = np.flatnonzero(counts)
        return values.astype(np.float64), counts[values]
    every, numbers = np.unique(
        np.concatenate([part.ravel()[:: max(1, len(parts) // 4)] for part in parts]), return_counts=True
    )
    return every.astype(np.float64), numbers.astype(np.int64)


def _step(values: npt.NDArray[np.float64]) -> float | None:
    """Return the greatest common divisor of the differences between whole values; None for broken or huge ones."""
    if not np.all(values == np.rint(values)) or np.abs(values).max() >= 2**53 or len(values) < 2:
        return None
    return float(np.gcd.reduce(np.diff(values).astype(np.int64)))


def _variogram_noise_share(curves: Sequence[npt.NDArray[np.float64]], variance: float) -> float:
    """Return the variogram noise along y and x as a share: along z, structures may be as short as noise."""
    shares = [texture.variogram_noise(c) / variance for c in curves[1:] if len(c) > 1 and variance > 0]
    return min(1.0, float(np.mean(shares))) if shares else 0.0


def _sample(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    step = max(1, math.ceil(sum(map(len, parts)) / _SAMPLE)) | 1  # odd: lines of a plane do not come in step
    return np.concatenate([part[::step].astype(np.float32) for part in parts])


def _chunks(box: Box, chunk_zyx: Sequence[int]) -> int:
    return math.prod(
        math.ceil(stop / c) - start // c for start, stop, c in zip(box.offset_zyx, box.stop_zyx, chunk_zyx, strict=True)
    )
