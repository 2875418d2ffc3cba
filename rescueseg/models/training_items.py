"""The training set in memory: items read once, windows drawn from (seed, step)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from rescueseg.campaign import VolumeFolder
from rescueseg.campaign.label_arrays import read_classes, read_objects
from rescueseg.errors import TrainingError
from rescueseg.geometry import ZYX, Box, Spacing, resampled_shape, zyx
from rescueseg.labels import IGNORE
from rescueseg.models.border_distance import (
    UNKNOWN,
    Ends,
    border_distance,
    choose_cap,
    continue_beyond,
    inscribed_radii,
)
from rescueseg.models.resample import resample, resample_labels
from rescueseg.randomness import keyed_generator
from rescueseg.records import Snapshot, SnapshotItem
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import normalise, read_box

_CACHE_BYTES = 2 * 1024**3
_NOT_LABELLED = -1
"""In place of an object's number."""
_RUNS = 20_000
"""Largest number of runs into which the voxels of an item are divided to find the k-th of a class."""
_FOREGROUND_SHARE = 0.5
_THICKNESS_PERCENTILE = 99
"""Percentile of the foreground's depth."""

Targets: TypeAlias = Callable[[npt.NDArray[np.int32], npt.NDArray[np.bool_], Spacing, Ends], npt.NDArray[np.float32]]
"""Makes what is learned beside the classes, ``czyx``, of an item's objects (``zyx``, 0 background), of which voxels nobody
labelled, of the working spacing, and of where the item ends with its volume; `rescueseg.models.border_distance.UNKNOWN` where it is not known."""


class WindowPlan(Protocol):
    """What a family's plan says of its windows."""

    @property
    def spacing_um_zyx(self) -> Spacing:
        """Working spacing."""

    @property
    def window_zyx(self) -> ZYX:
        """Training window in voxels of the working spacing."""

    @property
    def batch_size(self) -> int:
        """Windows of a step."""


@dataclass(frozen=True)
class Item:
    """One annotation at the working spacing."""

    image: npt.NDArray[np.float32]
    """``czyx``, normalised, all that may be read around the patch."""
    labels: npt.NDArray[np.uint8]
    """``zyx`` of the same extent; 255 where nobody labelled."""
    targets: npt.NDArray[np.float32] | None = None
    """``czyx`` of the same extent, where more is learned than classes: see `Targets`."""

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self.image.nbytes + self.labels.nbytes + (0 if self.targets is None else self.targets.nbytes)


def load_item(
    volumes: VolumeFolder, item: SnapshotItem, spacing_um_zyx: Spacing, make_targets: Targets | None = None
) -> Item:
    """Read one item and bring it to the working spacing.

    Parameters
    ----------
    volumes : VolumeFolder
        Of the campaign.
    item : SnapshotItem
        Which one.
    spacing_um_zyx : tuple of float
        Working spacing.
    make_targets : callable, optional
        Says what else is learned; nothing when omitted.

    Raises
    ------
    StorageError
        If the label array is missing, damaged, or not the one that the snapshot names.
    TrainingError
        If it does not fit its patch.
    """
    record = volumes.record(item.volume_id)
    labels = _load_labels(volumes, item, spacing_um_zyx)
    image = normalise(read_box(open_image(volumes, item.volume_id), item.read_box), record.normalisation)
    if image.shape[1:] != labels.shape:
        image = resample(torch.from_numpy(np.ascontiguousarray(image))[None], labels.shape)[0].numpy()
    if make_targets is None:
        return Item(image, labels)
    objects, ends = _load_objects(volumes, item, spacing_um_zyx), _ends(volumes, item)
    return Item(image, labels, make_targets(objects, labels == IGNORE, spacing_um_zyx, ends))


