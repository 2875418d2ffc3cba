"""CVAT for images 1.1, against CVAT's own code, and what its exports must not hold."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rescueseg.annotation import cvat_server
from rescueseg.annotation.formats import format_named, read_labels
from rescueseg.annotation.formats.base import Frame
from rescueseg.annotation.formats.cvat import XML_NAME, annotations_xml, decode_runs, encode_runs
from rescueseg.errors import ConfigError, LabelError, ServiceError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from tests.patch_views import random_labels, view_of

FRAME = Frame("pool-0001-0123456789abcdef", Box((2, 3, 4), (2, 3, 5)), (0.4, 0.2, 0.1), ("cell", "vessel"))
CVAT = format_named("cvat")


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(lambda mask: mask.any()))
@settings(max_examples=50, deadline=None)
def test_run_lengths_are_those_of_cvat(mask: np.ndarray) -> None:
    masks = pytest.importorskip("cvat_sdk.masks")
    runs, left, top, width, height = encode_runs(mask)
    assert [*runs, left, top, left + width - 1, top + height - 1] == masks.encode_mask(mask)
    box = mask[top : top + height, left : left + width]
    assert np.array_equal(decode_runs(runs, width, height), box)


@pytest.mark.parametrize("runs", [[], [5], [3, -1, 4], [10**9, 1], [1, 2, 4]])
def test_run_lengths_that_do_not_fill_their_box_are_refused(runs: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fill"):
        decode_runs(runs, 2, 3)


def test_a_task_gets_planes_and_label_definitions(tmp_path: Path) -> None:
    files = CVAT.write(tmp_path, view_of(FRAME, random_labels(FRAME, 0)), FRAME)
    with zipfile.ZipFile(files.image) as archive:
        assert archive.namelist() == [f"{FRAME.ticket_id}/z000{z}.png" for z in range(2)]
        plane = imagecodecs.png_decode(archive.read(archive.namelist()[1]))
    assert plane.shape == (3, 5)
    assert plane.dtype == np.uint8
    (definitions,) = files.others
    assert re.findall(r'"name": "([^"]*)"', definitions.read_text()) == ["cell", "vessel", "not annotated"]


def written(tmp_path: Path, change: tuple[str, str], frame: Frame = FRAME) -> Path:
    classes = np.zeros(frame.box.shape_zyx, np.uint8)
    classes[:, 1, 2] = 1
    labels = PatchLabels(classes) if frame.kind == "semantic" else PatchLabels.of_instances(classes)
    text = annotations_xml(labels, frame).decode()
    assert change[0] in text
    path = tmp_path / "annotations.xml"
    path.write_text(text.replace(*change, 1))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('label="cell"', 'label="dog"'), "'dog'.* is no class"),
        (('rle="0, 1"', 'rle="0, 999999999999"'), "do not fill"),
        (('left="2"', 'left="5"'), "leaves the image"),
        (('width="1"', 'width="1000000000"'), "leaves the image"),
        (("<mask", "<polygon"), "cannot be read|polygon"),
        (("z0001.png", "z0000.png"), "comes twice"),
        (("z0001.png", "z0007.png"), "shape"),
        (("/z0001.png", "/plane1.png"), "is of no ticket"),
        (('width="5"', 'width="6"'), "shape"),
        (("<annotations>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>"), "document type"),
        (("</annotations>", ""), "cannot be read"),
    ],
)
def test_what_is_no_mask_of_the_patch_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        read_labels(written(tmp_path, change), FRAME)


def test_a_polygon_is_named(tmp_path: Path) -> None:
    shape = '<polygon label="cell" points="0,0;1,1;2,0" z_order="0" />'
    path = written(tmp_path, ("</image>", f"{shape}</image>"))
    with pytest.raises(LabelError, match="holds a polygon"):
        read_labels(path, FRAME)


def test_planes_that_were_not_exported_are_missed(tmp_path: Path) -> None:
    path = written(tmp_path, ("", ""))
    text = path.read_text()
    path.write_text(text[: text.index("<image", text.index("<image") + 1)] + "</annotations>")
    with pytest.raises(LabelError, match="1 of 2 planes are missing"):
        read_labels(path, FRAME)


def test_objects_need_numbers_and_keep_them_over_planes(tmp_path: Path) -> None:
    frame = replace(FRAME, kind="instance", classes=("cell",))
    labels = read_labels(written(tmp_path, ("", ""), frame), frame)
    assert labels.instances is not None
    assert labels.instances[:, 1, 2].tolist() == [1, 1]
    with pytest.raises(LabelError, match="no object number"):
        read_labels(written(tmp_path, ('<attribute name="object">1</attribute>', ""), frame), frame)


def test_the_upper_mask_wins(tmp_path: Path) -> None:
    above = '<mask label="vessel" rle="0, 2" left="2" top="1" width="2" height="1" z_order="1" />'
    path = written(tmp_path, ('<mask label="cell"', f'{above}<mask label="cell"'))
    assert read_labels(path, FRAME).classes[0, 1].tolist() == [0, 0, 2, 2, 0]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(XML_NAME, b" " * 50_000_000)
    path = tmp_path / "x.zip"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(LabelError, match="larger than a mask"):
        read_labels(path, FRAME)


def test_a_server_is_spoken_to_as_its_sdk_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No CVAT runs here: the calls are checked against the signatures of cvat-sdk, the replies are made up."""
    cvat_sdk = pytest.importorskip("cvat_sdk")
    from cvat_sdk.core.proxies import tasks

    client = create_autospec(cvat_sdk.Client, instance=True)
    client.__enter__.return_value = client
    client.tasks = create_autospec(tasks.TasksRepo, instance=True)
    task = create_autospec(tasks.Task, instance=True)
    client.tasks.create_from_data.return_value = client.tasks.retrieve.return_value = task
    task.id = 12
    made = create_autospec(cvat_sdk.make_client, return_value=client)
    monkeypatch.setattr(cvat_sdk, "make_client", made)
    files = CVAT.write(tmp_path, view_of(FRAME, random_labels(FRAME, 0)), FRAME)
    monkeypatch.delenv(cvat_server.TOKEN_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="CVAT_ACCESS_TOKEN is not set"):
        cvat_server.upload("https://cvat.example", files, FRAME)
    monkeypatch.setenv(cvat_server.TOKEN_VARIABLE, "secret")
    address = cvat_server.upload("https://cvat.example/", files, FRAME)
    assert address == "https://cvat.example/tasks/12"
    assert cvat_server.is_task(address)
    spec = cvat_sdk.models.TaskWriteRequest(**client.tasks.create_from_data.call_args.args[0])
    assert [label["name"] for label in spec["labels"]] == ["cell", "vessel", "not annotated"]
    task.export_dataset.side_effect = lambda name, target, **_: shutil.copy(files.labels, target)
    fetched = cvat_server.download(address, tmp_path / "fetched.zip")
    client.tasks.retrieve.assert_called_with(12)
    assert read_labels(fetched, FRAME) == random_labels(FRAME, 0)
    task.export_dataset.side_effect = OSError("no route")
    with pytest.raises(ServiceError, match="CVAT: no route"):
        cvat_server.download(address, tmp_path / "fetched.zip")


def test_files_are_no_tasks() -> None:
    assert not any(
        map(cvat_server.is_task, ["todo/a_labels.zip", "https://cvat.example", "http://x/tasks", "tasks/12"])
    )
