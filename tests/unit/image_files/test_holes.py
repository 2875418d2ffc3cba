"""Chunks that are not there: lost ones are refused, those that were never written are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zarr

from rescueseg.errors import RescuesegError
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.source import Statement
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.image_layout import ImageLayout

Array = npt.NDArray[Any]
SHAPE = (32, 48, 64)
CHUNK = (16, 16, 32)
DENSE = np.random.default_rng(0).integers(100, 4000, SHAPE).astype(np.uint16)


def ball(centre: tuple[int, int, int] = (10, 20, 20), radius: float = 9) -> Array:
    """An image that fades into 0: most chunks are empty."""
    axes = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    distance = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)))
    return (np.clip(radius - distance, 0, 3) * 1000).astype(np.uint16)


SPARSE = ball()


def plain(folder: Path, data: Array, **options: Any) -> str:
    zarr.create_array(str(folder / "a.zarr"), data=data, chunks=CHUNK, config={"write_empty_chunks": False}, **options)  # type: ignore[call-overload]
    return str(folder / "a.zarr")


def version_2(folder: Path, data: Array) -> str:
    return plain(folder, data, zarr_format=2)


def sharded(folder: Path, data: Array) -> str:
    return plain(folder, data, shards=(32, 48, 64))


def image(folder: Path, data: Array) -> str:
    """An OME-Zarr image with a pyramid."""
    group = zarr.create_group(str(folder / "a.zarr"), zarr_format=2)
    for level, step in enumerate((1, 2)):
        coarse = data[::step, ::step, ::step]
        group.create_array(str(level), data=coarse, chunks=CHUNK, config={"write_empty_chunks": False})
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": str(level)} for level in range(2)]}]  # type: ignore[assignment]
    return str(folder / "a.zarr")


def hdf5(folder: Path, data: Array, lost: tuple[int, int, int] | None = None) -> str:
    """A dataset whose chunks are written one by one; those of only 0, and the lost one, are not."""
    with h5py.File(folder / "a.h5", "w") as file:
        dataset = file.create_dataset("data", SHAPE, data.dtype, chunks=CHUNK)
        for index in np.ndindex(2, 3, 2):
            box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, CHUNK, strict=True))
            if data[box].any() and index != lost:
                dataset[box] = data[box]
    return str(folder / "a.h5")


SPARSE_WRITERS: dict[str, Callable[[Path, Array], str]] = {
    "version 3": plain, "version 2": version_2, "sharded": sharded, "image": image, "hdf5": hdf5,
}  # fmt: skip


@pytest.mark.parametrize("writer", SPARSE_WRITERS)
@pytest.mark.parametrize(
    "data",
    [SPARSE, np.maximum(SPARSE, ball((24, 40, 50), 6)), ball((10, 20, 20), 200) * (SPARSE > 0)],
    ids=["a ball", "two balls", "a ball with sharp edges"],
)
def test_a_sparse_image_is_read_and_its_holes_are_told(writer: str, data: Array, tmp_path: Path) -> None:
    source = open_source(SPARSE_WRITERS[writer](tmp_path, data))
    boxes = np.stack(
        [
            data[tuple(slice(i * c, (i + 1) * c) for i, c in zip(x, CHUNK, strict=True))].any()
            for x in np.ndindex(2, 3, 2)
        ]
    )
    [told] = [r for r in source.remarks if "chunks" in r]
    assert told.startswith(f"{12 - boxes.sum()} of 12 chunks are not there and read as 0: z ")
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), SHAPE))[0], data)


@pytest.mark.parametrize("writer", SPARSE_WRITERS)
def test_a_whole_image_has_no_remark(writer: str, tmp_path: Path) -> None:
    assert not any("chunk" in r for r in open_source(SPARSE_WRITERS[writer](tmp_path, DENSE)).remarks)


def lose(path: str, name: str) -> str:
    (Path(path) / name).unlink()
    return path


LOST: dict[str, tuple[Callable[[Path], str], str]] = {
    "dense, version 3": (lambda f: lose(plain(f, DENSE), "c/0/1/0"), "z 0:16 y 16:32 x 0:32"),
    "dense, version 2": (lambda f: lose(version_2(f, DENSE), "0.2.1"), "z 0:16 y 32:48 x 32:64"),
    "dense, pyramid": (lambda f: lose(image(f, DENSE), "0/1.1.0"), "z 16:32 y 16:32 x 0:32"),
    "dense, hdf5": (lambda f: hdf5(f, DENSE, (1, 1, 1)), "z 16:32 y 16:32 x 32:64"),
}
FADED = {"sparse, pyramid": (lambda f: lose(image(f, SPARSE), "0/0.1.0"), "z 0:16 y 16:32 x 0:32")}


@pytest.mark.parametrize("name", [*LOST, *FADED])
def test_a_lost_chunk_is_refused_by_its_box_and_taken_when_accepted(name: str, tmp_path: Path) -> None:
    make, box = (LOST | FADED)[name]
    path = make(tmp_path)
    evidence = (
        "level 1 of the pyramid has image there" if "pyramid" in name else "the image does not fade out towards it"
    )
    with pytest.raises(RescuesegError, match=rf"(It looks|They look) lost: {evidence} \({box}\).*--accept-holes"):
        open_source(path)
    source = open_source(path, Statement(accept_holes=True))
    z, y, x = (
        slice(*map(int, part.split()[1].split(":")))
        for part in (box.split(" y")[0], "y" + box.split(" y")[1].split(" x")[0], "x" + box.split(" x")[1])
    )
    expected = (DENSE if "dense" in name else SPARSE).copy()
    expected[z, y, x] = 0
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), SHAPE))[0], expected)
    assert any("not there" in r and box in r for r in source.remarks)


def test_two_lost_neighbours_are_both_told(tmp_path: Path) -> None:
    path = lose(lose(plain(tmp_path, DENSE), "c/0/1/0"), "c/0/1/1")
    with pytest.raises(
        RescuesegError, match="2 of 12 chunks are not there and read as 0: z 0:16 y 16:32 x 0:32; z 0:16"
    ):
        open_source(path)


def test_a_chunk_cut_short_is_named_with_its_box(tmp_path: Path) -> None:
    path = plain(tmp_path, DENSE)
    chunk = tmp_path / "a.zarr" / "c" / "1" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    source = open_source(path)
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), (16, 48, 64)))[0], DENSE[:16])
    with pytest.raises(RescuesegError, match=r"chunk 1\.2\.0 cannot be read .*: z 16:32 y 32:48 x 0:32"):
        source.read(Box((0, 0, 0), SHAPE))


def test_a_damaged_chunk_of_hdf5_is_named_with_its_box(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=DENSE, chunks=CHUNK, compression="gzip")
        place = next(
            chunk.byte_offset
            for chunk in (file["data"].id.get_chunk_info(i) for i in range(12))
            if chunk.chunk_offset == (16, 32, 0)
        )
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[place : place + 64] = bytes(64)
    (tmp_path / "a.h5").write_bytes(content)
    source = open_source(str(tmp_path / "a.h5"))
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), (16, 48, 64)))[0], DENSE[:16])
    with pytest.raises(RescuesegError, match=r"chunk 1\.2\.0 cannot be read .*: z 16:32 y 32:48 x 0:32"):
        source.read(Box((0, 0, 0), SHAPE))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "points beyond the file"),
        (lambda content: content[:40], "index is cut off"),
        (lambda content: content[200:], "points beyond the file"),
    ],
)
@pytest.mark.parametrize("accept", [False, True])
def test_a_shard_cut_short_is_refused_before_it_is_read(
    damage: Callable[[bytes], bytes], reason: str, accept: bool, tmp_path: Path
) -> None:
    path = sharded(tmp_path, DENSE)
    shard = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(RescuesegError, match=f"shard c/0/0/0 cannot be read .*{reason}.*z 0:32 y 0:48 x 0:64"):
        open_source(path, Statement(accept_holes=accept))


def test_our_own_images_without_empty_chunks_are_read(tmp_path: Path) -> None:
    array = ome_zarr.create_image(
        str(tmp_path / "a.ome.zarr"), ImageLayout(SHAPE, np.dtype(np.uint16), (0.3, 0.1, 0.1))
    )
    array[...] = SPARSE
    ome_zarr.add_pyramid(str(tmp_path / "a.ome.zarr"))
    source = open_source(str(tmp_path / "a.ome.zarr"))
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), SHAPE))[0], SPARSE)


def test_a_dataset_that_was_never_written_is_a_remark(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", SHAPE, "u2")
    assert any("no voxel was ever written" in r for r in open_source(str(tmp_path / "a.h5")).remarks)


def test_a_store_behind_a_url_is_looked_at_too(tmp_path: Path) -> None:
    path = lose(plain(tmp_path, DENSE), "c/0/1/0")
    fsspec.filesystem("memory").put(path, "/bucket/a.zarr", recursive=True)
    with pytest.raises(RescuesegError, match="looks lost"):
        open_source("memory://bucket/a.zarr")
