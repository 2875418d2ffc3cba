"""How often a wrong spacing tag is caught, and how often an honest one is doubted, on real volumes.

Run ``python tests/benchmarks/wrong_spacing.py /data/volumes``: a folder of ``<name>/{raw.tif,meta.json}``. Each volume is cut
into two halves along each axis, two samples of one kind. One half keeps its spacing. The other gets a tag that is wrong by a
factor, or is resampled to another spacing and says so, or is another volume with its own spacing. Nothing is random.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from scipy.stats import binomtest

from rescueseg.records import Normalisation, VolumeRecord
from rescueseg.volumes.describe import Measurement, measure_volume
from rescueseg.volumes.image_layout import choose_chunks
from rescueseg.volumes.spacing_tags import contradict

WRONG = ((1.3,) * 3, (1.5,) * 3, (2.0,) * 3, (10.0,) * 3, (1000.0,) * 3, (2.0, 1, 1), (5.0, 1, 1), (1, 2.0, 2.0))
HONEST = ((1, 1.3, 1.3), (1, 1.5, 1.5), (1, 2.0, 2.0), (1, 3.0, 3.0), (1, 1 / 1.5, 1 / 1.5), (2.0, 1, 1))


def describe(name: str, voxels: np.ndarray, spacing: np.ndarray) -> Measurement:
    """Measure an array as if it were a volume of a campaign."""
    record = VolumeRecord(
        volume_id=name,
        domain="d",
        shape_zyx=voxels.shape,
        spacing_um_zyx=tuple(spacing.tolist()),
        channels=1,
        dtype=str(voxels.dtype),
        source=name,
        digest="",
        normalisation=Normalisation(low=0, high=1, mean=0, std=1),
    )
    return measure_volume(record, voxels[None], choose_chunks(voxels.shape)[0])


def resampled(voxels: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Sample the field with voxels `factor` times as large: averaged where they are larger, interpolated where finer."""
    sigma = np.where(factor > 1, np.sqrt(np.maximum(factor**2 - 1, 0) / 12), 0)
    return ndimage.zoom(ndimage.gaussian_filter(voxels.astype(np.float32), sigma), 1 / factor, order=1)


def tagged(measured: Measurement, factor: np.ndarray) -> Measurement:
    """Return a volume with its spacing tag off by a factor."""
    spacing = tuple((np.array(measured.spacing) * factor).tolist())
    return replace(measured, record=measured.record.model_copy(update={"spacing_um_zyx": spacing}))


def line(what: str, found: list[bool]) -> str:
    """Return a rate with its 95 % Wilson interval."""
    interval = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
    return f"{what:38} {sum(found):3d} of {len(found):3d}  ({interval.low:.0%} to {interval.high:.0%})"


def main() -> int:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    folders = sorted(p for p in parser.parse_args().data.iterdir() if (p / "raw.tif").exists())
    caught: dict[tuple[float, ...], list[bool]] = {f: [] for f in WRONG}
    doubted: dict[tuple[float, ...], list[bool]] = {f: [] for f in HONEST}
    missed: dict[str, int] = {}
    whole = []
    for folder in folders:
        voxels = tifffile.imread(folder / "raw.tif")
        spacing = np.array(json.loads((folder / "meta.json").read_text())["voxel_size_um_zyx"], float)
        whole.append(describe(folder.name, voxels, spacing))
        for axis in range(3):
            one, two = np.array_split(voxels, 2, axis=axis)
            first, second = describe("one", one, spacing), describe("two", two, spacing)
            for factor in WRONG:
                found = contradict(first, tagged(second, np.array(factor)))
                caught[factor].append(found)
                missed[folder.name] = missed.get(folder.name, 0) + (not found)
            for factor in HONEST:
                other = describe("two", resampled(two, np.array(factor)), spacing * factor)
                doubted[factor].append(contradict(first, other))
    for factor, found in caught.items():
        print(line("caught, tag wrong by " + " × ".join(f"{f:g}" for f in factor), found))
    print("missed, by volume:", ", ".join(f"{name} {n}" for name, n in missed.items() if n) or "none")
    for factor, found in doubted.items():
        print(line("doubted, resampled by " + " × ".join(f"{f:.3g}" for f in factor), found))
    print(line("doubted, two different volumes", [contradict(a, b) for a, b in itertools.combinations(whole, 2)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
