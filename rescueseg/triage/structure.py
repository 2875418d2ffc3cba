"""Evidence that needs a rough mask: what the structure of a few annotated patches is like, and how it stands out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.triage import image as im
from rescueseg.triage.evidence import Evidence, ImageMeasures, evidence_of
from rescueseg.triage.lines import LONGEST, length_bounds
from rescueseg.triage.objects import (
    LONG,
    SMALLEST,
    Numbers,
    ObjectShape,
    describe_objects,
    split_at_necks,
    touching_fraction,
)
from rescueseg.triage.rough_truth import objects_of, open_faces, whole_objects
from rescueseg.triage.unannotated import annotated_place, close_gaps

_FEWEST_WHOLE = 3
"""Whole objects below which roundness is not judged: what a patch cuts looks rounder than it is."""
_STRETCH = 4.0
"""Length over thickness that is seen of an object, below which a patch that it leaves does not tell a line from an organelle."""
_OF_PATCHES = 0.2
"""Share of the structure that must lie in patches where one object holds most of it."""
_FLAT = 2.0
"""Depth of a patch in thicknesses of the objects, below which they are judged by their profiles."""
_SIDE_ON = 0.75
"""Share of the profiles' area below which lines are seen end-on: in random directions half have an aspect of 2 at most."""
_INNER = 0.25
"""Share of the lines on which an end would be seen, below which it tells nothing that none is: as with organelles that are about
as wide as the patch."""
_LINE = 0.5
"""Tubularity plus plateness from which an object has a length."""


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
    classes : ndarray, zyx, optional
        Class of each voxel where the labels are numbers; else the labels are the classes.
    """

    volume_id: str
    box: Box
    shape_zyx: tuple[int, int, int]
    spacing_um_zyx: Spacing
    image: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    unknown: npt.NDArray[np.bool_]
    instances: bool
    classes: npt.NDArray[Any] | None = None

    def of_class(self, value: int) -> RoughPatch:
        """Return the patch with the labels of one class alone."""
        classes = self.labels if self.classes is None else self.classes
        return replace(self, labels=np.where(classes == value, self.labels, 0))

    def class_voxels(self) -> dict[int, int]:
        """Return how many voxels each class has that is annotated."""
        classes = self.labels if self.classes is None else np.where(self.labels > 0, self.classes, 0)
        if self.instances and self.classes is None:
            classes = classes > 0
        values, counts = np.unique(classes[classes > 0], return_counts=True)
        return {int(value): int(count) for value, count in zip(values, counts, strict=True)}

    def annotated_part(self) -> RoughPatch:
        """Return the smallest part that holds all that is annotated."""
        place = annotated_place(self.unknown)
        start = [o + s.start for o, s in zip(self.box.offset_zyx, place, strict=True)]
        box = Box(zyx(start), zyx(s.stop - s.start for s in place))
        parts = {name: getattr(self, name)[place] for name in ("image", "labels", "unknown")}
        return replace(self, box=box, **parts, classes=None if self.classes is None else self.classes[place])

    def without_gaps(self) -> RoughPatch:
        """Return the patch with what is not annotated closed where that is a narrow gap, see `unannotated.close_gaps`."""
        labels, unknown = close_gaps(self.labels, self.unknown, self.spacing_um_zyx)
        return replace(self, labels=labels, unknown=unknown)

    def objects(self) -> Numbers:
        """Return the numbered objects of the patch; voxels that are not annotated belong to none."""
        return self._numbered(self.labels, self.unknown)

    def shapes(self, numbers: Numbers) -> list[ObjectShape]:
        """Measure the numbered objects; the patch's faces cut them, and what is not annotated.

        The skeleton of an object that nearly fills the patch winds through its bulk: no line is longer than the patch has
        room for, with gaps as wide as itself.
        """
        shapes = describe_objects(numbers, self.spacing_um_zyx, open_faces(self.box, self.shape_zyx), self.unknown)
        sides = [n * s for n, s in zip(self.box.shape_zyx, self.spacing_um_zyx, strict=True)]
        return [shape if math.isnan(shape.thickness) else _within(shape, sides) for shape in shapes]

    def profiles(self) -> list[ObjectShape]:
        """Measure what three planes of the patch show of its objects, each plane on its own."""
        planes = sorted({round(share * (len(self.labels) - 1)) for share in (1 / 6, 1 / 2, 5 / 6)})
        faces = [(True, True), *open_faces(self.box, self.shape_zyx)[1:]]
        profiles: list[ObjectShape] = []
        for z in planes:
            labels, unknown = self.labels[z : z + 1], self.unknown[z : z + 1]
            profiles += describe_objects(self._numbered(labels, unknown), self.spacing_um_zyx, faces, unknown)
        return profiles

    def is_flat(self, thickness: float) -> bool:
        """Tell whether it is too flat for objects of a thickness in micrometre: what it shows of a ball is a disc."""
        depth, *plane = (n * s for n, s in zip(self.box.shape_zyx, self.spacing_um_zyx, strict=True))
        return depth < min(_FLAT * thickness, *plane)

    def _numbered(self, labels: npt.NDArray[Any], unknown: npt.NDArray[np.bool_]) -> Numbers:
        seen = np.where(unknown, 0, labels)
        return objects_of(seen) if self.instances else split_at_necks(seen > 0, self.spacing_um_zyx, unknown)


def structure_evidence(patches: Sequence[RoughPatch], measures: Mapping[str, ImageMeasures]) -> list[Evidence]:
    """Return the evidence that needs a rough mask, of all that is labelled taken as one structure.

    Parameters
    ----------
    patches : sequence of RoughPatch
        Patches without a single labelled object tell nothing.
    measures : dict of str to ImageMeasures
        By volume.
    """
    patches = [patch.annotated_part() for patch in patches if bool(((patch.labels > 0) & ~patch.unknown).any())]
    if not patches:
        return []
    closed = [patch.without_gaps() for patch in patches]
    numbered = [patch.objects() for patch in closed]
    described = [patch.shapes(numbers) for patch, numbers in zip(closed, numbered, strict=True)]
    shapes = [shape for group in described for shape in group]
    whole = sum(len(whole_objects(n, p.box, p.shape_zyx, p.unknown)) for n, p in zip(numbered, closed, strict=True))
    small, puncta, count = _small_objects(numbered, patches)
    thickness = _weighted(shapes, lambda s: s.volume)([s.thickness for s in shapes])
    if puncta > 0.5 or math.isnan(thickness):
        thickness = small
    annotated = sum(float((~p.unknown).sum()) * math.prod(p.spacing_um_zyx) for p in patches)
    return [
        *_signal_evidence(patches, measures, thickness),
        evidence_of("objects", len(shapes) or count, "", "measured, cut ones included"),
        evidence_of("density", count / annotated, "1/µm³", "objects of any size in what is annotated"),
        evidence_of("puncta", puncta, "", "share of the structure in objects of fewer than 27 voxels"),
        evidence_of("whole_objects", whole, "", "not cut by a patch"),
        evidence_of("thickness", thickness, "µm", "median of the local thickness, weighted by volume"),
        *(_shape_evidence(closed, described, thickness) if shapes else []),
        evidence_of(
            "touching",
            float(np.mean([touching_fraction(n) for n in numbered])),
            "",
            "share of objects that touch another",
        ),
        *_roundness_evidence(shapes, whole),
    ]


def _shape_evidence(
    patches: Sequence[RoughPatch], described: Sequence[Sequence[ObjectShape]], thickness: float
) -> list[Evidence]:
    """Return how slender, long and branched the objects are that are large enough to have a shape."""
    shapes = [shape for group in described for shape in group]
    profiles = [profile for patch in patches if patch.is_flat(thickness) for profile in patch.profiles()]
    judged = profiles or shapes
    by_volume, skeleton = _weighted(shapes, lambda s: s.volume), sum(s.skeleton for s in shapes)
    slender = [s.slenderness for s in judged], [s.volume for s in judged]
    length, most = _lengths(shapes)
    connected = _connected(described)
    if profiles and (seen := _length_seen(profiles)) < _STRETCH:  # of a flat object the skeleton is no line
        length, most, connected = min(length, seen), LONGEST if any(s.cut for s in shapes) else seen, 0.0
    shells = sum(s.volume for s in shapes if s.is_shell) / sum(s.volume for s in shapes)
    return [
        evidence_of(
            "length",
            length,
            "",
            "skeleton of an object over its thickness; of cut lines at least twice all that is seen per end",
            censored=most > length,
        ),
        evidence_of(
            "length_most", most, "", "what the length is at most, after what the patches cut; 1000: no end seen"
        ),
        evidence_of(
            "slenderness",
            im.weighted_median(*slender),
            "",
            "0 ball … 1 tube or sheet, Hessian; in patches of few planes of the profiles",
            censored=bool(profiles),
        ),
        evidence_of(
            "slenderness_most",
            im.weighted_quantile(*slender, _SIDE_ON if profiles else 0.5),
            "",
            "of profiles the upper quarter: half of the lines that a flat patch cuts look round",
        ),
        evidence_of("tubularity", by_volume([s.tubularity for s in shapes]), "", "Hessian of the mask"),
        evidence_of("plateness", by_volume([s.plateness for s in shapes]), "", "Hessian of the mask"),
        evidence_of("hollow", shells, "", "share of the structure in walls around a single cavity"),
        evidence_of(
            "connected",
            connected,
            "",
            f"share of a patch's structure in one object that leaves it and is at least {LONG:g} times as long as thick, "
            "narrow slits closed, in the patches with most of it",
        ),
        evidence_of(
            "branch_density",
            sum(s.branches for s in shapes) * thickness / skeleton if skeleton else 0.0,
            "",
            "branch points per thickness of skeleton",
        ),
        evidence_of("euler_number", sum(1 - s.loops for s in shapes), "", "objects less tunnels"),
    ]


def _within(shape: ObjectShape, sides_um: Sequence[float]) -> ObjectShape:
    """Return a shape whose skeleton is no longer than a line of its thickness can be in a patch of such sides."""
    room = math.prod(max(1.0, side / shape.thickness) for side in sides_um) / 4 * shape.thickness
    if shape.skeleton <= room:
        return shape
    return replace(shape, skeleton=room, is_network=shape.is_network and room >= LONG * shape.thickness)


def _length_seen(shapes: Sequence[ObjectShape]) -> float:
    """Return the typical length of objects over their thickness, as far as it is seen."""
    known = [s for s in shapes if not math.isnan(s.thickness)]
    return _weighted(known, lambda s: s.skeleton + s.thickness)([s.skeleton / s.thickness for s in known])


def _lengths(shapes: Sequence[ObjectShape]) -> tuple[float, float]:
    """Return the structure's length in multiples of its thickness, and what it is at most, after what is cut."""
    seen = _length_seen(shapes)
    lines = [s for s in shapes if s.slenderness >= _LINE]
    if not any(s.cut for s in lines):
        return seen, seen
    total = sum(s.skeleton for s in lines)
    # the mean thickness by length, so that what a face cuts off as a thin sliver counts little
    thickness = sum(s.skeleton * s.thickness for s in lines) / total if total else 1.0
    inner = sum(s.skeleton * s.inner for s in lines)
    told = total if inner >= _INNER * total else inner
    least, most = length_bounds(told / thickness, sum(s.tips for s in lines))
    return max(seen, least), max(seen, most)


