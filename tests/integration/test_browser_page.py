"""The browser page against a real server: what is drawn with the mouse is what the campaign gets, where it belongs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import Box, Spacing
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import make_queue, open_queue
from rescueseg.records import AcceptedAnnotation
from rescueseg.server.access import add_token
from rescueseg.server.page import STATIC
from tests.annotation_server import served
from tests.browser import CHROMIUM, Visitor, Voxel, browsing, chromium
from tests.evaluated_campaign import write_maps
from tests.next_snapshot import next_labels

IGNORE = 255
BRIGHT = 3000
BOX = Box((3, 9, 14), (12, 16, 20))
PATCH = BOX.shape_zyx
SPACING = (0.4, 0.2, 0.1)
AT = (2, 3, 8)

needs_chromium = pytest.mark.needs_chromium


def test_niivue_is_the_published_build() -> None:
    digest = hashlib.sha256((STATIC / "vendor" / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert "BSD 2-Clause" in (STATIC / "vendor" / "LICENSE.niivue").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with chromium() as started:
        yield started


class Served:
    """A campaign and its server."""

    def __init__(self, campaign: Campaign, url: str) -> None:
        self.campaign, self.url = campaign, url

    def ticket(self, name: str, volume: str, box: Box, prefill: npt.NDArray[np.uint8] | None = None) -> None:
        """Queue a ticket of that name."""
        path = None
        if prefill is not None:
            path = f"weak_labels/{name}/start.npz"
            self.campaign.storage.write_array(path, prefill)
        ticket = NewTicket(ticket_id=name, volume_id=volume, box=box, prefill=path)
        open_queue(self.campaign).tickets.add([ticket])

    def accepted(self, name: str) -> AcceptedAnnotation:
        """Return the accepted annotation of a ticket."""
        (found,) = (a for a in open_queue(self.campaign).views.accepted() if a.ticket_id == name)
        return found

    def labels(self, name: str, volume: str, box: Box) -> npt.NDArray[np.uint8]:
        """Return the labels of a ticket in the next snapshot, which must be those of this box."""
        assert self.accepted(name).tool == "browser"
        return next_labels(self.campaign, name, volume, box)


def letter(shape: Voxel, at: Voxel = AT) -> npt.NDArray[np.bool_]:
    """Return an F whose foot bends forward and whose arm bends back: no two of its mirror images are alike."""
    found = np.zeros(shape, bool)
    z, y, x = at
    found[z + 2, y : y + 9, x] = True
    found[z + 2, y, x : x + 6] = True
    found[z + 2, y + 4, x : x + 4] = True
    found[z : z + 3, y + 8, x] = True
    found[z + 2 : z + 7, y, x + 5] = True
    return found


def add_volume(campaign: Campaign, folder: Path, name: str, image: npt.NDArray[Any], spacing: Spacing) -> None:
    tifffile.imwrite(folder / f"{name}.tif", image)
    volumes.import_volume(campaign, volumes.VolumeImport(str(folder / f"{name}.tif"), volume_id=name, spacing=spacing))


def lettered_image() -> npt.NDArray[np.uint16]:
    """Return an image that is dark but for a bright letter in the patch, off its middle."""
    image = np.full((18, 40, 50), 100, np.uint16)
    image[BOX.slices][letter(PATCH)] = BRIGHT
    return image


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve a campaign with the letter, and a model that is unsure at one voxel of the patch."""
    folder = tmp_path_factory.mktemp("page")
    campaign = Campaign.create(str(folder / "c"), check_config({"name": "page", "classes": ["nucleus", "debris"]}))
    make_queue(campaign)
    add_volume(campaign, folder, "letter", lettered_image(), SPACING)
    entropy = np.zeros((18, 40, 50))
    entropy[tuple(np.add(BOX.offset_zyx, (7, 2, 15)))] = 0.6
    entropy[0, 0, 0] = 0.69  # outside the patch
    write_maps(campaign, 0, np.stack([entropy < 1, entropy > 1, entropy > 1]).astype(float), entropy, "letter")
    with served(campaign) as url:
        yield Served(campaign, url)


def seen(visitor: Visitor, plane: int) -> npt.NDArray[np.bool_]:
    """Return which voxels of a plane across z are bright in a picture of the window."""
    visitor.page.click("#view-xy")
    visitor.page.evaluate("page.viewer.nv.setCrosshairWidth(0)")
    (left, top), (right, bottom) = (visitor.pixel(v, 0) for v in ((plane, 0, 0), (plane, PATCH[1] - 1, PATCH[2] - 1)))
    picture = visitor.picture()
    rows, columns = np.linspace(top, bottom, PATCH[1]), np.linspace(left, right, PATCH[2])
    return np.asarray(picture[np.ix_(rows.round().astype(int), columns.round().astype(int))][..., 0] > 128)


