"""What every file format of patches promises: what comes back is what was drawn, in its place, or one clear refusal."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.annotation.formats import FORMATS, format_of, metadata_of, read_labels
from rescueseg.annotation.formats.base import Frame, PatchFormat, relabel, write_labels_and_ignore
from rescueseg.errors import LabelError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.randomness import random_generator
from tests.patch_views import random_labels, view_of

ONE = Frame("pool-0001-0123456789abcdef", Box((2, 30, 400), (3, 4, 5)), (0.4, 0.2, 0.1), ("organelle",))
OBJECTS = replace(ONE, kind="instance")


@pytest.fixture(scope="module", params=FORMATS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> PatchFormat:
    found: PatchFormat = request.param
    return found


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def fresh(scratch: Path) -> Path:
    folder = scratch / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@st.composite
def frames(draw: Any) -> Frame:
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    offset = draw(st.tuples(*[st.integers(0, 20_000)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.001, 20.0, allow_nan=False)] * 3))
    meaning = draw(st.sampled_from(["semantic", "instance"]))
    classes = draw(st.sampled_from([1, 2, 7, 254])) if meaning == "semantic" else 1
    return Frame(
        ONE.ticket_id, Box(offset, shape), spacing, tuple(f"class {n}" for n in range(1, classes + 1)), meaning
    )


@given(frames(), st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_what_was_drawn_comes_back(kind: PatchFormat, scratch: Path, frame: Frame, seed: int) -> None:
    folder = fresh(scratch)
    handed = random_labels(frame, seed + 1)
    margin = frame.box.expand((1, 2, 3)).clip([n + 1 for n in frame.box.stop_zyx])
    files = kind.write(folder, view_of(frame, relabel(handed), margin), frame)
    assert read_labels(files.labels, frame) == relabel(handed)
    assert all(path.exists() for path in files.everything if path != files.ticket)
    drawn = random_labels(frame, seed, kind.largest)
    write_labels_and_ignore(kind, files.labels, drawn, frame)
    assert read_labels(files.labels, frame) == drawn
    again = kind.write(folder, view_of(frame, relabel(handed), margin), frame)
    assert again.is_resumed
    assert read_labels(again.labels, frame) == drawn, "work that is there is kept"


def test_files_say_whose_they_are(kind: PatchFormat, tmp_path: Path) -> None:
    files = kind.write(tmp_path, view_of(ONE, random_labels(ONE, 0)), ONE)
    assert format_of(files.labels) is kind
    metadata = kind.metadata(files.labels)
    assert metadata.ticket_id == ONE.ticket_id
    assert metadata_of(files.labels) == metadata
    if metadata.offset_zyx is not None:
        assert np.allclose(metadata.offset_zyx, ONE.box.offset_zyx, atol=1e-3)
    if metadata.spacing_um_zyx is not None:
        assert np.allclose(metadata.spacing_um_zyx, ONE.spacing_um_zyx, rtol=1e-5)


@pytest.mark.parametrize("frame", [ONE, OBJECTS], ids=["semantic", "instance"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ticket_id": "pool-0001-fedcba9876543210"}, "is of ticket pool-0001-0123456789abcdef"),
        ({"box": Box((2, 30, 400), (3, 5, 4))}, "shape"),
        ({"box": Box((2, 30, 400), (3, 4, 6))}, "shape"),
    ],
)
def test_files_of_another_patch_are_refused(
    kind: PatchFormat, tmp_path: Path, frame: Frame, change: dict[str, Any], message: str
) -> None:
    files = kind.write(tmp_path, view_of(frame, random_labels(frame, 0, 99)), frame)
    with pytest.raises(LabelError, match=message):
        read_labels(files.labels, replace(frame, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": Box((2, 31, 400), (3, 4, 5))}, "lies at voxel 2, 30, 400"),
        ({"box": Box((2, 30, 399), (3, 4, 5))}, "lies at voxel"),
        ({"spacing_um_zyx": (0.4, 0.1, 0.2)}, "has voxels of 0.4, 0.2, 0.1 µm"),
        ({"spacing_um_zyx": (0.4, 0.2, 0.11)}, "has voxels of"),
    ],
)
def test_another_place_or_spacing_is_refused(
    kind: PatchFormat, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    files = kind.write(tmp_path, view_of(ONE, random_labels(ONE, 0)), ONE)
    if kind.metadata(files.labels).offset_zyx is None:
        pytest.skip("the format has no place for it; its ticket is checked")
    with pytest.raises(LabelError, match=message):
        read_labels(files.labels, replace(ONE, **change))


def test_numbers_that_are_no_class_are_refused(kind: PatchFormat, tmp_path: Path) -> None:
    wide = replace(ONE, classes=tuple("abc"))
    files = kind.write(tmp_path, view_of(wide, PatchLabels(np.full(ONE.box.shape_zyx, 3, np.uint8))), wide)
    with pytest.raises(LabelError):
        read_labels(files.labels, ONE)


def test_more_objects_than_fit_are_refused_before_anything_is_written(kind: PatchFormat, tmp_path: Path) -> None:
    if kind.largest >= 2**32 - 1:
        assert read_back(kind, tmp_path, 2**32 - 1).instances is not None
        return
    with pytest.raises(LabelError, match=f"holds at most {kind.largest} objects"):
        read_back(kind, tmp_path, kind.largest + 1)
    assert not list(tmp_path.iterdir())


def read_back(kind: PatchFormat, folder: Path, number: int) -> PatchLabels:
    extension = kind.extensions[0]
    labels = PatchLabels.of_instances(np.full(OBJECTS.box.shape_zyx, number))
    kind.write_labels(folder / f"x_labels{extension}", labels, OBJECTS)
    return read_labels(folder / f"x_labels{extension}", OBJECTS)


@pytest.mark.parametrize("frame", [ONE, OBJECTS], ids=["semantic", "instance"])
def test_files_cut_short_are_refused(kind: PatchFormat, tmp_path: Path, frame: Frame) -> None:
    """Whatever the length at which a tool was interrupted: never a smaller or emptier mask."""
    large = replace(frame, box=Box((2, 30, 400), (4, 24, 32)))
    drawn = relabel(random_labels(large, 3, 99))
    files = kind.write(tmp_path, view_of(large, drawn), large)
    for path in contents(files.labels):
        whole = path.read_bytes()
        for length in sorted(
            {0, 1, 100, 351, len(whole) // 2, len(whole) - 9, len(whole) - 1} & set(range(len(whole)))
        ):
            path.write_bytes(whole[:length])
            got = outcome(files.labels, large)
            if isinstance(got, LabelError):
                assert str(files.labels) in str(got) or str(path) in str(got)
            else:
                assert got == drawn, "only what holds no voxels may be missing"
        path.write_bytes(whole)
    assert read_labels(files.labels, large) == drawn


def outcome(path: Path, frame: Frame) -> PatchLabels | LabelError:
    try:
        return read_labels(path, frame)
    except LabelError as error:
        return error


def contents(labels: Path) -> list[Path]:
    return [labels] if labels.is_file() else [p for p in labels.rglob("*") if p.is_file() and "labels" in str(p)]


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_damaged_bytes_are_one_clear_refusal_or_labels(kind: PatchFormat, scratch: Path, seed: int) -> None:
    folder, rng = fresh(scratch), random_generator(seed, "damage")
    files = kind.write(folder, view_of(ONE, random_labels(ONE, 0)), ONE)
    path = rng.choice(np.array(contents(files.labels), dtype=object))
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 8))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    path.write_bytes(bytes(data))
    got = outcome(files.labels, ONE)
    if isinstance(got, LabelError):
        assert str(got).count("\n") == 0
    else:
        assert got.classes.shape == ONE.box.shape_zyx
