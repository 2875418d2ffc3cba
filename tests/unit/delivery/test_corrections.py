"""Corrections merged into delivered labels: what changes, what stays, what is kept, and what a kill leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.delivery import corrections as module
from rescueseg.delivery.corrections import merge_corrections
from rescueseg.delivery.folder import MASK, OBJECTS, DeliveryFolder
from rescueseg.delivery.merges import GIVEN_UP, MERGE, corrections, corrections_folder
from rescueseg.delivery.places import PROOFREADING
from rescueseg.delivery.target import TargetVolume
from rescueseg.geometry import Box
from rescueseg.labels import IGNORE, PatchLabels
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore, make_queue, open_queue
from rescueseg.storage import Storage
from rescueseg.volumes.ome_zarr import open_level
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.delivered_campaign import RULE, SPACING, deliver, source

SHAPE = (12, 40, 70)
BOX = Box((2, 5, 10), (8, 16, 32))
"""Lies across the shards of 8×32×32 voxels."""
OBJECTS_RULE = RULE.model_copy(update={"objects": ObjectRule(source="distance"), "object_class": 1})


def delivered_objects() -> npt.NDArray[np.uint32]:
    """Return an object in the box, one cut by its face, and one beside it."""
    objects = np.zeros(SHAPE, np.uint32)
    objects[4:7, 8:12, 15:20] = 1
    objects[3:8, 8:18, 36:60] = 2
    objects[3:8, 30:36, 4:60] = 3
    return objects


@dataclass
class Rig:
    """A campaign, and a delivery of its volume."""

    campaign: Campaign
    store: QueueStore
    target: TargetVolume

    @classmethod
    def make(cls, folder: Path, labels: str = "semantic", objects: bool = False) -> Rig:
        classes = ["cell"] if labels == "instance" or objects else ["cell", "vessel"]
        settings = {"name": "c", "classes": classes, "annotation": {"labels": labels}}
        campaign = Campaign.create(str(folder / "campaign"), check_config(settings))
        make_queue(campaign)
        image = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
        tifffile.imwrite(folder / "v.tif", image)
        import_volume(campaign, VolumeImport(str(folder / "v.tif"), volume_id="v", spacing=SPACING))
        out, made = DeliveryFolder(str(folder / "out")), delivered_objects()
        rule = OBJECTS_RULE if objects or labels == "instance" else RULE
        deliver(campaign, out, "v", (made > 0).astype(np.uint8), made if rule.objects else None, image)
        target = TargetVolume(source(campaign, "v"), out, rule, SHAPE, SPACING, (8, 32, 32))
        return cls(campaign, open_queue(campaign), target)

    def merge(self, base: str = "made") -> int:
        return merge_corrections(self.campaign, self.store, self.target, base)

    def read(self, name: str) -> npt.NDArray[Any]:
        return np.asarray(open_level(self.target.label_url(name))[...])

    def accept(self, labels: PatchLabels, box: Box = BOX, ticket: str = "t", stratum: str = PROOFREADING) -> None:
        """Queue a place unless it is, and hand labels in, which accepts them."""
        self.store.tickets.add([NewTicket(ticket_id=ticket, volume_id="v", box=box, stratum=stratum)])
        client = LocalClient(self.campaign, self.store, "anna")
        lease = client.next(ticket_id=ticket)
        assert lease is not None
        client.submit(lease.lease_id, labels, "napari", override=True)
        if self.store.views.ticket(ticket).status == "submitted":
            client.accept(ticket)

    def kept(self, number: int, name: str, ticket: str = "t") -> npt.NDArray[Any]:
        return self.target.out.storage.read_array(f"corrections/v/{number:04d}/{ticket}_{name}.npz")

    def files(self) -> dict[str, int]:
        root = Path(self.target.out.url)
        return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def drawn_classes() -> npt.NDArray[np.uint8]:
    """Return what a person drew in the box: a vessel, a piece taken off, and some voxels that nobody looked at."""
    classes = (delivered_objects()[BOX.slices] > 0).astype(np.uint8)
    classes[1:3, 0:4, 20:26] = 2
    classes[2:4, 3:5] = 0
    classes[:, 12:] = IGNORE
    return classes


def test_the_mask_takes_what_was_drawn_and_nothing_else(tmp_path: Path) -> None:
    rig = Rig.make(tmp_path)
    before = rig.read(MASK)
    assert rig.merge() == 1
    assert np.array_equal(rig.read(MASK), before)
    drawn = drawn_classes()
    rig.accept(PatchLabels(drawn))
    assert rig.merge() == 2
    expected = before.copy()
    expected[BOX.slices] = np.where(drawn == IGNORE, before[BOX.slices], drawn)
    assert np.array_equal(rig.read(MASK), expected)
    assert np.array_equal(rig.kept(1, MASK), before[BOX.slices])
    [done] = corrections(rig.target.out, "v")
    assert (done.ticket_id, done.annotator, done.box) == ("t", "anna", BOX)
    assert done.voxels == np.count_nonzero(expected != before)
    files = rig.files()
    assert rig.merge() == 2
    assert rig.files() == files


def test_only_what_was_accepted_since_is_merged(tmp_path: Path) -> None:
    rig = Rig.make(tmp_path)
    far = Box((0, 20, 0), (8, 8, 8))
    rig.accept(PatchLabels(np.full(far.shape_zyx, 1, np.uint8)), far, "learned", "dense")
    assert rig.merge() == 1
    assert not rig.read(MASK)[far.slices].any()
    near = Box((0, 0, 0), (4, 4, 4))
    rig.accept(PatchLabels(np.full(near.shape_zyx, 2, np.uint8)), near, "query", "query")
    assert rig.merge() == 2
    assert (rig.read(MASK)[near.slices] == 2).all()
    assert not rig.read(MASK)[far.slices].any()


def test_the_latest_of_overlapping_corrections_stays(tmp_path: Path) -> None:
    rig = Rig.make(tmp_path)
    for ticket, value, start in (("z", 1, 0), ("a", 2, 4)):  # handed in in this order
        box = Box((0, 0, start), (4, 8, 8))
        rig.accept(PatchLabels(np.full(box.shape_zyx, value, np.uint8)), box, ticket)
    assert rig.merge() == 2
    assert rig.read(MASK)[0, 0, :12].tolist() == [1] * 4 + [2] * 8
    files = rig.files()
    assert rig.merge() == 2
    assert rig.files() == files


def test_objects_keep_their_numbers_where_nobody_changed_them(tmp_path: Path) -> None:
    rig = Rig.make(tmp_path, "instance")
    before = rig.read(OBJECTS)
    inside = before[BOX.slices]
    drawn = inside * 10
    drawn[inside == 2] = 50
    drawn[3:5, 4:6, 26:28] = 0  # a hole in the object that is cut by the face
    drawn[0:2, 0:2, 0:2] = 7  # an object that was missed
    rig.accept(PatchLabels.of_instances(drawn))
    assert rig.merge() == 2
    expected = before.copy()
    expected[BOX.slices] = np.where(drawn == 10, 1, np.where(drawn == 50, 2, np.where(drawn == 7, 4, 0)))
    assert np.array_equal(rig.read(OBJECTS), expected)
    assert np.array_equal(rig.read(MASK), expected > 0)
    assert np.array_equal(rig.kept(1, OBJECTS), inside)
    drawn[drawn == 10] = 0
    drawn[4, 4, 7] = 8
    rig.accept(PatchLabels.of_instances(drawn), ticket="again")
    assert rig.merge() == 3
    expected[expected == 1] = 0
    expected[BOX.slices][4, 4, 7] = 5
    assert np.array_equal(rig.read(OBJECTS), expected)


def test_objects_follow_the_mask_where_classes_were_drawn(tmp_path: Path) -> None:
    rig = Rig.make(tmp_path, objects=True)
    before = rig.read(OBJECTS)
    classes = (before[BOX.slices] > 0).astype(np.uint8)
    classes[0:2, 0:2, 0:2] = 1
    classes[before[BOX.slices] == 1] = 0
    rig.accept(PatchLabels(classes))
    assert rig.merge() == 2
    expected = np.where(before == 1, 0, before)
    expected[BOX.slices][0:2, 0:2, 0:2] = 4
    assert np.array_equal(rig.read(OBJECTS), expected)
    assert np.array_equal(rig.read(MASK), expected > 0)


@pytest.mark.parametrize("base", ["made", "made anew"])
def test_labels_that_were_made_anew_get_all_corrections_again(tmp_path: Path, base: str) -> None:
    rig = Rig.make(tmp_path)
    first, before = drawn_classes(), rig.read(MASK)
    rig.accept(PatchLabels(first))
    assert rig.merge() == 2
    after = rig.read(MASK)
    module._write(rig.target.label_url(MASK), Box((0, 0, 0), SHAPE), before)
    assert rig.merge(base) == 3
    assert np.array_equal(rig.read(MASK), after)
    assert np.array_equal(rig.kept(2, MASK), before[BOX.slices])


def stamp(rig: Rig, identity: str) -> None:
    """Write what says which arrays these are."""
    zarr.open_group(rig.target.image_url, mode="r+", zarr_format=3).attrs["rescueseg"] = {"identity": identity}


@pytest.mark.parametrize(("base", "identity"), [("another rule", "first"), ("made", "second")])
def test_a_merge_into_labels_that_are_gone_is_never_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, identity: str
) -> None:
    rig, fresh = Rig.make(tmp_path / "killed", "instance"), Rig.make(tmp_path / "fresh", "instance")
    stamp(rig, "first")
    second = Box((0, 30, 20), (10, 8, 32))
    for one in (rig, fresh):
        one.merge()
        drawn = delivered_objects()[BOX.slices]
        drawn[0:2, 0:2, 0:2] = 7
        one.accept(PatchLabels.of_instances(drawn))
        other = delivered_objects()[second.slices]
        other[0, 0:2] = 9
        one.accept(PatchLabels.of_instances(other), second, "u")
    with monkeypatch.context() as broken:
        broken.setattr(module, "_largest_object", lambda target: 3)
        writes = iter([module._write, module._write])
        broken.setattr(module, "_write", lambda *given: next(writes)(*given))  # the first ticket's, then it is killed
        with pytest.raises(StopIteration):
            rig.merge()
    anew = np.zeros(SHAPE, np.uint32)
    anew[1:11, 2:38, 2:8], anew[1:11, 2:38, 60:68] = 4, 5  # the numbers that the merge of then would give
    anew[4:8, 6:12, 14:30] = 6
    for one in (rig, fresh):
        module._write(one.target.label_url(OBJECTS), Box((0, 0, 0), SHAPE), anew)
        module._write(one.target.label_url(MASK), Box((0, 0, 0), SHAPE), (anew > 0).astype(np.uint8))
    stamp(rig, identity)
    folder = corrections_folder(rig.target.out, "v", "0001")
    begun = folder.read(MERGE)
    assert rig.merge(base) == 3
    assert fresh.merge(base) == 2
    for name in (MASK, OBJECTS):
        assert np.array_equal(rig.read(name), fresh.read(name))
    assert folder.read(MERGE) == begun
    assert folder.has(GIVEN_UP)
    assert [c.ticket_id for c in corrections(rig.target.out, "v")] == ["t", "u"]
    files = rig.files()
    assert rig.merge(base) == 3
    assert rig.files() == files


class Killed(BaseException):
    """The process is gone."""


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], int]) -> int | None:
    """Do something that is killed before, or half through, one of its writes; return what it returned if it was not."""
    count = 0
    whole, write = Storage.write_bytes, module._write

    def store(self: Storage, relative: str, data: bytes, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == moment:
            raise Killed
        whole(self, relative, data, **options)

    def halves(url: str, box: Box, labels: npt.NDArray[Any]) -> None:
        nonlocal count
        count += 1
        if count == moment:
            z, y, x = box.shape_zyx
            write(url, replace(box, shape_zyx=(z, y, x // 2)), labels[..., : x // 2])
            raise Killed
        write(url, box, labels)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write_bytes", store)
        patched.setattr(module, "_write", halves)
        try:
            return work()
        except Killed:
            return None


def test_killed_anywhere_the_result_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig.make(tmp_path, "instance")
    before = {name: rig.read(name) for name in (MASK, OBJECTS)}
    drawn = before[OBJECTS][BOX.slices] * 10
    drawn[3:5, 4:6, 26:28], drawn[0:2, 0:2, 0:2] = 0, 7
    rig.merge()
    rig.accept(PatchLabels.of_instances(drawn))
    second = Box((0, 16, 30), (10, 16, 32))  # overlaps the first
    other = before[OBJECTS][second.slices].copy()
    other[4, 4:6] = 9
    rig.accept(PatchLabels.of_instances(other), second, "u")
    root = Path(rig.target.out.url) / "corrections"
    results, moment, version = [], 0, None
    while version is None:
        moment += 1
        version = killed_at(moment, monkeypatch, rig.merge)
        assert rig.merge() == 2
        kept = {p.name: rig.target.out.storage.read_array(str(p.relative_to(root.parent))) for p in root.rglob("*.npz")}
        results.append({MASK: rig.read(MASK), OBJECTS: rig.read(OBJECTS)} | kept)
        shutil.rmtree(root / "v" / "0001")  # back to what was delivered
        for name, array in before.items():
            module._write(rig.target.label_url(name), Box((0, 0, 0), SHAPE), array)
    assert moment > 10
    assert len(results[-1]) == 6
    assert not np.array_equal(results[-1][OBJECTS], before[OBJECTS])
    for result in results:
        assert result.keys() == results[-1].keys()
        assert all(np.array_equal(result[name], results[-1][name]) for name in result)