@needs_chromium
def test_a_letter_is_shown_grown_and_handed_in_where_it_lies(site: Served, browser: Any) -> None:
    site.ticket("grow", "letter", BOX)
    with browsing(browser, site.url, ticket="grow") as visitor:
        assert np.array_equal(seen(visitor, 4), letter(PATCH)[4]), "as a microscopist sees it: x to the right, y down"
        visitor.page.click("#view-all")
        visitor.page.click("#tool-grow")
        visitor.page.check("#solid")
        visitor.click((4, 3, 10), 0)
        drawn = visitor.labels(PATCH)
        assert np.array_equal(drawn, letter(PATCH).astype(np.uint8))
        visitor.submit()
        assert "1 handed in" in visitor.page.inner_text("#mine")
    assert np.array_equal(site.labels("grow", "letter", BOX), drawn)


@needs_chromium
def test_pens_draw_the_voxels_under_the_mouse(site: Served, browser: Any) -> None:
    site.ticket("pens", "letter", BOX)
    expected = np.zeros(PATCH, np.uint8)
    with browsing(browser, site.url, ticket="pens") as visitor:
        visitor.page.click("#tool-pen")
        for axis, label in ((0, 1), (1, 2), (2, IGNORE)):  # a line along each axis that lies in the plane
            visitor.page.click(f"#label-{label}")
            for along in sorted({0, 1, 2} - {axis}):
                start = (3 + axis, 5 + axis, 9 + axis)
                end = (start[0] + 5 * (along == 0), start[1] + 5 * (along == 1), start[2] + 5 * (along == 2))
                visitor.stroke([start, end], axis)
                expected[tuple(slice(a, b + 1) for a, b in zip(start, end, strict=True))] = label
                assert np.array_equal(visitor.labels(PATCH), expected)
        visitor.page.click("#tool-erase")
        visitor.stroke([(3, 5, 9), (3, 5, 11)], 0)
        expected[3, 5, 9:12] = 0
        visitor.page.click("#undo")
        visitor.page.keyboard.press("Shift+Z")
        assert np.array_equal(visitor.labels(PATCH), expected)
        visitor.submit()
    assert np.array_equal(site.labels("pens", "letter", BOX), expected)


@needs_chromium
def test_outlines_are_filled_and_nothing_is_drawn_outside_the_patch(site: Served, browser: Any) -> None:
    site.ticket("outline", "letter", BOX)
    expected = np.zeros(PATCH, np.uint8)
    with browsing(browser, site.url, ticket="outline") as visitor:
        visitor.page.click("#tool-lasso")
        visitor.stroke([(6, 2, 3), (6, 2, 8), (6, 7, 8), (6, 7, 3), (6, 2, 3)], 0)
        expected[6, 2:8, 3:9] = 1
        assert np.array_equal(visitor.labels(PATCH), expected)
        visitor.page.click("#tool-pen")
        visitor.page.keyboard.press("2")
        visitor.page.fill("#size", "3")
        visitor.stroke([(6, 12, 18), (6, 12, 22)], 0)  # leaves the patch
        expected[6, 11:14, 17:20] = 2
        assert np.array_equal(visitor.labels(PATCH), expected)
        assert visitor.page.evaluate("page.viewer.nv.drawBitmap.reduce((n, v) => n + (v > 0), 0)") == np.sum(
            expected > 0
        )
        visitor.page.keyboard.press("x")
        visitor.click((6, 12, 18), 0)
        expected[expected == 2] = 0
        visitor.page.keyboard.press("b")
        visitor.page.keyboard.press("0")
        visitor.page.keyboard.press("b")
        visitor.click((6, 4, 5), 0)
        expected[expected == 1] = IGNORE
        assert np.array_equal(visitor.labels(PATCH), expected)
        visitor.submit()
    assert np.array_equal(site.labels("outline", "letter", BOX), expected)


@needs_chromium
def test_a_reload_loses_nothing_and_uncertainty_shows_where_to_look(site: Served, browser: Any) -> None:
    site.ticket("reload", "letter", BOX, letter(PATCH).astype(np.uint8))
    with browsing(browser, site.url, ticket="reload") as visitor:
        visitor.page.keyboard.press("j")
        z, y, x = np.add(BOX.offset_zyx, (7, 2, 15))
        assert f"z {z}  y {y}  x {x} " in visitor.page.text_content("#place")
        assert "uncertainty 0.6" in visitor.page.text_content("#place")
        visitor.page.keyboard.press("d")
        visitor.stroke([(1, 1, 1), (1, 1, 4)], 0)
        drawn = visitor.labels(PATCH)
        assert np.sum(drawn != letter(PATCH)) == 4
        visitor.until("page.editor.saving === 0")
        visitor.visit()
        visitor.until("page.editor.isOpen")
        assert "is back" in visitor.message
        assert np.array_equal(visitor.labels(PATCH), drawn)
        visitor.submit()
    assert np.array_equal(site.labels("reload", "letter", BOX), drawn)


