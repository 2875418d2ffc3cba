"""How large delivered objects are, by class: counted in fixed bins while the tables are read part by part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.places import table_path
from rescueseg.geometry import Integers
from rescueseg.reports.figures import CLASS_COLOURS, png

_LOWEST, _HIGHEST, _PER_DECADE = -9, 12, 20
"""Decades of µm³ that are told apart, and bins in each."""
_BARS = 40


@dataclass
class ClassSizes:
    """The sizes of the objects of one class.

    Parameters
    ----------
    count : int
        Objects.
    total_um3, smallest_um3, largest_um3 : float
        Their volume together, and of the smallest and largest.
    bins : ndarray of int64
        How many there are in each bin.
    """

    count: int = 0
    total_um3: float = 0.0
    smallest_um3: float = float("inf")
    largest_um3: float = 0.0
    bins: Integers = field(default_factory=lambda: np.zeros((_HIGHEST - _LOWEST) * _PER_DECADE, np.int64))

    @property
    def mean_um3(self) -> float:
        """Mean volume."""
        return self.total_um3 / self.count

    def add(self, sizes_um3: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
        """Count further objects."""
        sizes = sizes_um3[sizes_um3 > 0]
        if not sizes.size:
            return
        self.count += sizes.size
        self.total_um3 += float(sizes.sum())
        self.smallest_um3 = min(self.smallest_um3, float(sizes.min()))
        self.largest_um3 = max(self.largest_um3, float(sizes.max()))
        place = np.floor((np.log10(sizes) - _LOWEST) * _PER_DECADE).astype(np.int64)
        self.bins += np.bincount(np.clip(place, 0, self.bins.size - 1), minlength=self.bins.size)


def object_sizes(folder: DeliveryFolder, volume_ids: Iterable[str], classes: Sequence[str]) -> dict[str, ClassSizes]:
    """Return the sizes of the objects of several volumes by the name of their class.

    Parameters
    ----------
    folder : DeliveryFolder
        With the tables of objects; a volume without one has none.
    volume_ids : iterable of str
        The volumes.
    classes : sequence of str
        Their names, in order.

    Returns
    -------
    dict of str to ClassSizes
        In the order of the classes; those without objects are left out.
    """
    sizes: dict[str, ClassSizes] = {}
    for volume_id in volume_ids:
        path = table_path(volume_id)
        if not folder.storage.exists(path):
            continue
        with folder.storage.fs.open(folder.storage.path(path), "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["class", "volume_um3"]):
                volumes = batch.column("volume_um3").to_numpy(zero_copy_only=False).astype(np.float64)
                for name in pc.unique(batch.column("class")).to_pylist():
                    chosen = pc.equal(batch.column("class"), name).to_numpy(zero_copy_only=False)
                    sizes.setdefault(name, ClassSizes()).add(volumes[chosen])
    return {name: sizes[name] for name in (*classes, *sizes) if name in sizes and sizes[name].count}


def draw_sizes(sizes: dict[str, ClassSizes], classes: Sequence[str]) -> bytes:
    """Return histograms of the objects' volumes as PNG, one below the other by class, over one logarithmic axis."""
    merged = _bins_per_bar(sizes)
    figure = Figure(figsize=(9.4, 0.7 + 1.9 * len(sizes)), layout="constrained")
    plots = figure.subplots(len(sizes), 1, squeeze=False, sharex=True)[:, 0]
    for plot, (name, one) in zip(plots, sizes.items(), strict=True):
        counts = one.bins.reshape(-1, merged).sum(axis=1)
        edges = 10.0 ** (_LOWEST + np.arange(counts.size + 1) * merged / _PER_DECADE)
        colour = CLASS_COLOURS[classes.index(name) % len(CLASS_COLOURS)] if name in classes else CLASS_COLOURS[0]
        plot.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, edgecolor="white", linewidth=0.5)
        plot.set(xscale="log", ylabel="objects")
        plot.set_title(f"{name}: {one.count:,}", fontsize=10, loc="left")
        plot.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        plot.spines[["top", "right"]].set_visible(False)
    smallest, largest = min(s.smallest_um3 for s in sizes.values()), max(s.largest_um3 for s in sizes.values())
    step = 10.0 ** (merged / _PER_DECADE)
    plots[-1].set(xlim=(smallest / step, largest * step), xlabel="volume of an object, µm³")
    return png(figure)


def _bins_per_bar(sizes: dict[str, ClassSizes]) -> int:
    """Return how many bins make one bar, so that there are at most 40 bars."""
    filled = np.flatnonzero(np.sum([one.bins for one in sizes.values()], axis=0))
    span = int(filled[-1] - filled[0] + 1)
    return next(n for n in (2, 4, 5, 10, 20) if span <= n * _BARS or n == 20)
