"""`rescueseg queue …`, and the files it writes and reads."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rescueseg import volumes
from rescueseg.annotation.formats import read_labels
from rescueseg.annotation.formats.base import Frame
from rescueseg.annotation.formats.nifti import write_nifti
from rescueseg.annotation.formats.space import affine_mm
from rescueseg.campaign import Campaign
from rescueseg.cli.queue import queue_app
from rescueseg.errors import LabelError
from rescueseg.geometry import Box
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from rescueseg.queue.submission import StoredLabels, Work
from rescueseg.records import LabelReference
from tests.choices import refused_choice

BOX = Box((2, 3, 4), (3, 4, 5))
SPACING = (0.4, 0.2, 0.1)


@pytest.fixture
def filled(campaign: Campaign, tmp_path: Path) -> Campaign:
    image = np.arange(8 * 9 * 10, dtype=np.uint16).reshape(8, 9, 10)
    tifffile.imwrite(tmp_path / "raw.tif", image)
    volumes.import_volume(campaign, volumes.VolumeImport(str(tmp_path / "raw.tif"), volume_id="v", spacing=SPACING))
    prefill = np.zeros(BOX.shape_zyx, np.uint8)
    prefill[0, 1, 2] = 1
    campaign.storage.write_array("generations/0000/prefills/a.npz", prefill)
    open_queue(campaign).tickets.add(
        [
            NewTicket(
                ticket_id="a", volume_id="v", box=BOX, prefill="generations/0000/prefills/a.npz", reason="look [here]"
            )
        ]
    )
    return campaign


def queue(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(queue_app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def lease_of(output: str) -> str:
    found = re.search(r"^lease +(\w+)", output, re.MULTILINE)
    assert found
    return found[1]


def test_a_patch_goes_out_and_comes_back(filled: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out folder"
    said = queue("next", filled.url, "-a", "anna", "--out", out)
    assert "look [here]" in said
    image, mask = nib.load(out / "a_image.nii.gz"), nib.load(out / "a_labels.nii.gz")
    assert image.shape == mask.shape == BOX.shape_zyx[::-1]
    assert image.get_data_dtype() == np.uint16
    assert image.header.get_xyzt_units()[0] == "mm"
    z, y, x = 2, 3, 4
    assert np.asarray(image.dataobj)[0, 0, 0] == (z * 9 + y) * 10 + x
    assert np.asarray(mask.dataobj)[2, 1, 0] == 1
    assert np.allclose(image.affine @ [0, 0, 0, 1], [0.0001 * x, 0.0002 * y, 0.0004 * z, 1])
    assert np.allclose(np.diag(image.affine), [0.0001, 0.0002, 0.0004, 1])
    assert json.loads((out / "a.json").read_text())["labels"]["1"] == "organelle"

    drawn = np.asarray(mask.dataobj).copy()
    drawn[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(drawn, mask.affine), out / "a_labels.nii.gz")
    again = queue("next", filled.url, "-a", "anna", "--out", out)
    assert "was there, kept" in again
    assert lease_of(again) == lease_of(said), "one goes on with the patch one holds"
    for _ in range(2):
        done = queue("submit", filled.url, lease_of(said), out / "a_labels.nii.gz", "-a", "anna", "--tool", "itk-snap")
        assert "version 1 accepted, 1 voxels corrected" in done
    (stored,) = open_queue(filled).views.accepted()
    labels = filled.storage.read_array(stored.labels)
    assert labels[0, 0, 0] == labels[0, 1, 2] == 1
    assert labels.sum() == 2
    assert "leased → submitted" in queue("history", filled.url, "a")
    assert "1 of 4 accepted patches" in queue("status", filled.url)
    assert "Nothing to annotate" in queue("next", filled.url, "-a", "anna")


def test_a_lone_mask_is_drawn_for_its_reviewer(filled: Campaign, tmp_path: Path) -> None:
    assert "nothing was handed in" in queue("review", filled.url, "a", "-o", tmp_path / "v.png", code=1)
    out = tmp_path / "out"
    queue("next", filled.url, "-a", "anna", "--out", out)
    mask = nib.load(out / "a_labels.nii.gz")
    nib.save(nib.Nifti1Image(1 - np.asarray(mask.dataobj), mask.affine), out / "a_labels.nii.gz")
    queue("submit", filled.url, out / "a_labels.nii.gz", "-a", "anna", "--override")
    assert "what changed from the first mask" in queue("review", filled.url, "a", "-o", tmp_path / "v.png")
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")


def test_skip_release_and_review(filled: Campaign) -> None:
    lease = lease_of(queue("next", filled.url, "-a", "anna"))
    assert "anna" in queue("status", filled.url)
    assert "back in the queue" in queue("release", filled.url, lease, "-a", "anna")
    lease = lease_of(queue("next", filled.url, "-a", "anna", "--purpose", "pool"))
    assert "skipped" in queue("skip", filled.url, lease, "-a", "anna", "--reason", "out of focus")
    assert "Nothing" in queue("next", filled.url, "-a", "bob")
    lease = lease_of(queue("next", filled.url, "-a", "bob", "--ticket", "a"))
    store = open_queue(filled)
    labels, work = StoredLabels(LabelReference(path="p", digest="d"), 1), Work("x", 1)
    store.leases.submit(lease, "bob", labels, work)
    assert "back in the queue" in queue("reject", filled.url, "a", "--comment", "misses one", "-a", "lead")
    lease = lease_of(said := queue("next", filled.url, "-a", "bob"))
    assert "misses one" in said
    store.leases.submit(lease, "bob", labels, work)
    assert "version 2 accepted" in queue("accept", filled.url, "a", "-a", "lead")


def test_mistakes_are_one_line_each(filled: Campaign, tmp_path: Path) -> None:
    lease = lease_of(queue("next", filled.url, "-a", "anna"))
    np.savez(tmp_path / "flat.npz", np.zeros((1, 2, 3), np.uint8))
    np.savez(tmp_path / "class.npz", np.full(BOX.shape_zyx, 7, np.uint8))
    np.savez(tmp_path / "good.npz", np.zeros(BOX.shape_zyx, np.uint8))
    for arguments, expected in [
        (["submit", filled.url, lease, tmp_path / "flat.npz", "-a", "anna"], "has shape (1, 2, 3)"),
        (["submit", filled.url, lease, tmp_path / "class.npz", "-a", "anna"], "hold 7"),
        (["submit", filled.url, lease, tmp_path / "none.npz", "-a", "anna"], "no such file"),
        (["submit", filled.url, lease, tmp_path / "good.npz", "-a", "bob"], "belongs to 'anna'"),
        (["submit", filled.url, "nope", tmp_path / "good.npz", "-a", "anna"], "no such lease"),
        (["history", filled.url, "nope"], "no such ticket"),
        (["accept", filled.url, "a"], "only a submitted one"),
        (["status", tmp_path], "no campaign here"),
    ]:
        said = queue(*arguments, code=1)
        assert said.startswith("Error: ")
        assert expected in said
        assert said.count("\n") == 1
    for arguments, options in [
        (["next", filled.url, "-a", "bob", "--purpose", "tests"], "'tests' is not one of 'pool', 'validation', 'test'"),
        (["export", filled.url, "-a", "bob", "--format", "dicom"], "'dicom' is not one of 'nifti', 'nrrd', 'imagej'"),
        (["watch", filled.url, tmp_path, "-a", "bob", "--format", ""], "'' is not one of 'nifti', 'nrrd', 'imagej'"),
    ]:
        said = refused_choice(CliRunner().invoke(queue_app, [str(a) for a in arguments]))
        assert f"Invalid value for '{arguments[-2]}'" in said
        assert options in said
    assert [held.lease_id for held in open_queue(filled).views.leases()] == [lease]
    open_queue(filled).leases.expire(open_queue(filled).views.lease(lease).expires_at)
    assert "lease ended" in queue("submit", filled.url, lease, tmp_path / "good.npz", "-a", "anna", code=1)
    assert open_queue(filled).views.annotations("a") == []


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "next",
        "submit",
        "skip",
        "release",
        "review",
        "accept",
        "reject",
        "fix",
        "agreement",
        "effort",
        "history",
    ],
)
def test_help_has_an_example(command: str) -> None:
    assert f"rescueseg queue {command}" in queue(command, "--help")


def framed(box: Box = BOX) -> Frame:
    return Frame("a", box, SPACING, tuple(f"class {n}" for n in range(1, 255)))


# files ---------------------------------------------------------------------------------------------------------------


@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.booleans()] * 3),
)
@settings(max_examples=25, deadline=None)
def test_a_nifti_comes_back_whatever_orientation_a_tool_saved_it_in(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], order: list[int], flips: tuple[bool, ...]
) -> None:
    path = tmp_path_factory.mktemp("nifti") / "mask.nii.gz"
    labels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    box = Box((1, 2, 3), shape)
    write_nifti(path, labels, affine_mm(SPACING, box.offset_zyx))
    nifti = nib.load(path)
    directions = np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)])
    turned = nifti.as_reoriented(directions)
    nib.save(turned, path)
    assert np.array_equal(read_labels(path, framed(box)).classes, labels)


def test_a_nifti_without_a_position_is_taken_as_it_is(tmp_path: Path) -> None:
    labels = np.arange(60, dtype=np.uint8).reshape(BOX.shape_zyx)
    nifti = nib.Nifti1Image(labels.T, None)
    nib.save(nifti, tmp_path / "m.nii")
    assert np.array_equal(read_labels(tmp_path / "m.nii", framed()).classes, labels)


def test_channels_are_the_fourth_axis(tmp_path: Path) -> None:
    image = np.arange(2 * 60, dtype=np.float16).reshape(2, *BOX.shape_zyx)
    write_nifti(tmp_path / "i.nii.gz", image, affine_mm(SPACING))
    read = np.asarray(nib.load(tmp_path / "i.nii.gz").dataobj)
    assert read.shape == (5, 4, 3, 2)
    assert read[4, 3, 2, 1] == image[1, 2, 3, 4]


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 1)])
def test_tiff_and_npz_come_back(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    labels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    tifffile.imwrite(tmp_path / "m.tif", labels, compression="zlib")
    tifffile.imwrite(tmp_path / "squeezed.tif", labels.squeeze())
    np.savez_compressed(tmp_path / "m.npz", array=labels, other=1)
    np.savez_compressed(tmp_path / "single.npz", labels)
    for name in ("m.tif", "squeezed.tif", "m.npz", "single.npz"):
        assert np.array_equal(read_labels(tmp_path / name, framed(Box((0, 0, 0), shape))).classes, labels), name


def _damaged(tmp_path: Path) -> dict[str, Any]:
    gzipped = gzip.compress(b"x" * 500)
    return {
        "text.tif": b"not a tiff", "cut.nii.gz": gzipped[:-9], "text.nii.gz": b"plain", "other.nii.gz": gzipped,
        "text.npz": b"PK no", "empty.nii": b"", "empty.tif": b"", "mask.png": b"x",
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_damaged(Path())))
def test_damaged_files_are_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(_damaged(tmp_path)[name])
    with pytest.raises(LabelError, match=name):
        read_labels(tmp_path / name, framed())


def test_an_npz_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", np.array([{"a": 1}], dtype=object))
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "m.npz", framed())


def test_skipping_the_last_patch_wakes_the_campaign(filled: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    monkeypatch.setattr("rescueseg.services.prefect_api.wake", lambda campaign, store: woken.append(campaign.url))
    queue("skip", filled.url, lease_of(queue("next", filled.url, "-a", "anna")), "--reason", "dark", "-a", "anna")
    assert woken == [filled.url]


def test_an_untouched_mask_is_handed_in_only_on_purpose(filled: Campaign, tmp_path: Path) -> None:
    said = queue("next", filled.url, "-a", "anna", "--out", tmp_path)
    lease = lease_of(said)
    mask = next(tmp_path.glob("*_labels.nii.gz"))
    assert "as it was handed out" in queue("submit", filled.url, lease, mask, "-a", "anna", code=1)
    assert "version 1" in queue("submit", filled.url, lease, mask, "-a", "anna", "--unchanged")
