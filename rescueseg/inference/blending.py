"""Windows blended into a block by their weights, on the device that computed them."""

from __future__ import annotations

import torch
from torch import Tensor

from rescueseg.geometry import Box
from rescueseg.inference.windows import WindowPart


class WindowBlender:
    """Adds the windows of a block up, each by its weights: once all were added, they are blended.

    Parameters
    ----------
    block : Box
        What is blended.

    Examples
    --------
    Two windows of 4 voxels along x say 1 and 3; where they overlap, what is nearer to its window's centre weighs more:

    >>> from rescueseg.inference.windows import WindowGrid
    >>> grid = WindowGrid((1, 1, 7), (1, 1, 4), 0.25)
    >>> block = Box((0, 0, 0), (1, 1, 7))
    >>> blender = WindowBlender(block)
    >>> for part, value in zip(grid.parts(block), (1.0, 3.0)):
    ...     blender.add(part, torch.full((1, *part.inside.shape_zyx), value))
    >>> blender.blended().ravel().tolist()
    [1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0]
    """

    def __init__(self, block: Box) -> None:
        self.block = block
        self._sum: Tensor | None = None

    def add(self, part: WindowPart, values: Tensor) -> None:
        """Add the values of a window's part, float32, shape (channels, z, y, x); they are not changed.

        Windows may have different numbers of channels: those that one lacks are zero in it.
        """
        if self._sum is None:
            self._sum = values.new_zeros((len(values), *self.block.shape_zyx))
        elif missing := max(0, len(values) - len(self._sum)):
            self._sum = torch.cat([self._sum, self._sum.new_zeros((missing, *self.block.shape_zyx))])
        weights = torch.from_numpy(part.weights).to(self._sum.device)
        target = self._sum[(slice(len(values)), *part.inside.relative_to(self.block).slices)]
        target.addcmul_(values.to(self._sum.device), weights)

    def blended(self) -> Tensor:
        """Return the sum, float32, shape (channels, z, y, x), with as many channels as the window has that has most.

        Raises
        ------
        ValueError
            If no window was added.
        """
        if self._sum is None:
            raise ValueError("no windows were added")
        return self._sum
