"""From the probabilities of a model to the classes of voxels, before anything is cleaned: voxel by voxel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rescueseg.delivery.records import DeliveryRule
from rescueseg.delivery.target import TargetVolume
from rescueseg.evaluation.temperature import temper
from rescueseg.geometry import Box
from rescueseg.models.predictor import PROBABILITY

Float32 = npt.NDArray[np.float32]


def classes_of_voxels(tempered: Float32, threshold: float) -> npt.NDArray[np.uint8]:
    """Return the class of each voxel.

    Parameters
    ----------
    tempered : ndarray of float32, (K + 1, …)
        Probabilities, background first.
    threshold : float
        A voxel is foreground where the probability of the background is below one minus this; its class is then the most
        probable of the others, of equal ones the first.

    Returns
    -------
    ndarray of uint8
        0 background, 1…K classes.

    Examples
    --------
    >>> tempered = np.array([[0.6, 0.6, 0.1], [0.3, 0.4, 0.2], [0.1, 0.0, 0.7]], np.float32)
    >>> classes_of_voxels(tempered, 0.5).tolist(), classes_of_voxels(tempered, 0.3).tolist()
    ([0, 0, 2], [1, 1, 2])
    """
    first = tempered[1:].argmax(axis=0).astype(np.uint8) + np.uint8(1)
    return np.where(tempered[0] < np.float32(1 - threshold), first, np.uint8(0))


def uncleaned_of_box(probability: Float32, rule: DeliveryRule) -> npt.NDArray[np.uint8]:
    """Return the classes of a box by temperature and threshold alone.

    Parameters
    ----------
    probability : ndarray of float32, (K + 1, z, y, x)
        As the maps hold it, background first.
    rule : DeliveryRule
        Its clean-up is left out.

    Returns
    -------
    ndarray of uint8, zyx
        0 background, 1…K classes.
    """
    return classes_of_voxels(temper(probability, rule.temperature), rule.threshold)


def tempered_map(target: TargetVolume, box: Box) -> Float32:
    """Read the tempered probabilities of a box of a volume, (K + 1, z, y, x)."""
    probability = target.source.maps.open(PROBABILITY)[(slice(None), *box.slices)]
    return temper(np.asarray(probability, np.float32), target.rule.temperature)
