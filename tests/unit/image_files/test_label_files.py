"""NIfTI and NRRD images, and labels laid on them, against nibabel, SimpleITK and pynrrd reading by themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from rescueseg.errors import RescuesegError
from rescueseg.geometry import Box
from rescueseg.image_files.label_files import Grid, open_labels
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.source import Statement
from rescueseg.labels import class_numbers, object_numbers

Array = npt.NDArray[Any]
RNG = np.random.default_rng(3)
SHAPE_XYZ = (7, 5, 4)
VOXELS = RNG.integers(0, 30_000, SHAPE_XYZ).astype(np.int16)
"""x, y, z, as both formats store it."""
LABELS = RNG.integers(0, 3, SHAPE_XYZ).astype(np.uint8)
STEPS = np.array([0.1, 0.12, 0.3])
ORIGIN = np.array([5.0, -2.0, 11.0])
NAMES = {"mito": 1, "vesicle": 2}
ORIENTATIONS = [(p, f) for p in itertools.permutations(range(3)) for f in itertools.product((1, -1), repeat=3)]


def whole(path: str, said: Statement | None = None) -> Array:
    source = open_source(path, said)
    try:
        return source.read(Box((0, 0, 0), source.shape_zyx))
    finally:
        source.close()


def affine(unit: float = 1.0, rotation: Array | None = None) -> Array:
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(STEPS) / unit
    matrix[:3, 3] = ORIGIN / unit
    return matrix


def save_nifti(path: Path, xyz: Array, matrix: Array, unit: str = "micron") -> str:
    nib: Any = nibabel
    image = nib.Nifti1Image(xyz, matrix, dtype=xyz.dtype)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return str(path)


def turned(xyz: Array, matrix: Array, order: tuple[int, ...], flips: tuple[int, ...]) -> tuple[Array, Array]:
    """The same voxels at the same places, stored in another order, as tools do."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    array = xyz.transpose(order)
    for axis, (old, sign) in enumerate(zip(order, flips, strict=True)):
        change[old, axis] = sign
        if sign < 0:
            change[old, 3] = array.shape[axis] - 1
            array = np.flip(array, axis)
    return array, matrix @ change


# images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img", "a.hdr"])
def test_nifti_of_every_type_and_name(tmp_path: Path, kind: str, name: str) -> None:
    save_nifti(tmp_path / name, VOXELS.astype(kind), affine())
    loaded: Any = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(whole(str(tmp_path / name))[0], np.asarray(loaded.dataobj).T)


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4"])
@pytest.mark.parametrize(
    "slope", [(0.001, 0.0), (10.0, -1024.0), (1.0, -32768.0), (1 / 127, 0.0), (2.5, 7.0), (1.0, 0.0)]
)
def test_scaled_nifti_voxels_are_those_of_nibabel_and_simpleitk(
    tmp_path: Path, kind: str, slope: tuple[float, float]
) -> None:
    raw = (VOXELS % 100).astype(kind)
    values = raw * np.float32(slope[0]) + np.float32(slope[1])
    nib: Any = nibabel
    image = nib.Nifti1Image(values.astype(np.float64), affine())
    image.header.set_xyzt_units("micron")
    image.set_data_dtype(kind)
    image.header.set_slope_inter(*slope)
    nib.save(image, tmp_path / "a.nii")
    header = nib.load(tmp_path / "a.nii").header
    found = whole(str(tmp_path / "a.nii"))[0]
    np.testing.assert_allclose(found, nib.load(tmp_path / "a.nii").get_fdata().T, rtol=1e-6, atol=1e-3)
    sitk = pytest.importorskip("SimpleITK")
    np.testing.assert_allclose(
        found, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii"))), rtol=1e-4, atol=2e-2
    )
    assert header is not None