def _small_objects(numbered: Sequence[Numbers], patches: Sequence[RoughPatch]) -> tuple[float, float, int]:
    """Return of objects too small for a shape the typical diameter and the share of the volume, and how many objects there are."""
    volumes: list[float] = []
    is_small: list[bool] = []
    for numbers, patch in zip(numbered, patches, strict=True):
        sizes = np.bincount(numbers.ravel())[1:]
        sizes = sizes[sizes > 0]
        volumes += (sizes * math.prod(patch.spacing_um_zyx)).tolist()
        is_small += (sizes < SMALLEST).tolist()
    of_small = [volume for volume, small in zip(volumes, is_small, strict=True) if small]
    diameter = (6 * im.weighted_median(of_small, of_small) / math.pi) ** (1 / 3)
    return diameter, sum(of_small) / sum(volumes), len(volumes)


def _roundness_evidence(shapes: Sequence[ObjectShape], whole: int) -> list[Evidence]:
    """Return how round the objects are; not measured where too few are whole."""
    if whole < _FEWEST_WHOLE:
        star, sphere = math.nan, math.nan
    else:
        by_volume = _weighted(shapes, lambda s: s.volume)
        star, sphere = by_volume([s.star_convexity for s in shapes]), by_volume([s.sphericity for s in shapes])
    return [
        evidence_of("star_convexity", star, "", "overlap with what 128 rays describe"),
        evidence_of("sphericity", sphere, "", "surface of the equal ball over the object's"),
    ]


