"""The reviewer's panel: tickets that wait, two versions A and B in turn, and a verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from rescueseg.annotation.client import CampaignInfo
from rescueseg.labels import PatchLabels
from rescueseg.napari_plugin.dialogs import ask_comment, button, show_history, text
from rescueseg.napari_plugin.layers import PatchLayers, on_activity
from rescueseg.napari_plugin.review import Review, ReviewWork
from rescueseg.napari_plugin.runner import Runner
from rescueseg.queue.records import AnnotationRecord, TicketRecord

Say = Callable[[str, bool], None]


class ReviewPanel:
    """The panel.

    Parameters
    ----------
    viewer : napari.Viewer
        Where patches are shown.
    review : Review
        The reviewer's session.
    info : CampaignInfo
        The campaign.
    runner : Runner
        Runs calls of the session in threads.
    say : callable
        Shows a line; the flag tells whether it is an error.
    """

    def __init__(self, viewer: Any, review: Review, info: CampaignInfo, runner: Runner, say: Say) -> None:
        self.viewer, self.review, self.info, self.runner, self.say = viewer, review, info, runner, say
        self.layers: PatchLayers | None = None
        self.versions: list[Any] = []
        self._spot = -1
        self.root = QWidget()
        self.waiting = QListWidget()
        self.waiting.setMaximumHeight(120)
        self.waiting.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.waiting.itemActivated.connect(lambda item: self.open(item.data(Qt.ItemDataRole.UserRole)))
        self.about = text("Open a ticket: double-click.")
        self.refresh = button("Refresh", self.list_waiting, tip="Which tickets wait for a reviewer")
        self.toggle = button("A or B", self.toggle_version, key="T", tip="Show the other version")
        self.jump = button("Jump", self.jump_to_spot, key="D", tip="Go to the largest disagreement, then the next one")
        self.history = button("History…", self.ask_history, tip="Every change of this ticket")
        self.accept_a = button("Accept A", lambda: self.accept(0))
        self.accept_b = button("Accept B", lambda: self.accept(1))
        self.reject = button("Send back…", self.send_back, tip="With a comment, to its annotator")
        self.begin_fix = button("Fix", self.fix, tip="Correct the version that is shown")
        self.accept_fix = button("Accept the fix", self.hand_in_fix)
        layout = QVBoxLayout(self.root)
        for part in (self.refresh, self.waiting, self.about):
            layout.addWidget(part)
        grid = QGridLayout()
        parts = (
            self.toggle, self.jump, self.accept_a, self.accept_b, self.begin_fix, self.accept_fix, self.reject, self.history,
        )  # fmt: skip
        for place, part in enumerate(parts):
            grid.addWidget(part, place // 2, place % 2)
        layout.addLayout(grid)
        layout.addStretch()
        self.update_buttons()
        on_activity(viewer, review.active.touch)

    def list_waiting(self) -> None:
        """Fetch the tickets that wait for a reviewer."""
        self.runner.run(self.review.client.to_review, self._list)

    def _list(self, tickets: list[TicketRecord]) -> None:
        self.waiting.clear()
        for ticket in tickets:
            item = QListWidgetItem(f"{ticket.ticket_id}  ({ticket.volume_id})")
            item.setData(Qt.ItemDataRole.UserRole, ticket.ticket_id)
            self.waiting.addItem(item)
        self.say(f"{len(tickets)} wait for a reviewer.", False)

    def open(self, ticket_id: str) -> None:
        """Show a ticket."""
        self.keep_now()
        self.say("Loading…", False)
        self.runner.run(lambda: self.review.open(ticket_id), self._show)

    def _show(self, work: ReviewWork) -> None:
        self._clear()
        self.layers = layers = PatchLayers(
            self.viewer, work.view, self.info.classes, numbered=self.info.kind == "instance"
        )
        box = work.view.ticket.box
        self.versions = [
            layers.add_labels(f"{letter}: {record.annotator}, version {record.version}", labels, box)
            for letter, record, labels in zip("AB", work.pair, work.labels, strict=False)
        ]
        if work.differs is not None:
            layers.add_mask("A differs from B", work.differs, box)
        layers.look_at_patch()
        self._spot = -1
        self.show_version(0)
        lines = [
            f"{letter}: {record.annotator} with {record.tool}, version {record.version} {record.verdict}"
            for letter, record in zip("AB", work.pair, strict=False)
        ]
        if work.differs is not None:
            lines.append(f"{int(work.differs.sum()):,} voxels differ")
        self.about.setText("\n".join([work.view.ticket.ticket_id, *lines]))
        if work.fix is not None:
            self._draw(work.fix)
            self.say("Your fix from before is back: it was not handed in.", False)
        else:
            self.say("", False)
        self.update_buttons()

    def _clear(self) -> None:
        if self.layers is not None:
            self.layers.clear()
        self.layers, self.versions = None, []
        self.update_buttons()

    # looking ---

    def show_version(self, number: int) -> None:
        """Show A (0) or B (1) alone."""
        for place, layer in enumerate(self.versions):
            layer.visible = place == number

    def visible_version(self) -> int:
        """Return the index of the version that is shown."""
        return next((place for place, layer in enumerate(self.versions) if layer.visible), 0)

    def toggle_version(self) -> None:
        """Show the other version."""
        if self.versions:
            self.show_version((self.visible_version() + 1) % len(self.versions))

    def jump_to_spot(self) -> None:
        """Go to the largest disagreement, then to the next."""
        work = self.review.work
        if work is not None and self.layers is not None and work.spots:
            self._spot = (self._spot + 1) % len(work.spots)
            self.layers.go_to(work.spots[self._spot])

    def ask_history(self) -> None:
        """Show every change of the ticket."""
        ticket_id = self.review.ticket_id
        self.runner.run(
            lambda: self.review.client.history(ticket_id),
            lambda entries: show_history(self.root, ticket_id, entries),
        )

    # deciding ---

    def accept(self, place: int) -> None:
        """Accept A (0) or B (1)."""
        work = self.review.work
        if work is not None and place < len(work.pair):
            version = work.pair[place].version
            self.runner.run(lambda: self.review.accept(version), self._show_verdict)

    def send_back(self) -> None:
        """Ask for a comment, and send the ticket back."""
        ticket_id = self.review.ticket_id
        if comment := ask_comment(self.root):
            self.runner.run(lambda: self.review.reject(comment), lambda _: self._continue(f"{ticket_id} is sent back."))

    def fix(self) -> None:
        """Begin to correct the version that is shown."""
        work = self.review.work
        if work is not None:
            self._draw(work.labels[self.visible_version()])
            self.update_buttons()

    def _draw(self, labels: PatchLabels) -> None:
        assert self.layers is not None
        self.layers.draw_on(labels)
        self.show_version(-1)

    def hand_in_fix(self) -> None:
        """Hand in the correction, accepted."""
        if self.layers is not None and self.layers.drawing is not None:
            labels = self.layers.labels()
            self.runner.run(lambda: self.review.fix(labels), self._show_verdict)

    def _show_verdict(self, record: AnnotationRecord) -> None:
        self._continue(f"Version {record.version} of {record.ticket_id} is {record.verdict}.")

    def _continue(self, line: str) -> None:
        self._clear()
        self.about.setText("Open a ticket: double-click.")
        self.list_waiting()
        self.say(line, False)

    # keeping ---

    def keep(self) -> None:
        """Keep a correction on this machine; called every few seconds."""
        if self.layers is not None and self.layers.drawing is not None and not self.runner.busy:
            labels = self.layers.labels()
            self.runner.run_in_background("keep the fix", lambda: self.review.keep(labels))

    def keep_now(self) -> None:
        """Keep a correction before the window closes."""
        if self.layers is not None and self.layers.drawing is not None:
            self.review.keep(self.layers.labels())

    def update_buttons(self) -> None:
        """Enable the buttons that make sense now: none while something runs."""
        idle, work = not self.runner.busy, self.review.work
        is_open = idle and self.layers is not None and work is not None
        is_fix = self.layers is not None and self.layers.drawing is not None
        is_pair = is_open and len(self.versions) > 1
        self.refresh.setEnabled(idle)
        for part in (self.accept_a, self.reject, self.history):
            part.setEnabled(is_open)
        for part in (self.toggle, self.accept_b):
            part.setEnabled(is_pair)
        self.jump.setEnabled(is_pair and work is not None and bool(work.spots))
        self.begin_fix.setEnabled(is_open and not is_fix)
        self.accept_fix.setEnabled(is_open and is_fix)