@pytest.mark.parametrize(("unit", "um"), [("micron", 1.0), ("mm", 1000.0), ("meter", 1e6), ("unknown", None)])
def test_nifti_sizes(tmp_path: Path, unit: str, um: float | None) -> None:
    source = open_source(save_nifti(tmp_path / "a.nii", VOXELS, affine(), unit))
    expected = None if um is None else pytest.approx(STEPS[::-1] * um)
    assert source.spacing_um_zyx == expected
    assert bool(source.spacing_note) is (um is None)
    source.close()


def test_an_affine_against_pixdim_is_refused_with_both(tmp_path: Path) -> None:
    nib: Any = nibabel
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_xyzt_units("micron")
    image.header.set_sform(affine(), code=1)
    nib.save(image, tmp_path / "a.nii")
    source = open_source(str(tmp_path / "a.nii"))
    assert source.spacing_um_zyx is None
    assert "0.3 × 0.12 × 0.1" in source.spacing_note
    assert "1 × 1 × 1" in source.spacing_note
    source.close()


def save_nrrd(path: Path, array: Array, **header: Any) -> str:
    nrrd.write(str(path), array, {"encoding": "raw", **header})
    return str(path)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u4", "i8", "f4", "f8"])
def test_nrrd_of_every_encoding(tmp_path: Path, encoding: str, kind: str) -> None:
    path = save_nrrd(tmp_path / "a.nrrd", VOXELS.astype(kind), encoding=encoding)
    np.testing.assert_array_equal(whole(path)[0], nrrd.read(path)[0].T)


@pytest.mark.parametrize(("lines", "count"), [("byte skip: 20\n", 20), ("byteskip: 4\n", 4), ("byte skip: -1\n", 33)])
def test_raw_voxels_after_bytes_to_skip(tmp_path: Path, lines: str, count: int) -> None:
    head = f"NRRD0004\ntype: int16\ndimension: 3\nsizes: 7 5 4\nendian: little\nencoding: raw\n{lines}\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + b"\x55" * count + VOXELS.T.astype("<i2").tobytes())
    np.testing.assert_array_equal(whole(str(tmp_path / "a.nrrd"))[0], VOXELS.T)


def test_a_detached_header_with_lines_to_skip(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"one line\nanother\n" + VOXELS.T.astype("<i2").tobytes())
    head = (
        "NRRD0004\ntype: int16\ndimension: 3\nsizes: 7 5 4\nendian: little\nencoding: raw\nline skip: 2\n"
        "data file: a.raw\n"
    )
    (tmp_path / "a.nhdr").write_text(head)
    np.testing.assert_array_equal(whole(str(tmp_path / "a.nhdr"))[0], VOXELS.T)


FOUR = np.stack([VOXELS, VOXELS + 1])
"""channel, x, y, z."""


@pytest.mark.parametrize(
    ("array", "header", "expected"),
    [
        (FOUR, {"kinds": ["list", "domain", "domain", "domain"]}, "cxyz"),
        (FOUR, {"kinds": ["vector", "space", "space", "space"]}, "cxyz"),
        (np.moveaxis(FOUR, 0, 3), {"kinds": ["domain", "domain", "domain", "list"]}, "xyzc"),
        (np.moveaxis(FOUR, 0, 3), {"space": "LPS", "space directions": np.vstack([np.eye(3), np.full(3, np.nan)])}, "xyzc"),
        (FOUR, {"space": "RAS", "space directions": np.vstack([np.full(3, np.nan), np.eye(3)])}, "cxyz"),
        (FOUR, {}, None),
        (FOUR, {"kinds": ["???", "???", "???", "???"]}, None),
        (np.moveaxis(FOUR, 0, 3), {"kinds": ["domain", "domain", "domain", "time"]}, None),
        (VOXELS[0], {}, None),
    ],
    ids=str,
)  # fmt: skip
def test_nrrd_axes_are_told_or_asked_for(
    tmp_path: Path, array: Array, header: dict[str, Any], expected: str | None
) -> None:
    path = save_nrrd(tmp_path / "a.nrrd", array, **header)
    if expected is None:
        with pytest.raises(RescuesegError, match=r"axes|time points"):
            whole(path)
    else:
        np.testing.assert_array_equal(whole(path), FOUR.transpose(0, 3, 2, 1))


