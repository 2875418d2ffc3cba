"""The first trainer: a strided MONAI U-Net planned from spacing, trained with Dice and cross-entropy."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rescueseg.campaign import Campaign
from rescueseg.errors import ConfigError, TrainingError
from rescueseg.geometry import zyx
from rescueseg.records import Snapshot
from rescueseg.storage import digest_json
from rescueseg.training import artifacts
from rescueseg.training.augment import Augmentation
from rescueseg.training.base import (
    WEIGHTS_FILE,
    Progress,
    TrainedModel,
    TrainerCapabilities,
    TrainingRequest,
)
from rescueseg.training.losses import PartialDiceCELoss
from rescueseg.training.network import autocast_dtype, build_network, get_weights, set_weights
from rescueseg.training.patches import TrainingSet
from rescueseg.training.plan import (
    NetworkPlan,
    TrainingPlan,
    bfloat16_trains,
    make_plan,
    resampled_shape,
    working_spacing,
)
from rescueseg.training.unet_predictor import load_predictor

__all__ = ["MonaiUNetTrainer", "load_predictor"]

FORMAT = 1
"""Raised when the same request would train another model."""
_WARM_UP = 20
_WEIGHT_DECAY = 1e-4
_CLIP = 1.0


class MonaiUNetTrainer:
    """Trains `StridedUNet`; see `rescueseg.training.plan` for what it decides by itself."""

    name = "monai_unet"
    capabilities = TrainerCapabilities(mc_dropout=True, partial_labels=True, resumable=True)

    def train(self, request: TrainingRequest, progress: Progress) -> TrainedModel:
        """Train, or go on training, and commit `work_dir/model` as the last act.

        Parameters
        ----------
        request : TrainingRequest
            With `campaign.config.training` as settings. Threads are set for the training and then restored.
        progress : callable
            Gets each step (from 1) with its `loss` and `learning_rate`; after a kill it starts again behind the last
            checkpoint.

        Returns
        -------
        TrainedModel
            The same digest for the same request on the same machine, whatever happened in between.

        Raises
        ------
        TrainingError
            If no voxel is labelled, a label array is damaged, the loss is no longer a number, or the model to start
            from does not fit.
        StorageError
            If the disk is full; the last checkpoint stays.
        """
        plan = plan_training(request.campaign, request.snapshot, request.warm_start)
        identity = _request_digest(request, plan)
        finished = _finished(request.work_dir, identity)
        if finished is not None:
            return finished
        config = request.campaign.config.training
        with _fixed_execution(config.threads):
            run = _Run(request, plan, identity)
            run.resume()
            while run.step < plan.iterations:
                metrics = run.advance()
                progress(run.step, metrics)
                if run.step % config.checkpoint_every == 0 and run.step < plan.iterations:
                    run.save()
            run.export()
        model = _finished(request.work_dir, identity)
        assert model is not None
        return model


def plan_training(campaign: Campaign, snapshot: Snapshot, warm_start: Path | None = None) -> TrainingPlan:
    """Plan the training of a snapshot.

    Raises
    ------
    TrainingError
        If the snapshot is empty, its volumes differ in their number of channels, or the model to start from does not
        fit.
    ConfigError
        If `training.channels` names fewer than three levels.
    """
    if not snapshot.items:
        raise TrainingError(
            "the snapshot is empty", where=f"generation {snapshot.generation}", todo="Annotate at least one patch"
        )
    config = campaign.config.training
    if config.channels is not None and len(config.channels) < 3:
        raise ConfigError("too few levels", where="training.channels", todo="Name at least three, such as [16, 32, 64]")
    records = {item.volume_id: campaign.volume(item.volume_id) for item in snapshot.items}
    channels = {record.channels for record in records.values()}
    if len(channels) > 1:
        raise TrainingError(
            f"the volumes differ in their number of channels: {sorted(channels)}",
            where=", ".join(sorted(records)),
            todo="Use one campaign for each kind of image",
        )
    targets = {volume_id: campaign.working_spacing(record) for volume_id, record in records.items()}
    spacing = working_spacing([(targets[i.volume_id], i.box.size) for i in snapshot.items])
    fields = [
        resampled_shape(i.read_box.shape_zyx, records[i.volume_id].spacing_um_zyx, spacing) for i in snapshot.items
    ]
    extents = [resampled_shape(r.shape_zyx, r.spacing_um_zyx, spacing) for r in records.values()]
    in_channels = channels.pop()
    return make_plan(
        config,
        in_channels=in_channels,
        n_classes=snapshot.n_classes,
        network=_known_network(warm_start, in_channels, snapshot.n_classes, config.channels) if warm_start else None,
        spacing_um_zyx=spacing,
        volume_zyx=zyx(min(e[a] for e in extents) for a in range(3)),
        field_zyx=zyx(max(f[a] for f in fields) for a in range(3)),
    )


class _Run:
    """One training in progress."""

    def __init__(self, request: TrainingRequest, plan: TrainingPlan, identity: str) -> None:
        self.request, self.plan, self.identity = request, plan, identity
        self.device = torch.device(request.device)
        self.data = TrainingSet(request.campaign, request.snapshot, plan)
        self.augment = Augmentation(plan)
        self.loss = PartialDiceCELoss()
        self.network = build_network(plan.network, request.seed)
        if request.warm_start is not None:
            set_weights(self.network, safetensors.torch.load_file(request.warm_start / WEIGHTS_FILE))
        self.network.to(self.device).train()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=plan.learning_rate, weight_decay=_WEIGHT_DECAY)
        usable = self.device.type != "cpu" or bfloat16_trains(plan)
        self.dtype = autocast_dtype(self.device) if usable else None
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.dtype == torch.float16)
        self.step = 0
        self.losses: list[float] = []
        self._seconds, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def resume(self) -> None:
        """Go back to the last checkpoint of the same request, if there is one."""
        state = artifacts.load_checkpoint(self.request.work_dir, self.identity)
        if state is None:
            return
        set_weights(self.network, state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.losses, self._seconds = state["step"], list(state["losses"]), state["seconds"]

    def save(self) -> None:
        """Write a checkpoint."""
        artifacts.save_checkpoint(
            self.request.work_dir,
            {
                "request": self.identity,
                "step": self.step,
                "losses": self.losses,
                "seconds": self.seconds,
                "network": get_weights(self.network),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def advance(self) -> dict[str, float]:
        """Take one optimiser step; every random number in it derives from the seed and the step."""
        seed, step = self.request.seed, self.step
        images, labels = self._batch(seed, step)
        rate = learning_rate(self.plan, step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        masks = None
        if self.plan.network.dropout > 0:
            keys = [(seed, "train", step, i) for i in range(len(images))]
            masks = self.network.dropout_masks(keys, self.device)
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            logits = self.network(images, masks)
        loss = self.loss(logits.float(), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is no longer a number at step {step + 1}",
                where=str(self.request.work_dir),
                todo="Lower training.learning_rate",
            )
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        self.losses.append(value)
        return {"loss": value, "learning_rate": rate}

    def _batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        windows = [
            self.augment(image, label, seed, step, i) for i, (image, label) in enumerate(self.data.batch(seed, step))
        ]
        images = torch.stack([image for image, _ in windows]).to(self.device)
        labels = torch.stack([label[0] for _, label in windows]).to(self.device)
        return images, labels.long()

    def export(self) -> None:
        """Commit the finished model."""
        snapshot = self.request.snapshot
        names = self.request.campaign.config.classes
        description = {
            "format": FORMAT,
            "trainer": MonaiUNetTrainer.name,
            "request": self.identity,
            "plan": self.plan.to_json(),
            "classes": list(names),
            "seed": self.request.seed,
            "generation": snapshot.generation,
            "snapshot": snapshot.digest,
            "warnings": [f"class {c} ('{names[c - 1]}') has no labelled voxel" for c in self.data.unseen],
        }
        log = {"seconds": self.seconds, "losses": self.losses}
        artifacts.export_model(self.request.work_dir, get_weights(self.network), description, log)


def learning_rate(plan: TrainingPlan, step: int) -> float:
    """Return the learning rate of a step (from 0): a short linear warm-up, then a cosine to zero."""
    warm = min(_WARM_UP, plan.iterations // 10)
    if step < warm:
        return plan.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, plan.iterations - warm)
    return plan.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


@contextmanager
def _fixed_execution(threads: int) -> Iterator[None]:
    """Fix the number of threads and cuDNN's choice of algorithms, then restore both."""
    before, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.deterministic = deterministic


