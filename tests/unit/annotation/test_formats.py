"""What single formats promise beyond the contract: space, segments, workspaces, hostile headers."""

from __future__ import annotations

import gzip
import shutil
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import nrrd
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.annotation.formats import FORMATS, format_named, read_labels
from rescueseg.annotation.formats.base import MOST_OBJECTS_8_BIT, Frame, number_array, write_file
from rescueseg.cli.queue_files import FORMAT_EXTENSIONS, FormatName
from rescueseg.errors import ConfigError, LabelError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.volumes import ome_zarr
from tests.patch_views import random_labels, view_of

FRAME = Frame("pool-0001-0123456789abcdef", Box((2, 30, 400), (3, 4, 5)), (0.4, 0.2, 0.1), ("cell", "vessel"))
SPACINGS = [(0.4, 0.2, 0.1), (0.01, 0.01, 0.01), (5.0, 0.994, 0.994)]


def written(kind: str, folder: Path, frame: Frame = FRAME, margin: int = 2) -> Any:
    labels = random_labels(frame, 0, 99)
    context = frame.box.expand((margin,) * 3).clip([n + 9 for n in frame.box.stop_zyx])
    return format_named(kind).write(folder, view_of(frame, labels, context), frame)


def one(files: Any, ending: str) -> Path:
    (found,) = [path for path in files.others if path.name.endswith(ending)]
    return Path(found)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_itk_sees_every_file_at_the_same_right_handed_place(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    """ITK-SNAP and 3D Slicer stand on ITK. Its physical points are LPS: x and y of RAS change sign."""
    sitk = pytest.importorskip("SimpleITK")
    frame = replace(FRAME, spacing_um_zyx=spacing)
    directions = []
    for kind, extension in (("nifti", "nii.gz"), ("nrrd", "nrrd")):
        files = written(kind, tmp_path, frame)
        covered = [
            (files.image, frame.box),
            (files.labels, frame.box),
            (one(files, f"uncertainty.{extension}"), frame.box),
        ]
        covered.append((one(files, f"context.{extension}"), frame.box.expand((2, 2, 2))))
        for path, box in covered:
            image = sitk.ReadImage(str(path))
            directions.append(np.reshape(image.GetDirection(), (3, 3)))
            assert np.linalg.det(directions[-1]) == pytest.approx(1)
            for z, y, x in [(0, 0, 0), (1, 2, 3)]:
                at = [(o + i) * s / 1000 for o, i, s in zip(box.offset_zyx, (z, y, x), spacing, strict=True)]
                point = np.array(image.TransformIndexToPhysicalPoint((x, y, z))) * [-1, -1, 1]
                assert point[::-1] == pytest.approx(at, abs=min(spacing) / 1000 * 0.01)
        shown = sitk.GetArrayFromImage(sitk.ReadImage(str(files.labels)))
        assert np.array_equal(shown, random_labels(frame, 0).classes)
    assert np.allclose(directions, directions[0], atol=1e-5)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".seg.nrrd"])
