"""The contact sheet: true aspect ratio, every patch under its stratum, in the colour of its part."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from rescueseg import volumes
from rescueseg.campaign import Campaign
from rescueseg.geometry import Box, Patch
from rescueseg.reports import contact_sheet
from rescueseg.sampling import starting_patches
from rescueseg.volumes.phantom import make_phantom


def test_planes_have_square_pixels() -> None:
    image = np.zeros((4, 10, 20), np.float32)
    image[2], image[:, 5], image[:, :, 10] = 1, 2, 3
    image[2, 5] = image[2, :, 10] = image[:, 5, 10] = 4
    picture = contact_sheet.three_planes(image, (0.3, 0.1, 0.1))
    assert picture.shape == (10 + 3 + 12, 20 + 3 + 12)
    assert set(np.unique(picture[:10, :20])) == {1, 4}
    assert set(np.unique(picture[:10, 23:])) == {3, 4}
    assert set(np.unique(picture[13:, :20])) == {2, 4}
    assert np.isnan(picture[13:, 23:]).all()
    assert max(contact_sheet.three_planes(np.zeros((2, 900, 300), np.float32), (1, 1, 1)).shape) <= 240 + 3 + 2


@given(st.lists(st.integers(1, 15), min_size=1, max_size=12))
@settings(deadline=None)
def test_groups_that_fit_a_row_are_not_broken(sizes: list[int]) -> None:
    places = contact_sheet.layout(sizes)
    assert len(set(places)) == len(places) == sum(sizes)
    assert places == sorted(places)
    assert all(0 <= column < 6 for _, column in places)
    for i, size in enumerate(sizes):
        rows = {row for row, _ in places[sum(sizes[:i]) : sum(sizes[: i + 1])]}
        assert len(rows) == 1 or size > 6


@pytest.mark.parametrize("rough", [False, True])
def test_every_part_is_on_the_sheet(campaign: Campaign, tmp_path: Path, rough: bool) -> None:
    image, _, spacing = make_phantom((16, 64, 64), seed=3)
    tifffile.imwrite(tmp_path / "a.tif", image, metadata={"axes": "ZYX"})
    volumes.import_volume(campaign, volumes.VolumeImport(str(tmp_path / "a.tif"), volume_id="a", spacing=spacing))
    if rough:
        campaign.save_rough_patches([Patch("a", Box((0, 0, 0), (8, 12, 12)))])
    holdout = starting_patches.draw_holdout(campaign)
    starting = starting_patches.starting_patches(campaign)
    shown = contact_sheet.entries(holdout, starting)
    assert len(shown) == len(holdout.all_boxes) + len(starting)
    strata = [entry.stratum for entry in shown]
    assert strata == sorted(strata, key=strata.index), "one group for each"
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet.contact_sheet(campaign, holdout, starting))).convert("RGB"))
    for kind, (_, colour) in contact_sheet.KINDS.items():
        near = np.abs(sheet / 255 - to_rgb(colour)).max(axis=-1) < 0.02
        assert (near.sum() > 500) == (rough or kind != "rough")
