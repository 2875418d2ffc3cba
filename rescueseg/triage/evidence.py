"""From patches and chunks to evidence: one number per question, each with its unit and how it was measured."""

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
from rescueseg.triage.objects import Numbers, ObjectShape, describe_objects, split_at_necks, touching_fraction
from rescueseg.triage.rough_truth import objects_of, open_faces, whole_objects

_FEWEST_WHOLE = 3
"""Whole objects below which roundness is not judged: what a patch cuts looks rounder than it is."""


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


@dataclass(frozen=True)
class RoughPatch:
    """An annotated patch with its image.

    Parameters
    ----------
    volume_id : str
        Its volume.
    box : Box
        Its place.
    shape_zyx : tuple of int
        Shape of the volume.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    image : ndarray, zyx
        One channel, intensities as stored.
    labels : ndarray, zyx
        Numbered objects or classes; 0 is background.
    unknown : ndarray of bool, zyx
        Not annotated.
    instances : bool
        Whether the labels number the objects; a class mask is parted at its necks.
    """

    volume_id: str
    box: Box
    shape_zyx: tuple[int, int, int]
    spacing_um_zyx: Spacing
    image: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    unknown: npt.NDArray[np.bool_]
    instances: bool

    def objects(self) -> Numbers:
        """Return the numbered objects of the patch; voxels that are not annotated belong to none."""
        annotated_labels = np.where(self.unknown, 0, self.labels)
        return (
            objects_of(annotated_labels)
            if self.instances
            else split_at_necks(annotated_labels > 0, self.spacing_um_zyx)
        )


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
        _evidence(
            "noise",
            float(np.median([v.haar_noise for v in volumes])),
            "intensity",
            "MAD of Haar details per plane, median over depth",
        ),
        _evidence(
            "noise_range", max(_depth_ratio(v) for v in volumes), "", "noisiest over quietest tenth of the depth"
        ),
        _evidence(
            "quantisation", max(v.step for v in volumes), "intensity", "smallest difference between two intensities"
        ),
        _evidence("anisotropy", max(s[0] / min(s[1:]) for s in spacings), "", "spacing along z over that in the plane"),
        _evidence(
            "axial_blur",
            float(np.median(blur)) if blur else math.nan,
            "",
            "correlation length along z over that in the plane",
        ),
        _evidence(
            "z_drift", max(_drift(v) for v in volumes), "", "range of the summed plane steps over the intensity range"
        ),
        _evidence(
            "z_step",
            max(_largest_step(v) for v in volumes),
            "",
            "largest step between two planes over the intensity range",
        ),
    ]


def structure_evidence(patches: Sequence[RoughPatch], measures: dict[str, ImageMeasures]) -> list[Evidence]:
    """Return the evidence that needs a rough mask.

    Parameters
    ----------
    patches : sequence of RoughPatch
        Patches without a single labelled object tell nothing.
    measures : dict of str to ImageMeasures
        By volume.
    """
    numbered = [patch.objects() for patch in patches]
    faces = [open_faces(p.box, p.shape_zyx) for p in patches]
    described = [describe_objects(n, p.spacing_um_zyx, f) for n, p, f in zip(numbered, patches, faces, strict=True)]
    shapes = [shape for group in described for shape in group]
    if not shapes:
        return []
    by_volume, by_length = _weighted(shapes, lambda s: s.volume), _weighted(shapes, lambda s: s.skeleton + s.thickness)
    thickness = by_volume([s.thickness for s in shapes])
    whole = sum(len(whole_objects(n, p.box, p.shape_zyx)) for n, p in zip(numbered, patches, strict=True))
    skeleton = sum(s.skeleton for s in shapes)
    return [
        *_signal_evidence(patches, measures, thickness),
        _evidence("objects", len(shapes), "", "measured, cut ones included"),
        _evidence("whole_objects", whole, "", "not cut by a patch"),
        _evidence("thickness", thickness, "µm", "twice the depth of the middle, weighted by volume"),
        _evidence(
            "length",
            by_length([s.skeleton / s.thickness for s in shapes]),
            "",
            "skeleton of an object over its thickness, weighted by length",
        ),
        _evidence(
            "slenderness",
            by_volume([min(1.0, s.tubularity + s.plateness) for s in shapes]),
            "",
            "0 ball … 1 tube or sheet, Hessian of the mask",
        ),
        _evidence("tubularity", by_volume([s.tubularity for s in shapes]), "", "Hessian of the mask"),
        _evidence("plateness", by_volume([s.plateness for s in shapes]), "", "Hessian of the mask"),
        _evidence(
            "connected",
            max(map(_connected, described)),
            "",
            "share of a patch's structure in its largest object, where that is cut",
        ),
        _evidence(
            "branch_density",
            sum(s.branches for s in shapes) * thickness / skeleton if skeleton else 0.0,
            "",
            "branch points per thickness of skeleton",
        ),
        _evidence("euler_number", sum(1 - s.loops for s in shapes), "", "objects less tunnels"),
        _evidence(
            "touching",
            float(np.mean([touching_fraction(n) for n in numbered])),
            "",
            "share of objects that touch another",
        ),
        *_roundness_evidence(shapes, whole),
    ]


