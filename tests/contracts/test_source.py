"""One suite over every image format: the same voxels, shape, spacing and errors whatever the file."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rescueseg.errors import UnreadableVolumeError
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.volumes.image_layout import ImageLayout

Array = npt.NDArray[Any]
Writer = Callable[[Path, Array], str]
SPACING = (0.3, 0.12, 0.1)
ORIGIN = Box((0, 0, 0), (1, 1, 1))


def imagej(folder: Path, voxels: Array) -> str:
    meta = {"axes": "ZCYX" if voxels.ndim == 4 else "ZYX", "spacing": 0.3, "unit": "um"}
    data = voxels.swapaxes(0, 1) if voxels.ndim == 4 else voxels
    tifffile.imwrite(folder / "a.tif", data, imagej=True, resolution=(1 / 0.1, 1 / 0.12), metadata=meta)
    return str(folder / "a.tif")


def ome_tiff(folder: Path, voxels: Array) -> str:
    z, y, x = SPACING
    meta = {
        "axes": "CZYX" if voxels.ndim == 4 else "ZYX",
        "PhysicalSizeX": x * 1000,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": y,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": z,
    }
    tifffile.imwrite(folder / "a.ome.tif", voxels, compression="zlib", photometric="minisblack", metadata=meta)
    return str(folder / "a.ome.tif")


def nifti(folder: Path, voxels: Array, name: str = "a.nii") -> str:
    data = voxels.transpose(3, 2, 1, 0)[:, :, :, None] if voxels.ndim == 4 else voxels.transpose(2, 1, 0)
    image: Any = nibabel.Nifti1Image(data, np.diag([0.1, 0.12, 0.3, 1.0]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, folder / name)
    return str(folder / name)


def nifti_gz(folder: Path, voxels: Array) -> str:
    return nifti(folder, voxels, "a.nii.gz")


def nrrd_file(folder: Path, voxels: Array, encoding: str = "raw") -> str:
    header: dict[str, Any] = {"encoding": encoding}
    if voxels.ndim == 4:
        header |= {"kinds": ["list", "domain", "domain", "domain"], "spacings": [np.nan, 0.1, 0.12, 0.3]}
        header |= {"units": ["", "um", "um", "um"]}
        data = voxels.transpose(0, 3, 2, 1)
    else:
        header |= {"space": "left-posterior-superior", "space units": ["um"] * 3}
        header |= {"space directions": np.diag([0.1, -0.12, 0.3])}
        data = voxels.transpose(2, 1, 0)
    nrrd.write(str(folder / "a.nrrd"), data, header)
    return str(folder / "a.nrrd")


def nrrd_gzip(folder: Path, voxels: Array) -> str:
    return nrrd_file(folder, voxels, "gzip")


def hdf5(folder: Path, voxels: Array) -> str:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("other", data=np.zeros((2, 2, 2)))
        data = file.create_dataset("volumes/raw", data=voxels, chunks=True, compression="gzip")
        data.attrs["element_size_um"] = SPACING
        for dimension, letter in zip(data.dims, "czyx"[-voxels.ndim :], strict=True):
            dimension.label = letter
    return f"{folder / 'a.h5'}:volumes/raw"


def ome_zarr_04(folder: Path, voxels: Array) -> str:
    group = zarr.create_group(str(folder / "a.ome.zarr"), zarr_format=2)
    group.create_array("s0", data=voxels, chunks=(1,) * (voxels.ndim - 3) + (4, 4, 4))
    scale = [1.0] * (voxels.ndim - 3) + [0.3, 120.0, 0.1]
    units = {"z": "micrometer", "y": "nanometer", "x": "micrometer"}
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if voxels.ndim == 4 else []
    axes += [{"name": a, "type": "space", "unit": u} for a, u in units.items()]
    transform = [{"type": "scale", "scale": scale}]
    datasets = [{"path": "s0", "coordinateTransformations": transform}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]  # type: ignore[assignment]
    return str(folder / "a.ome.zarr")


def ome_zarr_05(folder: Path, voxels: Array) -> str:
    from rescueseg.volumes import ome_zarr

    array = ome_zarr.create_image(str(folder / "b.ome.zarr"), ImageLayout(voxels.shape, voxels.dtype, SPACING))
    array[...] = voxels
    ome_zarr.add_pyramid(str(folder / "b.ome.zarr"))
    return str(folder / "b.ome.zarr")


FORMATS: dict[str, Writer] = {
    "imagej": imagej,
    "ome_tiff": ome_tiff,
    "nifti": nifti,
    "nifti_gz": nifti_gz,
    "nrrd": nrrd_file,
    "nrrd_gzip": nrrd_gzip,
    "hdf5": hdf5,
    "ome_zarr_04": ome_zarr_04,
    "ome_zarr_05": ome_zarr_05,
}
STREAMED = set(FORMATS) - {"nifti_gz", "nrrd_gzip"}


@pytest.fixture(params=sorted(FORMATS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def voxels() -> Array:
    return np.random.default_rng(0).integers(0, 4000, (6, 9, 11)).astype(np.uint16)


def test_a_source_says_what_it_holds(name: str, tmp_path: Path, voxels: Array) -> None:
    source = open_source(FORMATS[name](tmp_path, voxels))
    assert source.shape == source.shape_zyx == (6, 9, 11)
    assert source.channels == 1
    assert source.dtype == np.uint16
    assert source.dtype.isnative
    assert source.spacing_um_zyx == pytest.approx(SPACING, rel=1e-5)
    assert source.chunked is (name in STREAMED)
    source.close()


@pytest.mark.parametrize("box", [Box((0, 0, 0), (6, 9, 11)), Box((2, 3, 4), (3, 5, 6)), Box((5, 8, 10), (1, 1, 1))])
def test_a_box_holds_the_voxels_written(name: str, tmp_path: Path, voxels: Array, box: Box) -> None:
    source = open_source(FORMATS[name](tmp_path, voxels))
    read = source.read(box)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, voxels[box.slices][np.newaxis])
    source.close()


def test_channels_come_first(name: str, tmp_path: Path, voxels: Array) -> None:
    two = np.stack([voxels, voxels[::-1] + 1])
    source = open_source(FORMATS[name](tmp_path, two))
    assert source.shape == (2, 6, 9, 11)
    assert source.channels == 2
    np.testing.assert_array_equal(source.read(Box((1, 2, 3), (4, 5, 6))), two[:, 1:5, 2:7, 3:9])
    assert source.spacing_um_zyx == pytest.approx(SPACING, rel=1e-5)
    source.close()


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.float32]),
        hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=7),
        elements=st.integers(0, 255),
    )
)
def test_any_small_volume_survives_the_round_trip(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: Array
) -> None:
    source = open_source(FORMATS[name](tmp_path_factory.mktemp("trip"), data))
    assert source.dtype == data.dtype
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), source.shape_zyx))[0], data)
    source.close()


def test_a_truncated_file_is_one_clear_error(name: str, tmp_path: Path, voxels: Array) -> None:
    path = FORMATS[name](tmp_path, np.tile(voxels, (3, 3, 3)))
    for file in [p for p in tmp_path.rglob("*") if p.is_file()]:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])

    def read_all() -> None:
        source = open_source(path)
        source.read(Box((0, 0, 0), source.shape_zyx))

    with pytest.raises(UnreadableVolumeError, match="cannot be read") as caught:
        read_all()
    assert caught.value.where == path
    assert caught.value.todo


def test_a_missing_file_is_one_clear_error(name: str, tmp_path: Path, voxels: Array) -> None:
    path = FORMATS[name](tmp_path, voxels)
    with pytest.raises(UnreadableVolumeError):
        open_source(path.replace(str(tmp_path), str(tmp_path / "elsewhere")))


def test_rubbish_under_a_known_name_is_one_clear_error(name: str, tmp_path: Path, voxels: Array) -> None:
    path = FORMATS[name](tmp_path, voxels)
    for file in [p for p in tmp_path.rglob("*") if p.is_file()]:
        file.write_bytes(gzip.compress(b"no image") if file.name.endswith(".gz") else b"no image at all")
    with pytest.raises(UnreadableVolumeError):
        open_source(path).read(ORIGIN)
