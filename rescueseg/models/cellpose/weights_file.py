"""Weights that Cellpose 3 saved: published ones such as cyto3 and nuclei, and those that a person trained in its GUI.

The file is a pickle of tensors. Only tensors are read of it (`torch.load` with ``weights_only``): a pickle that would call
anything is refused before it does.
"""

from __future__ import annotations

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
"""Of the tensors in a file; those of Cellpose 3 have 26 MB."""
_DIAMETERS = ("diam_mean", "diam_labels")
_USUAL_PIXELS, _NUCLEI_PIXELS = 30.0, 17.0
_DOWN = "downsample.down.res_down_"
_OUTPUTS = 3


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
    """

    tensors: dict[str, Tensor]
    in_channels: int
    channels: tuple[int, ...]
    pixels: float
    digest: str


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
    channels = _channels(tensors)
    if not channels or "output.2.weight" not in tensors:
        raise kind(
            "these are not the weights of Cellpose 3's network",
            where=path,
            todo="Give a file such as cyto3, or one that Cellpose's own training saved; for StarDist give the model's folder",
        )
    pixels = float(tensors["diam_mean"].flatten()[0]) if "diam_mean" in tensors else _usual_pixels(path)
    own = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone()
        for name, tensor in tensors.items()
        if name not in _DIAMETERS
    }
    in_channels = own[f"{_DOWN}0.conv.conv_0.2.weight"].shape[1]
    _check_shapes(own, in_channels, channels, path, kind)
    if not 1 <= pixels <= 1000:
        raise kind(f"it says that objects are {pixels:g} pixels wide", where=path, todo="Save the weights anew")
    return CellposeWeights(own, in_channels, channels, pixels, digest)


def _read_tensors(path: str, kind: type[RescuesegError]) -> dict[str, Tensor]:
    """Return what is in the file, of which nothing but tensors is let in."""
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
        else:
            size = Path(path).stat().st_size
        if not is_zip and size > MOST_BYTES:
            raise _too_large(size, path, kind)
        said: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:  # by weights_only
        raise kind(
            "the file holds something else than tensors, or is none that torch saved; nothing of it was run",
            where=path,
            todo="Take weights from their publisher; of Cellpose 3 the file itself, such as cyto3, not a training's log",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, OSError) as error:
        raise kind(
            f"the file cannot be read as weights ({type(error).__name__})", where=path, todo="Copy or download it again"
        ) from error
    if not isinstance(said, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in said.items()):
        raise kind("the file holds no table of weights", where=path, todo="Give the weights file that Cellpose 3 saved")
    tensors = {name.removeprefix("module."): tensor for name, tensor in said.items()}
    _refuse_transformers(tensors, path, kind)
    if size > MOST_BYTES:
        raise _too_large(size, path, kind)
    return tensors


def _too_large(size: int, path: str, kind: type[RescuesegError]) -> RescuesegError:
    return kind(
        f"the file holds {size / 1e6:.0f} MB, and weights of Cellpose 3 have 26",
        where=path,
        todo="Give a weights file of Cellpose 3",
    )


def _refuse_transformers(tensors: dict[str, Tensor], path: str, kind: type[RescuesegError]) -> None:
    if "W2" in tensors or any(name.startswith("encoder.") for name in tensors):
        raise kind(
            "these are weights of Cellpose-SAM, or of another transformer: a different network than Cellpose 3's",
            where=path,
            todo="Run them with: rescueseg weak-label CAMPAIGN --method cellpose-sam --python PYTHON, with an environment in "
            "which cellpose 4 is installed",
        )


def _usual_pixels(path: str) -> float:
    return _NUCLEI_PIXELS if Path(path).name.startswith("nuclei") else _USUAL_PIXELS


def _channels(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """Return the feature channels of each level, none where the file is of another architecture."""
    found: list[int] = []
    while (weight := tensors.get(f"{_DOWN}{len(found)}.conv.conv_0.2.weight")) is not None and weight.ndim == 4:
        found.append(weight.shape[0])
    return tuple(found)


def _check_shapes(
    tensors: dict[str, Tensor], in_channels: int, channels: tuple[int, ...], path: str, kind: type[RescuesegError]
) -> None:
    """Refuse weights that do not fit the network of that many channels, name by name."""
    outputs = tensors["output.2.weight"].shape[0]
    if outputs != _OUTPUTS:
        raise kind(
            f"the network has {outputs} outputs, not flow along two axes and the cell probability",
            where=path,
            todo="Give weights that segment; those that restore images, or of earlier versions, do not",
        )
    with torch.device("meta"):
        expected = CPnet([in_channels, *channels], _OUTPUTS, 3).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items() if name not in _DIAMETERS}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if wrong:
        first = wrong[0]
        raise kind(
            f"the weights do not fit Cellpose 3's network: '{first}' is {given.get(first, 'missing')}, "
            f"not {shapes.get(first, 'part of it')}",
            where=path,
            todo="Give a weights file of Cellpose 3 as it was saved",
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise kind(f"'{name}' is not finite", where=path, todo="Give weights of a training that went well")
