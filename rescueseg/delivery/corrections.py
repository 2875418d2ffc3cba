"""What people corrected of a delivered volume, merged into its labels; what stood there before is kept.

One merge is a folder below ``corrections/<volume>/``, by number::

    0001/merge.json               which accepted annotations it merges: written first
    0001/<ticket>_mask.npz        the labels of the ticket's box before, written before they are changed
    0001/<ticket>_objects.npz
    0001/corrected_<ticket>.json  what was changed: written last
    0001/given_up.json            where the labels were made anew before all of it was done: it is never gone on with

What is to be written depends on these arrays alone, never on labels that may be half written: after a kill the same
annotations are merged again with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.campaign.folders import RecordFolder
from rescueseg.campaign.label_arrays import read_classes, read_objects
from rescueseg.campaign.layout import check_id
from rescueseg.delivery.corrected_objects import corrected_numbers, drawn_objects
from rescueseg.delivery.delivered_image import arrays_identity
from rescueseg.delivery.folder import MASK, OBJECTS
from rescueseg.delivery.heights import foreground
from rescueseg.delivery.label_arrays import LabelArray
from rescueseg.delivery.merges import (
    EARLIER,
    GIVEN_UP,
    MERGE,
    Correction,
    GivenUp,
    Merge,
    correction_file,
    corrections_folder,
)
from rescueseg.delivery.places import PROOFREADING
from rescueseg.delivery.target import TargetVolume
from rescueseg.geometry import Box, partition
from rescueseg.labels import IGNORE
from rescueseg.queue.store import QueueStore
from rescueseg.records import AcceptedAnnotation
from rescueseg.storage import digest_array

Labels = npt.NDArray[Any]


def merge_corrections(campaign: Campaign, store: QueueStore, target: TargetVolume, base: str) -> int:
    """Merge the annotations that were accepted since the volume was delivered into its labels at full resolution.

    Merged are those of tickets that ask to proofread it, and all others of its pool patches that were accepted after the
    first delivery; each once, and again where the labels were made anew. The mask takes the classes that were drawn; an
    object that nobody changed keeps its number (see `rescueseg.delivery.corrected_objects`). Voxels that were not annotated
    stay as they are.

    Parameters
    ----------
    campaign : Campaign
        Whose people corrected it.
    store : QueueStore
        Its queue.
    target : TargetVolume
        The volume, its labels written.
    base : str
        Digest of what these were made of, without corrections.

    Returns
    -------
    int
        The version of the labels: 1 where nothing was corrected, and one more with each merge.

    Raises
    ------
    StorageError
        If an annotation is missing or damaged, or the disk is full.
    """
    merges = _Merges(campaign, store, target, base, arrays_identity(target.image_url) or "")
    accepted = [a for a in store.views.accepted("pool") if a.volume_id == target.volume_id]
    merges.finish()
    if new := merges.missing(accepted):
        merges.begin(new)
        merges.finish()
    return 1 + len(merges.numbers())


@dataclass(frozen=True)
class _Merges:
    """The merges of one volume, and what its labels are now: see `Merge`."""

    campaign: Campaign
    store: QueueStore
    target: TargetVolume
    base: str
    arrays: str

    def folder(self, *parts: str) -> RecordFolder:
        """Return the folder of the corrections, or of one merge."""
        return corrections_folder(self.target.out, self.target.volume_id, *parts)

    def numbers(self) -> list[str]:
        """Return the folders of the merges that were begun, in their order."""
        folder = self.folder()
        return [n for n in folder.storage.list(folder.folder) if n.isdigit() and self.folder(n).has(MERGE)]

    def begin(self, annotations: list[AcceptedAnnotation]) -> None:
        """Write what the next merge is to do."""
        largest = _largest_object(self.target)
        merge = Merge(base=self.base, arrays=self.arrays, annotations=tuple(annotations), largest=largest)
        self.folder(f"{len(self.numbers()) + 1:04d}").write(MERGE, merge)

    def finish(self) -> None:
        """Do what the last merge has not done yet; those before it are done, or given up.

        One into labels that were replaced since is given up: its numbers, and what it kept, are of labels that are gone.
        """
        if not (numbers := self.numbers()):
            return
        folder = self.folder(numbers[-1])
        merge = folder.read(MERGE)
        assert merge is not None, "it is written first, and makes the folder"
        if folder.has(GIVEN_UP) or all(folder.has(correction_file(a.ticket_id)) for a in merge.annotations):
            return
        if not merge.is_of(self.base, self.arrays):
            folder.write(GIVEN_UP, GivenUp(base=self.base, arrays=self.arrays))
            return
        largest = merge.largest
        for annotation in merge.annotations:
            done = folder.read(correction_file(annotation.ticket_id))
            if done is None:
                done = self._merge_one(folder, annotation, largest)
                folder.write(correction_file(annotation.ticket_id), done)
            largest = done.largest

    def missing(self, accepted: list[AcceptedAnnotation]) -> list[AcceptedAnnotation]:
        """Return the accepted annotations that the labels do not hold yet."""
        folder = self.folder()
        proofread = {t.ticket_id for t in self.store.views.tickets(purpose="pool") if t.stratum == PROOFREADING}
        if not folder.has(EARLIER):
            before = tuple(a.annotation_id for a in accepted if a.ticket_id not in proofread)
            folder.write(EARLIER, before)
        earlier = folder.read(EARLIER) or ()
        merged = self._in_place()
        new = [a for a in accepted if a.annotation_id not in earlier and a.annotation_id not in merged]
        return sorted(new, key=lambda a: (self._handed_in(a), a.ticket_id))  # the latest is merged last, and stays

    def _handed_in(self, annotation: AcceptedAnnotation) -> datetime:
        versions = self.store.views.annotations(annotation.ticket_id)
        return next(v.created_at for v in versions if v.annotation_id == annotation.annotation_id)

    def _in_place(self) -> set[str]:
        """Return the annotations that the labels hold: none where they were made anew since."""
        done: list[Correction] = []
        for number in self.numbers():
            merge, given_up = self.folder(number).read(MERGE), self.folder(number).has(GIVEN_UP)
            if merge is not None and merge.is_of(self.base, self.arrays) and not given_up:
                files = (correction_file(a.ticket_id) for a in merge.annotations)
                done += [c for c in map(self.folder(number).read, files) if c is not None]
        visible = [c for n, c in enumerate(done) if not any(c.box.intersects(later.box) for later in done[n + 1 :])]
        for correction in visible:
            for name, digest in correction.digests.items():
                labels = self.target.labels(name).read(correction.box)
                if digest_array(labels) != digest:
                    return set()
        return {correction.annotation_id for correction in done}

    def _merge_one(self, folder: RecordFolder, annotation: AcceptedAnnotation, largest: int) -> Correction:
        """Keep what stands in the box of an annotation, then overwrite it."""
        box, storage = annotation.box, self.campaign.storage
        classes = read_classes(storage, annotation)
        ignore = classes == IGNORE
        mask = self._before(folder, annotation, MASK)
        labels: dict[str, Labels] = {MASK: np.where(ignore, mask, classes).astype(np.uint8)}
        if self.target.rule.objects is not None:
            old, inside = self._rimmed(folder, annotation)
            drawn = read_objects(storage, annotation)
            if drawn is None:
                object_voxels = foreground(labels[MASK], self.target.rule, self.campaign.config.n_classes)
                drawn = drawn_objects(old[inside.slices], object_voxels, self.target.spacing_um_zyx)
            labels[OBJECTS], largest = corrected_numbers(old, inside, drawn, ignore, largest)
        for name, array in labels.items():
            _write(self.target.label_url(name), box, array)
        return Correction(
            ticket_id=annotation.ticket_id,
            annotation_id=annotation.annotation_id,
            annotator=annotation.annotator,
            handed_in=self._handed_in(annotation),
            box=box,
            voxels=int(np.count_nonzero(labels[MASK] != mask)),
            largest=largest,
            digests={name: digest_array(array) for name, array in labels.items()},
        )

    def _before(self, folder: RecordFolder, annotation: AcceptedAnnotation, name: str) -> Labels:
        """Return the labels of a box before the correction; they are kept before anything is changed."""
        path = folder.path(f"{check_id(annotation.ticket_id, 'ticket id')}_{name}.npz")
        if not folder.storage.exists(path):
            labels = self.target.labels(name).read(annotation.box)
            folder.storage.write_array(path, labels, read_only=True)
        return folder.storage.read_array(path)

    def _rimmed(self, folder: RecordFolder, annotation: AcceptedAnnotation) -> tuple[Labels, Box]:
        """Return the objects before the correction with a rim of one voxel, and the box in it; the rim is never changed."""
        frame = annotation.box.expand((1, 1, 1)).clip(self.target.shape_zyx)
        inside = annotation.box.relative_to(frame)
        before = self._before(folder, annotation, OBJECTS)
        objects = self.target.labels(OBJECTS).read(frame)
        objects[inside.slices] = before
        return objects, inside


def _write(url: str, box: Box, labels: Labels) -> None:
    """Write labels at full resolution; whole files are replaced at once, so none is ever half written."""
    LabelArray(url, "0").write(box, labels)


def _largest_object(target: TargetVolume) -> int:
    """Return the largest number of an object of a volume, read block by block."""
    if target.rule.objects is None:
        return 0
    objects = target.labels(OBJECTS)
    return max(int(objects.read(box).max()) for box in partition(target.shape_zyx, target.block_zyx))
