"""How near the AP50 of boxes comes to that of the whole volume, by how objects at the faces of a box are counted.

python tests/benchmarks/object_counts.py DATA_FOLDER

Boxes of the holdout's shape tile the volume; counts are pooled over them. "whole" matches in the whole volume and counts
what has its centroid in a box. "context": in the box with the guard band, by centroid (as of truth that came with the
volume). "slivers": in the box, those at its faces left out (as of boxes that people annotated). "fragments": in the box,
all. "frame": in the box, what touches its first faces left out (Gundersen 1977, doi:10.1111/j.1365-2818.1977.tb00062.x).
Predictions are the truth shifted by a voxel, along x and along all axes; the truth eroded in plane, 15 % of the touching
pairs run together and 10 % of the objects missed; a perfect mask's connected pieces; and 30 % of the objects cut in two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.evaluation.box_objects import TrueObjects, centroids_inside
from rescueseg.evaluation.instances import compare_instances, connected_components, match_objects, renumber_objects
from rescueseg.evaluation.truth import HoldoutTruth, holdout_truth
from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.records import Holdout, HoldoutBox
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

Numbers = npt.NDArray[Any]
LAYOUTS: dict[str, tuple[ZYX, ZYX]] = {
    "bbbc050_mosaic_train": ((25, 70, 70), (5, 10, 10)),
    "gonuclear_1135": ((13, 29, 28), (2, 4, 4)),
    "stardist_img3d": ((5, 10, 10), (2, 4, 4)),
}
"""Shape of the boxes and guard band, as `rescueseg sample` draws them."""
RULES = ("whole", "context", "slivers", "fragments", "frame")


def predictions(truth: Numbers, seed: int = 0) -> Iterator[tuple[str, Numbers]]:
    """Yield the names of wrong predictions and their numbered objects."""
    rng = np.random.default_rng(seed)
    yield "shifted x", shifted(truth, (0, 0, 1))
    yield "shifted zyx", shifted(truth, (1, 1, 1))
    yield "eroded, merged, missed", renumber_objects(_damaged(truth, rng))
    yield "connected pieces", connected_components(truth > 0)
    yield "split", _split(truth, rng)


def shifted(numbers: Numbers, by_zyx: ZYX) -> Numbers:
    """Return numbered objects shifted towards the end of the axes."""
    result = np.zeros_like(numbers)
    z, y, x = (slice(by, None) for by in by_zyx)
    result[z, y, x] = numbers[tuple(slice(0, n - by) for n, by in zip(numbers.shape, by_zyx, strict=True))]
    return result


def _damaged(truth: Numbers, rng: np.random.Generator) -> Numbers:
    flat = ndimage.generate_binary_structure(3, 1)
    flat[0] = flat[2] = False
    inside = ndimage.grey_erosion(truth, footprint=flat) == ndimage.grey_dilation(truth, footprint=flat)
    new = np.arange(truth.max() + 1)
    neighbour = ndimage.grey_dilation(truth, footprint=np.ones((3, 5, 5)))
    at = (truth > 0) & (neighbour != truth)
    for one, other in np.unique(np.stack([truth[at], neighbour[at]], axis=1), axis=0):
        if rng.random() < 0.15:
            new[new == new[one]] = new[other]
    missed = 1 + np.nonzero(rng.random(int(truth.max())) < 0.1)[0]
    new[missed] = 0
    return new[np.where(inside, truth, 0)]


def _split(truth: Numbers, rng: np.random.Generator) -> Numbers:
    result, number = truth.astype(np.int64), int(truth.max())
    for old, (z, y, x) in enumerate(ndimage.find_objects(truth), start=1):
        if rng.random() < 0.3:
            half = result[z, y, slice(x.start + round((x.stop - x.start) * rng.uniform(0.2, 0.8)), x.stop)]
            number += 1
            half[half == old] = number
    return result


def tiles(shape: ZYX, box: ZYX) -> list[Box]:
    """Return the whole boxes of a grid from the first voxel on."""
    starts = [range(0, n - b + 1, b) for n, b in zip(shape, box, strict=True)]
    return [Box(zyx(start), box) for start in itertools.product(*starts)]


def truth_of_boxes(folder: Path, campaign: Campaign, boxes: list[Box], guard_zyx: ZYX) -> HoldoutTruth:
    """Import a volume, and return the truth of boxes with a guard band."""
    meta = json.loads((folder / "meta.json").read_text())
    files = VolumeImport(
        str(folder / "raw.tif"),
        volume_id="v",
        spacing=tuple(meta["voxel_size_um_zyx"]),
        truth=str(folder / "labels.tif"),
        truth_type="instance",
    )
    import_volume(campaign, files)
    held = tuple(HoldoutBox(volume_id="v", box=box, part="test", stratum="grid") for box in boxes)
    campaign.freeze_holdout(Holdout(boxes=held, guard_zyx=guard_zyx))
    return holdout_truth(campaign)


def whole(prediction: Numbers, truth: Numbers, boxes: list[Box]) -> npt.NDArray[np.int64]:
    """Match in the whole volume, and count the objects whose centroid lies in what the boxes tile."""
    area = Box.from_bounds((0, 0, 0), boxes[-1].stop_zyx)
    matches = match_objects(prediction, truth)
    found, true, matched, _ = matches.count(centroids_inside(truth, area), centroids_inside(prediction, area))
    return np.array([found, true, matched[0]])


def in_boxes(prediction: Numbers, truth: HoldoutTruth) -> npt.NDArray[np.int64]:
    """Count as the evaluation does: (found, true, matched) over all boxes."""
    total = np.zeros(3, np.int64)
    for box in truth.boxes:
        true = TrueObjects.of(truth, box, lambda labels: labels == 1)
        assert true is not None
        scores = true.compare(renumber_objects(prediction[truth.context(box).slices]))
        total += [scores.found, scores.true, scores.matched[0]]
    return total


def in_fragments(prediction: Numbers, truth: Numbers, boxes: list[Box], *, frame: bool) -> npt.NDArray[np.int64]:
    """Count in the boxes: all fragments, or with the unbiased counting frame."""
    total = np.zeros(3, np.int64)
    for box in boxes:
        both = [renumber_objects(numbers[box.slices]) for numbers in (prediction, truth)]
        scores = compare_instances(*both)
        found, true, matched = scores.found, scores.true, scores.matched
        if frame:
            counted = []
            for numbers in both:
                cut = [np.take(numbers, 0, a).ravel() for a, start in enumerate(box.offset_zyx) if start]
                counted.append(~np.isin(np.arange(int(numbers.max()) + 1), np.concatenate([*cut, [0]])))
            found, true, matched, _ = match_objects(*both).count(counted[1], counted[0])
        total += [found, true, matched[0]]
    return total


def ap50(counts: npt.NDArray[np.int64]) -> float:
    """Return matched over matched, missed and invented objects."""
    found, true, matched = counts.tolist()
    return float(matched / (found + true - matched))


def figures(folder: Path, name: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the names of predictions with the AP50 by rule."""
    shape, guard = LAYOUTS[name]
    truth = renumber_objects(tifffile.imread(folder / name / "labels.tif"))
    boxes = tiles(truth.shape, shape)
    with tempfile.TemporaryDirectory() as work:
        truths = []
        for number, width in enumerate((guard, (0, 0, 0))):
            config = check_config({"name": "counts", "classes": ["object"]})
            campaign = Campaign.create(f"{work}/{number}", config)
            truths.append(truth_of_boxes(folder / name, campaign, boxes, width))
        for what, prediction in predictions(truth):
            counts = (
                whole(prediction, truth, boxes),
                *(in_boxes(prediction, of_boxes) for of_boxes in truths),
                *(in_fragments(prediction, truth, boxes, frame=frame) for frame in (False, True)),
            )
            yield what, dict(zip(RULES, map(ap50, counts), strict=True))


def main() -> None:
    """Print a row per volume and prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--volumes", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    options = parser.parse_args()
    print(f"| volume | prediction | {' | '.join(RULES)} |\n|{'---|' * (2 + len(RULES))}")
    for name in options.volumes:
        for what, row in figures(options.data, name):
            print(f"| {name} | {what} | {' | '.join(f'{row[rule]:.3f}' for rule in RULES)} |", flush=True)


if __name__ == "__main__":
    main()
