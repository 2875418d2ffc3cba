"""The annotator's panel: next patch, what to paint with, hand in, and the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtWidgets import QButtonGroup, QCheckBox, QGridLayout, QGroupBox, QHBoxLayout, QVBoxLayout, QWidget

from rescueseg.annotation.client import LabelWarning
from rescueseg.geometry import zyx
from rescueseg.labels import IGNORE
from rescueseg.napari_plugin.dialogs import ask_reason, button, colour_icon, confirm, hand_in_anyway, show_history, text
from rescueseg.napari_plugin.layers import BACKGROUND_NAME, IGNORE_NAME, PatchLayers, class_colour, on_activity
from rescueseg.napari_plugin.runner import Runner, as_text
from rescueseg.napari_plugin.session import Session, Work
from rescueseg.queue.records import AnnotationRecord

Say = Callable[[str, bool], None]


def clock_text(seconds: float) -> str:
    """Return seconds as h:mm:ss.

    Examples
    --------
    >>> clock_text(3725.9)
    '1:02:05'
    """
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class AnnotatePanel:
    """The panel.

    Parameters
    ----------
    viewer : napari.Viewer
        Where patches are shown.
    session : Session
        The person's session.
    runner : Runner
        Runs calls of the session in threads.
    say : callable
        Shows a line; the flag tells whether it is an error.
    """

    def __init__(self, viewer: Any, session: Session, runner: Runner, say: Say) -> None:
        self.viewer, self.session, self.runner, self.say = viewer, session, runner, say
        self.layers: PatchLayers | None = None
        self._spot = -1
        self._load_error = ""
        self.root = QWidget()
        self.about = text("No patch is open.")
        self.clock = text()
        self.go_on = QCheckBox("then take the next one")
        self.go_on.setChecked(True)
        self.next = button("Next patch", self.take, key="N", tip="Take the next patch, or go on with the one you hold")
        self.submit = button("Submit", self.hand_in, key="Ctrl+Return", tip="Hand in the drawing")
        self.skip = button("Skip…", self.skip_patch, key="S", tip="Say why nobody can annotate this patch")
        self.release = button("Release", self.release_patch, tip="Give the patch back; your drawing is forgotten")
        self.jump = button("Jump", self.jump_to_spot, key="J", tip="Go to the most uncertain spot, then the next one")
        self.overlay = button("Uncertainty", self.toggle_uncertainty, key="U", tip="Show or hide the uncertainty")
        self.undo = button("Undo", self.undo_stroke, tip="Ctrl+Z")
        self.redo = button("Redo", self.redo_stroke, tip="Ctrl+Shift+Z")
        self.history = button("History…", self.ask_history, tip="Every change of this ticket")
        self.paint = QGroupBox("Paint with")
        self._lay_out()
        self.update_buttons()
        on_activity(viewer, session.active.touch)

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self.root)
        layout.addWidget(self.next)
        layout.addWidget(self.about)
        self._lay_out_paint()
        layout.addWidget(self.paint)
        grid = QGridLayout()
        for place, part in enumerate((self.jump, self.overlay, self.undo, self.redo, self.skip, self.release)):
            grid.addWidget(part, place // 2, place % 2)
        layout.addLayout(grid)
        layout.addWidget(self.submit)
        row = QHBoxLayout()
        row.addWidget(self.go_on)
        row.addWidget(self.history)
        layout.addLayout(row)
        layout.addWidget(self.clock)
        layout.addStretch()

    def _lay_out_paint(self) -> None:
        info = self.session.info
        self.brushes = QButtonGroup(self.paint)
        rows = QVBoxLayout(self.paint)
        if info.kind == "instance":
            rows.addWidget(
                button(
                    f"New {info.classes[0]}",
                    self.new_object,
                    key="O",
                    tip="Paint with a number no object has; L picks one",
                )
            )
        else:
            for number, name in enumerate(info.classes, start=1):
                self._add_brush(rows, number, name, f"Alt+{number}" if number < 10 else "", class_colour(number))
        self._add_brush(rows, 0, f"{BACKGROUND_NAME} (erase)", "Alt+0", "#000000")
        self._add_brush(rows, IGNORE, IGNORE_NAME, "I", class_colour(IGNORE))

    def _add_brush(self, rows: Any, number: int, name: str, key: str, colour: str) -> None:
        brush = button(name, lambda: self.choose(number), key=key)
        brush.setIcon(colour_icon(colour))
        brush.setCheckable(True)
        self.brushes.addButton(brush, number)
        rows.addWidget(brush)

    # patches ---

    def take(self) -> None:
        """Take the next patch, or say that one is open."""
        if self.session.work is not None:
            self.say("Submit, skip or release this patch first.", False)
            return
        self.say("Loading…", False)
        self.runner.run(self._load, self._show)

    def _load(self) -> Work | None:
        self._load_error = ""
        try:
            work = self.session.take()
            self.session.refresh()
        except Exception as error:
            self._load_error = as_text(error)
            raise
        return work

    def _show(self, work: Work | None) -> None:
        self._clear()
        if work is None:
            self.about.setText("No patch is open.")
            self.say("There is nothing to annotate now.", False)
            return
        info = self.session.info
        self.layers = PatchLayers(self.viewer, work.view, info.classes, numbered=info.kind == "instance")
        self.layers.draw_on(work.labels)
        self.layers.look_at_patch()
        self._spot = -1
        if info.kind == "semantic":
            self.choose(1)
        self.about.setText(patch_facts(work))
        self.say("Your drawing from before is back: it was not handed in." if work.is_restored else "", False)
        self.update_buttons()

    def _clear(self) -> None:
        if self.layers is not None:
            self.layers.clear()
            self.layers = None
        self.update_buttons()

    def _continue(self, line: str) -> None:
        """Close the patch, then take the next one if that is ticked."""
        self._clear()
        self.about.setText("No patch is open.")
        if self.go_on.isChecked():
            self.take()
        self.say(line, False)

    def hand_in(self, override: bool = False) -> None:
        """Hand in the drawing; ask when there is something odd about it."""
        if self.layers is None:
            return
        labels = self.layers.labels()

        def show(result: AnnotationRecord | list[LabelWarning]) -> None:
            if isinstance(result, AnnotationRecord):
                self._continue(
                    f"Version {result.version} of {result.ticket_id} {result.verdict}: "
                    f"{result.voxels_corrected:,} voxels corrected in {clock_text(result.seconds)}."
                )
            else:
                self._ask_about(result)

        self.say("Handing in…", False)
        self.runner.run(lambda: self.session.hand_in(labels, override=override), show)

    def _ask_about(self, warnings: list[LabelWarning]) -> None:
        if hand_in_anyway(self.root, warnings):
            self.hand_in(override=True)
            return
        self.say("Not handed in: " + "; ".join(warning.message for warning in warnings), True)
        places = [warning.at_zyx for warning in warnings if warning.at_zyx is not None]
        if places and self.layers is not None:
            offset = self.layers.view.ticket.box.offset_zyx
            self.layers.go_to(zyx(o + v for o, v in zip(offset, places[0], strict=True)))

    def skip_patch(self) -> None:
        """Ask why, and take the patch out of the queue."""
        if self.session.lease is None:
            return
        suggested = f"cannot be loaded: {self._load_error}" if self._load_error else ""
        if reason := ask_reason(self.root, suggested):
            self.runner.run(lambda: self.session.skip(reason), lambda _: self._continue("Skipped."))

    def release_patch(self) -> None:
        """Give the patch back, after asking where something was drawn."""
        work = self.session.work
        has_drawing = work is not None and self.layers is not None and self.layers.labels() != work.view.start
        if has_drawing and not confirm(self.root, "Give the patch back? Your drawing is forgotten.", "Release"):
            return
        self.go_on.setChecked(False)  # the next one would be this one
        self.runner.run(self.session.release, lambda _: self._continue("Back in the queue."))

    def ask_history(self) -> None:
        """Show every change of the ticket."""
        lease = self.session.lease
        if lease is not None:
            ticket_id = lease.ticket_id
            self.runner.run(
                lambda: self.session.client.history(ticket_id),
                lambda entries: show_history(self.root, ticket_id, entries),
            )

    # painting ---

    def choose(self, number: int) -> None:
        """Paint with a class or ignore, or erase."""
        if self.layers is not None:
            self.layers.choose(number)
        if (brush := self.brushes.button(number)) is not None:
            brush.setChecked(True)

    def undo_stroke(self) -> None:
        """Undo the last stroke."""
        if self.layers is not None:
            self.layers.undo()

    def redo_stroke(self) -> None:
        """Redo the stroke that was undone last."""
        if self.layers is not None:
            self.layers.redo()

    def new_object(self) -> None:
        """Paint with a number that no object has."""
        if self.layers is not None:
            self.say(f"Painting object {self.layers.choose_object(new=True)}.", False)

    def jump_to_spot(self) -> None:
        """Go to the most uncertain spot, then to the next."""
        work = self.session.work
        if work is None or self.layers is None or not work.spots:
            return
        self._spot = (self._spot + 1) % len(work.spots)
        self.layers.go_to(work.spots[self._spot])
        self.say(f"Uncertain spot {self._spot + 1} of {len(work.spots)}, in the middle of the view.", False)

    def toggle_uncertainty(self) -> None:
        """Show or hide the uncertainty."""
        if self.layers is not None and self.layers.uncertainty is not None:
            self.layers.uncertainty.visible = not self.layers.uncertainty.visible

    # time ---

    def tick(self) -> None:
        """Show the time; called every second."""
        if self.session.work is None:
            self.clock.setText("")
            return
        seconds = self.session.seconds_left()
        lease = f"{clock_text(seconds)} left" if seconds else "the lease ran out"
        self.clock.setText(f"{clock_text(self.session.active.total)} at work · {lease}")

    def keep(self) -> None:
        """Keep the drawing on this machine; called every few seconds."""
        if self.layers is not None and not self.runner.busy:
            labels = self.layers.labels()
            self.runner.run_in_background("keep", lambda: self.session.keep(labels))

    def keep_now(self) -> None:
        """Keep the drawing before the window closes."""
        if self.layers is not None:
            self.session.keep(self.layers.labels())

    def beat(self) -> None:
        """Send the time worked; called now and then."""
        if self.session.work is not None and not self.runner.busy:
            self.runner.run_in_background("beat", self.session.beat)

    def update_buttons(self) -> None:
        """Enable the buttons that make sense now: none while something runs."""
        idle, shown = not self.runner.busy, self.layers is not None
        work = self.session.work
        self.next.setEnabled(idle and not shown)
        for part in (self.submit, self.undo, self.redo, self.paint):
            part.setEnabled(idle and shown)
        for part in (self.skip, self.release, self.history):
            part.setEnabled(idle and self.session.lease is not None)
        uncertain = work is not None and work.view.uncertainty is not None
        self.overlay.setEnabled(shown and uncertain)
        self.jump.setEnabled(shown and work is not None and bool(work.spots))


def patch_facts(work: Work) -> str:
    """Return the facts of a patch: ticket, place, size, purpose, reason and comment."""
    ticket = work.view.ticket
    size = " × ".join(f"{n * s:.3g}" for n, s in zip(ticket.box.shape_zyx, work.view.spacing_um_zyx, strict=True))
    lines = [ticket.ticket_id, f"{ticket.volume_id} {ticket.box}, {size} µm (z, y, x)"]
    if ticket.purpose != "pool":
        lines.append(f"{ticket.purpose}: annotate it completely; no first mask, so that nothing biases you")
    if ticket.reason or ticket.stratum:
        lines.append(f"why: {ticket.reason or ticket.stratum}")
    if work.lease.comment:
        lines.append(f"reviewer: {work.lease.comment}")
    return "\n".join(lines)
