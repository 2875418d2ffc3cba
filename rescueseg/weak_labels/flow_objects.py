"""Objects of what a network of Cellpose says, and the intensities that it expects, for every version of it."""

from __future__ import annotations

import math

import numpy as np

from rescueseg.delivery.objects import objects_of_box
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.geometry import Spacing
from rescueseg.models.predictor import FLOW
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.weak_labels.base import Float32, Numbers, WeakLabel, from_probabilities

PERCENTILES = (1.0, 99.0)
"""Of the intensities of a volume: they become 0 and 1, as in Cellpose."""


def flow_objects(
    probability: Float32, flow: Float32, diameter_um: float, spacing_um_zyx: Spacing
) -> tuple[WeakLabel, Numbers]:
    """Return mask and objects of what a Cellpose network says: each object is what flows together.

    Parameters
    ----------
    probability : ndarray of float32, (2, z, y, x)
        Background and cell.
    flow : ndarray of float32, (3, z, y, x)
        Along z, y, x, of unit length in objects.
    diameter_um : float
        Of a typical object. Flows are summed up as far as half of its radius. On the way from one object to the next the sum
        falls by a tenth of the diameter at least; objects below a twentieth of a ball's volume join a neighbour or vanish.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    WeakLabel, ndarray of uint32, zyx
        The mask holds the objects alone. The confidence is the lead of the label that is given: 0 where a voxel that is likely a
        cell's belongs to no object.
    """
    weak = from_probabilities(probability)
    ball = math.pi / 6 * diameter_um**3
    rule = ObjectRule(source="flow", depth=diameter_um / 10, farthest_um=diameter_um / 4, smallest_um3=ball / 20)
    made = DeliveryRule(model_digest="", truth_digest="", cleanup=(CleanUp(),), objects=rule)
    numbers = objects_of_box(weak.labels, {FLOW: flow}, made, spacing_um_zyx)
    background, cell = probability
    lead = np.where(numbers > 0, cell - background, background - cell)
    return WeakLabel((numbers > 0).astype(np.uint8), np.clip(lead, 0, 1).astype(np.float32)), numbers
