"""`rescueseg queue watch`: a folder of leased patches."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation.formats import format_named
from rescueseg.annotation.local_client import LocalClient
from rescueseg.annotation.watch import Watcher
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from tests.next_snapshot import next_labels

SHAPE = (3, 4, 5)


@pytest.fixture
def filled(campaign: Campaign, tmp_path: Path) -> Campaign:
    image = np.arange(8 * 9 * 10, dtype=np.uint16).reshape(8, 9, 10)
    tifffile.imwrite(tmp_path / "raw.tif", image)
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(tmp_path / "raw.tif"), volume_id="v", spacing=(0.4, 0.2, 0.1))
    )
    tickets = [
        NewTicket(ticket_id=name, volume_id="v", box=Box((i, 3, 4), SHAPE), score=9.0 - i)
        for i, name in enumerate("abcd")
    ]
    open_queue(campaign).tickets.add(tickets)
    return campaign


@pytest.fixture
def watcher(filled: Campaign, tmp_path: Path) -> Watcher:
    return watch(filled, tmp_path / "todo")


said: list[str] = []


def watch(campaign: Campaign, folder: Path, kind: str = "nifti") -> Watcher:
    said.clear()
    client = LocalClient(campaign, open_queue(campaign), "anna")
    return Watcher(client, folder, format_named(kind), 2, said.append, stable_seconds=0.0)


def looks(watcher: Watcher, times: int = 2) -> None:
    for _ in range(times):
        watcher.step()


def mask() -> Any:
    """Return a mask that no check finds odd."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[:, 1:3, 1:4] = 1
    return drawn


def save(path: Path, labels: Any) -> None:
    """Save as ITK-SNAP does: voxels and position, nothing else."""
    nib.save(nib.Nifti1Image(labels.T, nib.load(path).affine), path)


def statuses(campaign: Campaign) -> dict[str, str]:
    return {ticket.ticket_id: ticket.status for ticket in open_queue(campaign).views.tickets()}


def test_a_saved_mask_is_handed_in_and_the_next_patch_appears(filled: Campaign, watcher: Watcher) -> None:
    looks(watcher, 3)
    assert watcher.tickets == ["a", "b"]
    assert statuses(filled) == {"a": "leased", "b": "leased", "c": "queued", "d": "queued"}
    save(watcher.folder / "b_labels.nii.gz", mask())
    looks(watcher)
    assert statuses(filled)["b"] == "accepted"
    assert watcher.tickets == ["a", "c"]
    assert [p.name for p in watcher.folder.glob("*b*") if p.name.startswith("b")] == []
    assert (watcher.folder / "done" / "b_labels.nii.gz").exists()
    (stored,) = open_queue(filled).views.accepted()
    assert np.array_equal(next_labels(filled, "b", "v", Box((1, 3, 4), SHAPE)), mask())
    assert stored.tool == "watch"


def test_any_tool_may_save_under_any_name(filled: Campaign, watcher: Watcher) -> None:
    """3D Slicer: its own format and name, LPS, cropped to the segments."""
    looks(watcher, 1)
    directions, spacing = np.diag([-1, -1, 1]), np.array([0.1, 0.2, 0.4]) / 1000
    origin = np.array([4 + 1, 3 + 1, 0]) * spacing * [-1, -1, 1]
    header = {
        "space": "left-posterior-superior", "space directions": directions * spacing, "space origin": origin,
        "kinds": ["domain"] * 3, "Segment0_ID": "s", "Segment0_Name": "organelle", "Segment0_LabelValue": "7",
        "Segment0_Layer": "0",
    }  # fmt: skip
    nrrd.write(str(watcher.folder / "Segmentation.seg.nrrd"), np.full((3, 2, 3), 7, np.uint8), header)
    looks(watcher)
    assert statuses(filled)["a"] == "accepted", said
    assert np.array_equal(next_labels(filled, "a", "v", Box((0, 3, 4), SHAPE)), mask())


