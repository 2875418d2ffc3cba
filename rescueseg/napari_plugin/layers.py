"""A patch as napari layers, in micrometre of the volume, and the drawing as labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rescueseg.annotation.client import PatchView
from rescueseg.geometry import ZYX, Box
from rescueseg.labels import IGNORE, PatchLabels
from rescueseg.reports.figures import CLASS_COLOURS

BACKGROUND_NAME, IGNORE_NAME = "background", "not annotated"
IGNORE_COLOUR = "#ffffff"
OUTLINE_COLOUR = "#ffd400"
CHANNEL_COLOURS = ("gray", "green", "magenta", "cyan", "yellow", "red", "blue")
_UNITS = ("um", "um", "um")


def class_colour(number: int) -> str:
    """Return the colour of class 1…K, or of ignore."""
    return IGNORE_COLOUR if number == IGNORE else CLASS_COLOURS[(number - 1) % len(CLASS_COLOURS)]


def contrast_limits(image: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the range of grey levels to show: without the half per cent darkest and brightest voxels.

    Examples
    --------
    >>> contrast_limits(np.arange(201))
    (1.0, 199.0)
    """
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


def on_activity(viewer: Any, act: Callable[[], None]) -> None:
    """Call a function whenever somebody moves the mouse over the image, or changes the view."""

    def call(_event: object) -> None:
        act()

    for emitter in (viewer.cursor.events.position, viewer.dims.events.point, viewer.scene.camera.events):
        emitter.connect(call)


@dataclass(frozen=True)
class Frame:
    """Where voxels lie in the viewer: world coordinates are micrometre from the volume's first voxel."""

    spacing_um_zyx: tuple[float, float, float]

    def of(self, box: Box) -> dict[str, Any]:
        """Return the layer arguments of an array over `box`."""
        translate = [o * s for o, s in zip(box.offset_zyx, self.spacing_um_zyx, strict=True)]
        return {"scale": self.spacing_um_zyx, "translate": translate, "units": _UNITS}

    def world(self, voxel_zyx: Sequence[int]) -> tuple[float, ...]:
        """Return the middle of a voxel of the volume."""
        return tuple(v * s for v, s in zip(voxel_zyx, self.spacing_um_zyx, strict=True))


