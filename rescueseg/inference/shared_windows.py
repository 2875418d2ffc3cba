"""Windows that reach into several blocks, kept on disk from the first block that computes them to the last that needs them.

A folder of files, each with what one block needs of one window: a sixth of what the maps take, or for many workers up to as
much. Nothing depends on it but speed: what is missing, or cannot be kept, is computed again. Each run has a folder of its own,
since files that a power cut tore must not be read by a later one.
"""

from __future__ import annotations

import itertools
import math
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.storage import replace_atomically

Float32 = npt.NDArray[np.float32]


def new_run(root: Path) -> str:
    """Return the name of a new run below the folder of a volume, and remove what earlier runs left there."""
    with suppress(OSError):
        for left in root.iterdir():
            shutil.rmtree(left, ignore_errors=True)
    return uuid.uuid4().hex


@dataclass(frozen=True)
class SharedWindows:
    """What blocks of a volume have computed for one another.

    Parameters
    ----------
    folder : Path
        Of this run; made when the first window is kept.
    volume_zyx, block_zyx : tuple of int
        How the volume is cut into blocks, numbered in z, y, x order.
    is_done : callable
        Tells of a block whether it needs nothing any more.
    spared_bytes : int
        Room on the disk that is left to others, such as the maps themselves.
    """

    folder: Path
    volume_zyx: ZYX
    block_zyx: ZYX
    is_done: Callable[[int], bool]
    spared_bytes: int = 0

    def blocks_at(self, window: Box) -> list[tuple[int, Box]]:
        """Return the blocks that a window reaches into, by number.

        Examples
        --------
        >>> shared = SharedWindows(Path("unused"), (4, 8, 20), (4, 8, 8), lambda block: False)
        >>> [(number, str(block)) for number, block in shared.blocks_at(Box((0, 0, 6), (4, 8, 4)))]
        [(0, '[0:4, 0:8, 0:8]'), (1, '[0:4, 0:8, 8:16]')]
        """
        inside = window.clip(self.volume_zyx)
        counts = [math.ceil(n / b) for n, b in zip(self.volume_zyx, self.block_zyx, strict=True)]
        ranges = [
            range(a // b, (z - 1) // b + 1)
            for a, z, b in zip(inside.offset_zyx, inside.stop_zyx, self.block_zyx, strict=True)
        ]
        found = []
        for place in itertools.product(*ranges):
            offset = zyx(p * b for p, b in zip(place, self.block_zyx, strict=True))
            number = (place[0] * counts[1] + place[1]) * counts[2] + place[2]
            found.append((number, Box(offset, self.block_zyx).clip(self.volume_zyx)))
        return found

    def has(self, block: int, window: int) -> bool:
        """Tell whether a block's part of a window is kept."""
        return self._file(block, window).exists()

    def take(self, block: int, window: int) -> Float32 | None:
        """Return a block's part of a window, shape (channels, z, y, x); None where it is not there."""
        try:
            part: Float32 = np.load(self._file(block, window), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return part

    def keep(self, block: int, window: int, part: Float32) -> None:
        """Keep a block's part of a window, unless that block is done or the disk has no room to spare."""
        file = self._file(block, window)
        if self.is_done(block) or file.exists():
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(file.parent).free < self.spared_bytes + part.nbytes:
                return
            with replace_atomically(file) as new, new.open("wb") as stream:
                np.save(stream, part)
        except OSError:
            return

    def forget(self, block: int) -> None:
        """Remove what a block needed, once it is done."""
        shutil.rmtree(self.folder / f"{block:06d}", ignore_errors=True)

    def _file(self, block: int, window: int) -> Path:
        return self.folder / f"{block:06d}" / f"{window:08d}.npy"
