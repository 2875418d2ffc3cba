"""Odd files as real laboratories have them: read as the arrays that were written, refused, or said aloud."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import nrrd
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import RescuesegError
from rescueseg.geometry import Box
from rescueseg.image_files.label_files import Grid, open_labels
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.source import Statement
from rescueseg.volumes import VolumeImport, import_volume, open_image, open_truth

Array = npt.NDArray[Any]
RNG = np.random.default_rng(11)
CUBE = RNG.integers(1, 200, (10, 10, 10)).astype(np.uint8)
TRUTH = (RNG.random((10, 10, 10)) > 0.6).astype(np.uint8)
SPACING = (0.05, 0.01, 0.01)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign.create(str(tmp_path / "c"), check_config({"name": "odd", "classes": ["a"]}))


def whole(path: Path, said: Statement | None = None) -> tuple[Array, tuple[str, ...]]:
    source = open_source(str(path), said)
    try:
        return source.read(Box((0, 0, 0), source.shape_zyx))[0], source.remarks
    finally:
        source.close()


def nifti(path: Path, xyz: Array, matrix: Array | None = None, unit: str = "micron") -> Path:
    nib: Any = nibabel
    image = nib.Nifti1Image(xyz, np.diag([0.01, 0.01, 0.05, 1.0]) if matrix is None else matrix)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def write_tif(path: Path, array: Array) -> Path:
    tifffile.imwrite(path.with_suffix(".tif"), array, photometric="minisblack")
    return path.with_suffix(".tif")


def write_nii(path: Path, array: Array) -> Path:
    return nifti(path.with_suffix(".nii"), array)


def write_nrrd(path: Path, array: Array) -> Path:
    nrrd.write(str(path.with_suffix(".nrrd")), array)
    return path.with_suffix(".nrrd")


def write_h5(path: Path, array: Array) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["raw"] = array
    return path.with_suffix(".h5")


@pytest.mark.parametrize("write", [write_tif, write_nii, write_nrrd, write_h5])
@pytest.mark.parametrize("axes", ["xyz", "yzx", "zyx"])
def test_axes_said_of_an_image_hold_for_its_truth(
    campaign: Campaign, tmp_path: Path, write: Callable[[Path, Array], Path], axes: str
) -> None:
    order = ["zyx".index(a) for a in axes]
    image = write(tmp_path / "i", np.ascontiguousarray(CUBE.transpose(order)))
    truth = write(tmp_path / "t", np.ascontiguousarray(TRUTH.transpose(order)))
    import_volume(campaign, VolumeImport(str(image), truth=str(truth), spacing=SPACING, said=Statement(axes=axes)))
    np.testing.assert_array_equal(open_image(campaign.volumes, "i")[0], CUBE)
    np.testing.assert_array_equal(open_truth(campaign.volumes, "i")[...], TRUTH)


def test_channels_said_of_an_image_are_not_asked_of_its_truth(campaign: Campaign, tmp_path: Path) -> None:
    two = np.stack([CUBE, CUBE[::-1]])
    image, truth = write_h5(tmp_path / "i", two), write_h5(tmp_path / "t", TRUTH)
    said = Statement(axes="czyx")
    import_volume(campaign, VolumeImport(str(image), truth=str(truth), spacing=SPACING, said=said))
    np.testing.assert_array_equal(open_image(campaign.volumes, "i")[...], two)
    np.testing.assert_array_equal(open_truth(campaign.volumes, "i")[...], TRUTH)


def test_sizes_follow_the_axes_that_a_person_says(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", CUBE, np.diag([0.05, 0.02, 0.01, 1.0]))
    source = open_source(str(path), Statement(axes="zyx"))
    assert source.spacing_um_zyx == pytest.approx((0.05, 0.02, 0.01))
    assert source.placement is None
    source.close()


def damaged_gzip(path: Path) -> Path:
    nifti(path / "a.nii.gz", np.tile(CUBE, (3, 3, 3)))
    content = bytearray((path / "a.nii.gz").read_bytes())
    content[-6] ^= 4  # in the checksum: every voxel is right, and nothing says so any more
    (path / "a.nii.gz").write_bytes(content)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(bytes(content))
    return path / "a.nii.gz"


def cut_gzip(path: Path) -> Path:
    damaged_gzip(path)
    content = (path / "a.nii.gz").read_bytes()
    (path / "a.nii.gz").write_bytes(content[:-9])
    return path / "a.nii.gz"


def turned_plane(path: Path) -> Path:
    tifffile.imwrite(path / "a.tif", CUBE, extratags=[(274, "H", 1, 3, True)], metadata=None, photometric="minisblack")
    return path / "a.tif"


def planes_of_two_shades(path: Path) -> Path:
    (path / "p").mkdir()
    for z, plane in enumerate(CUBE):
        tifffile.imwrite(path / "p" / f"s{z}.tif", plane, photometric="miniswhite" if z % 2 else "minisblack")
    return path / "p"


def lost_source(path: Path) -> Path:
    with h5py.File(path / "there.h5", "w") as file:
        file["r"] = CUBE
    layout = h5py.VirtualLayout((20, 10, 10), "u1")
    layout[:10] = h5py.VirtualSource("there.h5", "r", CUBE.shape)
    layout[10:] = h5py.VirtualSource("gone.h5", "r", CUBE.shape)
    with h5py.File(path / "v.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    return path / "v.h5"


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (damaged_gzip, "cannot be read"),
        (cut_gzip, "cannot be read"),
        (turned_plane, "Orientation tag is 3"),
        (planes_of_two_shades, "miniswhite"),
        (lost_source, r"gone\.h5, which is not there"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, write: Callable[[Path], Path], told: str) -> None:
    with pytest.raises(RescuesegError, match=told) as caught:
        whole(write(tmp_path))
    assert caught.value.todo


def test_a_virtual_dataset_whose_sources_are_there_is_read(tmp_path: Path) -> None:
    path = lost_source(tmp_path)
    with h5py.File(tmp_path / "gone.h5", "w") as file:
        file["r"] = CUBE[::-1]
    np.testing.assert_array_equal(whole(path)[0], np.concatenate([CUBE, CUBE[::-1]]))


SHEARED = np.array([[0.01, 0, 0.03, 0], [0, 0.01, 0, 0], [0, 0, 0.05, 0], [0, 0, 0, 1.0]])


def sheared_nrrd(path: Path) -> Path:
    place = {"space": "LPS", "space directions": SHEARED[:3, :3].T, "space units": ["um"] * 3}
    nrrd.write(str(path / "a.nrrd"), CUBE, place)
    return path / "a.nrrd"


def no_step(path: Path) -> Path:
    nib: Any = nibabel
    image = nib.Nifti1Image(CUBE, None)
    image.header.set_xyzt_units("micron")
    nib.save(image, path / "a.nii")
    content = bytearray((path / "a.nii").read_bytes())
    content[88:92] = np.float32(0).tobytes()
    (path / "a.nii").write_bytes(content)
    return path / "a.nii"


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda p: nifti(p / "a.nii", CUBE, SHEARED), "not at right angles"),
        (sheared_nrrd, "not at right angles"),
        (no_step, "says 0 × 1 × 1"),
    ],
)
def test_sizes_that_are_none_are_not_taken(tmp_path: Path, write: Callable[[Path], Path], told: str) -> None:
    source = open_source(str(write(tmp_path)))
    assert source.spacing_um_zyx is None
    assert told in source.spacing_note
    source.close()


def test_the_finest_level_is_read_wherever_it_is_listed(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    group.create_array("0", data=CUBE[::2, ::2, ::2])
    group.create_array("1", data=CUBE)
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = [
        {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": [s, s, s]}]}
        for i, s in enumerate((2.0, 1.0))
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]  # type: ignore[assignment]
    voxels, remarks = whole(tmp_path / "a.zarr")
    np.testing.assert_array_equal(voxels, CUBE)
    assert "the finest, though not the first" in remarks[0]


def test_labels_of_another_voxel_size_are_refused(tmp_path: Path) -> None:
    def ome(name: str, array: Array, um: float) -> str:
        size = {f"PhysicalSize{a}": um for a in "XYZ"}
        tifffile.imwrite(tmp_path / name, array, metadata={"axes": "ZYX", **size}, ome=True)
        return str(tmp_path / name)

    image = open_source(ome("i.ome.tif", CUBE, 0.1))
    with pytest.raises(RescuesegError, match=r"voxels of 0\.2 × 0\.2 × 0\.2 µm, their image of 0\.1"):
        open_labels(ome("t.ome.tif", TRUTH, 0.2), Grid.of(image), {"a": 1})
    open_labels(ome("s.ome.tif", TRUTH, 1.0), Grid.of(image), {"a": 1}).close()  # 1 is what nobody stated
    image.close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"photometric": "palette", "colormap": np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))},
            "table of colours",
        ),
        ({"photometric": "miniswhite"}, "MinIsWhite"),
    ],
)
def test_numbers_that_are_no_grey_values_are_said(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", CUBE, metadata=None, **options)
    voxels, remarks = whole(tmp_path / "a.tif")
    np.testing.assert_array_equal(voxels, CUBE)
    assert told in remarks[0]


@pytest.mark.parametrize("offset", [1e7, 1e9])
def test_values_that_single_precision_cannot_tell_apart(campaign: Campaign, tmp_path: Path, offset: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RNG.random((10, 10, 10)) + offset, photometric="minisblack")
    with pytest.raises(RescuesegError, match="too close together for float32"):
        import_volume(campaign, VolumeImport(str(tmp_path / "a.tif"), spacing=SPACING))


@pytest.mark.parametrize("position", [3, -1])
def test_a_position_that_there_is_not(tmp_path: Path, position: int) -> None:
    with pytest.raises(RescuesegError, match=f"no position {position}"):
        whole(write_tif(tmp_path / "a", CUBE), Statement(position=position))