def test_what_itk_saves_comes_back(tmp_path: Path, ending: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    files = written("nifti", tmp_path)
    image = sitk.ReadImage(str(files.labels))
    for flipped in (False, True):
        saved = tmp_path / f"other{ending}"
        sitk.WriteImage(sitk.Flip(image, [True, False, True]) if flipped else image, str(saved))
        assert read_labels(saved, FRAME) == random_labels(FRAME, 0)
        with pytest.raises(LabelError, match="lies at voxel"):
            read_labels(saved, replace(FRAME, box=Box((2, 30, 401), (3, 4, 5))))


def test_the_workspace_loads_image_labels_and_names(tmp_path: Path) -> None:
    files = written("nifti", tmp_path)
    layers = {}
    for layer in ET.parse(one(files, ".itksnap")).getroot().iterfind("folder[@key='Layers']/folder"):
        entries = {entry.get("key"): entry.get("value") for entry in layer.iterfind("entry")}
        layers[entries["Role"]] = Path(str(entries["AbsolutePath"]))
    assert layers == {
        "MainRole": files.image, "SegmentationRole": files.labels, "OverlayRole": one(files, "uncertainty.nii.gz"),
    }  # fmt: skip
    assert all(path.exists() for path in layers.values())
    rows = [line.split(maxsplit=7) for line in one(files, "_itksnap.txt").read_text().splitlines() if line[0] != "#"]
    assert [(row[0], row[7]) for row in rows] == [
        ("0", '"Clear Label"'), ("1", '"cell"'), ("2", '"vessel"'), ("255", '"not annotated"'),
    ]  # fmt: skip
    assert len({tuple(row[1:4]) for row in rows}) == 4, "each its colour"


def segmentation(path: Path, layers: Any, segments: list[tuple[str, int, int]]) -> Path:
    """Write what 3D Slicer writes; `segments` are name, label value, layer."""
    labels = layers.transpose(0, 3, 2, 1) if layers.ndim == 4 else layers.T
    spacing = np.array(FRAME.spacing_um_zyx[::-1]) / 1000
    directions: Any = np.diag(spacing * [-1, -1, 1])
    header: dict[str, Any] = {
        "space": "left-posterior-superior", "space origin": spacing * [400, 30, 2] * [-1, -1, 1],
        "kinds": ["domain"] * 3, "space directions": directions,
    }  # fmt: skip
    if layers.ndim == 4:
        header |= {"kinds": ["list"] + ["domain"] * 3, "space directions": np.vstack([[np.nan] * 3, directions])}
    for i, (name, value, layer) in enumerate(segments):
        header |= {f"Segment{i}_Name": name, f"Segment{i}_LabelValue": str(value), f"Segment{i}_Layer": str(layer)}
    nrrd.write(str(path), np.asfortranarray(labels), header)
    return path


def test_segments_of_slicer_are_told_by_their_names(tmp_path: Path) -> None:
    classes = random_labels(FRAME, 0).classes
    values = np.select([classes == 1, classes == 2, classes == 255], [5, 1, 9]).astype(np.uint8)
    names = [("cell", 5, 0), ("vessel", 1, 0), ("not annotated", 9, 0)]
    path = segmentation(tmp_path / "s.seg.nrrd", values, names)
    assert np.array_equal(read_labels(path, FRAME).classes, classes)
    layers = np.stack([np.where(classes == 1, 1, 0), np.where(classes == 2, 1, 0)]).astype(np.uint8)
    path = segmentation(tmp_path / "s.seg.nrrd", layers, [("cell", 1, 0), ("vessel", 1, 1)])
    assert np.array_equal(read_labels(path, FRAME).classes, np.where(classes == 255, 0, classes))
    layers[1] = 1
    path = segmentation(tmp_path / "s.seg.nrrd", layers, [("cell", 1, 0), ("vessel", 1, 1)])
    with pytest.raises(LabelError, match="segments overlap in"):
        read_labels(path, FRAME)
    path = segmentation(tmp_path / "s.seg.nrrd", values, [("cell", 5, 0), ("cell", 1, 0)])
    with pytest.raises(LabelError, match="both mean label 1"):
        read_labels(path, FRAME)


def test_a_segment_of_another_name_is_no_class_whatever_its_number(tmp_path: Path) -> None:
    classes = random_labels(FRAME, 0).classes
    path = segmentation(tmp_path / "s.seg.nrrd", classes, [("cell", 1, 0), ("Segment_2", 2, 0)])
    with pytest.raises(LabelError, match=r"'Segment_2' is no class.*Name segments cell, vessel, not annotated"):
        read_labels(path, FRAME)
    path = segmentation(tmp_path / "s.seg.nrrd", classes, [("", 1, 0), ("", 2, 0), ("", 255, 0)])
    assert np.array_equal(read_labels(path, FRAME).classes, classes), "without names, numbers count"


@given(st.integers(0, 347), st.binary(min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_nifti_header_is_labels_or_one_refusal(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "header"
    folder.mkdir(exist_ok=True)
    path = written("nifti", folder).labels
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[at : at + len(junk)] = junk
    path.write_bytes(gzip.compress(bytes(data), 1))
    try:
        labels = read_labels(path, FRAME)
    except LabelError as error:
        labels = None
        message = str(error)
    assert labels is not None or "\n" not in message
    path.unlink()


def nifti_with(path: Path, change: Any) -> Path:
    data = bytearray(gzip.decompress(path.read_bytes()))
    change(data)
    path.write_bytes(gzip.compress(bytes(data), 1))
    return path


HOSTILE = {
    "huge": lambda data: data.__setitem__(slice(42, 48), struct.pack("<3h", 32767, 32767, 32767)),
    "negative": lambda data: data.__setitem__(slice(42, 44), struct.pack("<h", -5)),
    "far": lambda data: data.__setitem__(slice(108, 112), struct.pack("<f", 2e9)),
    "bomb": lambda data: data.extend(bytes(50_000_000)),
    "extension": lambda data: data.__setitem__(slice(348, 360), struct.pack("<4B2i", 1, 0, 0, 0, 2**31 - 16, 6)),
    "fraction": lambda data: data.__setitem__(slice(112, 116), struct.pack("<f", 0.5)),
    "oblique": lambda data: data.__setitem__(slice(284, 288), struct.pack("<f", 5e-5)),
    "nan": lambda data: data.__setitem__(slice(280, 284), struct.pack("<f", float("nan"))),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_hostile_nifti_headers_are_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(LabelError):
        read_labels(nifti_with(written("nifti", tmp_path).labels, HOSTILE[what]), FRAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"sizes: 5 4 3", b"sizes: 500000 400000 300000"), "shape"),
        ((b"sizes: 5 4 3", b"sizes: 9999999999 9999999999 3"), "larger than"),
        ((b"encoding: gzip", b"encoding: gzip\ndata file: /etc/passwd"), "data file"),
        ((b"encoding: gzip", b"encoding: gzip\nbyte skip: 7"), "byte skip"),
        ((b"encoding: gzip", b"encoding: hex"), "encoding 'hex' is not read"),
        ((b"type: uint8", b"type: block"), "cannot be read"),
        ((b"\n\n", b"\nx: " + b"y" * 2_000_000 + b"\n\n"), "cannot be read"),
    ],
)
def test_hostile_nrrd_headers_are_refused(tmp_path: Path, change: tuple[bytes, bytes], message: str) -> None:
    path = written("nrrd", tmp_path).labels
    data = path.read_bytes()
    assert change[0] in data
    path.write_bytes(data.replace(*change, 1))
    with pytest.raises(LabelError, match=message):
        read_labels(path, FRAME)


def test_floats_are_read_where_they_are_whole(tmp_path: Path) -> None:
    objects = replace(FRAME, kind="instance", classes=("cell",))
    numbers = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    tifffile.imwrite(tmp_path / "m.tif", numbers, imagej=True)
    labels = read_labels(tmp_path / "m.tif", objects)
    assert np.array_equal(labels.instances, numbers)
    for wrong in (0.5, -1.0, np.nan, np.inf, 2.0**33):
        numbers[0, 0, 1] = wrong
        tifffile.imwrite(tmp_path / "m.tif", numbers, imagej=True)
        with pytest.raises(LabelError, match="which is no object number"):
            read_labels(tmp_path / "m.tif", objects)


def test_imagej_shows_the_volumes_coordinates(tmp_path: Path) -> None:
    files = written("imagej", tmp_path)
    with tifffile.TiffFile(files.image) as tif:
        meta = tif.imagej_metadata
        assert tif.series[0].axes == "ZYX"
        assert (meta["spacing"], meta["unit"], meta["xorigin"], meta["zorigin"]) == (0.4, "um", -400.0, -2.0)


def test_lossy_tiffs_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", np.zeros((3, 4, 5), np.uint8), compression="jpeg")
    with pytest.raises(LabelError, match="lossy"):
        read_labels(tmp_path / "m.tif", FRAME)


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_an_ome_zarr_obeys_ngff(tmp_path: Path, kind: Any) -> None:
    frame = replace(FRAME, kind=kind, classes=("cell",))
    files = written("ome-zarr", tmp_path, frame)
    ome_zarr.validate(str(files.labels))
    ome_zarr.validate(str(one(files, "uncertainty.ome.zarr")))
    alone = shutil.copytree(files.labels / "labels" / "annotation", tmp_path / "mine.zarr")
    named, inside = read_labels(alone, frame), read_labels(files.labels, frame)
    assert np.array_equal(named.classes, inside.classes if kind == "semantic" else inside.classes % 255)


def test_clients_of_8_bits_take_254_objects() -> None:
    ids = np.arange(256, dtype=np.uint32).reshape(4, 8, 8)
    assert number_array(PatchLabels.of_instances(np.minimum(ids, 254)), MOST_OBJECTS_8_BIT, "NiiVue").dtype == np.uint8
    with pytest.raises(LabelError, match="object number 255 does not fit: NiiVue holds at most 254 objects"):
        number_array(PatchLabels.of_instances(ids), MOST_OBJECTS_8_BIT, "NiiVue")


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.nii.gz", ".nii.gz"), ("a.SEG.nrrd", ".SEG.nrrd"), ("2026.scan.tif", ".tif"), (f"a.{'b' * 200}.tif", ".tif")],
)
def test_a_file_is_written_under_a_name_of_its_extension(tmp_path: Path, name: str, ending: str) -> None:
    parts: list[str] = []

    def write(part: Path) -> None:
        parts.append(part.name)
        part.write_bytes(b"labels")

    write_file(tmp_path / name, write)
    assert (tmp_path / name).read_bytes() == b"labels"
    assert parts[0].endswith(f".part{ending}")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_formats_are_known_by_name() -> None:
    assert [kind.name for kind in FORMATS] == ["nifti", "nrrd", "imagej", "ome-zarr", "cvat", "npz"]
    assert {kind.name: kind.extensions[0] for kind in FORMATS} == FORMAT_EXTENSIONS, "what --help says"
    assert get_args(FormatName) == tuple(FORMAT_EXTENSIONS)
    with pytest.raises(ConfigError, match="unknown format 'dicom'"):
        format_named("dicom")