@needs_chromium
def test_a_lease_that_ran_out_while_the_page_was_closed_loses_nothing(site: Served, browser: Any) -> None:
    site.ticket("expired", "letter", BOX, letter(PATCH).astype(np.uint8))
    queue = open_queue(site.campaign)
    with browsing(browser, site.url, name="carl", ticket="expired") as visitor:
        visitor.page.keyboard.press("d")
        visitor.stroke([(1, 1, 1), (1, 1, 4)], 0)
        drawn = visitor.labels(PATCH)
        assert np.sum(drawn != letter(PATCH)) == 4
        visitor.until("page.editor.saving === 0")
        (lease,) = queue.views.leases("carl")
        queue.leases.release(lease.lease_id, "carl")
        visitor.visit()
        visitor.says("Your drawing on expired was not handed in")
        visitor.page.click("text=Take the patch again")
        visitor.says("is back")
        (again,) = queue.views.leases("carl")
        assert (again.ticket_id, again.lease_id != lease.lease_id) == ("expired", True)
        assert np.array_equal(visitor.labels(PATCH), drawn)
        visitor.submit()
        visitor.visit()
        visitor.says("Next patch")
    assert np.array_equal(site.labels("expired", "letter", BOX), drawn)


@needs_chromium
def test_a_patch_that_cannot_be_loaded_does_not_block(site: Served, browser: Any) -> None:
    add_volume(
        site.campaign, Path(site.campaign.storage.path("volumes")).parent.parent, "lost", lettered_image(), SPACING
    )
    site.ticket("lost", "lost", BOX)
    site.ticket("after", "letter", BOX)
    with browsing(browser, site.url, name="bob") as visitor:
        visitor.page.route("**/view.npz", lambda route: route.fulfill(status=503, json={"what": "the disk is gone"}))
        visitor.page.evaluate("page.work.next({ ticket_id: 'lost' })")
        visitor.says("the disk is gone")
        visitor.page.unroute("**/view.npz")
        visitor.page.click("text=Skip it")
        visitor.says("Skipped")
        visitor.page.evaluate("page.work.next({ ticket_id: 'after' })")
        visitor.until("page.editor.isOpen")
        visitor.page.click("#release")
        visitor.says("Given back")
        visitor.wrong.clear()  # the browser's own line about the 503
    states = {ticket.ticket_id: ticket.status for ticket in open_queue(site.campaign).views.tickets()}
    assert (states["lost"], states["after"]) == ("skipped", "queued")


REAL = [
    ("gonuclear_1135", Box((20, 31, 42), (24, 40, 32))),
    pytest.param("bbbc050_mosaic_train", Box((11, 130, 201), (20, 48, 64)), marks=pytest.mark.slow),
    pytest.param("cdeep3m_mito_train", Box((9, 400, 611), (15, 64, 80)), marks=pytest.mark.slow),
    pytest.param("vesselnn_burgess2014_tgMouse", Box((2, 201, 150), (9, 96, 80)), marks=pytest.mark.slow),
]


@needs_chromium
@pytest.mark.parametrize(("name", "box"), REAL)
def test_round_trip_on_a_real_volume(site: Served, browser: Any, real_data: Path, name: str, box: Box) -> None:
    raw = tifffile.imread(real_data / name / "raw.tif")
    spacing = json.loads((real_data / name / "meta.json").read_text())["voxel_size_um_zyx"]
    volumes.import_volume(
        site.campaign, volumes.VolumeImport(str(real_data / name / "raw.tif"), volume_id=name, spacing=spacing)
    )
    start = (tifffile.imread(real_data / name / "labels.tif")[box.slices] > 0).astype(np.uint8)
    start[:2] = IGNORE
    site.ticket(name, name, box, start)
    with browsing(browser, site.url, ticket=name) as visitor:
        assert np.array_equal(visitor.labels(box.shape_zyx), start)
        expected = start.copy()
        for axis, label in ((0, 2), (1, 1), (2, IGNORE)):
            visitor.page.click("#tool-pen")
            visitor.page.click(f"#label-{label}")
            first = (4, 7 + axis, 12 - axis)
            last = tuple(n + 6 * (i == (axis + 1) % 3) for i, n in enumerate(first))
            visitor.stroke([first, last], axis)
            expected[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = label
            shown = visitor.page.text_content("#place")
            voxel = tuple(np.add(box.offset_zyx, last).tolist())
            assert shown.startswith(f"z {voxel[0]}  y {voxel[1]}  x {voxel[2]}   image {raw[voxel]}")
        visitor.page.click("#tool-erase")
        visitor.stroke([(5, 9, 9), (5, 9, 15)], 0)
        expected[5, 9, 9:16] = 0
        assert np.array_equal(visitor.labels(box.shape_zyx), expected)
        visitor.submit()
    assert np.array_equal(site.labels(name, name, box), expected)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str, str]]]:
    """Serve a campaign of numbered objects that is reviewed, to those who have a token; yield their tokens too."""
    folder = tmp_path_factory.mktemp("guarded")
    settings = {"name": "guarded", "classes": ["nucleus"], "annotation": {"labels": "instance", "review": True}}
    campaign = Campaign.create(str(folder / "c"), check_config(settings))
    make_queue(campaign)
    add_volume(campaign, folder, "letter", lettered_image(), SPACING)
    tokens = {
        "anna": add_token(campaign.storage, "anna", "annotator"),
        "rita": add_token(campaign.storage, "rita", "reviewer"),
    }
    with served(campaign, "--tokens") as url:
        yield Served(campaign, url), tokens


