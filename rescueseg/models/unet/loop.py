"""One network in training: a step at a time, every random number keyed by seed and step, so that it resumes bit for bit."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from rescueseg.errors import TrainingError
from rescueseg.models import checkpoints
from rescueseg.models.layout import as_channels_last, lay_channels_last, lay_moments_as_weights
from rescueseg.models.learning_rate import cosine_rate
from rescueseg.models.precision import choose_precision
from rescueseg.models.prepared_batches import PreparedBatches, leaves_core_idle
from rescueseg.models.training_items import TrainingSet
from rescueseg.models.trial import Trial
from rescueseg.models.unet.augment import Augmentation
from rescueseg.models.unet.network import build_network, get_weights, set_weights, take_over
from rescueseg.models.unet.plan import TrainingPlan
from rescueseg.models.unet.warp import Warp, draw_warp

_log = logging.getLogger(__name__)

Windows = list[tuple[Tensor, Tensor]]
"""Images and labels of a batch, window by window."""

_WEIGHT_DECAY = 1e-4
_CLIP = 1.0


class Run:
    """One network in training; whoever makes one closes its `batches`.

    Parameters
    ----------
    folder : Path
        Gets the checkpoint.
    identity : str
        Of the request and the network: a checkpoint of another one counts as none.
    data : TrainingSet
        Windows.
    plan : TrainingPlan
        What is trained, and how.
    loss : nn.Module
        What is minimised; called as `rescueseg.models.unet.losses.Objective` is.
    seed : int
        Of first weights, windows, augmentation and dropout.
    device : str
        A torch device.
    weights : dict of Tensor, optional
        To start from.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        data: TrainingSet,
        plan: TrainingPlan,
        loss: nn.Module,
        *,
        seed: int,
        device: str,
        weights: dict[str, Tensor] | None,
    ) -> None:
        self.folder, self.identity, self.data, self.plan, self.seed = folder, identity, data, plan, seed
        self.device = torch.device(device)
        self.augment = Augmentation(plan)
        self.loss = loss.to(self.device)
        self.network = build_network(plan.network, seed)
        if weights is not None:
            take_over(self.network, weights)
        self.network.to(self.device).train()
        if self.device.type == "cpu":
            lay_channels_last(self.network)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=plan.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True
        )
        precision = choose_precision(self.device, training_trial(plan))
        self.dtype, self.note = precision.dtype, precision.note
        if self.note:
            _log.warning("%s: %s", folder, self.note)
        self.average = get_weights(self.network) if plan.ema else {}
        self.average = {name: tensor.clone() for name, tensor in self.average.items()}
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.dtype == torch.float16)
        self.step = 0
        self.losses: list[float] = []
        self.batches = PreparedBatches(self._prepare, self._following, beside=leaves_core_idle(self.device))
        self._seconds, self._start_time = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock time of the training so far."""
        return self._seconds + time.monotonic() - self._start_time

    def resume(self) -> None:
        """Go back to the last checkpoint of the same request, if there is one."""
        state = checkpoints.load_checkpoint(self.folder, self.identity)
        if state is None:
            return
        set_weights(self.network, state["network"])
        self.average = {name: tensor.to(self.device) for name, tensor in state["average"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        lay_moments_as_weights(self.optimiser)
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.losses, self._seconds = state["step"], list(state["losses"]), state["seconds"]

    def save(self) -> None:
        """Write a checkpoint."""
        checkpoints.save_checkpoint(
            self.folder,
            {
                "request": self.identity,
                "step": self.step,
                "losses": self.losses,
                "seconds": self.seconds,
                "network": get_weights(self.network),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def advance(self) -> dict[str, float]:
        """Take one optimiser step; every random number in it derives from the seed and the step."""
        seed, step = self.seed, self.step
        images, labels, targets = self._batch()
        rate = learning_rate(self.plan, step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        masks = None
        if self.plan.network.dropout > 0:
            keys = [(seed, "train", step, i) for i in range(len(images))]
            masks = self.network.dropout_masks(keys, self.device)
            masks = (masks[0].to(self.dtype), masks[1].to(self.dtype))  # else what they are multiplied with is float32
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            features, coarse = self.network.coarse_logits(images)
            logits, more = self.network.head_parts(features, masks)
        coarse = coarse if more is None else [*coarse, more]
        loss = self.loss(_for_loss(logits), [_for_loss(stage) for stage in coarse], labels, step, targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is no longer a number at step {step + 1}",
                where=str(self.folder),
                todo="Lower training.learning_rate",
            )
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._update_average()
        self.step += 1
        self.losses.append(value)
        return {"loss": value, "learning_rate": rate}

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average towards the weights; at first it forgets faster, so that the first weights do not stay."""
        if not self.average:
            return
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        weights = get_weights(self.network)
        torch._foreach_lerp_([self.average[name] for name in weights], list(weights.values()), 1 - decay)

    def _following(self, step: int) -> int | None:
        return step + 1 if step + 1 < self.plan.iterations else None

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

    def _batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images, classes (n, z, y, x) and, where more is learned, the other targets (n, c, z, y, x) of the next step."""
        windows = self.batches.take(self.step)
        if self.device.type != "cpu":
            sent = [tuple(t.to(self.device, non_blocking=True) for t in window) for window in windows]
            windows = self._augmented([(image, label) for image, label in sent], self._warps(self.step), self.step)
        images = torch.stack([image for image, _ in windows])
        labels = torch.stack([label[0] for _, label in windows])
        targets = torch.stack([label[1:] for _, label in windows]) if len(windows[0][1]) > 1 else None
        return as_channels_last(images) if self.device.type == "cpu" else images, labels.long(), targets

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the training has learned."""
        return self.average if self.plan.ema else get_weights(self.network)


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


def learning_rate(plan: TrainingPlan, step: int) -> float:
    """Return the learning rate of a step (from 0): a short linear warm-up, then a cosine to zero."""
    return cosine_rate(plan.learning_rate, step, plan.iterations)
