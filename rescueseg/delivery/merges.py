"""What was merged into the labels of a delivered volume: the records of `rescueseg.delivery.corrections`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rescueseg.campaign.folders import RecordFolder
from rescueseg.campaign.layout import check_id
from rescueseg.campaign.record_file import RecordFile
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.records import AcceptedAnnotation, BoxField, Record


class Merge(Record):
    """One merge: what it is to do."""

    base: str
    """Digest of what the labels were made of, without corrections."""
    arrays: str = ""
    """Identity of the arrays that they are in (`rescueseg.delivery.delivered_image.arrays_identity`)."""
    annotations: tuple[AcceptedAnnotation, ...]
    """In this order."""
    largest: int
    """The largest number of an object before."""

    def is_of(self, base: str, arrays: str) -> bool:
        """Tell whether it is for labels of this base, and in these arrays; where it does not say which, in any."""
        return self.base == base and self.arrays in ("", arrays)


class GivenUp(Record):
    """What the labels were when a merge into others that they replaced was given up, unfinished."""

    base: str
    arrays: str


class Correction(Record):
    """One annotation that was merged."""

    ticket_id: str
    annotation_id: str
    annotator: str
    handed_in: datetime
    box: BoxField
    voxels: int
    """Voxels of the mask that were changed."""
    largest: int
    """The largest number of an object from then on."""
    digests: dict[str, str]
    """Of the labels of the box after it, by label image."""


EARLIER = RecordFile("earlier", tuple[str, ...])
"""Annotations that were accepted before the volume was delivered first: those of no review of it are not merged."""
MERGE = RecordFile("merge", Merge)
GIVEN_UP = RecordFile("given_up", GivenUp)


def corrections_folder(out: DeliveryFolder, volume_id: str, *parts: str) -> RecordFolder:
    """Return the folder of a volume's corrections in a delivery, or of one merge."""
    return RecordFolder(out.storage, "/".join(("corrections", check_id(volume_id, "volume id"), *parts)))


def correction_file(ticket_id: str) -> RecordFile[Correction]:
    """Return the file that says what a merge changed for a ticket."""
    return RecordFile(f"corrected_{check_id(ticket_id, 'ticket id')}", Correction)


def corrections(out: DeliveryFolder, volume_id: str) -> Iterator[Correction]:
    """Yield what was merged into the labels of a volume, in this order; merges that were given up are left out."""
    folder = corrections_folder(out, volume_id)
    for number in folder.storage.list(folder.folder):
        inside = corrections_folder(out, volume_id, number)
        merge = inside.read(MERGE) if number.isdigit() and not inside.has(GIVEN_UP) else None
        for annotation in merge.annotations if merge else ():
            if (correction := inside.read(correction_file(annotation.ticket_id))) is not None:
                yield correction
