"""What a model folder of StarDist says of itself: ``config.json`` and ``thresholds.json``, checked. Imports no torch.

A configuration names its rays by the name of a class, which StarDist evaluates as Python. Here a name is looked up among the
classes that there are, and takes numbers alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from rescueseg.errors import RescuesegError
from rescueseg.geometry import ZYX, zyx

CONFIG_FILE, THRESHOLDS_FILE, WEIGHTS_FILE = "config.json", "thresholds.json", "weights_best.h5"
RAYS = ("Rays_GoldenSpiral", "Rays_Octo", "Rays_Tetra", "Rays_Cartesian")
_MOST_BYTES = 1_000_000
"""Of a JSON file."""

_Triple = tuple[
    Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]
]
_Activation = Literal["relu", "elu", "linear", "sigmoid", "tanh", "softplus"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)


_P = TypeVar("_P", bound=_Part)


class Rays(_Part):
    """Which rays polyhedra have, as StarDist writes it."""

    name: str
    kwargs: dict[str, JsonValue]


class Thresholds(_Part):
    """Of the polyhedra that StarDist's training chose; the defaults are StarDist's own."""

    prob: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Less probable ones are none."""
    nms: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Of two that overlap by more, as a share of the smaller, the less probable one is dropped."""


class PublishedConfig(_Part):
    """The parts of StarDist's configuration that its predictions depend on."""

    n_dim: int
    n_channel_in: Annotated[int, Field(ge=1, le=64)]
    n_rays: Annotated[int, Field(ge=4, le=1024)]
    rays_json: Rays
    grid: _Triple
    backbone: str
    n_classes: int | None = None
    unet_n_depth: Annotated[int, Field(ge=1, le=6)] = 2
    unet_kernel_size: _Triple = (3, 3, 3)
    unet_n_filter_base: Annotated[int, Field(ge=1, le=512)] = 32
    unet_n_conv_per_depth: Annotated[int, Field(ge=1, le=8)] = 2
    unet_pool: _Triple = (2, 2, 2)
    unet_activation: _Activation = "relu"
    unet_last_activation: _Activation | None = "relu"
    unet_batch_norm: bool = False
    unet_expansion: Annotated[float, Field(gt=0, le=4)] = 2
    unet_prefix: str = ""
    net_conv_after_unet: Annotated[int, Field(ge=0, le=4096)] = 128

    @property
    def pools(self) -> tuple[ZYX, ...]:
        """By how much each pooling before the U-Net makes the image coarser: by two along the axes that need it."""
        found, reached = [], [1, 1, 1]
        while tuple(reached) != self.grid:
            pool = zyx(1 + (g > r) for g, r in zip(self.grid, reached, strict=True))
            reached = [r * p for r, p in zip(reached, pool, strict=True)]
            found.append(pool)
        return tuple(found)

    @property
    def multiple_zyx(self) -> ZYX:
        """What the shape of an image must be a multiple of."""
        return zyx(g * p**self.unet_n_depth for g, p in zip(self.grid, self.unet_pool, strict=True))

    @property
    def reach_zyx(self) -> ZYX:
        """How far around a voxel there is anything that the network's output depends on, in voxels; no less than that."""
        reach, scale = np.zeros(3, np.int64), np.ones(3, np.int64)
        kernel, pool = np.array(self.unet_kernel_size, np.int64) // 2, np.array(self.unet_pool, np.int64)
        convs = self.unet_n_conv_per_depth
        for step in self.pools:
            reach += convs * kernel * scale + (np.array(step, np.int64) - 1) * scale
            scale *= step
        for _ in range(self.unet_n_depth):  # down and up
            reach += 2 * convs * kernel * scale + 2 * (pool - 1) * scale
            scale *= pool
        return zyx((reach + convs * kernel * scale + kernel * np.array(self.grid, np.int64)).tolist())


def read_config(folder: str, kind: type[RescuesegError]) -> tuple[PublishedConfig, Thresholds]:
    """Read what a model folder says.

    Parameters
    ----------
    folder : str
        The folder.
    kind : type
        Of the error.

    Raises
    ------
    RescuesegError
        Of that kind: if the folder is no model of StarDist in 3D, or one whose network is not known here.
    """
    if not Path(folder).is_dir():
        raise kind(
            "there is no such folder",
            where=folder,
            todo=f"Give the folder that holds {CONFIG_FILE}, {THRESHOLDS_FILE} and {WEIGHTS_FILE}",
        )
    config = _parse(Path(folder, CONFIG_FILE), PublishedConfig, kind)
    has_thresholds = Path(folder, THRESHOLDS_FILE).exists()
    thresholds = _parse(Path(folder, THRESHOLDS_FILE), Thresholds, kind) if has_thresholds else Thresholds()
    unknown = {
        f"it is a model for images of {config.n_dim} dimensions": config.n_dim != 3,
        f"its backbone is '{config.backbone}', and only 'unet' is known here": config.backbone != "unet",
        "its network has batch normalisation, which is not known here": config.unet_batch_norm,
        f"its grid is {config.grid}, and only powers of two are possible": any(g & (g - 1) for g in config.grid),
        f"its rays are '{config.rays_json.name}', and known are {', '.join(RAYS)}": config.rays_json.name not in RAYS,
        "the settings of its rays are no numbers": not all(map(_is_numeric, config.rays_json.kwargs.values())),
    }
    for what, is_so in unknown.items():
        if is_so:
            raise kind(
                what, where=folder, todo="Use another model, or label with StarDist itself and hand its masks in"
            )
    return config, thresholds


def rays_of(config: PublishedConfig, folder: str, kind: type[RescuesegError]) -> Any:
    """Return StarDist's object of the rays; raises as `read_config`."""
    from stardist import rays3d

    try:
        rays = getattr(rays3d, config.rays_json.name)(**config.rays_json.kwargs)
    except (TypeError, ValueError) as error:
        raise kind(
            f"its rays cannot be made: {error}", where=folder, todo="Copy or download the folder again"
        ) from error
    if len(rays) != config.n_rays:
        raise kind(
            f"it has {config.n_rays} rays by its configuration, and {len(rays)} by their description",
            where=folder,
            todo="Copy or download the folder again",
        )
    return rays


def _is_numeric(value: JsonValue) -> bool:
    if isinstance(value, list):
        return len(value) == 3 and all(isinstance(v, int | float) and 0 < v <= 1000 for v in value)
    return value is None or (isinstance(value, int | float) and 0 < value <= 1024)


def _parse(path: Path, model: type[_P], kind: type[RescuesegError]) -> _P:
    todo = "Give the folder of a StarDist model in 3D, whole"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise kind("the file is far too large", where=str(path), todo=todo)
        return model.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise kind(f"it cannot be read: {error.strerror}", where=str(path), todo=todo) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise kind(f"'{place}': {message}", where=str(path), todo=todo) from error
    except (ValueError, RecursionError) as error:
        raise kind("it holds no JSON", where=str(path), todo=todo) from error
