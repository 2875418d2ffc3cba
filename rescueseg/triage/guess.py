"""Whether what a threshold painted tells the shape of the structure, where nothing is annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rescueseg.config import TriageConfig
from rescueseg.triage.evidence import ImageMeasures
from rescueseg.triage.structure import RoughPatch, structure_evidence
from rescueseg.triage.tree import UNKNOWN, decide, title_of

_RARE = 1 / 3
"""Share of the voxels up to which a structure is what is rarer; a threshold through a single range of greys halves it."""
_CLEAR = 0.5
"""Share of the threshold of texture up to which a mask stands out clearly: all else in the image is alike."""


def guess_holds(patches: Sequence[RoughPatch], measures: Mapping[str, ImageMeasures], config: TriageConfig) -> bool:
    """Tell whether a threshold's mask may answer the questions about shape.

    It may paint another structure than the one that is meant: in electron microscopy mostly the membranes, for which the
    threshold cuts through the middle of a single range of greys. So it answers only where everywhere what it paints is rare
    and its background even, and where at least two places, and all that tell anything, call it the same: round, or a network.

    Parameters
    ----------
    patches : sequence of RoughPatch
        What a threshold painted.
    measures : mapping of str to ImageMeasures
        By volume.
    config : TriageConfig
        The campaign's thresholds.
    """
    if len({(patch.volume_id, patch.box) for patch in patches}) < 2:
        return False
    if any(float((patch.labels > 0).mean()) > _RARE for patch in patches):
        return False
    problems = set()
    for part in (patches, *([patch] for patch in patches)):
        numbers = {e.name: e.value for e in structure_evidence(part, measures) if e.value is not None}
        if numbers.get("texture", config.texture) > _CLEAR * config.texture:
            return False
        route, steps = decide(numbers, config)
        if title_of(route, steps) != UNKNOWN:
            problems.add(route.problem)
        elif part is patches:
            return False
    return problems in ({"boundary"}, {"topology"})
