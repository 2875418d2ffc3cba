"""Where a rough mask comes from: accepted annotations, a few patches of truth, or a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.label_arrays import read_classes, read_objects
from rescueseg.config import CampaignConfig
from rescueseg.errors import SamplingError
from rescueseg.geometry import Box, Patch, Spacing, isotropic_shape, zyx
from rescueseg.labels import IGNORE
from rescueseg.queue.store import QueueStore
from rescueseg.randomness import random_generator
from rescueseg.records import VolumeRecord
from rescueseg.sampling.patches import patch_shape
from rescueseg.triage.rough_truth import rough_boxes
from rescueseg.triage.structure import RoughPatch
from rescueseg.triage.tree import Mask
from rescueseg.triage.unannotated import annotated_place
from rescueseg.volumes import open_image, open_truth
from rescueseg.volumes.normalise import normalise
from rescueseg.weak_labels.threshold import rough_mask

_MOST_PATCHES = 8
"""Patches whose shapes are measured."""
_MOST_VOXELS = 4_000_000
"""Voxels of all patches together; of larger ones the middle of what is annotated is read."""
_THRESHOLD_PATCHES = 3
_THRESHOLD_SIDE = 96


def rough_patches(campaign: Campaign, store: QueueStore, mask: Mask, channel: int) -> tuple[list[RoughPatch], str]:
    """Return the patches of a rough mask and the name of where they come from.

    Parameters
    ----------
    campaign : Campaign
        With at least one volume.
    store : QueueStore
        Its queue.
    mask : {"auto", "annotations", "truth", "threshold", "none"}
        Accepted annotations; seeded patches of the truth that came with a volume, which are written down, since they
        count as annotated from then on; a threshold; nothing. `auto` takes accepted annotations, then truth looked at
        before, then a threshold.
    channel : int
        Of the image.

    Raises
    ------
    SamplingError
        If there are no annotations, or no truth, where those are asked for; or truth is asked for after the holdout was
        frozen.
    """
    if mask in ("auto", "annotations"):
        annotated = _from_annotations(campaign.volumes, store, channel)
        if annotated:
            return annotated, "annotations"
        if mask == "annotations":
            raise SamplingError(
                "no patch is annotated yet", where=campaign.url, todo="Annotate one, or say what it is with --structure"
            )
    if mask == "truth" or (mask == "auto" and campaign.rough_patches()):
        return _from_truth(campaign, channel), "truth"
    return (
        ([], "none") if mask == "none" else (_from_threshold(campaign.config, campaign.volumes, channel), "threshold")
    )


def _from_annotations(folder: VolumeFolder, store: QueueStore, channel: int) -> list[RoughPatch]:
    patches = []
    usable = {volume.volume_id: volume for volume in folder.records()}
    accepted = [annotation for annotation in store.views.accepted("pool") if annotation.volume_id in usable][
        :_MOST_PATCHES
    ]
    for annotation in accepted:
        classes, objects = read_classes(folder.storage, annotation), read_objects(folder.storage, annotation)
        spacing = usable[annotation.volume_id].spacing_um_zyx
        place = annotated_place(classes == IGNORE)
        start = [o + s.start for o, s in zip(annotation.box.offset_zyx, place, strict=True)]
        part = Box(zyx(start), zyx(s.stop - s.start for s in place))
        box = central_box(part, spacing, _MOST_VOXELS // len(accepted))
        middle = box.relative_to(annotation.box).slices
        patch = _patch(folder, Patch(annotation.volume_id, box), classes[middle], channel)
        if objects is not None:
            numbers = np.where(patch.unknown, 0, objects[middle])
            patch = replace(patch, labels=numbers, instances=True, classes=patch.labels)
        patches.append(patch)
    return patches


def central_box(box: Box, spacing_um_zyx: Spacing, voxels: int) -> Box:
    """Return the middle of a box, about isotropic in micrometre, that holds about `voxels`; the box where it is smaller."""
    if box.size <= voxels:
        return box
    shape = isotropic_shape(spacing_um_zyx, voxels, box.shape_zyx)
    start = [o + (n - s) // 2 for o, n, s in zip(box.offset_zyx, box.shape_zyx, shape, strict=True)]
    return Box(zyx(start), shape)


def _from_truth(campaign: Campaign, channel: int) -> list[RoughPatch]:
    """Read the truth in the patches written down; draw and write them at the first call."""
    places = campaign.rough_patches()
    if not places:
        places = _draw_places(campaign)
        campaign.save_rough_patches(places)
    patches, usable = [], {volume.volume_id for volume in campaign.volumes.records()}
    for patch in (p for p in places if p.volume_id in usable):
        instances = campaign.volumes.record(patch.volume_id).truth == "instance"
        truth = open_truth(campaign.volumes, patch.volume_id, instances)
        patches.append(_patch(campaign.volumes, patch, np.asarray(truth[patch.box.slices]), channel, instances))
    return patches


def _draw_places(campaign: Campaign) -> list[Patch]:
    if campaign.holdout() is not None:
        raise SamplingError(
            "the holdout is frozen, and new patches of truth might lie in it",
            where=campaign.url,
            todo="Triage from annotations, or in a campaign that was not sampled yet",
        )
    places, whole = campaign.volumes.shared_places(), set(campaign.config.holdout.volumes)
    volumes = [
        v for v in campaign.volumes.records() if v.truth is not None and whole.isdisjoint(places.related(v.volume_id))
    ]
    rng = random_generator(campaign.config.seed, "rough mask")
    for index in rng.permutation(len(volumes)).tolist():
        volume = volumes[index]
        truth = open_truth(campaign.volumes, volume.volume_id, volume.truth == "instance")

        def read(box: Box, truth: object = truth, volume: VolumeRecord = volume) -> np.ndarray:
            labels = np.asarray(truth[box.slices])  # type: ignore[index]
            return labels if volume.truth == "instance" else np.where(labels == IGNORE, 0, labels)

        boxes = rough_boxes(read, volume.shape_zyx, volume.spacing_um_zyx, rng)
        if boxes:
            return [Patch(volume.volume_id, box) for box in boxes]
    raise SamplingError(
        "no volume came with truth that shows an object" + (" beside what holdout.volumes holds out" if whole else ""),
        where=campaign.url,
        todo="Import the truth with --truth, or say what the structure is with --structure",
    )


def _from_threshold(config: CampaignConfig, folder: VolumeFolder, channel: int) -> list[RoughPatch]:
    """Threshold a few seeded boxes; a first guess where nothing is annotated."""
    rng = random_generator(config.seed, "rough mask by threshold")
    volumes = folder.records()
    patches: list[RoughPatch] = []
    for turn in range(_THRESHOLD_PATCHES):
        volume = volumes[turn % len(volumes)]
        shape = zyx(
            min(n, max(p, _THRESHOLD_SIDE)) for n, p in zip(volume.shape_zyx, patch_shape(config, volume), strict=True)
        )
        start = [int(rng.integers(n - s + 1)) for n, s in zip(volume.shape_zyx, shape, strict=True)]
        box = Box(zyx(start), shape)
        if any((patch.volume_id, patch.box) == (volume.volume_id, box) for patch in patches):
            continue
        image = np.asarray(open_image(folder, volume.volume_id)[(slice(None), *box.slices)])
        labels = rough_mask(normalise(image, volume.normalisation), volume.spacing_um_zyx).labels
        patches.append(_patch(folder, Patch(volume.volume_id, box), labels, channel))
    return patches


def _patch(folder: VolumeFolder, patch: Patch, labels: np.ndarray, channel: int, instances: bool = False) -> RoughPatch:
    volume = folder.record(patch.volume_id)
    unknown = np.zeros(labels.shape, bool) if instances else labels == IGNORE
    image = np.asarray(open_image(folder, patch.volume_id)[(channel, *patch.box.slices)])
    return RoughPatch(
        volume_id=patch.volume_id,
        box=patch.box,
        shape_zyx=volume.shape_zyx,
        spacing_um_zyx=volume.spacing_um_zyx,
        image=image,
        labels=np.where(unknown, 0, labels),
        unknown=unknown,
        instances=instances,
    )


def with_labels(patches: Sequence[RoughPatch]) -> list[RoughPatch]:
    """Return the patches that hold at least one labelled voxel of the structure."""
    return [patch for patch in patches if bool((patch.labels > 0).any())]