def sit_down(visitor: Visitor, token: str) -> None:
    """Show a token when asked for one."""
    visitor.page.fill("#token", token)
    visitor.page.keyboard.press("Enter")


@needs_chromium
def test_objects_are_numbered_reviewed_and_fixed(guarded: tuple[Served, dict[str, str]], browser: Any) -> None:
    site, tokens = guarded
    site.ticket("objects", "letter", BOX, letter(PATCH).astype(np.uint8))
    classes, ids = letter(PATCH).astype(np.uint8), letter(PATCH).astype(np.uint32)
    with browsing(browser, site.url, sits=False) as anna, browsing(browser, site.url, sits=False) as rita:
        sit_down(anna, "rescueseg_00000000_wrong")
        anna.until("document.querySelector('dialog').innerText.includes('not known')")
        sit_down(anna, tokens["anna"])
        anna.until("window.page !== undefined")
        anna.wrong.clear()  # the browser's own lines about two refusals
        assert not anna.page.is_visible("#mode-review")
        anna.next()
        anna.page.keyboard.press("o")
        anna.stroke([(9, 3, 2), (9, 3, 6)], 0)
        ids[9, 3, 2:7], classes[9, 3, 2:7] = 2, 1
        anna.page.keyboard.press("0")
        anna.stroke([(1, 14, 2), (1, 14, 6)], 0)
        classes[1, 14, 2:7] = IGNORE
        anna.submit()
        sit_down(rita, tokens["rita"])
        rita.until("window.page !== undefined")
        rita.wrong.clear()
        rita.page.click("#mode-review")
        rita.until("document.querySelector('#tickets button') !== null")
        assert rita.page.inner_text("#tickets button") == "letter · objects"
        judge = "getComputedStyle(document.querySelector('#judge')).opacity"
        assert (rita.page.is_disabled("#accept"), rita.page.evaluate(judge)) == (True, "1"), (
            "what lies under it is hidden"
        )
        rita.page.click("#tickets button")
        rita.until("page.editor.isOpen")
        assert np.array_equal(rita.labels(PATCH), np.where(classes == IGNORE, IGNORE, ids))
        rita.page.click("#reject")
        rita.page.fill("#text", "the line is noise")
        rita.page.keyboard.press("Enter")
        rita.says("Sent back")
        anna.next()
        assert "the line is noise" in anna.page.inner_text("#ticket")
        anna.page.keyboard.press("x")
        anna.click((9, 3, 4), 0)
        anna.submit()
        rita.until("document.querySelector('#tickets button') !== null")  # told by the server
        rita.page.click("#tickets button")
        rita.until("page.editor.isOpen")
        without = np.where(ids == 2, 0, np.where(classes == IGNORE, IGNORE, ids))
        assert np.array_equal(rita.labels(PATCH), without)
        rita.page.keyboard.press("a")
        rita.until("page.editor.labels.includes(2)")
        rita.page.click("#fix")
        rita.says("Fixed")
    found = site.accepted("objects")
    assert (found.annotator, found.version) == ("rita", 3)
    assert np.array_equal(site.campaign.storage.read_array(found.labels), classes)
    assert np.array_equal(site.campaign.storage.read_array(found.instances), ids)


@needs_chromium
def test_more_objects_than_a_drawing_holds_are_refused(guarded: tuple[Served, dict[str, str]], browser: Any) -> None:
    site, tokens = guarded
    many = np.zeros(PATCH, np.uint8)
    many[::2, ::2, ::2] = 1
    site.ticket("many", "letter", BOX, many)
    with browsing(browser, site.url, sits=False) as visitor:
        sit_down(visitor, tokens["anna"])
        visitor.until("window.page !== undefined")
        visitor.wrong.clear()
        visitor.page.click("#next")
        visitor.says("this patch holds 480 objects, and this page can draw 254")
        assert visitor.page.is_disabled("#submit")
        visitor.page.click("text=Give it back")
        visitor.says("Given back")