def test_axes_that_a_person_states_of_an_nrrd(tmp_path: Path) -> None:
    path = save_nrrd(tmp_path / "a.nrrd", FOUR)
    np.testing.assert_array_equal(whole(path, Statement(axes="cxyz")), FOUR.transpose(0, 3, 2, 1))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"spacings": [0.1, 0.12, 0.3], "units": ["um"] * 3}, (0.3, 0.12, 0.1)),
        ({"spacings": [100, 0.12, 0.0003], "units": ["nm", "um", "mm"]}, (0.3, 0.12, 0.1)),
        ({"spacings": [0.1, 0.12, 0.3]}, None),
        ({"space": "LPS", "space directions": np.diag(STEPS), "space units": ["um"] * 3}, (0.3, 0.12, 0.1)),
        ({"space": "LPS", "space directions": -np.diag(STEPS), "space units": ["microns"] * 3}, (0.3, 0.12, 0.1)),
        ({"space": "LPS", "space directions": np.diag([100, 0.12, 0.0003]), "space units": ["nm", "um", "mm"]}, (0.3, 0.12, 0.1)),
        ({"space": "LPS", "space directions": np.diag(STEPS)}, None),
    ],
    ids=str,
)  # fmt: skip
def test_nrrd_sizes(tmp_path: Path, header: dict[str, Any], expected: tuple[float, float, float] | None) -> None:
    source = open_source(save_nrrd(tmp_path / "a.nrrd", VOXELS, **header))
    assert source.spacing_um_zyx == (None if expected is None else pytest.approx(expected))
    source.close()