def _ends(volumes: VolumeFolder, item: SnapshotItem) -> Ends:
    """Return where the read box of an item ends with its volume."""
    shape, box = volumes.record(item.volume_id).shape_zyx, item.read_box
    z, y, x = ((a == 0, b == n) for a, b, n in zip(box.offset_zyx, box.stop_zyx, shape, strict=True))
    return z, y, x


def border_targets(border_um: float) -> Targets:
    """Return what makes border distances up to a largest one the only target beside the classes."""

    def make(
        objects: npt.NDArray[np.int32],
        unlabelled: npt.NDArray[np.bool_],
        spacing_um_zyx: Spacing,
        ends: Ends,  # noqa: ARG001  # the volume's faces count as any other face
    ) -> npt.NDArray[np.float32]:
        return border_distance(objects, unlabelled, spacing_um_zyx, border_um)[np.newaxis]

    return make


def measure_objects(
    volumes: VolumeFolder, snapshot: Snapshot, spacing_um_zyx: Spacing, *, beyond_volume: bool = False
) -> tuple[float, bool]:
    """Return the usual radius of the numbered objects in micrometre, see `choose_cap`, and whether one of them is whole.

    Parameters
    ----------
    volumes : VolumeFolder
        Of the campaign.
    snapshot : Snapshot
        The annotated patches.
    spacing_um_zyx : tuple of float
        Working spacing.
    beyond_volume : bool
        Whether objects go on beyond the volume, see `continue_beyond`.

    Raises
    ------
    StorageError, TrainingError
        As `load_item`.
    """
    radii = []
    for item in snapshot.items:
        objects: npt.NDArray[np.integer] = _load_objects(volumes, item, spacing_um_zyx)
        unlabelled = _load_labels(volumes, item, spacing_um_zyx) == IGNORE
        if beyond_volume:
            objects, unlabelled, _ = continue_beyond(objects, unlabelled, _ends(volumes, item))
        radii.append(inscribed_radii(objects, unlabelled, spacing_um_zyx))
    return choose_cap(radii, spacing_um_zyx), any(whole for whole, _ in radii)


def _load_labels(volumes: VolumeFolder, item: SnapshotItem, spacing_um_zyx: Spacing) -> npt.NDArray[np.uint8]:
    """Return the classes of an item's read box at the working spacing, 255 where nobody labelled."""
    labels = read_classes(volumes.storage, item)
    return _in_context(volumes, item, spacing_um_zyx, labels, IGNORE).astype(np.uint8)


def _load_objects(volumes: VolumeFolder, item: SnapshotItem, spacing_um_zyx: Spacing) -> npt.NDArray[np.int32]:
    """Return the objects of an item's read box at the working spacing, numbered anew; none where none were numbered."""
    objects = read_objects(volumes.storage, item)
    if objects is None:
        objects = np.zeros(item.box.shape_zyx, np.uint32)
    numbers = np.unique(objects, return_inverse=True)[1].reshape(objects.shape) + (0 if (objects == 0).any() else 1)
    numbers[read_classes(volumes.storage, item) == IGNORE] = _NOT_LABELLED
    return np.maximum(_in_context(volumes, item, spacing_um_zyx, numbers, _NOT_LABELLED), 0).astype(np.int32)


def _in_context(
    volumes: VolumeFolder, item: SnapshotItem, spacing_um_zyx: Spacing, labels: npt.NDArray[Any], ignore: int
) -> npt.NDArray[np.int64]:
    """Return a patch's labels in its read box at the working spacing, with a value for what nobody labelled."""
    if labels.shape != item.box.shape_zyx:
        raise TrainingError(
            f"the label array has shape {labels.shape}, its patch {item.box.shape_zyx}",
            where=item.labels,
            todo="Restore the snapshot from a backup",
        )
    context = item.read_box
    values = np.full(context.shape_zyx, ignore, dtype=np.int64)
    inside = item.box.intersection(context)
    if inside is not None:
        values[inside.relative_to(context).slices] = labels[inside.relative_to(item.box).slices]
    shape = resampled_shape(context.shape_zyx, volumes.record(item.volume_id).spacing_um_zyx, spacing_um_zyx)
    return resample_labels(values, shape, ignore)


