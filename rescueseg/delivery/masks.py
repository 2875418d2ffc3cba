"""From the probabilities of a volume to its finished mask: threshold, then the clean-up that `mask_steps` describes.

A volume is never in memory as a whole. What a step decides of a piece, such as whether it is a speck, is decided on numbers
of all blocks, and what depends on distances is computed in blocks with a margin that covers them: voxel for voxel the mask
is that of `mask_of_box` for the whole volume, whatever the blocks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rescueseg.delivery.block_pass import Arrays
from rescueseg.delivery.folder import MASK
from rescueseg.delivery.label_arrays import LabelArray
from rescueseg.delivery.mask_passes import Cleaning, mask_steps
from rescueseg.delivery.records import DeliveryRule
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.delivery.uncleaned import Float32, classes_of_voxels, tempered_map
from rescueseg.evaluation.temperature import temper
from rescueseg.geometry import Box, Spacing
from rescueseg.postprocessing.mask_steps import clean_mask
from rescueseg.storage import digest_json

_UNCLEANED = "uncleaned"


def mask_of_box(probability: Float32, rule: DeliveryRule, spacing_um_zyx: Spacing) -> npt.NDArray[np.uint8]:
    """Return the finished mask of a box that is all there is.

    Parameters
    ----------
    probability : ndarray of float32, (K + 1, z, y, x)
        As the maps hold it, background first.
    rule : DeliveryRule
        Temperature, threshold and clean-up.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    ndarray of uint8, zyx
        0 background, 1…K classes.

    Examples
    --------
    A ball of seven voxels and a speck at a probability of 0.6; the speck is dropped:

    >>> from rescueseg.delivery.records import CleanUp
    >>> foreground = np.full((5, 5, 7), 0.2, np.float32)
    >>> foreground[1:4, 2, 2] = foreground[2, 1:4, 2] = foreground[2, 2, 1:4] = foreground[2, 2, 5] = 0.6
    >>> rule = DeliveryRule(model_digest="", truth_digest="", cleanup=(CleanUp(smallest_um3=2.0),))
    >>> int(mask_of_box(np.stack([1 - foreground, foreground]), rule, (1, 1, 1)).sum())
    7
    """
    tempered = temper(probability, rule.temperature)
    return clean_mask(classes_of_voxels(tempered, rule.threshold), tempered, spacing_um_zyx, rule.cleanup)


def make_mask(target: TargetVolume, step: Step) -> None:
    """Make the mask of a volume from its maps: level 0 of its labels ``mask``, which exists already.

    Parameters
    ----------
    target : TargetVolume
        The volume; the shards of the array are its blocks.
    step : Step
        Where it works; a rerun goes on where it was killed. Its digest tells the array from one that was there before.

    Raises
    ------
    InferenceError
        If the maps are not complete, or a block kills every worker.
    StorageError
        If a file of the maps is damaged, or the disk is full.
    """
    rule = target.rule.model_dump(mode="json", include={"temperature", "threshold", "cleanup"})
    step = replace(step, digest=digest_json([step.digest, rule, list(target.spacing_um_zyx)]))
    steps = mask_steps(target.rule.cleanup)
    names = [_UNCLEANED, *(name for name, _ in steps)]
    cleanings = [Cleaning(target, step, name) for name in names]
    last = cleanings[-1].labels_pass
    if all(last.result(index) is not None for index in range(len(last.blocks))):
        return
    mask = target.labels(MASK)
    labels = cleanings[0].write(_write_uncleaned, target, None if steps else mask)
    for cleaning, (name, function) in zip(cleanings[1:], steps, strict=True):
        labels = function(cleaning, labels, mask if name == names[-1] else None)
    for cleaning in cleanings:
        cleaning.remove_scratch()


def _write_uncleaned(job: tuple[LabelArray, TargetVolume], box: Box) -> Arrays:
    written, target = job
    written.write(box, classes_of_voxels(tempered_map(target, box), target.rule.threshold))
    return {}