def _signal_evidence(
    patches: Sequence[RoughPatch], measures: Mapping[str, ImageMeasures], thickness: float
) -> list[Evidence]:
    """Contrast, SNR by depth, and background texture over contrast; no texture where the thickness is not known."""
    core: list[npt.NDArray[Any]] = []
    around: list[npt.NDArray[Any]] = []
    texture: list[npt.NDArray[Any]] = []
    ratios: list[float] = []
    weights: list[float] = []
    for patch in patches:
        parts = im.regions(
            patch.labels, patch.unknown, patch.spacing_um_zyx, 0.0 if math.isnan(thickness) else thickness
        )
        core.append(patch.image[parts.core])
        around.append(patch.image[parts.surroundings])
        if not math.isnan(thickness):
            texture.append(im.background_texture(patch.image, parts.background, patch.spacing_um_zyx, thickness))
        if not (parts.core.any() and parts.surroundings.any()):
            continue
        contrast = abs(float(np.median(core[-1]) - np.median(around[-1])))
        per_plane = parts.core.sum(axis=(1, 2))
        depth = round(float(np.average(np.arange(len(per_plane)), weights=per_plane))) + patch.box.offset_zyx[0]
        ratios.append(contrast / max(measures[patch.volume_id].haar_noise_at(depth), 1e-12))
        weights.append(float(per_plane.sum()))
    inside, outside, rough = (np.concatenate([np.zeros(0), *parts]) for parts in (core, around, texture))
    if not len(inside) or not len(outside):
        return []
    contrast = float(np.median(inside) - np.median(outside))
    spread = im.robust_spread(rough) / abs(contrast) if len(rough) and contrast else math.nan
    return [
        evidence_of("contrast", contrast, "intensity", "median of the structure less that of its surroundings"),
        evidence_of("snr", im.weighted_median(ratios, weights), "", "contrast over the Haar noise at its depth"),
        evidence_of("texture", spread, "", "background fluctuation at the structure's scale over contrast"),
    ]


def _connected(described: Sequence[Sequence[ObjectShape]]) -> float:
    """Return how much of a patch's structure one object holds that leaves it after a stretch of its own.

    The more patches, the likelier one of them shows an unusually long organelle: so that of the patches that hold a fifth of
    the structure, those where it is most.
    """
    shares, volumes = [], []
    for shapes in described:
        if total := sum(s.volume for s in shapes):
            lines = (s.volume for s in shapes if s.is_network)
            shares.append(max(lines, default=0.0) / total)
            volumes.append(total)
    return im.weighted_quantile(shares, volumes, 1 - _OF_PATCHES)


def _weighted(
    shapes: Sequence[ObjectShape], weight: Callable[[ObjectShape], float]
) -> Callable[[Sequence[float]], float]:
    """Return a median of values that belong to the shapes, weighted."""
    weights = [float(weight(s)) for s in shapes]
    return lambda values: im.weighted_median(values, weights)
