"""Which route the triage takes from a few annotated patches, against the structure that each volume holds.

Run ``python tests/benchmarks/triage_routes.py FOLDER [NAME…] --seeds 8 --patch 6 84 82``. ``FOLDER/NAME/`` holds ``raw.tif``,
``labels.tif`` and ``meta.json`` (``structure``, ``voxel_size_um_zyx``, ``label_type``); ``NAME:membranes`` takes the borders
between the objects as the structure. ``phantom:NAME`` is one of the drawn volumes of `triage_phantoms.py`, another for each
seed. Each seed draws four starting patches at random places, annotated as the truth has them; nothing is trained. With
``--guess`` nothing is annotated and a threshold paints the mask, as `rescueseg triage` does then. A question mark: the route is
not known, mostly since the patches cut the structure. One row per seed: the route, its distance from every threshold, what was
measured, and the seconds of processor time that the measurements took.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from triage_phantoms import PHANTOMS, make
from triage_table import load

from rescueseg.config import TriageConfig
from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.triage.evidence import image_evidence, measure_chunks
from rescueseg.triage.guess import guess_holds
from rescueseg.triage.structure import RoughPatch, structure_evidence
from rescueseg.triage.tree import UNKNOWN, decide, title_of
from rescueseg.weak_labels.threshold import rough_mask

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
GUESSES, GUESS_SIDE = 3, 96
"""Places where a threshold paints, and how large they are at least, as in `rescueseg.triage.rough_masks`."""
SHOWN = ("objects", "whole_objects", "slenderness", "length", "length_most", "connected", "thickness", "star_convexity")


def boxes(full: tuple[int, ...], shape: tuple[int, ...], count: int, seed: int) -> list[Box]:
    """Draw places at random."""
    rng = np.random.default_rng(seed)
    sides = zyx(min(n, s) for n, s in zip(full, shape, strict=True))
    return [
        Box(zyx(int(rng.integers(n - s + 1)) for n, s in zip(full, sides, strict=True)), sides) for _ in range(count)
    ]


def patches(
    image: np.ndarray, truth: np.ndarray, instances: bool, spacing: Spacing, shape: tuple[int, ...], seed: int
) -> list[RoughPatch]:
    """Draw the starting patches of a seed; those without the structure tell nothing."""
    full = zyx(truth.shape)
    return [
        RoughPatch("v", box, full, spacing, image[box.slices], labels, np.zeros(labels.shape, bool), instances)
        for box in boxes(full, shape, PATCHES, seed)
        if ((labels := truth[box.slices]) > 0).any()
    ]


def guesses(image: np.ndarray, spacing: Spacing, shape: tuple[int, ...], seed: int) -> list[RoughPatch]:
    """Let a threshold paint a few places."""
    full = zyx(image.shape)
    painted = []
    for box in boxes(full, tuple(max(n, GUESS_SIDE) for n in shape), GUESSES, seed):
        part = image[box.slices].astype(np.float32)
        labels = rough_mask(((part - image.mean()) / image.std())[None], spacing).labels
        painted.append(RoughPatch("v", box, full, spacing, part, labels, np.zeros(labels.shape, bool), instances=False))
    return [patch for patch in painted if (patch.labels > 0).any()]


def volume(folder: Path, name: str, seed: int) -> tuple[np.ndarray, np.ndarray, str, Spacing]:
    """Return image, truth, what the truth holds, and spacing."""
    if not name.startswith("phantom:"):
        return load(folder, name)
    phantom = PHANTOMS[name.removeprefix("phantom:")]
    return *make(phantom, seed), phantom.kind, phantom.spacing_um_zyx


def row(
    given: tuple[np.ndarray, np.ndarray, str, Spacing], shape: tuple[int, ...], seed: int, guess: bool
) -> tuple[str, str]:
    """Return the letter of the route, or a question mark, and the row of a seed."""
    image, truth, kind, spacing = given
    depth = max(1, min(len(image), 4_000_000 // image[0].size))
    measures = {"v": measure_chunks([(Box((0, 0, 0), (depth, *image.shape[1:])), image[:depth])], spacing)}
    start = time.process_time()
    drawn = (
        guesses(image, spacing, shape, seed)
        if guess
        else patches(image, truth, kind == "instance", spacing, shape, seed)
    )
    evidence = [*image_evidence(list(measures.values()), [spacing]), *structure_evidence(drawn, measures)]
    numbers = {e.name: e.value for e in evidence if e.value is not None}
    route, steps = decide(numbers, TriageConfig(), is_blind=guess and not guess_holds(drawn, measures, TriageConfig()))
    title = title_of(route, steps)
    distances = " ".join("  –  " if s.measured is None else f"{s.measured:5.2f}" for s in steps)
    shown = " ".join(f"{key} {numbers[key]:.3g}" if key in numbers else f"{key} –" for key in SHOWN)
    letter = "?" if title == UNKNOWN else route.letter
    return letter, f"  {seed} {title:24s} {distances}  {shown}  {time.process_time() - start:.1f} s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*EXPECTED, *(f"phantom:{name}" for name in PHANTOMS)])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--patch", type=int, nargs=3, default=(6, 84, 82), metavar=("Z", "Y", "X"))
    parser.add_argument("--guess", action="store_true", help="nothing is annotated: a threshold paints the mask")
    arguments = parser.parse_args()
    for name in arguments.names:
        drawn = PHANTOMS.get(name.removeprefix("phantom:"))
        structure, letters = ("drawn", drawn.letters) if drawn else EXPECTED.get(name, ("?", "ABCD"))
        routes = ""
        given = volume(arguments.folder, name, arguments.first_seed)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            given = volume(arguments.folder, name, seed) if drawn else given
            letter, shown = row(given, tuple(arguments.patch), seed, arguments.guess)
            routes += letter
            print(shown, flush=True)
        right = sum(letter in letters for letter in routes)
        print(
            f"{name} ({structure}, {letters}): {routes}, {right} of {len(routes)} right, {routes.count('?')} not known",
            flush=True,
        )


if __name__ == "__main__":
    main()
