"""One network in training: a step at a time, every random number keyed by seed and step, so that it resumes bit for bit."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from rescueseg.errors import TrainingError
from rescueseg.models import checkpoints
from rescueseg.models.cellpose.network import build_network, lay_out, set_weights
from rescueseg.models.cellpose.plan import CellposePlan
from rescueseg.models.cellpose.planes import Planes, PlaneSet
from rescueseg.models.cellpose.targets import FlowLoss
from rescueseg.models.layout import lay_moments_as_weights
from rescueseg.models.learning_rate import cosine_rate
from rescueseg.models.precision import autocast_dtype
from rescueseg.models.prepared_batches import PreparedBatches, leaves_core_idle

_WEIGHT_DECAY = 1e-5


class Run:
    """One network in training; whoever makes one closes its `batches`.

    Parameters
    ----------
    folder : Path
        Gets the checkpoint.
    identity : str
        Of the request and the network: a checkpoint of another one counts as none.
    data : PlaneSet
        Planes.
    plan : CellposePlan
        What is trained, and how.
    seed : int
        Of first weights, planes and dropout.
    device : str
        A torch device.
    weights : dict of Tensor, optional
        To start from.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        data: PlaneSet,
        plan: CellposePlan,
        *,
        seed: int,
        device: str,
        weights: dict[str, Tensor] | None,
    ) -> None:
        self.folder, self.identity, self.data, self.plan, self.seed = folder, identity, data, plan, seed
        self.device = torch.device(device)
        self.network, self.loss = build_network(plan, seed), FlowLoss()
        if weights is not None:
            set_weights(self.network, weights)
        self.network.to(self.device).train()
        if self.device.type == "cpu":
            self.network.to(memory_format=torch.channels_last)
        learned = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(learned, lr=plan.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)
        self.dtype = None if self.device.type == "cpu" else autocast_dtype(self.device)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.dtype == torch.float16)
        self.step = 0
        self.losses: list[float] = []
        self.batches = PreparedBatches(self._prepare, self._following, beside=leaves_core_idle(self.device))
        self._seconds, self._start_time = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock time of the training so far."""
        return self._seconds + time.monotonic() - self._start_time

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the training has learned."""
        return dict(self.network.state_dict())

    def resume(self) -> None:
        """Go back to the last checkpoint of the same request, if there is one."""
        state = checkpoints.load_checkpoint(self.folder, self.identity)
        if state is None:
            return
        set_weights(self.network, state["network"])
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
                "network": self.weights,
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def advance(self) -> dict[str, float]:
        """Take one optimiser step; every random number in it derives from the seed and the step."""
        planes, step = self.batches.take(self.step).to(self.device), self.step
        rate = cosine_rate(self.plan.learning_rate, step, self.plan.iterations)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        masks = None
        if self.plan.dropout > 0:
            keys = [(self.seed, "train", step, i) for i in range(len(planes.images))]
            [masks] = self.network.dropout_masks(keys, self.device)
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            said = self.network(lay_out(planes.images), masks)
        loss = self.loss(said.float(), planes.labels, planes.flows)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is no longer a number at step {step + 1}",
                where=str(self.folder),
                todo="Lower training.learning_rate",
            )
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        self.losses.append(value)
        return {"loss": value, "learning_rate": rate}

    def _following(self, step: int) -> int | None:
        return step + 1 if step + 1 < self.plan.iterations else None

    def _prepare(self, step: int) -> Planes:
        """Return the planes of a step, with a GPU ready to be copied there."""
        planes = self.data.batch(self.seed, step)
        if self.device.type != "cuda":
            return planes
        with torch.cuda.device(self.device):
            return planes.pinned()
