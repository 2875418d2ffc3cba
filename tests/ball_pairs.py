"""Campaigns of numbered objects: pairs of balls that touch over a broad contact, so that a mask joins them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.queue.store import make_queue
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.training_rig import FAMILIES, QUICK, with_tables

SHAPE = (24, 96, 96)
SPACING = (0.2, 0.1, 0.1)
RADIUS_UM = 0.8
APART_UM = 1.3
"""Between the centres of a pair: the contact is a disc of 0.93 µm across, and the two balls 2.9 µm long."""


def ball_pairs(seed: int, shape: Sequence[int] = SHAPE, pairs: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Return image (uint16) and object numbers (uint16); objects 2 k - 1 and 2 k touch, and no others do."""
    rng = np.random.default_rng(seed)
    field = np.array(shape) * SPACING
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)), indexing="ij"))
    middles: list[np.ndarray] = []
    objects, light = np.zeros(shape, np.uint16), np.zeros(shape)
    for _ in range(20_000):
        middle, axis = rng.uniform(0, field), rng.normal(size=3) * (0.3, 1, 1)
        if len(middles) == pairs:
            break
        if any(np.linalg.norm(middle - other) < APART_UM + 2.6 * RADIUS_UM for other in middles):
            continue
        middles.append(middle)
        axis *= APART_UM / 2 / np.linalg.norm(axis)
        to_both = np.stack([((grid - (middle + s * axis)[:, None, None, None]) ** 2).sum(0) for s in (-1, 1)])
        inside = to_both.min(0) < RADIUS_UM**2
        objects[inside] = (2 * len(middles) - 1 + to_both.argmin(0))[inside]
        light[inside] = (rng.uniform(0.7, 1.3) * np.array([0.75, 1.25])[to_both.argmin(0)])[inside]
    image = 500 + 1500 * ndimage.gaussian_filter(light, (0.5, 1, 1)) + rng.normal(0, 100, shape)
    return np.clip(image, 0, None).astype(np.uint16), objects


def make_campaign(root: Path, *, seeds: Sequence[int] = (0,), labels: str = "instance", **training: Any) -> Campaign:
    """Make a campaign with a volume ``v<i>`` for each seed."""
    head = {"border_distance": labels == "instance"}
    config = check_config(
        {
            "name": "pairs",
            "classes": ["ball"],
            "annotation": {"labels": labels},
            "training": with_tables({"trainer": "monai_unet", **QUICK, **FAMILIES}, {"unet": head} | training),
            "inference": {"mc_samples": 2, "tta_symmetries": 2},
        }
    )
    campaign = Campaign.create(str(root / "campaign"), config)
    make_queue(campaign)
    for i, seed in enumerate(seeds):
        image, objects = ball_pairs(seed)
        tifffile.imwrite(root / f"v{i}.tif", image)
        tifffile.imwrite(root / f"t{i}.tif", objects)
        imported = VolumeImport(
            str(root / f"v{i}.tif"),
            volume_id=f"v{i}",
            spacing=SPACING,
            truth=str(root / f"t{i}.tif"),
            truth_type="instance",
        )
        import_volume(campaign, imported)
    return campaign


def basins(distance: np.ndarray, mask: np.ndarray, depth: float) -> np.ndarray:
    """Return the basins of a map within a mask, numbered: one for each peak that is so much higher than its saddles."""
    smooth = ndimage.gaussian_filter(distance, (0.5, 1, 1))
    peaks, _ = ndimage.label(h_maxima(np.where(mask, smooth, 0), depth) & mask, np.ones((3, 3, 3)))
    return np.asarray(watershed(-smooth, peaks, mask=mask))


def pairs_told_apart(found: np.ndarray, objects: np.ndarray) -> tuple[int, int]:
    """Count the pairs whose two balls each have an object of their own (IoU above 0.5), and all pairs."""
    right = total = 0
    for first in range(1, int(objects.max()) + 1, 2):
        balls = [objects == first, objects == first + 1]
        if min(ball.sum() for ball in balls) < 200:  # cut away by the edge of the volume
            continue
        total += 1
        matched = []
        for ball in balls:
            numbers, counts = np.unique(found[ball & (found > 0)], return_counts=True)
            shares = [c / ((found == n) | ball).sum() for n, c in zip(numbers, counts, strict=True)]
            matched.append(max(shares, default=0.0) > 0.5)
        right += all(matched)
    return right, total
