"""Which way of computing the forward pass is fastest here, for a job of so many windows: measured, at equal output.

A way is tried where the job is long enough to gain from it. It must say what float32 says, as far as the precision in use
lets it, with every network of an ensemble: the difference may be half more than that of the eager pass, of the probabilities
and of the logits, for where one class is nearly sure, probabilities are the same whatever the rest says. What was measured
is stored in the cache of the user, by everything that it depends on, and the first to store it wins; what failed is tried
again by the next job. A job's choice is made once and kept in its plan; a process that cannot follow it computes eagerly
and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from rescueseg.models.forward import BUILDS, CHANNELS_LAST, COMPILED
from rescueseg.models.forward_speed import Measured, Speed, Subject, Work, read_speed, speed_file, store_speed
from rescueseg.models.precision import autocast
from rescueseg.models.precision_trial import difference as relative_difference
from rescueseg.models.precision_trial import windows
from rescueseg.models.predictor import EAGER
from rescueseg.models.split_network import SplitNetwork

T = TypeVar("T")

_FACTOR, _FLOOR, _LOGITS_FLOOR = 1.5, 1e-4, 0.01
"""Largest difference from float32, by that of the eager pass, and beyond it: of the probabilities, the mean of its absolute
values; of the logits, its norm by that of their own spread around the mean of each channel."""
_LARGEST = 1e-2
"""Largest difference of any probability where all is computed in float32."""
_LEAST_SPREAD = 1e-3
"""Of logits, by their norm, that a difference is compared with: of less, rounding would be too large a part."""
_REPEATS = 3
_FEWEST_IMAGES = 40
"""Fewer than this are over before anything is measured, on any machine: the measurement is a dozen passes."""
_MEASURED_DEVICES = ("cpu", "cuda")
"""On others (mps, xpu) nothing is measured: it is not known how to wait for them, nor which of them is which."""
_COMPILING_SECONDS = 45.0
"""What compiling usually takes, the first time; measured at 15 to 50 s."""
_WORTH = 4.0
"""Compiling is tried if the job takes so many times as long."""
_GAIN = 0.95
"""The eager pass is left for a way that takes at most this share of its time."""


@dataclass(frozen=True)
class Ready:
    """What passes are computed with.

    Parameters
    ----------
    networks : sequence of SplitNetwork
        In the place of the subject's.
    batch : int
        Windows that pass together, always; 0 where it is as they come.
    note : str
        What a person should know of it; empty where it is what was asked for.
    """

    networks: Sequence[SplitNetwork]
    batch: int = 0
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """How a job is computed.

    Parameters
    ----------
    name : str
        Of the way.
    notes : tuple of str
        Which ways failed, and why.
    """

    name: str
    notes: tuple[str, ...] = ()


class UnfitError(Exception):
    """A way cannot be used; its message says why. It never leaves this module."""


def choose(subject: Subject, setting: str, work: Work) -> Choice:
    """Return how a job is computed.

    Parameters
    ----------
    subject : Subject
        What computes it.
    setting : str
        The way that a person named; "auto" for the one that takes least.
    work : Work
        To do.
    """
    if setting != "auto":
        return _first_that_works(subject, [setting] if setting == EAGER else [setting, CHANNELS_LAST], ())
    if work.images < _FEWEST_IMAGES or subject.device.type not in _MEASURED_DEVICES:
        return Choice(EAGER)
    costs, notes = _costs(subject, work)
    return _first_that_works(subject, sorted(costs, key=lambda name: costs[name]), tuple(notes))


def _first_that_works(subject: Subject, names: Sequence[str], notes: tuple[str, ...]) -> Choice:
    for name in names:
        if name == EAGER:
            break
        try:
            set_up(name, subject)
        except UnfitError as error:
            notes += (_note(name, error),)
        else:
            return Choice(name, notes)
    return Choice(EAGER, notes)


def _costs(subject: Subject, work: Work) -> tuple[dict[str, float], list[str]]:
    """Return the seconds that a job takes each way that is worth a thought, and notes on those that failed."""
    files = {name: speed_file(name, subject) for name in BUILDS}
    known = {name: measured for name, file in files.items() if (measured := read_speed(file)) is not None}
    eager = next(iter(known.values())).eager if known else measure_speed(subject, _eager(subject))
    costs, notes = {EAGER: eager.seconds(work) * _GAIN}, list[str]()
    for name in BUILDS:
        trying = _COMPILING_SECONDS if name == COMPILED else 0.0
        if name not in known and min(costs.values()) > _WORTH * trying:
            try:
                known[name] = store_speed(files[name], measure(name, subject))
            except UnfitError as error:
                notes.append(_note(name, error))
        if name in known:
            measured = known[name]
            ratio = measured.speed.seconds(work) / measured.eager.seconds(work)
            costs[name] = measured.setup_seconds + ratio * eager.seconds(work)
    return costs, notes


def set_up(name: str, subject: Subject) -> Ready:
    """Return what passes are computed with, checked against the eager pass.

    Raises
    ------
    UnfitError
        If it cannot be made here, or does not say what the eager pass says.
    """
    if name not in BUILDS:
        return Ready(subject.networks)
    try:
        ready = _built(name, subject)
        reason = difference(subject, ready)
    except Exception as error:  # compilers and libraries raise whatever they like; the eager pass is always there
        raise UnfitError(_first_line(error)) from error
    if reason:
        raise UnfitError(reason)
    return ready


def set_up_or_eager(name: str, subject: Subject) -> Ready:
    """Return what passes are computed with: the eager pass, with a note, where the way that is asked for fails."""
    try:
        return set_up(name, subject)
    except UnfitError as error:
        return Ready(subject.networks, note=_note(name, error))


def measure(name: str, subject: Subject) -> Measured:
    """Measure a way.

    Raises
    ------
    UnfitError
        As `set_up`.
    """
    ready = set_up(name, subject)
    if name == COMPILED:
        torch.compiler.reset()  # what another process will do: find the code on the disk
    start = time.perf_counter()
    ready = _built(name, subject)
    _pass(ready.networks[0], *_inputs(subject, subject.batch), subject.dtype)
    setup_seconds = time.perf_counter() - start
    pairs = [(measure_speed(subject, _eager(subject)), measure_speed(subject, ready)) for _ in range(_REPEATS)]
    eager, speed = (
        Speed(features=min(s.features for s in speeds), head=min(s.head for s in speeds))
        for speeds in zip(*pairs, strict=True)
    )
    return Measured(setup_seconds=setup_seconds, speed=speed, eager=eager)


def _built(name: str, subject: Subject) -> Ready:
    build = BUILDS[name]
    return Ready([build(network, subject.device, subject.dtype) for network in subject.networks], subject.batch)


def _eager(subject: Subject) -> Ready:
    return Ready(subject.networks, subject.eager_batch)


def measure_speed(subject: Subject, ready: Ready) -> Speed:
    """Return the seconds of a pass per window, after one that does not count."""
    image, masks = _inputs(subject, ready.batch)
    network = ready.networks[0]
    with torch.inference_mode(), autocast(subject.device, subject.dtype):
        network.head(network.features(image), masks)
        features_seconds, features = _timed(subject.device, lambda: network.features(image))
        head_seconds, _ = _timed(subject.device, lambda: network.head(features, masks))
    return Speed(features=features_seconds / ready.batch, head=head_seconds / ready.batch)


def _timed(device: torch.device, function: Callable[[], T]) -> tuple[float, T]:
    _wait_for(device)
    start = time.perf_counter()
    result = function()
    _wait_for(device)
    return time.perf_counter() - start, result


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def difference(subject: Subject, ready: Ready) -> str:
    """Return how a way differs from the eager pass beyond rounding, on one batch of any network; empty where it does not."""
    inputs = _inputs(subject, subject.batch)
    for network, other in zip(subject.networks, ready.networks, strict=True):
        exact = _pass(network, *inputs, None)
        rounded = exact if subject.dtype is None else _pass(network, *inputs, subject.dtype)
        reason = _difference_of_logits(subject, _pass(other, *inputs, subject.dtype), rounded, exact)
        if reason:
            return reason
    return ""


def _difference_of_logits(subject: Subject, result: Tensor, rounded: Tensor, exact: Tensor) -> str:
    """Return how a way's logits differ from exact ones beyond what the eager pass's do, rounded; empty where they do not."""
    if not torch.isfinite(result).all():
        return "it gives numbers that are not finite"
    gap, usual = ((_says(subject, logits) - _says(subject, exact)).abs() for logits in (result, rounded))
    error, limit = float(gap.mean()), _FACTOR * float(usual.mean()) + _FLOOR
    if not error <= limit:
        return f"its probabilities differ by {error:.2g} on average, not at most {limit:.2g}"
    error = float(gap.max())
    if subject.dtype is None and not error <= _LARGEST:
        return f"one of its probabilities differs by {error:.2g}, not at most {_LARGEST:.2g}"
    error, limit = _of_spread(result, exact), _FACTOR * _of_spread(rounded, exact) + _LOGITS_FLOOR
    return "" if error <= limit else f"its logits differ by {error:.2g} of their spread, not at most {limit:.2g}"


def _of_spread(logits: Tensor, exact: Tensor) -> float:
    """Return the norm of the logits' difference by that of the exact ones around the mean of each channel."""
    middle = exact.mean(dim=(0, 2, 3, 4), keepdim=True)
    return relative_difference(logits - middle, exact - middle, _LEAST_SPREAD * float(exact.norm()))


def _inputs(subject: Subject, batch: int) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    image = windows(subject.trial, batch, seed=0).to(subject.device)
    keys = [("trial", 0, i) for i in range(batch)]
    masks = subject.networks[0].dropout_masks(keys, subject.device) if subject.plan.dropout > 0 else None
    return image, masks


def _pass(network: SplitNetwork, image: Tensor, masks: tuple[Tensor, ...] | None, dtype: torch.dtype | None) -> Tensor:
    with torch.inference_mode(), autocast(image.device, dtype):
        return network.head(network.features(image), masks)


def _says(subject: Subject, logits: Tensor) -> Tensor:
    """Return the class probabilities, and behind them the shares of the largest border distance."""
    classes = subject.plan.n_classes + 1
    return torch.cat([logits[:, :classes].float().softmax(dim=1), logits[:, classes:].float().sigmoid()], dim=1)


def _note(name: str, error: UnfitError) -> str:
    return f"the forward pass is not computed by '{name}', which may take longer: {error}"


def _first_line(error: Exception) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
