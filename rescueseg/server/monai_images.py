"""Images and labels for clients of MONAI Label: a patch with its surroundings, as NIfTI.

A label file has the shape of the image; outside the patch it is 255, "not annotated".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from rescueseg.annotation.client import CampaignInfo, PatchView
from rescueseg.annotation.formats.base import IGNORE_NAME, MOST_OBJECTS_8_BIT, number_array, relabel
from rescueseg.annotation.local_client import LocalClient
from rescueseg.annotation.packing import labels_of
from rescueseg.errors import LabelError, TicketNotFoundError
from rescueseg.geometry import Box, Spacing
from rescueseg.inference.maps import VolumeMaps
from rescueseg.labels import IGNORE, PatchLabels
from rescueseg.queue.records import Lease
from rescueseg.server.uploads import nifti_bytes, read_nifti

EXTENSION = ".nii.gz"


def label_names(info: CampaignInfo) -> dict[str, int]:
    """Return the number of each label by its name; where objects are numbered, of the first object and of ignore."""
    return {name: number for number, name in enumerate(info.classes, start=1)} | {IGNORE_NAME: IGNORE}


def has_maps(client: LocalClient) -> bool:
    """Tell whether any generation has predicted a volume."""
    campaign = client.campaign
    return any(
        VolumeMaps(g, v.volume_id).reference() for g in campaign.generations() for v in campaign.volumes.records()
    )


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
        is_holdout = view.ticket.purpose != "pool"
        raise TicketNotFoundError(
            "a holdout box is annotated without a prediction, which could bias it"
            if is_holdout
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
        numbers = number_array(relabel(labels), MOST_OBJECTS_8_BIT, "an 8-bit label file")
    except LabelError as error:
        todo = "Work on it in napari, or as NIfTI by 'rescueseg queue export'"
        raise LabelError(error.what, where=f"ticket {view.ticket.ticket_id}", todo=todo) from error
    whole[view.inside.slices] = np.where(labels.ignore, IGNORE, numbers)
    return nifti_bytes(whole, view.spacing_um_zyx, view.context.offset_zyx)


class Segment(BaseModel):
    """A segment as a client describes it."""

    name: str
    idx: int


@dataclass(frozen=True)
class Frame:
    """Where a label file must lie: the patch, the patch with its surroundings, and the voxel size in micrometre."""

    box: Box
    context: Box
    spacing_um_zyx: Spacing

    @classmethod
    def of(cls, client: LocalClient, lease: Lease) -> Frame:
        """Return the frame of a leased patch."""
        ticket = lease.ticket
        return cls(ticket.box, client.context(ticket), client.campaign.volumes.record(ticket.volume_id).spacing_um_zyx)


def read_segments(label_info: object) -> list[Segment]:
    """Return the segments in a client's `label_info`.

    Raises
    ------
    LabelError
        If it is no list of names and numbers.

    Examples
    --------
    >>> read_segments([{"name": "nucleus", "idx": 2}])
    [Segment(name='nucleus', idx=2)]
    """
    try:
        return TypeAdapter(list[Segment]).validate_python(label_info or [])
    except ValidationError as error:
        todo = 'Send [{"name": NAME, "idx": NUMBER}, …]'
        raise LabelError("label_info is no list of segments", where="params", todo=todo) from error


def read_label(file: IO[bytes], frame: Frame, info: CampaignInfo, segments: Sequence[Segment]) -> PatchLabels:
    """Read the mask that a client sends.

    Parameters
    ----------
    file : binary file
        NIfTI in the shape of the image.
    frame : Frame
        Where it must lie.
    info : CampaignInfo
        Classes and kind of labels.
    segments : sequence of Segment
        Names and numbers in the file: 3D Slicer gives its segments numbers of its own.

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
        ignore_numbers = [s.idx for s in segments if s.name == IGNORE_NAME] or [IGNORE]
        ignore = np.isin(numbers, ignore_numbers)
        return labels_of({"labels": np.where(ignore, 0, numbers), "ignore": ignore}, info.kind)
    names, classes = label_names(info), numbers.copy()
    for segment in segments:
        if segment.name not in names:
            raise LabelError(
                f"the segment '{segment.name[:64]}' is no class",
                where="label_info",
                todo=f"Name segments {', '.join(names)}",
            )
        classes[numbers == segment.idx] = names[segment.name]
    return PatchLabels(classes)
