"""Evidence that needs no label: one number per question, each with its unit and how it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box, Spacing
from rescueseg.records import Record
from rescueseg.triage import image as im


class Evidence(Record):
    """One measured number.

    The stored names ``noise``, ``noise_range`` and ``snr`` are those of the Haar noise, `image.haar_noise`.
    """

    name: str
    value: float | None
    """None where it could not be measured."""
    unit: str = ""
    """Micrometre, intensity units…; empty for a ratio."""
    how: str = ""
    """How it was measured."""
    censored: bool = False
    """Whether the true value may be larger: the patches cut what was measured."""


@dataclass
class ImageMeasures:
    """What is measured on the subsample of a volume without any label.

    Parameters
    ----------
    step : float
        Quantisation step.
    haar_noise_by_plane : dict of int to list of float
        `image.haar_noise` of the planes read, by z, one entry per chunk.
    spread : float
        Between the 1st and the 99th percentile of the intensities.
    correlation_lengths : list of (float, float)
        Along z and in the plane, in micrometre, one entry per chunk.
    plane_steps : dict of int to list of float
        Change of the typical intensity from the plane before, by z, one entry per chunk.
    """

    step: float
    haar_noise_by_plane: dict[int, list[float]]
    spread: float
    correlation_lengths: list[tuple[float, float]] = field(default_factory=list)
    plane_steps: dict[int, list[float]] = field(default_factory=dict)

    @property
    def haar_noise(self) -> float:
        """Median over depth of the planes' Haar noise."""
        return float(np.median([np.median(v) for v in self.haar_noise_by_plane.values()]))

    def haar_noise_at(self, z: int) -> float:
        """Return the Haar noise at a depth: the median over the planes read there, a tenth of the depth wide."""
        reach = max(1, (max(self.haar_noise_by_plane) - min(self.haar_noise_by_plane) + 1) // 20)
        near = [v for plane, values in self.haar_noise_by_plane.items() if abs(plane - z) <= reach for v in values]
        return float(np.median(near)) if near else self.haar_noise


def measure_chunks(chunks: Sequence[tuple[Box, npt.NDArray[Any]]], spacing_um_zyx: Spacing) -> ImageMeasures:
    """Measure what needs no label from a subsample of one channel.

    Parameters
    ----------
    chunks : sequence of (Box, ndarray)
        Boxes with their intensities, zyx.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    """
    sample = np.concatenate([values.ravel()[:: max(1, values.size // 20_000)] for _, values in chunks])
    low, high = np.percentile(sample, (1, 99))
    measures = ImageMeasures(im.quantisation_step(sample), {}, float(high - low))
    for box, values in chunks:
        if min(values.shape[1:]) >= 2:
            for z, noise in enumerate(im.haar_noise(values, measures.step), start=box.offset_zyx[0]):
                measures.haar_noise_by_plane.setdefault(z, []).append(float(noise))
        for z, change in enumerate(im.plane_steps(values), start=box.offset_zyx[0] + 1):
            measures.plane_steps.setdefault(z, []).append(float(change))
        measures.correlation_lengths.append(im.correlation_lengths(values, spacing_um_zyx))
    if not measures.haar_noise_by_plane:
        measures.haar_noise_by_plane[0] = [measures.step / math.sqrt(12)]
    return measures


def image_evidence(volumes: Sequence[ImageMeasures], spacings: Sequence[Spacing]) -> list[Evidence]:
    """Return the evidence that needs no label; of several volumes the worst where one counts, else the median."""
    along = [
        im.weighted_median([z for z, _ in v.correlation_lengths], [1.0] * len(v.correlation_lengths)) for v in volumes
    ]
    across = [
        im.weighted_median([p for _, p in v.correlation_lengths], [1.0] * len(v.correlation_lengths)) for v in volumes
    ]
    blur = [z / p for z, p in zip(along, across, strict=True) if p > 0 and not math.isnan(z)]
    return [
        evidence_of(
            "noise",
            float(np.median([v.haar_noise for v in volumes])),
            "intensity",
            "MAD of Haar details per plane, median over depth",
        ),
        evidence_of(
            "noise_range", max(_depth_ratio(v) for v in volumes), "", "noisiest over quietest tenth of the depth"
        ),
        evidence_of(
            "quantisation", max(v.step for v in volumes), "intensity", "smallest difference between two intensities"
        ),
        evidence_of(
            "anisotropy", max(s[0] / min(s[1:]) for s in spacings), "", "spacing along z over that in the plane"
        ),
        evidence_of(
            "axial_blur",
            float(np.median(blur)) if blur else math.nan,
            "",
            "correlation length along z over that in the plane",
        ),
        evidence_of(
            "z_drift", max(_drift(v) for v in volumes), "", "range of the summed plane steps over the intensity range"
        ),
        evidence_of(
            "z_step",
            max(_largest_step(v) for v in volumes),
            "",
            "largest step between two planes over the intensity range",
        ),
    ]


def _depth_ratio(volume: ImageMeasures) -> float:
    values = [float(np.median(v)) for v in volume.haar_noise_by_plane.values()]
    low, high = np.percentile(values, (10, 90))
    return float(high / max(low, 1e-12))


def _drift(volume: ImageMeasures) -> float:
    summed = np.cumsum([np.median(volume.plane_steps[z]) for z in sorted(volume.plane_steps)])
    return float(np.ptp(summed)) / volume.spread if len(summed) and volume.spread else 0.0


def _largest_step(volume: ImageMeasures) -> float:
    steps = [abs(float(np.median(v))) for v in volume.plane_steps.values()]
    return (max(steps) - float(np.median(steps))) / volume.spread if steps and volume.spread else 0.0


def evidence_of(name: str, value: float, unit: str, how: str, censored: bool = False) -> Evidence:
    """Return a measured number, None for nan."""
    is_measured = not math.isnan(value)
    number = round(float(value), 6) if is_measured else None
    return Evidence(name=name, value=number, unit=unit, how=how, censored=censored)
