"""Questions to the person at the window, and the small parts that its panels are made of."""

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


def button(text: str, pressed: Callable[[], object], *, key: str = "", tip: str = "") -> Any:
    """Return a button; its key is pressed anywhere in the window, and the canvas keeps the keyboard."""
    made = QPushButton(f"{text}  ({key})" if key else text)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    if key:
        made.setShortcut(QKeySequence(key))
    made.setToolTip(tip)
    made.clicked.connect(lambda _checked=False: pressed())
    return made


def text(line: str = "") -> QLabel:
    """Return a line of text that wraps."""
    made = QLabel(line)
    made.setWordWrap(True)
    return made


def colour_icon(colour: str) -> Any:
    """Return a square of one colour."""
    pixmap = QPixmap(14, 14)
    pixmap.fill(QColor(colour))
    return QIcon(pixmap)


def ask_reason(parent: Any, suggested: str = "") -> str:
    """Ask why nobody can annotate the patch; empty when the person thought better of it."""
    reasons = [*([suggested] if suggested else []), *SKIP_REASONS]
    reason, agreed = QInputDialog.getItem(parent, "Skip the patch", "Why can nobody annotate it?", reasons, 0, True)
    return str(reason).strip() if agreed else ""


def ask_comment(parent: Any) -> str:
    """Ask what the annotator should change; empty when the person thought better of it."""
    comment, agreed = QInputDialog.getMultiLineText(parent, "Send back", "What should be changed?")
    return str(comment).strip() if agreed else ""


def confirm(parent: Any, question: str, agree: str) -> bool:
    """Ask before something that cannot be taken back."""
    box = QMessageBox(QMessageBox.Icon.Question, "rescueseg", question, parent=parent)
    yes = box.addButton(agree, QMessageBox.ButtonRole.AcceptRole)
    box.setDefaultButton(box.addButton("Go back", QMessageBox.ButtonRole.RejectRole))
    box.exec()
    return bool(box.clickedButton() is yes)


def hand_in_anyway(parent: Any, warnings: Sequence[LabelWarning]) -> bool:
    """Show what is odd about labels; return whether they are meant so."""
    lines = "\n".join(f"•  {warning.message}" for warning in warnings)
    return confirm(parent, f"Before this is handed in:\n\n{lines}", "It is right: hand it in")


def show_history(parent: Any, ticket_id: str, entries: Sequence[AuditEntry]) -> None:
    """Show every change of a ticket."""
    dialog = QDialog(parent)
    dialog.setWindowTitle(f"History of {ticket_id}")
    shown = QTextEdit()
    shown.setReadOnly(True)
    shown.setPlainText("\n".join(history_lines(entries)))
    buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
    buttons.rejected.connect(dialog.reject)
    layout = QVBoxLayout(dialog)
    layout.addWidget(shown)
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
