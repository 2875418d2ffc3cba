"""A leased patch as files, with the JSON of its ticket beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rescueseg.annotation.desk import DeskInfo, PatchView
from rescueseg.annotation.formats.base import IGNORE_NAME, Frame, PatchFiles, PatchFormat, relabelled, write_file
from rescueseg.annotation.records import Lease
from rescueseg.errors import storage_errors


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
