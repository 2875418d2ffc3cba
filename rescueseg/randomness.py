"""Random generators that depend on what they are for, not on what was drawn before."""

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


def keyed_generator(*key: int | str) -> np.random.Generator:
    """Return the counter-based generator (Philox) of a key.

    Parameters
    ----------
    *key : int or str
        Such as (seed, "windows", step); equal keys give equal streams, in any process and any order.

    References
    ----------
    Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, doi:10.1145/2063384.2063405
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")))
