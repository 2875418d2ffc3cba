"""The annotation server's page in a real browser: mouse on voxels, no request elsewhere, no error on the page."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
WAIT_SECONDS = 120.0

_SAYS = "document.querySelector('#message').innerText.includes({})"

Voxel = tuple[int, int, int]


class Visitor:
    """Somebody at the page. Voxels are z, y, x of the patch."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.elsewhere: list[str] = []
        self.wrong: list[str] = []
        page.on("request", lambda request: self._asked(request.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)

    def _asked(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", "data:", "blob:")):
            self.elsewhere.append(url)

    def visit(self, query: str = "") -> None:
        """Open the page."""
        self.page.goto(f"{self.url}/{query}")
        self.until("window.page !== undefined || document.querySelector('dialog').open")

    def until(self, expression: str) -> None:
        """Wait until something is so on the page; its content policy forbids Playwright's own way."""
        end = time.monotonic() + WAIT_SECONDS
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"{expression}: {self.message}"
            self.page.wait_for_timeout(50)

    @property
    def message(self) -> str:
        """What the page says."""
        return str(self.page.inner_text("#message"))

    def next(self) -> None:
        """Ask for the next patch and wait until it is open."""
        self.page.click("#next")
        self.until("page.editor.isOpen && page.work.busy === false")

    def labels(self, shape: Voxel) -> npt.NDArray[np.uint8]:
        """Return what the page says is drawn."""
        return np.array(self.page.evaluate("Array.from(page.editor.labels)"), np.uint8).reshape(shape)

    def pixel(self, voxel: Voxel, axis: int) -> tuple[float, float]:
        """Show the plane of a voxel across an axis; return where the voxel lies in the window."""
        x, y = self.page.evaluate("([voxel, axis]) => page.viewer.pixel(voxel, axis)", [list(voxel), axis])
        return x, y

    def click(self, voxel: Voxel, axis: int) -> None:
        """Click on a voxel in the plane across an axis."""
        self.page.mouse.click(*self.pixel(voxel, axis))

    def stroke(self, voxels: list[Voxel], axis: int) -> None:
        """Draw from voxel to voxel of one plane, shown alone."""
        self.page.click(f"#view-{('xy', 'xz', 'zy')[axis]}")
        points = [self.pixel(voxel, axis) for voxel in voxels]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point)
        self.page.mouse.up()

    def picture(self) -> npt.NDArray[np.uint8]:
        """Return a screenshot, rows first."""
        return np.asarray(imagecodecs.png_decode(self.page.screenshot()))

    def says(self, text: str) -> None:
        """Wait until the page says something."""
        self.until(_SAYS.format(json.dumps(text)))

    def submit(self) -> None:
        """Submit, with a yes to every warning."""
        self.page.click("#submit")
        self.until(f"document.querySelector('dialog').open || {_SAYS.format(json.dumps('Handed in'))}")
        if self.page.evaluate("document.querySelector('dialog').open"):
            self.page.click("dialog .buttons button:last-child")
        self.says("Handed in")


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium for a block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browsing(browser: Any, url: str, *, name: str = "anna", ticket: str = "", sits: bool = True) -> Iterator[Visitor]:
    """Open the page of a server for a block; afterwards nothing may have been fetched elsewhere or gone wrong.

    Parameters
    ----------
    browser : playwright Browser
        Each block has a profile of its own in it.
    url : str
        The server.
    name : str
        Who somebody is.
    ticket : str
        Opened at once.
    sits : bool
        False where a token must be given first.
    """
    context = browser.new_context(viewport={"width": 900, "height": 640})
    if sits:
        who = json.dumps(json.dumps({"token": "", "name": name}))
        context.add_init_script(
            f"sessionStorage.getItem('rescueseg-person') ?? sessionStorage.setItem('rescueseg-person', {who})"
        )
    visitor = Visitor(context.new_page(), url)
    try:
        visitor.visit(f"?ticket={ticket}" if ticket else "")
        if ticket:
            visitor.until("page.editor.isOpen")
        yield visitor
    finally:
        context.close()
    assert visitor.elsewhere == []
    assert visitor.wrong == []
