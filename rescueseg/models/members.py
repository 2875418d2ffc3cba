"""What predictors share: a loop over networks, over symmetries of the window, and over dropout samples."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX, Spacing, resampled_shape
from rescueseg.models.forward import pad_batch
from rescueseg.models.forward_choice import Ready, choose, set_up_or_eager
from rescueseg.models.forward_speed import Subject, Work
from rescueseg.models.nnunet.plan import NnUNetNetwork
from rescueseg.models.precision import Precision, autocast, choose_precision
from rescueseg.models.predictor import PROBABILITY, Group, Output, class_probabilities
from rescueseg.models.resample import Resampling, resample
from rescueseg.models.split_network import SampleKey, SplitNetwork
from rescueseg.models.threads import keep_threads
from rescueseg.models.trial import Trial
from rescueseg.models.unet.plan import NetworkPlan

_log = logging.getLogger(__name__)

BATCH_VOXELS = 250_000
"""Voxels of the windows that pass through a network together on a CPU in bfloat16 (at least one window); more is no faster."""

_SAME_DIRECTION = 1e-6
"""Directions that differ by no more along any axis are the same."""
GPU_BATCH_VOXELS = 1_000_000
"""Voxels of the windows that pass together on a GPU (at least one window): its memory must hold what they become."""


@dataclass(frozen=True)
class Symmetry:
    """A turn of the window that costs no interpolation: y and x exchanged or not, then flips."""

    transposed: bool
    flipped_axes: tuple[int, ...]
    """Of a tensor (n, c, z, y, x)."""

    def apply(self, tensor: Tensor) -> Tensor:
        """Turn a tensor (n, c, z, y, x)."""
        turned = tensor.transpose(3, 4) if self.transposed else tensor
        return turned.flip(self.flipped_axes) if self.flipped_axes else turned

    def invert(self, tensor: Tensor, output: Output | None = None) -> Tensor:
        """Turn it back, and with an output that has directions its channels too: see `held_by`."""
        turned = tensor.flip(self.flipped_axes) if self.flipped_axes else tensor
        turned = turned.transpose(3, 4) if self.transposed else turned
        return turned if output is None else self.turn_directions(turned, output)

    def turn_directions(self, tensor: Tensor, output: Output) -> Tensor:
        """Return an output whose voxels were turned back with its directions turned back, too; as it is if it has none."""
        if not output.directions:
            return tensor
        channels, signs = zip(*self.held_by(output), strict=True)
        turned = tensor[:, list(channels)]
        return turned if min(signs) > 0 else turned * tensor.new_tensor(signs).view(1, -1, 1, 1, 1)

    def held_by(self, output: Output) -> tuple[tuple[int, int], ...]:
        """Return which channel of the turned frame holds each channel of an output, and with which sign.

        A ray is held by the ray that lies where it was turned to. So is the component of a flow, or by the one along the
        opposite direction, which then has the other sign.

        Raises
        ------
        ValueError
            If there is no such channel: the output has another set of directions in the turned frame.

        Examples
        --------
        Mirrored along x, the x component of a flow changes its sign, and rays to the left and to the right change places:

        >>> from rescueseg.models.predictor import AXES
        >>> mirror = Symmetry(False, (4,))
        >>> mirror.held_by(Output(name="flow", channels=3, kind="flow", directions=AXES))
        ((0, 1), (1, 1), (2, -1))
        >>> mirror.held_by(Output(name="rays", channels=2, kind="distance", directions=((0, 0, 1), (0, 0, -1))))
        ((1, 1), (0, 1))
        """
        return _held_by(self, output)

    def suits(self, output: Output) -> bool:
        """Tell whether an output can be turned back."""
        try:
            self.held_by(output)
        except ValueError:
            return False
        return True


@lru_cache(maxsize=64)
def _held_by(symmetry: Symmetry, output: Output) -> tuple[tuple[int, int], ...]:
    directions = np.asarray(output.directions, np.float64).reshape(-1, 3)
    turned = directions[:, [0, 2, 1]] if symmetry.transposed else directions.copy()
    turned[:, [axis - 2 for axis in symmetry.flipped_axes]] *= -1
    found: list[tuple[int, int]] = []
    for wanted in turned:
        alike, opposite = (np.abs(directions - s * wanted).max(axis=1) <= _SAME_DIRECTION for s in (1, -1))
        if alike.any():
            found.append((int(alike.argmax()), 1))
        elif output.kind == "flow" and opposite.any():
            found.append((int(opposite.argmax()), -1))
        else:
            raise ValueError(f"the output '{output.name}' has no channel along {wanted.tolist()}")
    return tuple(found)


def symmetries(count: int, square: bool, outputs: Sequence[Output] = ()) -> tuple[Symmetry, ...]:
    """Return up to `count` symmetries: the identity, the half turn in the plane, then the others.

    Parameters
    ----------
    count : int
        Of symmetries; there are no more than 8, or 16 where y and x may be exchanged.
    square : bool
        Whether y and x may be exchanged.
    outputs : sequence of Output
        Of the model; symmetries in which one of them cannot be turned back are left out.

    Examples
    --------
    Axes 2, 3 and 4 of a tensor (n, c, z, y, x) are z, y and x:

    >>> [symmetry.flipped_axes for symmetry in symmetries(3, square=False)]
    [(), (3, 4), (2,)]
    >>> len(symmetries(99, square=False)), len(symmetries(99, square=True))
    (8, 16)
    """
    flips = [(), (3, 4), (2,), (2, 3, 4), (4,), (3,), (2, 4), (2, 3)]
    exchanges = (False, True) if square else (False,)
    group = [Symmetry(transposed, axes) for transposed, axes in itertools.product(exchanges, flips)]
    return tuple([symmetry for symmetry in group if all(symmetry.suits(output) for output in outputs)][:count])


@dataclass(frozen=True)
class NetworkInput:
    """What the networks of a predictor take.

    Parameters
    ----------
    spacing_um_zyx : tuple of float
        Working spacing.
    window_zyx : tuple of int
        In voxels of the working spacing.
    square : bool
        Whether y and x may be exchanged.
    axes : tuple of int
        Which of z, y, x the networks' first, second and third axis are.
    resampling : callable
        What brings windows to their size, and what the networks say back: as it was when they learned.
    """

    spacing_um_zyx: Spacing
    window_zyx: ZYX
    square: bool
    axes: tuple[int, int, int] = (0, 1, 2)
    resampling: Resampling = resample


class NetworksPredictor:
    """A `Predictor` of one or more networks.

    Parameters
    ----------
    networks : sequence of SplitNetwork
        With their weights; more than one for an ensemble.
    plan : NetworkPlan or NnUNetNetwork
        Of each of them.
    config : InferenceConfig
        Samples and symmetries, and the way in which the forward pass is computed: "auto" is the eager one here, for it is
        `choose_forward` that knows how much there is to compute.
    device : str
        A torch device.
    network_input : NetworkInput
        Spacing, size and axes of their input.
    """

    def __init__(
        self,
        networks: Sequence[SplitNetwork],
        plan: NetworkPlan | NnUNetNetwork,
        config: InferenceConfig,
        device: str,
        network_input: NetworkInput,
    ) -> None:
        self._device = torch.device(device)
        self._networks = [network.to(self._device).eval().requires_grad_(False) for network in networks]
        self._plan, self._axes = plan, network_input.axes
        self.n_classes, self.in_channels = plan.n_classes, plan.in_channels
        self._spacing, self._window = network_input.spacing_um_zyx, network_input.window_zyx
        self._resample = network_input.resampling
        self.symmetries = symmetries(config.tta_symmetries, network_input.square, self.outputs)
        self._samples = config.mc_samples if plan.dropout > 0 else 1  # without dropout all samples are the same
        self._forward = config.forward
        self._ready: dict[torch.dtype | None, Ready] = {}

    @property
    def networks(self) -> int:
        """Number of networks: 1 unless the model is an ensemble."""
        return len(self._networks)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The class probabilities alone."""
        return (class_probabilities(self.n_classes),)

    def window_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the window, in voxels of a volume of that spacing, that fills the network's window."""
        return resampled_shape(self._window, self._spacing, spacing_um_zyx)

    def members(
        self, windows: npt.NDArray[np.float32], keys: Sequence[int]
    ) -> Iterator[tuple[Group, Mapping[str, Tensor]]]:
        """Yield (group, outputs by name, each (n, channels, z, y, x)), all dropout samples of a network and symmetry in a row.

        Windows of another size than the network's are resampled to it, and what it says back.
        """
        keep_threads()
        size = windows.shape[2:]
        images = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).to(self._device)
        images = self._resample(images, self._window)
        precision = self._precision()
        ready = self._ready_for(precision)
        parts = self._parts(len(images), precision, ready.batch)
        for (n, network), (index, symmetry) in itertools.product(enumerate(ready.networks), enumerate(self.symmetries)):
            with torch.inference_mode(), autocast(self._device, precision.dtype):
                turned = [pad_batch(symmetry.apply(images[part]), ready.batch) for part in parts]
                prepared = [self._prepare(network, part) for part in turned]
                shared = self._shared(network, prepared, [part.stop - part.start for part in parts], size, symmetry)
            for sample in range(self._samples):
                with torch.inference_mode():
                    sites = [(key, n, index, sample) for key in keys]
                    with autocast(self._device, precision.dtype):
                        said = [self._logits(network, p, sites[s]) for p, s in zip(prepared, parts, strict=True)]
                    logits = torch.cat(said) if len(said) > 1 else said[0]
                    member = self._outputs_of(symmetry.invert(logits).float(), size)
                yield Group(n, index), member | shared

    def _prepare(self, network: SplitNetwork, images: Tensor) -> tuple[Tensor, ...]:
        """Return what all samples of a network and a symmetry share; the network gets z, y, x in its own order."""
        return network.features(images.permute(0, 1, *(2 + axis for axis in self._axes)).contiguous())

    def _shared(
        self,
        network: SplitNetwork,
        prepared: Sequence[tuple[Tensor, ...]],
        counts: Sequence[int],
        size: Sequence[int],
        symmetry: Symmetry,
    ) -> dict[str, Tensor]:
        """Return the outputs by name that all samples of a network and a symmetry share; none here.

        Parameters
        ----------
        network : SplitNetwork
            Which network.
        prepared : sequence of tuple of Tensor
            What `_prepare` returned of each batch.
        counts : sequence of int
            How many windows each batch holds; it may have been filled up with more.
        size : sequence of int
            Of a window in voxels of its volume, zyx.
        symmetry : Symmetry
            The windows were turned by it; outputs are turned back, with their directions.
        """
        del network, prepared, counts, size, symmetry
        return {}

    def _logits(self, network: SplitNetwork, prepared: tuple[Tensor, ...], keys: Sequence[SampleKey]) -> Tensor:
        """Return the logits (n, channels, z, y, x) of one sample, dropout drawn from each window's own key.

        Behind those of the K + 1 classes come more channels where `_outputs_of` makes another output of them. There may be
        fewer keys than windows, where a batch was filled up.
        """
        logits = network.head(prepared, self._masks(network, keys, len(prepared[0])))[: len(keys)]
        return logits.permute(0, 1, *(2 + self._axes.index(axis) for axis in range(3)))

    def _masks(self, network: SplitNetwork, keys: Sequence[SampleKey], count: int) -> tuple[Tensor, ...] | None:
        """Return the dropout masks of a batch of `count` windows, of which those with a key matter; None without dropout."""
        if self._plan.dropout == 0:
            return None
        return tuple(pad_batch(mask, count) for mask in network.dropout_masks(keys, self._device))

    def choose_forward(self, windows: int, workers: int = 1) -> str:
        """Return the name of the way in which so many windows are computed soonest here, or the one that the settings name.

        Ways that are tried and fail are told once each.
        """
        keep_threads()
        work = Work(windows * len(self._networks) * len(self.symmetries), self._samples, workers)
        choice = choose(self._subject(self._precision()), self._forward, work)
        for note in choice.notes:
            _warn_once(note)
        return choice.name

    def _ready_for(self, precision: Precision) -> Ready:
        """Return what the passes are computed with, and say once if that is not what the settings name."""
        if precision.dtype not in self._ready:
            ready = set_up_or_eager(self._forward, self._subject(precision))
            if ready.note:
                _warn_once(ready.note)
            self._ready[precision.dtype] = ready
        return self._ready[precision.dtype]

    def _subject(self, precision: Precision) -> Subject:
        window = self._network_window
        on_cpu = self._device.type == "cpu"
        batch = 1 if on_cpu else batch_sizes(window, GPU_BATCH_VOXELS)[-1]
        eager_batch = batch_sizes(window)[-1] if on_cpu else batch
        return Subject(self._networks, self._plan, window, batch, eager_batch, self._device, precision.dtype)

    def _outputs_of(self, logits: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
        """Return the outputs by name, at a window's size in voxels of its volume: softmax of the logits, resampled to it."""
        return {PROBABILITY: torch.softmax(self._resample(logits, size), dim=1)}

    def _precision(self) -> Precision:
        """Return what the networks compute in, and say once if that is less than the hardware offers."""
        window = self._network_window
        trial = Trial(
            network=self._plan,
            window=window,
            batches=batch_sizes(window),
            threads=torch.get_num_threads(),
            backward=False,
        )
        precision = choose_precision(self._device, trial)
        if precision.note:
            _warn_once(precision.note)
        return precision

    @property
    def _network_window(self) -> ZYX:
        """The window along the networks' own axes."""
        return self._window[self._axes[0]], self._window[self._axes[1]], self._window[self._axes[2]]

    def _parts(self, count: int, precision: Precision, batch: int = 0) -> list[slice]:
        """Return how windows are grouped: by a fixed number or, on a GPU, by as many as its memory should hold.

        On a CPU they pass as they came, but in bfloat16 in numbers that were tried.
        """
        if not batch and self._device.type != "cpu":
            batch = batch_sizes(self._window, GPU_BATCH_VOXELS)[-1]
        if batch:
            return [slice(start, min(start + batch, count)) for start in range(0, count, batch)]
        if precision.dtype is None:
            return [slice(0, count)]
        parts, sizes = [slice(0, 0)], batch_sizes(self._window)
        while parts[-1].stop < count:
            start = parts[-1].stop
            parts.append(slice(start, start + max(n for n in sizes if n <= count - start)))
        return parts[1:]


def batch_sizes(window: ZYX, voxels: int | None = None) -> tuple[int, ...]:
    """Return the numbers of windows that a CPU passes through a network together: powers of two, in ascending order.

    Which code computes a convolution can depend on the number; any other is put together of these, which are all tried.

    Examples
    --------
    As many windows as hold 250,000 voxels together, and at least one:

    >>> batch_sizes((16, 64, 64))
    (1, 2)
    >>> batch_sizes((32, 128, 128))
    (1,)
    """
    largest = max(1, (voxels or BATCH_VOXELS) // math.prod(window))
    return tuple(2**power for power in range(largest.bit_length()))


@lru_cache(maxsize=256)
def _warn_once(note: str) -> None:
    _log.warning("%s", note)
