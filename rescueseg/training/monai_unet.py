"""A strided MONAI U-Net planned from spacing, trained with Dice and cross-entropy, and with a loss for topology on request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rescueseg.campaign import Campaign
from rescueseg.errors import ConfigError, TrainingError
from rescueseg.records import Snapshot
from rescueseg.storage import digest_json
from rescueseg.training import artifacts
from rescueseg.training.base import (
    WEIGHTS_FILE,
    Progress,
    TrainedModel,
    TrainerCapabilities,
    TrainingRequest,
    check_request,
    unseen_warnings,
)
from rescueseg.training.loop import Run, learning_rate
from rescueseg.training.network import join_members, split_members
from rescueseg.training.patches import TrainingSet
from rescueseg.training.plan import (
    NetworkPlan,
    TrainingPlan,
    make_plan,
    survey,
)
from rescueseg.training.randomness import keyed_generator
from rescueseg.training.unet_predictor import load_predictor

__all__ = ["MonaiUNetTopologyTrainer", "MonaiUNetTrainer", "load_predictor"]

FORMAT = 1
"""Raised when the same request would train another model."""


class MonaiUNetTrainer:
    """Trains `StridedUNet`; see `rescueseg.training.plan` for what it decides by itself."""

    name = "monai_unet"
    topology = False
    """Whether the loss minds topology."""
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
        check_request(self.name, self.capabilities, request)
        plan = plan_training(request.campaign, request.snapshot, request.warm_start, topology=self.topology)
        identity = _request_digest(request, plan)
        finished = _finished(request.work_dir, identity)
        if finished is not None:
            return finished
        config = request.campaign.config.training
        with _fixed_execution(config.threads):
            self._train(request, plan, identity, progress)
        model = _finished(request.work_dir, identity)
        assert model is not None
        return model

    def _train(self, request: TrainingRequest, plan: TrainingPlan, identity: str, progress: Progress) -> None:
        """Train the networks one after the other, then commit the model."""
        every = request.campaign.config.training.checkpoint_every
        data = TrainingSet(request.campaign, request.snapshot, plan)
        runs: list[Run] = []
        seconds = 0.0
        for member in range(plan.members):
            run = Run(
                artifacts.member_folder(request.work_dir, member),
                f"{identity}/{member}",
                data,
                plan,
                seed=member_seed(request.seed, member),
                device=request.device,
                weights=_known_weights(request.warm_start, member),
            )
            run.resume()
            while run.step < plan.iterations:
                metrics = run.advance()
                progress(member * plan.iterations + run.step, metrics)
                if run.step % every == 0 or run.step == plan.iterations:
                    run.save()
            runs.append(run)
            seconds += run.seconds  # now: the clock of a network does not stop while the next one trains
        self._export(request, plan, identity, data, runs, seconds)

    def _export(
        self,
        request: TrainingRequest,
        plan: TrainingPlan,
        identity: str,
        data: TrainingSet,
        runs: Sequence[Run],
        seconds: float,
    ) -> None:
        """Commit the finished model."""
        names = request.campaign.config.classes
        description = {
            "format": FORMAT,
            "trainer": self.name,
            "request": identity,
            "plan": plan.to_json(),
            "classes": list(names),
            "seed": request.seed,
            "generation": request.snapshot.generation,
            "snapshot": request.snapshot.digest,
            "warnings": unseen_warnings(names, data.unseen),
        }
        log = {"seconds": seconds, "losses": [loss for run in runs for loss in run.losses]}
        artifacts.export_model(request.work_dir, join_members([run.weights for run in runs]), description, log)


def member_seed(seed: int, member: int) -> int:
    """Return the seed of one network of an ensemble; the first has the request's own."""
    return int(keyed_generator(seed, "member", member).integers(2**31)) if member else seed


def _known_weights(folder: Path | None, member: int) -> dict[str, Tensor] | None:
    """Return the weights to start from; where there are more networks than in the earlier model, they share."""
    found = artifacts.read_model(folder) if folder is not None else None
    if folder is None or found is None:
        return None
    members = TrainingPlan.model_validate(found[0]["plan"]).members
    return split_members(safetensors.torch.load_file(folder / WEIGHTS_FILE), members)[member % members]


class MonaiUNetTopologyTrainer(MonaiUNetTrainer):
    """The same network, trained with soft clDice and, on request, Betti matching beside Dice and cross-entropy."""

    name = "monai_unet_topology"
    topology = True


def plan_training(
    campaign: Campaign, snapshot: Snapshot, warm_start: Path | None = None, *, topology: bool = False
) -> TrainingPlan:
    """Plan the training of a snapshot, with a loss that minds topology or without.

    Raises
    ------
    TrainingError
        If the snapshot is empty, its volumes differ in their number of channels, or the model to start from does not
        fit.
    ConfigError
        If `training.channels` names fewer than three levels.
    """
    config = campaign.config.training
    if config.channels is not None and len(config.channels) < 3:
        raise ConfigError("too few levels", where="training.channels", todo="Name at least three, such as [16, 32, 64]")
    found = survey(campaign, snapshot)
    known = _known_network(warm_start, found.in_channels, snapshot.n_classes, config.channels) if warm_start else None
    return make_plan(
        config,
        in_channels=found.in_channels,
        n_classes=snapshot.n_classes,
        network=known,
        spacing_um_zyx=found.spacing_um_zyx,
        volume_zyx=found.volume_zyx,
        field_zyx=found.field_zyx,
        topology=topology,
    )


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
        {"step": float(i + 1), "loss": value, "learning_rate": learning_rate(plan, i % plan.iterations)}
        for i, value in enumerate(log["losses"])
    )
    return TrainedModel(
        path=work_dir / artifacts.MODEL_FOLDER,
        digest=digest,
        iterations=plan.iterations * plan.members,
        seconds=float(log["seconds"]),
        losses=losses,
        warnings=tuple(description["warnings"]),
    )
