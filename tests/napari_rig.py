"""A real napari window with the annotation panel in it, worked with mouse and keyboard; run in a process of its own.

``python tests/napari_rig.py SCENARIO ARGUMENTS.json RESULT.json`` plays one of the functions below and writes what it
returns. The tests in tests/integration/test_napari.py start it on a virtual screen.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QPoint, Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialog, QInputDialog, QMessageBox, QTabWidget

from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.records import DELIVERY
from rescueseg.labels import PatchLabels
from rescueseg.napari_plugin import widget as plugin
from rescueseg.napari_plugin.delivery_layers import DeliveryLayers
from rescueseg.napari_plugin.session import Work

Voxel = Sequence[int]
NEW = -1
"""Stands for an object of its own."""
CONTROL = Qt.KeyboardModifier.ControlModifier


class Rig:
    """The window and the hands at it."""

    def __init__(self, place: str, name: str, *, review: bool = False) -> None:
        self.widget = plugin.open_window(place, name, review=review)
        self.viewer = self.widget.viewer
        self.viewer.window.resize(1260, 860)
        self.canvas = self.viewer.window._qt_viewer.canvas.native
        self.asked: list[str] = []
        self.timer = QTimer()
        self.timer.timeout.connect(self.insist)
        self.timer.start(50)
        self.until(lambda: self.widget.annotate is not None and not self.widget.runner.busy)

    @property
    def panel(self) -> Any:
        return self.widget.annotate

    @property
    def said(self) -> str:
        return str(self.widget.line.text())

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:g} s; the window says: {self.said}")
            QApplication.processEvents()
            time.sleep(0.01)
        QApplication.processEvents()

    def insist(self) -> None:
        """Answer a question about odd labels: they are meant so."""
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox):
            self.asked.append(box.text())
            box.buttons()[0].click()

    def idle(self) -> None:
        self.until(lambda: not self.widget.runner.busy)

    def key(self, letter: str, modifier: Any = Qt.KeyboardModifier.NoModifier) -> None:
        if QApplication.activeWindow() is None:  # without a window manager nobody makes it that after a dialog
            self.viewer.window.activate()
            self.until(QApplication.activeWindow)
        QTest.keyClick(self.canvas, getattr(Qt.Key, f"Key_{letter}"), modifier)
        end = time.monotonic() + 0.2  # a button's key shows it pressed for a moment before it acts
        self.until(lambda: time.monotonic() > end)

    def pixel(self, voxel: Voxel, spacing: Sequence[float]) -> QPoint:
        """Return where a voxel of the volume is on the canvas, its slice brought into view."""
        world = np.array(voxel) * spacing
        self.viewer.dims.point = tuple(world)
        QApplication.processEvents()
        shown = list(self.viewer.dims.displayed)
        from_middle = (world - np.array(self.viewer.scene.camera.center))[shown] * self.viewer.camera.zoom
        y, x = from_middle + np.array([self.canvas.height(), self.canvas.width()]) / 2
        return QPoint(round(float(x)), round(float(y)))

    def click(self, voxel: Voxel, spacing: Sequence[float]) -> list[int]:
        """Press the mouse on a voxel of the volume; return the voxel that napari says is under it."""
        place = self.pixel(voxel, spacing)
        QTest.mouseMove(self.canvas, place)
        QTest.mouseClick(self.canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
        QApplication.processEvents()
        return [round(float(c / s)) for c, s in zip(self.viewer.cursor.position, spacing, strict=True)]

    def answer(self, kind: type[Any], act: Callable[[Any], None]) -> None:
        """Answer the next dialog of a kind, which blocks whoever opened it."""

        def look() -> None:
            found = [w for w in QApplication.topLevelWidgets() if isinstance(w, kind) and w.isVisible()]
            act(found[0]) if found else QTimer.singleShot(20, look)

        QTimer.singleShot(20, look)

    def shot(self, path: str) -> None:
        for _ in range(20):
            QApplication.processEvents()
            time.sleep(0.02)
        self.viewer.screenshot(path, canvas_only=False, flash=False)


def look(place: str, name: str, folder: str, **_: Any) -> dict[str, Any]:
    """Take screenshots of a patch as it is opened, with uncertainty, at a spot, in 3D."""
    rig = Rig(place, name)
    rig.until(lambda: rig.panel.layers is not None)
    rig.shot(f"{folder}/1_open.png")
    rig.key("U")
    rig.key("J")
    rig.shot(f"{folder}/2_uncertain.png")
    rig.key("U")
    rig.viewer.dims.ndisplay = 3
    rig.shot(f"{folder}/3_solid.png")
    return {"line": rig.said}


def paint(rig: Rig, strokes: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """Paint voxels (z, y, x, label) of the volume, one click each; return where napari saw them, and the image there."""
    layers = rig.panel.layers
    spacing = layers.view.spacing_um_zyx
    seen, values = [], []
    for *voxel, label in strokes:
        if label == NEW:
            rig.key("O")
        elif layers.numbered and label not in (0, 255):
            layers.choose_object(new=False)
            layers.drawing.selected_label = label
        else:
            rig.panel.choose(label)
        rig.viewer.layers.selection.active.brush_size = 1
        seen.append(rig.click(voxel, spacing))
        values.append(int(rig.viewer.layers["image"].get_value(rig.viewer.cursor.position, world=True)))
    return seen, values


def is_kept(rig: Rig, drawn: PatchLabels) -> bool:
    work = rig.panel.session.work
    return bool(rig.panel.session.drafts.load(work.lease.ticket_id, work.view.start) == drawn)


def has_left(rig: Rig, work: Work) -> bool:
    return rig.panel.session.work is not work and not rig.widget.runner.busy


def annotate(
    place: str, name: str, strokes: dict[str, list[list[int]]], outside: dict[str, list[int]], leave: str = "", **_: Any
) -> dict[str, Any]:
    """Paint and hand in the patches that come; the one named `leave` is drawn on, kept, and the process killed."""
    rig = Rig(place, name)
    found: dict[str, Any] = {"seen": {}, "values": {}, "said": [], "restored": []}
    for _ in range(len(strokes)):
        rig.until(lambda: rig.panel.layers is not None and not rig.widget.runner.busy)
        work, layers = rig.panel.session.work, rig.panel.layers
        ticket_id = work.lease.ticket_id
        found["restored"].append(work.is_restored)
        drawn = strokes[ticket_id]
        found["seen"][ticket_id], found["values"][ticket_id] = paint(rig, drawn)
        before = layers.labels()
        rig.click(outside[ticket_id], work.view.spacing_um_zyx)
        assert layers.labels() == before, "the surroundings cannot be painted"
        rig.panel.choose(0)
        rig.click(drawn[-1][:3], work.view.spacing_um_zyx)
        assert layers.labels() != before
        rig.key("Z", CONTROL)
        assert layers.labels() == before, "undone"
        if ticket_id == leave:
            rig.until(partial(is_kept, rig, before))
            break
        rig.key("Return", CONTROL)
        rig.until(partial(has_left, rig, work))
        found["said"].append(rig.said)
    return found | {"asked": rig.asked}


def finish(place: str, name: str, reject: str, fix: str, stroke: list[int], **_: Any) -> dict[str, Any]:
    """Hand in what a killed window left, then review: send one ticket back, correct another, accept the rest."""
    rig = Rig(place, name)
    rig.until(lambda: rig.panel.layers is not None)
    found: dict[str, Any] = {"restored": rig.panel.session.work.is_restored, "said": [rig.said]}
    rig.key("Return", CONTROL)
    rig.until(lambda: rig.panel.layers is None and not rig.widget.runner.busy)
    found["said"].append(rig.said)
    review = rig.widget.review
    tabs = rig.widget.root.findChild(QTabWidget)
    tabs.setCurrentWidget(review.root)
    review.list_waiting()
    rig.idle()
    found["waiting"] = [review.waiting.item(row).text().split()[0] for row in range(review.waiting.count())]
    for ticket_id in found["waiting"]:
        review.open(ticket_id)
        rig.until(lambda: review.layers is not None and not rig.widget.runner.busy)
        found[ticket_id] = {"layers": [layer.name for layer in rig.viewer.layers]}
        if ticket_id == reject:
            rig.answer(QInputDialog, lambda dialog: (dialog.setTextValue("misses one"), dialog.accept()))
            review.reject.click()
        elif ticket_id == fix:
            review.begin_fix.click()
            review.layers.choose(stroke[3])
            review.layers.drawing.brush_size = 1
            rig.click(stroke[:3], review.layers.view.spacing_um_zyx)
            review.accept_fix.click()
        else:
            review.accept_a.click()
        rig.until(lambda: review.layers is None and not rig.widget.runner.busy)
        found["said"].append(rig.said)
    return found


def compare(place: str, name: str, ticket_id: str, shots: str = "", **_: Any) -> dict[str, Any]:
    """Look at two versions in turn, jump to where they differ, read the history, accept B."""
    rig = Rig(place, name, review=True)
    rig.idle()
    review = rig.widget.review
    tabs = rig.widget.root.findChild(QTabWidget)
    tabs.setCurrentWidget(review.root)
    review.open(ticket_id)
    rig.until(lambda: review.layers is not None and not rig.widget.runner.busy)
    shown = []
    for _ in range(3):
        shown.append([layer.name for layer in review.versions if layer.visible])
        rig.key("T")
    rig.key("D")
    spot = [round(p / s) for p, s in zip(rig.viewer.dims.point, review.layers.view.spacing_um_zyx, strict=True)]
    if shots:
        rig.shot(f"{shots}/4_review.png")
    texts: list[str] = []
    rig.answer(QDialog, lambda dialog: (texts.append(dialog.windowTitle()), dialog.reject()))
    review.history.click()
    rig.until(lambda: texts and not rig.widget.runner.busy)
    about = review.about.text()
    review.accept_b.click()
    rig.until(lambda: review.layers is None and not rig.widget.runner.busy)
    return {"shown": shown, "spot": spot, "about": about, "history": texts, "said": rig.said}


def view(out: str, volume: str, shots: str, **_: Any) -> dict[str, Any]:
    """Open a delivered volume; read layers, colours and values under points of the world; walk the doubtful places."""
    folder = DeliveryFolder(out)
    delivery, viewer = folder.records.read(DELIVERY), napari.Viewer()
    record = next(v for v in folder.delivered() if v.volume_id == volume)
    assert delivery is not None
    shown = DeliveryLayers(viewer, folder, record, delivery.classes)
    viewer.window.resize(1200, 820)
    layers = {layer.name: layer for layer in viewer.layers}
    features = ("places to proofread", "doubtful objects")
    found: dict[str, Any] = {
        "layers": list(layers),
        "levels": {name: len(layer.data) if layer.multiscale else 1 for name, layer in layers.items()},
        "scales": [list(map(float, layers[name].scale)) for name in layers if "mask" in name or "image" in name],
        "class_colour": [float(c) for c in layers["mask"].get_color(1)],
        "points": {name: (layer.data * layer.scale).tolist() for name, layer in layers.items() if name in features},
        "stops": [],
        "values": [],
    }
    for number in range(3):
        QTest.keyClick(viewer.window._qt_viewer.canvas.native, Qt.Key.Key_N)
        for _ in range(20):
            QApplication.processEvents()
            time.sleep(0.02)
        found["stops"].append([float(c) for c in viewer.dims.point])
        labels = layers.get("objects", layers["mask"])
        value = labels.get_value(viewer.dims.point, world=True)
        found["values"].append(int(value[1] if labels.multiscale else value))
        viewer.screenshot(f"{shots}/view_{volume}_{number}.png", canvas_only=False, flash=False)
    viewer.dims.ndisplay = 3
    QApplication.processEvents()
    viewer.screenshot(f"{shots}/view_{volume}_solid.png", canvas_only=False, flash=False)
    assert shown.volume == record
    return found


def main() -> None:
    scenario, arguments, result = sys.argv[1:]
    found = globals()[scenario](**json.loads(Path(arguments).read_text()))
    Path(result).write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGKILL)  # as a crash ends it; nothing may depend on an orderly end


if __name__ == "__main__":
    main()
