"""Planes that are files: Pillow and tifffile write and read them, numpy stacks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from rescueseg.errors import RescuesegError
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.slices import join_planes, planes_name, shown
from rescueseg.image_files.source import Source, Statement

Array = npt.NDArray[Any]
GREY = np.random.default_rng(3).integers(0, 256, (12, 9, 11)).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 257
RGB = np.stack([GREY, GREY // 2, 255 - GREY], -1)
RGBA = np.concatenate([RGB, np.full((*GREY.shape, 1), 255, np.uint8)], -1)


def write(folder: Path, planes: Array, name: str = "img_{:03}.png", **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for number, plane in enumerate(planes):
        file = folder / name.format(number)
        if file.suffix.lower() in (".tif", ".tiff"):
            tifffile.imwrite(file, plane, photometric="rgb" if plane.ndim == 3 else "minisblack", **options)
        else:
            Image.fromarray(plane).save(file, **options)
    return folder


def all_of(source: Source) -> Array:
    return source.read(Box((0, 0, 0), source.shape_zyx))


STACKS: dict[str, tuple[Array, str, dict[str, Any]]] = {
    "png": (GREY, "img_{:03}.png", {}),
    "png, 16 bit": (DEEP, "img_{:03}.png", {}),
    "png, colour": (RGB, "{}.PNG", {}),
    "png, alpha": (RGBA, "{}.png", {}),
    "bmp": (GREY, "{}.bmp", {}),
    "bmp, colour": (RGB, "{}.bmp", {}),
    "tiff": (DEEP, "slice{}.tif", {}),
    "tiff, compressed": (DEEP, "slice{}.tiff", {"compression": "zlib"}),
    "tiff, big endian": (DEEP.astype(">u2"), "{}.tif", {"byteorder": ">"}),
    "tiff, colour": (RGB, "{}.TIF", {}),
    "tiff, float": (GREY.astype(np.float32) / 7, "a{}b.tif", {}),
    "tiff, counted from 5": (DEEP, "z{}.tif", {"start": 5}),
    "two numbers, one of them the same": (GREY, "sample2_z{:02}.png", {}),
    "numbers in steps": (GREY, "z{}0.png", {}),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("how", ["folder", "pattern", "list"])
def test_a_stack_of_planes_holds_what_each_file_holds(name: str, how: str, tmp_path: Path) -> None:
    planes, file, options = STACKS[name]
    start = options.get("start", 0)
    folder = write(tmp_path / "p", planes, file, **{k: v for k, v in options.items() if k != "start"})
    if start:
        for path in sorted(folder.iterdir(), key=lambda p: -int(p.stem[1:])):
            path.rename(folder / f"z{int(path.stem[1:]) + start}.tif")
    by_number = sorted(folder.iterdir(), key=lambda p: int("".join(c for c in p.stem if c.isdigit())))
    expected = np.stack(
        [tifffile.imread(p) if p.suffix.lower().startswith(".tif") else np.asarray(Image.open(p)) for p in by_number]
    )
    np.testing.assert_array_equal(expected, planes)
    path = {"folder": str(folder), "pattern": f"{folder}/*", "list": join_planes(sorted(map(str, by_number)))}[how]
    source = open_source(path)
    wanted = np.moveaxis(expected, -1, 0) if expected.ndim == 4 else expected[None]
    np.testing.assert_array_equal(all_of(source), wanted)
    assert source.dtype == planes.dtype.newbyteorder("=")
    box = Box((3, 1, 2), (4, 5, 6))
    np.testing.assert_array_equal(source.read(box), wanted[(slice(None), *box.slices)])
    assert (
        f"12 planes in the order of their numbers: {by_number[0].name}, {by_number[1].name}, … {by_number[-1].name}"
        in source.remarks
    )
    assert source.spacing_um_zyx is None
    assert "how far apart" in source.spacing_note


def test_jpeg_planes_are_read_and_called_lossy(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(4), np.add.outer(np.arange(32), np.arange(40))).astype(np.uint8)
    folder = write(tmp_path / "p", smooth, "{}.jpg", quality=95)
    source = open_source(str(folder))
    expected = np.stack([np.asarray(Image.open(folder / f"{i}.jpg")) for i in range(4)])
    assert np.abs(all_of(source)[0].astype(int) - expected).max() <= 1
    assert any("JPEG" in remark for remark in source.remarks)


def test_colour_planes_that_are_grey_are_a_remark(tmp_path: Path) -> None:
    grey = write(tmp_path / "grey", np.stack([GREY] * 3, -1), "{}.png")
    assert any("all equal" in remark for remark in open_source(str(grey)).remarks)
    colour = open_source(str(write(tmp_path / "colour", RGB, "{}.png"))).remarks
    assert any("3 channels" in remark for remark in colour)
    assert not any("all equal" in remark for remark in colour)


def test_files_beside_the_planes_are_passed_over_and_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "p", GREY)
    for name in ("Thumbs.db", "notes.txt", ".hidden.png", "stage.csv"):
        (folder / name).write_text("x")
    (folder / "old").mkdir()
    source = open_source(str(folder))
    assert source.shape == GREY.shape
    assert "passed over, no planes: .hidden.png, Thumbs.db, notes.txt, old, stage.csv" in source.remarks


def without(*numbers: int) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        write(folder / "p", GREY)
        for number in numbers:
            (folder / "p" / f"img_{number:03}.png").unlink()
        return str(folder / "p")

    return make


def with_extra(plane: Array, name: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        write(folder / "p", GREY)
        write(folder / "p", plane[None], name)
        return str(folder / "p")

    return make


def channels(folder: Path) -> str:
    for channel in range(2):
        write(folder / "p", GREY, f"z{{:02}}_c{channel}.png")
    return str(folder / "p")


def cut(folder: Path) -> str:
    write(folder / "p", GREY)
    content = (folder / "p" / "img_004.png").read_bytes()
    (folder / "p" / "img_004.png").write_bytes(content[:10])
    return str(folder / "p")


def volumes(folder: Path) -> str:
    (folder / "p").mkdir()
    for number in range(3):
        tifffile.imwrite(folder / "p" / f"v{number}.tif", DEEP, photometric="minisblack")
    return str(folder / "p")


REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    "a plane missing": (without(4), "leave out 4"),
    "several missing": (without(2, 3, 9), "leave out 2, 3, 9"),
    "a plane of another size": (with_extra(GREY[0, :5], "img_0{:02}12.png"), r"img_0+12.png is 5×11, 8 bit grey"),
    "a plane of another type": (with_extra(DEEP[0], "img_{:01}12.png"), r"img_012.png is 9×11, 16 bit grey"),
    "a file named otherwise": (with_extra(GREY[0], "overview{}.png"), "named alike: overview0.png"),
    "another format": (with_extra(GREY[0], "img_{}12.bmp"), "named alike: img_012.bmp"),
    "channels beside planes": (channels, "count in several places"),
    "one plane": (without(*range(1, 12)), "single plane, img_000.png"),
    "no plane": (without(*range(12)), "no planes"),
    "a damaged plane": (cut, "img_004.png"),
    "volumes": (volumes, r"v\d.tif: it holds more than a plane: 12×9×11"),
    "a number twice": (with_extra(GREY[0], "img_{}3.png"), "a number comes twice"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("accept", [False, True])
def test_planes_that_make_no_volume_are_refused(name: str, accept: bool, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises(RescuesegError, match=message):
        open_source(make(tmp_path), Statement(accept_holes=accept))


def test_a_plane_cut_behind_its_head_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "p", GREY)
    content = (folder / "img_004.png").read_bytes()
    (folder / "img_004.png").write_bytes(content[: len(content) // 2])
    source = open_source(str(folder))
    assert source.read(Box((0, 0, 0), (4, 9, 11))).shape == (1, 4, 9, 11)
    with pytest.raises(RescuesegError, match=r"img_004\.png: the file cannot be read"):
        all_of(source)


def test_names_without_numbers_are_taken_in_their_order(tmp_path: Path) -> None:
    for name, plane in zip("bca", GREY, strict=False):
        Image.fromarray(plane).save(tmp_path / f"{name}.png")
    source = open_source(str(tmp_path))
    np.testing.assert_array_equal(all_of(source)[0], GREY[[2, 0, 1]])
    assert any("hold no numbers" in remark for remark in source.remarks)


def test_a_file_of_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, GREY[:3], "{}.png")
    with pytest.raises(RescuesegError, match=r"9\.png: it is no plane, or not there"):
        open_source(join_planes([str(tmp_path / f"{i}.png") for i in (0, 1, 9)]))


@pytest.mark.parametrize(
    ("path", "name"), [("a/liver/*.tif", "a/liver"), ("a/l*/b_*.tif", "a"), ("a/p/1.tif\na/p/2.tif", "a/p")]
)
def test_the_volume_is_called_after_the_folder(path: str, name: str) -> None:
    assert planes_name(path) == name
    assert "\n" not in shown(path)