@pytest.mark.parametrize("content", [b"", b"NRRD", b"NRRD0004\n", b"not at all", b"NRRD0004\ntype: block\n\n"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.nii", "a.nii.gz", "a.hdr"])
def test_no_file_ends_in_a_traceback(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RescuesegError) as caught:
        whole(str(tmp_path / name))
    assert caught.value.todo


# labels on their image ------------------------------------------------------------------------------------------------


def read_labels(path: str, image: str, names: dict[str, int] | None = None) -> Array:
    source = open_source(image)
    labels = open_labels(path, Grid.of(source), NAMES if names is None else names)
    try:
        found: Array = labels.read(Box((0, 0, 0), labels.shape_zyx))[0]
        part = Box((1, 2, 3), (2, 3, 3))  # a part is read as the whole has it
        np.testing.assert_array_equal(labels.read(part)[0], found[part.slices])
        return found
    finally:
        labels.close()
        source.close()


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_nifti_labels_in_any_orientation_lie_on_their_image(
    tmp_path: Path, order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    image = save_nifti(tmp_path / "image.nii", VOXELS, affine())
    array, matrix = turned(LABELS, affine(), order, flips)
    path = save_nifti(tmp_path / "labels.nii", np.ascontiguousarray(array), matrix)
    np.testing.assert_array_equal(read_labels(path, image), LABELS.T)


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS[::5])
def test_nrrd_labels_in_any_orientation_agree_with_simpleitk(
    tmp_path: Path, order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    header = {"space": "left-posterior-superior", "space units": ["um"] * 3}
    image = save_nrrd(
        tmp_path / "i.nrrd", VOXELS, **header, **{"space directions": affine()[:3, :3].T, "space origin": ORIGIN}
    )
    array, matrix = turned(LABELS, affine(), order, flips)
    place = {"space directions": matrix[:3, :3].T, "space origin": matrix[:3, 3]}
    path = save_nrrd(tmp_path / "l.nrrd", np.ascontiguousarray(array), **header, **place)
    resampled = sitk.Resample(
        sitk.ReadImage(path), sitk.ReadImage(image), sitk.Transform(), sitk.sitkNearestNeighbor, 99, sitk.sitkUInt8
    )
    found = read_labels(path, image)
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(resampled))
    np.testing.assert_array_equal(found, LABELS.T)


def moved(change: Callable[[Array], Any]) -> Array:
    matrix = affine()
    change(matrix)
    return matrix


def shift(x: float, y: float = 0, z: float = 0) -> Array:
    return moved(lambda m: m.__setitem__((slice(0, 3), 3), ORIGIN + STEPS * [x, y, z]))


def oblique() -> Array:
    angle = np.deg2rad(10)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return affine(rotation=rotation)


@pytest.mark.parametrize(
    ("matrix", "unit", "told"),
    [
        (shift(1), "micron", "begin at voxel"),
        (shift(0, 0, -2), "micron", "begin at voxel"),
        (shift(0.5), "micron", "begin"),
        (moved(lambda m: m.__setitem__((slice(0, 3), 3), 0)), "micron", "begin"),
        (moved(lambda m: m.__imul__(2)), "micron", "not on the grid"),
        (affine(), "mm", "not on the grid"),
        (oblique(), "micron", "turned"),
        (shift(0.001), "micron", ""),
        (affine(1000.0), "mm", ""),
        (affine(), "unknown", ""),
    ],
)
def test_labels_of_another_place_are_refused(tmp_path: Path, matrix: Array, unit: str, told: str) -> None:
    image = save_nifti(tmp_path / "image.nii", VOXELS, affine())
    path = save_nifti(tmp_path / "labels.nii", LABELS, matrix, unit)
    if told:
        with pytest.raises(RescuesegError, match=told) as caught:
            read_labels(path, image)
        assert caught.value.where == path
    else:
        np.testing.assert_array_equal(read_labels(path, image), LABELS.T)


def test_labels_of_a_turned_image_lie_as_the_image_does(tmp_path: Path) -> None:
    """An oblique acquisition: both say the same, and no voxel moves."""
    image = save_nifti(tmp_path / "image.nii", VOXELS, oblique())
    path = save_nifti(tmp_path / "labels.nii", LABELS, oblique())
    np.testing.assert_array_equal(read_labels(path, image), LABELS.T)
    array, matrix = turned(LABELS, oblique(), (2, 0, 1), (-1, 1, -1))
    path = save_nifti(tmp_path / "turned.nii", np.ascontiguousarray(array), matrix)
    np.testing.assert_array_equal(read_labels(path, image), LABELS.T)


def test_where_one_file_says_nothing_voxels_are_matched_in_order(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", VOXELS.T, photometric="minisblack")
    path = save_nifti(tmp_path / "labels.nii", LABELS, np.diag([-1.0, -1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(read_labels(path, str(tmp_path / "image.tif")), LABELS.T)


def test_places_in_two_kinds_of_space_are_not_compared_and_that_is_said(tmp_path: Path) -> None:
    image = save_nifti(tmp_path / "image.nii", VOXELS, affine())
    group = zarr.create_group(str(tmp_path / "l.ome.zarr"), zarr_format=3)
    group.create_array("0", data=np.ascontiguousarray(LABELS.T), chunks=LABELS.T.shape)
    steps = [{"type": "scale", "scale": [0.3, 0.12, 0.1]}, {"type": "translation", "translation": [9.0, 9.0, 9.0]}]
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}  # type: ignore[assignment]
    source = open_source(image)
    labels = open_labels(str(tmp_path / "l.ome.zarr"), Grid.of(source), NAMES)
    np.testing.assert_array_equal(labels.read(Box((0, 0, 0), labels.shape_zyx))[0], LABELS.T)
    assert "order of the files" in labels.remarks[-1]
    labels.close()
    source.close()


def segment(number: int, name: str, value: int, layer: int = 0) -> dict[str, str]:
    start = f"Segment{number}_"
    return {start + "Name": name, start + "LabelValue": str(value), start + "Layer": str(layer), start + "ID": name}


PLACE = {
    "space": "left-posterior-superior", "space units": ["um"] * 3, "space directions": affine()[:3, :3].T,
    "space origin": ORIGIN,
}  # fmt: skip


def test_segments_are_known_by_their_names(tmp_path: Path) -> None:
    image = save_nrrd(tmp_path / "i.nrrd", VOXELS, **PLACE)
    stored = np.choose(LABELS, [0, 3, 7]).astype(np.uint8)
    path = save_nrrd(tmp_path / "l.seg.nrrd", stored, **PLACE, **segment(0, "vesicle", 3), **segment(1, "mito", 7))
    np.testing.assert_array_equal(read_labels(path, image), np.choose(LABELS.T, [0, 2, 1]))
    np.testing.assert_array_equal(read_labels(path, image, {}), stored.T)  # objects keep their numbers


def test_layers_are_merged_and_overlaps_refused_with_their_place(tmp_path: Path) -> None:
    image = save_nrrd(tmp_path / "i.nrrd", VOXELS, **PLACE)
    place = PLACE | {"space directions": np.vstack([np.full(3, np.nan), affine()[:3, :3].T])}
    names = segment(0, "mito", 1, 0) | segment(1, "vesicle", 1, 1)
    layers = np.stack([LABELS == 1, LABELS == 2]).astype(np.uint8)
    path = save_nrrd(tmp_path / "l.seg.nrrd", layers, **place, **names)
    np.testing.assert_array_equal(read_labels(path, image), LABELS.T)
    layers[:, 2:4, 1, 3] = 1
    path = save_nrrd(tmp_path / "l.seg.nrrd", layers, **place, **names)
    with pytest.raises(RescuesegError, match=r"overlap in 2 voxels, at z 3:4, y 1:2, x 2:4"):
        read_labels(path, image)


def test_a_cropped_segmentation_is_put_in_its_place(tmp_path: Path) -> None:
    image = save_nrrd(tmp_path / "i.nrrd", VOXELS, **PLACE)
    crop = LABELS[2:6, 1:4, 1:3]
    place = PLACE | {"space origin": ORIGIN + STEPS * [2, 1, 1]}
    names = segment(0, "mito", 1) | segment(1, "vesicle", 2)
    path = save_nrrd(tmp_path / "l.seg.nrrd", np.ascontiguousarray(crop), **place, **names)
    expected = np.zeros_like(LABELS)
    expected[2:6, 1:4, 1:3] = crop
    np.testing.assert_array_equal(read_labels(path, image), expected.T)
    outside = PLACE | {"space origin": ORIGIN + STEPS * [5, 1, 1]}
    path = save_nrrd(tmp_path / "l.seg.nrrd", np.ascontiguousarray(crop), **outside, **names)
    with pytest.raises(RescuesegError, match="begin at voxel"):
        read_labels(path, image)


@pytest.mark.parametrize("slope", [1 / 127, 0.01, 0.5])
def test_labels_stored_with_a_scale_come_back_whole(tmp_path: Path, slope: float) -> None:
    nib: Any = nibabel
    raw = np.rint(LABELS / slope).astype(np.int16)
    header = nib.Nifti1Image(raw, affine()).header
    header.set_xyzt_units("micron")
    header.set_slope_inter(slope, 0)
    with (tmp_path / "l.nii").open("wb") as file:
        header["vox_offset"], header["magic"] = 352, b"n+1"
        header.write_to(file)
        file.write(raw.T.tobytes())
    path = save_nifti(tmp_path / "i.nii", VOXELS, affine())
    found = read_labels(str(tmp_path / "l.nii"), path)
    np.testing.assert_array_equal(class_numbers(found, 2, "here"), LABELS.T)
    np.testing.assert_array_equal(object_numbers(found, "here"), LABELS.T)


@pytest.mark.parametrize("value", [0.4, -1.0, np.nan, np.inf, 2.0**32])
def test_what_is_no_number_of_an_object_is_refused(value: float) -> None:
    with pytest.raises(RescuesegError, match="no object number"):
        object_numbers(np.array([1.0, value]), "here")
    with pytest.raises(RescuesegError, match="no class"):
        class_numbers(np.array([1.0, value]), 2, "here")
