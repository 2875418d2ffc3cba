"""The dock widget: a form that asks which campaign, then the annotator's and the reviewer's panel."""

from __future__ import annotations

from typing import Any

import napari
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QFormLayout, QLineEdit, QTabWidget, QVBoxLayout, QWidget

from rescueseg.annotation.client import AnnotationClient, CampaignInfo
from rescueseg.annotation.clients import open_client
from rescueseg.annotation.login import login_name
from rescueseg.napari_plugin.annotate_panel import AnnotatePanel
from rescueseg.napari_plugin.dialogs import button, text
from rescueseg.napari_plugin.drafts import Drafts, state_folder
from rescueseg.napari_plugin.review import Review
from rescueseg.napari_plugin.review_panel import ReviewPanel
from rescueseg.napari_plugin.runner import Runner, as_text
from rescueseg.napari_plugin.session import Session

KEEP_MS, BEAT_MS, TICK_MS = 3_000, 30_000, 1_000


class AnnotationWidget:
    """The dock widget of a viewer; `root` is its Qt widget.

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
        self.root.setProperty("widget", self)  # so that it lives as long as its Qt widget
        self.root.setMinimumWidth(300)
        self.head = text()
        self.line = text()
        self.form = QWidget()
        self.runner = Runner(self._show_error, self._set_busy)
        self._timers: list[Any] = []
        self._layout = QVBoxLayout(self.root)
        for part in (self.head, self.form, self.line):
            self._layout.addWidget(part)
        self._lay_out_form()
        self._layout.addStretch()

    def _lay_out_form(self) -> None:
        self.address, self.name, self.token = QLineEdit(), QLineEdit(login_name()), QLineEdit()
        self.address.setPlaceholderText("folder of the campaign, or address of its server")
        self.token.setEchoMode(QLineEdit.EchoMode.Password)
        self.token.setPlaceholderText("for a server that asks for one")
        rows = QFormLayout(self.form)
        rows.addRow("Campaign", self.address)
        rows.addRow("You are", self.name)
        rows.addRow("Token", self.token)
        self.open_button = button("Open", self.open_form)
        rows.addRow(self.open_button)

    def open_form(self) -> None:
        """Open the campaign that the form names."""
        address, name, token = self.address.text().strip(), self.name.text().strip(), self.token.text().strip()
        self.say("Opening…", False)
        self.open(address, name, token)

    def open(self, address: str, name: str, token: str = "", *, review: bool = False) -> None:
        """Open a campaign and take the first patch, or list the tickets that wait for a reviewer."""

        def connect() -> tuple[AnnotationClient, CampaignInfo]:
            client = open_client(address, name, token)
            return client, client.info()

        self.runner.run(connect, lambda connection: self._show_panels(address, *connection, review=review))

    def _show_panels(self, address: str, client: AnnotationClient, info: CampaignInfo, *, review: bool) -> None:
        drafts = Drafts(state_folder(), address, info.annotator)
        session = Session(client, drafts)
        session.refresh()
        self.annotate = AnnotatePanel(self.viewer, session, self.runner, self.say)
        tabs = QTabWidget()
        tabs.addTab(self.annotate.root, "Annotate")
        if info.role != "annotator":
            self.review = ReviewPanel(self.viewer, Review(client, drafts), info, self.runner, self.say)
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

    def _show_head(self, info: CampaignInfo) -> None:
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
        """Keep the drawings before the window closes."""
        for panel in (self.annotate, self.review):
            if panel is not None:
                panel.keep_now()

    def say(self, line: str, is_error: bool) -> None:
        """Show a line below the panels."""
        self.line.setStyleSheet("color: #ff8f6b" if is_error else "")
        self.line.setText(line)

    def _show_error(self, error: Exception) -> None:
        self.say(as_text(error), True)

    def _set_busy(self, busy: bool) -> None:
        self.open_button.setEnabled(not busy)
        for panel in (self.annotate, self.review):
            if panel is not None:
                panel.update_buttons()


def annotation_widget(viewer: napari.Viewer) -> Any:
    """Return the dock widget of a viewer (napari's Plugins menu calls this)."""
    return AnnotationWidget(viewer).root


def open_window(address: str, name: str, *, review: bool = False) -> AnnotationWidget:
    """Return the dock widget in a new viewer, which opens a campaign as soon as napari runs."""
    viewer = napari.Viewer(title=f"rescueseg: {address}")
    widget = AnnotationWidget(viewer)
    viewer.window.add_dock_widget(widget.root, name="rescueseg", area="right")
    widget.open(address, name, review=review)
    return widget
