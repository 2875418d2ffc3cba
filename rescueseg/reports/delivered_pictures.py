"""Pictures of delivered labels over the image: whole volumes, objects and places, each one plane in true proportions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rescueseg.delivery.folder import MASK, OBJECTS, DeliveryFolder
from rescueseg.delivery.label_colours import class_colours, object_colour
from rescueseg.delivery.levels import Levels
from rescueseg.delivery.records import DeliveredVolume
from rescueseg.geometry import ZYX, Box, Floats
from rescueseg.reports.figures import YELLOW, png
from rescueseg.reports.preview_picture import composite, round_length

_SEARCHED, _DRAWN = 2**22, 2**20
"""Voxels among which the fullest plane is looked for, and of a plane that is drawn."""
_PLANES = 48
"""Planes that are looked at for the fullest one."""
_FILL, _EDGE = 0.38, 1.0
"""How much labels cover the image: inside, and along their border."""
_SHOWN = (0.2, 99.8)
"""Percentiles that are drawn black and white."""
_WHOLE_INCHES, _TALLEST, _LOWEST, _CROP_INCHES = 10.4, 7.0, 0.4, 2.4
_WIDE = 0.45
"""Planes flatter than this stand one below the other."""
_LEAST_CROP = 48
"""Voxels along a side of a crop, at least."""

Labels = npt.NDArray[np.integer]


class DeliveredPictures:
    """Draws one delivered volume.

    Parameters
    ----------
    folder : DeliveryFolder
        The delivery.
    volume : DeliveredVolume
        A volume of it.
    n_classes : int
        Of the mask.
    """

    def __init__(self, folder: DeliveryFolder, volume: DeliveredVolume, n_classes: int) -> None:
        url = folder.image_url(volume.volume_id)
        self.volume = volume
        self.image, self.mask = Levels.open(url), Levels.open(f"{url}/labels/{MASK}")
        self.objects = Levels.open(f"{url}/labels/{OBJECTS}") if OBJECTS in volume.labels else Levels(())
        self._classes = np.array([(0, 0, 0), *class_colours(n_classes)]) / 255

    def whole(self) -> bytes:
        """Draw the xy plane with the most foreground: the image, and the labels over it; labels alone without an image."""
        z = self._fullest(Box((0, 0, 0), self.volume.shape_zyx), None)
        _, height, width = self.volume.shape_zyx
        window = Box((z, 0, 0), (1, height, width))
        _, row_um, column_um = self._size(window)
        rows, columns = (1, 1) if not self.image else (1, 2) if row_um > _WIDE * column_um else (2, 1)
        cell = min(_WHOLE_INCHES / columns, _TALLEST / rows * column_um / row_um)
        figure = Figure(figsize=(columns * cell, max(_LOWEST, rows * cell * row_um / column_um)))
        figure.subplots_adjust(0, 0, 1, 1, wspace=0.012, hspace=0.03)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for plot in axes:
            self._draw_image(plot, window)
        self._draw_labels(axes[-1], window)
        self._scale_bar(axes[0], window)
        return png(figure)

    def object(self, number: int, box: Box) -> bytes:
        """Draw an object in the plane in which it is largest; `box` is its bounding box.

        Where no objects were made, the foreground in the box is drawn.
        """
        z = self._fullest(box, number if self.objects else None)
        window = self._window(box, z)
        figure, axes = self._crop(window)
        plane, covered = _plane(self.objects or self.mask, window)
        inside = plane == number if self.objects else plane > 0
        if not self.objects:
            inside &= self._mask_of(box, covered, inside.shape)
        self._show_labels(axes, inside.astype(np.uint8), covered, np.array([(0, 0, 0), (0.94, 0.89, 0.26)]))
        self._scale_bar(axes, window)
        return png(figure)

    def place(self, box: Box) -> bytes:
        """Draw the middle plane of a place with what lies around it."""
        window = self._window(box, (box.offset_zyx[0] + box.stop_zyx[0] - 1) // 2)
        figure, axes = self._crop(window)
        self._draw_labels(axes, window)
        (_, y, x), (_, dy, dx) = self._um(box.offset_zyx), self._size(box)
        axes.add_patch(Rectangle((x, y), dx, dy, fill=False, edgecolor=YELLOW, linewidth=1.6))
        self._scale_bar(axes, window)
        return png(figure)

    def _um(self, position_zyx: ZYX) -> tuple[float, float, float]:
        z, y, x = (float(n * s) for n, s in zip(position_zyx, self.volume.spacing_um_zyx, strict=True))
        return z, y, x

    def _size(self, box: Box) -> tuple[float, float, float]:
        return self._um(box.shape_zyx)

    def _extent(self, box: Box) -> tuple[float, float, float, float]:
        """Return where a plane lies in micrometre, as matplotlib asks for it: left, right, bottom, top."""
        (_, top, left), (_, bottom, right) = self._um(box.offset_zyx), self._um(box.stop_zyx)
        return left, right, bottom, top

    def _fullest(self, box: Box, number: int | None) -> int:
        """Return the plane of a box with the most voxels of an object, or of any; of equal ones the middle one."""
        levels = self.mask if number is None else self.objects
        level = levels.finest(box, _SEARCHED)
        step, depth = levels.factors(level)[0], box.shape_zyx[0]
        count = min(_PLANES, max(1, depth // step))
        planes = [box.offset_zyx[0] + int((i + 0.5) * depth / count) for i in range(count)]
        middle = box.offset_zyx[0] + depth / 2
        sizes = {}
        for z in planes:
            plane = Box((z, *box.offset_zyx[1:]), (1, *box.shape_zyx[1:]))
            voxels, _ = levels.read(plane, level)
            sizes[z] = int(np.count_nonzero(voxels if number is None else voxels == number))
        return max(planes, key=lambda z: (sizes[z], -abs(z + 0.5 - middle)))

    def _window(self, box: Box, z: int) -> Box:
        """Return a square of one plane around a box, with a rim; it stays within the volume."""
        _, height, width = self.volume.shape_zyx
        _, row_um, column_um = self.volume.spacing_um_zyx
        _, dy, dx = self._size(box)
        side = max(1.6 * dy, 1.6 * dx, _LEAST_CROP * min(row_um, column_um))
        start, stop = [z], [z + 1]
        for offset, length, limit, um in zip(
            box.offset_zyx[1:], box.shape_zyx[1:], (height, width), (row_um, column_um), strict=True
        ):
            voxels = min(limit, max(1, round(side / um)))
            first = min(max(0, offset + length // 2 - voxels // 2), limit - voxels)
            start.append(first)
            stop.append(first + voxels)
        return Box.from_bounds(start, stop)

    def _mask_of(self, box: Box, covered: Box, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return which pixels of a plane lie in a box."""
        inside = np.ones(shape, bool)
        for axis in (0, 1):
            step = covered.shape_zyx[axis + 1] / shape[axis]
            at = covered.offset_zyx[axis + 1] + (np.arange(shape[axis]) + 0.5) * step
            within = (at >= box.offset_zyx[axis + 1]) & (at < box.stop_zyx[axis + 1])
            inside &= within[:, None] if axis == 0 else within[None, :]
        return inside

    def _crop(self, window: Box) -> tuple[Figure, Axes]:
        _, row_um, column_um = self._size(window)
        longest = max(row_um, column_um)
        figure = Figure(figsize=(_CROP_INCHES * column_um / longest, _CROP_INCHES * row_um / longest))
        axes = figure.add_axes((0, 0, 1, 1))
        self._draw_image(axes, window)
        return figure, axes

    def _draw_image(self, axes: Axes, window: Box) -> None:
        left, right, bottom, top = self._extent(window)
        axes.set_facecolor("black")
        axes.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top), aspect="equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
        if not self.image:
            return
        plane, covered = _plane(self.image, window)
        channels = plane[:3] if plane.ndim == 3 else plane[None]
        low, high = np.nanpercentile(channels.reshape(len(channels), -1).astype(np.float64), _SHOWN, axis=1)
        axes.imshow(composite(channels, low, high), extent=self._extent(covered), interpolation="antialiased")
        axes.set(xlim=(left, right), ylim=(bottom, top))

    def _draw_labels(self, axes: Axes, window: Box) -> None:
        plane, covered = _plane(self.objects or self.mask, window)
        numbers, place = np.unique(plane, return_inverse=True)
        if self.objects:
            colours = np.array([object_colour(int(n)) if n else (0, 0, 0) for n in numbers]) / 255
        else:
            colours = self._classes[np.clip(numbers.astype(np.int64), 0, len(self._classes) - 1)]
        if numbers[0] != 0:  # the first colour is that of the background
            colours, place = np.concatenate([np.zeros((1, 3)), colours]), place + 1
        self._show_labels(axes, place.reshape(plane.shape), covered, colours)

    def _show_labels(self, axes: Axes, labels: Labels, covered: Box, colours: Floats) -> None:
        left, right, bottom, top = *axes.get_xlim(), *axes.get_ylim()
        picture = np.zeros((*labels.shape, 4))
        picture[..., :3] = colours[labels]
        picture[..., 3] = np.where(labels > 0, np.where(borders(labels), _EDGE, _FILL if self.image else 0.7), 0)
        axes.imshow(picture, extent=self._extent(covered), interpolation="nearest")
        axes.set(xlim=(left, right), ylim=(bottom, top))

    def _scale_bar(self, axes: Axes, window: Box) -> None:
        """Draw a bar of a round length in the lower left corner."""
        left, right, bottom, top = self._extent(window)
        width, height = right - left, bottom - top
        length, thick = round_length(0.34 * width), 0.014 * math.sqrt(width * height)
        x, y = left + 0.03 * width, bottom - 0.03 * height - thick
        axes.add_patch(Rectangle((x, y), length, thick, facecolor="white", edgecolor="black", linewidth=0.5))
        text = axes.text(x, y - 0.4 * thick, f"{length:g} µm", color="white", fontsize=8, va="bottom")
        text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])


def _plane(levels: Levels, window: Box) -> tuple[npt.NDArray[Any], Box]:
    """Return the pixels of one plane, (channel,) row, column, and what they cover; few even where levels are missing."""
    voxels, covered = levels.read(window, levels.finest(window, _DRAWN))
    step = math.ceil(math.sqrt(voxels.shape[-2] * voxels.shape[-1] / _DRAWN))
    return voxels[..., 0, ::step, ::step], covered


def borders(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell which pixels of labels have a neighbour, above, below, left or right, of another label.

    Examples
    --------
    >>> borders(np.array([[1, 1, 1, 0]])).astype(int).tolist()
    [[0, 0, 1, 1]]
    """
    border = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    return border
