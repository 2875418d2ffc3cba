from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.errors import InvalidVolumeError
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.image_layout import ImageLayout, choose_chunks


@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [
        ((250, 250, 250), (32, 64, 64), (64, 256, 256)),
        ((30, 1024, 1024), (30, 64, 64), (60, 256, 256)),
        ((15, 512, 512), (15, 64, 64), (60, 256, 256)),
        ((31, 61, 57), (31, 61, 57), (31, 61, 57)),
    ],
)
def test_chunks_and_shards(shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...]) -> None:
    found = choose_chunks(shape)
    assert found[0] == chunks
    assert all(s <= limit for s, limit in zip(found[1], shards, strict=True))


@settings(derandomize=True)
@given(st.tuples(*[st.integers(1, 3000)] * 3))
def test_shards_are_made_of_whole_chunks_and_waste_less_than_one(shape: tuple[int, int, int]) -> None:
    chunks, shards = choose_chunks(shape)
    assert all(s % c == 0 for s, c in zip(shards, chunks, strict=True))
    assert all(s < n + c for s, n, c in zip(shards, shape, chunks, strict=True))
    assert np.prod(shards) <= 64 * 256 * 256


def all_factors(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[tuple[int, ...]]:
    found = []
    while (factors := ome_zarr.level_factors(shape, spacing)) is not None:
        found.append(factors)
        shape = tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))
        spacing = tuple(s * f for s, f in zip(spacing, factors, strict=True))
    return found


def test_z_joins_the_pyramid_once_the_plane_has_caught_up() -> None:
    assert all_factors((64, 1024, 1024), (0.04, 0.01, 0.01)) == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert all_factors((256, 256, 256), (1, 1, 1)) == [(2, 2, 2)]
    assert all_factors((15, 512, 512), (5, 0.994, 0.994)) == [(1, 2, 2), (1, 2, 2)]
    assert all_factors((512, 512, 512), (0.5, 1, 1)) == [(2, 1, 1), (2, 2, 2), (2, 2, 2)]


def test_a_thin_axis_does_not_stop_the_pyramid() -> None:
    assert all_factors((4, 512, 512), (0.1, 1, 1)) == [(1, 2, 2), (1, 2, 2)]


def test_levels_hold_means_and_their_place_in_space(tmp_path: Path) -> None:
    url = str(tmp_path / "a.ome.zarr")
    voxels = np.random.default_rng(0).integers(0, 255, (1, 9, 300, 200)).astype(np.uint8)
    ome_zarr.create_image(url, ImageLayout(voxels.shape, voxels.dtype, (0.2, 0.1, 0.1)))[...] = voxels
    assert ome_zarr.add_pyramid(url) == 3
    level = np.asarray(ome_zarr.open_level(url, 1)[:])
    assert level.shape == (1, 9, 150, 100)
    expected = voxels.reshape(1, 9, 150, 2, 100, 2).mean(axis=(3, 5))
    np.testing.assert_array_equal(level, np.rint(expected))
    ome = zarr.open_group(url, mode="r").attrs.asdict()["ome"]
    transforms = ome["multiscales"][0]["datasets"][1]["coordinateTransformations"]  # type: ignore[index, call-overload]
    assert transforms == [
        {"type": "scale", "scale": [1.0, 0.2, 0.2, 0.2]},
        {"type": "translation", "translation": [0.0, 0.0, 0.05, 0.05]},
    ]
    ome_zarr.validate(url)


def test_odd_lengths_repeat_their_last_plane() -> None:
    voxels = np.array([1, 3, 9], np.uint8).reshape(1, 1, 3)
    np.testing.assert_array_equal(ome_zarr.downsample(voxels, (1, 1, 2))[0, 0], [2, 9])


def test_labels_are_never_averaged(tmp_path: Path) -> None:
    url = str(tmp_path / "a.ome.zarr")
    ome_zarr.create_image(url, ImageLayout((1, 8, 256, 256), np.uint8, (1, 1, 1)))
    labels = np.random.default_rng(0).choice([0, 3, 255], (8, 256, 256)).astype(np.uint8)
    ome_zarr.create_labels(url, "truth", labels.shape, np.uint8, (1, 1, 1))[...] = labels
    assert ome_zarr.add_pyramid(url) == ome_zarr.add_pyramid(f"{url}/labels/truth", labels=True) == 2
    np.testing.assert_array_equal(ome_zarr.open_level(f"{url}/labels/truth", 1)[:], labels[:, ::2, ::2])
    ome_zarr.validate(url)