def test_half_written_and_temporary_files_are_not_handed_in(filled: Campaign, watcher: Watcher) -> None:
    looks(watcher, 1)
    path = watcher.folder / "a_labels.nii.gz"
    save(path, mask())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for name in (".a_labels.nii.gz", "~a_labels.nii.gz", "a_labels.nii.gz~", "a_labels.nii.gz.part", "#a_labels.nii"):
        (watcher.folder / name).write_bytes(whole)
    looks(watcher, 3)
    assert statuses(filled)["a"] == "leased"
    assert "cannot be read" in path.with_name("a_labels.nii.gz.error.txt").read_text()
    path.write_bytes(whole)
    looks(watcher)
    assert statuses(filled)["a"] == "accepted"
    assert not path.with_name("a_labels.nii.gz.error.txt").exists()


def test_a_file_that_is_still_being_written_is_waited_for(filled: Campaign, watcher: Watcher) -> None:
    watcher.stable_seconds = 3600.0
    looks(watcher, 1)
    save(watcher.folder / "a_labels.nii.gz", mask())
    looks(watcher, 4)
    assert statuses(filled)["a"] == "leased"
    assert not list(watcher.folder.glob("*.error.txt"))


def test_an_odd_mask_is_handed_in_when_it_is_saved_again(filled: Campaign, watcher: Watcher) -> None:
    looks(watcher, 1)
    path = watcher.folder / "a_labels.nii.gz"
    unchanged = path.read_bytes()
    for expected in ("leased", "accepted"):
        time.sleep(0.01)
        path.write_bytes(unchanged)
        looks(watcher)
        assert statuses(filled)["a"] == expected, said
    assert any("as it was handed out" in line and "Save it once more" in line for line in said)


def test_another_patchs_mask_and_what_is_no_mask_are_refused(filled: Campaign, watcher: Watcher) -> None:
    looks(watcher, 1)
    save(watcher.folder / "a_labels.nii.gz", mask())
    (watcher.folder / "a_labels.nii.gz").replace(watcher.folder / "b_labels.nii.gz")
    (watcher.folder / "notes.tif").write_text("not an image")
    looks(watcher, 3)
    assert statuses(filled) == {"a": "leased", "b": "leased", "c": "queued", "d": "queued"}
    assert sorted(p.name for p in watcher.folder.glob("*.error.txt")) == [
        "b_labels.nii.gz.error.txt",
        "notes.tif.error.txt",
    ]
    told = len(said)
    looks(watcher, 3)
    assert len(said) == told, "said once"


def test_a_lease_that_ran_out_is_taken_again_unless_somebody_else_has_the_patch(
    filled: Campaign, watcher: Watcher
) -> None:
    looks(watcher, 1)
    store = open_queue(filled)
    store.leases.expire(max(lease.expires_at for lease in store.views.leases()))
    bobs = store.leases.claim("bob", 60, ticket_id="b")
    for name in "ab":
        save(watcher.folder / f"{name}_labels.nii.gz", mask())
    looks(watcher)
    assert statuses(filled)["a"] == "accepted", said
    assert statuses(filled)["b"] == "leased"
    assert bobs is not None
    assert store.views.lease(bobs.lease_id).annotator == "bob"
    assert (watcher.folder / "b_labels.nii.gz").exists(), "work is never thrown away"


def lose_leases(campaign: Campaign, watcher: Watcher) -> None:
    """Let all leases run out, and a beat be due."""
    store = open_queue(campaign)
    store.leases.expire(max(lease.expires_at for lease in store.views.leases()))
    for patch in watcher._patches.values():
        patch.beat_at = -1e9


def test_a_patch_with_a_refused_mask_is_kept_on_lease(filled: Campaign, watcher: Watcher) -> None:
    looks(watcher, 1)
    path = watcher.folder / "a_labels.nii.gz"
    save(path, mask() * 9)
    looks(watcher)
    assert path.with_name("a_labels.nii.gz.error.txt").exists()
    lose_leases(filled, watcher)
    looks(watcher, 1)
    assert statuses(filled) == {"a": "leased", "b": "leased", "c": "queued", "d": "queued"}
    save(path, mask())
    looks(watcher)
    assert statuses(filled)["a"] == "accepted", said


def test_a_mask_saved_while_the_lease_ran_out_is_not_thrown_away(filled: Campaign, watcher: Watcher) -> None:
    looks(watcher, 1)
    save(watcher.folder / "a_labels.nii.gz", mask())
    lose_leases(filled, watcher)
    for ticket_id in "ab":
        assert open_queue(filled).leases.claim("bob", 60, ticket_id=ticket_id, resume=False) is not None
    looks(watcher, 1)
    assert np.array_equal(np.asarray(nib.load(watcher.folder / "a_labels.nii.gz").dataobj).T, mask())
    assert not (watcher.folder / "b_labels.nii.gz").exists(), "nobody drew on it"


