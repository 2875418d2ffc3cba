"""A leased patch as files, with the JSON of its ticket beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rescueseg.annotation.client import DeskInfo, PatchView
from rescueseg.annotation.formats import stated_by
from rescueseg.annotation.formats.base import IGNORE_NAME, Frame, PatchFiles, PatchFormat, relabelled, write_file
from rescueseg.errors import LabelError, QueueError, storage_errors
from rescueseg.geometry import Box, zyx
from rescueseg.queue.records import Lease


def write_patch(kind: PatchFormat, folder: Path, lease: Lease, view: PatchView, info: DeskInfo) -> PatchFiles:
    """Write a leased patch as files: image, mask to start from, what helps, and a description.

    Parameters
    ----------
    kind : PatchFormat
        In which format.
    folder : Path
        Made if it is not there. Files are named by ticket; a mask that is there already is kept.
    lease : Lease
        The lease.
    view : PatchView
        Its patch. Objects of its mask are numbered 1…n.
    info : DeskInfo
        The campaign.

    Raises
    ------
    LabelError
        If the format cannot number all objects.
    StorageError
        If the folder cannot be written.
    """
    frame = Frame.of(view, info)
    described = {
        "lease": lease.lease_id,
        "annotator": lease.annotator,
        "expires_at": lease.expires_at.isoformat(),
        "ticket": lease.ticket.to_json(),
        "spacing_um_zyx": list(view.spacing_um_zyx),
        "labels": {"0": "background", "255": IGNORE_NAME}
        | {str(number): name for number, name in enumerate(info.classes, start=1)},
        "kind": info.kind,
        "comment": lease.comment,
    }
    if info.kind == "instance":
        described["labels"] = {"0": "background", "1, 2, …": f"each {info.classes[0]} a number of its own"}
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        files = kind.write(folder, replace(view, start=relabelled(view.start)), frame)
        write_file(files.ticket, lambda part: part.write_text(text, encoding="utf-8"))
    return files


def lease_of(file: Path, held: Sequence[Lease]) -> Lease:
    """Return the lease whose patch a label file is of: by what the file says, else by its name.

    Parameters
    ----------
    file : Path
        The label file.
    held : sequence of Lease
        What its annotator holds.

    Raises
    ------
    QueueError
        If it is of none of them, or it cannot be told.
    """
    if not file.exists():
        raise LabelError("there is no such file", where=str(file), todo="Check the path")
    stated = stated_by(file)
    if stated.ticket_id is not None:
        found = [lease for lease in held if lease.ticket_id == stated.ticket_id]
        if not found:
            raise QueueError(
                f"the mask is of ticket {stated.ticket_id}, which you do not hold",
                where=str(file),
                todo="It may be handed in already, or its lease has run out: see 'rescueseg queue history'",
            )
        return found[0]
    found = [lease for lease in held if file.name.startswith(f"{lease.ticket_id}_")] or list(held)
    if stated.offset_zyx is not None:
        first = Box(zyx(round(value) for value in stated.offset_zyx), (1, 1, 1))
        there = [lease for lease in found if lease.ticket.box.offset_zyx == first.offset_zyx]
        found = there or [lease for lease in found if lease.ticket.box.contains(first)]  # cropped to its segments
    if len(found) != 1:
        what = (
            "you hold no patch"
            if not held
            else "no patch that you hold lies there"
            if not found
            else f"it may be of {len(found)} patches that you hold"
        )
        raise QueueError(what, where=str(file), todo="Name the lease: queue submit CAMPAIGN LEASE FILE")
    return found[0]
