"""Random generators that depend on names, not on what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np

from rescueseg.storage import canonical_json


def random_generator(*keys: int | str) -> np.random.Generator:
    """Return a generator seeded by the sha256 of its keys.

    Parameters
    ----------
    *keys : int or str
        What it is for, beginning with the campaign's seed: the same keys give the same numbers on every machine.
    """
    digest = hashlib.sha256(canonical_json(list(keys)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
