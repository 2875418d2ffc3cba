"""Weights that Cellpose 3 saved: published ones such as cyto3 and nuclei, and those that a person trained in its GUI.

The file is a pickle of tensors. Only tensors are read of it (`torch.load` with ``weights_only``): a pickle that would call
anything is refused before it does.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cellpose.resnet_torch import CPnet
from torch import Tensor

from rescueseg.errors import InferenceError, RescuesegError
from rescueseg.storage import file_digest

MOST_BYTES = 512 * 1024**2
"""Of a file, and of the tensors in it, which may claim more than the file holds; those of Cellpose 3 have 26 MB."""
_DIAMETERS = ("diam_mean", "diam_labels")
_USUAL_PIXELS, _NUCLEI_PIXELS = 30.0, 17.0
_DOWN = "downsample.down.res_down_"
_OUTPUTS = 3
_AS_SAVED = "Give a weights file of Cellpose 3 as it was saved"


@dataclass(frozen=True)
class CellposeWeights:
    """What a weights file holds.

    Parameters
    ----------
    tensors : dict of Tensor
        Of float32, but for counters, by the names of `cellpose.resnet_torch.CPnet`; without the diameters.
    in_channels : int
        Of an image.
    channels : tuple of int
        Feature channels per level.
    pixels : float
        How many pixels wide an object is in the images that the network has learned from.
    digest : str
        The sha256 of the file.
    says_pixels : bool
        Whether the file says how many; otherwise they follow from its name, which the digest does not cover.
    """

    tensors: dict[str, Tensor]
    in_channels: int
    channels: tuple[int, ...]
    pixels: float
    digest: str
    says_pixels: bool = True


def read_weights(path: str, kind: type[RescuesegError] = InferenceError) -> CellposeWeights:
    """Read a weights file of Cellpose 3; nothing in it is run.

    Parameters
    ----------
    path : str
        The file, as `cellpose.models.CellposeModel.net.save_model` writes it.
    kind : type
        Of the error.

    Returns
    -------
    CellposeWeights
        Checked against the architecture; how wide objects are is what ``diam_mean`` says, else 17 pixels where the file's
        name begins with "nuclei" and 30 otherwise, as Cellpose has it.

    Raises
    ------
    RescuesegError
        Of that kind: if it is no file, too large, no file of tensors, or of another architecture.
    StorageError
        If it cannot be read.
    """
    if not Path(path).is_file():
        raise kind("there is no such file", where=path, todo="Give the weights file that Cellpose 3 saved")
    digest = file_digest(path)
    tensors = _read_tensors(path, kind)
    _refuse_transformers(tensors, path, kind)
    channels = _channels(tensors)
    if not channels or (last := tensors.get("output.2.weight")) is None or last.ndim != 4:
        raise kind(
            "these are not the weights of Cellpose 3's network",
            where=path,
            todo="Give a file such as cyto3, or one that Cellpose's own training saved; for StarDist give the model's folder",
        )
    pixels, says_pixels = _pixels(tensors, path, kind)
    given = {name: tensor for name, tensor in tensors.items() if name not in _DIAMETERS}
    in_channels = given[f"{_DOWN}0.conv.conv_0.2.weight"].shape[1]
    _check_fit(given, in_channels, channels, path, kind)
    own = {name: (tensor.float() if tensor.is_floating_point() else tensor).clone() for name, tensor in given.items()}
    for name, tensor in own.items():
        if not torch.isfinite(tensor).all():
            raise kind(f"'{name}' is not finite", where=path, todo="Give weights of a training that went well")
    return CellposeWeights(own, in_channels, channels, pixels, digest, says_pixels)


def _read_tensors(path: str, kind: type[RescuesegError]) -> dict[str, Tensor]:
    """Return what is in the file, of which nothing but plain tensors is let in; of a zip their values are not read yet."""
    is_zip = zipfile.is_zipfile(path)
    try:
        size = Path(path).stat().st_size
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _unreadable(error, path, kind) from error
    if size > MOST_BYTES:
        raise _too_large(size, path, kind)
    try:
        said: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:  # by weights_only
        raise kind(
            "the file holds something else than tensors, or is none that torch saved; nothing of it was run",
            where=path,
            todo="Take weights from their publisher; of Cellpose 3 the file itself, such as cyto3, not a training's log",
        ) from error
    except Exception as error:  # of damaged files torch lets through whatever its reader stumbles over
        raise _unreadable(error, path, kind) from error
    if not isinstance(said, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in said.items()):
        raise kind("the file holds no table of weights", where=path, todo="Give the weights file that Cellpose 3 saved")
    tensors = {name.removeprefix("module."): tensor.detach() for name, tensor in said.items()}
    for name, tensor in tensors.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise kind(f"'{name}' is no plain tensor", where=path, todo=_AS_SAVED)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MOST_BYTES:
        raise _too_large(size, path, kind)
    return tensors


def _unreadable(error: Exception, path: str, kind: type[RescuesegError]) -> RescuesegError:
    return kind(
        f"the file cannot be read as weights ({type(error).__name__})", where=path, todo="Copy or download it again"
    )


def _too_large(size: int, path: str, kind: type[RescuesegError]) -> RescuesegError:
    return kind(
        f"the file holds {size / 1e6:.0f} MB, and weights of Cellpose 3 have 26",
        where=path,
        todo="Give a weights file of Cellpose 3; weights of Cellpose-SAM run with: --method cellpose-sam --python PYTHON",
    )


def _refuse_transformers(tensors: dict[str, Tensor], path: str, kind: type[RescuesegError]) -> None:
    if "W2" in tensors or any(name.startswith("encoder.") for name in tensors):
        raise kind(
            "these are weights of Cellpose-SAM, or of another transformer: a different network than Cellpose 3's",
            where=path,
            todo="Run them with: rescueseg weak-label CAMPAIGN --method cellpose-sam --python PYTHON, with an environment in "
            "which cellpose 4 is installed",
        )


def _pixels(tensors: dict[str, Tensor], path: str, kind: type[RescuesegError]) -> tuple[float, bool]:
    """Return how wide objects are, and whether the file says so."""
    said = tensors.get("diam_mean")
    if said is None:
        return _NUCLEI_PIXELS if Path(path).name.startswith("nuclei") else _USUAL_PIXELS, False
    pixels = float(said) if said.numel() == 1 and not said.is_complex() else math.nan
    if not 1 <= pixels <= 1000:
        raise kind(f"it says that objects are {pixels:g} pixels wide", where=path, todo="Save the weights anew")
    return pixels, True


def _channels(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """Return the feature channels of each level, none where the file is of another architecture."""
    found: list[int] = []
    while (weight := tensors.get(f"{_DOWN}{len(found)}.conv.conv_0.2.weight")) is not None:
        if weight.ndim != 4 or not weight.numel():
            return ()
        found.append(weight.shape[0])
    return tuple(found)


def _check_fit(
    tensors: dict[str, Tensor], in_channels: int, channels: tuple[int, ...], path: str, kind: type[RescuesegError]
) -> None:
    """Refuse weights that do not fit the network of that many channels, name by name; no value is read."""
    outputs = tensors["output.2.weight"].shape[0]
    if outputs != _OUTPUTS:
        raise kind(
            f"the network has {outputs} outputs, not flow along two axes and the cell probability",
            where=path,
            todo="Give weights that segment; those that restore images, or of earlier versions, do not",
        )
    with torch.device("meta"):
        expected = CPnet([in_channels, *channels], _OUTPUTS, 3).state_dict()
    expected = {name: tensor for name, tensor in expected.items() if name not in _DIAMETERS}
    for name in sorted(expected.keys() | tensors.keys()):
        if (found := _described(tensors.get(name), "missing")) != (
            wish := _described(expected.get(name), "part of it")
        ):
            raise kind(
                f"the weights do not fit Cellpose 3's network: '{name}' is {found}, not {wish}",
                where=path,
                todo=_AS_SAVED,
            )


def _described(tensor: Tensor | None, otherwise: str) -> str:
    """Say shape and kind of a tensor; weights may be of any precision."""
    if tensor is None:
        return otherwise
    kind = "" if tensor.is_floating_point() else f" of {tensor.dtype}".replace("torch.", "")
    return f"{tuple(tensor.shape)}{kind}"
