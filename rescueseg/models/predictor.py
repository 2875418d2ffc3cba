"""What the block engine asks of a model: members of a predictive distribution, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX, Spacing
from rescueseg.records import ModelReference, Record
from rescueseg.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

Float32 = npt.NDArray[np.float32]


PROBABILITY = "probability"
"""Name of the output that every predictor has: the class probabilities."""
EAGER = "eager"
"""Name of the way of computing a forward pass that every machine can do: see `rescueseg.models.forward`."""
BORDER_DISTANCE = "border_distance"
"""Name of the output of models that tell touching objects apart: the distance to the border of a voxel's own object, in
micrometre, up to the largest one that the model has learned (`border_um` of its plan)."""
OBJECT_PROBABILITY = "object_probability"
"""Name of the output that says how surely a voxel is in the middle of an object, 0…1."""
STAR_DISTANCE = "star_distance"
"""Name of the output of models of star-convex objects: how far the border of a voxel's own object is along each ray, in
micrometre; see `rescueseg.models.polyhedra`."""
FLOW = "flow"
"""Name of the output of models that say of each voxel in which direction the middle of its own object lies: components along
z, y, x, without a unit, of unit length where the model is sure, 0 outside."""
AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""Directions of a flow with one component along each of z, y, x."""


Values: TypeAlias = "Tensor | Float32"
"""What a member says of each voxel."""


class Output(Record):
    """Something that a model says of each voxel, and a map of each volume.

    Windows may be resampled on the way into a model and its outputs on the way back, so lengths are in micrometre.
    """

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    """Of the output and of its map."""
    channels: Annotated[int, Field(ge=1)]
    kind: Literal["probability", "distance", "flow", "share"]
    """"probability" is the class probabilities alone; "distance" is not negative; "flow" is made of components of vectors;
    "share" is a number from 0 to 1."""
    directions: tuple[tuple[float, float, float], ...] = ()
    """Direction (z, y, x) of each channel: of the ray whose length a distance is, or along which the component of a flow
    is; none where a distance is that to the nearest border, whatever its direction."""

    at_peaks_of: str = ""
    """Output of one channel, named before this one, at whose peaks (`rescueseg.voxels.peaks`) alone this one is kept in maps;
    empty where it is kept everywhere. What is said of objects, with many channels, is needed once per object."""

    sampled: bool = True
    """Whether dropout samples differ in it; if not, all samples of a network and a symmetry say the same."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what outputs of earlier versions did not have, where it is the default, so that older digests stay."""
        later = {"at_peaks_of": "", "sampled": True}
        return {key: value for key, value in handler(self).items() if key not in later or value != later[key]}

    @model_validator(mode="after")
    def _has_a_direction_per_channel(self) -> Self:
        directed = {"distance": (0, self.channels), "flow": (self.channels,)}
        needed = directed.get(self.kind, (0,))
        if len(self.directions) not in needed:
            raise ValueError(f"a {self.kind} of {self.channels} channels cannot have {len(self.directions)} directions")
        return self


def class_probabilities(n_classes: int) -> Output:
    """Return the output that every predictor has.

    Examples
    --------
    >>> class_probabilities(2).channels
    3
    """
    return Output(name=PROBABILITY, channels=n_classes + 1, kind="probability")


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

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What each member holds: `class_probabilities` first, whatever else the model says behind it."""
        ...

    def window_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the window in voxels of a volume with this spacing (micrometre, zyx)."""
        ...

    def members(self, windows: Float32, keys: Sequence[int]) -> Iterator[tuple[Group, Mapping[str, Values]]]:
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
        member : mapping of str to Tensor or ndarray of float32, shape (n, channels, z, y, x)
            Each output by its name, best on the device that computed it, turned back into the frame of `windows`: with its
            directions, see `rescueseg.models.members.Symmetry.invert`. Class probabilities are background first and add up to one.
        """
        ...


@runtime_checkable
class ChoosesForward(Protocol):
    """A predictor that can compute its forward pass in several ways."""

    def choose_forward(self, windows: int, workers: int) -> str:
        """Return the name of the way for a job of so many windows, shared by so many processes."""
        ...


def forward_of(predictor: object, windows: int, workers: int) -> str:
    """Return the name of the way in which a predictor computes so many windows soonest; "eager" if it knows no other."""
    return predictor.choose_forward(windows, workers) if isinstance(predictor, ChoosesForward) else EAGER


PredictorFactory = Callable[[Storage, ModelReference, InferenceConfig, str], Predictor]
"""Builds a predictor from (storage of the campaign, model, settings, device)."""
