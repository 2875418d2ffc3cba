"""How often honest labels are doubted, and how often planted slips are found, on crops of real truth.

Example: .venv/bin/python tests/benchmarks/label_checks.py ../shared/data --crops 40
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from rescueseg.annotation.label_warnings import label_warnings
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.randomness import random_generator

SHAPE = (24, 64, 64)
Mask = npt.NDArray[np.bool_]


def crops(folder: Path, count: int) -> Iterator[PatchLabels]:
    """Yield boxes of a volume's truth that hold at least a hundredth of foreground; numbered where the truth is."""
    truth = tifffile.imread(folder / "labels.tif")
    truth = truth.reshape(truth.shape[-3:])
    numbers = json.loads((folder / "meta.json").read_text()).get("label_type", "").startswith("instance")
    rng = random_generator(0, "label checks", folder.name)
    shape = tuple(min(n, limit) for n, limit in zip(truth.shape, SHAPE, strict=True))
    for _ in range(20 * count):
        offset = tuple(int(rng.integers(0, n - s + 1)) for n, s in zip(truth.shape, shape, strict=True))
        part = truth[Box(offset, shape).slices]
        if (part > 0).mean() >= 0.01:
            labels = PatchLabels.of_instances(part)
            yield labels if numbers else PatchLabels(labels.classes)
            count -= 1
            if not count:
                return


def erase(labels: PatchLabels, where: Mask, value: int = 0) -> PatchLabels:
    """Return labels with a class written over some voxels."""
    classes = np.where(where, np.uint8(value), labels.classes)
    if labels.instances is None:
        return PatchLabels(classes)
    ids = np.where(where, np.uint32(0 if value in (0, 255) else labels.instances.max() + 1), labels.instances)
    return PatchLabels(classes, ids)


def largest(labels: PatchLabels) -> Mask:
    """Return the largest object."""
    ids = ndimage.label(labels.classes)[0] if labels.instances is None else labels.instances
    sizes = np.bincount(ids.ravel())
    sizes[0] = 0
    return np.asarray(ids == sizes.argmax())


def plant_gap(labels: PatchLabels) -> PatchLabels | None:
    """Erase the middle plane of the largest object, where it is at least five planes thick."""
    mask = largest(labels)
    planes = np.flatnonzero(mask.any(axis=(1, 2)))
    if len(planes) < 5:
        return None
    where = np.zeros_like(mask)
    where[planes[len(planes) // 2]] = mask[planes[len(planes) // 2]]
    return erase(labels, where)


def plant_hole(labels: PatchLabels, value: int = 0, size: int = 1) -> PatchLabels | None:
    """Erase a cube in the depth of the largest object, where it is thick enough."""
    depth = ndimage.distance_transform_cdt(np.pad(largest(labels), 1))[1:-1, 1:-1, 1:-1]
    if depth.max() < size + 2:
        return None
    z, y, x = np.unravel_index(depth.argmax(), depth.shape)
    where = np.zeros(depth.shape, np.bool_)
    where[z : z + size, y : y + size, x : x + size] = True
    return erase(labels, where, value)


def plant_speck(labels: PatchLabels) -> PatchLabels | None:
    """Draw a voxel far from everything."""
    far = ndimage.distance_transform_cdt(labels.classes == 0)
    far[[0, -1]], far[:, [0, -1]], far[:, :, [0, -1]] = 0, 0, 0
    if far.max() < 3:
        return None
    where = np.zeros(far.shape, np.bool_)
    where[np.unravel_index(far.argmax(), far.shape)] = True
    return erase(labels, where, 1)


def plant_cut(labels: PatchLabels) -> PatchLabels | None:
    """Erase the first plane in x, where something larger than a speck reaches it."""
    if np.count_nonzero(labels.classes[:, :, 0]) < 50:
        return None
    where = np.zeros(labels.classes.shape, np.bool_)
    where[:, :, 0] = True
    return erase(labels, where)


PLANTED: dict[str, Callable[[PatchLabels], PatchLabels | None]] = {
    "z_gap": plant_gap,
    "holes": plant_hole,
    "specks": plant_speck,
    "cut_at_border": plant_cut,
    "ignore_holes": lambda labels: plant_hole(labels, 255),
}


def codes(labels: PatchLabels) -> set[str]:
    """Return the codes of what is odd about labels that started from nothing."""
    start = PatchLabels(np.zeros_like(labels.classes))
    return {warning.code for warning in label_warnings(labels, start)}


def main() -> None:
    """Print the shares per volume."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--crops", type=int, default=40)
    options = parser.parse_args()
    names = list(PLANTED)
    print(f"{'':34}{'crops':>6}{'doubted':>9}  " + "".join(f"{name:>15}" for name in names))
    total: Counter[str] = Counter()
    for folder in sorted(p.parent for p in options.data.glob("*/labels.tif")):
        honest: Counter[str] = Counter()
        planted: Counter[str] = Counter()
        found: Counter[str] = Counter()
        patches = list(crops(folder, options.crops))
        for labels in patches:
            before = codes(labels)
            honest.update(before)
            honest["any"] += bool(before)
            for name, plant in PLANTED.items():
                slip = plant(labels)
                if slip is not None and name not in before:
                    planted[name] += 1
                    found[name] += name in codes(slip)
        cells = [f"{honest[n]:>3} {found[n]:>4}/{planted[n]:<4}" for n in names]
        share = honest["any"] / max(len(patches), 1)
        print(f"{folder.name:34}{len(patches):>6}{share:>9.1%}  " + "".join(f"{cell:>15}" for cell in cells))
        total += honest
        total["crops"] += len(patches)
    print(f"in all {total['any'] / total['crops']:.1%} of {total['crops']} honest patches doubted")
    print(
        "under each code: honest patches doubted, then planted slips found / planted; seed 0, boxes of at most", SHAPE
    )


if __name__ == "__main__":
    main()
