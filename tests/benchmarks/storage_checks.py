"""What the checks of stored voxels cost: seconds of import, inference and reading for a query, with and without them.

Each repetition does the same work with and without, in alternating order, on the same machine at the same time; the ratio is
the median of the repetitions' own. Without means as before there were checks: no checksum in the compressor, no
sums of what is written, no waiting for the disk, and arrays read as Zarr reads them. Where other programs run as well, the
seconds of the processor (CPU) say more than those of the clock; they leave out the waiting for the disk.

    python tests/benchmarks/storage_checks.py [--repetitions 7] [--size 64 512 512] [--folder .]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from rescueseg.active_learning.candidates import score_candidates
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import Box, partition
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.inference import engine, maps
from rescueseg.inference.engine import infer_volume
from rescueseg.records import ModelReference
from rescueseg.volumes import VolumeImport, checked_array, import_volume, ome_zarr, opening, shards, volume_import
from tests import trivial_predictors

SPACING = (0.2, 0.1, 0.1)
MODEL = ModelReference(generation=0, trainer="trivial", path="generations/0000/model", digest="a" * 64)


@contextmanager
def checks(on: bool) -> Iterator[None]:
    """Switch the checks off, or leave them; nothing is known of any file yet."""
    for cache in (engine._predictor, engine._context, opening._file_table):
        cache.cache_clear()
    checked_array._checked.clear()
    if on:
        yield
        return

    def open_plain(url: str, path: str, _: object) -> checked_array.CheckedArray:
        array = zarr.open_array(store=zarr_store(url), path=path, mode="r", zarr_format=3)
        return checked_array.CheckedArray(array, f"{url}/{path}")

    with (
        mock.patch.object(ome_zarr, "_COMPRESSOR", ZstdCodec(level=3)),
        mock.patch.object(shards.WrittenFiles, "store", lambda self, url: zarr_store(url)),
        mock.patch.object(shards.WrittenFiles, "table", return_value={}),
        mock.patch.object(volume_import, "sync_files"),
        mock.patch.object(maps, "sync_files"),
        mock.patch.object(maps, "sum_of_file", return_value=shards.FileSum(0, 0, "")),
        mock.patch.object(opening, "open_checked", open_plain),
        mock.patch.object(maps, "open_checked", open_plain),
    ):
        yield


def tissue(shape: tuple[int, int, int]) -> np.ndarray:
    """Return a smooth uint16 image with noise: zstd halves it, as it does micrographs."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(1000, 300, [n // 8 + 1 for n in shape])
    smooth = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[tuple(slice(n) for n in shape)]
    return np.clip(smooth + rng.normal(0, 20, shape), 0, 65535).astype(np.uint16)


def one_round(folder: Path, source: str, shape: tuple[int, int, int], on: bool) -> dict[str, float]:
    """Return the seconds of each kind of work, in a campaign of its own."""
    seconds: dict[str, float] = {}

    def timed(what: str, work: Callable[[], object]) -> None:
        start, processor = time.perf_counter(), time.process_time()
        work()
        seconds[what] = time.perf_counter() - start
        seconds[f"{what}, CPU"] = time.process_time() - processor

    settings = {"mc_samples": 1, "tta_symmetries": 1, "window_zyx": [32, 128, 128]}
    config = check_config({"name": "c", "classes": ["a"], "inference": settings, "cluster": {"workers": 1}})
    campaign = Campaign.create(str(folder / f"c{on}"), config)
    volume = VolumeImport(source, volume_id="v", spacing=SPACING)
    boxes: list[Box] = partition(shape, (16, 64, 64))
    with checks(on):
        timed("import", lambda: import_volume(campaign, volume))
    with checks(on):
        timed("inference", lambda: infer_volume(campaign, MODEL, "v", load=trivial_predictors.blur))
    with checks(on):
        places = campaign.volumes.shared_places()
        timed("query", lambda: score_candidates(campaign.generation(0), {"v": boxes}, 1, places))
    with checks(on):
        image = opening.open_image(campaign.volumes, "v")
        timed("image, whole", lambda: image[:])
        timed("image, again", lambda: image[:])
    shutil.rmtree(campaign.url)
    return seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=3, default=(64, 512, 512))
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    shape = (options.size[0], options.size[1], options.size[2])
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        zarr.create_array(str(folder / "source.zarr"), data=tissue(shape))
        rounds = []
        for repetition in range(options.repetitions + 1):
            order = (True, False) if repetition % 2 else (False, True)
            rounds.append({on: one_round(folder, str(folder / "source.zarr"), shape, on) for on in order})
        rounds = rounds[1:]  # the first one loads modules
    print(f"{'×'.join(map(str, shape))} voxels, uint16, {len(rounds)} pairs")
    for what in rounds[0][True]:
        ratios = sorted(pair[True][what] / pair[False][what] for pair in rounds)
        with_checks, without = (statistics.median(pair[on][what] for pair in rounds) for on in (True, False))
        print(
            f"{what:17} {with_checks:7.3f} s with, {without:7.3f} s without, ratio {statistics.median(ratios):.3f}"
            f" ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


if __name__ == "__main__":
    main()
