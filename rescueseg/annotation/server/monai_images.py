"""What goes to clients of MONAI Label and comes back: image and labels of a patch with its surroundings, as NIfTI.

A label file covers what the image shows; outside the patch it is 255, "not annotated".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.desk import DeskInfo, PatchView
from rescueseg.annotation.labels import IGNORE
from rescueseg.annotation.local_desk import LocalDesk
from rescueseg.annotation.patch_labels import PatchLabels
from rescueseg.annotation.server.uploads import nifti_bytes, read_nifti
from rescueseg.errors import LabelError, TicketNotFoundError
from rescueseg.inference.maps import map_reference

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
    start, numbers = view.start, view.start.classes
    if start.instances is not None:
        found, places = np.unique(start.instances, return_inverse=True)
        objects = int(np.count_nonzero(found))
        if objects > MOST_OBJECTS:
            raise LabelError(
                f"the patch holds {objects} objects, and 8 bits number {MOST_OBJECTS}",
                where=f"ticket {view.ticket.ticket_id}",
                todo="Work on it in napari, or as NIfTI by 'rescueseg queue export'",
            )
        ranks = np.arange(len(found)) + (0 if found.size and found[0] == 0 else 1)
        numbers = np.where(start.ignore, IGNORE, ranks[places].reshape(start.instances.shape)).astype(np.uint8)
    return _in_context(numbers, view)


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
    return _in_context(view.prediction[view.inside.slices], view)


def _in_context(numbers: npt.NDArray[np.uint8], view: PatchView) -> bytes:
    whole = np.full(view.context.shape_zyx, IGNORE, np.uint8)
    whole[view.inside.slices] = numbers
    return nifti_bytes(whole, view.spacing_um_zyx, view.context.offset_zyx)


def read_label(file: IO[bytes], view: PatchView, info: DeskInfo, label_info: Sequence[dict[str, Any]]) -> PatchLabels:
    """Read the mask that a client sends.

    Parameters
    ----------
    file : binary file
        NIfTI that covers what the image shows.
    view : PatchView
        The patch.
    info : DeskInfo
        Classes and kind of labels.
    label_info : sequence of dict
        ``{"name": …, "idx": …}`` of every segment: 3D Slicer numbers its segments anew, and tells their names.

    Returns
    -------
    PatchLabels
        Of the patch alone.

    Raises
    ------
    LabelError
        If it cannot be read, lies elsewhere, or a segment has a name that is no class.
    """
    whole = read_nifti(file, view.context, view.spacing_um_zyx)
    numbers = whole[view.inside.slices]
    if info.kind == "instance":
        return _objects(numbers, label_info)
    known, out = label_names(info), numbers.copy()
    for segment in label_info:
        name, index = str(segment.get("name", "")), segment.get("idx")
        if name not in known:
            raise LabelError(
                f"the segment '{name[:64]}' is no class", where="label_info", todo=f"Name segments {', '.join(known)}"
            )
        out[numbers == index] = known[name]
    return PatchLabels(out)


def _objects(numbers: npt.NDArray[Any], label_info: Sequence[dict[str, Any]]) -> PatchLabels:
    ignored = {s.get("idx") for s in label_info if s.get("name") == NOT_ANNOTATED} or {IGNORE}
    ignore = np.isin(numbers, [number for number in ignored if isinstance(number, int)])
    return PatchLabels.of_instances(np.where(ignore, 0, numbers), ignore)
