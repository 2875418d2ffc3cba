"""The weights of an ensemble in one file, for every family."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


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
