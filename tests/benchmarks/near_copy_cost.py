"""Seconds that looking for a near copy takes on one pair of volumes: `python tests/benchmarks/near_copy_cost.py`."""

from __future__ import annotations

import tempfile
import time

import numpy as np
from scipy import ndimage

from rescueseg.geometry import ZYX
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.coarse_reading import Pyramid
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.near_copies import near_copy

SPACING = (0.25, 0.1, 0.1)
SHAPES: tuple[ZYX, ...] = ((24, 24, 24), (64, 512, 512), (40, 1536, 1536))


def store(folder: str, name: str, image: np.ndarray) -> Pyramid:
    """Write an image as an import does and open it."""
    url = f"{folder}/{name}.ome.zarr"
    level = ome_zarr.create_image(url, ImageLayout((1, *image.shape), image.dtype, SPACING, name=name))
    level[0] = image
    ome_zarr.add_pyramid(url)
    return Pyramid.open(url)


def specimen(shape: ZYX, seed: int) -> np.ndarray:
    """Return structure of a few voxels, and noise."""
    rng = np.random.default_rng(seed)
    structure = rng.normal(size=(shape[0], shape[1] // 4, shape[2] // 4)).astype(np.float32)
    noise = rng.normal(0, 30, shape).astype(np.float32)
    image: np.ndarray = 1000 + 200 * ndimage.zoom(structure, (1, 4, 4), order=1) + noise
    return image.astype(np.uint16)


def main() -> None:
    """Print the seconds for an unlike pair and for a mirrored copy in 8 bit."""
    for shape in SHAPES:
        image = specimen(shape, 1)
        pairs = {"unlike": specimen(shape, 2), "copy": (image[:, ::-1] / 8).clip(0, 255).astype(np.uint8)}
        for name, other in pairs.items():
            with tempfile.TemporaryDirectory() as folder:
                one, two = store(folder, "one", image), store(folder, "two", other)
                start = time.perf_counter()
                found = near_copy(one, two, SPACING, SPACING)
                print(f"{shape} {name}: {time.perf_counter() - start:.2f} s, {'found' if found else 'not found'}")


if __name__ == "__main__":
    main()
