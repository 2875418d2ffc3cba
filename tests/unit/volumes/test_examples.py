"""Examples without a network: from a data folder, from the cache, and the one-line refusal."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import requests
import tifffile

from rescueseg.errors import ExampleUnavailable
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.volumes import examples
from rescueseg.volumes.examples import example_names, load_example


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESCUESEG_CACHE", str(tmp_path / "cache"))

    def offline(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", offline)
    return tmp_path / "cache"


def put(cache: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """Make stand-ins for original files, and a registry that knows their digests."""
    lines = []
    for name, content in files.items():
        path = cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        lines.append(f"{name} {hashlib.sha256(content).hexdigest()} https://raw.githubusercontent.com/x/{name}\n")
    (cache / "registry.txt").write_text("".join(lines))
    monkeypatch.setattr(examples, "_REGISTRY", cache / "registry.txt")


def read(path: str) -> np.ndarray:
    source = open_source(path)
    voxels = source.read(Box((0, 0, 0), source.shape_zyx))[0]
    source.close()
    return voxels


def tiff(voxels: np.ndarray, path: Path) -> bytes:
    tifffile.imwrite(path, voxels, photometric="minisblack")
    return path.read_bytes()


def png(plane: np.ndarray, path: Path) -> bytes:
    from skimage.io import imsave

    imsave(path, plane, check_contrast=False)
    return path.read_bytes()


def test_every_file_is_pinned_to_a_commit_and_a_digest() -> None:
    lines = [line.split() for line in examples._REGISTRY.read_text().splitlines()]
    assert {name.split("/")[0] for name, _, _ in lines} == set(example_names())
    for name, digest, url in lines:
        assert len(digest) == 64
        assert url.startswith("https://raw.githubusercontent.com/")
        assert len(url.split("/")[5]) == 40
        assert url.endswith(name.split("/")[1])


def test_without_a_network_the_answer_comes_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(ExampleUnavailable, match="cannot be downloaded") as caught:
        load_example("gonuclear_1135")
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ExampleUnavailable, match="stardist_img3d"):
        load_example("nothing", str(tmp_path))


def test_a_changed_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, monkeypatch, {"stardist_img3d/img3d.tif": b"a", "stardist_img3d/mask3d.tif": b"b"})
    (cache / "stardist_img3d" / "mask3d.tif").write_bytes(b"changed")
    with pytest.raises(ExampleUnavailable):
        load_example("stardist_img3d")


def test_a_folder_of_ones_own_is_an_example(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    for name in ("raw", "labels"):
        tiff(np.ones((3, 4, 5), np.uint8), folder / f"{name}.tif")
    meta = {"voxel_size_um_zyx": [3, 1, 1], "label_type": "instance", "class": "vesicle", "license": "CC0"}
    (folder / "meta.json").write_text(json.dumps(meta))
    example = load_example("mine", str(tmp_path / "data"))
    assert (example.spacing, example.truth_type, example.classes) == ((3, 1, 1), "instance", ("vesicle",))
    assert example.licence == "CC0"
    (folder / "meta.json").write_text("{}")
    with pytest.raises(ExampleUnavailable, match=r"meta\.json"):
        load_example("mine", str(tmp_path / "data"))


def test_slices_are_stacked_and_masks_made_of_ones(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 255, (3, 6, 7)).astype(np.uint8)
    files = {}
    for i, plane in enumerate(planes):
        shown = np.stack([plane] * 3, axis=-1) if i == 2 else plane
        files[f"cdeep3m_mito_train/images.{i:03d}.png"] = png(shown, tmp_path / "a.png")
        mask = (plane > 99).astype(np.uint8) * (255 if i == 2 else 1)
        files[f"cdeep3m_mito_train/mitos_3D.{i:03d}.png"] = png(mask, tmp_path / "a.png")
    put(cache, monkeypatch, files)
    example = load_example("cdeep3m_mito_train")
    np.testing.assert_array_equal(read(example.raw_path), planes)
    np.testing.assert_array_equal(read(example.truth_path), planes > 99)


def test_supervoxels_are_joined_and_their_boundaries_taken(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervoxels = np.zeros((4, 8, 8), np.int32)
    supervoxels[:, :, :2], supervoxels[:, :, 2:4], supervoxels[:, :, 4:] = 5, 9, 7
    with h5py.File(tmp_path / "gt.h5", "w") as file:
        file["stack"], file["transforms"] = supervoxels, np.array([[5, 20], [9, 20], [7, 30]])
    files = {"flyem_fib25_train2/groundtruth.h5.gz": gzip.compress((tmp_path / "gt.h5").read_bytes())}
    for i in range(4):
        files[f"flyem_fib25_train2/iso.{i}.png"] = png(np.full((8, 8), i, np.uint8), tmp_path / "a.png")
    put(cache, monkeypatch, files)
    example = load_example("flyem_fib25_train2")
    assert example.truth_type == "semantic"
    expected = np.zeros((4, 8, 8), bool)
    expected[:, :, 3:5] = True
    np.testing.assert_array_equal(read(example.truth_path), expected)
    assert read(example.raw_path)[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_masks_of_255_become_ones(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((3, 4, 5), np.uint8)
    mask[1] = 255
    name = "vesselnn_burgess2014_tgMouse/burgess2014_tgMouse"
    files = {
        f"{name}_BM4D_denoised.tif": tiff(mask + 3, tmp_path / "a.tif"),
        f"{name}_labels_v1.tif": tiff(mask, tmp_path / "b.tif"),
    }
    put(cache, monkeypatch, files)
    np.testing.assert_array_equal(read(load_example("vesselnn_burgess2014_tgMouse").truth_path), mask > 0)


def test_datasets_of_a_file_are_taken_as_they_are(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["label"] = np.zeros((3, 4, 5), np.uint8), np.ones((3, 4, 5), np.uint8)
    put(cache, monkeypatch, {"gonuclear_1135/1135_mini.h5": (tmp_path / "a.h5").read_bytes()})
    example = load_example("gonuclear_1135")
    assert read(example.raw_path).max() == 0
    assert read(example.truth_path).min() == 1


@pytest.mark.parametrize("name", ["stardist_img3d", "gonuclear_1135", "plantseg_ovule_cells", "bbbc050_mosaic_train"])
def test_real_volumes_can_be_read(real_data: Path, name: str) -> None:
    example = load_example(name, str(real_data))
    raw, truth = open_source(example.raw_path), open_source(example.truth_path)
    assert raw.shape_zyx == truth.shape_zyx
    assert len(example.spacing) == 3
    if name == "plantseg_ovule_cells":
        assert example.truth_type == "semantic"
        assert read(example.truth_path).mean() == pytest.approx(0.168, abs=0.001)
