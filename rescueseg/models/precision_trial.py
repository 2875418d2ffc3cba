"""The process of one trial: `rescueseg.models.precision.TRIAL_COMMAND`, with a `Trial` as JSON as its last argument.

The network of the plan computes the same windows in float32 and in bfloat16: outputs and, for a training, the gradients
of all parameters must be finite and agree as far as rounding lets them. Through a whole network rounding adds up to
tens of per cent of some gradients, and would hide much; so every convolution, forward and backward, is computed again in
float32 from the very numbers that it got. There, rounding leaves 0.3 % of a result's norm, and what oneDNN
does wrong differs by half of it or more.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from rescueseg.models.layout import as_channels_last, lay_channels_last
from rescueseg.models.nnunet.network import build_network, key_dropout
from rescueseg.models.nnunet.plan import NnUNetNetwork
from rescueseg.models.threads import set_threads
from rescueseg.models.trial import OUT_OF_MEMORY, Trial, Verdict
from rescueseg.models.unet.plan import NetworkPlan

_ROUNDS = 2
"""Of a training, with other weights and other windows each; an inference is tried with batches of many sizes anyway."""
_CONVOLUTION, _OUTPUT, _GRADIENT, _WHOLE_GRADIENT = 0.03, 0.25, 1.0, 0.5
"""Largest difference between bfloat16 and float32 by the norm of the latter: of what a convolution returns, of an output,
of a parameter's gradient and of all gradients together. Rounding was measured at 0.003, 0.05, 0.55 and 0.28."""
_SCALE = 0.1
"""A parameter's gradient is compared with this share of the usual gradient at least: where it vanishes, rounding is all."""
_OPTIONAL = (
    *("torchvision", "mlflow", "ignite", "pandas", "scipy", "skimage", "nibabel", "matplotlib", "transformers"),
    *("huggingface_hub", "zarr", "tifffile", "h5py", "cv2", "tensorboard", "itk", "requests", "jsonschema", "tqdm"),
)
"""What MONAI imports where it is there, which takes three times as long as all the rest, and no network here needs."""
_RESULTS = {"convolution": ("result",), "convolution_backward": ("input gradient", "weight gradient", "bias gradient")}

Outputs = list[Tensor]
Gradients = dict[str, Tensor]
Pass = tuple[Outputs, Gradients]


class ConvolutionCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every convolution in bfloat16 is computed in float32 too; `reason` names the first that differs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reason = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and compare it if it is a convolution."""
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, Tensor)]
        if name not in _RESULTS or self.reason or all(t.dtype == torch.float32 for t in tensors):
            return result
        exact = func(*tree_map(lambda a: a.float() if isinstance(a, Tensor) else a, args), **(kwargs or {}))
        pairs = zip(_RESULTS[name], *(r if isinstance(r, tuple) else (r,) for r in (result, exact)), strict=False)
        for what, rounded, reference in pairs:
            error = 0.0 if rounded is None else difference(rounded, reference)
            if not error <= _CONVOLUTION:
                shapes = " and ".join(str(tuple(t.shape)) for t in tensors)
                self.reason = f"{name} of {shapes}: its {what} is off by {error:.2g}"
                break
        return result


def difference(rounded: Tensor, exact: Tensor, least: float = 0.0) -> float:
    """Return the norm of the difference over the norm of the exact tensor, or over `least` if that is larger.

    NaN or infinite if any number of the two is.

    Examples
    --------
    >>> difference(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) < 0.1
    True
    """
    gap, scale = rounded.double() - exact.double(), max(float(exact.double().norm()), least)
    return float(gap.norm()) / scale if scale > 0 else float(gap.abs().sum())


@contextmanager
def without_optional_packages() -> Iterator[None]:
    """Let MONAI import without what it does not need here; `optional_import` is made for that."""
    absent = [name for name in _OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def import_unet() -> Any:
    """Return the module of the U-Net; where MONAI wants more than it once did, imported with all of it."""
    name = "rescueseg.models.unet.network"
    try:
        with without_optional_packages():
            return importlib.import_module(name)
    except ImportError:
        for module in [m for m in sys.modules if m.split(".")[0] == "monai" or m == name]:
            del sys.modules[module]
        return importlib.import_module(name)


def unet_forward(plan: NetworkPlan, seed: int, backward: bool) -> tuple[nn.Module, Callable[[Tensor], Outputs]]:
    """Return a U-Net and its forward pass, with the supervised stages where gradients are computed."""
    network = import_unet().build_network(plan, seed)

    def forward(images: Tensor) -> Outputs:
        keys = [("trial", seed, i) for i in range(len(images))]
        masks = network.dropout_masks(keys, images.device) if plan.dropout > 0 else None
        features, coarse = network.coarse_logits(images) if backward else (network.features(images), [])
        return [network.head(features, masks), *coarse]

    return network, forward


def nnunet_forward(plan: NnUNetNetwork, seed: int, backward: bool) -> tuple[nn.Module, Callable[[Tensor], Outputs]]:
    """Return one of nnU-Net's networks and its forward pass, with deep supervision where its training has that."""
    torch.manual_seed(seed)
    network: Any = build_network(plan)
    network.decoder.deep_supervision = backward and len(plan.strides) > 2
    sites = key_dropout(network, plan.dropout)

    def forward(images: Tensor) -> Outputs:
        for site in sites:
            site.keys = [("trial", seed, i) for i in range(len(images))]
        logits = network(images)
        return list(logits) if isinstance(logits, list) else [logits]

    return network, forward


