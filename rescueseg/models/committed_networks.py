"""The networks of a finished model, for every family's predictor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import safetensors.torch
from torch import Tensor, nn

from rescueseg.errors import InferenceError
from rescueseg.models.ensemble_training import Plan
from rescueseg.models.files import model_errors, read_committed
from rescueseg.models.weights import split_members
from rescueseg.records import ModelReference
from rescueseg.storage import Storage

Network = TypeVar("Network", bound=nn.Module)


class CommittedNetworks(NamedTuple, Generic[Plan, Network]):
    """What a finished model is made of."""

    plan: Plan
    """As it was trained."""
    networks: list[Network]
    """With their weights; several for an ensemble."""
    format: int
    """Of the family's models; 0 for the first ones, which do not say it."""


def load_networks(
    storage: Storage, model: ModelReference, kind: type[Plan], build: Callable[[Plan, dict[str, Tensor]], Network]
) -> CommittedNetworks[Plan, Network]:
    """Load the networks of a finished model of a campaign; nothing is unpickled.

    Parameters
    ----------
    storage : Storage
        Of the campaign.
    model : ModelReference
        Which model.
    kind : type
        Of its plan.
    build : callable
        Returns a network of a plan with the weights given; a ValueError if they are another network's.

    Raises
    ------
    InferenceError
        If the files are not those that the reference's digest names, or they cannot be read.
    """
    weights, description = read_committed(storage, model)
    with model_errors(f"{storage.url}/{model.path}", InferenceError):
        plan = kind.model_validate(description["plan"])
        networks = [build(plan, own) for own in split_members(safetensors.torch.load(weights), plan.members)]
        return CommittedNetworks(plan, networks, int(description.get("format", 0)))
