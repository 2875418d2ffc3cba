"""What single formats know beyond the contract: axes, units, dataset names, and saying so when they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
import zarr

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.units import to_um

VOXELS = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
ALL = Box((0, 0, 0), (4, 5, 6))


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (2.0, "nm", 0.002),
        (1.0, "µm", 1.0),
        (1.0, "micron", 1.0),
        (0.5, " MM ", 500.0),
        (1.0, "pixel", None),
        (1, "", None),
    ],
)
def test_units_become_micrometre(value: float, unit: str, expected: float | None) -> None:
    assert to_um(value, unit) == (None if expected is None else pytest.approx(expected))


def test_a_plain_tiff_has_no_spacing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, photometric="minisblack")
    assert open_source(str(tmp_path / "a.tif")).spacing_um_zyx is None


def test_an_imagej_tiff_in_pixels_has_no_spacing_and_says_why(tmp_path: Path) -> None:
    meta = {"axes": "ZYX", "spacing": 2.0, "unit": "pixel"}
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, imagej=True, resolution=(1, 1), metadata=meta)
    source = open_source(str(tmp_path / "a.tif"))
    assert source.spacing_um_zyx is None
    assert "2 × 1 × 1" in source.spacing_note
    assert "pixel" in source.spacing_note


def test_a_compressed_tiff_is_read_plane_by_plane(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, compression="zlib", photometric="minisblack")
    source = open_source(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(source.read(Box((2, 0, 0), (1, 5, 6)))[0], VOXELS[2:3])


def test_a_big_endian_tiff_is_read_in_native_order(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS.astype(">u2") * 300, byteorder=">", photometric="minisblack")
    source = open_source(str(tmp_path / "a.tif"))
    assert source.read(ALL).dtype.isnative
    np.testing.assert_array_equal(source.read(ALL)[0], VOXELS.astype(np.uint16) * 300)


def test_a_colour_tiff_has_channels(tmp_path: Path) -> None:
    colour = np.stack([VOXELS, VOXELS + 1, VOXELS + 2], axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb")
    np.testing.assert_array_equal(open_source(str(tmp_path / "a.tif")).read(ALL), np.moveaxis(colour, -1, 0))


def test_one_plane_is_no_volume(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS[0])
    with pytest.raises(InvalidVolumeError, match="not a 3D image"):
        open_source(str(tmp_path / "a.tif"))


def test_a_time_series_is_refused_with_advice(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(InvalidVolumeError, match="--axes, z in the place of t"):
        open_source(str(tmp_path / "a.tif"))


def test_a_time_axis_of_one_is_dropped_and_a_longer_one_refused(tmp_path: Path) -> None:
    image: Any = nibabel.Nifti1Image(VOXELS.T[..., None], np.eye(4))
    nibabel.save(image, tmp_path / "one.nii")
    np.testing.assert_array_equal(open_source(str(tmp_path / "one.nii")).read(ALL)[0], VOXELS)
    image = nibabel.Nifti1Image(np.stack([VOXELS.T] * 2, axis=-1), np.eye(4))
    nibabel.save(image, tmp_path / "two.nii")
    with pytest.raises(InvalidVolumeError, match="2 time points"):
        open_source(str(tmp_path / "two.nii"))


def test_nifti_without_units_has_no_spacing_and_says_why(tmp_path: Path) -> None:
    image: Any = nibabel.Nifti1Image(VOXELS.T, np.diag([0.5, 0.5, 2, 1]))
    image.header["xyzt_units"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    source = open_source(str(tmp_path / "a.nii"))
    assert source.spacing_um_zyx is None
    assert "2 × 0.5 × 0.5" in source.spacing_note


def test_nifti_millimetres_become_micrometres(tmp_path: Path) -> None:
    image: Any = nibabel.Nifti1Image(VOXELS.T, np.diag([0.5, 0.25, 2, 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert open_source(str(tmp_path / "a.nii.gz")).spacing_um_zyx == (2000, 250, 500)


def test_a_detached_nrrd_is_read(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "a.nhdr"), VOXELS.T, {"spacings": [1, 1, 2], "units": ["um"] * 3}, detached_header=True)
    source = open_source(str(tmp_path / "a.nhdr"))
    assert source.spacing_um_zyx == (2, 1, 1)
    np.testing.assert_array_equal(source.read(ALL)[0], VOXELS)


def test_nrrd_without_units_has_no_spacing(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), VOXELS.T, {"spacings": [1, 1, 2]})
    source = open_source(str(tmp_path / "a.nrrd"))
    assert source.spacing_um_zyx is None
    assert "2 × 1 × 1" in source.spacing_note


def test_the_only_dataset_of_an_hdf5_file_need_not_be_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["inner/raw"] = VOXELS
        file["table"] = np.zeros(3)
    np.testing.assert_array_equal(open_source(str(tmp_path / "a.h5")).read(ALL)[0], VOXELS)


def test_several_datasets_are_listed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["label"] = VOXELS, VOXELS
    with pytest.raises(UnreadableVolumeError, match="label, raw"):
        open_source(str(tmp_path / "a.h5"))
    with pytest.raises(UnreadableVolumeError, match="no dataset 'row'"):
        open_source(f"{tmp_path / 'a.h5'}:row")


def test_ilastik_axistags_are_obeyed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = VOXELS.transpose(2, 1, 0)[..., None]
        file["data"].attrs["axistags"] = json.dumps({"axes": [{"key": k} for k in "xyzc"]})
    np.testing.assert_array_equal(open_source(f"{tmp_path / 'a.h5'}:data").read(ALL)[0], VOXELS)


def test_four_axes_without_names_and_no_short_one_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros((9, 9, 9, 9))
    with pytest.raises(InvalidVolumeError):
        open_source(f"{tmp_path / 'a.h5'}:data")


def test_a_zarr_group_that_is_no_image_lists_its_arrays(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    group.create_array("raw", data=VOXELS)
    with pytest.raises(InvalidVolumeError, match="Name an array: raw"):
        open_source(str(tmp_path / "a.zarr"))
    np.testing.assert_array_equal(open_source(str(tmp_path / "a.zarr" / "raw")).read(ALL)[0], VOXELS)


@pytest.mark.parametrize("voxels", [np.zeros((2, 2, 2), complex), np.zeros((0, 4, 4), np.uint8)])
def test_complex_and_empty_arrays_are_refused(tmp_path: Path, voxels: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = voxels
    with pytest.raises(InvalidVolumeError):
        open_source(f"{tmp_path / 'a.h5'}:data")


def test_unknown_formats_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"")
    with pytest.raises(UnreadableVolumeError, match="format is not known"):
        open_source(str(tmp_path / "a.docx"))
    with pytest.raises(UnreadableVolumeError, match="no such file"):
        open_source(str(tmp_path / "b.docx"))
