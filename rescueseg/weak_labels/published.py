"""Weights from elsewhere as weak labellers: which method uses them, what must be given, and what a person is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rescueseg.errors import WeakLabelError
from rescueseg.models.registry import resolve_device
from rescueseg.records import VolumeRecord
from rescueseg.storage import digest_json, file_digest
from rescueseg.weak_labels.base import Float32, WeakLabeller
from rescueseg.weak_labels.cellpose_sam import CHANNELS, PIXELS, CellposeSamLabeller, check_environment
from rescueseg.weak_labels.choice import Sources, UsedWeights
from rescueseg.weak_labels.flow_objects import PERCENTILES
from rescueseg.weak_labels.intensities import PercentileScaling


@dataclass(frozen=True)
class Published:
    """Weights that were read, and what labels with them.

    Parameters
    ----------
    used : UsedWeights
        What is kept of them beside the masks.
    notes : tuple of str
        What a person is told.
    labeller : callable
        Returns the labeller of a volume, from its record and parts of its image, normalised czyx.
    """

    used: UsedWeights
    notes: tuple[str, ...]
    labeller: Callable[[VolumeRecord, Sequence[Float32]], WeakLabeller]

    @property
    def digest(self) -> str:
        """Of all that its masks depend on beside the volumes."""
        return digest_json([self.used.method, self.used.weights_digest, self.used.diameter_um])


def method_of(sources: Sources) -> str:
    """Return the method that uses the weights a person gave; empty where none were given."""
    if not sources.weights:
        return ""
    if sources.python:
        return "cellpose-sam"
    return "stardist" if Path(sources.weights).is_dir() else "cellpose"


def open_published(method: str, sources: Sources, volumes: Iterable[VolumeRecord]) -> Published:
    """Read weights.

    Parameters
    ----------
    method : str
        One of `PUBLISHED`.
    sources : Sources
        Where they are.
    volumes : iterable of VolumeRecord
        That they are for; their channels count.

    Raises
    ------
    WeakLabelError
        If something is not given or not installed, the weights cannot be used, or take other channels.
    """
    return PUBLISHED[method](sources, tuple(volumes))


def _open_cellpose(sources: Sources, volumes: Sequence[VolumeRecord]) -> Published:
    _require(sources, "cellpose", "--weights FILE --diameter UM", diameter=True, package="cellpose")
    from rescueseg.models.cellpose.published import load_published
    from rescueseg.models.cellpose.weights_file import read_weights
    from rescueseg.weak_labels.cellpose import CellposeLabeller

    weights = read_weights(sources.weights, WeakLabelError)
    network, diameter, device = load_published(weights), sources.diameter_um or 0.0, resolve_device("auto")
    for volume in volumes:
        if volume.channels > weights.in_channels:
            raise WeakLabelError(
                f"the network takes {weights.in_channels} channels, volume '{volume.volume_id}' has {volume.channels}",
                where=sources.weights,
                todo="Use weights of as many channels, or import the channels that matter alone",
            )

    def labeller(volume: VolumeRecord, parts: Sequence[Float32]) -> WeakLabeller:
        scaling = PercentileScaling.of(parts, volume.normalisation, *PERCENTILES)
        return CellposeLabeller(network, weights, diameter, scaling, device)

    used = _used("cellpose", sources, weights.digest, _CELLPOSE_LICENCE)
    seen = f"Objects of {diameter:g} µm are shown to the network {weights.pixels:g} pixels wide, as its weights say"
    return Published(used, (_told(used), seen), labeller)


def _open_stardist(sources: Sources, volumes: Sequence[VolumeRecord]) -> Published:
    _require(sources, "stardist", "--weights FOLDER", diameter=False, package="stardist")
    import torch

    from rescueseg.models.stardist.published import load_network
    from rescueseg.models.stardist.published_config import WEIGHTS_FILE, rays_of, read_config
    from rescueseg.weak_labels.stardist import PERCENTILES as OWN
    from rescueseg.weak_labels.stardist import StarDistLabeller

    folder, device = sources.weights, resolve_device("auto")
    config, thresholds = read_config(folder, WeakLabelError)
    rays = rays_of(config, folder, WeakLabelError)
    network = load_network(folder, config, WeakLabelError).to(torch.device(device))
    for volume in volumes:
        if volume.channels != config.n_channel_in:
            raise WeakLabelError(
                f"the network takes {config.n_channel_in} channels, volume '{volume.volume_id}' has {volume.channels}",
                where=folder,
                todo="Use a model of as many channels",
            )

    def labeller(volume: VolumeRecord, parts: Sequence[Float32]) -> WeakLabeller:
        scaling = PercentileScaling.of(parts, volume.normalisation, *OWN)
        return StarDistLabeller(network, rays, thresholds, scaling, device)

    parts = [config.model_dump(mode="json"), thresholds.model_dump(mode="json")]
    digest = digest_json([*parts, file_digest(str(Path(folder, WEIGHTS_FILE)))])
    used = _used("stardist", sources, digest, _STARDIST_LICENCE)
    return Published(used, (_told(used), _VOXELS), labeller)


def _open_cellpose_sam(sources: Sources, volumes: Sequence[VolumeRecord]) -> Published:
    options = "--weights FILE --diameter UM --python PYTHON"
    _require(sources, "cellpose-sam", options, diameter=True)
    if not sources.python:
        raise WeakLabelError("the method 'cellpose-sam' lacks what it needs", where="--method", todo=f"Give {options}")
    python, diameter = sources.python, sources.diameter_um or 0.0
    check_environment(python)
    digest = file_digest(sources.weights)
    for volume in volumes:
        if volume.channels > CHANNELS:
            raise WeakLabelError(
                f"the network takes {CHANNELS} channels, volume '{volume.volume_id}' has {volume.channels}",
                where=sources.weights,
                todo="Import the channels that matter alone",
            )

    def labeller(volume: VolumeRecord, parts: Sequence[Float32]) -> WeakLabeller:
        scaling = PercentileScaling.of(parts, volume.normalisation, *PERCENTILES)
        return CellposeSamLabeller(python, sources.weights, diameter, scaling)

    used = _used("cellpose-sam", sources, digest, _CELLPOSE_LICENCE)
    seen = f"Objects of {diameter:g} µm are shown to the network {PIXELS:g} pixels wide; without a GPU it takes minutes per patch"
    return Published(used, (_told(used), seen), labeller)


def _require(sources: Sources, method: str, options: str, *, diameter: bool, package: str = "") -> None:
    """Refuse a method whose weights, diameter or package are missing."""
    if not sources.weights or (diameter and not sources.diameter_um):
        raise WeakLabelError(f"the method '{method}' lacks what it needs", where="--method", todo=f"Give {options}")
    if package and find_spec(package) is None:
        raise WeakLabelError(
            f"the method '{method}' needs the package {package}",
            where="--method",
            todo=f"Install it with: pip install 'rescueseg[{package}]'",
        )


def _used(method: str, sources: Sources, digest: str, licence: str) -> UsedWeights:
    return UsedWeights(
        method=method,
        weights=Path(sources.weights).name,
        weights_digest=digest,
        licence=sources.licence or licence,
        diameter_um=sources.diameter_um,
    )


def _told(used: UsedWeights) -> str:
    return f"Licence of the weights: {used.licence}"


_CELLPOSE_LICENCE = (
    "published Cellpose weights are trained on data under CC-BY-NC: whether your use is allowed is for you to check, and "
    "weights of your own are under the terms that you set"
)
_STARDIST_LICENCE = (
    "the folder does not say it: whether your use of a published model, and of the data that it was trained on, is allowed "
    "is for you to check"
)
_VOXELS = "StarDist's network sees voxels as they are: it finds objects about as many voxels wide as those that it has learned from"
PUBLISHED: Mapping[str, Callable[[Sources, Sequence[VolumeRecord]], Published]] = {
    "cellpose": _open_cellpose,
    "stardist": _open_stardist,
    "cellpose-sam": _open_cellpose_sam,
}
"""By method. They know foreground alone, and number its objects."""
