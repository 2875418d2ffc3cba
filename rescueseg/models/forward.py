"""How the forward pass of trained networks is computed: ways that say the same, some faster on some devices.

"eager"
    One operation after the other, in torch's usual order of memory: what every machine can do.
"channels_last"
    The same with all channels of a voxel together in memory, as the libraries of most processors want them; instance
    norms are computed as group norms, which torch can do in that order, and float32 convolutions of a CPU by oneDNN,
    which torch asks for with several threads, but with one only where a rule of thumb says so. No setting up.
"compiled"
    The same through `torch.compile`: needs a C++ compiler (Triton on a GPU) and tens of seconds, the first time.

All but "eager" compute batches of one fixed size, so that a window's numbers do not depend on which others are with it.
Which is fastest is measured: see `rescueseg.models.forward_choice`.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescueseg.models.precision import user_cache
from rescueseg.models.split_network import SampleKey, SplitNetwork

CHANNELS_LAST, COMPILED = "channels_last", "compiled"

_CHANNELS_LAST = torch.channels_last_3d
_SPECIALISATIONS = 64
"""Most networks and windows that one process computes compiled; torch's own 8 would be used up by a few models."""


class GroupedNorm(nn.Module):
    """An instance norm computed as a group norm with a group per channel.

    Parameters
    ----------
    norm : nn.InstanceNorm3d
        Whose parameters it uses; without running statistics.
    """

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each channel of (n, c, z, y, x)."""
        return functional.group_norm(features, features.shape[1], self.weight, self.bias, self.eps)


class OneDnnConvolution(nn.Module):
    """A 3D convolution in float32, transposed or not, that oneDNN computes, whatever torch would choose.

    Parameters
    ----------
    convolution : nn.Conv3d or nn.ConvTranspose3d
        Whose parameters it uses; padded with zeros.
    """

    def __init__(self, convolution: nn.Conv3d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.padding, self.output_padding = [int(n) for n in convolution.padding], list(convolution.output_padding)
        self.stride, self.dilation = list(convolution.stride), list(convolution.dilation)
        self.groups, self.transposed = convolution.groups, convolution.transposed

    def forward(self, features: Tensor) -> Tensor:
        """Convolve (n, c, z, y, x)."""
        given, steps = (features, self.weight, self.bias, self.padding), (self.stride, self.dilation, self.groups)
        result: Tensor
        if self.transposed:
            result = torch.ops.mkldnn._convolution_transpose_pointwise(
                *given, self.output_padding, *steps, "none", [], ""
            )
        else:
            result = torch.ops.mkldnn._convolution_pointwise(*given, *steps, "none", [], "")
        return result


def replace_layers(network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace layers of a network, each under all names that it is registered by.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    replacement : callable
        Returns what takes a layer's place; None where it stays.
    """
    made: dict[int, nn.Module | None] = {}
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if child is None:
                continue
            if id(child) not in made:
                made[id(child)] = replacement(child)
            layer = made[id(child)]
            if layer is not None:
                module._modules[name] = layer


def _grouped(layer: nn.Module) -> nn.Module | None:
    return GroupedNorm(layer) if isinstance(layer, nn.InstanceNorm3d) and not layer.track_running_stats else None


def _by_one_dnn(layer: nn.Module) -> nn.Module | None:
    if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
        return None
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return OneDnnConvolution(layer) if plain else None


def _compilable_by_one_dnn(layer: nn.Module) -> nn.Module | None:
    """Leave transposed convolutions to torch, which knows the shapes of their results while it compiles."""
    return _by_one_dnn(layer) if isinstance(layer, nn.Conv3d) else None


def _one_dnn_computes(device: torch.device, dtype: torch.dtype | None) -> bool:
    """Tell whether float32 convolutions can be left to oneDNN; those in bfloat16 are."""
    names = ("_convolution_pointwise", "_convolution_transpose_pointwise")
    there: bool = torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in names)
    return device.type == "cpu" and dtype is None and there


class ChannelsLast(SplitNetwork):
    """A copy of a network that computes with all channels of a voxel together in memory.

    Parameters
    ----------
    network : SplitNetwork
        Stays as it is.
    device : torch.device
        Where it computes.
    dtype : torch.dtype, optional
        Of mixed precision; None where all is float32.
    """

    compiled = False
    """Whether its functions are compiled, which makes instance norms fast by themselves."""

    def __init__(self, network: SplitNetwork, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        if not self.compiled:
            replace_layers(self.network, _grouped)
        if _one_dnn_computes(device, dtype):
            replace_layers(self.network, _compilable_by_one_dnn if self.compiled else _by_one_dnn)
        self.network.to(memory_format=_CHANNELS_LAST)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what all samples share."""
        return self.network.features(image.contiguous(memory_format=_CHANNELS_LAST))

    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        """Return the logits of one sample, in torch's usual order of memory."""
        return self.network.head(features, masks).contiguous()

    def dropout_masks(self, keys: Sequence[SampleKey], device: torch.device) -> tuple[Tensor, ...]:
        """Return the masks of a sample."""
        return self.network.dropout_masks(keys, device)


def _features(network: SplitNetwork, image: Tensor) -> tuple[Tensor, ...]:
    return network.features(image)


def _head(network: SplitNetwork, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
    return network.head(features, masks)


class Compiled(ChannelsLast):
    """A copy of a network whose functions are compiled; networks that differ in their weights alone share the code."""

    compiled = True

    def __init__(self, network: SplitNetwork, device: torch.device, dtype: torch.dtype | None) -> None:
        if device.type == "cpu" and shutil.which(compiler_name()) is None:
            raise FileNotFoundError(f"there is no C++ compiler ({compiler_name()}) on this machine")
        super().__init__(network, device, dtype)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "compiled"))
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SPECIALISATIONS)
        self._features = torch.compile(_features, dynamic=False, fullgraph=True)
        self._head = torch.compile(_head, dynamic=False, fullgraph=True)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what all samples share."""
        return self._features(self.network, image.contiguous(memory_format=_CHANNELS_LAST))

    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        """Return the logits of one sample, in torch's usual order of memory."""
        return self._head(self.network, features, masks).contiguous()


def compiler_name() -> str:
    """Return the C++ compiler that `torch.compile` uses; the variable `CXX` names another."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


Build = Callable[[SplitNetwork, torch.device, torch.dtype | None], SplitNetwork]

BUILDS: Mapping[str, Build] = MappingProxyType({CHANNELS_LAST: ChannelsLast, COMPILED: Compiled})
"""What computes in place of a network, by the name of the way; "eager" is the network itself."""


def pad_batch(tensor: Tensor, batch: int) -> Tensor:
    """Return a batch filled up with its first row.

    Examples
    --------
    >>> pad_batch(torch.tensor([[1], [2]]), 4).ravel().tolist()
    [1, 2, 1, 1]
    """
    missing = batch - len(tensor)
    return tensor if missing <= 0 else torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])])
