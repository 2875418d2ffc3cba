"""The picture of a dry run: the right planes, in true proportions; numpy, Pillow and scipy are the judges."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from rescueseg.image_files.registry import open_source
from rescueseg.reports.preview_picture import draw_previews
from rescueseg.volumes import middle_planes as reading
from rescueseg.volumes.batch_import import VolumePreview, preview_volumes
from rescueseg.volumes.middle_planes import middle_planes
from rescueseg.volumes.volume_files import VolumeImport

SHAPE = (12, 40, 64)
SPACING = (0.5, 0.1, 0.2)
HALVES = np.broadcast_to(np.arange(64) >= 32, SHAPE).astype(np.uint16) * 1000


def look(folder: Path, data: npt.NDArray[Any], truth: npt.NDArray[Any] | None = None) -> VolumePreview:
    tifffile.imwrite(folder / "a.tif", data, photometric="minisblack", metadata={"axes": "CZYX"[-data.ndim :]})
    truth_file = None
    if truth is not None:
        tifffile.imwrite(folder / "t.tif", truth, photometric="minisblack", metadata={"axes": "ZYX"})
        truth_file = str(folder / "t.tif")
    volume = VolumeImport(str(folder / "a.tif"), spacing=SPACING, truth=truth_file)
    [preview] = preview_volumes([volume], ["x"], planes=1)
    return preview


def pixels(picture: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_planes_are_those_through_the_middle(
    few: bool, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).integers(0, 999, (channels, *SHAPE)).astype(np.uint16)
    monkeypatch.setattr(reading, "_BLOCK", 64 * 7)
    if few:
        monkeypatch.setattr(reading, "_WHOLE", 0)
        monkeypatch.setattr(reading, "_FEW", 4)
    planes = look(tmp_path, data).planes
    assert planes is not None
    assert planes.at == (6, 20, 32)
    shown = data[:3]
    np.testing.assert_array_equal(planes.image[0], shown[:, 6])
    every = np.array([0, 4, 7, 11])
    z = every[np.abs(np.arange(12)[:, None] - every).argmin(1)] if few else np.arange(12)
    np.testing.assert_array_equal(planes.image[1], shown[:, z, 20])
    np.testing.assert_array_equal(planes.image[2], shown[:, z][..., 32])


def test_a_large_plane_is_thinned(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 999, (2, 1500, 800)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata={"axes": "ZYX"})
    planes = middle_planes(open_source(str(tmp_path / "a.tif")))
    np.testing.assert_array_equal(planes.image[0][0], data[1, ::3, ::2])
    np.testing.assert_array_equal(planes.image[1][0], data[:, 750, ::2])


def test_planes_and_scale_bar_have_true_proportions(tmp_path: Path) -> None:
    """Half of each plane is black, half white: what is black on the page is measured."""
    picture = pixels(draw_previews([look(tmp_path, HALVES)]))
    black = ndimage.find_objects(ndimage.label((picture < 8).all(-1))[0])
    sizes = sorted(((b[0].stop - b[0].start, b[1].stop - b[1].start) for b in black), key=lambda s: -s[0] * s[1])
    side, plane, bar = sizes[:3]
    per_um = plane[1] / (64 * SPACING[2] / 2)
    assert plane[0] / per_um == pytest.approx(40 * SPACING[1], rel=0.02)
    assert side[1] == pytest.approx(plane[1], abs=2)
    assert side[0] / per_um == pytest.approx(12 * SPACING[0], rel=0.02)
    assert bar[1] / per_um == pytest.approx(2.0, rel=0.03)


def test_the_truth_is_outlined_and_channels_have_colours(tmp_path: Path) -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[3:9, 10:30, 10:30] = 1
    plain = pixels(draw_previews([look(tmp_path, HALVES)]))
    outlined = pixels(draw_previews([look(tmp_path, HALVES, truth)]))
    blue = np.abs(outlined.astype(int) - (0x56, 0xB4, 0xE9)).max(-1) < 40
    assert blue.sum() > 200
    assert not (np.abs(plain.astype(int) - (0x56, 0xB4, 0xE9)).max(-1) < 40).any()
    coloured = pixels(draw_previews([look(tmp_path, np.stack([HALVES, HALVES[:, :, ::-1]]))])).astype(int)
    for colour in ((255, 0, 255), (0, 255, 0)):
        assert (np.abs(coloured - colour).max(-1) < 8).sum() > 5000


def test_several_volumes_stand_one_below_the_other(tmp_path: Path) -> None:
    one = look(tmp_path, HALVES)
    first, both = pixels(draw_previews([one])), pixels(draw_previews([one, one]))
    assert both.shape[0] == pytest.approx(2 * first.shape[0], abs=2)
    assert both.shape[1] == first.shape[1]
