"""A real napari under a virtual screen: painted with the mouse, killed, opened again, reviewed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import TRAINING, TrainingResult
from rescueseg.config import check_config
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.label_colours import class_colours
from rescueseg.delivery.places import PLACES, DoubtfulPlace, PlacesToProofread
from rescueseg.geometry import Box, Spacing
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from rescueseg.randomness import random_generator
from rescueseg.records import ModelReference
from tests.annotation_server import served
from tests.delivered_campaign import deliver, write_delivery
from tests.evaluated_campaign import SPACING
from tests.next_snapshot import next_labels

pytestmark = pytest.mark.needs_xvfb
RIG = Path(__file__).parents[1] / "napari_rig.py"
Play = Callable[..., dict[str, Any]]
MODEL = ModelReference(generation=0, trainer="monai_unet", path="m", digest="d" * 64)


@pytest.fixture
def play(virtual_screen: str, tmp_path: Path) -> Play:
    """Return a function that plays a scenario in a napari of its own, which is killed with -9 at the end."""

    def run(scenario: str, **arguments: Any) -> dict[str, Any]:
        given, result = tmp_path / "arguments.json", tmp_path / "result.json"
        given.write_text(json.dumps(arguments))
        result.unlink(missing_ok=True)
        environment = os.environ | {
            "DISPLAY": virtual_screen,
            "QT_QPA_PLATFORM": "xcb",
            "OMP_NUM_THREADS": "1",
            "LIBGL_ALWAYS_SOFTWARE": "1",
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "XDG_CONFIG_HOME": str(tmp_path / "settings"),
            "PYTHONPATH": str(RIG.parents[1]),
        }
        command = [sys.executable, str(RIG), scenario, str(given), str(result)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(result.read_text())
        return found

    return run


def fill(
    campaign: Campaign, volume_id: str, raw: np.ndarray, spacing: Spacing, box: Box, start: np.ndarray, folder: Path
) -> None:
    """Import a volume, and queue one patch of it with a first mask."""
    tifffile.imwrite(folder / f"{volume_id}.tif", raw)
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(folder / f"{volume_id}.tif"), volume_id=volume_id, spacing=spacing)
    )
    campaign.storage.write_array(f"weak_labels/t/{volume_id}.npz", start)
    ticket = NewTicket(
        ticket_id=volume_id, volume_id=volume_id, box=box, prefill=f"weak_labels/t/{volume_id}.npz", reason="a test"
    )
    open_queue(campaign).tickets.add([ticket])


def strokes_in(box: Box, seed: str, labels: list[int], count: int = 5) -> list[list[int]]:
    """Return voxels of a box, its far corners among them, each with a label to paint; in voxels of the volume."""
    rng = random_generator(1, "strokes", seed)
    last = [n - 1 for n in box.shape_zyx]
    inner = [[int(rng.integers(n)) for n in box.shape_zyx] for _ in range(count)]
    voxels = np.array([[0, 0, 0], last, *inner]) + box.offset_zyx
    return [[*voxel, labels[number % len(labels)]] for number, voxel in enumerate(voxels.tolist())]


def drawn_over(start: np.ndarray, box: Box, strokes: list[list[int]]) -> np.ndarray:
    expected = start.copy()
    for *voxel, label in strokes:
        expected[tuple(np.subtract(voxel, box.offset_zyx))] = label
    return expected


def rough(box: Box, seed: str) -> np.ndarray:
    return random_generator(2, "start", seed).integers(0, 3, box.shape_zyx).astype(np.uint8)


BOXES = {
    "a": Box((2, 10, 12), (5, 24, 20)),
    "b": Box((0, 0, 0), (6, 16, 16)),
    "c": Box((3, 16, 8), (4, 12, 28)),
}
SPACINGS: dict[str, Spacing] = {"a": (1.0, 0.25, 0.25), "b": (0.2, 0.2, 0.2), "c": (0.5, 0.4, 0.1)}


def test_a_day_of_annotation(play: Play, tmp_path: Path) -> None:
    """Three patches are painted; the window is killed over the third; a new one has the drawing; all are reviewed."""
    settings = {"name": "day", "classes": ["one", "two"], "annotation": {"review": True}}
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config(settings))
    raws = {name: random_generator(3, "raw", name).integers(0, 60000, (9, 40, 48)).astype(np.uint16) for name in BOXES}
    starts = {name: rough(box, name) for name, box in BOXES.items()}
    for name, box in BOXES.items():
        fill(campaign, name, raws[name], SPACINGS[name], box, starts[name], tmp_path)
    strokes = {name: strokes_in(box, name, [1, 2, 255]) for name, box in BOXES.items()}
    outside = {"a": [3, 8, 15], "b": [3, 18, 4], "c": [4, 14, 20]}
    store = open_queue(campaign)

    first = play("annotate", place=campaign.url, name="anna", strokes=strokes, outside=outside, leave="c")

    for name, drawn in strokes.items():
        assert first["seen"][name] == [stroke[:3] for stroke in drawn]
        assert first["values"][name] == [int(raws[name][tuple(stroke[:3])]) for stroke in drawn]
    assert store.views.counts() | {"submitted": 2, "leased": 1} == store.views.counts()

    stroke = [*np.add(BOXES["a"].offset_zyx, (1, 2, 3)).tolist(), 2]
    second = play("finish", place=campaign.url, name="anna", reject="b", fix="a", stroke=stroke)

    assert second["restored"]
    assert "was not handed in" in second["said"][0]
    assert second["waiting"] == ["a", "b", "c"]
    client = LocalClient(campaign, store, "anna")
    for name, box in BOXES.items():
        record, *_ = client.versions(name)
        assert (record.tool, record.annotator) == ("napari", "anna")
        assert client.version_labels(name, 1) == PatchLabels(drawn_over(starts[name], box, strokes[name]))
        assert 0 < record.seconds < 120
    assert {ticket.ticket_id: ticket.status for ticket in store.views.tickets()} == {
        "a": "accepted", "b": "queued", "c": "accepted",
    }  # fmt: skip
    fixed = drawn_over(starts["a"], BOXES["a"], [*strokes["a"], stroke])
    assert np.array_equal(next_labels(campaign, "a", "a", BOXES["a"]), fixed)
    assert np.array_equal(
        next_labels(campaign, "c", "c", BOXES["c"]), drawn_over(starts["c"], BOXES["c"], strokes["c"])
    )
    assert list((tmp_path / "state").rglob("*.npz")) == [], "no drawing is left behind"


def objects_over(start: np.ndarray, box: Box, strokes: list[list[int]]) -> PatchLabels:
    """Return what strokes make of a first mask whose objects are numbered; -1 begins a new object."""
    ids = PatchLabels.of_components(start).instances
    assert ids is not None
    ignore = np.zeros(box.shape_zyx, bool)
    for *voxel, label in strokes:
        at = tuple(np.subtract(voxel, box.offset_zyx))
        if label == 255:
            ignore[at] = True
        else:
            ids[at] = ids.max() + 1 if label == -1 else label
    return PatchLabels.of_instances(ids, ignore)


def instance_campaign(folder: Path) -> Campaign:
    settings = {"name": "objects", "classes": ["nucleus"], "annotation": {"labels": "instance"}}
    return Campaign.create(str(folder / "campaign"), check_config(settings))


def test_object_255_is_an_object_and_what_was_not_annotated_another_layer(play: Play, tmp_path: Path) -> None:
    box = Box((1, 4, 6), (4, 24, 34))
    start = np.zeros(box.shape_zyx, np.uint8)
    places = [(z, y, x) for z in (0, 2) for y in range(1, 23, 2) for x in range(1, 33, 2)][:254]
    start[tuple(np.transpose(places))] = 1
    raw = random_generator(4, "raw").integers(0, 250, (7, 40, 48)).astype(np.uint8)
    campaign = instance_campaign(tmp_path)
    fill(campaign, "v", raw, (0.6, 0.2, 0.2), box, start, tmp_path)
    strokes = [[2, 6, 8, -1], [3, 8, 8, 255], [1, 5, 7, 255], [4, 27, 39, 7], [1, 4, 6, -1]]

    found = play("annotate", place=campaign.url, name="anna", strokes={"v": strokes}, outside={"v": [2, 2, 8]})

    assert found["seen"]["v"] == [stroke[:3] for stroke in strokes]
    labels = LocalClient(campaign, open_queue(campaign), "anna").version_labels("v", 1)
    assert labels == objects_over(start, box, strokes)
    assert labels.instances is not None
    assert labels.instances[1, 2, 2] == 255
    assert labels.classes[1, 2, 2] == 1
    assert labels.ignore.sum() == 2


def test_a_blind_pair_is_compared_and_one_of_it_accepted(play: Play, tmp_path: Path) -> None:
    box = Box((2, 6, 8), (4, 16, 20))
    settings = {"name": "pair", "classes": ["one"], "annotation": {"review": True}}
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config(settings))
    tifffile.imwrite(tmp_path / "v.tif", random_generator(5, "raw").integers(0, 250, (8, 30, 40)).astype(np.uint8))
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(tmp_path / "v.tif"), volume_id="v", spacing=(0.6, 0.2, 0.2))
    )
    store = open_queue(campaign)
    store.tickets.add([NewTicket(ticket_id="t", volume_id="v", box=box, annotators=2)])
    drawn = {"anna": np.zeros(box.shape_zyx, np.uint8), "bob": np.zeros(box.shape_zyx, np.uint8)}
    drawn["anna"][1:3, 4:8, 4:8] = drawn["bob"][1:3, 4:8, 4:8] = 1
    drawn["bob"][2, 10:13, 13:16] = 1
    for name, labels in drawn.items():
        client = LocalClient(campaign, store, name)
        lease = client.next()
        assert lease is not None
        client.submit(lease.lease_id, PatchLabels(labels), "test", override=True)

    found = play("compare", place=campaign.url, name="rita", ticket_id="t")

    assert found["shown"] == [["A: anna, version 1"], ["B: bob, version 2"], ["A: anna, version 1"]]
    assert "9 voxels differ" in found["about"]
    assert found["spot"] == [4, 17, 22], "the middle of what bob drew alone, in voxels of the volume"
    assert found["history"] == ["History of t"]
    verdicts = {record.annotator: record.verdict for record in store.views.annotations("t")}
    assert verdicts["bob"] == "accepted"
    assert store.views.counts()["accepted"] == 1


REAL_OBJECTS = {
    "gonuclear_1135": Box((40, 30, 30), (24, 32, 40)),
    "bbbc050_mosaic_train": Box((10, 300, 100), (16, 40, 56)),
    "plantseg_ovule_cells": Box((8, 40, 40), (12, 40, 48)),
}


@pytest.mark.slow
def test_real_objects_come_back_as_painted(play: Play, real_data: Path, tmp_path: Path) -> None:
    campaign = instance_campaign(tmp_path)
    starts = {}
    for name, box in REAL_OBJECTS.items():
        starts[name] = import_real(campaign, real_data, name, box, tmp_path)[1]
    strokes = {name: strokes_in(box, name, [-1, 255, 1]) for name, box in REAL_OBJECTS.items()}
    outside = {name: np.subtract(box.offset_zyx, (0, 3, 3)).tolist() for name, box in REAL_OBJECTS.items()}

    found = play("annotate", place=campaign.url, name="anna", strokes=strokes, outside=outside)

    client = LocalClient(campaign, open_queue(campaign), "anna")
    for name, box in REAL_OBJECTS.items():
        assert found["seen"][name] == [stroke[:3] for stroke in strokes[name]]
        expected = objects_over(starts[name], box, strokes[name])
        assert client.version_labels(name, 1) == expected
        assert np.array_equal(next_labels(campaign, name, name, box), expected.classes)


def import_real(
    campaign: Campaign, real_data: Path, name: str, box: Box, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Import a real volume and queue a patch; return the image and the first mask."""
    meta = json.loads((real_data / name / "meta.json").read_text())
    raw = tifffile.imread(real_data / name / "raw.tif")
    start = (tifffile.imread(real_data / name / "labels.tif")[box.slices] > 0).astype(np.uint8)
    fill(campaign, name, raw, tuple(meta["voxel_size_um_zyx"]), box, start, folder)
    return raw, start


