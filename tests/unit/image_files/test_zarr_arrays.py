"""Zarr and OME-Zarr 0.1 to 0.5 as programs write them; zarr and numpy are the judges of what was stored."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from rescueseg.errors import RescuesegError
from rescueseg.geometry import Box
from rescueseg.image_files.label_files import Grid, open_labels
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.source import Source, Statement

Array = npt.NDArray[Any]
VOXELS = np.random.default_rng(1).integers(1, 60000, (5, 7, 9)).astype(np.uint16)
TWO = np.stack([VOXELS, VOXELS[::-1]])


def write(
    folder: Path, data: Array, *, names: list[str] | None = None, form: int = 3, attributes: Any = None, **more: Any
) -> str:
    path = str(folder / "a.zarr")
    array = zarr.create_array(path, data=data, chunks=(4,) * data.ndim, zarr_format=form, dimension_names=names, **more)  # type: ignore[call-overload]
    array.attrs.update(attributes or {})
    return path


def all_of(source: Source) -> Array:
    return source.read(Box((0, 0, 0), source.shape_zyx))


ARRAYS: dict[str, tuple[Array, dict[str, Any], str]] = {
    "unnamed": (VOXELS, {}, "zyx"),
    "unnamed, version 2": (VOXELS, {"form": 2}, "zyx"),
    "letters": (TWO, {"names": list("czyx")}, "czyx"),
    "x first": (VOXELS.T, {"names": list("xyz")}, "xyz"),
    "words": (TWO[None], {"names": ["time", "channel", "depth", "height", "width"]}, "tczyx"),
    "channels last": (np.moveaxis(TWO, 0, -1), {"names": ["Z", "Y", "X", "Channel"]}, "zyxc"),
    "xarray, version 2": (
        TWO.swapaxes(0, 1), {"form": 2, "attributes": {"_ARRAY_DIMENSIONS": ["z", "c", "y", "x"]}}, "zcyx",
    ),
    "funlib": (TWO, {"form": 2, "attributes": {"axis_names": ["c^", "z", "y", "x"]}}, "czyx"),
    "half named": (VOXELS, {"names": ["z", "rows", "dim_2"]}, "zyx"),
    "shards": (VOXELS, {"names": list("zyx"), "shards": (8, 8, 8)}, "zyx"),
    "big endian": (VOXELS.astype(">u2"), {"form": 2}, "zyx"),
    "order F": (VOXELS, {"form": 2, "order": "F"}, "zyx"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_axes_are_those_that_the_array_names(name: str, tmp_path: Path) -> None:
    data, options, axes = ARRAYS[name]
    path = write(tmp_path, data, **options)
    stored = np.asarray(zarr.open_array(path, mode="r")[...])
    stored = stored.transpose(sorted(range(stored.ndim), key=lambda i: "tczyx".index(axes[i])))
    expected = stored.reshape(-1, *stored.shape[-3:])
    source = open_source(path)
    np.testing.assert_array_equal(all_of(source), expected)
    assert source.dtype == np.uint16
    assert ("does not name its axes" in " ".join(source.remarks)) is ((not options.get("names") and "attributes" not in options)
                                                                      or name == "half named")  # fmt: skip


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (TWO, {}, r"--axes, such as czyx \(2 channels of 5×7×9\)"),
        (VOXELS[None], {"form": 2}, "4 axes, 1×5×7×9"),
        (TWO, {"names": list("tzyx")}, "2 time points"),
        (np.zeros((40, 50, 3), np.uint8), {}, "2D colour image"),
        (VOXELS, {"names": list("cyx")}, "--axes, z in the place of c"),
        (TWO, {"names": ["c", "z", "y", "foo"]}, "does not say what they are"),
    ],
)
def test_what_the_array_leaves_open_is_asked(data: Array, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RescuesegError, match=message):
        open_source(write(tmp_path, data, **options))


def test_what_a_person_says_of_the_axes_counts(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, TWO.transpose(0, 3, 2, 1)), Statement("cxyz"))
    np.testing.assert_array_equal(all_of(source), TWO)


@pytest.mark.parametrize(
    ("attributes", "spacing", "note"),
    [
        ({"resolution": [300, 120, 100], "offset": [0, 0, 0], "units": ["nm"] * 3}, (0.3, 0.12, 0.1), ""),
        ({"voxel_size": [300, 120, 100], "units": ["nm"] * 3}, (0.3, 0.12, 0.1), ""),
        ({"resolution": [40, 4, 4], "offset": [80, 0, 0]}, None, "resolution [40, 4, 4], offset [80, 0, 0]"),
        ({"resolution": [1, 1, 1], "units": ["voxels"] * 3}, None, "units ['voxels'"),
    ],
)
def test_funlib_attributes_are_used_with_units_and_told_without(
    attributes: Any, spacing: Any, note: str, tmp_path: Path
) -> None:
    source = open_source(write(tmp_path, VOXELS, form=2, attributes=attributes))
    assert source.spacing_um_zyx == (None if spacing is None else pytest.approx(spacing))
    assert note in source.spacing_note


def test_calibrated_values_are_converted(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, VOXELS, form=2, attributes={"scale_factor": 0.25, "add_offset": -3.0}))
    np.testing.assert_allclose(all_of(source)[0], VOXELS * 0.25 - 3, rtol=1e-6)
    assert source.dtype == np.float32


def test_the_fill_value_of_xarray_is_a_remark_in_both_versions(tmp_path: Path) -> None:
    data = VOXELS.copy()
    data[0] = 7777
    attributes = {"_ARRAY_DIMENSIONS": list("zyx")}
    second = open_source(write(tmp_path, data, form=2, attributes=attributes, fill_value=7777))
    (tmp_path / "3").mkdir()
    third = open_source(write(tmp_path / "3", data, names=list("zyx"), attributes={"_FillValue": 7777}))
    for source in (second, third):
        assert any("0.2 of the voxels hold 7777" in remark for remark in source.remarks)


# OME-Zarr ------------------------------------------------------------------------------------------------------------

UNITS = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]


def scale(*numbers: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(numbers)}


def shift(*numbers: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(numbers)}


def ome(
    folder: Path, data: Array, axes: Any, on_data: Any, on_all: Any = None, *, form: int = 2, version: str = "0.4"
) -> str:
    path = folder / "a.ome.zarr"
    group = zarr.create_group(str(path), zarr_format=form)  # type: ignore[arg-type]
    group.create_array("0", data=data, chunks=(4,) * data.ndim)
    entry: dict[str, Any] = {"version": version, "datasets": [{"path": "0"}]}
    entry |= {"axes": axes} if axes is not None else {}
    entry["datasets"][0] |= {"coordinateTransformations": on_data} if on_data is not None else {}
    entry |= {"coordinateTransformations": on_all} if on_all is not None else {}
    group.attrs.update({"ome": {"version": version, "multiscales": [entry]}} if form == 3 else {"multiscales": [entry]})
    return str(path)


def named(*names: str, unit: str = "micrometer") -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    return [{"name": n, "type": kinds.get(n, "space")} | ({"unit": unit} if n in "zyx" else {}) for n in names]


IMAGES: dict[str, tuple[Array, Any, Any, Any, str, Any]] = {
    # data, axes, transformations of the data set, of the image, letters, spacing
    "plain": (VOXELS, UNITS, [scale(0.3, 0.12, 0.1)], None, "zyx", (0.3, 0.12, 0.1)),
    "channels": (TWO, named(*"czyx"), [scale(1, 0.3, 0.12, 0.1)], None, "czyx", (0.3, 0.12, 0.1)),
    "x y z, shift first, nm": (
        VOXELS.T, named(*"xyz", unit="nanometer"), [shift(1, 2, 3), scale(100, 120, 300)], None, "xyz", (0.3, 0.12, 0.1),
    ),
    "two scales": (VOXELS, UNITS, [scale(3, 1, 1)], [scale(0.1, 0.12, 0.1)], "zyx", (0.3, 0.12, 0.1)),
    "scale on the image alone": (VOXELS, UNITS, None, [shift(0, 0, 1), scale(0.3, 0.12, 0.1)], "zyx", (0.3, 0.12, 0.1)),
    "identity": (VOXELS, UNITS, [{"type": "identity"}, scale(0.3, 0.12, 0.1)], None, "zyx", (0.3, 0.12, 0.1)),
    "z behind y": (VOXELS.transpose(1, 0, 2), named(*"yzx"), [scale(0.12, 0.3, 0.1)], None, "yzx", (0.3, 0.12, 0.1)),
    "channels last": (np.moveaxis(TWO, 0, -1), named(*"zyxc"), [scale(0.3, 0.12, 0.1, 1)], None, "zyxc", (0.3, 0.12, 0.1)),
    "time of one": (TWO[None], named(*"tczyx"), [scale(1, 1, 0.3, 0.12, 0.1)], None, "tczyx", (0.3, 0.12, 0.1)),
    "a time called c": (
        VOXELS[None], [{"name": "c", "type": "time"}, *UNITS], [scale(1, 0.3, 0.12, 0.1)], None, "tzyx", (0.3, 0.12, 0.1),
    ),
    "a channel called q": (
        TWO, [{"name": "q", "type": "channel"}, *UNITS], [scale(1, 0.3, 0.12, 0.1)], None, "czyx", (0.3, 0.12, 0.1),
    ),
    "words": (
        VOXELS, [{"name": n, "type": "space", "unit": "micrometer"} for n in ("depth", "height", "width")],
        [scale(0.3, 0.12, 0.1)], None, "zyx", (0.3, 0.12, 0.1),
    ),
    "no units": (VOXELS, [{"name": a} for a in "zyx"], [scale(3, 2, 1)], None, "zyx", "3 × 2 × 1 (z, y, x) without a unit"),
    "an empty unit": (VOXELS, named(*"zyx", unit=" "), [scale(3, 2, 1)], None, "zyx", "without a unit"),
    "a unit that is no length": (VOXELS, named(*"zyx", unit="pixel"), [scale(3, 2, 1)], None, "zyx", "in pixel"),
    "no scale": (VOXELS, UNITS, None, None, "zyx", "give no scale"),
    "an affine": (VOXELS, UNITS, [{"type": "affine", "affine": []}], None, "zyx", "'affine' is not understood"),
    "version 0.3": (TWO, list("czyx"), None, None, "czyx", "give no scale"),
    "version 0.1": (TWO[None], None, None, None, "tczyx", "give no scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("form", [2, 3])
def test_ome_zarr_axes_and_sizes(name: str, form: int, tmp_path: Path) -> None:
    data, axes, on_data, on_all, letters, spacing = IMAGES[name]
    path = ome(tmp_path, data, axes, on_data, on_all, form=form, version="0.5" if form == 3 else "0.4")
    stored = np.asarray(zarr.open_array(f"{path}/0", mode="r")[...])
    stored = stored.transpose(sorted(range(stored.ndim), key=lambda i: "tczyx".index(letters[i])))
    for source in (open_source(path), open_source(f"{path}/0")):
        np.testing.assert_array_equal(all_of(source), stored.reshape(-1, *stored.shape[-3:]))
        if isinstance(spacing, tuple):
            assert source.spacing_um_zyx == pytest.approx(spacing)
        else:
            assert source.spacing_um_zyx is None
            assert spacing in source.spacing_note


@pytest.mark.parametrize(
    ("data", "axes", "message"),
    [
        (VOXELS, [{"name": n} for n in ("a", "b", "c")], "are not known.*--axes, such as zyx"),
        (TWO, named(*"tzyx"), "2 time points"),
        (TWO, UNITS, "array with 4 axes are not known"),
        (VOXELS, named(*"cyx"), "--axes, z in the place of c"),
    ],
)
def test_ome_zarr_that_is_no_3d_image_is_refused(data: Array, axes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RescuesegError, match=message):
        open_source(ome(tmp_path, data, axes, None))


def image(group: zarr.Group, name: str, data: Array) -> None:
    inner = group.create_group(name)
    inner.create_array("0", data=data)
    datasets = [{"path": "0", "coordinateTransformations": [scale(0.3, 0.12, 0.1)]}]
    inner.attrs["multiscales"] = [{"version": "0.4", "axes": UNITS, "datasets": datasets}]  # type: ignore[assignment]


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    """A bioformats2raw folder, a plate, an image with labels, a folder of files and N5, each with other images."""
    root = zarr.create_group(str(tmp_path / "bf.zarr"), zarr_format=2, attributes={"bioformats2raw.layout": 3})
    root.create_group("OME").attrs["series"] = ["0", "1"]
    for number in range(2):
        image(root, str(number), VOXELS + number)
    plate = zarr.create_group(str(tmp_path / "plate.zarr"), zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    for well in ("A/1", "B/2"):
        plate.create_group(well).attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
        for field in range(2):
            image(plate, f"{well}/{field}", VOXELS + field)
    labelled = zarr.create_group(str(tmp_path / "lab.zarr"), zarr_format=2)
    labels = labelled.create_group("labels")
    labels.attrs["labels"] = ["nuclei", "cells"]
    image(labels, "nuclei", VOXELS)
    both = zarr.create_group(str(tmp_path / "both.zarr"), zarr_format=2)
    for name in ("x", "y"):
        both.create_array(name, data=VOXELS)
    entries = [{"name": n, "axes": UNITS, "datasets": [{"path": n}]} for n in ("x", "y")]
    both.attrs["multiscales"] = entries  # type: ignore[assignment]
    (tmp_path / "folder.zarr").mkdir()
    tifffile.imwrite(tmp_path / "folder.zarr" / "f.tif", VOXELS, photometric="minisblack")
    (tmp_path / "a.n5").mkdir()
    (tmp_path / "a.n5" / "attributes.json").write_text(json.dumps({"n5": "2.5.1"}))
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "attributes.json").write_text(json.dumps({"n5": "2.5.1"}))
    return tmp_path


@pytest.mark.parametrize(
    ("path", "said", "message"),
    [
        ("bf.zarr", Statement(), r"Name one: 0, 1 \(as .*bf.zarr/0"),
        ("bf.zarr", Statement(series=2), "Name one: 0, 1"),
        ("plate.zarr", Statement(), "a plate.*A/1/0, A/1/1, B/2/0"),
        ("plate.zarr/A/1", Statement(), r"several fields.*\(as .*plate.zarr/A/1/0"),
        ("lab.zarr/labels", Statement(), "label images.*nuclei, cells"),
        ("lab.zarr", Statement(), "Name an array: labels/nuclei/0"),
        ("lab.zarr/lables", Statement(), "there is no 'lables' in it.*labels/nuclei/0"),
        ("both.zarr", Statement(), r"2 images \(x, y\).*--series, 0 to 1"),
        ("both.zarr", Statement(series=2), "--series, 0 to 1"),
        ("bf.zarr/0", Statement(series=1), "Leave --series out"),
        ("bf.zarr/0/0", Statement(series=1), None),
        ("a.n5", Statement(), "N5, which is not read"),
        ("a.n5/raw", Statement(), "N5, which is not read"),
        ("hidden", Statement(), "N5, which is not read"),
        ("none.zarr", Statement(), "no such folder"),
        ("folder.zarr/none", Statement(), "no Zarr metadata"),
        ("s3://bucket/x.zarr", Statement(), "needs the package s3fs, which is not installed"),
        ("nonsense://bucket/x.zarr", Statement(), "nonsense:// is not known"),
    ],
)  # fmt: skip
def test_a_store_of_several_images_names_them(
    path: str, said: Statement, message: str | None, collections: Path
) -> None:
    if path.startswith("s3") and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(RescuesegError, match=message or "Leave --series out"):
        open_source(path if "://" in path else str(collections / path), said)


@pytest.mark.parametrize(
    ("path", "said", "added"),
    [
        ("bf.zarr", Statement(series=1), 1),
        ("bf.zarr/0", Statement(), 0),
        ("bf.zarr/1/", Statement(), 1),
        ("plate.zarr/B/2/1", Statement(), 1),
        ("lab.zarr/labels/nuclei", Statement(), 0),
        ("both.zarr", Statement(series=1), 0),
        ("folder.zarr/f.tif", Statement(), 0),
        ("folder.zarr", Statement(), None),
    ],
)
def test_the_image_that_is_named_is_read(path: str, said: Statement, added: int | None, collections: Path) -> None:
    if added is None:
        with pytest.raises(RescuesegError, match=re.escape("single plane, f.tif")):
            open_source(str(collections / path), said)
        return
    np.testing.assert_array_equal(all_of(open_source(str(collections / path), said))[0], VOXELS + added)


def test_a_coarser_level_is_read_with_its_size_and_a_remark(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    datasets = []
    for level, step in enumerate((1, 2)):
        group.create_array(str(level), data=VOXELS[:, ::step, ::step])
        datasets.append({"path": str(level), "coordinateTransformations": [scale(0.3, 0.12 * step, 0.1 * step)]})
    group.attrs["multiscales"] = [{"axes": UNITS, "datasets": datasets}]  # type: ignore[assignment]
    source = open_source(str(tmp_path / "a.zarr" / "1"))
    np.testing.assert_array_equal(all_of(source)[0], VOXELS[:, ::2, ::2])
    assert source.spacing_um_zyx == pytest.approx((0.3, 0.24, 0.2))
    assert source.remarks == ("level 1 of the pyramid, not the full resolution",)


@pytest.mark.parametrize(
    ("on_data", "on_all", "affine_xyz", "offset_xyz"),
    [
        ([scale(0.3, 0.12, 0.1), shift(3, 2, 1)], None, (0.1, 0.12, 0.3), (1, 2, 3)),
        ([scale(3, 1, 1), shift(3, 2, 1)], [scale(0.1, 0.12, 0.1)], (0.1, 0.12, 0.3), (0.1, 0.24, 0.3)),
        ([scale(0.3, 0.12, 0.1)], [shift(0, 0, 5)], (0.1, 0.12, 0.3), (5, 0, 0)),
    ],
)
def test_a_translation_says_where_the_image_lies(
    on_data: Any, on_all: Any, affine_xyz: Any, offset_xyz: Any, tmp_path: Path
) -> None:
    placement = open_source(ome(tmp_path, VOXELS, UNITS, on_data, on_all)).placement
    assert placement is not None
    np.testing.assert_allclose(np.diag(placement.affine)[:3], affine_xyz)
    np.testing.assert_allclose(placement.affine[:3, 3], offset_xyz)


def test_without_a_translation_the_place_is_not_known(tmp_path: Path) -> None:
    assert open_source(ome(tmp_path, VOXELS, UNITS, [scale(0.3, 0.12, 0.1)])).placement is None


def test_labels_of_another_place_are_refused_and_those_of_the_same_taken(tmp_path: Path) -> None:
    for name, offset in (("image", 3), ("same", 3), ("moved", 4)):
        (tmp_path / name).mkdir()
        ome(tmp_path / name, VOXELS, UNITS, [scale(0.3, 0.12, 0.1), shift(offset, 0, 0)])
    paths = {name: str(tmp_path / name / "a.ome.zarr") for name in ("image", "same", "moved")}
    grid = Grid.of(open_source(paths["image"]))
    np.testing.assert_array_equal(all_of(open_labels(paths["same"], grid, {}))[0], VOXELS)
    with pytest.raises(RescuesegError, match=r"begin at voxel 3\.33"):
        open_labels(paths["moved"], grid, {})
