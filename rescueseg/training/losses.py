"""Dice and cross-entropy over the labelled voxels alone."""

from __future__ import annotations

from monai.losses.dice import MaskedDiceLoss
from torch import Tensor, nn
from torch.nn import functional

from rescueseg.training.base import IGNORE


class PartialDiceCELoss(nn.Module):
    """Soft Dice, averaged over the foreground classes present, plus cross-entropy; blind to voxels labelled 255.

    Dice is computed over the batch as one (Milletari et al. 2016, arXiv 1606.04797; the sum with cross-entropy as in
    Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = MaskedDiceLoss(include_background=False, batch=True, reduction="none")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss; zero, with zero gradient, where no voxel is labelled.

        Parameters
        ----------
        logits : Tensor of float32, shape (n, K + 1, z, y, x)
        labels : Tensor of int64, shape (n, z, y, x)
            0…K or 255.
        """
        mask = (labels != IGNORE).unsqueeze(1)
        known = mask.to(logits.dtype)
        classes = functional.one_hot(labels.masked_fill(labels == IGNORE, 0), logits.shape[1])
        target = classes.movedim(-1, 1).to(logits.dtype) * known
        log_probability = functional.log_softmax(logits, dim=1)
        cross_entropy = -(log_probability * target).sum() / known.sum().clamp(min=1.0)
        dice = self.dice(log_probability.exp(), target, known).flatten()
        present = target[:, 1:].sum(dim=(0, 2, 3, 4)) > 0
        loss: Tensor = cross_entropy + (dice * present).sum() / present.sum().clamp(min=1)
        return loss
