"""What StarDist learns of numbered objects: how near the middle a voxel is, and how far the border along each ray.

What a patch cuts is censored. How near the middle a voxel is, is known where the largest ball of its object is seen, and the
border is nearer than what nobody labelled; beyond the volume objects go on as in its outermost plane. A ray that ends in what
nobody labelled has that length at least.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from rescueseg.geometry import Spacing
from rescueseg.models.border_distance import UNKNOWN, Ends, continue_beyond, distances_to_borders, is_nearer
from rescueseg.models.training_items import Targets

_LONGEST_RADII = 4.0
_MOST_STEPS = 64


def star_targets(*, whole_seen: bool) -> Targets:
    """Return what makes the targets of an item: the object's probability, then its number, float32 (2, z, y, x).

    The probability is StarDist's: the distance to the border as a share of the largest one in the object. `UNKNOWN` where it
    is not known. The number is 0 in the background, and `UNKNOWN` where nobody labelled.

    Parameters
    ----------
    whole_seen : bool
        Whether objects of which no largest ball is seen are left out; if not, they count as if they ended where they are cut.
    """

    def make(
        objects: npt.NDArray[np.int32], unlabelled: npt.NDArray[np.bool_], spacing_um_zyx: Spacing, ends: Ends
    ) -> npt.NDArray[np.float32]:
        every, hidden, inner = continue_beyond(objects, unlabelled, ends)
        to_border, to_unlabelled = distances_to_borders(every, hidden, spacing_um_zyx)
        numbered = np.where(hidden, 0, every)
        count = int(numbered.max(initial=0)) + 1
        largest, whole = np.ones(count, np.float32), np.ones(count, np.bool_)
        numbers = np.unique(numbered[numbered > 0])
        for number, place in zip(numbers, ndimage.maximum_position(to_border, numbered, numbers), strict=True):
            largest[number], whole[number] = to_border[place], is_nearer(to_border[place], to_unlabelled[place])
        known = ~hidden
        if whole_seen:
            known &= (numbered == 0) | (whole[numbered] & is_nearer(to_border, to_unlabelled))
        probability = np.where(known, to_border / largest[numbered], np.float32(UNKNOWN))[inner]
        return np.stack([probability, np.where(unlabelled, np.float32(UNKNOWN), objects)]).astype(np.float32)

    return make


class RayTracer:
    """Measures how far objects reach from their voxels along rays.

    Parameters
    ----------
    directions : Tensor of float32, (rays, 3)
        Unit vectors zyx.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    radius_um : float
        Of usual objects: rays are followed for four times as far.
    """

    def __init__(self, directions: Tensor, spacing_um_zyx: Spacing, radius_um: float) -> None:
        longest = _LONGEST_RADII * radius_um
        self.step_um = max(min(spacing_um_zyx), longest / _MOST_STEPS)
        count = int(np.ceil(longest / self.step_um))
        per_step = directions.double() * self.step_um / torch.tensor(spacing_um_zyx, dtype=torch.float64)
        numbers = torch.arange(1, count + 1, dtype=torch.float64)
        self._offsets = torch.round(per_step[:, None] * numbers[None, :, None]).long()  # rays, steps, zyx
        self._margin = [int(n) for n in self._offsets.abs().amax(dim=(0, 1))]

    def lengths(self, numbers: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the length of the rays from some voxels to the border of the voxel's object.

        Parameters
        ----------
        numbers : Tensor of float32, (z, y, x)
            Of objects; negative where it is not known.
        points : Tensor of int64, (n, 3)
            Voxels zyx.

        Returns
        -------
        lengths : Tensor of float32, (n, rays)
            In micrometre, to half a step.
        is_known : Tensor of bool, (n, rays)
            False where the ray ends in what is not known, or has not ended: it is longer.
        """
        z, y, x = self._margin
        padded = functional.pad(numbers, (x, x, y, y, z, z), value=UNKNOWN)
        strides = torch.tensor([padded.shape[1] * padded.shape[2], padded.shape[2], 1], device=numbers.device)
        start = ((points + torch.tensor(self._margin, device=numbers.device)) * strides).sum(dim=1)
        flat = padded.reshape(-1)
        offsets = (self._offsets.to(numbers.device) * strides).sum(dim=2)
        met = flat[start[:, None, None] + offsets[None]]  # n, rays, steps
        left = met != flat[start][:, None, None]
        ended = left.any(dim=2)
        first = torch.where(ended, left.to(torch.uint8).argmax(dim=2), left.shape[2] - 1)
        beyond = met.gather(2, first[:, :, None])[:, :, 0]
        lengths = torch.where(ended, first + 0.5, float(left.shape[2])) * self.step_um
        return lengths.float(), ended & (beyond >= 0)
