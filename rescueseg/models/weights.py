"""The weights of networks, whatever their family: the first ones, those of a model, and an ensemble's in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rescueseg.randomness import keyed_generator


@contextmanager
def first_weights(seed: int) -> Iterator[None]:
    """Let the weights of layers that are made here follow from a seed; the global generator is left as it was.

    Examples
    --------
    >>> with first_weights(7):
    ...     first = nn.Linear(2, 2)
    >>> with first_weights(7):
    ...     second = nn.Linear(2, 2)
    >>> torch.equal(first.weight, second.weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed_generator(seed, "weights").integers(2**62)))
        yield


def set_all_weights(network: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Load all weights of a network.

    Parameters
    ----------
    network : nn.Module
        Gets them.
    own : mapping of str to Tensor
        Those it has, each under one name.
    weights : mapping of str to Tensor
        Of the same names and shapes.

    Raises
    ------
    ValueError
        If names or shapes are those of another architecture.
    """
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise ValueError("the weights are those of another architecture")
    network.load_state_dict(weights, strict=False)


def join_members(weights: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights of several networks in one mapping; those of a single one keep their names.

    Examples
    --------
    >>> import torch
    >>> first, second = {"head.bias": torch.zeros(2)}, {"head.bias": torch.ones(2)}
    >>> sorted(join_members([first, second]))
    ['member0.head.bias', 'member1.head.bias']
    """
    if len(weights) == 1:
        return weights[0]
    return {f"member{i}.{name}": tensor for i, own in enumerate(weights) for name, tensor in own.items()}


def split_members(weights: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return the weights of each network, as `join_members` got them.

    Examples
    --------
    >>> import torch
    >>> weights = join_members([{"head.bias": torch.zeros(2)}, {"head.bias": torch.ones(2)}])
    >>> [member["head.bias"].tolist() for member in split_members(weights, 2)]
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if count == 1:
        return [weights]
    prefixes = [f"member{i}." for i in range(count)]
    return [{n.removeprefix(p): t for n, t in weights.items() if n.startswith(p)} for p in prefixes]
