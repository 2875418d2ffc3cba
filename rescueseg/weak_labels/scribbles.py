"""Annotated voxels for the pixel classifier: accepted annotations, and scribbles drawn over a whole volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rescueseg.annotation.label_checks import check_labels
from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.label_arrays import read_classes
from rescueseg.campaign.snapshot import clear_box
from rescueseg.errors import LabelError, WeakLabelError
from rescueseg.geometry import Box, partition
from rescueseg.image_files.label_files import Grid, open_labels
from rescueseg.image_files.placement import Placement
from rescueseg.labels import IGNORE
from rescueseg.records import AcceptedAnnotation, Holdout, VolumeRecord
from rescueseg.shared_places import SharedPlaces
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import normalise, read_box
from rescueseg.weak_labels.base import BLOCK_ZYX, Labels
from rescueseg.weak_labels.methods import AnnotatedPatch


def read_accepted(
    volumes: VolumeFolder, accepted: AcceptedAnnotation, n_classes: int, holdout: Holdout | None, places: SharedPlaces
) -> AnnotatedPatch:
    """Read an accepted annotation with its image, nothing beyond the patch: the holdout may begin there.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's.
    accepted : AcceptedAnnotation
        The annotation.
    n_classes : int
        Foreground classes of the campaign.
    holdout : Holdout or None
        What must not be read.
    places : SharedPlaces
        Of the campaign.

    Raises
    ------
    LeakError
        If it lies in a holdout box.
    StorageError
        If its labels are missing, damaged, or others than were accepted.
    """
    volume = volumes.record(accepted.volume_id)
    holdout_boxes = holdout.of(accepted.volume_id, places) if holdout else []
    clear_box(accepted.box, volume.shape_zyx, (0, 0, 0), holdout_boxes, accepted.ticket_id)
    labels = check_labels(read_classes(volumes.storage, accepted), accepted.box, n_classes, where=accepted.labels)
    return _patch(volumes, volume, accepted.ticket_id, accepted.box, labels)


def scribbled_volumes(texts: Sequence[str], volumes: Mapping[str, VolumeRecord]) -> dict[str, str]:
    """Return the file of each volume, from ``VOLUME=FILE`` or, where there is one volume only, ``FILE``.

    Parameters
    ----------
    texts : sequence of str
        As a person writes them.
    volumes : mapping of str to VolumeRecord
        Those of the campaign, by id.

    Raises
    ------
    WeakLabelError
        If a volume is unknown, named twice or not named.
    """
    files: dict[str, str] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or name not in volumes:
            name, file = (next(iter(volumes)), text) if len(volumes) == 1 else ("", text)
        if not name or name in files:
            raise WeakLabelError(
                "it is not clear which volume this is drawn on" if not name else f"volume '{name}' is named twice",
                where=text,
                todo=f"Write VOLUME=FILE, once each; volumes: {', '.join(volumes)}",
            )
        files[name] = file
    return files


def read_scribbles(
    campaign: Campaign, volume: VolumeRecord, file: str, *, guarded: bool = True
) -> Iterator[AnnotatedPatch]:
    """Yield the blocks of a volume that hold scribbles.

    Scribbles in the guarded holdout are left out, and the image there is replaced by the mean intensity.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    volume : VolumeRecord
        The volume they were drawn on.
    file : str
        Label image of the volume's shape, any format that can be imported: 0 background, 1…K classes, 255 not drawn.
    guarded : bool
        False where nothing learns from them but what chooses places: then all is read, whether the holdout is drawn already
        or not.

    Raises
    ------
    UnreadableVolumeError
        If the file cannot be read.
    LabelError
        If it has other labels.
    WeakLabelError
        If it does not lie on the volume.
    """
    placement = Placement.from_json(volume.placement) if volume.placement else None
    names = {name: number for number, name in enumerate(campaign.config.classes, start=1)}
    try:
        source = open_labels(file, Grid(volume.shape_zyx, placement), names)
    except LabelError as error:
        raise WeakLabelError(
            f"the scribbles do not lie on volume '{volume.volume_id}': {error.what}",
            where=file,
            todo="Draw on the volume as it was imported, and save all of it",
        ) from error
    try:
        holdout = campaign.holdout() if guarded else None
        barred = holdout.guarded(volume.volume_id, campaign.volumes.shared_places()) if holdout else []
        for block in partition(volume.shape_zyx, BLOCK_ZYX):
            strokes = source.read(block)[0]
            if (strokes == IGNORE).all():
                continue
            labels = check_labels(strokes, block, campaign.config.n_classes, where=file).copy()
            inside = [c.relative_to(block).slices for box in barred if (c := box.intersection(block))]
            for slices in inside:
                labels[slices] = IGNORE
            if (labels != IGNORE).any():
                patch = _patch(campaign.volumes, volume, f"{file} {block}", block, labels)
                for slices in inside:  # the features of a scribble beside the holdout are not to see it
                    patch.image[(slice(None), *slices)] = 0
                yield patch
    finally:
        source.close()


def _patch(folder: VolumeFolder, volume: VolumeRecord, name: str, box: Box, labels: Labels) -> AnnotatedPatch:
    image = read_box(open_image(folder, volume.volume_id), box)
    scaled = normalise(image, volume.normalisation)
    return AnnotatedPatch(name, volume.volume_id, scaled, np.asarray(labels, np.uint8), volume.spacing_um_zyx)
