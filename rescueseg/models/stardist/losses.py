"""The loss of StarDist: classes, the object's probability, and the lengths of rays from some voxels of the objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescueseg.models.overlap_loss import PartialDiceCELoss
from rescueseg.models.polyhedra import star_directions
from rescueseg.models.stardist.plan import StarDistPlan
from rescueseg.models.stardist.targets import RayTracer

RAY_WEIGHT = 2.0
"""Of the lengths in multiples of the radius: as in StarDist, where objects have a radius of ten voxels."""
POINTS = 256
"""Voxels of the objects in a window whose rays are measured in a step, at most; others in the next step."""
_LEAST_WEIGHT = 0.1
_UNKNOWN_WEIGHT = 0.5
"""Of the rays of a voxel whose nearness to the middle is not known."""


class StarObjective(nn.Module):
    """What a training minimises.

    The object's probability is learned by binary cross-entropy, and a ray's length by the absolute difference, weighted by
    the object's probability, as in StarDist; a ray that is cut is only pulled up to the length that is seen. Lengths are
    in multiples of the usual radius, so that the terms weigh alike whatever the objects' size.

    Parameters
    ----------
    plan : StarDistPlan
        Rays, radius, spacing.
    """

    def __init__(self, plan: StarDistPlan) -> None:
        super().__init__()
        self.plan, self.overlap = plan, PartialDiceCELoss(())
        self.tracer = RayTracer(torch.from_numpy(star_directions(plan.rays)), plan.spacing_um_zyx, plan.radius_um)

    def forward(
        self, logits: Tensor, coarse: Sequence[Tensor], labels: Tensor, step: int, targets: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a step (from 0).

        Parameters
        ----------
        logits : Tensor of float32, shape (n, K + 1, z, y, x)
            Of the classes.
        coarse : sequence of Tensor
            One, of float32, shape (n, 1 + rays, z', y', x'): of the object's probability and the rays, at the resolution at
            which the network computes them.
        labels : Tensor of int64, shape (n, z, y, x)
            0…K or 255.
        step : int
            Decides at which voxels of the objects rays are measured.
        targets : Tensor of float32, shape (n, 2, z, y, x)
            See `rescueseg.models.stardist.targets.star_targets`.
        """
        assert targets is not None, "objects are learned"
        [stars] = coarse
        loss: Tensor = self.overlap(logits, labels)
        known = targets[:, 0] >= 0
        if known.any():
            said = functional.interpolate(stars[:, :1], labels.shape[1:], mode="trilinear")[:, 0]
            loss = loss + functional.binary_cross_entropy_with_logits(said[known], targets[:, 0][known])
        terms = [self._rays(of[1:], target, step) for of, target in zip(stars, targets, strict=True)]
        return loss + RAY_WEIGHT * torch.stack(terms).mean()

    def _rays(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Return the loss of the rays of a window, shape (rays, z', y', x')."""
        places = torch.nonzero(targets[1].reshape(-1) > 0)[:, 0]
        if not len(places):
            return 0.0 * logits.sum()
        stride = -(-len(places) // POINTS)
        places = places[step % stride :: stride]
        plane, row = targets.shape[2] * targets.shape[3], targets.shape[3]
        points = torch.stack([places // plane, places % plane // row, places % row], dim=1)
        lengths, is_known = self.tracer.lengths(targets[1], points)
        said = functional.softplus(_at_voxels(logits, points, targets.shape[1:]))
        difference = said - lengths / self.plan.radius_um
        error = torch.where(is_known, difference.abs(), functional.relu(-difference)).mean(dim=1)
        probability = targets[0].reshape(-1)[places]
        weights = torch.where(probability >= 0, probability.clamp(min=_LEAST_WEIGHT), _UNKNOWN_WEIGHT)
        return (weights * error).sum() / weights.sum()


def _at_voxels(coarse: Tensor, points: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    """Return the channels (c, z', y', x') of a coarse map at some voxels (n, 3) of the fine one: (n, c), trilinear."""
    size = torch.tensor(shape_zyx, device=points.device)
    grid = (2 * points + 1) / size - 1  # -1 and 1 are the outer faces of the outermost voxels
    sampled = functional.grid_sample(
        coarse[None], grid.flip(1).to(coarse.dtype)[None, :, None, None], "bilinear", "border", align_corners=False
    )
    return sampled[0, :, :, 0, 0].T
