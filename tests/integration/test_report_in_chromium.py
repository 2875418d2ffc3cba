"""The pages as a browser shows them: nothing cut off, nothing broken, nothing fetched."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.champion import compare_models
from rescueseg.evaluation.comparison import compare_generations
from rescueseg.evaluation.pooled import group_scores
from rescueseg.evaluation.stored_scores import current_evaluation
from rescueseg.reports.campaign_report import write_report
from rescueseg.reports.delivery_page import write_page
from rescueseg.reports.evaluation_pages import write_comparison_page, write_evaluation_page
from tests.delivered_campaign import deliver, write_delivery
from tests.evaluated_campaign import make_campaign, phantom_truth, write_generation

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the report, an evaluation and a comparison of two generations of different families, and a delivery."""
    campaign = make_campaign(tmp_path_factory.mktemp("shown"))
    write_generation(campaign, 0, 2.4)
    write_generation(campaign, 1, 1.2, trainer="nnunet")
    both = [current_evaluation(campaign, g, choose_scored_objects) for g in (0, 1)]
    written = [
        write_report(campaign, []).path,
        write_evaluation_page(campaign, both[1], {"test": group_scores(both[1], "test", ("a",))}),
        write_comparison_page(
            campaign, *both, compare_models(*both, []), {"test": compare_generations(*both, "test", ("a",))}
        ),
    ]
    out, truth = DeliveryFolder(str(tmp_path_factory.mktemp("out"))), phantom_truth()
    write_delivery(campaign, out)
    deliver(campaign, out, "phantom", (truth > 0).astype(np.uint8), truth.astype(np.uint32), truth)
    write_page(out)
    return [*(campaign.storage.path(path) for path in written), out.storage.path("index.html")]


@pytest.mark.needs_chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 800])
def test_the_pages_fit_their_window_and_fetch_nothing(pages: list[str], width: int) -> None:
    from playwright.sync_api import sync_playwright

    fetched: list[str] = []
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: fetched.append(request.url))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        for path in pages:
            page.goto(f"file://{path}")
            assert page.locator("h2, h1").first.inner_text()
            assert page.evaluate("document.images.length") >= 2
            page.evaluate("[...document.images].forEach(i => i.loading = 'eager')")
            page.wait_for_function("[...document.images].every(i => i.complete)")
            assert page.evaluate("[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length") == 0
            shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert shown[0] <= shown[1], f"{path} is wider than its window"
        browser.close()
    assert wrong == []
    assert [url for url in fetched if not url.startswith(("file://", "data:"))] == []
