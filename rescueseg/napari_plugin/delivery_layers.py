"""A delivered volume as napari layers, in micrometre: image, labels, and points where to look first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd

from rescueseg.delivery.folder import MASK, OBJECTS, DeliveryFolder
from rescueseg.delivery.label_colours import class_colours
from rescueseg.delivery.levels import Levels
from rescueseg.delivery.places import doubtful_objects, kept_places
from rescueseg.delivery.records import DeliveredVolume
from rescueseg.errors import damaged
from rescueseg.geometry import Box
from rescueseg.napari_plugin.layers import CHANNEL_COLOURS, Frame, contrast_limits

OBJECTS_POINTED_AT = 50
"""The most doubtful objects that get a point."""
_COLOURS = {"places to proofread": "#ffd400", "doubtful objects": "#ff4fd8"}


class DeliveryLayers:
    """The layers of a delivered volume in a viewer; N goes from one doubtful place or object to the next.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer.
    folder : DeliveryFolder
        The delivery.
    volume : DeliveredVolume
        A volume of it.
    classes : sequence of str
        Names of classes 1…K.
    """

    def __init__(self, viewer: Any, folder: DeliveryFolder, volume: DeliveredVolume, classes: Sequence[str]) -> None:
        self.viewer, self.folder, self.volume, self.classes = viewer, folder, volume, tuple(classes)
        self._frame = Frame(volume.spacing_um_zyx)
        self._options = self._frame.of(Box((0, 0, 0), volume.shape_zyx))
        self._stops: list[tuple[float, float, float]] = []
        self._next = 0
        url = folder.image_url(volume.volume_id)
        self._add_image(Levels.open(url))
        for name in (MASK, OBJECTS):
            if name in volume.labels:
                self._add_labels(name, Levels.open(f"{url}/labels/{name}"))
        self._add_points()
        viewer.dims.axis_labels = ("z", "y", "x")
        viewer.canvas.overlays.scale_bar.visible = True
        viewer.title = f"{volume.volume_id}, delivered"
        viewer.bind_key("n", self.go_to_next, overwrite=True)

    def _add_image(self, levels: Levels) -> None:
        if not levels:
            return
        pyramid = [da.from_array(array, array.chunks) for array in levels.arrays]  # type: ignore[no-untyped-call]
        channels = pyramid[0].shape[0] if pyramid[0].ndim == 4 else 1
        for number in range(channels):
            data = [level[number] if level.ndim == 4 else level for level in pyramid]
            options: dict[str, Any] = {"name": "image" if channels == 1 else f"image {number + 1}"}
            if channels > 1:
                options |= {
                    "colormap": CHANNEL_COLOURS[1 + number % (len(CHANNEL_COLOURS) - 1)],
                    "blending": "additive",
                }
            middle = data[-1][data[-1].shape[0] // 2]
            limits = contrast_limits(np.asarray(middle))
            self.viewer.add_image(**_as_data(data), contrast_limits=limits, **options, **self._options)

    def _add_labels(self, name: str, levels: Levels) -> None:
        from napari.utils import DirectLabelColormap

        if not levels:
            raise damaged(f"{self.folder.image_url(self.volume.volume_id)}/labels/{name}", "it is missing")
        options: dict[str, Any] = {}
        if name == MASK:
            colours: dict[int | None, Any] = {0: "transparent", None: "transparent"}
            for number, rgb in enumerate(class_colours(len(self.classes)), start=1):
                colours[number] = "#{:02x}{:02x}{:02x}".format(*rgb)
            names = {"index": range(len(self.classes) + 1), "class": ["background", *self.classes]}
            options = {"colormap": DirectLabelColormap(color_dict=colours), "features": pd.DataFrame(names)}
            options["visible"] = OBJECTS not in self.volume.labels
        data = [da.from_array(array, array.chunks) for array in levels.arrays]  # type: ignore[no-untyped-call]
        self.viewer.add_labels(**_as_data(data), name=name, opacity=0.5, **options, **self._options)

    def _add_points(self) -> None:
        """Add points at the middle of the most doubtful places and at the most doubtful objects, the first one first."""
        name = self.volume.volume_id
        places = [p for p in kept_places(self.folder) if p.volume_id == name]
        if places:
            middles = [self._middle_um(place.box) for place in places]
            features = pd.DataFrame({"entropy": [p.entropy for p in places]})
            self._add_one_kind("places to proofread", middles, [p.box for p in places], features)
        objects = doubtful_objects(self.folder, [name], OBJECTS_POINTED_AT)
        if objects:
            features = pd.DataFrame({"object": [o.number for o in objects], "entropy": [o.entropy for o in objects]})
            centres = [o.centre_um_zyx for o in objects]
            self._add_one_kind("doubtful objects", centres, [o.box for o in objects], features)

    def _middle_um(self, box: Box) -> tuple[float, float, float]:
        """Return the middle of a box; the first voxel's middle is the origin."""
        z, y, x = (
            (o + (n - 1) / 2) * s
            for o, n, s in zip(box.offset_zyx, box.shape_zyx, self.volume.spacing_um_zyx, strict=True)
        )
        return z, y, x

    def _add_one_kind(
        self,
        title: str,
        positions_um: Sequence[tuple[float, float, float]],
        boxes: Sequence[Box],
        features: pd.DataFrame,
    ) -> None:
        """Add points that are as large as what they point at, and are seen in the planes near them.

        napari shows a point half a unit of its layer before and behind it: the unit along z is the depth of the boxes.
        """
        sizes = np.array([box.shape_zyx for box in boxes]) * self.volume.spacing_um_zyx
        depth = float(np.median(sizes[:, 0]))
        self.viewer.add_points(
            np.array(positions_um) / (depth, 1, 1),
            name=title,
            features=features,
            size=np.maximum(sizes[:, 1:].max(axis=1), 6 * min(self.volume.spacing_um_zyx[1:])),
            face_color="transparent",
            border_color=_COLOURS[title],
            border_width=0.04,
            symbol="square" if title == "places to proofread" else "disc",
            scale=(depth, 1, 1),
            units=("um", "um", "um"),
        )
        self._stops += positions_um

    def go_to_next(self, _viewer: Any = None) -> None:
        """Show the next doubtful place or object, those of the highest entropy first; after the last the first again."""
        if not self._stops:
            return
        position = self._stops[self._next % len(self._stops)]
        self._next += 1
        self.viewer.dims.point = position
        self.viewer.scene.camera.center = position


def _as_data(levels: list[Any]) -> dict[str, Any]:
    """Return levels as napari takes them: a single one is no pyramid."""
    return {"data": levels[0]} if len(levels) == 1 else {"data": levels, "multiscale": True}
