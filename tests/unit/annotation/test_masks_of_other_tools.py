"""Masks as other programs save them: in two files, as text, as plain arrays, turned, scaled; or refused in one line."""

from __future__ import annotations

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

from rescueseg.annotation.formats import read_labels
from rescueseg.annotation.formats.base import Frame
from rescueseg.annotation.formats.omezarr import OmeZarr
from rescueseg.errors import LabelError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels

Array = npt.NDArray[Any]
FRAME = Frame("pool-0001-0123456789abcdef", Box((2, 30, 400), (3, 4, 5)), (0.4, 0.2, 0.1), ("cell", "vessel"))
MASK = np.random.default_rng(5).integers(0, 3, (3, 4, 5)).astype(np.uint8)
STEPS = np.array([0.1, 0.2, 0.4])
ORIGIN = STEPS * [400, 30, 2]


def affine_um() -> Array:
    matrix = np.diag([*STEPS, 1.0])
    matrix[:3, 3] = ORIGIN
    return matrix


def nifti(path: Path) -> Path:
    nib: Any = nibabel
    image = nib.Nifti1Image(MASK.T, affine_um())
    image.header.set_xyzt_units("micron")
    nib.save(image, path)
    return path


def scaled_nifti(path: Path) -> Path:
    """A mask that a tool divided by 127 and stored with the factor in its header."""
    header = nibabel.load(nifti(path)).header  # type: ignore[attr-defined]
    header.set_data_dtype(np.int16)
    header.set_slope_inter(1 / 127, 0)
    header["vox_offset"] = 352
    with path.open("wb") as file:
        header.write_to(file)
        file.write((MASK.astype("<i2") * 127).tobytes())
    return path


def nrrd_file(path: Path, **options: Any) -> Path:
    header = {"space": "RAS", "space directions": np.diag(STEPS), "space origin": ORIGIN, "space units": ["um"] * 3}
    nrrd.write(str(path), MASK.T, {**header, **options}, detached_header=path.suffix == ".nhdr")
    return path


def with_skipped_bytes(path: Path) -> Path:
    head = (
        "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nbyte skip: 9\n"
        "space: RAS\nspace directions: (0.1,0,0) (0,0.2,0) (0,0,0.4)\nspace origin: (40,6,0.8)\n"
        'space units: "um" "um" "um"\n\n'
    )
    path.write_bytes(head.encode() + b"\x07" * 9 + MASK.tobytes())
    return path


def tif(path: Path, **options: Any) -> Path:
    tifffile.imwrite(path, MASK, photometric="minisblack", **options)
    return path


def stored_x_first(path: Path) -> Path:
    tifffile.imwrite(path, np.ascontiguousarray(MASK.T), photometric="minisblack", metadata={"axes": "XYZ"})
    return path


def plain_zarr(path: Path, array: Array = MASK, names: list[str] | None = None) -> Path:
    zarr.create_array(str(path), data=np.ascontiguousarray(array), chunks=array.shape, dimension_names=names)
    return path


