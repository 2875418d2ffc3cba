"""TIFF against tifffile's own reading of every page, and against the rules of ImageJ, OME, LSM and Micro-Manager."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from rescueseg.errors import RescuesegError
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.source import Statement

Array = npt.NDArray[Any]
RNG = np.random.default_rng(7)
VOXELS = RNG.integers(1, 4000, (6, 9, 11)).astype(np.uint16)
PLANES = (1 / 0.1, 1 / 0.12)
"""Pixels per micrometre along x and y."""


def read(path: str, said: Statement | None = None) -> Array:
    source = open_source(path, said)
    try:
        return source.read(Box((0, 0, 0), source.shape_zyx))
    finally:
        source.close()


def refused(path: str, said: Statement | None = None) -> str:
    with pytest.raises(RescuesegError) as caught:
        read(path, said)
    assert caught.value.todo
    return str(caught.value)


def pages(path: str) -> Array:
    """Every page of a file as tifffile reads it by itself, one at a time."""
    with tifffile.TiffFile(path) as tif:
        return np.stack([tif.pages[i].asarray() for i in range(len(tif.pages))])


def imagej(path: Path, voxels: Array = VOXELS, **meta: Any) -> str:
    meta = {"axes": "ZYX", "spacing": 0.3, "unit": "um"} | meta
    meta = {k: v for k, v in meta.items() if v is not None}
    tifffile.imwrite(path, voxels, imagej=True, resolution=PLANES, metadata=meta)
    return str(path)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_voxel_type_is_read(tmp_path: Path, kind: str, order: str) -> None:
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, VOXELS.astype(kind), byteorder=order)  # type: ignore[arg-type]
    found = read(path)
    np.testing.assert_array_equal(found[0], pages(path))
    assert found.dtype == np.dtype(kind)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"}, {"compression": "zlib", "predictor": True}, {"compression": "lzw"},
        {"compression": "zstd"}, {"tile": (16, 16)}, {"tile": (16, 16), "compression": "zlib"}, {"rowsperstrip": 2},
        {"bigtiff": True}, {"contiguous": False},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.tif", "a.TIFF", "a.btf"])
def test_however_the_planes_are_stored(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    path = str(tmp_path / name)
    tifffile.imwrite(path, VOXELS, **options)
    np.testing.assert_array_equal(read(path)[0], pages(path))


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({}, (0.3, 0.12, 0.1)),
        ({"unit": "micron"}, (0.3, 0.12, 0.1)),
        ({"unit": "\\u00B5m"}, (0.3, 0.12, 0.1)),
        ({"unit": "\\u03BCm"}, (0.3, 0.12, 0.1)),
        ({"unit": "nm"}, (0.0003, 0.00012, 0.0001)),
        ({"unit": "mm"}, (300.0, 120.0, 100.0)),
        ({"unit": "cm"}, (3000.0, 1200.0, 1000.0)),
        ({"unit": "inch"}, (7620.0, 3048.0, 2540.0)),
        ({"unit": "thou"}, (7.62, 3.048, 2.54)),
        ({"unit": "\\u00C5"}, (3e-5, 1.2e-5, 1e-5)),
        ({"spacing": 300, "zunit": "nm"}, (0.3, 0.12, 0.1)),
        ({"yunit": "nm"}, (0.3, 0.00012, 0.1)),
        ({"zunit": "mm", "yunit": "nm"}, (300.0, 0.00012, 0.1)),
        ({"spacing": None}, (1.0, 0.12, 0.1)),
        ({"spacing": -0.3}, (0.3, 0.12, 0.1)),
        ({"unit": "pixel"}, None),
        ({"unit": None}, None),
        ({"unit": "furlong"}, None),
        ({"zunit": "pixel"}, None),
    ],
    ids=str,
)
def test_imagej_sizes_by_the_rules_of_imagej(
    tmp_path: Path, meta: dict[str, Any], expected: tuple[float, float, float] | None
) -> None:
    source = open_source(imagej(tmp_path / "a.tif", **meta))
    assert source.spacing_um_zyx == (None if expected is None else pytest.approx(expected, rel=1e-4))
    assert bool(source.remarks) is ("spacing" in meta and meta["spacing"] is None)  # the step of 1 is nowhere written
    source.close()


@pytest.mark.parametrize(
    ("meta", "expected", "dtype"),
    [
        ({"cf": 0, "c0": -32768, "c1": 1}, VOXELS.astype(int) - 32768, "int16"),
        ({"cf": 0, "c0": 5, "c1": 2}, VOXELS.astype(int) * 2 + 5, "uint32"),
        ({"cf": 0, "c0": 0, "c1": 0.5}, VOXELS * 0.5, "float32"),
        ({"cf": 20}, VOXELS, "uint16"),
        ({"cf": 3, "c0": 1, "c1": 2}, VOXELS, "uint16"),
    ],
    ids=str,
)
def test_imagej_grey_values_are_those_that_imagej_shows(
    tmp_path: Path, meta: dict[str, Any], expected: Array, dtype: str
) -> None:
    path = imagej(tmp_path / "a.tif", **meta)
    source = open_source(path)
    assert source.dtype == dtype
    np.testing.assert_allclose(read(path)[0], expected)
    assert bool(source.remarks) is (meta["cf"] != 20)
    source.close()


def ome_parts(folder: Path, files: int, delete: int | None = None) -> str:
    """Write a stack of 6 planes over several OME-TIFF files, as multi-file acquisitions are."""
    per = 6 // files
    names = [f"a_{i}.ome.tif" for i in range(files)]
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="{z % per}" PlaneCount="1"><UUID FileName="{names[z // per]}">urn:uuid:{z // per}</UUID>'
        "</TiffData>"
        for z in range(6)
    )
    for i, name in enumerate(names):
        text = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{i}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
            'SizeX="11" SizeY="9" SizeZ="6" SizeC="1" SizeT="1" PhysicalSizeX="0.1" PhysicalSizeY="0.12" '
            f'PhysicalSizeZ="0.3"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
        )
        tifffile.imwrite(
            folder / name, VOXELS[i * per : (i + 1) * per], description=text, metadata=None, photometric="minisblack"
        )
    if delete is not None:
        (folder / names[delete]).unlink()
    return str(folder / names[0 if delete != 0 else 1])


def test_the_files_of_a_series_are_read_together(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(ome_parts(tmp_path, 3))[0], VOXELS)


@pytest.mark.parametrize(("files", "delete", "missing"), [(2, 1, 3), (3, 1, 2), (6, 5, 1), (3, 0, 2)])
def test_files_of_a_series_that_are_not_there(tmp_path: Path, files: int, delete: int, missing: int) -> None:
    assert f"{missing} of 6 planes are not there" in refused(ome_parts(tmp_path, files, delete))


def cut_description(path: Path) -> str:
    """An OME file whose metadata speak of two planes more than it holds."""
    tifffile.imwrite(path, VOXELS, metadata={"axes": "ZYX"}, ome=True)
    text = str(tifffile.tiffcomment(path))
    tifffile.tiffcomment(path, text.replace('SizeZ="6"', 'SizeZ="8"').replace('PlaneCount="6"', 'PlaneCount="8"'))
    return str(path)


def two_stacks(path: Path) -> str:
    with tifffile.TiffWriter(path) as writer:
        writer.write(VOXELS, contiguous=False, metadata={"axes": "ZYX"})
        writer.write(VOXELS[::-1], contiguous=False, metadata={"axes": "ZYX"})
    return str(path)


def odd_last(path: Path, **options: Any) -> str:
    with tifffile.TiffWriter(path) as writer:
        for plane in VOXELS[:-1]:
            writer.write(plane, metadata=None, contiguous=False)
        last = VOXELS[-1][: options.pop("rows", 9)]
        writer.write(last, metadata=None, contiguous=False, **options)
    return str(path)


def imagej_odd_plane(path: Path) -> str:
    """ImageJ says six planes; the fourth is smaller."""
    text = "ImageJ=1.54f\nimages=6\nslices=6\nunit=um\nspacing=0.3\n"
    with tifffile.TiffWriter(path) as writer:
        for z, plane in enumerate(VOXELS):
            data = plane[:7] if z == 3 else plane
            writer.write(data, metadata=None, contiguous=False, description=text if z == 0 else None, resolution=PLANES)
    return str(path)


def imagej_too_many(path: Path) -> str:
    text = "ImageJ=1.54f\nimages=4\nslices=4\nunit=um\nspacing=0.3\n"
    with tifffile.TiffWriter(path) as writer:
        for z, plane in enumerate(VOXELS):
            writer.write(
                plane, metadata=None, contiguous=False, description=text if z == 0 else None, resolution=PLANES
            )
    return str(path)


def imagej_too_few(path: Path) -> str:
    text = "ImageJ=1.54f\nimages=9\nslices=9\nunit=um\nspacing=0.3\n"
    with tifffile.TiffWriter(path) as writer:
        for z, plane in enumerate(VOXELS):
            writer.write(
                plane, metadata=None, contiguous=False, description=text if z == 0 else None, resolution=PLANES
            )
    return str(path)


def companion(path: Path) -> str:
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<BinaryOnly MetadataFile="all.companion.ome" UUID="urn:uuid:2"/></OME>'
    )
    tifffile.imwrite(path, VOXELS, description=text, metadata=None)
    return str(path)


def halved(path: Path) -> str:
    tifffile.imwrite(path, np.tile(VOXELS, (4, 4, 4)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return str(path)


def plain(path: Path, shape: tuple[int, ...], axes: str | None = None) -> str:
    meta = {"axes": axes} if axes else None
    tifffile.imwrite(path, np.zeros(shape, np.uint8), metadata=meta, photometric="minisblack")
    return str(path)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (cut_description, "2 of 8 planes are not there"),
        (two_stacks, "2 images"),
        (lambda p: odd_last(p, rows=7), "2 images"),
        (lambda p: odd_last(p, compression="zlib"), "2 images"),
        (imagej_odd_plane, "plane 3"),
        (imagej_too_many, "6 planes, its metadata speak of 4"),
        (imagej_too_few, "3 of 9 planes are not there"),
        (companion, "all.companion.ome"),
        (halved, "cannot be read"),
        (lambda p: plain(p, (2, 3, 9, 11), "QQYX"), "--axes"),
        (lambda p: plain(p, (4, 9, 11), "TYX"), "--axes, z in the place of t"),
        (lambda p: plain(p, (4, 9, 11), "CYX"), "--axes, z in the place of c"),
        (lambda p: plain(p, (9, 11)), "--slices"),
        (lambda p: plain(p, (2, 4, 9, 11), "TZYX"), "2 time points"),
        (lambda p: str((p.write_bytes(b"") and p) or p), "cannot be read"),
        (lambda p: str((p.write_bytes(b"II*\0") and p) or p), "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_not_one_whole_stack_is_refused(tmp_path: Path, write: Callable[[Path], str], told: str) -> None:
    assert told in refused(write(tmp_path / "a.tif"))


def test_planes_written_one_by_one_are_one_stack(tmp_path: Path) -> None:
    path = odd_last(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(path)[0], pages(path))


def test_the_image_that_a_person_names_is_read(tmp_path: Path) -> None:
    path = two_stacks(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(path, Statement(series=1))[0], VOXELS[::-1])
    assert "no image 2" in refused(path, Statement(series=2))


def test_the_only_stack_beside_an_overview_is_taken_and_said(tmp_path: Path) -> None:
    path = str(tmp_path / "a.ome.tif")
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(VOXELS[0, ::2, ::2], metadata={"axes": "YX", "PhysicalSizeX": 9.0, "PhysicalSizeY": 9.0})
        size = {"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.12, "PhysicalSizeZ": 0.3}
        writer.write(VOXELS, metadata={"axes": "ZYX", **size})
    source = open_source(path)
    assert source.spacing_um_zyx == pytest.approx((0.3, 0.12, 0.1))  # of its own image, not of the first
    assert "image 1 of 2" in source.remarks[0]
    np.testing.assert_array_equal(read(path)[0], VOXELS)
    source.close()


@pytest.mark.parametrize(
    ("shape", "axes", "stated", "expected"),
    [
        ((6, 9, 11), "TYX", "zyx", VOXELS[np.newaxis]),
        ((6, 9, 11), "CYX", "zyx", VOXELS[np.newaxis]),
        ((6, 9, 11), None, "xyz", VOXELS.T[np.newaxis]),
        ((2, 3, 9, 11), "QQYX", "czyx", VOXELS.reshape(2, 3, 9, 11)),
        ((2, 3, 9, 11), "QQYX", "zcyx", VOXELS.reshape(2, 3, 9, 11).swapaxes(0, 1)),
    ],
)
def test_axes_that_a_person_states(
    tmp_path: Path, shape: tuple[int, ...], axes: str | None, stated: str, expected: Array
) -> None:
    path = str(tmp_path / "a.tif")
    meta = {"axes": axes} if axes else None
    tifffile.imwrite(path, VOXELS.reshape(shape), metadata=meta, photometric="minisblack")
    np.testing.assert_array_equal(read(path, Statement(axes=stated)), expected)


@pytest.mark.parametrize("stated", ["zy", "zyxx", "zyxct"])
def test_axes_that_do_not_fit_are_refused(tmp_path: Path, stated: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS)
    assert "do not fit" in refused(str(tmp_path / "a.tif"), Statement(axes=stated))