class TrainingSet:
    """Windows around labelled voxels, classes drawn with equal chance.

    Parameters
    ----------
    volumes : VolumeFolder
        Of the campaign; where images and labels lie.
    snapshot : Snapshot
        What may be read.
    plan : WindowPlan
        Window, working spacing and number of windows.
    cache_bytes : int
        Memory that items may take; the least recently used ones are read again when needed.
    make_targets : callable, optional
        Says what else than classes is learned; windows hold it too.

    Raises
    ------
    TrainingError
        If not one voxel is labelled.
    StorageError
        If a label array is damaged.
    """

    def __init__(
        self,
        volumes: VolumeFolder,
        snapshot: Snapshot,
        plan: WindowPlan,
        cache_bytes: int = _CACHE_BYTES,
        make_targets: Targets | None = None,
    ) -> None:
        self._volumes, self._plan, self._limit, self._make_targets = volumes, plan, cache_bytes, make_targets
        self._items = snapshot.items
        self._cache: OrderedDict[int, Item] = OrderedDict()
        self._sites: dict[int, list[tuple[int, npt.NDArray[np.int64]]]] = {}  # by class: an item, what its runs hold
        self._voxels = np.zeros(snapshot.n_classes + 1)
        for index in range(len(self._items)):
            self._find_sites(index, snapshot.n_classes)
        if not self._sites:
            raise TrainingError(
                "not one voxel is labelled",
                where=f"snapshot of generation {snapshot.generation}",
                todo="Annotate at least one patch, and leave some voxels other than 255",
            )
        self.unlabelled_classes = [c for c in range(1, snapshot.n_classes + 1) if c not in self._sites]
        """Classes without a labelled voxel."""

    def _item(self, index: int) -> Item:
        if index in self._cache:
            self._cache.move_to_end(index)
        else:
            item, spacing = self._items[index], self._plan.spacing_um_zyx
            self._cache[index] = load_item(self._volumes, item, spacing, self._make_targets)
            while len(self._cache) > 1 and sum(i.bytes for i in self._cache.values()) > self._limit:
                self._cache.popitem(last=False)
        return self._cache[index]

    def _find_sites(self, index: int, n_classes: int) -> None:
        labels = self._item(index).labels.ravel()
        starts = np.arange(0, len(labels), _run_length(len(labels)))
        for value in range(n_classes + 1):
            counts = np.add.reduceat(labels == value, starts, dtype=np.int64)
            self._voxels[value] += counts.sum()
            if counts.any():
                self._sites.setdefault(value, []).append((index, counts.cumsum()))

    def class_weights(self) -> tuple[float, ...]:
        """Return a weight for each class, background first: one over the root of its share of the labelled voxels.

        The mean over the labelled voxels is 1; a class without any has the weight of the rarest.
        """
        share = self._voxels / self._voxels.sum()
        share = np.where(share > 0, share, share[share > 0].min())
        weights = share**-0.5
        return tuple((weights / (weights * self._voxels).sum() * self._voxels.sum()).tolist())

    def half_thickness(self) -> int:
        """Return after how many erosions nearly all of the labelled foreground vanishes, at the working spacing."""
        depths = []
        for index in range(len(self._items)):
            labels = self._item(index).labels
            depths += [_depth(labels == c) for c in range(1, len(self._voxels)) if (labels == c).any()]
        depth = np.concatenate(depths) if depths else np.ones(1)
        return int(np.percentile(depth, _THICKNESS_PERCENTILE))

    def batch(self, seed: int, step: int, margins_zyx: Sequence[ZYX] = ()) -> list[tuple[Tensor, Tensor]]:
        """Return the windows of one step: images (c, z, y, x) float32 and labels (1, z, y, x) uint8.

        Where more is learned, further channels of the labels hold it, `UNKNOWN` outside of the item, and they are float32.
        They depend on `seed` and `step` alone. Every second window, on average, is centred on a foreground class, all
        classes alike, the others on background. No window reads beyond an item's read box; what is missing there is
        mirrored and ignored.

        Parameters
        ----------
        seed, step : int
            What is drawn depends on.
        margins_zyx : sequence of tuple of int, optional
            How much each window is larger than planned, on both sides of each axis; none when omitted.
        """
        margins = margins_zyx or [(0, 0, 0)] * self._plan.batch_size
        return [self._window(keyed_generator(seed, "window", step, i), margin) for i, margin in enumerate(margins)]

    def _window(self, rng: np.random.Generator, margin: ZYX) -> tuple[Tensor, Tensor]:
        foreground = [c for c in sorted(self._sites) if c > 0]
        share = _FOREGROUND_SHARE if 0 in self._sites else 1.0
        value = foreground[int(rng.integers(len(foreground)))] if foreground and rng.random() < share else 0
        places = self._sites[value]
        index, counts = places[int(rng.integers(len(places)))]
        item = self._item(index)
        shape = zyx(item.labels.shape)
        centre = np.unravel_index(_find_voxel(item.labels, value, counts, int(rng.integers(counts[-1]))), shape)
        start = [_start(int(c), n, w, rng) for c, n, w in zip(centre, shape, self._plan.window_zyx, strict=True)]
        return _cut(item, Box(zyx(start), self._plan.window_zyx).expand(margin))


