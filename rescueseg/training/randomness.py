"""Random numbers keyed by what they are for, so that nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


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