def test_label_groups_are_listed(tmp_path: Path) -> None:
    url = str(tmp_path / "a.ome.zarr")
    ome_zarr.create_image(url, ImageLayout((1, 4, 4, 4), np.uint8, (1, 1, 1)))
    for name in ("truth", "other", "truth"):
        ome_zarr.create_labels(url, name, (4, 4, 4), np.uint8, (1, 1, 1))
    attributes = zarr.open_group(url, path="labels", mode="r").attrs.asdict()
    assert attributes["ome"] == {"version": "0.5", "labels": ["other", "truth"]}
    ome_zarr.validate(url)


def test_one_level_is_valid_and_written_as_asked(tmp_path: Path) -> None:
    url = str(tmp_path / "map")
    array = ome_zarr.create_image(
        url,
        ImageLayout((3, 20, 40, 40), np.float16, (1, 1, 1), chunks=(10, 20, 20), shards=(20, 40, 40), fill_value=-1),
    )
    assert (array.chunks, array.shards) == ((1, 10, 20, 20), (1, 20, 40, 40))
    assert array.metadata.zarr_format == 3
    assert float(array[0, 0, 0, 0]) == -1  # type: ignore[arg-type]
    ome_zarr.validate(url)


def test_a_broken_image_is_found_out(tmp_path: Path) -> None:
    url = str(tmp_path / "a.ome.zarr")
    ome_zarr.create_image(url, ImageLayout((4, 4, 4), np.uint8, (1, 1, 1)))
    group = zarr.open_group(url)
    del group["0"]
    with pytest.raises(InvalidVolumeError, match="not a valid OME-Zarr"):
        ome_zarr.validate(url)


def test_what_stands_in_the_file(tmp_path: Path) -> None:
    """Written out by hand from NGFF 0.5: the place in space, what each level is and what a viewer shows."""
    url = str(tmp_path / "a.ome.zarr")
    ome_zarr.create_image(
        url, ImageLayout((1, 8, 200, 16), np.uint16, (0.4, np.float32(0.25), 0.25), attributes={"rescueseg": 1})
    )
    ome_zarr.add_pyramid(url)
    ome_zarr.describe_channels(url, ["DAPI"], [(1.0, 250.5)])
    channel = {"name": "c", "type": "channel"}
    axes = [channel] + [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    fine = [{"type": "scale", "scale": [1.0, 0.4, 0.25, 0.25]}]
    coarse = [
        {"type": "scale", "scale": [1.0, 0.4, 0.5, 0.5]},
        {"type": "translation", "translation": [0.0, 0.0, 0.125, 0.125]},
    ]
    datasets = [
        {"path": "0", "coordinateTransformations": fine},
        {"path": "1", "coordinateTransformations": coarse},
    ]
    window = {"min": 1.0, "max": 250.5, "start": 1.0, "end": 250.5}
    assert zarr.open_group(url).attrs.asdict() == {
        "rescueseg": 1,
        "ome": {
            "version": "0.5",
            "multiscales": [{"name": "image", "axes": axes, "datasets": datasets, "type": "mean"}],
            "omero": {"channels": [{"label": "DAPI", "color": "FFFFFF", "active": True, "window": window}]},
        },
    }


def test_where_the_first_voxel_lies_stands_in_the_file(tmp_path: Path) -> None:
    url = str(tmp_path / "a.ome.zarr")
    ome_zarr.create_image(url, ImageLayout((8, 9, 10), np.uint8, (0.4, 0.25, 0.25), origin_um_zyx=(1, 2.5, 3)))
    ome: Any = zarr.open_group(url).attrs["ome"]
    assert ome["multiscales"][0]["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [0.4, 0.25, 0.25]},
        {"type": "translation", "translation": [1.0, 2.5, 3.0]},
    ]