def test_what_cannot_be_laid_out_is_left_to_others(filled: Campaign, tmp_path: Path) -> None:
    ticket = NewTicket(ticket_id="damaged", volume_id="v", box=Box((5, 3, 4), SHAPE), prefill="gone.npz", score=99.0)
    open_queue(filled).tickets.add([ticket])
    watcher = watch(filled, tmp_path / "todo")
    looks(watcher)
    watcher._requested_at = -1e9
    looks(watcher)
    assert watcher.tickets == ["a", "b"]
    assert statuses(filled)["damaged"] == "queued"
    assert len([line for line in said if "damaged: left to others" in line]) == 1


def test_more_objects_than_a_format_holds_do_not_end_the_watcher(tmp_path: Path) -> None:
    settings = {"name": "many", "classes": ["nucleus"], "annotation": {"labels": "instance"}}
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config(settings))
    tifffile.imwrite(
        tmp_path / "raw.tif", np.arange(6 * 404 * 344, dtype=np.uint32).reshape(6, 404, 344).astype(np.uint8)
    )
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(tmp_path / "raw.tif"), volume_id="v", spacing=(0.4, 0.2, 0.1))
    )
    dots = np.zeros((3, 400, 340), np.uint8)
    dots[::2, ::2, ::2] = 1
    campaign.storage.write_array("weak_labels/t/many.npz", dots)
    crowded = NewTicket(
        ticket_id="many", volume_id="v", box=Box((0, 0, 0), dots.shape), prefill="weak_labels/t/many.npz", score=9.0
    )
    open_queue(campaign).tickets.add([crowded, NewTicket(ticket_id="few", volume_id="v", box=Box((0, 3, 4), SHAPE))])
    assert dots.sum() > 65535
    watcher = watch(campaign, tmp_path / "todo", "imagej")
    looks(watcher)
    assert watcher.tickets == ["few"]
    assert statuses(campaign) == {"few": "leased", "many": "queued"}
    assert any("holds at most" in line for line in said)


def test_the_end_gives_back_what_nobody_touched(filled: Campaign, watcher: Watcher) -> None:
    looks(watcher, 1)
    save(watcher.folder / "b_labels.nii.gz", mask())
    watcher.close()
    assert statuses(filled) == {"a": "queued", "b": "leased", "c": "queued", "d": "queued"}
    assert {p.name.split("_")[0].split(".")[0] for p in watcher.folder.iterdir()} == {"b"}


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "imagej", "ome-zarr", "cvat", "npz"])
def test_a_killed_watcher_goes_on(filled: Campaign, tmp_path: Path, kind: str) -> None:
    first = watch(filled, tmp_path / "todo", kind)
    looks(first, 1)
    patch = first._patches["a"]
    format_named(kind).write_labels(patch.files.labels, PatchLabels(mask()), patch.frame)
    second = watch(filled, tmp_path / "todo", kind)
    assert second.tickets == ["a", "b"]
    looks(second)
    assert statuses(filled) == {"a": "accepted", "b": "leased", "c": "leased", "d": "queued"}, said
    second.close()
    assert statuses(filled)["b"] == statuses(filled)["c"] == "queued"
    assert [p.name for p in (tmp_path / "todo").iterdir()] == ["done"]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


def test_the_command_runs_until_it_is_told_to_stop(filled: Campaign, tmp_path: Path) -> None:
    folder = tmp_path / "todo"
    arguments = ["queue", "watch", filled.url, str(folder), "-n", "2", "-a", "anna"]
    command = [sys.executable, "-c", "from rescueseg.cli.main import app; app()", *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(list(folder.glob("*.json"))) == 2 if folder.exists() else False)
        assert json.loads((folder / "a.json").read_text())["annotator"] == "anna"
        save(folder / "a_labels.nii.gz", mask())
        wait_for(lambda: statuses(filled)["a"] == "accepted")
        wait_for(lambda: statuses(filled)["c"] == "leased")
    finally:
        running.send_signal(signal.SIGINT)
        printed, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "a: version 1 accepted, 18 voxels corrected" in printed
    assert statuses(filled) == {"a": "accepted", "b": "queued", "c": "queued", "d": "queued"}