REAL = {
    "gonuclear_1135": Box((40, 30, 30), (24, 32, 40)),
    "vesselnn_poon2015_BBB_noLeakage": Box((6, 200, 180), (12, 64, 48)),
    "bbbc050_mosaic_train": Box((10, 300, 100), (16, 40, 56)),
}


def test_real_patches_come_back_as_painted(play: Play, real_data: Path, tmp_path: Path) -> None:
    """Through a server: three real volumes, z up to five times coarser."""
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config({"name": "real", "classes": ["object"]}))
    raws, starts = {}, {}
    for name, box in REAL.items():
        raws[name], starts[name] = import_real(campaign, real_data, name, box, tmp_path)
    strokes = {name: strokes_in(box, name, [1, 255], count=3) for name, box in REAL.items()}
    outside = {name: np.subtract(box.offset_zyx, (0, 3, 3)).tolist() for name, box in REAL.items()}

    with served(campaign) as url:
        found = play("annotate", place=url, name="anna", strokes=strokes, outside=outside)

    client = LocalClient(campaign, open_queue(campaign), "anna")
    for name, box in REAL.items():
        assert found["seen"][name] == [stroke[:3] for stroke in strokes[name]]
        assert found["values"][name] == [int(raws[name][tuple(stroke[:3])]) for stroke in strokes[name]]
        [record] = client.versions(name)
        assert record.verdict == "accepted"
        assert np.array_equal(next_labels(campaign, name, name, box), drawn_over(starts[name], box, strokes[name]))


