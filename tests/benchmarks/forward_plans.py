"""Every way of computing the forward pass that this machine has: seconds per window, set-up, and how far it is from float32.

    python tests/benchmarks/forward_plans.py [--family unet nnunet] [--precision float32 mixed] [--repeats 5] [--window 40 104 104]

The networks are those that both families plan on a CPU for two classes at (0.25, 0.1, 0.1) µm, with random weights and
dropout, at their inference window. The ways take turns, so that what else the machine does slows all of them. "ratio" is the
median over the turns of a way's time by that of the eager pass. The differences are those of probabilities from float32.
A way is set up twice: as if for the first time (with an empty TORCHINDUCTOR_CACHE_DIR), and as another process finds it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from rescueseg.config import TrainingConfig
from rescueseg.geometry import ZYX
from rescueseg.models import forward_choice
from rescueseg.models.forward import BUILDS
from rescueseg.models.forward_choice import Ready, UnfitError
from rescueseg.models.forward_speed import Subject, Work
from rescueseg.models.nnunet.network import MaskedNetwork
from rescueseg.models.nnunet.network import build_network as build_nnunet
from rescueseg.models.nnunet.plan import NnUNetNetwork
from rescueseg.models.precision import autocast_dtype
from rescueseg.models.survey import Survey
from rescueseg.models.unet.network import build_network as build_unet
from rescueseg.models.unet.plan import make_plan

SURVEY = Survey(1, spacing_um_zyx=(0.25, 0.1, 0.1), volume_zyx=(51, 480, 480), field_zyx=(32, 128, 128))
FULL = NnUNetNetwork(
    architecture="plain",
    in_channels=1,
    n_classes=2,
    features=(32, 64, 128, 256, 320),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), *[(3, 3, 3)] * 4),
    encoder_blocks=(2,) * 5,
    decoder_blocks=(2,) * 4,
    dropout=0.1,
)
"""As nnU-Net plans; a CPU's profile cuts it."""
WORK = Work(images=1, samples=1)


def make_subject(family: str, window: ZYX | None, device: torch.device, dtype: torch.dtype | None) -> Subject:
    """Return the network of a family, as its predictor uses it."""
    if family == "unet":
        plan = make_plan(TrainingConfig(), SURVEY, n_classes=2)
        window = window or plan.inference_window_zyx
        return Subject([prepared(build_unet(plan.network, 0), device)], plan.network, window, 1, 1, device, dtype)
    torch.manual_seed(0)
    network = FULL.cut((16, 32, 64, 128), strided=True)
    masked = MaskedNetwork(build_nnunet(network), network.dropout)
    return Subject([prepared(masked, device)], network, window or (40, 112, 112), 1, 1, device, dtype)


def prepared(network, device: torch.device):
    """Return a network for inference."""
    return network.to(device).eval().requires_grad_(False)


def set_up(name: str, subject: Subject) -> tuple[Ready, float, float]:
    """Return a way, and its seconds of setting up: the first time, and when the code is found on the disk."""
    seconds = []
    for _ in range(2):
        torch.compiler.reset()
        start = time.perf_counter()
        ready = forward_choice._built(name, subject)
        forward_choice._pass(ready.networks[0], *forward_choice._inputs(subject, 1), subject.dtype)
        seconds.append(time.perf_counter() - start)
    forward_choice.set_up(name, subject)
    return ready, seconds[0], seconds[1]


def probabilities(subject: Subject, ready: Ready, dtype: torch.dtype | None) -> Tensor:
    """Return what a way says of a window."""
    inputs = forward_choice._inputs(subject, 1)
    return forward_choice._says(subject, forward_choice._pass(ready.networks[0], *inputs, dtype))


def compare(family: str, subject: Subject, repeats: int) -> None:
    """Print a row per way."""
    ways: dict[str, tuple[Ready, float, float]] = {"eager": (Ready(subject.networks, 1), 0.0, 0.0)}
    exact = probabilities(subject, ways["eager"][0], None)
    for name in BUILDS:
        try:
            ways[name] = set_up(name, subject)
        except UnfitError as error:
            print(f"{family:7} {name}: {error}", flush=True)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (ready, _, _) in ways.items():
            times[name].append(forward_choice.measure_speed(subject, ready).seconds(WORK))
    for name, (ready, first, again) in ways.items():
        gap = (probabilities(subject, ready, subject.dtype) - exact).abs()
        ratio = statistics.median(a / b for a, b in zip(times[name], times["eager"], strict=True))
        numbers = (
            f"{statistics.median(times[name]):10.3f} {min(times[name]):8.3f} {ratio:6.2f} {first:9.1f} {again:9.1f}"
        )
        precision = "float32" if subject.dtype is None else str(subject.dtype).removeprefix("torch.")
        print(
            f"{family:7} {precision:9} {name:13} {numbers} {float(gap.mean()):10.1e} {float(gap.max()):9.1e}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=["unet", "nnunet"], choices=["unet", "nnunet"])
    parser.add_argument("--precision", nargs="+", default=["float32", "mixed"], choices=["float32", "mixed"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--window", type=int, nargs=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    types = {"float32": None, "mixed": autocast_dtype(device)}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    print(
        f"{'':31} {'s/window':>10} {'least':>8} {'ratio':>6} {'set-up':>9} {'again':>9} {'mean diff':>10} {'max diff':>9}"
    )
    window = tuple(options.window) if options.window else None
    for family in options.family:
        for dtype in dict.fromkeys(types[p] for p in options.precision):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
                compare(family, make_subject(family, window, device, dtype), options.repeats)


if __name__ == "__main__":
    main()
