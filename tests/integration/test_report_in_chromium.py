"""The report page as a browser shows it: nothing cut off, nothing broken, nothing fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rescueseg.report import write_report
from tests.unit.evaluated import make_campaign, write_generation

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.mark.needs_chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 800])
def test_the_report_fits_its_window_and_fetches_nothing(tmp_path: Path, width: int) -> None:
    from playwright.sync_api import sync_playwright

    campaign = make_campaign(tmp_path)
    for generation, noise in enumerate((2.4, 1.2)):
        write_generation(campaign, generation, noise)
    path = campaign.storage.path(write_report(campaign, []).path)
    fetched: list[str] = []
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: fetched.append(request.url))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"file://{path}")
        headline = page.locator("h2, h1").first.inner_text()
        shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        broken = page.evaluate("[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length")
        images = page.evaluate("document.images.length")
        browser.close()
    assert headline
    assert images >= 2
    assert broken == 0
    assert wrong == []
    assert [url for url in fetched if not url.startswith(("file://", "data:"))] == []
    assert shown[0] <= shown[1], "the page is wider than its window"
