"""What goes to clients of MONAI Label and comes back: image and labels of a patch with its surroundings, as NIfTI.

A label file covers what the image shows; outside the patch it is 255, "not annotated".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from rescueseg.annotation.client import DeskInfo, PatchView
from rescueseg.annotation.formats.base import number_array, relabelled
from rescueseg.annotation.local_client import LocalDesk
from rescueseg.annotation.packing import labels_of
from rescueseg.errors import LabelError, TicketNotFoundError
from rescueseg.geometry import Box, Spacing
from rescueseg.inference.maps import map_reference
from rescueseg.labels import IGNORE, PatchLabels
from rescueseg.server.uploads import nifti_bytes, read_nifti

EXTENSION = ".nii.gz"
NOT_ANNOTATED = "not annotated"
MOST_OBJECTS = 254


def label_names(info: DeskInfo) -> dict[str, int]:
    """Return the number of each label by its name; where objects are numbered, of the first one and of ignore."""
    return {name: number for number, name in enumerate(info.classes, start=1)} | {NOT_ANNOTATED: IGNORE}


def has_maps(desk: LocalDesk) -> bool:
    """Tell whether a generation has predicted a volume."""
    campaign = desk.campaign
    return any(map_reference(campaign, g, v.volume_id) for g in campaign.generations() for v in campaign.volumes())


def image_file(view: PatchView) -> bytes:
    """Return the image of a patch with its surroundings; the same bytes every time."""
    return nifti_bytes(view.image, view.spacing_um_zyx, view.context.offset_zyx)


def label_file(view: PatchView) -> bytes:
    """Return the mask to start from.

    Raises
    ------
    LabelError
        If there are more objects than 8 bits can number.
    """
    return _in_context(view.start, view)


def prediction_file(view: PatchView) -> bytes:
    """Return the model's mask of the patch.

    Raises
    ------
    TicketNotFoundError
        If no model has predicted it, or it is a box of the holdout, which a prediction would bias.
    """
    if view.prediction is None:
        held = view.ticket.purpose != "pool"
        raise TicketNotFoundError(
            "a holdout box is annotated without a prediction, which could bias it"
            if held
            else "no model has predicted it",
            where=f"ticket {view.ticket.ticket_id}",
            todo="Annotate it from what the image shows",
        )
    classes = np.ascontiguousarray(view.prediction[view.inside.slices])
    objects = view.start.instances is not None
    return _in_context(PatchLabels.of_components(classes) if objects else PatchLabels(classes), view)


def _in_context(labels: PatchLabels, view: PatchView) -> bytes:
    whole = np.full(view.context.shape_zyx, IGNORE, np.uint8)
    try:
        numbers = number_array(relabelled(labels), MOST_OBJECTS, "an 8-bit label file")
    except LabelError as error:
        todo = "Work on it in napari, or as NIfTI by 'rescueseg queue export'"
        raise LabelError(error.what, where=f"ticket {view.ticket.ticket_id}", todo=todo) from error
    whole[view.inside.slices] = np.where(labels.ignore, IGNORE, numbers)
    return nifti_bytes(whole, view.spacing_um_zyx, view.context.offset_zyx)


class Segment(BaseModel):
    """What a client says of one of its segments."""

    name: str
    idx: int


@dataclass(frozen=True)
class Frame:
    """Where a label file must lie: the patch, what its image shows, and the voxel size in micrometre."""

    box: Box
    context: Box
    spacing_um_zyx: Spacing


def read_segments(given: object) -> list[Segment]:
    """Return the segments that a client names.

    Raises
    ------
    LabelError
        If they are no list of names and numbers.
    """
    try:
        return TypeAdapter(list[Segment]).validate_python(given or [])
    except ValidationError as error:
        todo = 'Send [{"name": NAME, "idx": NUMBER}, …]'
        raise LabelError("label_info is no list of segments", where="params", todo=todo) from error


def read_label(file: IO[bytes], frame: Frame, info: DeskInfo, segments: Sequence[Segment]) -> PatchLabels:
    """Read the mask that a client sends.

    Parameters
    ----------
    file : binary file
        NIfTI that covers what the image shows.
    frame : Frame
        Where it must lie.
    info : DeskInfo
        Classes and kind of labels.
    segments : sequence of Segment
        3D Slicer numbers its segments anew, and tells their names.

    Returns
    -------
    PatchLabels
        Of the patch alone.

    Raises
    ------
    LabelError
        If it cannot be read, lies elsewhere, a segment has a name that is no class, or a number is no object's.
    """
    whole = read_nifti(file, frame.context, frame.spacing_um_zyx)
    numbers = whole[frame.box.relative_to(frame.context).slices]
    if info.kind == "instance":
        ignored = [s.idx for s in segments if s.name == NOT_ANNOTATED] or [IGNORE]
        ignore = np.isin(numbers, ignored)
        return labels_of({"labels": np.where(ignore, 0, numbers), "ignore": ignore}, info.kind)
    known, out = label_names(info), numbers.copy()
    for segment in segments:
        if segment.name not in known:
            raise LabelError(
                f"the segment '{segment.name[:64]}' is no class",
                where="label_info",
                todo=f"Name segments {', '.join(known)}",
            )
        out[numbers == segment.idx] = known[segment.name]
    return PatchLabels(out)
