"""The U-Net in training: what its batches are, and how it computes."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from rescueseg.models.layout import as_channels_last, lay_channels_last
from rescueseg.models.network_run import NetworkRun, RunStart
from rescueseg.models.precision import choose_precision
from rescueseg.models.training_items import TrainingSet
from rescueseg.models.trial import Trial
from rescueseg.models.unet.augment import Augmentation
from rescueseg.models.unet.network import StridedUNet, build_network, get_weights, set_weights, take_over
from rescueseg.models.unet.plan import TrainingPlan
from rescueseg.models.unet.warp import Warp, draw_warp

Windows: TypeAlias = list[tuple[Tensor, Tensor]]
"""Images and labels of a batch, window by window."""


class Run(NetworkRun[StridedUNet, Windows]):
    """One `StridedUNet` in training; whoever makes one closes its `batches`.

    Parameters
    ----------
    start : RunStart
        Where it begins.
    data : TrainingSet
        Windows.
    plan : TrainingPlan
        What is trained, and how.
    loss : nn.Module
        What is minimised; called as `rescueseg.models.unet.losses.Objective` is.
    """

    weight_decay = 1e-4
    largest_gradient = 1.0

    def __init__(self, start: RunStart, data: TrainingSet, plan: TrainingPlan, loss: nn.Module) -> None:
        device = torch.device(start.device)
        self.data, self.plan, self.loss, self.augment = data, plan, loss.to(device), Augmentation(plan)
        network = build_network(plan.network, start.seed)
        if start.weights is not None:
            take_over(network, start.weights)
        network.to(device).train()
        if device.type == "cpu":
            lay_channels_last(network)
        super().__init__(start, plan, network, choose_precision(device, training_trial(plan)), plan.ema)

    def _get_weights(self) -> dict[str, Tensor]:
        return get_weights(self.network)

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        set_weights(self.network, weights)

    def _loss(self, batch: Windows) -> Tensor:
        """Return the loss of a batch, whose windows a GPU augments now."""
        images, labels, targets = self._tensors(batch)
        masks = None
        if self.plan.network.dropout > 0:  # else what they are multiplied with is float32
            masks = tuple(mask.to(self.dtype) for mask in self._dropout_masks(len(images)))
        with self._autocast():
            features, coarse = self.network.coarse_logits(images)
            logits, more = self.network.head_parts(features, masks)
        coarse = coarse if more is None else [*coarse, more]
        loss: Tensor = self.loss(_for_loss(logits), [_for_loss(stage) for stage in coarse], labels, self.step, targets)
        return loss

    def _prepare(self, step: int) -> Windows:
        """Return the windows of a step: augmented, or with a GPU, which augments faster, ready to be copied there."""
        warps = self._warps(step)
        windows = self.data.batch(self.seed, step, [warp.margin_zyx for warp in warps])
        if self.device.type == "cpu":
            return self._augmented(windows, warps, step)
        if self.device.type != "cuda":
            return windows
        with torch.cuda.device(self.device):
            return [(image.pin_memory(), label.pin_memory()) for image, label in windows]

    def _warps(self, step: int) -> list[Warp]:
        return [draw_warp(self.plan, self.seed, step, i) for i in range(self.plan.batch_size)]

    def _augmented(self, windows: Windows, warps: list[Warp], step: int) -> Windows:
        pairs = enumerate(zip(windows, warps, strict=True))
        return [self.augment(image, label, warp, self.seed, step, i) for i, ((image, label), warp) in pairs]

    def _tensors(self, windows: Windows) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images, classes (n, z, y, x) and, where more is learned, the other targets (n, c, z, y, x) of the next step."""
        if self.device.type != "cpu":
            sent = [tuple(t.to(self.device, non_blocking=True) for t in window) for window in windows]
            windows = self._augmented([(image, label) for image, label in sent], self._warps(self.step), self.step)
        images = torch.stack([image for image, _ in windows])
        labels = torch.stack([label[0] for _, label in windows])
        targets = torch.stack([label[1:] for _, label in windows]) if len(windows[0][1]) > 1 else None
        return as_channels_last(images) if self.device.type == "cpu" else images, labels.long(), targets


def _for_loss(logits: Tensor) -> Tensor:
    """Return logits in float32, one channel after the other: losses reduce over voxels."""
    return logits.to(torch.float32, memory_format=torch.contiguous_format)


def training_trial(plan: TrainingPlan) -> Trial:
    """Return what must hold for a plan to be trained in bfloat16 with this process's threads."""
    return Trial(
        network=plan.network,
        window=plan.window_zyx,
        batches=(plan.batch_size,),
        threads=torch.get_num_threads(),
        backward=True,
    )
