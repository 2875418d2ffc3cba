"""Which route the triage takes from a few annotated patches, against the structure that each volume holds.

Run ``python tests/benchmarks/triage_routes.py FOLDER [NAME…] --seeds 8 --patch 6 84 82``. ``FOLDER/NAME/`` holds ``raw.tif``,
``labels.tif`` and ``meta.json`` (``structure``, ``voxel_size_um_zyx``, ``label_type``); ``NAME:membranes`` takes the borders
between the objects as the structure. Each seed draws four starting patches at random places, annotated as the truth has them;
nothing is trained. A question mark: the patches cut the structure, so that the answer is not known. One row per seed: the
route, its distance from every threshold, what was measured, and the seconds that the measurements took.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from triage_table import load

from rescueseg.config import TriageConfig
from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.triage.evidence import image_evidence, measure_chunks
from rescueseg.triage.structure import RoughPatch, structure_evidence
from rescueseg.triage.tree import decide

EXPECTED = {
    "bbbc050_mosaic_train": ("nuclei", "A"),
    "stardist_img3d": ("star-convex objects", "A"),
    "gonuclear_1135": ("dense nuclei in noise", "AB"),
    "plantseg_ovule_cells": ("cells", "A"),
    "cdeep3m_mito_train": ("mitochondria", "ABD"),
    "vesselnn_poon2015_BBB_noLeakage": ("vessels", "C"),
    "vesselnn_burgess2014_tgMouse": ("vessels", "C"),
    "plantseg_ovule_cells:membranes": ("membranes", "C"),
    "flyem_fib25_train2:membranes": ("membranes", "C"),
    "flyem_fib25_train2": ("neurites", "CD"),
    "gala_em_train": ("neurites", "CD"),
}
"""What `meta.json` names, and the letters that suit it: A boundary, B SNR, C topology, D none of them."""
PATCHES = 4


def patches(
    image: np.ndarray, truth: np.ndarray, instances: bool, spacing: Spacing, shape: tuple[int, ...], seed: int
) -> list[RoughPatch]:
    """Draw the starting patches of a seed; those without the structure tell nothing."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(PATCHES):
        sides = zyx(min(n, s) for n, s in zip(truth.shape, shape, strict=True))
        box = Box(zyx(int(rng.integers(n - s + 1)) for n, s in zip(truth.shape, sides, strict=True)), sides)
        labels = truth[box.slices]
        if (labels > 0).any():
            unknown = np.zeros(labels.shape, bool)
            full = zyx(truth.shape)
            drawn.append(RoughPatch("v", box, full, spacing, image[box.slices], labels, unknown, instances))
    return drawn


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(EXPECTED))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--patch", type=int, nargs=3, default=(6, 84, 82), metavar=("Z", "Y", "X"))
    arguments = parser.parse_args()
    for name in arguments.names:
        image, truth, kind, spacing = load(arguments.folder, name)
        structure, letters = EXPECTED.get(name, ("?", "ABCD"))
        depth = max(1, min(len(image), 4_000_000 // image[0].size))
        measures = {"v": measure_chunks([(Box((0, 0, 0), (depth, *image.shape[1:])), image[:depth])], spacing)}
        of_image = image_evidence(list(measures.values()), [spacing])
        routes = ""
        for seed in range(arguments.seeds):
            start = time.perf_counter()
            drawn = patches(image, truth, kind == "instance", spacing, tuple(arguments.patch), seed)
            evidence = [*of_image, *structure_evidence(drawn, measures)]
            numbers = {e.name: e.value for e in evidence if e.value is not None}
            route, steps = decide(numbers, TriageConfig())
            is_open = route.name == "custom" and any(s.answer is None and s.measured is not None for s in steps)
            routes += "?" if is_open else route.letter
            distances = " ".join("  –  " if s.measured is None else f"{s.measured:5.2f}" for s in steps)
            shown = " ".join(
                f"{key} {numbers[key]:.3g}" if key in numbers else f"{key} –"
                for key in (
                    "objects",
                    "whole_objects",
                    "slenderness",
                    "length",
                    "connected",
                    "thickness",
                    "star_convexity",
                )
            )
            title = "not known: cut" if is_open else route.title
            print(f"  {seed} {title:24s} {distances}  {shown}  {time.perf_counter() - start:.1f} s", flush=True)
        right = sum(letter in letters for letter in routes)
        print(
            f"{name} ({structure}, {letters}): {routes}, {right} of {len(routes)} right, {routes.count('?')} not known",
            flush=True,
        )


if __name__ == "__main__":
    main()
