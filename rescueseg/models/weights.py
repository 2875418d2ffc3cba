"""What the weights of networks have in common, whatever family they are of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def join_members(weights: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights of several networks under one roof; those of a single one keep their names."""
    if len(weights) == 1:
        return weights[0]
    return {f"member{i}.{name}": tensor for i, own in enumerate(weights) for name, tensor in own.items()}


def split_members(weights: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return what `join_members` joined."""
    if count == 1:
        return [weights]
    prefixes = [f"member{i}." for i in range(count)]
    return [{n.removeprefix(p): t for n, t in weights.items() if n.startswith(p)} for p in prefixes]
