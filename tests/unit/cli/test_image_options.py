"""What a person says of image files on the command line: axes, series, planes, holes; and the picture of a dry run."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.cli import volumes
from rescueseg.cli.main import app

VOXELS = np.random.default_rng(0).integers(1, 4000, (12, 24, 32)).astype(np.uint16)


def init(folder: Path, *arguments: object, code: int = 0) -> str:
    words = ["init", folder / "c", *arguments, "--classes", "x", "--spacing", "0.3,0.1,0.1"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def imported(folder: Path) -> np.ndarray:
    [record] = Campaign.open(str(folder / "c")).volumes.records()
    return np.asarray(zarr.open_array(f"{folder}/c/volumes/{record.volume_id}.ome.zarr/0", mode="r")[...])


@pytest.fixture
def planes(tmp_path: Path) -> Path:
    (tmp_path / "planes").mkdir()
    for number, plane in enumerate(VOXELS):
        tifffile.imwrite(tmp_path / "planes" / f"s{number}.tif", plane)
    return tmp_path / "planes"


@pytest.mark.parametrize("how", ["folder", "pattern", "list"])
def test_planes_are_imported_as_one_volume(how: str, planes: Path, tmp_path: Path) -> None:
    listed = [*sorted(planes.iterdir()), "--slices"]
    arguments = {"folder": [planes], "pattern": [f"{planes}/s*.tif"], "list": listed}[how]
    said = init(tmp_path, *arguments)
    assert "→ volume 'planes', 12×24×32 voxels" in said
    assert "note: 12 planes in the order of their numbers: s0.tif, s1.tif, … s11.tif" in said
    np.testing.assert_array_equal(imported(tmp_path)[0], VOXELS)


def test_planes_without_the_option_are_told_of_it(planes: Path, tmp_path: Path) -> None:
    assert "--slices" in init(tmp_path, *sorted(planes.iterdir()), code=1)
    assert not (tmp_path / "c").exists()


def test_axes_that_the_file_leaves_open_are_stated(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.stack([VOXELS, VOXELS[::-1]], -1)
    assert "--axes, such as zyxc" in init(tmp_path, tmp_path / "a.h5", code=1)
    init(tmp_path, tmp_path / "a.h5", "--axes", "ZYXC")
    np.testing.assert_array_equal(imported(tmp_path), [VOXELS, VOXELS[::-1]])


@pytest.mark.parametrize("axes", ["zy", "zyxx", "qzyx", "z,y,x"])
def test_axes_that_are_none_are_one_error(axes: str, tmp_path: Path) -> None:
    assert f"--axes: '{axes}' names no axes" in init(tmp_path, tmp_path / "a.h5", "--axes", axes, code=1)


def test_a_series_and_a_position_are_chosen(tmp_path: Path) -> None:
    root = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2, attributes={"bioformats2raw.layout": 3})
    for number in range(2):
        group = root.create_group(str(number))
        group.create_array("0", data=np.stack([VOXELS + number, VOXELS + 10 + number]))
        axes = [{"name": a} for a in "pzyx"]
        group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]  # type: ignore[assignment]
    assert "Name one: 0, 1" in init(tmp_path, tmp_path / "a.zarr", code=1)
    assert "--position, 0 to 1" in init(tmp_path, tmp_path / "a.zarr", "--series", 1, code=1)
    init(tmp_path, tmp_path / "a.zarr", "--series", 1, "--position", 1)
    np.testing.assert_array_equal(imported(tmp_path)[0], VOXELS + 11)


def test_holes_are_refused_unless_accepted_and_told_in_both_runs(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=VOXELS, chunks=(12, 8, 32))
    (tmp_path / "a.zarr" / "c" / "0" / "1" / "0").unlink()
    assert "--accept-holes" in init(tmp_path, tmp_path / "a.zarr", code=1)
    assert not (tmp_path / "c").exists()
    told = "note: 1 of 3 chunks is not there and reads as 0: z 0:12 y 8:16 x 0:32"
    assert told in init(tmp_path, tmp_path / "a.zarr", "--accept-holes", "--dry-run")
    assert told in init(tmp_path, tmp_path / "a.zarr", "--accept-holes")
    assert (imported(tmp_path)[0, :, 8:16] == 0).all()


@pytest.mark.parametrize("named", [False, True])
def test_a_dry_run_draws_the_volumes_and_makes_no_campaign(named: bool, planes: Path, tmp_path: Path) -> None:
    more = ["--picture", tmp_path / "look.png"] if named else []
    said = init(tmp_path, planes, "--dry-run", *more)
    [file] = re.findall(r"^Look at (.*\.png)$", said, re.MULTILINE)
    assert (file == str(tmp_path / "look.png")) is named
    assert Image.open(file).size[0] > 1000
    assert not (tmp_path / "c").exists()
    Path(file).unlink()


@pytest.mark.parametrize("more", [["--picture", "look.png"], ["--dry-run", "--picture", "look.pdf"]])
def test_a_picture_that_nobody_would_draw_is_one_error(more: list[str], planes: Path, tmp_path: Path) -> None:
    assert "a dry run draws it, as PNG" in init(tmp_path, planes, *more, code=1)


def test_a_dry_run_of_many_volumes_draws_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "_DRAWN", 2)
    for number in range(3):
        tifffile.imwrite(tmp_path / f"v{number}.tif", VOXELS, photometric="minisblack", metadata={"axes": "ZYX"})
    said = init(tmp_path, *sorted(tmp_path.glob("v*.tif")), "--dry-run", "--picture", tmp_path / "look.png")
    assert said.count("→ volume 'v") == 3
    assert "look.png, the first 2 volumes" in said
