"""Dice of the weak labels against truth, what a person must still change, and what `auto` would choose.

    python tests/benchmarks/weak_labels.py FOLDER [NAME …] [--seeds 3] [--pictures FOLDER]

FOLDER holds the volumes (NAME/raw.tif, labels.tif, meta.json). Of each the central part is taken (at most 48×192×192
voxels). Per seed, two patches of a 32nd of it are drawn that hold structure and are taken out of the evaluation; the pixel
classifier is trained on the first, `auto` compares all methods on both and then trains it on both.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from skimage.segmentation import find_boundaries

from rescueseg.evaluation.metrics import count_voxels
from rescueseg.geometry import Box, Spacing, isotropic_shape, zyx
from rescueseg.randomness import random_generator
from rescueseg.volumes.normalise import measure, normalise
from rescueseg.weak_labels.base import WeakLabel
from rescueseg.weak_labels.methods import FITTED, AnnotatedPatch, agreements, best_method, train_patches

LARGEST = (48, 192, 192)
BOUNDARIES = {"plantseg_ovule_cells", "gala_em_train"}
"""Volumes of cells that fill all of it: the structure is their boundary."""


def load(folder: Path) -> tuple[np.ndarray, np.ndarray, Spacing]:
    """Return image (czyx), truth (zyx, 0 or 1) and spacing of the central part."""
    raw = np.asarray(tifffile.imread(folder / "raw.tif"))[np.newaxis]
    boundary = folder / "membrane_boundary.tif"
    truth = np.asarray(tifffile.imread(boundary if boundary.exists() else folder / "labels.tif"))
    if folder.name in BOUNDARIES:
        truth = find_boundaries(truth, mode="thick")
    shape = [min(n, m) for n, m in zip(truth.shape, LARGEST, strict=True)]
    box = Box(zyx((n - s) // 2 for n, s in zip(truth.shape, shape, strict=True)), zyx(shape))
    image = normalise(raw[(slice(None), *box.slices)], measure(raw, (32, 64, 64)))
    z, y, x = json.loads((folder / "meta.json").read_text())["voxel_size_um_zyx"]
    return image, (truth[box.slices] > 0).astype(np.uint8), (float(z), float(y), float(x))


def draw_patches(truth: np.ndarray, spacing: Spacing, seed: int, name: str) -> list[Box]:
    """Return two patches that do not overlap and hold at least a third of the volume's share of structure."""
    shape = isotropic_shape(spacing, truth.size // 32, truth.shape)
    rng = random_generator(seed, "weak label benchmark", name)
    boxes: list[Box] = []
    while len(boxes) < 2:
        box = Box(zyx(rng.integers(0, n - s + 1) for n, s in zip(truth.shape, shape, strict=True)), shape)
        if truth[box.slices].mean() > truth.mean() / 3 and not any(box.intersects(b) for b in boxes):
            boxes.append(box)
    return boxes


def score(made: WeakLabel, truth: np.ndarray, kept: np.ndarray) -> tuple[float, float]:
    """Return Dice, and the voxels to change as a share of those of an empty mask, where `kept`."""
    counts = count_voxels(made.labels[kept], truth[kept], 1)[0]
    return counts.dice or 0.0, (counts.fp + counts.fn) / max(1, int(truth[kept].sum()))


def interval(values: list[float]) -> str:
    """Return mean and 95 % t interval."""
    from scipy import stats

    half = (
        stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0
    )
    return f"{np.mean(values):.3f} ± {half:.3f}"


def run(folder: Path, seeds: int, pictures: Path | None) -> None:
    """Print the figures of one volume."""
    image, truth, spacing = load(folder)
    everything = np.ones(truth.shape, bool)
    print(
        f"\n{folder.name}: {truth.shape} voxels, {truth.mean():.3f} structure; empty mask: {int(truth.sum()):,} to change"
    )
    labellers = {name: fit([image], spacing, None) for name, fit in FITTED.items()}
    masks = {name: labeller.label(image, spacing) for name, labeller in labellers.items()}
    for name, made in masks.items():
        dice, change = score(made, truth, everything)
        wrong = made.labels != truth
        sure = [float(made.confidence[part].mean()) for part in (wrong, ~wrong)]
        print(
            f"  {name:<11} Dice {dice:.3f}  {change:6.1%} of the empty mask's changes  confidence {sure[0]:.2f} wrong, {sure[1]:.2f} right"
        )
    one: list[tuple[float, float]] = []
    regrets, chosen, gains = [], [], []
    for seed in range(seeds):
        boxes = draw_patches(truth, spacing, seed, folder.name)
        kept = everything.copy()
        for box in boxes:
            kept[box.slices] = False
        patches = [
            AnnotatedPatch(str(i), "v", image[(slice(None), *b.slices)], truth[b.slices], spacing)
            for i, b in enumerate(boxes)
        ]
        first = train_patches(patches[:1], 1, seed).label(image, spacing)
        one.append(score(first, truth, kept))
        table = agreements({name: {"v": labeller} for name, labeller in labellers.items()}, patches, 1, seed)
        both = train_patches(patches, 1, seed).label(image, spacing)
        held: dict[str, Any] = {n: score(m, truth, kept)[0] for n, m in {**masks, "classifier": both}.items()}
        choice = best_method({method: made.dice for method, made in table.items()})
        chosen.append(choice)
        regrets.append(max(held.values()) - held[choice])
        gains.append(held[choice])
        masks["classifier"] = first
    dice, change = ([v[i] for v in one] for i in (0, 1))
    print(
        f"  {'classifier':<11} Dice {interval(dice)}  {np.mean(change):6.1%} of the empty mask's changes  (one patch, {seeds} seeds)"
    )
    print(f"  auto after two patches: {', '.join(chosen)}; Dice {interval(gains)}, regret {interval(regrets)}")
    if pictures is not None:
        show(pictures / f"{folder.name}.png", image[0], truth, masks)


def show(path: Path, image: np.ndarray, truth: np.ndarray, masks: dict[str, WeakLabel]) -> None:
    """Draw the middle plane: truth in green, each mask's outline in red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    z = image.shape[0] // 2
    figure, axes = plt.subplots(2, 3, figsize=(15, 10), layout="constrained")
    shown = {"truth": truth, **{name: made.labels for name, made in masks.items()}}
    for axis, (name, mask) in zip(axes.ravel(), shown.items(), strict=False):
        axis.imshow(image[z], cmap="gray", vmin=np.percentile(image[z], 1), vmax=np.percentile(image[z], 99.5))
        axis.contour(mask[z], levels=[0.5], colors="lime" if name == "truth" else "red", linewidths=0.8)
        axis.set_title(name)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    for name in given.names or sorted(p.name for p in given.folder.iterdir() if (p / "meta.json").exists()):
        run(given.folder / name, given.seeds, given.pictures)


if __name__ == "__main__":
    main()
