"""nnU-Net's trainer with the schedule, checkpoints and progress of rescueseg."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from rescueseg.config import TrainingConfig
from rescueseg.geometry import zyx
from rescueseg.models import checkpoints
from rescueseg.models.files import member_folder
from rescueseg.models.layout import as_channels_last, lay_channels_last, lay_moments_as_weights
from rescueseg.models.learning_rate import cosine_rate
from rescueseg.models.network_run import check_loss
from rescueseg.models.nnunet.batches import BatchKey, Series, following_batch, series_of_batches
from rescueseg.models.nnunet.network import own_weights
from rescueseg.models.nnunet.plan import PROFILES, Job, NnUNetNetwork, dropout, peak_rate
from rescueseg.models.nnunet.step_dropout import draw_dropout_from
from rescueseg.models.overlap_loss import PartialDiceCELoss
from rescueseg.models.precision import autocast, choose_precision
from rescueseg.models.prepared_batches import leaves_core_idle
from rescueseg.models.resample import resample
from rescueseg.models.trial import Trial
from rescueseg.randomness import keyed_generator, seed_numpy

_log = logging.getLogger(__name__)

Report = Callable[[int, Mapping[str, float]], None]

_WEIGHT_DECAY = 1e-4
_BLUR_REACH = 2
"""Voxels by which nnU-Net's blur mirrors a window: it fails on one that is no larger along an axis, and is left out."""
_VALIDATION_SHARE = 10
"""Training steps per step of pseudo-validation, where the profile does not say."""


class CampaignTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer for one job; checkpoints are written where epochs end.

    On a CPU every batch and every step draws its random numbers from the seed and its own number: a training that was
    killed goes on to the same weights, whether a thread prepares the batches or not. On a GPU nnU-Net's own processes
    prepare them, in the order in which they are ready, and only the generators of its epochs are seeded.
    """

    def prepare(self, job: Job, config: TrainingConfig, member: int, report: Report) -> None:
        """Take over a network of a job, before `initialize`: nnU-Net fixes the arguments of its constructor."""
        self.job, self.member, self.report = job, member, report
        self.work_dir, self.identity = member_folder(Path(job.work_dir), member), f"{job.identity}/{member}"
        profile = PROFILES[config.profile]
        self.iterations = config.iterations or profile.iterations
        self.epoch_steps = min(profile.epoch_steps or config.checkpoint_every, self.iterations)
        self.num_epochs = math.ceil(self.iterations / self.epoch_steps)
        self.num_val_iterations_per_epoch = profile.validation_steps or max(1, self.epoch_steps // _VALIDATION_SHARE)
        self.checkpoint_seconds, self._save_time = profile.checkpoint_seconds, time.monotonic()
        self.peak, self.dropout = peak_rate(config), dropout(config)
        self.history: list[dict[str, float]] = []
        self._seconds, self._start_time = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a kill included."""
        return self._seconds + time.monotonic() - self._start_time

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.history)

    # randomness and schedule --------------------------------------------------------------------------------------

    def seed_of(self, *key: int | str) -> int:
        """Return the seed of a key, below 2³²."""
        return int(keyed_generator(self.job.seed, "nnunet", self.member, self.local_rank, *key).integers(2**32))

    def reseed(self, *key: int | str) -> None:
        """Set every global generator that nnU-Net draws from."""
        seed = self.seed_of(*key)
        seed_numpy(seed)
        torch.manual_seed(seed)

    def initialize(self) -> None:
        """Build network, optimiser and loss."""
        self.reseed("weights")
        # nnU-Net gives the coarsest output no weight: of two levels nothing would be left
        self.enable_deep_supervision = len(self.configuration_manager.pool_op_kernel_sizes) > 2
        super().initialize()
        self.note = ""
        if self.device.type == "cpu":
            precision = choose_precision(self.device, self._trial())
            self.note = precision.note
            if self.note:
                _log.warning("%s: %s", self.work_dir, self.note)
            self.step_generator = torch.Generator()
            draw_dropout_from(self.step_generator, self.network)
            lay_channels_last(self.network)
            self.network.forward = _on_cpu(self.network.forward, precision.dtype)

    @staticmethod
    def build_network_architecture(
        plans_manager: Any, configuration_manager: Any, *args: Any, **kwargs: Any
    ) -> nn.Module:  # nnU-Net looks at the names
        """Return nnU-Net's network; one without its finest level gives logits of every voxel all the same."""
        network: nn.Module = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, *args, **kwargs
        )
        strided = max(configuration_manager.pool_op_kernel_sizes[0]) > 1
        return with_full_size(network) if strided else network

    def _trial(self) -> Trial:
        """Return what must hold for the plan to be trained in bfloat16."""
        plan = self.configuration_manager
        architecture = plan.configuration["architecture"]
        channels, classes = self.job.in_channels, self.job.snapshot.n_classes
        return Trial(
            network=NnUNetNetwork.read(architecture, channels, classes, self.dropout),
            window=zyx(plan.patch_size),
            batches=(int(self.batch_size),),
            threads=torch.get_num_threads(),
            backward=True,
        )

    def _build_loss(self) -> nn.Module:
        """Return nnU-Net's loss; where coarser outputs are supervised, these are taught shares."""
        loss: nn.Module = super()._build_loss()
        return SharesLoss(loss, self.label_manager.ignore_label) if self.enable_deep_supervision else loss

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return nnU-Net's own optimiser and schedule, or for short trainings AdamW, whose rate each step sets."""
        if self.peak is None:
            return super().configure_optimizers()  # type: ignore[no-any-return]
        weights = self.network.parameters()
        return torch.optim.AdamW(weights, lr=self.peak, weight_decay=_WEIGHT_DECAY, fused=True), None

    def _set_rate(self) -> float:
        if self.peak is None:
            self.lr_scheduler.step(self.num_epochs * self.step / self.iterations)  # the last epoch may be shorter
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = cosine_rate(self.peak, self.step, self.iterations)
        return float(self.optimizer.param_groups[0]["lr"])

    # augmentation ---------------------------------------------------------------------------------------------------

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's augmentation, which ignores what lies beyond a case and never chooses its algorithm by time."""
        pipeline = _own_steps(nnUNetTrainer.get_training_transforms(*args, **kwargs), kwargs["ignore_label"])
        if min(args[0]) <= _BLUR_REACH:
            pipeline.transforms = [
                t for t in pipeline.transforms if not isinstance(getattr(t, "transform", None), GaussianBlurTransform)
            ]
        return pipeline

    @staticmethod
    def get_validation_transforms(*args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's preparation of validation windows, which ignores what lies beyond a case."""
        return _own_steps(nnUNetTrainer.get_validation_transforms(*args, **kwargs), kwargs["ignore_label"])

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders, on a CPU with batches that are keyed and, where a core is idle, prepared ahead."""
        training, validation = super().get_dataloaders()
        if self.device.type != "cpu":
            return training, validation

        def following(key: BatchKey) -> BatchKey | None:
            return following_batch(key, self.iterations, self.epoch_steps, self.num_val_iterations_per_epoch)

        return series_of_batches(
            {"training": training, "validation": validation},
            following,
            lambda key: self.seed_of(*key),
            beside=leaves_core_idle(self.device),
        )

    # epochs ---------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Build the loaders and go back to the last checkpoint of the same job, if there is one."""
        super().on_train_start()
        state = checkpoints.load_checkpoint(self.work_dir, self.identity)
        if state is not None:
            self._load_weights(state["network"])
            self.optimizer.load_state_dict(state["optimiser"])
            lay_moments_as_weights(self.optimizer)
            if self.grad_scaler is not None and state["scaler"] is not None:
                self.grad_scaler.load_state_dict(state["scaler"])
            self.current_epoch, self.history, self._seconds = state["epoch"], list(state["losses"]), state["seconds"]
            self.logger.load_checkpoint({key: list(values) for key, values in state["logging"].items()})
        if isinstance(self.dataloader_train, Series):
            self.dataloader_train.number = self.step
            self.dataloader_val.number = self.current_epoch * self.num_val_iterations_per_epoch

    def on_train_epoch_start(self) -> None:
        """Begin an epoch."""
        if self.device.type != "cpu":
            self.reseed("epoch", self.current_epoch)
        self.network.train()
        self.num_iterations_per_epoch = min(self.epoch_steps, self.iterations - self.step)
        self.logger.log("lrs", self._set_rate(), self.current_epoch)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take one step; the last of an epoch is reported with its pseudo-Dice, after validation."""
        rate = self._set_rate()
        if self.device.type == "cpu":
            self.step_generator.manual_seed(self.seed_of("dropout", self.step))
        result: dict[str, Any] = super().train_step(batch)
        value = check_loss(float(result["loss"]), self.step, self.job.work_dir)
        entry = {"step": self.step + 1.0, "loss": value, "learning_rate": rate}
        self.history.append(entry)
        if self.step < self.iterations and self.step % self.epoch_steps:
            self.report(self.step, entry)
        return result

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Note the pseudo-Dice of the epoch, where a class occurs."""
        with np.errstate(invalid="ignore"):
            super().on_validation_epoch_end(val_outputs)
        dice = float(self.logger.get_value("mean_fg_dice", step=-1))
        if math.isfinite(dice):
            self.history[-1]["pseudo_dice"] = dice

    def on_epoch_end(self) -> None:
        """Report the epoch's last step and, if one is due, write a checkpoint; nnU-Net's own would be unpickled."""
        self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
        self.current_epoch += 1
        if self.local_rank == 0:
            if self.step == self.iterations or time.monotonic() - self._save_time >= self.checkpoint_seconds:
                self._save()
                self._save_time = time.monotonic()
            self.report(self.step, self.history[-1])

    def on_train_end(self) -> None:
        """Let the loaders go."""
        self.disable_checkpointing = True
        if isinstance(self.dataloader_train, Series):
            self.dataloader_train.batches.close()
        super().on_train_end()

    def plot_network_architecture(self) -> None:
        """Plot nothing: nnU-Net would write a picture of the network."""

    # weights --------------------------------------------------------------------------------------------------------

    @property
    def bare_network(self) -> Any:
        """The network without what DDP and torch.compile wrap around it."""
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.bare_network.load_state_dict(weights, strict=False)

    def _save(self) -> None:
        checkpoints.save_checkpoint(
            self.work_dir,
            {
                "request": self.identity,
                "epoch": self.current_epoch,
                "losses": self.history,
                "seconds": self.seconds,
                "network": own_weights(self.bare_network),
                "optimiser": self.optimizer.state_dict(),
                "scaler": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
                "logging": {key: _plain(values) for key, values in self.logger.get_checkpoint().items()},
            },
        )


def _plain(values: list[Any]) -> list[Any]:
    """Return nested lists of Python numbers: what can be read again without unpickling."""
    return [_plain(v) if isinstance(v, list) else float(v) for v in values]


def _own_steps(pipeline: Any, ignore: int) -> Any:
    """Change three of nnU-Net's steps.

    What lies beyond a case is ignored, not background; the blur does not choose its algorithm by the clock; and of
    labels there is the finest level alone: `SharesLoss` makes the coarser ones.
    """
    for transform in pipeline.transforms:
        if isinstance(transform, DownsampleSegForDSTransform):
            transform.ds_scales = [1]
        if isinstance(transform, RemoveLabelTransform):
            transform.set_to = ignore
        inner = getattr(transform, "transform", None)
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return pipeline


class SharesLoss(nn.Module):
    """nnU-Net's loss for the finest output; for coarser ones a loss whose targets are the shares of the classes in a cell.

    nnU-Net's own coarse targets take one voxel of a cell, which lies beside the cell's centre where the step is even, and
    its loss takes no shares. Levels keep nnU-Net's weights.

    Parameters
    ----------
    loss : DeepSupervisionWrapper
        nnU-Net's, over all outputs.
    ignore : int
        Label where nobody labelled.
    """

    def __init__(self, loss: DeepSupervisionWrapper, ignore: int) -> None:
        super().__init__()
        self.finest, self.weights = loss.loss, [float(weight) for weight in loss.weight_factors]
        self.coarser = PartialDiceCELoss(ignore=ignore)

    def forward(self, outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Return the loss of the logits of all outputs, fine to coarse, and the labels (n, 1, z, y, x), in a list by itself."""
        [labels] = targets
        loss: Tensor = self.weights[0] * self.finest(outputs[0], labels)
        for weight, stage in zip(self.weights[1:], outputs[1:], strict=True):
            if weight:
                loss = loss + weight * self.coarser(stage.float(), labels[:, 0])
        return loss


def with_full_size(network: nn.Module) -> nn.Module:
    """Let a network with deep supervision resample its finest logits to the size of its images, as `NetworksPredictor` does.

    Without its finest level a network's cells are larger than voxels. It learns from the voxels all the same, so what it
    is taught is what becomes of its logits in a prediction: nothing is shifted, and no thin structure lost in between.
    """
    forward = network.forward

    def full_size(images: Tensor) -> list[Tensor]:
        outputs = forward(images)
        assert isinstance(outputs, list), "a network without deep supervision gives a batch of logits, not a list"
        finest, *coarser = outputs
        finest = finest.to(torch.float32, memory_format=torch.contiguous_format)  # interpolated fastest like that
        return [resample(finest, images.shape[2:]), *coarser]

    network.forward = full_size
    return network


def _on_cpu(forward: Callable[[Tensor], Any], dtype: torch.dtype | None) -> Callable[[Tensor], Any]:
    """Return a forward pass in the layout of `layout.py`, in mixed precision if a type is given: nnU-Net has that on GPUs alone.

    Its outputs are float32, one channel after the other, as the losses reduce them.
    """

    def plain(logits: Tensor) -> Tensor:
        return logits.to(torch.float32, memory_format=torch.contiguous_format)

    def laid_out(images: Tensor) -> Any:
        with autocast(torch.device("cpu"), dtype):
            logits = forward(as_channels_last(images))
        return [plain(stage) for stage in logits] if isinstance(logits, list) else plain(logits)

    return laid_out
