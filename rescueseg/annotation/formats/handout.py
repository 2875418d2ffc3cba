"""A leased patch as files, with the JSON of its ticket beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rescueseg.annotation.client import CampaignInfo, PatchView
from rescueseg.annotation.formats import metadata_of
from rescueseg.annotation.formats.base import IGNORE_NAME, Frame, PatchFiles, PatchFormat, relabel, write_file
from rescueseg.errors import LabelError, QueueError, storage_errors
from rescueseg.geometry import Box, zyx
from rescueseg.queue.records import Lease


def write_patch(kind: PatchFormat, folder: Path, lease: Lease, view: PatchView, info: CampaignInfo) -> PatchFiles:
    """Write a leased patch as files: image, mask to start from, helpful extras, and a description.

    Parameters
    ----------
    kind : PatchFormat
        The format.
    folder : Path
        Made if it is not there. Files are named by ticket; an existing mask stays.
    lease : Lease
        The lease.
    view : PatchView
        Its patch. Objects of its mask are numbered 1…n.
    info : CampaignInfo
        The campaign.

    Raises
    ------
    LabelError
        If the format cannot number all objects.
    StorageError
        If the folder cannot be written.
    """
    frame = Frame.of(view, info)
    description = {
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
        description["labels"] = {"0": "background", "1, 2, …": f"each {info.classes[0]} a number of its own"}
    text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        files = kind.write(folder, replace(view, start=relabel(view.start)), frame)
        write_file(files.ticket, lambda part: part.write_text(text, encoding="utf-8"))
    return files


def lease_of(file: Path, leases: Sequence[Lease]) -> Lease:
    """Return the lease to whose patch a label file belongs: by the file's metadata, else by its name.

    Parameters
    ----------
    file : Path
        The label file.
    leases : sequence of Lease
        Running leases of its annotator.

    Raises
    ------
    QueueError
        If it belongs to none of them, or may belong to several.
    """
    if not file.exists():
        raise LabelError("there is no such file", where=str(file), todo="Check the path")
    metadata = metadata_of(file)
    if metadata.ticket_id is not None:
        candidates = [lease for lease in leases if lease.ticket_id == metadata.ticket_id]
        if not candidates:
            raise QueueError(
                f"the mask is of ticket {metadata.ticket_id}, which you do not hold",
                where=str(file),
                todo="It may be handed in already, or its lease has run out: see 'rescueseg queue history'",
            )
        return candidates[0]
    candidates = [lease for lease in leases if file.name.startswith(f"{lease.ticket_id}_")] or list(leases)
    if metadata.offset_zyx is not None:
        first = Box(zyx(round(value) for value in metadata.offset_zyx), (1, 1, 1))
        at_offset = [lease for lease in candidates if lease.ticket.box.offset_zyx == first.offset_zyx]
        candidates = at_offset or [
            lease for lease in candidates if lease.ticket.box.contains(first)
        ]  # cropped to its segments
    if len(candidates) != 1:
        what = (
            "you hold no patch"
            if not leases
            else "no patch that you hold lies there"
            if not candidates
            else f"it may be of {len(candidates)} patches that you hold"
        )
        raise QueueError(what, where=str(file), todo="Name the lease: queue submit CAMPAIGN LEASE FILE")
    return candidates[0]