def _request_digest(request: TrainingRequest, plan: TrainingPlan) -> str:
    """Return the identity of a training: what decides its weights."""
    warm = artifacts.read_model(request.warm_start) if request.warm_start is not None else None
    if request.warm_start is not None and warm is None:
        raise TrainingError(
            "there is no finished model to start from",
            where=str(request.warm_start),
            todo="Set training.warm_start off",
        )
    return digest_json(
        {
            "format": FORMAT,
            "plan": plan.to_json(),
            "snapshot": request.snapshot.digest,
            "seed": request.seed,
            "warm_start": warm[1] if warm else "",
        }
    )


def _known_network(folder: Path, in_channels: int, n_classes: int, channels: tuple[int, ...] | None) -> NetworkPlan:
    """Return the network of the model to start from."""
    found = artifacts.read_model(folder)
    if found is None:
        raise TrainingError(
            "there is no finished model to start from", where=str(folder), todo="Set training.warm_start to false"
        )
    network = TrainingPlan.model_validate(found[0]["plan"]).network
    if (network.in_channels, network.n_classes, channels or network.channels) != (
        in_channels,
        n_classes,
        network.channels,
    ):
        raise TrainingError(
            "the model to start from has other channels or classes",
            where=str(folder),
            todo="Keep training.channels and the classes as they were, or set training.warm_start to false",
        )
    return network


def _finished(work_dir: Path, identity: str) -> TrainedModel | None:
    """Return the model that an earlier run of the same request committed."""
    found = artifacts.read_model(work_dir / artifacts.MODEL_FOLDER)
    if found is None or found[0]["request"] != identity:
        return None
    description, digest = found
    plan = TrainingPlan.model_validate(description["plan"])
    log: Mapping[str, Any] = json.loads((work_dir / artifacts.LOSSES_FILE).read_text())
    losses = tuple(
        {"step": float(i + 1), "loss": value, "learning_rate": learning_rate(plan, i)}
        for i, value in enumerate(log["losses"])
    )
    return TrainedModel(
        path=work_dir / artifacts.MODEL_FOLDER,
        digest=digest,
        iterations=plan.iterations,
        seconds=float(log["seconds"]),
        losses=losses,
        warnings=tuple(description["warnings"]),
    )