def windows(trial: Trial, batch: int, seed: int) -> Tensor:
    """Return a batch of windows (n, c, z, y, x) with coarse structure and noise."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, trial.network.in_channels, *(-(-n // 4) for n in trial.window), generator=draw)
    images = nn.functional.interpolate(coarse, trial.window, mode="trilinear")
    return 1.5 * images + 0.3 * torch.randn(images.shape, generator=draw)


def compute(
    network: nn.Module, forward: Callable[[Tensor], Outputs], images: Tensor, backward: bool, bfloat16: bool
) -> Pass:
    """Return outputs and gradients of one pass, as a training or a prediction makes it."""
    network.zero_grad(set_to_none=True)
    with nullcontext() if backward else torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = [output.float() for output in forward(images)]
        if backward:
            torch.autograd.backward([output.square().mean() for output in outputs])
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return [output.detach().clone() for output in outputs], gradients


def compare(rounded: Pass, exact: Pass) -> str:
    """Return how a pass in bfloat16 differs from that in float32 beyond rounding; empty where it does not."""
    for i, (output, reference) in enumerate(zip(rounded[0], exact[0], strict=True)):
        error = difference(output, reference)
        if not error <= _OUTPUT:
            return f"output {i} of {tuple(output.shape)} is off by {error:.2g}"
    if rounded[1].keys() != exact[1].keys():
        return "some parameters have no gradient"
    return compare_gradients(rounded[1], exact[1]) if exact[1] else ""


def compare_gradients(rounded: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> str:
    """Return how gradients differ beyond rounding; empty where they do not."""
    all_rounded, all_exact = (torch.cat([tensor.flatten() for tensor in g.values()]) for g in (rounded, exact))
    usual = float(all_exact.double().square().mean().sqrt())
    for name, gradient in exact.items():
        error = difference(rounded[name], gradient, _SCALE * usual * gradient.numel() ** 0.5)
        if not error <= _GRADIENT:
            return f"the gradient of {name} is off by {error:.2g}"
    error = difference(all_rounded, all_exact)
    return "" if error <= _WHOLE_GRADIENT else f"the gradients are off by {error:.2g} of their norm"


def judge(trial: Trial) -> Verdict:
    """Try a plan.

    Raises
    ------
    RuntimeError
        If it does not compute in float32 either.
    MemoryError
        If there is no memory for it.
    """
    for seed in range(_ROUNDS if trial.backward else 1):
        if isinstance(trial.network, NetworkPlan):
            network, forward = unet_forward(trial.network, seed, trial.backward)
        else:
            network, forward = nnunet_forward(trial.network, seed, trial.backward)
        network.train(trial.backward).requires_grad_(trial.backward)
        if trial.backward:
            lay_channels_last(network)
        for batch in trial.batches:
            images = windows(trial, batch, seed)
            images = as_channels_last(images) if trial.backward else images  # as trainings lie in memory
            exact = compute(network, forward, images, trial.backward, bfloat16=False)
            for check in (ConvolutionCheck(), None):  # convolution by convolution, then as it is used
                reason = failure_reason(network, forward, images, trial.backward, exact, check)
                if reason:
                    return Verdict(holds=False, reason=reason)
    return Verdict(holds=True)


def failure_reason(
    network: nn.Module,
    forward: Callable[[Tensor], Outputs],
    images: Tensor,
    backward: bool,
    exact: Pass,
    check: ConvolutionCheck | None,
) -> str:
    """Return why a pass in bfloat16 is not what it is in float32, refused altogether or beyond rounding; empty if it is."""
    try:
        with check or nullcontext():
            rounded = compute(network, forward, images, backward, bfloat16=True)
    except RuntimeError as error:
        if any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        return str(error).splitlines()[0]
    return (check.reason if check else "") or compare(rounded, exact)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    """Print the verdict on the trial that the last argument holds."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    threading.Thread(target=_end_with_input, daemon=True).start()
    trial = Trial.model_validate_json(sys.argv[-1])
    set_threads(trial.threads)
    print(judge(trial).model_dump_json(), file=channel)


if __name__ == "__main__":
    main()
    os._exit(0)  # what torch and its threads would still tidy up takes seconds
