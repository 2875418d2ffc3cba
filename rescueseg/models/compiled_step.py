"""Whether a long training compiles its network with `torch.compile`: tried at its start, kept where it pays.

To try it costs one to two minutes of a processor, so only trainings that last twenty times as long try it at all. What it
compiles must say what the network says, outputs and gradients, but for the rounding of bfloat16. The measurement is kept in
the cache of the user, so the same training decides alike on the same machine; the decision is kept in the training's
checkpoint. On a processor with AMX it never paid: the U-Net took 73 ms per step compiled, 57 ms channels last (see `layout`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from rescueseg.models.precision import cache_folder, verdict_key
from rescueseg.models.precision_trial import Pass, compare
from rescueseg.models.trial import Trial
from rescueseg.records import Record
from rescueseg.storage import digest_json, write_atomically

_log = logging.getLogger(__name__)

DECISION_STEP = 20
"""Before this step (from 0) it is decided; those before say how long a step takes."""
_LEAST_SECONDS = 2000.0
"""A training that takes less from there on does not try."""
_ROUNDS = 5
_GAIN = 0.95
"""Largest time of a compiled pass, as a share of a plain one, for which the code that it depends on is worth it."""

Masks = tuple[Tensor, ...] | None
Batch = tuple[Tensor, Masks]
Forward = Callable[[Tensor, Masks], tuple[Tensor, list[Tensor]]]
"""Images and dropout masks to logits, and those of coarser stages."""


class Measurement(Record):
    """What trying it found."""

    share: float | None = None
    """Time of a compiled pass over that of a plain one; None where it cannot be used."""
    reason: str = ""
    """Why it cannot."""


class ForwardChoice:
    """The forward pass of a training, compiled from `DECISION_STEP` on where that pays.

    Parameters
    ----------
    network : nn.Module
        Whose gradients are compared.
    plain : callable
        The pass as it is.
    trial : Trial
        Names the plan.
    steps : int
        Of the whole training.
    allowed : bool
        Whether it may be compiled at all.
    """

    def __init__(self, network: nn.Module, plain: Forward, trial: Trial, steps: int, *, allowed: bool) -> None:
        self.network, self.trial, self.steps = network, trial, steps
        self.plain = self.forward = plain
        self.compiled: bool | None = None if allowed else False
        """What was decided, for the checkpoint; None before it is."""
        self.note = ""
        """What a person should know of it."""
        self._begins: list[float] = []

    def __call__(self, step: int, images: Tensor, masks: Masks) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of a step, and those of coarser stages."""
        if self.compiled is None:
            self._begins.append(time.monotonic())
            if step >= DECISION_STEP:
                self._decide(self.steps - step, (images, masks))
        elif self.compiled and self.forward is self.plain:
            self._resume((images, masks))
        return self.forward(images, masks)

    def _decide(self, steps: int, batch: Batch) -> None:
        per_step = median(b - a for a, b in pairwise(self._begins)) if len(self._begins) > 1 else 0.0
        self.compiled = False
        if not worth_trying(per_step, steps):
            return
        compiled = compile_forward(self.plain)
        found = find_measurement(self.network, self.plain, compiled, batch, self.trial)
        if found.share is not None and found.share <= _GAIN:
            self.compiled, self.forward = True, compiled
            if batch[0].device.type == "cuda":
                self._say("compiled on a GPU: once killed, it goes on within rounding, not bit for bit")
        elif found.reason:
            self._say(f"trained without torch.compile: {found.reason}")

    def _resume(self, batch: Batch) -> None:
        """Compile what was compiled before a kill."""
        compiled = compile_forward(self.plain)
        found = measure(self.network, self.plain, compiled, batch)
        if found.reason:
            self.compiled = False
            self._say(f"begun compiled, it goes on without torch.compile, not bit for bit: {found.reason}")
        else:
            self.forward = compiled

    def _say(self, note: str) -> None:
        self.note = note
        _log.warning("the training is %s", note)


def compile_forward(forward: Forward) -> Forward:
    """Return a forward pass that compiles itself when it is first called, for batches of one shape."""
    compiled: Forward = torch.compile(forward, dynamic=False)
    return compiled


def worth_trying(seconds_per_step: float, steps: int) -> bool:
    """Tell whether the rest of a training is so long that trying costs a twentieth of it at most."""
    return seconds_per_step * steps >= _LEAST_SECONDS


def find_measurement(
    network: nn.Module,
    forward: Forward,
    compiled: Forward,
    batch: Batch,
    trial: Trial,
    folder: Path | None = None,
) -> Measurement:
    """Return the measurement stored for a plan on this machine, or measure.

    Parameters
    ----------
    network : nn.Module
        Whose gradients are compared; afterwards it has none.
    forward, compiled : callable
        The same pass, as it is and compiled.
    batch : tuple
        Images and masks.
    trial : Trial
        Names the plan.
    folder : Path, optional
        Of the measurements; the cache of the user when omitted.
    """
    device = batch[0].device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    file = (
        folder or cache_folder().parent / "compiled"
    ) / f"{digest_json([verdict_key(trial), device.type, name])}.json"
    try:
        return Measurement.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        pass
    measurement = measure(network, forward, compiled, batch)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(file, measurement.model_dump_json().encode())
    except OSError as error:
        _log.info("the measurement of torch.compile is not kept: %s", error)
    return measurement


def measure(network: nn.Module, forward: Forward, compiled: Forward, batch: Batch) -> Measurement:
    """Compare a pass with the same compiled, outputs and gradients, and time both by turns."""
    try:
        reason = compare(one_pass(network, compiled, batch), one_pass(network, forward, batch))
        if reason:
            return Measurement(reason=f"compiled, {reason}")
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(_ROUNDS):
            for way, seconds in zip((compiled, forward), times, strict=True):
                began = time.perf_counter()
                one_pass(network, way, batch)
                seconds.append(time.perf_counter() - began)
        return Measurement(share=median(times[0]) / median(times[1]))
    except Exception as error:  # whatever a compiler, its absence or an odd layer raises
        lines = str(error).strip().splitlines() or [""]
        return Measurement(reason=f"{type(error).__name__}: {lines[0]}")
    finally:
        network.zero_grad(set_to_none=True)


def one_pass(network: nn.Module, forward: Forward, batch: Batch) -> Pass:
    """Return outputs and gradients of a pass forward and backward."""
    network.zero_grad(set_to_none=True)
    logits, coarse = forward(*batch)
    outputs = [stage.float() for stage in (logits, *coarse)]
    torch.autograd.backward([output.square().mean() for output in outputs])
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return [output.detach().cpu() for output in outputs], {name: gradient.cpu() for name, gradient in gradients.items()}
