"""Every level of a label image holds the same ids, whatever its blocks."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.delivery import label_pyramid
from rescueseg.delivery.delivered_image import chunks_in
from rescueseg.delivery.label_counts import count_labels
from rescueseg.delivery.label_placing import place_ids
from rescueseg.delivery.label_pyramid import LabelPyramid, add_label_pyramid
from rescueseg.delivery.step import Step
from rescueseg.geometry import ZYX, Box
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.ome_zarr import (
    add_pyramid,
    create_image,
    create_label_image,
    levels,
    open_level,
    validate,
)

UM = (0.2, 0.1, 0.1)


def many_objects(shape: ZYX, count: int, seed: int) -> npt.NDArray[np.uint32]:
    """Return objects of one to a few voxels, and a large one, numbered by first voxel."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint32)
    labels[shape[0] // 2 :, :, shape[2] // 2 :] = 10**6
    for number, place in enumerate(rng.integers(0, np.subtract(shape, 2), (count, 3)), start=1):
        size = rng.integers(1, 4, 3)
        labels[tuple(slice(p, p + s) for p, s in zip(place, size, strict=True))] = number
    ids, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    numbers = np.zeros(ids.size, np.uint32)
    numbers[np.argsort(first[1:]) + 1] = np.arange(1, ids.size)
    return numbers[inverse].reshape(shape)


def write(folder: Path, labels: npt.NDArray[np.uint32], block: ZYX) -> tuple[str, LabelPyramid]:
    """Write labels in shards of a block, and their pyramid."""
    url = str(folder / "image.zarr")
    zarr.create_group(url, overwrite=True, zarr_format=3)
    layout = ImageLayout(labels.shape, labels.dtype, UM, chunks=chunks_in(block), shards=block, name="objects")
    create_label_image(url, layout)[...] = labels
    return url, add_label_pyramid(url, "objects", Step(str(folder / "step"), "d"), UM)


def read(url: str, levels: int) -> list[npt.NDArray[np.uint32]]:
    return [np.asarray(open_level(f"{url}/labels/objects", n)[...]) for n in range(levels)]


@settings(max_examples=12, deadline=None)
@given(count=st.integers(0, 150), seed=st.integers(0, 10**6), shape=st.sampled_from([(17, 140, 90), (5, 33, 260)]))
def test_every_level_holds_the_same_ids(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, shape: ZYX
) -> None:
    labels = many_objects(shape, count, seed)
    folder = tmp_path_factory.mktemp("pyramid")
    url, pyramid = write(folder, labels, (17, 64, 64))
    arrays = read(url, pyramid.levels)
    np.testing.assert_array_equal(pyramid.ids, np.unique(labels)[1:])
    assert pyramid.levels == (2 if max(shape) <= 256 else 3)
    total = np.ones(3)
    for fine, coarse in itertools.pairwise(arrays):
        np.testing.assert_array_equal(np.unique(coarse), np.unique(np.append(labels, 0)))
        factors = np.round(np.divide(fine.shape, coarse.shape)).astype(int)
        total *= factors
        plain = fine[tuple(slice(None, None, f) for f in factors)]
        moved = coarse != plain
        assert moved.sum() == np.setdiff1d(fine, plain).size  # only voxels of ids that would be lost
        for place, number in zip(np.argwhere(moved), coarse[moved], strict=True):
            inside = np.argwhere(labels == number)
            near = np.abs(inside / total - place).max(axis=1).min()
            assert near <= 4  # near to where the object is
    validate(url)


def test_blocks_do_not_show(tmp_path: Path) -> None:
    labels = many_objects((20, 150, 280), 900, 4)
    results = []
    for block in ((20, 150, 280), (8, 64, 64), (7, 50, 90)):
        url, pyramid = write(tmp_path / str(block), labels, block)
        results.append(read(url, pyramid.levels))
    assert len(results[0]) > 2
    for other in results[1:]:
        assert len(other) == len(results[0])
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_level_that_cannot_hold_all_ids_is_not_written(tmp_path: Path) -> None:
    labels = np.arange(1, 1 + 4 * 40 * 300, dtype=np.uint32).reshape(4, 40, 300)
    url, pyramid = write(tmp_path, labels, (4, 40, 100))
    assert pyramid.levels == 1
    assert [name for name, _ in zarr.open_group(f"{url}/labels/objects", mode="r").members()] == ["0"]
    validate(url)


def test_image_and_labels_have_as_many_levels(tmp_path: Path) -> None:
    url = str(tmp_path / "image.zarr")
    shape = (4, 40, 300)
    create_image(url, ImageLayout((1, *shape), np.uint8, UM))[...] = 3
    assert add_pyramid(url) == 3
    for name, voxels in (("mask", np.ones(shape, np.uint8)), ("objects", np.arange(1, 48001).reshape(shape))):
        layout = ImageLayout(shape, np.uint32 if name == "objects" else np.uint8, UM, name=name)
        create_label_image(url, layout)[...] = voxels
    assert add_label_pyramid(url, "mask", Step(str(tmp_path / "step"), "d"), UM, ("cell",)).levels == 3
    assert add_label_pyramid(url, "objects", Step(str(tmp_path / "step"), "d"), UM).levels == 1
    assert [len(levels(u)) for u in (url, f"{url}/labels/mask", f"{url}/labels/objects")] == [1, 1, 1]
    validate(url)


def test_a_second_run_writes_nothing_and_new_labels_are_written(tmp_path: Path) -> None:
    labels = many_objects((8, 40, 300), 200, 1)
    url, pyramid = write(tmp_path, labels, (8, 40, 100))
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "image.zarr").rglob("*") if "/c/" in str(p)}
    again = add_label_pyramid(url, "objects", Step(str(tmp_path / "step"), "d"), UM)
    assert again.levels == pyramid.levels
    assert {p: p.stat().st_mtime_ns for p in files} == files
    zarr.open_array(f"{url}/labels/objects/0", mode="r+")[0, 0, :100] = 7
    changed = add_label_pyramid(url, "objects", Step(str(tmp_path / "step"), "e"), UM)
    assert 7 in changed.ids
    np.testing.assert_array_equal(read(url, 2)[1][0, 0, :50], 7)