class PatchLayers:
    """The layers of one patch in a viewer.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer; other layers in it stay.
    view : PatchView
        The patch.
    classes : sequence of str
        Names of classes 1…K.
    numbered : bool
        Whether objects are numbered.
    """

    def __init__(self, viewer: Any, view: PatchView, classes: Sequence[str], *, numbered: bool) -> None:
        self.viewer, self.view, self.classes, self.numbered = viewer, view, tuple(classes), numbered
        self.frame = Frame(view.spacing_um_zyx)
        self.drawing: Any = None
        self.ignore: Any = None
        self.uncertainty: Any = None
        self._layers: list[Any] = []
        self._clearing = False
        for number, channel in enumerate(view.image):
            name = "image" if len(view.image) == 1 else f"image {number + 1}"
            options: dict[str, Any] = {"contrast_limits": contrast_limits(channel)}
            if len(view.image) > 1:
                options |= {"colormap": CHANNEL_COLOURS[number % len(CHANNEL_COLOURS)], "blending": "additive"}
            self._add(viewer.add_image(channel, name=name, **options, **self.frame.of(view.context)))
        if view.prediction is not None:
            self.add_labels("prediction", PatchLabels(view.prediction), view.context, visible=False)
        if view.uncertainty is not None:
            top = float(np.log(len(self.classes) + 1))
            self.uncertainty = self._add(
                viewer.add_image(
                    view.uncertainty, name="uncertainty", colormap="inferno", blending="additive", opacity=0.6,
                    contrast_limits=(0.0, top), visible=False, **self.frame.of(view.context),
                )
            )  # fmt: skip
        self._add_outline()
        viewer.dims.axis_labels = ("z", "y", "x")
        viewer.canvas.overlays.scale_bar.visible = True
        viewer.layers.events.removed.connect(self._put_back)

    def _add(self, layer: Any) -> Any:
        self._layers.append(layer)
        return layer

    def _add_outline(self) -> None:
        """Add the outline of the patch: of one width on the screen in every slice that meets it, and in 3D."""
        nothing = np.broadcast_to(np.uint8(0), self.view.ticket.box.shape_zyx)
        self.patch = self._add(
            self.viewer.add_image(
                nothing,
                name="patch",
                blending="additive",
                contrast_limits=(0, 1),
                **self.frame.of(self.view.ticket.box),
            )
        )
        box = self.patch.bounding_box
        box.line_color, box.line_thickness, box.points, box.visible = OUTLINE_COLOUR, 2, False, True

    def add_labels(self, name: str, labels: PatchLabels, box: Box, *, visible: bool = True) -> Any:
        """Add labels that cannot be edited, over a box of the volume."""
        layer = self._labels_layer(name, labels, box)
        layer.editable, layer.visible = False, visible
        return layer

    def add_mask(self, name: str, mask: npt.NDArray[np.bool_], box: Box) -> None:
        """Add a mask in the colour of the outline, hidden at first."""
        from napari.utils import DirectLabelColormap

        colormap = DirectLabelColormap(color_dict={0: "transparent", 1: OUTLINE_COLOUR, None: "transparent"})
        layer = self.viewer.add_labels(mask.astype(np.uint8), name=name, colormap=colormap, **self.frame.of(box))
        layer.editable, layer.visible = False, False
        self._add(layer)

    def _labels_layer(self, name: str, labels: PatchLabels, box: Box) -> Any:
        from napari.utils import DirectLabelColormap

        if labels.instances is not None:
            return self._add(self.viewer.add_labels(labels.instances.copy(), name=name, **self.frame.of(box)))
        numbers = [*range(1, len(self.classes) + 1), IGNORE]
        colours: dict[int | None, Any] = {number: class_colour(number) for number in numbers}
        class_names = pd.DataFrame(
            {"index": [0, *numbers], "class": [BACKGROUND_NAME, *self.classes, IGNORE_NAME]}  # shown in the status bar
        )
        colormap = DirectLabelColormap(color_dict=colours | {0: "transparent", None: "red"})
        layer = self.viewer.add_labels(
            labels.classes.copy(),
            name=name,
            colormap=colormap,
            features=class_names,
            opacity=0.55,
            **self.frame.of(box),
        )
        return self._add(layer)

    def draw_on(self, labels: PatchLabels) -> None:
        """Add the editable layers; they cover the patch alone, so nothing outside can be changed."""
        box = self.view.ticket.box
        self.drawing = self._labels_layer("labels", labels, box)
        self.drawing.brush_size = 4
        if self.uncertainty is not None:  # seen over the labels, not through them
            layers = self.viewer.layers
            layers.move(layers.index(self.uncertainty), len(layers))
        if self.numbered:
            ignore = PatchLabels(np.where(labels.ignore, np.uint8(IGNORE), np.uint8(0)))
            self.ignore = self._labels_layer(IGNORE_NAME, ignore, box)
            self.ignore.selected_label = IGNORE
        if self.numbered:
            self.choose_object(new=False)
        else:
            self.choose(1)

    def labels(self) -> PatchLabels:
        """Return a copy of the drawing as labels."""
        if not self.numbered:
            return PatchLabels(self.drawing.data.copy())
        return PatchLabels.of_instances(self.drawing.data.copy(), self.ignore.data == IGNORE)

    def choose(self, label: int) -> None:
        """Paint with a class or ignore (255), or erase (0)."""
        self._paint_on(self.ignore if self.numbered and label == IGNORE else self.drawing, label)

    def choose_object(self, *, new: bool) -> int:
        """Paint with the highest object number there is, or with a new one; return it."""
        number = max(1, int(self.drawing.data.max()) + new)
        self._paint_on(self.drawing, number)  # which may be 255, and then is an object all the same
        return number

    def _paint_on(self, layer: Any, label: int) -> None:
        layer.selected_label = label
        layer.mode = "erase" if label == 0 else "paint"
        self.viewer.layers.selection.active = layer

    def undo(self) -> None:
        """Undo the last stroke."""
        self._active().undo()

    def redo(self) -> None:
        """Redo the stroke that was undone last."""
        self._active().redo()

    def _active(self) -> Any:
        active = self.viewer.layers.selection.active
        return active if active is self.ignore and active is not None else self.drawing

    def look_at_patch(self) -> None:
        """Fit the patch with a rim of its surroundings to the canvas, at its middle plane."""
        box = self.view.ticket.box
        self.viewer.dims.point = self.frame.world(
            [o + n // 2 for o, n in zip(box.offset_zyx, box.shape_zyx, strict=True)]
        )
        self.viewer.reset_view(layers=[self.patch], margin=0.12)

    def go_to(self, voxel_zyx: ZYX) -> None:
        """Show the slice of a voxel of the volume, with it in the middle."""
        world = self.frame.world(voxel_zyx)
        self.viewer.dims.point = world
        self.viewer.scene.camera.center = world

    def _put_back(self, event: Any) -> None:
        """Add a drawing again that was removed from the list of layers by hand: it is work."""
        layer = event.value
        if not self._clearing and layer in (self.drawing, self.ignore):
            self.viewer.add_layer(layer)

    def clear(self) -> None:
        """Remove the patch's layers."""
        self._clearing = True
        self.viewer.layers.events.removed.disconnect(self._put_back)
        for layer in self._layers:
            with contextlib.suppress(ValueError):  # removed by hand
                self.viewer.layers.remove(layer)