def ome_zarr(path: Path, axes: str) -> Path:
    """A label image whose axes have another order, or some of length one before them."""
    units = [{"name": a, "type": "space", "unit": "micrometer"} if a in "zyx" else {"name": a} for a in axes]
    sizes = dict(zip("xyz", STEPS, strict=True))
    first = dict(zip("xyz", ORIGIN, strict=True))
    steps = [
        {"type": "scale", "scale": [float(sizes.get(a, 1)) for a in axes]},
        {"type": "translation", "translation": [float(first.get(a, 0)) for a in axes]},
    ]
    extra = [a for a in axes if a not in "zyx"]
    array = MASK.transpose(["zyx".index(a) for a in axes if a in "zyx"])
    array = np.expand_dims(array, [axes.index(a) for a in extra]) if extra else array
    group = zarr.create_group(str(path), zarr_format=3)
    group.create_array("0", data=np.ascontiguousarray(array), chunks=array.shape)
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": units, "datasets": datasets}]}  # type: ignore[assignment]
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.hdr", nifti), ("m.img", nifti), ("m.nii", nifti), ("m.nii.gz", nifti), ("m.nii", scaled_nifti),
        ("m.nrrd", nrrd_file), ("m.nhdr", lambda p: nrrd_file(p, encoding="raw")),
        ("m.nhdr", lambda p: nrrd_file(p, encoding="gzip")), ("m.nrrd", lambda p: nrrd_file(p, encoding="ascii")),
        ("m.nrrd", lambda p: nrrd_file(p, encoding="bzip2")), ("m.nrrd", with_skipped_bytes),
        ("m.btf", tif), ("m.tif", lambda p: tif(p, bigtiff=True)), ("m.TIF", lambda p: tif(p, compression="zlib")),
        ("m.tif", lambda p: tif(p, byteorder=">")), ("m.zarr", plain_zarr), ("m.tif", stored_x_first),
        ("m.zarr", lambda p: plain_zarr(p, MASK.T, ["x", "y", "z"])),
        ("m.zarr", lambda p: plain_zarr(p, MASK.swapaxes(1, 2), ["z", "x", "y"])),
        ("m.zarr", lambda p: plain_zarr(p, MASK[None], ["channel", "z", "y", "x"])),
        ("m.zarr", lambda p: plain_zarr(p, MASK, ["depth", "row", "column"])),
        ("m.zarr", lambda p: plain_zarr(p, MASK[..., None])),
        ("m.ome.zarr", lambda p: ome_zarr(p, "zyx")), ("m.ome.zarr", lambda p: ome_zarr(p, "xyz")),
        ("m.ome.zarr", lambda p: ome_zarr(p, "yzx")), ("m.ome.zarr", lambda p: ome_zarr(p, "tczyx")),
        ("m.ome.zarr", lambda p: ome_zarr(p, "xyzc")),
    ],
)  # fmt: skip
def test_masks_come_back_voxel_by_voxel(tmp_path: Path, name: str, write: Callable[[Path], Path]) -> None:
    np.testing.assert_array_equal(read_labels(write(tmp_path / name), FRAME).classes, MASK)


def two_images(path: Path) -> Path:
    with tifffile.TiffWriter(path) as writer:
        writer.write(MASK, photometric="minisblack", contiguous=False)
        writer.write(MASK * 0, photometric="minisblack", contiguous=False)
    return path


def painted_beside(path: Path) -> Path:
    """The mask that was handed out lies untouched beside another that somebody painted."""
    OmeZarr().write_labels(path, PatchLabels(MASK * 0), FRAME)
    ome_zarr(path / "labels" / "nuclei", "zyx")
    return path


def elsewhere(path: Path) -> Path:
    nrrd_file(path, encoding="raw")
    path.write_text(path.read_text().replace("data file: m.raw", "data file: ../m.raw"))
    return path


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        ("m.tif", two_images, "2 images"),
        ("m.tif", lambda p: tif(p, extratags=[(274, "H", 1, 3, True)], metadata=None), "Orientation tag is 3"),
        ("m.ome.zarr", painted_beside, "annotation, nuclei"),
        ("m.nhdr", elsewhere, "data file"),
        ("m.zarr", lambda p: plain_zarr(p, MASK[None], ["a", "b", "y", "x"]), "axes"),
        ("m.zarr", lambda p: plain_zarr(p, MASK[:2]), "shape"),
        ("m.png", lambda p: p, "no label file"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, name: str, write: Callable[[Path], Path], told: str) -> None:
    with pytest.raises(LabelError, match=told) as caught:
        read_labels(write(tmp_path / name), FRAME)
    assert caught.value.todo


def test_the_painted_label_image_is_taken_by_its_path(tmp_path: Path) -> None:
    path = painted_beside(tmp_path / "m.ome.zarr") / "labels" / "nuclei"
    np.testing.assert_array_equal(read_labels(path, FRAME).classes, MASK)
