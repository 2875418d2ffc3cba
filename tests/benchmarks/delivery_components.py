"""Connected components of a volume larger than memory: how fast, and in how much memory, beside cc3d on what fits.

    python -m tests.benchmarks.delivery_components [--gib 8] [--workers 2] [--block 256] [--folder FOLDER]

The mask is uint8, N GiB of voxels, made piece by piece: blobs of many sizes that fill a third of it, joined across all blocks.
`find_components` runs on a local cluster; memory is the sum over this process and its workers, sampled all the time (the
memory of the cluster at rest included), and of each alone. The peer is cc3d in memory, on the first part of the same mask, in a
process of its own; there both counts must be the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from scipy import ndimage

from rescueseg.config import ClusterConfig
from rescueseg.delivery.components import find_components
from rescueseg.delivery.label_readers import ZarrLabels
from rescueseg.geometry import ZYX, Box, partition
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.voxels.components import label_components

GIB = 2**30
TILES = ((160, 3.0, 0.55), (192, 8.0, 0.6))
"""Edge of a tile of blobs, their width, and how much they fill; where both do is the mask, which repeats after 960 voxels."""


def blobs(edge: int, width: float, share: float) -> np.ndarray:
    """Return a tile of blobs that fits to itself on all sides."""
    noise = ndimage.gaussian_filter(
        np.random.default_rng(edge).normal(size=(edge,) * 3), width, mode="wrap", output=np.float32
    )
    return (noise > np.quantile(noise, 1 - share)).astype(np.uint8)


def cut(tile: np.ndarray, box: Box) -> np.ndarray:
    """Return what lies in a box when tiles fill all space."""
    first = [o % len(tile) for o in box.offset_zyx]
    whole = np.tile(tile, [-(-(f + n) // len(tile)) for f, n in zip(first, box.shape_zyx, strict=True)])
    return whole[tuple(slice(f, f + n) for f, n in zip(first, box.shape_zyx, strict=True))]


def make_mask(url: str, shape: ZYX, block: ZYX) -> None:
    """Write the mask, block by block."""
    chunk = tuple(min(64, n) for n in block)
    array = zarr.create_array(url, name="mask", shape=shape, dtype=np.uint8, chunks=chunk, shards=block, fill_value=0)
    one, other = (blobs(*tile) for tile in TILES)
    for box in partition(shape, block):
        array[box.slices] = cut(one, box) & cut(other, box)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Give the highest memory in GB of this process and those below it: of all together, and of the largest alone."""
    peaks, stop, me = {"together": 0.0, "largest": 0.0}, threading.Event(), psutil.Process()

    def watch() -> None:
        while not stop.wait(0.05):
            sizes = []
            for process in (me, *me.children(recursive=True)):
                try:
                    sizes.append(process.memory_info().rss / 1e9)
                except psutil.Error:
                    continue
            peaks["together"] = max(peaks["together"], sum(sizes))
            peaks["largest"] = max(peaks["largest"], max(sizes))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def in_memory(url: str, box: Box) -> tuple[int, float, float]:
    """Return how many components cc3d finds in a box, in how many seconds, and the highest memory in GB."""
    mask = ZarrLabels(url, "mask").read(box)
    start = time.perf_counter()
    count = label_components(mask, 26)[1]
    return count, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(folder: Path, shape: ZYX, block: ZYX, workers: int) -> None:
    """Print the figures of both."""
    url, voxels = str(folder / "mask.zarr"), float(np.prod(shape))
    start = time.perf_counter()
    make_mask(url, shape, block)
    print(f"mask {'×'.join(map(str, shape))}, {voxels / GIB:.2f} GiB, made in {time.perf_counter() - start:.0f} s")
    part = Box((0, 0, 0), tuple(min(n, 512) for n in shape))  # type: ignore[arg-type]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        count, seconds, peak = pool.apply(in_memory, (url, part))
    print(f"cc3d in memory, {part}: {count} components, {part.size / seconds / 1e9:.3f} Gvoxel/s, {peak:.2f} GB")
    passes = str(folder / "part")
    same = find_components(passes, "d", ZarrLabels(url, "mask"), part.shape_zyx, block, 26).count
    print(f"find_components on the same: {same} components, {'the same' if same == count else 'NOT THE SAME'}")
    with open_cluster(ClusterConfig(workers=workers)) as client, peak_memory() as peaks:
        client.wait_for_workers(workers)
        client.run(_warm)
        start = time.perf_counter()
        result = find_components(str(folder / "passes"), "d", ZarrLabels(url, "mask"), shape, block, 26, client)
        seconds = time.perf_counter() - start
    print(
        f"find_components, {workers} workers, blocks {'×'.join(map(str, block))}: {result.count} components in "
        f"{seconds:.1f} s, {voxels / seconds / 1e9:.3f} Gvoxel/s, peak memory {peaks['together']:.2f} GB together, "
        f"{peaks['largest']:.2f} GB the largest process"
    )


def _warm() -> int:
    """Import in a worker what the passes need."""
    return label_components(np.ones((2, 2, 2), np.uint8), 26)[1]


def main(arguments: list[str] | None = None) -> Any:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=8.0, help="GiB of voxels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--block", type=int, default=256, help="edge of a block in voxels")
    parser.add_argument(
        "--folder", default=None, help="where the mask lies in the meantime; a temporary one when omitted"
    )
    given = parser.parse_args(arguments)
    edge, block = 1024, given.block
    planes = max(1, round(given.gib * GIB / edge**2))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(Path(folder), (planes, edge, edge), (min(block, planes), block, block), given.workers)


if __name__ == "__main__":
    main()
