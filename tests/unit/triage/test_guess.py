"""What a threshold painted answers only where it stands out, is rare, and looks the same in several places."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from rescueseg.config import TriageConfig
from rescueseg.geometry import Box, zyx
from rescueseg.triage.evidence import ImageMeasures, measure_chunks
from rescueseg.triage.guess import guess_holds
from rescueseg.triage.structure import RoughPatch

SHAPE = (32, 48, 48)
GRID = np.indices(SHAPE)
MIDDLES = [(z, y, x) for z in (8, 24) for y in (8, 24, 40) for x in (8, 24, 40)]
BALLS = np.min([sum((g - m) ** 2 for g, m in zip(GRID, middle, strict=True)) for middle in MIDDLES], axis=0) <= 25
LATTICE = (
    sum(((GRID[a] % 16 - 8) ** 2 + (GRID[b] % 16 - 8) ** 2 <= 4).astype(int) for a, b in ((0, 1), (0, 2), (1, 2))) > 0
)


def places(masks: list[np.ndarray], texture: float = 0.0) -> tuple[list[RoughPatch], dict[str, ImageMeasures]]:
    """Masks in a row along x, and an image in which each stands out by 60, with a texture of its own scale in the background."""
    rng = np.random.default_rng(0)
    patches = []
    for index, mask in enumerate(masks):
        wave = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.0)
        image = 100 + 60.0 * mask + rng.normal(0, 3, SHAPE) + np.where(mask, 0, texture * 60 * wave / wave.std())
        box = Box((0, 0, 48 * index), zyx(SHAPE))
        whole = (64, 64, 48 * len(masks))
        patches.append(
            RoughPatch("v", box, whole, (1.0, 1.0, 1.0), image, mask.astype(np.uint8), np.zeros(SHAPE, bool), False)
        )
    return patches, {"v": measure_chunks([(p.box, p.image) for p in patches], (1.0, 1.0, 1.0))}


@pytest.mark.parametrize("mask", [BALLS, LATTICE], ids=["balls", "a lattice of tubes"])
def test_clear_and_equal_everywhere_it_answers(mask: np.ndarray) -> None:
    assert guess_holds(*places([mask, mask[:, ::-1]]), TriageConfig())


def test_a_single_place_two_shapes_texture_or_half_of_all_voxels_do_not_answer() -> None:
    assert not guess_holds(*places([BALLS]), TriageConfig())
    assert not guess_holds(*places([BALLS, LATTICE]), TriageConfig())
    assert not guess_holds(*places([LATTICE, LATTICE], texture=0.4), TriageConfig())
    greys = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=SHAPE), 2.0)
    assert not guess_holds(*places([greys > 0, greys < 0]), TriageConfig())
