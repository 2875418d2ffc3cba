"""Dialogs, and small Qt widgets that the panels use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QIcon, QKeySequence, QPixmap
from qtpy.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QInputDialog,
    QLabel,
    QMessageBox,
    QPushButton,
    QTextEdit,
    QVBoxLayout,
)

from rescueseg.annotation.client import LabelWarning
from rescueseg.queue.records import AuditEntry

SKIP_REASONS = ("out of focus", "artefact", "cannot be decided", "wrong place")


def button(text: str, on_press: Callable[[], object], *, key: str = "", tip: str = "") -> Any:
    """Return a button. Its key works everywhere in the window; the button never takes the keyboard from the canvas."""
    widget = QPushButton(f"{text}  ({key})" if key else text)
    widget.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    if key:
        widget.setShortcut(QKeySequence(key))
    widget.setToolTip(tip)
    widget.clicked.connect(lambda _is_checked=False: on_press())
    return widget


def text(line: str = "") -> QLabel:
    """Return a line of text that wraps."""
    label = QLabel(line)
    label.setWordWrap(True)
    return label


def colour_icon(colour: str) -> Any:
    """Return a square of one colour."""
    pixmap = QPixmap(14, 14)
    pixmap.fill(QColor(colour))
    return QIcon(pixmap)


def ask_reason(parent: Any, suggested: str = "") -> str:
    """Ask why nobody can annotate the patch; empty when the person cancelled."""
    reasons = [*([suggested] if suggested else []), *SKIP_REASONS]
    reason, is_ok = QInputDialog.getItem(parent, "Skip the patch", "Why can nobody annotate it?", reasons, 0, True)
    return str(reason).strip() if is_ok else ""


def ask_comment(parent: Any) -> str:
    """Ask what the annotator should change; empty when the person cancelled."""
    comment, is_ok = QInputDialog.getMultiLineText(parent, "Send back", "What should be changed?")
    return str(comment).strip() if is_ok else ""


def confirm(parent: Any, question: str, agree: str) -> bool:
    """Ask before something that cannot be undone."""
    box = QMessageBox(QMessageBox.Icon.Question, "rescueseg", question, parent=parent)
    yes = box.addButton(agree, QMessageBox.ButtonRole.AcceptRole)
    box.setDefaultButton(box.addButton("Go back", QMessageBox.ButtonRole.RejectRole))
    box.exec()
    return bool(box.clickedButton() is yes)


def hand_in_anyway(parent: Any, warnings: Sequence[LabelWarning]) -> bool:
    """Show warnings about labels; return whether the person hands them in all the same."""
    lines = "\n".join(f"•  {warning.message}" for warning in warnings)
    return confirm(parent, f"Before this is handed in:\n\n{lines}", "It is right: hand it in")


def show_history(parent: Any, ticket_id: str, entries: Sequence[AuditEntry]) -> None:
    """Show every change of a ticket."""
    dialog = QDialog(parent)
    dialog.setWindowTitle(f"History of {ticket_id}")
    text_box = QTextEdit()
    text_box.setReadOnly(True)
    text_box.setPlainText("\n".join(history_lines(entries)))
    buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
    buttons.rejected.connect(dialog.reject)
    layout = QVBoxLayout(dialog)
    layout.addWidget(text_box)
    layout.addWidget(buttons)
    dialog.resize(640, 320)
    dialog.exec()


def history_lines(entries: Sequence[AuditEntry]) -> list[str]:
    """Return a ticket's changes, one line each, in local time."""
    lines = []
    for entry in entries:
        step = entry.after if entry.before in ("", entry.after) else f"{entry.before} → {entry.after}"
        details = ", ".join(f"{key} {value}" for key, value in entry.details.items() if value not in ("", None))
        line = f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}  {entry.event}  {entry.actor}  {step}"
        lines.append(f"{line}  ({details})" if details else line)
    return lines
