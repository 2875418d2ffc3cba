"""Losses over the labelled voxels alone: Dice with cross-entropy, border distances, and terms for topology."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses.cldice import SoftclDiceLoss
from torch import Tensor, nn
from torch.nn import functional

from rescueseg.errors import ConfigError
from rescueseg.geometry import ZYX
from rescueseg.labels import IGNORE
from rescueseg.models.overlap_loss import PartialDiceCELoss
from rescueseg.models.threads import keep_threads
from rescueseg.models.training_items import TrainingSet
from rescueseg.models.unet.plan import TrainingPlan

MAX_EROSIONS = 8
BORDER_WEIGHT = 10.0
"""Of the border distance, against Dice and cross-entropy: a squared share of the largest distance begins at about 0.1."""
BETTI_WINDOW: ZYX = (16, 48, 48)
"""Largest box that the Betti matching loss looks at; it costs as much processor time as two steps of the network."""


class BorderDistanceLoss(nn.Module):
    """Mean squared difference from the known border distances, object voxels and background in equal parts.

    Most voxels are background, so in a plain mean the objects would hardly count. Squared, for the best guess then is the
    mean: it falls wherever a border is possible, where the median would pass over a border that is less than certain.
    """

    def forward(self, logit: Tensor, target: Tensor) -> Tensor:
        """Return the loss; zero, with zero gradient, where nothing is known.

        Parameters
        ----------
        logit : Tensor of float32, shape (n, z, y, x)
            Its sigmoid is the distance as a share of the largest.
        target : Tensor of float32, shape (n, z, y, x)
            0…1, negative where it is not known.
        """
        difference = (torch.sigmoid(logit) - target).square()
        parts = [part for part in (difference[target > 0], difference[target == 0]) if len(part)]
        if not parts:
            return 0.0 * logit.sum()
        loss: Tensor = torch.stack([part.mean() for part in parts]).mean()
        return loss


class SoftTopologyLoss(nn.Module):
    """Soft clDice of the foreground classes: how much of each skeleton lies in the other mask.

    Shit et al. 2021, arXiv 2003.07311. Voxels labelled 255 are background in both masks, so that both skeletons end there.

    Parameters
    ----------
    erosions : int
        Steps of the soft skeleton: the structure's half thickness in voxels.
    """

    def __init__(self, erosions: int) -> None:
        super().__init__()
        self.cldice = SoftclDiceLoss(iter_=erosions, include_background=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, between 0 and 1; parameters as in `PartialDiceCELoss.forward`."""
        target, annotated = one_hot(labels, logits.shape[1])
        loss: Tensor = self.cldice(torch.softmax(logits, dim=1) * annotated, target)
        return loss


class BettiMatchingLoss(nn.Module):
    """Betti matching: components, loops and cavities of the prediction, matched with those of the truth where they lie.

    Stucki et al. 2024, arXiv 2407.04683, by the package `topolosses`: squared distances between matched intervals of the
    two barcodes, and the squared length of those without a match, summed. Voxels labelled 255 are background in both.

    Raises
    ------
    ConfigError
        If `topolosses` is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from topolosses.losses.betti_matching import BettiMatchingLoss as Matching
        except ImportError as error:
            raise ConfigError(
                "the Betti matching loss needs the package topolosses",
                where="training.unet.betti_weight",
                todo="Install rescueseg[topology], or set it to 0",
            ) from error
        keep_threads()  # the package's OpenCV lets OpenMP start fewer
        self.matching = Matching(use_base_loss=False, alpha=1.0)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the first window, at most `BETTI_WINDOW` around its middle; as `PartialDiceCELoss.forward`."""
        z, y, x = (_middle(n, limit) for n, limit in zip(labels.shape[1:], BETTI_WINDOW, strict=True))
        target, annotated = one_hot(labels[:1, z, y, x], logits.shape[1])
        probability = torch.softmax(logits[:1, :, z, y, x], dim=1) * annotated
        loss: Tensor = self.matching(probability, target)
        return loss


def one_hot(labels: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return the labels as (n, channels, z, y, x) float32, zero where 255, and the mask (n, 1, z, y, x) of annotated voxels."""
    mask = (labels != IGNORE).unsqueeze(1).float()
    classes = functional.one_hot(labels.masked_fill(labels == IGNORE, 0), channels)
    return classes.movedim(-1, 1).float() * mask, mask


def _middle(length: int, limit: int) -> slice:
    start = max(0, (length - limit) // 2)
    return slice(start, start + limit)


class Objective(nn.Module):
    """What a training minimises: Dice and cross-entropy at every supervised resolution, all else at the finest.

    Parameters
    ----------
    data : TrainingSet
        Gives class weights and thickness where the plan uses them.
    plan : TrainingPlan
        Weights of the terms.
    """

    def __init__(self, data: TrainingSet, plan: TrainingPlan) -> None:
        super().__init__()
        self.plan = plan
        self.overlap = PartialDiceCELoss(data.class_weights() if plan.balanced else ())
        self.border = BorderDistanceLoss()
        self.terms: list[tuple[float, nn.Module]] = []
        if plan.topology is not None and plan.topology.cldice:
            erosions = min(max(data.half_thickness(), 1), MAX_EROSIONS)
            self.terms.append((plan.topology.cldice, SoftTopologyLoss(erosions)))
        if plan.topology is not None and plan.topology.betti:
            self.terms.append((plan.topology.betti, BettiMatchingLoss()))

    def forward(
        self, logits: Tensor, coarse: Sequence[Tensor], labels: Tensor, step: int, targets: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a step (from 0).

        Parameters
        ----------
        logits : Tensor of float32, shape (n, K + 1, z, y, x)
            One channel more with `targets`.
        coarse : sequence of Tensor
            Logits of coarser stages, fine to coarse; each counts half as much as the one before it.
        labels : Tensor of int64, shape (n, z, y, x)
            0…K or 255.
        step : int
            Decides whether topology counts.
        targets : Tensor of float32, shape (n, 1, z, y, x), optional
            Border distances, see `BorderDistanceLoss`.
        """
        if targets is not None:
            of_border: Tensor = self.border(logits[:, -1], targets[:, 0])
            return self.forward(logits[:, :-1], coarse, labels, step) + BORDER_WEIGHT * of_border
        weights = [0.5**i for i in range(len(coarse) + 1)]
        loss: Tensor = self.overlap(logits, labels) * (weights[0] / sum(weights))
        for weight, stage in zip(weights[1:], coarse, strict=True):
            loss = loss + self.overlap(stage, labels) * (weight / sum(weights))
        topology = self.plan.topology
        if topology is None or step < topology.begin * self.plan.iterations or step % topology.every:
            return loss
        for weight, term in self.terms:
            loss = loss + topology.every * weight * term(logits, labels)
        return loss
