"""The one way from a volume's spacing to the working spacing: training and inference both go through it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def resample(tensor: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    """Resample images (n, c, z, y, x) by linear interpolation, to a multiple first that is averaged where they get coarser.

    The result covers the same field of view, whatever the two shapes are: a voxel's place is in proportion along each axis.

    Parameters
    ----------
    tensor : Tensor
        Floating point.
    shape_zyx : sequence of int
        Shape of the result; where it is the tensor's own, the tensor is returned as it is.
    """
    size = tuple(int(n) for n in shape_zyx)
    if tuple(tensor.shape[2:]) == size:
        return tensor
    pool = [max(1, n // m) for n, m in zip(tensor.shape[2:], size, strict=True)]
    multiple = tuple(m * p for m, p in zip(size, pool, strict=True))
    if tuple(tensor.shape[2:]) != multiple:
        tensor = functional.interpolate(tensor, size=multiple, mode="trilinear", align_corners=False)
    return functional.avg_pool3d(tensor, pool) if max(pool) > 1 else tensor
