"""The quick rule by which objects of a window are made of what a model says of them. Imports no torch.

It is the one by which a delivery makes objects where no truth tells a better one: polyhedra at the peaks of the object's
probability, basins of what the model's flow rises on, or basins of its border distance, all within the foreground.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.models.polyhedra import propose
from rescueseg.models.predictor import BORDER_DISTANCE, FLOW, OBJECT_PROBABILITY, STAR_DISTANCE, Output
from rescueseg.voxels.basin_objects import LEVELS_PER_VOXEL, heights_of, number_objects
from rescueseg.voxels.flow_potential import LOWEST, flow_potential

OBJECT_OUTPUTS = (STAR_DISTANCE, FLOW, BORDER_DISTANCE)
"""Outputs that tell objects apart; of several the first is used."""
LEAST_PROBABILITY = 0.35
"""Of an object: peaks of less propose no polyhedron."""
FLOW_REACH_VOXELS = 8
"""How far flows are summed up, in multiples of the finest voxel size."""
FLOW_DEPTH_VOXELS, BORDER_DEPTH_VOXELS = 0.5, 2.0
"""An object starts where the map rises at least so much above the saddle to a higher one, in the same unit."""

Float32 = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.uint32]
Foreground = npt.NDArray[np.bool_]


def object_output(outputs: Sequence[Output]) -> Output | None:
    """Return the output of a model by which it tells objects apart, None where it has none.

    Examples
    --------
    >>> from rescueseg.models.predictor import class_probabilities
    >>> object_output([class_probabilities(1), Output(name="border_distance", channels=1, kind="distance")]).name
    'border_distance'
    """
    by_name = {output.name: output for output in outputs}
    if OBJECT_PROBABILITY not in by_name:
        by_name.pop(STAR_DISTANCE, None)
    return next((by_name[name] for name in OBJECT_OUTPUTS if name in by_name), None)


def number_polyhedra(
    probability: Float32, read_lengths: Callable[[Box], npt.NDArray[Any]], spacing_um_zyx: Spacing
) -> Numbers:
    """Return the star-convex polyhedra of a window, uint32, zyx, 1…n by their places, 0 none.

    Parameters
    ----------
    probability : ndarray of float32, zyx
        `OBJECT_PROBABILITY`.
    read_lengths : callable
        Returns `STAR_DISTANCE`, (rays, z, y, x), in a part of the window.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    """
    whole = Box((0, 0, 0), zyx(probability.shape))
    found = propose(probability, whole, LEAST_PROBABILITY, read_lengths)
    return found.without_overlaps(spacing_um_zyx).drawn(whole, spacing_um_zyx)


def number_by(name: str, said: Float32, inside: Foreground, spacing_um_zyx: Spacing) -> Numbers:
    """Return the objects of a window by its flow or its border distance.

    Parameters
    ----------
    name : str
        `FLOW` or `BORDER_DISTANCE`.
    said : ndarray of float32, shape (channels, z, y, x)
        That output.
    inside : ndarray of bool, zyx
        The foreground.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    ndarray of uint32, zyx
        1…n by their first voxels, 0 background.

    Examples
    --------
    Two objects whose border distance falls to one voxel where they touch:

    >>> distance = np.array([[[[0, 1, 2, 3, 4, 3, 2, 1, 1, 2, 3, 4, 3, 2, 1, 0]]]], np.float32)
    >>> number_by("border_distance", distance, distance[0] > 0, (1.0, 1.0, 1.0)).tolist()
    [[[0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0]]]
    """
    finest, depth, values = min(spacing_um_zyx), BORDER_DEPTH_VOXELS, said[0]
    if name == FLOW:
        reach, depth = FLOW_REACH_VOXELS * finest, FLOW_DEPTH_VOXELS
        values = flow_potential(said * inside, spacing_um_zyx, reach) + np.float32(LOWEST * reach)
    return number_objects(heights_of(values, inside, finest / LEVELS_PER_VOXEL), round(depth * LEVELS_PER_VOXEL), 1)
