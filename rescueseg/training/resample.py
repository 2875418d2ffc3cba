"""The one way from a volume's spacing to the working spacing: training and inference both go through it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def resample(tensor: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    """Resample images (n, c, z, y, x) by linear interpolation, averaging first where they get coarser.

    Parameters
    ----------
    tensor : Tensor
        Floating point.
    shape_zyx : sequence of int
        Wanted; where it is the tensor's own, the tensor comes back as it is.
    """
    size = tuple(int(n) for n in shape_zyx)
    if tuple(tensor.shape[2:]) == size:
        return tensor
    pool = [max(1, n // m) for n, m in zip(tensor.shape[2:], size, strict=True)]
    if max(pool) > 1:
        tensor = functional.avg_pool3d(tensor, pool, ceil_mode=True)
    return functional.interpolate(tensor, size=size, mode="trilinear", align_corners=False)
