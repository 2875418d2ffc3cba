"""The browser page against a real server: what is drawn with the mouse is what the campaign gets, where it belongs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation import NewTicket, open_queue
from rescueseg.annotation.server.page import STATIC
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import Box, Spacing
from tests.annotation_server import served
from tests.browser import CHROMIUM, Visitor, Voxel, browsing

needs_chromium = pytest.mark.needs_chromium
no_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")
IGNORE = 255
BRIGHT = 3000


def make_campaign(
    folder: Path,
    image: Path,
    box: Box,
    spacing: Spacing,
    *,
    prefill: npt.NDArray[np.uint8] | None = None,
    settings: dict[str, object] | None = None,
) -> Campaign:
    """Return a campaign with one volume and one ticket."""
    config = check_config({"name": "page", "classes": ["nucleus", "debris"], **(settings or {})})
    campaign = Campaign.create(str(folder / "campaign"), config)
    volumes.import_volume(campaign, str(image), volume_id="v", spacing=spacing)
    if prefill is not None:
        campaign.storage.write_array("weak_labels/t/a.npz", prefill)
    path = None if prefill is None else "weak_labels/t/a.npz"
    open_queue(campaign).add_tickets([NewTicket(ticket_id="a", volume_id="v", box=box, prefill=path, score=2.0)])
    return campaign


def accepted(campaign: Campaign, box: Box) -> npt.NDArray[np.uint8]:
    """Return the accepted labels of the only ticket, which must be those of this box."""
    (annotation,) = open_queue(campaign).accepted()
    assert (annotation.volume_id, annotation.box, annotation.tool) == ("v", box, "browser")
    return campaign.storage.read_array(annotation.labels)


def letter(shape: Voxel, at: Voxel) -> npt.NDArray[np.bool_]:
    """Return an F whose foot bends forward and whose arm bends back: no two of its mirror images are alike."""
    found = np.zeros(shape, bool)
    z, y, x = at
    found[z + 2, y : y + 9, x] = True
    found[z + 2, y, x : x + 6] = True
    found[z + 2, y + 4, x : x + 4] = True
    found[z : z + 3, y + 8, x] = True
    found[z + 2 : z + 7, y, x + 5] = True
    return found


def test_niivue_is_the_published_build() -> None:
    digest = hashlib.sha256((STATIC / "vendor" / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert "BSD 2-Clause" in (STATIC / "vendor" / "LICENSE.niivue").read_text()


BOX = Box((3, 9, 14), (12, 16, 20))
PATCH = BOX.shape_zyx


@pytest.fixture
def lettered(tmp_path: Path) -> Campaign:
    """Return a campaign whose image is dark but for a bright letter in the patch, off its middle."""
    image = np.full((18, 40, 50), 100, np.uint16)
    image[BOX.slices][letter(PATCH, (2, 3, 8))] = BRIGHT
    tifffile.imwrite(tmp_path / "raw.tif", image)
    return make_campaign(tmp_path, tmp_path / "raw.tif", BOX, (0.4, 0.2, 0.1))


def seen_letter(visitor: Visitor) -> npt.NDArray[np.bool_]:
    """Return which voxels of the letter's main plane are bright in a picture of the window, plane xy."""
    visitor.page.click("#view-xy")
    visitor.page.evaluate("page.viewer.nv.setCrosshairWidth(0)")
    corners = visitor.pixel((4, 0, 0), 0), visitor.pixel((4, PATCH[1] - 1, PATCH[2] - 1), 0)
    visitor.pixel((4, 1, 1), 0)
    picture = visitor.picture()
    rows = np.linspace(corners[0][1], corners[1][1], PATCH[1]).round().astype(int)
    columns = np.linspace(corners[0][0], corners[1][0], PATCH[2]).round().astype(int)
    return np.asarray(picture[np.ix_(rows, columns)][..., 0] > 128)


@needs_chromium
@no_chromium
def test_a_letter_is_shown_grown_and_handed_in_where_it_lies(lettered: Campaign) -> None:
    wanted = letter(PATCH, (2, 3, 8))
    with served(lettered) as url, browsing(url) as visitor:
        visitor.next()
        assert np.array_equal(seen_letter(visitor), wanted[4]), "as a microscopist sees it: x to the right, y down"
        visitor.page.click("#view-all")
        visitor.page.click("#tool-grow")
        visitor.page.check("#solid")
        visitor.click((4, 3, 10), 0)
        drawn = visitor.labels(PATCH)
        assert np.array_equal(drawn, wanted.astype(np.uint8))
        visitor.submit()
    assert np.array_equal(accepted(lettered, BOX), drawn)


@needs_chromium
@no_chromium
def test_pens_draw_the_voxels_under_the_mouse(lettered: Campaign) -> None:
    expected = np.zeros(PATCH, np.uint8)
    with served(lettered) as url, browsing(url) as visitor:
        visitor.next()
        visitor.page.click("#tool-pen")
        for axis, label in ((0, 1), (1, 2), (2, IGNORE)):  # a line along each axis that lies in the plane
            visitor.page.click(f"#label-{label}")
            for along in {0, 1, 2} - {axis}:
                start = (3 + axis, 5 + axis, 9 + axis)
                end = tuple(n + 5 * (i == along) for i, n in enumerate(start))
                visitor.stroke([start, end], axis)
                expected[tuple(slice(a, b + 1) for a, b in zip(start, end, strict=True))] = label
                assert np.array_equal(visitor.labels(PATCH), expected)
        visitor.page.click("#tool-erase")
        visitor.stroke([(3, 5, 9), (3, 5, 11)], 0)
        expected[3, 5, 9:12] = 0
        assert np.array_equal(visitor.labels(PATCH), expected)
        visitor.page.click("#undo")
        visitor.page.keyboard.press("Shift+Z")
        assert np.array_equal(visitor.labels(PATCH), expected)
        visitor.submit()
    assert np.array_equal(accepted(lettered, BOX), expected)