def _run_length(voxels: int) -> int:
    """Return into runs of how many voxels an item is divided."""
    return -(-voxels // _RUNS)


def _find_voxel(labels: npt.NDArray[np.uint8], value: int, counts: npt.NDArray[np.int64], number: int) -> int:
    """Return the flat index of one of the voxels of a class, by its number in z, y, x order (from 0).

    Parameters
    ----------
    labels : ndarray of uint8, zyx
        Of an item.
    value, number : int
        Class, and which of its voxels.
    counts : ndarray of int64
        How many voxels of the class lie in each run and those before it: all can be drawn, and none need be listed.
    """
    run = int(np.searchsorted(counts, number, side="right"))
    first = run * _run_length(labels.size)
    voxels = np.flatnonzero(labels.ravel()[first : first + _run_length(labels.size)] == value)
    return first + int(voxels[number - (int(counts[run - 1]) if run else 0)])


def _depth(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return after how many erosions by the six neighbours each voxel of the mask vanishes."""
    depth: npt.NDArray[np.int32] = ndimage.distance_transform_cdt(mask, metric="taxicab")[mask]
    return depth


def _start(centre: int, length: int, window: int, rng: np.random.Generator) -> int:
    """Return where a window starts along one axis: around its centre and inside, or around all of a short axis."""
    jitter = int(rng.integers(-(window // 4), window // 4 + 1))
    if length <= window:
        return -int(rng.integers(window - length + 1))
    return int(np.clip(centre + jitter - window // 2, 0, length - window))


def _cut(item: Item, box: Box) -> tuple[Tensor, Tensor]:
    image: npt.NDArray[Any] = read_box(item.image, box)
    labels = np.full(box.shape_zyx, IGNORE, dtype=np.uint8)
    inside = box.clip(item.labels.shape)
    labels[inside.relative_to(box).slices] = item.labels[inside.slices]
    target = torch.from_numpy(labels)[None]
    if item.targets is not None:
        more = np.full((len(item.targets), *box.shape_zyx), UNKNOWN, dtype=np.float32)
        more[(slice(None), *inside.relative_to(box).slices)] = item.targets[(slice(None), *inside.slices)]
        target = torch.cat([target.float(), torch.from_numpy(more)])
    return torch.from_numpy(np.ascontiguousarray(image)), target
