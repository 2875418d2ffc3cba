"""One network in training, whatever its family: every random number keyed by seed and step, so that it resumes bit for bit."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from rescueseg.errors import TrainingError
from rescueseg.models import checkpoints
from rescueseg.models.layout import lay_moments_as_weights
from rescueseg.models.learning_rate import cosine_rate
from rescueseg.models.precision import Precision, autocast
from rescueseg.models.prepared_batches import PreparedBatches, leaves_core_idle
from rescueseg.models.split_network import SplitNetwork

_log = logging.getLogger(__name__)

Network = TypeVar("Network", bound=SplitNetwork)
Batch = TypeVar("Batch")


class Schedule(Protocol):
    """What a plan says of the steps of a network."""

    @property
    def iterations(self) -> int:
        """Steps of one network."""

    @property
    def learning_rate(self) -> float:
        """The highest one, see `cosine_rate`."""


@dataclass(frozen=True)
class RunStart:
    """Where, and from what, a network begins to learn.

    Parameters
    ----------
    folder : Path
        Gets the checkpoint.
    identity : str
        Of the request and the network: a checkpoint of another one counts as none.
    seed : int
        Of first weights, batches and dropout.
    device : str
        A torch device.
    weights : dict of Tensor, optional
        To start from; drawn by the seed when omitted.
    """

    folder: Path
    identity: str
    seed: int
    device: str = "cpu"
    weights: dict[str, Tensor] | None = None


class NetworkRun(ABC, Generic[Network, Batch]):
    """One network in training; whoever makes one closes its `batches`.

    A family makes the network, says how large a step's batch is and what is minimised over it, and how the weights are named.

    Parameters
    ----------
    start : RunStart
        Where it begins.
    schedule : Schedule
        Steps and learning rate.
    network : SplitNetwork
        With the weights to start from, on its device, as it lies in memory there.
    precision : Precision
        What the network computes in.
    average_decay : float
        Decay of the moving average of the weights, which is then what was learned; 0 for none.
    """

    weight_decay: ClassVar[float]
    largest_gradient: ClassVar[float | None] = None
    """Norm to which the gradient of a step is cut; None where it is left as it is."""

    def __init__(
        self,
        start: RunStart,
        schedule: Schedule,
        network: Network,
        precision: Precision,
        average_decay: float = 0.0,
    ) -> None:
        self.folder, self.identity, self.seed = start.folder, start.identity, start.seed
        self.device, self.network = torch.device(start.device), network
        self._schedule, self._average_decay = schedule, average_decay
        learned = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(
            learned, lr=schedule.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        self.dtype, self.note = precision.dtype, precision.note
        if self.note:
            _log.warning("%s: %s", self.folder, self.note)
        weights = self._get_weights() if average_decay else {}
        self.average = {name: tensor.clone() for name, tensor in weights.items()}
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.dtype == torch.float16)
        self.step = 0
        self.losses: list[float] = []
        self.batches = PreparedBatches(self._prepare, self._following, beside=leaves_core_idle(self.device))
        self._seconds, self._start_time = 0.0, time.monotonic()

    @abstractmethod
    def _prepare(self, step: int) -> Batch:
        """Return the batch of a step, with a GPU ready to be copied there; it may run in a thread of its own."""

    @abstractmethod
    def _loss(self, batch: Batch) -> Tensor:
        """Return what is minimised over the batch of the next step; the network computes within `_autocast`."""

    @abstractmethod
    def _get_weights(self) -> dict[str, Tensor]:
        """Return the weights as models hold them."""

    @abstractmethod
    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        """Load what `_get_weights` returned; a ValueError if it is another network's."""

    @property
    def seconds(self) -> float:
        """Wall-clock time of the training so far."""
        return self._seconds + time.monotonic() - self._start_time

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the training has learned."""
        return self.average if self._average_decay else self._get_weights()

    def resume(self) -> None:
        """Go back to the last checkpoint of the same request, if there is one."""
        state = checkpoints.load_checkpoint(self.folder, self.identity)
        if state is None:
            return
        self._set_weights(state["network"])
        average = state.get("average", {})  # Cellpose's first checkpoints have none
        self.average = {name: tensor.to(self.device) for name, tensor in average.items()}
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
                "network": self._get_weights(),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def advance(self) -> dict[str, float]:
        """Take one optimiser step; every random number in it derives from the seed and the step.

        Raises
        ------
        TrainingError
            If the loss is no longer a number.
        """
        batch = self.batches.take(self.step)
        rate = cosine_rate(self._schedule.learning_rate, self.step, self._schedule.iterations)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        value = check_loss(float(loss.detach()), self.step, str(self.folder))
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.largest_gradient is not None:
            self.scaler.unscale_(self.optimiser)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_gradient)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._update_average()
        self.step += 1
        self.losses.append(value)
        return {"loss": value, "learning_rate": rate}

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.dtype)

    def _dropout_masks(self, count: int) -> tuple[Tensor, ...]:
        """Return the masks of a batch of so many in the next step."""
        keys = [(self.seed, "train", self.step, i) for i in range(count)]
        return self.network.dropout_masks(keys, self.device)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average towards the weights; at first it forgets faster, so that the first weights do not stay."""
        if not self.average:
            return
        decay = min(self._average_decay, (1 + self.step) / (10 + self.step))
        weights = self._get_weights()
        torch._foreach_lerp_([self.average[name] for name in weights], list(weights.values()), 1 - decay)

    def _following(self, step: int) -> int | None:
        return step + 1 if step + 1 < self._schedule.iterations else None


def check_loss(value: float, step: int, where: str) -> float:
    """Return the loss of a step (from 0), as it is.

    Raises
    ------
    TrainingError
        If it is no longer a number.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is no longer a number at step {step + 1}", where=where, todo="Lower training.learning_rate"
        )
    return value
