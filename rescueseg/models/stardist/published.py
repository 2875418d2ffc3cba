"""A network that StarDist trained with Keras, in torch: its U-Net in 3D, with the weights from its HDF5 file.

Weights are found by the names of StarDist's layers, and each must have the shape that the configuration asks for. The
convolutions before the U-Net have no names of their own; they are taken in the order of the file.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from rescueseg.errors import InferenceError, RescuesegError
from rescueseg.geometry import ZYX, Box, partition, round_up, zyx
from rescueseg.models.stardist.published_config import WEIGHTS_FILE, PublishedConfig
from rescueseg.models.threads import keep_threads
from rescueseg.volumes.normalise import read_box

Float32 = npt.NDArray[np.float32]

_WHOLE_VOXELS = 4_000_000
"""An image of no more is computed at once: about half a gigabyte per layer of 32 filters."""
_TILE: ZYX = (64, 128, 128)
"""Voxels of a larger one that are computed at a time, without what lies around them."""
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "elu": functional.elu,
    "linear": lambda x: x,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
}
_UNNAMED = re.compile(r"conv3d(_\d+)?")
_CLASSES = ("features_class", "prob_class")
"""Layers that tell classes of objects apart, which nothing here depends on."""
MOST_BYTES = 1024**3
"""Of a network's weights, of which a file may claim more than it holds; those of StarDist's own models have some 10 MB."""
_TODO = "Copy or download the folder again; of another network than StarDist's U-Net in 3D nothing can be read"


class PublishedStarDist(nn.Module):
    """StarDist's network with the backbone "unet", as CSBDeep's `unet_block` builds it; for inference.

    Parameters
    ----------
    config : PublishedConfig
        How it is built.
    """

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.config = config
        self.convs = nn.ModuleDict()
        base, convs, depth = config.unet_n_filter_base, config.unet_n_conv_per_depth, config.unet_n_depth
        width = config.n_channel_in

        def add(name: str, filters: float, inputs: int, kernel: ZYX = config.unet_kernel_size) -> int:
            self.convs[name] = nn.Conv3d(inputs, int(filters), kernel, padding="same")
            return int(filters)

        for index in range(convs * len(config.pools)):
            width = add(f"before_{index}", base, width)
        skips = []
        for level in range(depth):
            for index in range(convs):
                width = add(self._name(f"down_level_{level}_no_{index}"), base * config.unet_expansion**level, width)
            skips.append(width)
        for index in range(convs - 1):
            width = add(self._name(f"middle_{index}"), base * config.unet_expansion**depth, width)
        width = add(self._name(f"middle_{convs}"), base * config.unet_expansion ** max(0, depth - 1), width)
        for level in reversed(range(depth)):
            width += skips[level]
            for index in range(convs - 1):
                width = add(self._name(f"up_level_{level}_no_{index}"), base * config.unet_expansion**level, width)
            last = self._name(f"up_level_{level}_no_{convs}")
            width = add(last, base * config.unet_expansion ** max(0, level - 1), width)
        if config.net_conv_after_unet:
            width = add("features", config.net_conv_after_unet, width)
        add("prob", 1, width, (1, 1, 1))
        add("dist", config.n_rays, width, (1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability (n, 1, z', y', x') and the lengths of the rays (n, rays, z', y', x'), on the grid.

        Parameters
        ----------
        image : Tensor
            Shape (n, channels, z, y, x), a multiple of `PublishedConfig.multiple_zyx`.
        """
        config, layer = self.config, image
        convs, depth = config.unet_n_conv_per_depth, config.unet_n_depth
        for step, pool in enumerate(config.pools):
            for index in range(convs):
                layer = self._conv(f"before_{step * convs + index}", layer)
            layer = functional.max_pool3d(layer, pool)
        skips = []
        for level in range(depth):
            for index in range(convs):
                layer = self._conv(self._name(f"down_level_{level}_no_{index}"), layer)
            skips.append(layer)
            layer = functional.max_pool3d(layer, config.unet_pool)
        for index in [*range(convs - 1), convs]:
            layer = self._conv(self._name(f"middle_{index}"), layer)
        for level in reversed(range(depth)):
            up = functional.interpolate(layer, scale_factor=[float(p) for p in config.unet_pool], mode="nearest")
            layer = torch.cat([up, skips[level]], dim=1)
            for index in [*range(convs - 1), convs]:
                is_last = level == 0 and index == convs
                layer = self._conv(self._name(f"up_level_{level}_no_{index}"), layer, is_last=is_last)
        if config.net_conv_after_unet:
            layer = self._conv("features", layer)
        return torch.sigmoid(self.convs["prob"](layer)), self.convs["dist"](layer)

    def _name(self, name: str) -> str:
        return self.config.unet_prefix.replace(".", "_") + name

    def _conv(self, name: str, layer: Tensor, *, is_last: bool = False) -> Tensor:
        last = self.config.unet_last_activation or self.config.unet_activation
        return _ACTIVATIONS[last if is_last else self.config.unet_activation](self.convs[name](layer))

    def predict(self, image: Float32, device: torch.device) -> tuple[Float32, Float32]:
        """Return what the network says of an image, tile by tile, each with all that its output depends on.

        Parameters
        ----------
        image : ndarray of float32, czyx
            Scaled as the network expects; beyond its end it is mirrored where its shape is no multiple.
        device : torch.device
            Where the network is.

        Returns
        -------
        probability : ndarray of float32, (z', y', x')
            On the grid: its first voxel is that of the image.
        lengths : ndarray of float32, (z', y', x', rays)
            Along each ray, in its lengths; above zero.
        """
        keep_threads()
        grid, multiple = self.config.grid, self.config.multiple_zyx
        whole = round_up(image.shape[1:], multiple)
        margin = round_up(self.config.reach_zyx, multiple)
        coarse = zyx(n // g for n, g in zip(whole, grid, strict=True))
        probability = np.zeros(coarse, np.float32)
        lengths = np.zeros((*coarse, self.config.n_rays), np.float32)
        padded = read_box(image, Box((0, 0, 0), whole))
        size = whole if math.prod(whole) <= _WHOLE_VOXELS else round_up(_TILE, multiple)
        for tile in partition(whole, size):
            outer = tile.expand(margin).clip(whole)
            part = torch.from_numpy(np.ascontiguousarray(padded[(slice(None), *outer.slices)])).to(device)
            with torch.inference_mode():
                said = [of[0].float().cpu().numpy() for of in self(part[None])]
            inner, place = (_coarser(box, grid) for box in (tile.relative_to(outer), tile))
            probability[place] = said[0][(0, *inner)]
            lengths[place] = np.moveaxis(said[1][(slice(None), *inner)], 0, -1)
        return probability, np.maximum(lengths, 1e-3)


def _coarser(box: Box, grid: ZYX) -> tuple[slice, ...]:
    return tuple(slice(s.start // g, s.stop // g) for s, g in zip(box.slices, grid, strict=True))


def load_network(
    folder: str, config: PublishedConfig, kind: type[RescuesegError] = InferenceError
) -> PublishedStarDist:
    """Return the network of a model folder; no TensorFlow is needed, and nothing in the file is run.

    Parameters
    ----------
    folder : str
        With ``weights_best.h5``.
    config : PublishedConfig
        What its configuration says.
    kind : type
        Of the error.

    Raises
    ------
    RescuesegError
        Of that kind: if the file cannot be read, leads to other files, or a layer is missing, of another shape, or more than
        the network has.
    """
    path = str(Path(folder, WEIGHTS_FILE))
    try:
        with torch.device("meta"):  # nothing is allocated before the file has been compared
            network = PublishedStarDist(config)
        with h5py.File(path) as file:
            root = _within(file, "model_weights", path, kind) if "model_weights" in file else file
            layers = dict(_named_layers(root, path, kind))
            _check_fit(network, layers, path, kind)
            _fill(network, layers, path, kind)
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:  # as h5py does of damaged files
        raise kind(f"the file cannot be read: {str(error)[:200]}", where=path, todo=_TODO) from error
    return network.eval().requires_grad_(False)


def _within(group: Any, name: str, path: str, kind: type[RescuesegError]) -> Any:
    """Return a group or dataset of this very file: links may lead to other files, whose content nothing here stands for."""
    for part in filter(None, name.split("/")):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink | None):
            raise kind(f"'{name}' is a link, and may lead to another file", where=path, todo=_TODO)
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise kind(f"the numbers of '{name}' lie in another file", where=path, todo=_TODO)
    return group


def _named_layers(root: Any, path: str, kind: type[RescuesegError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the layers that have weights, with their datasets by "kernel" and "bias"; nothing is read yet."""
    names = _strings(root, "layer_names")
    if not names:
        raise kind("it names no layers as Keras does in this format", where=path, todo=_TODO)
    unnamed = 0
    for name in names:
        layer = _within(root, name, path, kind)
        weights = {
            w.rpartition("/")[2].partition(":")[0]: _within(layer, w, path, kind)
            for w in _strings(layer, "weight_names")
        }
        if not weights:
            continue
        if _UNNAMED.fullmatch(name):
            yield f"before_{unnamed}", weights
            unnamed += 1
        else:
            yield name.replace(".", "_"), weights


def _strings(group: Any, name: str) -> list[str]:
    """Return the strings of an attribute, which Keras writes in numbered parts where they are many."""
    numbered = itertools.takewhile(lambda part: part in group.attrs, (f"{name}{i}" for i in itertools.count()))
    parts = [name] if name in group.attrs else numbered
    return [_text(value) for part in parts for value in group.attrs[part]]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_fit(
    network: PublishedStarDist, layers: dict[str, dict[str, Any]], path: str, kind: type[RescuesegError]
) -> None:
    """Refuse a file whose layers are not those of the network, by name and shape; no number is read."""
    more = sorted(layers.keys() - network.convs.keys() - set(_CLASSES if network.config.n_classes else ()))
    missing = [name for name in network.convs if name not in layers]
    if more or missing:
        what = f"the layer '{missing[0]}' is missing" if missing else f"there is a layer '{more[0]}' more"
        raise kind(f"the weights do not fit the configuration: {what}", where=path, todo=_TODO)
    for name, conv in network.convs.items():
        assert isinstance(conv, nn.Conv3d)
        expected = {
            "kernel": (*conv.kernel_size, conv.in_channels, conv.out_channels),
            "bias": (conv.out_channels,),
        }
        found = {role: getattr(of, "shape", None) for role, of in layers[name].items()}
        if found != expected or any(of.dtype.kind != "f" for of in layers[name].values()):
            raise kind(
                f"the weights do not fit the configuration: layer '{name}' has {found}, not {expected}",
                where=path,
                todo=_TODO,
            )
    size = sum(weights.numel() * weights.element_size() for weights in network.parameters())
    if size > MOST_BYTES:
        raise kind(f"its network has {size / 1e9:.1f} GB of weights", where=path, todo=_TODO)


def _fill(network: PublishedStarDist, layers: dict[str, dict[str, Any]], path: str, kind: type[RescuesegError]) -> None:
    """Give a network that has no numbers yet those of the file."""
    for name, conv in network.convs.items():
        kernel, bias = (np.asarray(layers[name][role], np.float32) for role in ("kernel", "bias"))
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise kind(f"the weights of layer '{name}' are not finite", where=path, todo=_TODO)
        conv.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))))
        conv.bias = nn.Parameter(torch.from_numpy(bias))