def test_a_delivery_is_shown_with_its_doubtful_places(tmp_path: Path, play: Play) -> None:
    shape, spacing = (40, 64, 300), np.array(SPACING)
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config({"name": "c", "classes": ["cell"]}))
    campaign.generation(0).write(TRAINING, TrainingResult(model=MODEL, iterations=1))
    folder, objects, entropy = DeliveryFolder(str(tmp_path / "out")), np.zeros(shape, np.uint32), np.zeros(shape)
    for number, start in enumerate(((5, 10, 20), (20, 30, 150), (30, 40, 260)), start=1):
        where = tuple(slice(s, s + n) for s, n in zip(start, (5, 9, 15), strict=True))
        objects[where], entropy[where] = number, (0.2, 0.6, 0.4)[number - 1]
    image = np.stack([objects * 60, 255 - objects]).astype(np.uint8)
    write_delivery(campaign, folder)
    deliver(campaign, folder, "stack", (objects > 0).astype(np.uint8), objects, image, entropy)
    place = DoubtfulPlace(volume_id="stack", box=Box((8, 20, 101), (5, 21, 21)), entropy=0.3)
    elsewhere = DoubtfulPlace(volume_id="other", box=Box((0, 0, 0), (5, 21, 21)), entropy=0.9)
    folder.records.write(PLACES, PlacesToProofread(digest="", places=(elsewhere, place)))
    found = play("view", out=folder.url, volume="stack", shots=str(tmp_path))
    assert found["layers"] == ["image 1", "image 2", "mask", "objects", "places to proofread", "doubtful objects"]
    assert found["levels"]["objects"] == found["levels"]["image 1"] > 1
    assert found["scales"] == [list(SPACING)] * 3
    assert found["class_colour"] == pytest.approx([*(c / 255 for c in class_colours(1)[0]), 1], abs=1e-6)
    middles = np.array([[10, 30, 111], [22, 34, 157], [32, 44, 267]]) * spacing  # the place, then objects 2 and 3
    assert found["points"]["places to proofread"] == pytest.approx(middles[:1])
    assert np.array(found["points"]["doubtful objects"])[:2] == pytest.approx(middles[1:])
    assert np.array(found["stops"]) == pytest.approx(middles)
    assert found["values"] == [0, 2, 3]
