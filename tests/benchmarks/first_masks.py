"""What first masks cost before any hint, and after one annotated patch, against starting from empty ones.

    python tests/benchmarks/first_masks.py FOLDER [NAME …] [--patches 16] [--seeds 2]

FOLDER holds the volumes (NAME/raw.tif, labels.tif, meta.json); of each the central part is taken (at most 24×128×128
voxels). Before any hint, 'threshold' and 'tubes' (the methods that a triage without annotations chooses) are fitted to it,
and patches drawn at random are corrected. After one patch that holds structure, the pixel classifier that is trained on it
is: its figures on halves of that patch decide, for all patches (`LEAST_SPARED`) and for each (`stands_out`). Printed are the
voxels to correct, those to draw from nothing, in how many patches the mask costs more, and what the rule says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from rescueseg.geometry import Box, Spacing, isotropic_shape, zyx
from rescueseg.randomness import random_generator
from rescueseg.volumes.normalise import measure, normalise
from rescueseg.weak_labels.judgement import asymmetry, doubt_by_annotations, doubt_without_hint, stands_out
from rescueseg.weak_labels.methods import FITTED, AnnotatedPatch, classifier_agreement, train_patches

LARGEST = (24, 128, 128)
SHARE = 32
"""A patch is this part of what is looked at."""


def load(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], Spacing]:
    """Return image (czyx), truth (zyx, 0 or 1) and spacing of the central part."""
    raw = np.asarray(tifffile.imread(folder / "raw.tif"))[np.newaxis]
    truth = np.asarray(tifffile.imread(folder / "labels.tif")) > 0
    shape = [min(n, m) for n, m in zip(truth.shape, LARGEST, strict=True)]
    box = Box(zyx((n - s) // 2 for n, s in zip(truth.shape, shape, strict=True)), zyx(shape))
    z, y, x = (float(s) for s in json.loads((folder / "meta.json").read_text())["voxel_size_um_zyx"])
    image = normalise(raw[(slice(None), *box.slices)], measure(raw, (32, 64, 64)))
    return image, truth[box.slices].astype(np.uint8), (z, y, x)


def cost(masks: Sequence[npt.NDArray[np.uint8]], truths: Sequence[npt.NDArray[np.uint8]]) -> str:
    """Say what masks cost."""
    wrong = [int((m != t).sum()) for m, t in zip(masks, truths, strict=True)]
    drawn = [int(t.sum()) for t in truths]
    worse = sum(a > b for a, b in zip(wrong, drawn, strict=True))
    return f"{sum(wrong):7,} to correct, {sum(drawn):7,} to draw; costs more in {worse} of {len(masks)} patches"


def run(folder: Path, patches: int, seeds: int) -> None:
    """Print the figures of one volume."""
    image, truth, spacing = load(folder)
    shape = isotropic_shape(spacing, truth.size // SHARE, truth.shape)

    def draw(rng: np.random.Generator) -> Box:
        return Box(zyx(rng.integers(0, n - s + 1) for n, s in zip(truth.shape, shape, strict=True)), shape)

    rng = random_generator(0, "first masks", folder.name)
    boxes = [draw(rng) for _ in range(patches)]
    doubt = doubt_without_hint([image], spacing)
    print(f"\n{folder.name}: {truth.mean():.1%} structure; asymmetry {asymmetry([image], spacing):.2f}: "
          f"{'starts empty' if doubt else 'is painted'}", flush=True)  # fmt: skip
    for name in ("threshold", "tubes"):
        mask = FITTED[name]([image], spacing, None).label(image, spacing).labels
        print(f"  {name:10s} {cost([mask[b.slices] for b in boxes], [truth[b.slices] for b in boxes])}", flush=True)
    for seed in range(seeds):
        rng = random_generator(seed, "one annotated patch", folder.name)
        box = draw(rng)
        while truth[box.slices].mean() < truth.mean() / 3:
            box = draw(rng)
        patch = AnnotatedPatch("p", "v", image[(slice(None), *box.slices)], truth[box.slices], spacing)
        made = classifier_agreement([patch], 1, seed)
        doubt = doubt_by_annotations(made.spared) if made else "one half holds one label alone"
        others = [b for b in (draw(rng) for _ in range(4 * patches)) if not b.intersects(box)][:patches]
        classifier = train_patches([patch], 1, seed)
        masks = [classifier.label(image[(slice(None), *b.slices)], spacing).labels for b in others]
        masks = [m if made and stands_out(m, made.invented) else np.zeros_like(m) for m in masks]
        spared = f"{made.spared:+.2f}" if made and made.spared is not None else "none"
        print(f"  classifier {cost(masks, [truth[b.slices] for b in others])}; spared on its patch {spared}: "
              f"{'starts empty' if doubt else 'is painted'}", flush=True)  # fmt: skip


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--patches", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    for name in options.names or sorted(p.name for p in options.folder.iterdir() if (p / "meta.json").exists()):
        run(options.folder / name, options.patches, options.seeds)


if __name__ == "__main__":
    main()