def _roundness_evidence(shapes: Sequence[ObjectShape], whole: int) -> list[Evidence]:
    """Return how round the objects are; not measured where too few are whole."""
    if whole < _FEWEST_WHOLE:
        star, sphere = math.nan, math.nan
    else:
        by_volume = _weighted(shapes, lambda s: s.volume)
        star, sphere = by_volume([s.star_convexity for s in shapes]), by_volume([s.sphericity for s in shapes])
    return [
        _evidence("star_convexity", star, "", "overlap with what 128 rays describe"),
        _evidence("sphericity", sphere, "", "surface of the equal ball over the object's"),
    ]


def _signal_evidence(
    patches: Sequence[RoughPatch], measures: dict[str, ImageMeasures], thickness: float
) -> list[Evidence]:
    """Contrast, SNR by depth, and background texture over contrast."""
    core: list[npt.NDArray[Any]] = []
    around: list[npt.NDArray[Any]] = []
    texture: list[npt.NDArray[Any]] = []
    ratios: list[float] = []
    weights: list[float] = []
    for patch in patches:
        parts = im.regions(patch.labels, patch.unknown, patch.spacing_um_zyx, thickness)
        core.append(patch.image[parts.core])
        around.append(patch.image[parts.surroundings])
        texture.append(im.background_texture(patch.image, parts.background, patch.spacing_um_zyx, thickness))
        if not (parts.core.any() and parts.surroundings.any()):
            continue
        contrast = abs(float(np.median(core[-1]) - np.median(around[-1])))
        per_plane = parts.core.sum(axis=(1, 2))
        depth = round(float(np.average(np.arange(len(per_plane)), weights=per_plane))) + patch.box.offset_zyx[0]
        ratios.append(contrast / max(measures[patch.volume_id].haar_noise_at(depth), 1e-12))
        weights.append(float(per_plane.sum()))
    inside, outside, rough = (np.concatenate(parts) for parts in (core, around, texture))
    if not len(inside) or not len(outside):
        return []
    contrast = float(np.median(inside) - np.median(outside))
    spread = im.robust_spread(rough) / abs(contrast) if len(rough) and contrast else math.nan
    return [
        _evidence("contrast", contrast, "intensity", "median of the structure less that of its surroundings"),
        _evidence("snr", im.weighted_median(ratios, weights), "", "contrast over the Haar noise at its depth"),
        _evidence("texture", spread, "", "background fluctuation at the structure's scale over contrast"),
    ]


def _connected(shapes: Sequence[ObjectShape]) -> float:
    total = sum(s.volume for s in shapes)
    return max((s.volume / total for s in shapes if s.cut), default=0.0)


def _weighted(shapes: Sequence[ObjectShape], weight: Any) -> Any:
    weights = [float(weight(s)) for s in shapes]
    return lambda values: im.weighted_median(values, weights)


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


def _evidence(name: str, value: float, unit: str, how: str) -> Evidence:
    is_measured = not math.isnan(value)
    return Evidence(name=name, value=round(float(value), 6) if is_measured else None, unit=unit, how=how)
