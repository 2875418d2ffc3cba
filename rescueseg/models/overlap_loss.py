"""Dice with cross-entropy over the labelled voxels alone, at the labels' resolution or at a coarser one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses.dice import MaskedDiceLoss
from torch import Tensor, nn
from torch.nn import functional

from rescueseg.labels import IGNORE
from rescueseg.models.resample import class_shares


class PartialDiceCELoss(nn.Module):
    """Soft Dice, averaged over the foreground classes present, plus cross-entropy; blind to voxels that nobody labelled.

    Dice is computed over the batch as one (Milletari et al. 2016, arXiv 1606.04797; the sum with cross-entropy as in
    Isensee et al. 2021, doi:10.1038/s41592-020-01008-z). Where the logits are coarser than the labels, the target of a cell
    is the share of each class in it, so that a structure smaller than a cell is neither lost nor made thicker. Dice is in
    the form that is least at such a target, and the usual one where all shares are 0 or 1 (Wang et al. 2023,
    doi:10.1007/978-3-031-43898-1_46).

    Parameters
    ----------
    class_weights : sequence of float, optional
        Weight of each class, background first, in the cross-entropy; all alike when omitted.
    ignore : int
        Label where nobody labelled.
    """

    weights: Tensor

    def __init__(self, class_weights: Sequence[float] = (), ignore: int = IGNORE) -> None:
        super().__init__()
        self.ignore = ignore
        self.dice = MaskedDiceLoss(include_background=False, batch=True, reduction="none", soft_label=True)
        self.register_buffer("weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss; zero, with zero gradient, where no voxel is labelled.

        Parameters
        ----------
        logits : Tensor of float32, shape (n, K + 1, z, y, x)
        labels : Tensor of integers, shape (n, z, y, x), or so many times as large along each axis
            0…K or `ignore`.
        """
        target, known = class_shares(labels, logits.shape[2:], logits.shape[1] - 1, self.ignore)
        log_probability = functional.log_softmax(logits, dim=1)
        dice = self.dice(log_probability.exp(), target, known).flatten()
        weighted = target * known
        present = weighted[:, 1:].sum(dim=(0, 2, 3, 4)) > 0
        weighted = weighted * self.weights.view(1, -1, 1, 1, 1) if len(self.weights) else weighted
        cross_entropy = -(log_probability * weighted).sum() / weighted.sum().clamp(min=1.0)
        loss: Tensor = cross_entropy + (dice * present).sum() / present.sum().clamp(min=1)
        return loss