def test_a_killed_run_goes_on_to_the_same_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = many_objects((20, 150, 280), 900, 4)
    expected = read(*(lambda url, p: (url, p.levels))(*write(tmp_path / "whole", labels, (20, 64, 64))))
    calls = []

    def dying(job: label_pyramid._Writing, box: Box) -> object:
        calls.append(box)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(job, box)

    plain = label_pyramid._write_block
    monkeypatch.setattr(label_pyramid, "_write_block", dying)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed", labels, (20, 64, 64))
    monkeypatch.undo()
    url = str(tmp_path / "killed" / "image.zarr")
    pyramid = add_label_pyramid(url, "objects", Step(str(tmp_path / "killed" / "step"), "d"), UM)
    for one, two in zip(expected, read(url, pyramid.levels), strict=True):
        np.testing.assert_array_equal(one, two)


def test_metadata_name_and_colour_the_classes_and_colour_the_objects(tmp_path: Path) -> None:
    labels = many_objects((8, 40, 300), 20, 1)
    url, pyramid = write(tmp_path, labels, (8, 40, 100))
    colours = zarr.open_group(f"{url}/labels/objects", mode="r").attrs["ome"]["image-label"]["colors"]
    assert [c["label-value"] for c in colours] == pyramid.ids.tolist()
    assert len({tuple(c["rgba"]) for c in colours}) == len(colours)
    create_label_image(url, ImageLayout((8, 8, 8), np.uint8, UM, name="mask"))[...] = 2
    add_label_pyramid(url, "mask", Step(str(tmp_path / "step"), "d"), UM, ("nucleus", "vessel"))
    described = zarr.open_group(f"{url}/labels/mask", mode="r").attrs["ome"]["image-label"]
    assert [p["class"] for p in described["properties"]] == ["nucleus", "vessel"]
    assert [c["label-value"] for c in described["colors"]] == [1, 2]
    validate(url)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), most=st.integers(1, 20))
def test_counts_are_those_of_numpy(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, most, (3, 4, 6)), rng.integers(1, 4), axis=2)
    box = Box((1, 2, 3), labels.shape)
    counts = count_labels(labels, box, (9, 9, 50))
    whole = np.zeros((9, 9, 50), labels.dtype)
    whole[box.slices] = labels
    ids, firsts, sizes = np.unique(whole, return_index=True, return_counts=True)
    np.testing.assert_array_equal(counts.ids, ids[ids > 0])
    np.testing.assert_array_equal(counts.firsts, firsts[ids > 0])
    np.testing.assert_array_equal(counts.sizes, sizes[ids > 0])


def test_an_id_takes_the_nearest_voxel_that_another_can_spare() -> None:
    fine = zarr.create_array({}, shape=(1, 2, 8), dtype="uint8")
    fine[...] = np.array([[[1, 9, 2, 2, 2, 2, 3, 3], [1, 1, 2, 2, 2, 2, 3, 3]]])
    sizes, ids = np.array([1, 2, 1, 0]), np.array([1, 2, 3, 9])
    places = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 3], [0, 0, 0]])
    changes = place_ids(fine, (1, 2, 2), (1, 1, 4), sizes, ids, places, um=UM)
    assert changes is not None
    assert changes.tolist() == [[1, 9]]  # not voxel 0, the only one of 1
