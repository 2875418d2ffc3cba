"""What the block engine asks of a model: members of a predictive distribution, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX, Spacing
from rescueseg.records import ModelReference

Float32 = npt.NDArray[np.float32]


class Group(NamedTuple):
    """What the Monte-Carlo samples of a member share."""

    network: int
    """Index in the ensemble."""
    symmetry: int
    """Index of the test-time symmetry."""


@runtime_checkable
class Predictor(Protocol):
    """A trained model that yields the members of its predictive distribution.

    Members are Monte-Carlo dropout samples under each test-time symmetry of each network of an ensemble. A member's
    dropout mask may depend only on the window's key, the network, the symmetry and the sample, so that results do not
    change with batching, blocks or workers.
    """

    @property
    def networks(self) -> int:
        """Number of networks: 1 unless the model is an ensemble."""
        ...

    @property
    def n_classes(self) -> int:
        """Number of foreground classes K."""
        ...

    @property
    def in_channels(self) -> int:
        """Number of image channels C."""
        ...

    def window_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the window in voxels of a volume with this spacing (micrometre, zyx)."""
        ...

    def members(self, windows: Float32, keys: Sequence[int]) -> Iterator[tuple[Group, Float32]]:
        """Yield one member at a time: all samples of a symmetry before the next one, all symmetries of a network likewise.

        Parameters
        ----------
        windows : ndarray of float32, shape (n, C, z, y, x)
            Normalised image windows of the shape that `window_zyx` returned.
        keys : sequence of int
            One key per window (63 bits); every random number of a window derives from its key.

        Yields
        ------
        group : Group
            Its network and its symmetry.
        probabilities : ndarray of float32, shape (n, K + 1, z, y, x)
            Class probabilities, background first, turned back into the frame of `windows`.
        """
        ...


PredictorFactory = Callable[[Campaign, ModelReference, InferenceConfig, str], Predictor]
"""Builds a predictor from (campaign, model, settings, device)."""
