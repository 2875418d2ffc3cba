"""The dock widget: a form that asks which campaign, then the annotator's and the reviewer's panel."""

from __future__ import annotations

from typing import Any

import napari
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QFormLayout, QLineEdit, QTabWidget, QVBoxLayout, QWidget

from rescueseg.annotation.client import Desk, DeskInfo
from rescueseg.annotation.clients import desk_for
from rescueseg.annotation.login import login_name
from rescueseg.napari_plugin.annotate_panel import AnnotatePanel
from rescueseg.napari_plugin.dialogs import button, text
from rescueseg.napari_plugin.drafts import Drafts, state_folder
from rescueseg.napari_plugin.review import Review
from rescueseg.napari_plugin.review_panel import ReviewPanel
from rescueseg.napari_plugin.runner import Runner, as_text
from rescueseg.napari_plugin.session import Session

KEEP_MS, BEAT_MS, TICK_MS = 3_000, 30_000, 1_000


class DeskWidget:
    """The desk in a viewer; `root` is its Qt widget.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer.
    """

    def __init__(self, viewer: Any) -> None:
        self.viewer = viewer
        self.annotate: AnnotatePanel | None = None
        self.review: ReviewPanel | None = None
        self.root = QWidget()
        self.root.setProperty("desk", self)  # so that it lives as long as its Qt widget
        self.root.setMinimumWidth(300)
        self.head = text()
        self.line = text()
        self.form = QWidget()
        self.runner = Runner(self._failed, self._busy_changed)
        self._timers: list[Any] = []
        self._layout = QVBoxLayout(self.root)
        for part in (self.head, self.form, self.line):
            self._layout.addWidget(part)
        self._lay_out_form()
        self._layout.addStretch()

    def _lay_out_form(self) -> None:
        self.place, self.name, self.token = QLineEdit(), QLineEdit(login_name()), QLineEdit()
        self.place.setPlaceholderText("folder of the campaign, or address of its server")
        self.token.setEchoMode(QLineEdit.EchoMode.Password)
        self.token.setPlaceholderText("for a server that asks for one")
        rows = QFormLayout(self.form)
        rows.addRow("Campaign", self.place)
        rows.addRow("You are", self.name)
        rows.addRow("Token", self.token)
        self.open_button = button("Open", self.open_form)
        rows.addRow(self.open_button)

    def open_form(self) -> None:
        """Open the campaign that the form names."""
        place, name, token = self.place.text().strip(), self.name.text().strip(), self.token.text().strip()
        self.say("Opening…", False)
        self.open(place, name, token)

    def open(self, place: str, name: str, token: str = "", *, review: bool = False) -> None:
        """Sit down at a campaign and take the first patch, or look at what waits for a reviewer."""

        def sit() -> tuple[Desk, DeskInfo]:
            desk = desk_for(place, name, token)
            return desk, desk.info()

        self.runner.run(sit, lambda found: self._seated(place, *found, review=review))

    def _seated(self, place: str, desk: Desk, info: DeskInfo, *, review: bool) -> None:
        drafts = Drafts(state_folder(), place, info.annotator)
        session = Session(desk, drafts)
        session.refresh()
        self.annotate = AnnotatePanel(self.viewer, session, self.runner, self.say)
        tabs = QTabWidget()
        tabs.addTab(self.annotate.root, "Annotate")
        if info.role != "annotator":
            self.review = ReviewPanel(self.viewer, Review(desk, drafts), info, self.runner, self.say)
            tabs.addTab(self.review.root, "Review")
        self.form.hide()
        self._layout.insertWidget(1, tabs)
        self._show_head(info)
        self.say("", False)
        self._start_timers()
        if review and self.review is not None:
            tabs.setCurrentWidget(self.review.root)
            self.review.list_waiting()
        else:
            self.annotate.take()

    def _show_head(self, info: DeskInfo) -> None:
        counts = ", ".join(f"{number} {status}" for status, number in info.counts.items() if number)
        self.head.setText(f"<b>{info.campaign}</b> · {info.annotator} ({info.role})<br>{counts or 'an empty queue'}")

    def _start_timers(self) -> None:
        for interval, call in ((TICK_MS, self._tick), (KEEP_MS, self._keep), (BEAT_MS, self._beat)):
            timer = QTimer(self.root)
            timer.timeout.connect(call)
            timer.start(interval)
            self._timers.append(timer)
        if (application := QApplication.instance()) is not None:
            application.aboutToQuit.connect(self.keep_now)

    def _tick(self) -> None:
        assert self.annotate is not None
        self.annotate.tick()
        self._show_head(self.annotate.session.info)

    def _keep(self) -> None:
        for panel in (self.annotate, self.review):
            if panel is not None:
                panel.keep()

    def _beat(self) -> None:
        assert self.annotate is not None
        self.annotate.beat()

    def keep_now(self) -> None:
        """Keep what was drawn before the window is gone."""
        for panel in (self.annotate, self.review):
            if panel is not None:
                panel.keep_now()

    def say(self, line: str, trouble: bool) -> None:
        """Show a line below the panels."""
        self.line.setStyleSheet("color: #ff8f6b" if trouble else "")
        self.line.setText(line)

    def _failed(self, error: Exception) -> None:
        self.say(as_text(error), True)

    def _busy_changed(self, busy: bool) -> None:
        self.open_button.setEnabled(not busy)
        for panel in (self.annotate, self.review):
            if panel is not None:
                panel.busy_changed(busy)


def desk_widget(viewer: napari.Viewer) -> Any:
    """Return the dock widget of a viewer (napari's Plugins menu calls this)."""
    return DeskWidget(viewer).root


def open_window(place: str, name: str, *, review: bool = False) -> DeskWidget:
    """Return the desk in a new viewer, which opens a campaign as soon as napari runs."""
    viewer = napari.Viewer(title=f"rescueseg: {place}")
    widget = DeskWidget(viewer)
    viewer.window.add_dock_widget(widget.root, name="rescueseg", area="right")
    widget.open(place, name, review=review)
    return widget
