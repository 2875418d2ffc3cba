"""HDF5 as programs write it; h5py is the judge of what was stored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from rescueseg.errors import RescuesegError
from rescueseg.geometry import Box
from rescueseg.image_files import conventions
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.source import Source, Statement

Array = npt.NDArray[Any]
VOXELS = np.random.default_rng(1).integers(1, 60000, (5, 7, 9)).astype(np.uint16)
TWO = np.stack([VOXELS, VOXELS[::-1]])
MANY = np.random.default_rng(2).integers(1, 200, (6, 20, 24, 3)).astype(np.uint8)


def write(folder: Path, data: Array, labels: str | list[str] = "", **attributes: Any) -> str:
    with h5py.File(folder / "a.h5", "w") as file:
        dataset = file.create_dataset("data", data=data, chunks=True)
        for dimension, label in zip(dataset.dims, labels, strict=False):
            dimension.label = label
        dataset.attrs.update(attributes)
    return str(folder / "a.h5")


def all_of(source: Source) -> Array:
    return source.read(Box((0, 0, 0), source.shape_zyx))


def tags(keys: str, sizes: list[float] | None = None) -> str:
    entries = [{"key": k, "typeFlags": 2} for k in keys]
    for entry, size in zip(entries, sizes or [], strict=False):
        entry["resolution"] = size
    return json.dumps({"axes": entries})


AXES: dict[str, tuple[Array, dict[str, Any], str]] = {
    "unnamed": (VOXELS, {}, "zyx"),
    "letters": (TWO, {"labels": "czyx"}, "czyx"),
    "capitals": (VOXELS, {"labels": "XYZ"}, "xyz"),
    "words": (TWO, {"labels": ["channel", "depth", "height", "width"]}, "czyx"),
    "words of planes": (VOXELS, {"labels": ["plane", "row", "column"]}, "zyx"),
    "words with axis": (VOXELS, {"labels": ["z_axis", "y_axis", "x_axis"]}, "zyx"),
    "channels last": (MANY, {"labels": ["z", "y", "x", "Channel"]}, "zyxc"),
    "time of one": (VOXELS[None], {"labels": ["time", "z", "y", "x"]}, "tzyx"),
    "axistags": (TWO.transpose(3, 2, 1, 0), {"axistags": tags("xyzc")}, "xyzc"),
    "axistags as bytes": (VOXELS.T, {"axistags": np.bytes_(tags("xyz"))}, "xyz"),
    "axistags with time": (TWO[None], {"axistags": tags("tczyx")}, "tczyx"),
    "xarray": (TWO.swapaxes(0, 1), {"_ARRAY_DIMENSIONS": ["z", "c", "y", "x"]}, "zcyx"),
    "funlib": (TWO, {"axis_names": ["c^", "z", "y", "x"]}, "czyx"),
    "one word": (VOXELS.T, {"axes": "XYZ"}, "xyz"),
    "half named": (VOXELS, {"labels": ["z", "", ""]}, "zyx"),
    "a name twice": (VOXELS, {"labels": ["z", "z", "x"]}, "zyx"),
}


@pytest.mark.parametrize("name", AXES)
def test_axes_are_those_that_the_file_names(name: str, tmp_path: Path) -> None:
    data, attributes, axes = AXES[name]
    path = write(tmp_path, data, **attributes)
    with h5py.File(path) as file:
        stored = file["data"][...]
    stored = stored.transpose(sorted(range(stored.ndim), key=lambda i: "tczyx".index(axes[i])))
    expected = stored.reshape(-1, *stored.shape[-3:])
    source = open_source(path)
    np.testing.assert_array_equal(all_of(source), expected)
    assert source.shape_zyx == expected.shape[1:]
    assert ("does not name its axes" in " ".join(source.remarks)) is (name in ("unnamed", "half named", "a name twice"))
    source.close()


REFUSED: dict[str, tuple[Array, dict[str, Any], str]] = {
    "a colour image": (MANY[0], {}, "2D colour image: 20×24×3"),
    "a colour image with alpha": (np.zeros((64, 50, 4), np.uint8), {}, "2D colour image"),
    "four axes": (MANY, {}, r"--axes, such as zyxc \(3 channels of 6×20×24\)"),
    "four axes, one long 1": (VOXELS[None], {}, r"--axes, such as czyx \(1 channel of 5×7×9\)"),
    "five axes": (TWO[None], {}, r"--axes, such as tczyx \(2 channels of 5×7×9\)"),
    "six axes": (TWO[None, None], {}, "6 axes"),
    "time": (TWO, {"labels": "tzyx"}, "2 time points"),
    "channels for planes": (VOXELS, {"labels": "cyx"}, "--axes, z in the place of c"),
    "complex": (np.zeros((3, 3, 3), np.complex64), {}, "no real number"),
    "a table": (np.zeros((3, 3, 3), [("a", "i4"), ("b", "f4")]), {}, "no real number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_file_leaves_open_is_asked(name: str, tmp_path: Path) -> None:
    data, attributes, message = REFUSED[name]
    with pytest.raises(RescuesegError, match=message):
        open_source(write(tmp_path, data, **attributes))


@pytest.mark.parametrize(
    ("data", "axes"), [(MANY, "zyxc"), (TWO, "czyx"), (TWO[:, None], "ctzyx"), (MANY[0], "zyx"), (TWO, "pzyx")]
)
def test_what_a_person_says_of_the_axes_counts(data: Array, axes: str, tmp_path: Path) -> None:
    source = open_source(write(tmp_path, data), Statement(axes, position=0))
    wanted = data[0][None] if axes == "pzyx" else data.squeeze(axes.index("t")) if "t" in axes else data
    inner = [a for a in axes if a not in "tp"] if axes != "pzyx" else list("czyx")
    order = [inner.index(a) for a in "czyx" if a in inner]
    expected = wanted.transpose(order)
    np.testing.assert_array_equal(all_of(source), expected if expected.ndim == 4 else expected[None])
    source.close()


UM = dict.fromkeys("zyx", "um")
SPACINGS: dict[str, tuple[dict[str, Any], tuple[float, ...] | None, str]] = {
    "element size": ({"element_size_um": [0.3, 0.12, 0.1]}, (0.3, 0.12, 0.1), ""),
    "axis tags": ({"axistags": tags("zyx", [0.3, 0.12, 0.1]), "axis_units": json.dumps(UM)}, (0.3, 0.12, 0.1), ""),
    "axis tags, nm": (
        {"axistags": tags("zyx", [300, 120, 0.1]), "axis_units": json.dumps({"z": "nm", "y": "nm", "x": "um"})},
        (0.3, 0.12, 0.1),
        "",
    ),
    "axis tags without unit": ({"axistags": tags("zyx", [3, 2, 1])}, None, "3 × 2 × 1 .* without a unit"),
    "axis tags unset": ({"axistags": tags("zyx", [0, 0, 0]), "axis_units": json.dumps(UM)}, None, "^$"),
    "funlib": ({"resolution": [300, 120, 100], "offset": [0, 0, 0], "units": ["nm"] * 3}, (0.3, 0.12, 0.1), ""),
    "funlib, one unit": ({"voxel_size": [300, 120, 100], "units": "nm"}, (0.3, 0.12, 0.1), ""),
    "funlib in order x y z": (
        {"labels": "xyz", "voxel_size": [100, 120, 300], "units": ["nm"] * 3}, (0.3, 0.12, 0.1), "",
    ),
    "units per axis": ({"voxel_size": [0.3, 120, 100], "units": ["um", "nm", "nm"]}, (0.3, 0.12, 0.1), ""),
    "no units": ({"resolution": [40, 4, 4], "offset": [8, 0, 0]}, None, r"resolution \[40, 4, 4\], offset \[8, 0, 0\]"),
    "other units": ({"voxel_size": [1, 1, 1], "units": ["voxel"] * 3}, None, r"units \['voxel'"),
    "two numbers": ({"resolution": [40, 4]}, None, "^$"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACINGS)
def test_the_voxel_size_needs_a_unit(name: str, tmp_path: Path) -> None:
    attributes, spacing, note = SPACINGS[name]
    source = open_source(write(tmp_path, VOXELS, **attributes))
    assert source.spacing_um_zyx == (None if spacing is None else pytest.approx(spacing))
    if spacing is None:
        assert re.search(note, source.spacing_note)
    source.close()


@pytest.mark.parametrize(
    ("attributes", "dtype", "expected"),
    [
        ({"scale_factor": 0.5, "add_offset": 10.0}, np.float32, VOXELS * 0.5 + 10),
        ({"scale_factor": np.array([2])}, np.uint32, VOXELS.astype(int) * 2),
        ({"add_offset": -32768}, np.int16, None),
        ({"scale_factor": 1.0, "add_offset": 0.0}, np.uint16, VOXELS),
    ],
)
def test_calibrated_values_are_converted(attributes: Any, dtype: Any, expected: Any, tmp_path: Path) -> None:
    source = open_source(write(tmp_path, VOXELS, **attributes))
    wanted = VOXELS.astype(int) - 32768 if expected is None else expected
    np.testing.assert_allclose(all_of(source)[0], wanted, rtol=1e-6)
    assert source.dtype.kind == np.dtype(dtype).kind
    source.close()


def test_a_fill_value_among_the_voxels_is_a_remark(tmp_path: Path) -> None:
    data = VOXELS.copy()
    data[0] = 7777
    remarks = open_source(write(tmp_path, data, _FillValue=np.uint16(7777))).remarks
    assert any("0.2 of the voxels hold 7777" in remark for remark in remarks)
    assert not any("hold" in r for r in open_source(write(tmp_path, VOXELS, _FillValue=np.uint16(0))).remarks)


def test_of_a_large_array_corners_and_middle_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conventions, "_LOOKED_AT", 60)
    data = VOXELS.copy()
    data[-1, -1, -1] = 7777
    assert any("hold 7777" in r for r in open_source(write(tmp_path, data, _FillValue=np.uint16(7777))).remarks)


def test_the_names_of_attached_scales_count(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nc", "w") as file:
        dataset = file.create_dataset("data", data=VOXELS.T)
        for position, letter in enumerate("xyz"):
            file[letter] = np.arange(VOXELS.T.shape[position], dtype=float)
            file[letter].make_scale(letter)
            dataset.dims[position].attach_scale(file[letter])
    np.testing.assert_array_equal(all_of(open_source(str(tmp_path / "a.nc")))[0], VOXELS)


@pytest.mark.parametrize("separator", [":", ":/", "/"])
def test_a_dataset_is_named_behind_a_colon_or_a_slash(separator: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["in/raw"], file["in/other"] = VOXELS, VOXELS + 1
    np.testing.assert_array_equal(all_of(open_source(f"{tmp_path / 'a.h5'}{separator}in/raw"))[0], VOXELS)
    with pytest.raises(RescuesegError, match="in/other, in/raw"):
        open_source(f"{tmp_path / 'a.h5'}{separator}in")


# BigDataViewer -------------------------------------------------------------------------------------------------------


def bigdataviewer(folder: Path, setups: int = 1, times: int = 1, unit: str = "um", xml: bool = True) -> str:
    """Write what the exporter of BigDataViewer does: uint16 as int16, one group per setup, sizes x y z in the XML."""
    entries = ""
    with h5py.File(folder / "b.h5", "w") as file:
        file["__DATA_TYPES__/Enum_Boolean"] = h5py.enum_dtype({"FALSE": 0, "TRUE": 1}, "i1")
        for s in range(setups):
            file[f"s{s:02}/resolutions"] = [[1.0, 1, 1], [2, 2, 1]]
            file[f"s{s:02}/subdivisions"] = [[16, 16, 16], [16, 16, 16]]
            entries += f"<ViewSetup><id>{s}</id><voxelSize><unit>{unit}</unit><size>0.1 0.12 0.3</size></voxelSize></ViewSetup>"
            for t in range(times):
                cells = file.create_dataset(
                    f"t{t:05}/s{s:02}/0/cells", data=(VOXELS + s).view(np.int16), chunks=(4, 4, 4)
                )
                file[f"t{t:05}/s{s:02}/1/cells"] = cells[:, ::2, ::2]
    if xml:
        text = f"<SpimData><SequenceDescription><ViewSetups>{entries}</ViewSetups></SequenceDescription></SpimData>"
        (folder / "b.xml").write_text(text)
    return str(folder / "b.h5")


@pytest.mark.parametrize("series", [None, 0, 1])
def test_bigdataviewer_is_unsigned_and_its_size_stands_in_the_xml(series: int | None, tmp_path: Path) -> None:
    source = open_source(bigdataviewer(tmp_path, setups=1 if series is None else 2), Statement(series=series))
    np.testing.assert_array_equal(all_of(source)[0], VOXELS + (series or 0))
    assert source.dtype == np.uint16
    assert source.spacing_um_zyx == pytest.approx((0.3, 0.12, 0.1))
    assert any("uint16" in remark for remark in source.remarks)


@pytest.mark.parametrize(
    ("make", "said", "message"),
    [
        (lambda f: bigdataviewer(f, setups=2), Statement(), "setups s00, s01.*--series"),
        (lambda f: bigdataviewer(f, setups=2), Statement(series=2), "setups s00, s01"),
        (lambda f: bigdataviewer(f, times=3), Statement(), "3 time points.*t00002/s00/0/cells"),
    ],
)
def test_bigdataviewer_with_several_images_asks(
    make: Callable[[Path], str], said: Statement, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RescuesegError, match=message):
        open_source(make(tmp_path), said)


@pytest.mark.parametrize(
    ("options", "dataset", "note"),
    [
        ({"xml": False}, "", "b.xml"),
        ({"unit": "pixel"}, "", "'pixel'"),
        ({}, ":t00000/s00/1/cells", "level is 1"),
    ],
)
def test_bigdataviewer_without_a_known_size_says_where_it_looked(
    options: Any, dataset: str, note: str, tmp_path: Path
) -> None:
    source = open_source(bigdataviewer(tmp_path, **options) + dataset)
    assert source.spacing_um_zyx is None
    assert note in source.spacing_note


# Imaris --------------------------------------------------------------------------------------------------------------


def letters(text: str) -> Array:
    return np.array([c.encode() for c in text], "S1")


def imaris(folder: Path, channels: int = 2, times: int = 1, unit: str = "um") -> str:
    """Write Imaris' published layout: attributes as arrays of letters, datasets padded to whole chunks."""
    with h5py.File(folder / "a.ims", "w") as file:
        file.attrs["ImarisDataSet"], file.attrs["ImarisVersion"] = letters("ImarisDataSet"), letters("5.5.0")
        image = file.create_group("DataSetInfo/Image")
        image.attrs.update({a: letters(str(n)) for a, n in zip("ZYX", VOXELS.shape, strict=True)})
        image.attrs["Unit"] = letters(unit)
        for i, (n, step) in enumerate(zip(VOXELS.shape[::-1], (0.1, 0.12, 0.3), strict=True)):
            image.attrs[f"ExtMin{i}"], image.attrs[f"ExtMax{i}"] = letters("10"), letters(f"{10 + n * step:.6f}")
        for t in range(times):
            for c in range(channels):
                channel = file.create_group(f"DataSet/ResolutionLevel 0/TimePoint {t}/Channel {c}")
                channel.attrs.update(
                    {f"ImageSize{a}": letters(str(n)) for a, n in zip("ZYX", VOXELS.shape, strict=True)}
                )
                padded = np.pad(VOXELS + c, [(0, -n % 8) for n in VOXELS.shape])
                channel.create_dataset("Data", data=padded, chunks=(8, 8, 8), compression="gzip")
                channel["Histogram"] = np.zeros(256, np.uint64)
                file.require_group(f"DataSetInfo/Channel {c}").attrs["Name"] = letters(f"dye {c}")
    return str(folder / "a.ims")


def test_imaris_has_its_true_size_and_extent(tmp_path: Path) -> None:
    source = open_source(imaris(tmp_path))
    assert source.shape == (2, *VOXELS.shape)
    np.testing.assert_array_equal(all_of(source), np.stack([VOXELS, VOXELS + 1]))
    np.testing.assert_array_equal(source.read(Box((1, 2, 3), (2, 5, 4)))[1], VOXELS[1:3, 2:7, 3:7] + 1)
    assert source.spacing_um_zyx == pytest.approx((0.3, 0.12, 0.1), rel=1e-4)
    assert source.hints == {"description": "channels dye 0, dye 1"}


def test_imaris_in_other_units_and_with_time(tmp_path: Path) -> None:
    assert open_source(imaris(tmp_path, unit="nm")).spacing_um_zyx == pytest.approx((0.3e-3, 0.12e-3, 0.1e-3), rel=1e-4)
    assert "'furlong'" in open_source(imaris(tmp_path, unit="furlong")).spacing_note
    with pytest.raises(RescuesegError, match="3 time points"):
        open_source(imaris(tmp_path, times=3))
