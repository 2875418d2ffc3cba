"""How objects are made of a mask and of what a model says beside it: the rule, as it is kept with deliveries and evaluations."""

from __future__ import annotations

import math
from typing import Literal

from rescueseg.geometry import ZYX, Box, Spacing
from rescueseg.models.predictor import BORDER_DISTANCE, FLOW, OBJECT_PROBABILITY, STAR_DISTANCE
from rescueseg.postprocessing.distances import reach_voxels
from rescueseg.records import Record

OBJECT_MARGIN = 16
"""Around a box, in multiples of the finest voxel size: an object that a face of the box cuts is made of what is seen of it so
far beyond that face, for its middle may lie there."""

_SOURCES = {
    "pieces": "connected pieces",
    "probability": "basins of the probability",
    "distance": "basins of the distance to the mask's border",
    "boundary": "basins between boundaries",
    "border_distance": "basins of the model's border distance",
    "rays": "star-convex polyhedra",
    "flow": "basins of the model's flow",
}
_OUTPUTS = {
    "border_distance": (BORDER_DISTANCE,),
    "rays": (OBJECT_PROBABILITY, STAR_DISTANCE),
    "flow": (FLOW,),
}


class ObjectRule(Record):
    """How objects are made of a mask."""

    source: Literal["pieces", "probability", "distance", "boundary", "border_distance", "flow", "rays"]
    """Connected pieces; or basins of a map: of the class's probability, of the distance to the mask's border, of the
    probability of a class that is the boundary itself, of the distance to the object's border that the model says, of what the
    model's flow rises on (`rescueseg.voxels.flow_potential`); or the polyhedra of the rays that it says, within the mask."""
    smoothing_um: float = 0.0
    """Standard deviation of the Gaussian that smooths the map."""
    depth: float = 0.0
    """An object starts where the map rises at least so much above the saddle to a higher one; in the map's units. For the
    source "rays" its least probability."""
    smallest_um3: float = 0.0
    """Smaller objects join the neighbour over the highest saddle, or vanish where there is none, as polyhedra do."""
    farthest_um: float = 0.0
    """For the source "distance": larger distances count as this one; 0 for 32 times the finest voxel size. What is wider
    than twice as much in two places, and not narrower in between, stays one object. For the source "flow": how far flows are
    summed up; 0 for 8 times the finest voxel size, and no more than 32 times."""

    def least_voxels(self, spacing_um_zyx: Spacing) -> int:
        """Return the fewest voxels of an object that is not small; a millionth of a voxel is left to rounding."""
        return math.ceil(self.smallest_um3 / math.prod(spacing_um_zyx) - 1e-6)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Which of a model's outputs objects are made of, beside the class probabilities.

        Examples
        --------
        >>> ObjectRule(source="rays", depth=0.35).outputs
        ('object_probability', 'star_distance')
        """
        return _OUTPUTS.get(self.source, ())

    @property
    def source_in_words(self) -> str:
        """What objects are, as people read it."""
        return _SOURCES[self.source]

    @property
    def depth_in_words(self) -> str:
        """The depth with its unit: of a distance micrometre, of a probability none.

        Examples
        --------
        >>> ObjectRule(source="border_distance", depth=0.3).depth_in_words
        '0.3 µm'
        >>> ObjectRule(source="probability", depth=0.3).depth_in_words
        '0.3'
        """
        return f"{self.depth:g}{' µm' if self.source in ('distance', 'border_distance', 'flow') else ''}"

    @property
    def in_words(self) -> str:
        """The whole rule, as people read it.

        Examples
        --------
        >>> ObjectRule(source="rays", depth=0.35).in_words
        'star-convex polyhedra, 0.35 probable'
        >>> ObjectRule(source="distance", depth=0.3, smallest_um3=2).in_words
        "basins of the distance to the mask's border, 0.3 µm deep, from 2 µm³ on"
        """
        what = self.source_in_words
        if self.source == "rays":
            what += f", {self.depth:g} probable"
        elif self.source != "pieces":
            what += f", {self.depth_in_words} deep"
        what += f", smoothed by {self.smoothing_um:g} µm" if self.smoothing_um else ""
        what += f", summed up over {self.farthest_um:g} µm" if self.source == "flow" and self.farthest_um else ""
        return what + (f", from {self.smallest_um3:g} µm³ on" if self.smallest_um3 else "")


def with_margin(box: Box, margin: int, spacing_um_zyx: Spacing, shape_zyx: ZYX) -> Box:
    """Return a box with a margin within its volume.

    Parameters
    ----------
    box : Box
        In the volume.
    margin : int
        In multiples of the finest voxel size.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    shape_zyx : tuple of int
        Of the volume.

    Examples
    --------
    >>> with_margin(Box((8, 40, 2), (8, 16, 16)), 4, (0.4, 0.1, 0.1), (24, 96, 96))
    Box(offset_zyx=(7, 36, 0), shape_zyx=(10, 24, 22))
    """
    return box.expand(reach_voxels(margin * min(spacing_um_zyx), spacing_um_zyx)).clip(shape_zyx)
