"""Volumes whose structure is known because it is drawn: balls, shells, rods, fibres, a network of tubes, sheets, cells, puncta.

`triage_routes.py` triages them by the names in `PHANTOMS`. Each seed draws another volume; sizes are in micrometre, the voxels
flat or cubic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.segmentation import find_boundaries

from rescueseg.geometry import Spacing

SIDES_UM = (48.0, 144.0, 144.0)
_MARGIN = 20.0
Numbers = np.ndarray
Random = np.random.Generator


@dataclass(frozen=True)
class Phantom:
    """What is drawn, and what the triage should say of it.

    Parameters
    ----------
    draw : callable
        (shape, spacing, random generator) to numbered objects, or a class mask.
    letters : str
        Routes that suit it.
    kind : {"instance", "semantic"}
        What the annotation holds.
    spacing_um_zyx : tuple of float
        Voxel size.
    """

    draw: Callable[[tuple[int, ...], Spacing, Random], Numbers]
    letters: str
    kind: Literal["instance", "semantic"] = "semantic"
    spacing_um_zyx: Spacing = (1.0, 1.0, 1.0)


def make(phantom: Phantom, seed: int) -> tuple[np.ndarray, Numbers]:
    """Return image and truth of a seed."""
    rng = np.random.default_rng(seed)
    shape = tuple(round(side / s) for side, s in zip(SIDES_UM, phantom.spacing_um_zyx, strict=True))
    truth = phantom.draw(shape, phantom.spacing_um_zyx, rng)
    truth = truth.astype(np.uint16) if phantom.kind == "instance" else (truth > 0).astype(np.uint8)
    light = ndimage.gaussian_filter((truth > 0).astype(np.float32), 0.6)
    if (truth > 0).all():
        light -= 0.7 * find_boundaries(truth, mode="thick")
    return 100 + 60 * light + rng.normal(0, 8, truth.shape).astype(np.float32), truth


def _places(rng: Random, apart: float, most: int = 4000) -> np.ndarray:
    """Return places in micrometre, also around the volume, that lie `apart` from each other."""
    tries = rng.uniform(-_MARGIN, np.array(SIDES_UM) + _MARGIN, (most, 3))
    near = KDTree(tries).query_pairs(apart, output_type="ndarray")
    kept = np.ones(most, bool)
    for first, second in near[np.lexsort(near.T)]:
        if kept[first] and kept[second]:
            kept[second] = False
    return tries[kept]


def _near(points: list[np.ndarray], shape: tuple[int, ...], spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """Return of each voxel the distance to the nearest point of several sets, and the number of that set from 1 on."""
    numbers = np.repeat(np.arange(1, len(points) + 1), [len(p) for p in points])
    grid = np.stack(np.indices(shape), -1).reshape(-1, 3) * np.array(spacing)
    away, which = KDTree(np.concatenate(points)).query(grid, workers=1)
    return away.reshape(shape), numbers[which].reshape(shape)


def _line(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    steps = np.linspace(0, 1, max(2, int(2 * np.linalg.norm(end - start))))[:, None]
    return np.asarray(start + steps * (end - start))


def balls(radius: float, apart: float) -> Callable[[tuple[int, ...], Spacing, Random], Numbers]:
    """Return a drawing of balls of a radius at random places at least so far apart."""

    def draw(shape: tuple[int, ...], spacing: Spacing, rng: Random) -> Numbers:
        away, numbers = _near(list(_places(rng, apart)[:, None]), shape, spacing)
        return np.where(away <= radius, numbers, 0)

    return draw


def shells(outer: float, inner: float, apart: float) -> Callable[[tuple[int, ...], Spacing, Random], Numbers]:
    """Return a drawing of hollow balls."""

    def draw(shape: tuple[int, ...], spacing: Spacing, rng: Random) -> Numbers:
        away, numbers = _near(list(_places(rng, apart)[:, None]), shape, spacing)
        return np.where((away <= outer) & (away > inner), numbers, 0)

    return draw


def rods(radius: float, length: float, apart: float) -> Callable[[tuple[int, ...], Spacing, Random], Numbers]:
    """Return a drawing of straight rods in random directions; those that would touch an earlier one are left out."""

    def draw(shape: tuple[int, ...], spacing: Spacing, rng: Random) -> Numbers:
        kept: list[np.ndarray] = []
        for place in _places(rng, apart):
            way = rng.normal(size=3)
            way *= (length / 2 - radius) / np.linalg.norm(way)
            line = _line(place - way, place + way)
            if not kept or KDTree(np.concatenate(kept)).query(line)[0].min() > 2 * radius + 2:
                kept.append(line)
        away, numbers = _near(kept, shape, spacing)
        return np.where(away <= radius, numbers, 0)

    return draw


def network(radius: float, apart: float) -> Callable[[tuple[int, ...], Spacing, Random], Numbers]:
    """Return a drawing of tubes from each of random places to its nearest two and those that it is the nearest of."""

    def draw(shape: tuple[int, ...], spacing: Spacing, rng: Random) -> Numbers:
        places = _places(rng, apart)
        _, near = KDTree(places).query(places, 4)
        lines = [_line(places[i], places[j]) for i, row in enumerate(near[:, 1:3]) for j in row]
        return np.where(_near(lines, shape, spacing)[0] <= radius, 1, 0)

    return draw


def cells(apart: float) -> Callable[[tuple[int, ...], Spacing, Random], Numbers]:
    """Return a drawing of gapless cells around random places."""

    def draw(shape: tuple[int, ...], spacing: Spacing, rng: Random) -> Numbers:
        return _near(list(_places(rng, apart)[:, None]), shape, spacing)[1]

    return draw


def membranes(apart: float) -> Callable[[tuple[int, ...], Spacing, Random], Numbers]:
    """Return a drawing of the borders of gapless cells."""

    def draw(shape: tuple[int, ...], spacing: Spacing, rng: Random) -> Numbers:
        return np.asarray(find_boundaries(cells(apart)(shape, spacing, rng), mode="thick"))

    return draw


FLAT = (3.0, 1.0, 1.0)
PHANTOMS: dict[str, Phantom] = {
    "balls": Phantom(balls(7.0, 20.0), "A"),
    "balls, numbered": Phantom(balls(7.0, 20.0), "A", "instance"),
    "balls, flat voxels": Phantom(balls(7.0, 20.0), "A", spacing_um_zyx=FLAT),
    "touching balls": Phantom(balls(9.0, 15.0), "A"),
    "shells": Phantom(shells(8.0, 6.0, 19.0), "A"),
    "cells": Phantom(cells(22.0), "A", "instance"),
    "puncta": Phantom(balls(1.5, 9.0), "A"),
    "short rods": Phantom(rods(4.0, 32.0, 12.0), "ABD"),
    "short rods, flat voxels": Phantom(rods(4.0, 32.0, 12.0), "ABD", spacing_um_zyx=FLAT),
    "thick short rods": Phantom(rods(9.0, 70.0, 20.0), "ABD"),
    "fibres": Phantom(rods(2.0, 400.0, 16.0), "C"),
    "network": Phantom(network(3.0, 26.0), "C"),
    "network, flat voxels": Phantom(network(3.0, 26.0), "C", spacing_um_zyx=FLAT),
    "membranes": Phantom(membranes(22.0), "C"),
}
