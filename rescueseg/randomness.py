"""Random numbers that depend on what they are for, not on what was drawn before.

No other module makes a generator; torch's own are seeded in `rescueseg.models`, with numbers drawn here.
"""

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

    Examples
    --------
    >>> random_generator(7, "holdout").integers(100, size=3).tolist()
    [6, 31, 89]
    >>> random_generator(7, "holdout").integers(100, size=3).tolist()
    [6, 31, 89]
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

    Examples
    --------
    The windows of a training step do not depend on the steps before:

    >>> keyed_generator(7, "windows", 0).integers(100, size=3).tolist()
    [44, 10, 6]
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")))


def seeded_generator(*seed: int) -> np.random.Generator:
    """Return numpy's own generator of one or several numbers, for streams that were begun without keys.

    Parameters
    ----------
    *seed : int
        Not negative. New streams take `random_generator`, whose keys say what the numbers are for.

    Examples
    --------
    >>> seeded_generator(0).integers(100, size=3).tolist()
    [85, 63, 51]
    """
    return np.random.default_rng(seed)


def seed_numpy(seed: int) -> None:
    """Seed numpy's global generator, for libraries that draw from it.

    Parameters
    ----------
    seed : int
        From 0 to 2³²-1, such as a number that `keyed_generator` gave.
    """
    np.random.seed(seed)


def window_key(seed: int, volume_id: str, index: int) -> int:
    """Return the 63-bit key from which every random number of one inference window derives.

    Parameters
    ----------
    seed : int
        Seed of the campaign.
    volume_id : str
        Volume the window lies in.
    index : int
        Index in the volume's global window grid.

    Examples
    --------
    >>> window_key(0, "stack", 0), window_key(0, "stack", 1)
    (572847468554575151, 2264963790854255190)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{volume_id}/{index}".encode()).digest()[:8], "big") >> 1
