r"""How much the members of a predictive distribution disagree about objects, voxel by voxel. Pure functions.

Class probabilities cannot tell of it: where one member parts two nuclei that touch and another joins them, both are sure of
the foreground. What differs is which voxels belong together. Of ``n`` members let ``O_i(v)`` be the object that holds voxel
``v`` in member ``i``, as the set of its voxels. The disagreement is the mean over the pairs of members

.. math:: D(v) = \frac{2}{n (n - 1)} \sum_{i < j} d_{ij}(v)

of ``d = 1 − |O_i ∩ O_j| / |O_i ∪ O_j|`` where both have an object, 1 where one alone has, and 0 where neither has. Objects are
compared, never their numbers. It is 0 where all members have the same object or none, and 1 where no two of them agree at all.
Where ``k`` members have an object it is at least ``2 k (n − k) / (n (n − 1))``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def object_disagreement(numberings: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
    """Return the mean over pairs of members of 1 − IoU of the two objects that hold a voxel; see this module.

    Parameters
    ----------
    numberings : sequence of ndarray of integers, zyx
        Objects of the same voxels by each of two or more members: any numbers above 0, and 0 for the background.

    Returns
    -------
    ndarray of float32, zyx
        From 0 to 1.

    Raises
    ------
    ValueError
        If there are fewer than two members.

    Examples
    --------
    Two members part what the third one joins: two of three pairs disagree, the object of 2 voxels covers half of that of 4.
    The last voxel is an object of the third member alone.

    >>> parted, joined = np.array([[[1, 1, 2, 2, 0, 0]]]), np.array([[[5, 5, 5, 5, 0, 3]]])
    >>> (3 * object_disagreement([parted, parted, joined])).tolist()
    [[[1.0, 1.0, 1.0, 1.0, 0.0, 2.0]]]
    """
    if len(numberings) < 2:
        raise ValueError("a single member cannot disagree")
    shape = numberings[0].shape
    held = np.zeros(shape, np.bool_)
    for numbering in numberings:
        held |= numbering != 0
    at = np.flatnonzero(held)
    objects, sizes, kind_of = _kinds([numbering.reshape(-1)[at] for numbering in numberings])
    total = np.zeros(len(sizes))
    for a, b in itertools.combinations(objects, 2):
        total += _pair(a, b, sizes)
    result = np.zeros(shape, np.float32)
    pairs = len(numberings) * (len(numberings) - 1) // 2
    result.reshape(-1)[at] = (total / pairs).astype(np.float32)[kind_of]
    return result


def _kinds(numberings: Sequence[npt.NDArray[np.integer]]) -> tuple[list[Int64], Int64, Int64]:
    """Return the kinds of voxels: those of one kind lie in the same object of each member.

    Returns
    -------
    objects : list of ndarray of int64, (kinds,)
        Of each member the object of each kind, 0…m; 0 is the background.
    sizes : ndarray of int64, (kinds,)
        How many voxels are of each kind.
    kind_of : ndarray of int64, (voxels,)
        Kind of each voxel.
    """
    kind_of = np.zeros(len(numberings[0]), np.int64)
    objects: list[Int64] = []
    for numbering in numberings:
        numbers = numbering.astype(np.int64)
        span = int(numbers.max(initial=0)) + 1
        kinds, kind_of = np.unique(kind_of * span + numbers, return_inverse=True)
        earlier, own = np.divmod(kinds, span)
        objects = [*(of[earlier] for of in objects), own]
    return objects, np.bincount(kind_of, minlength=len(objects[0])), kind_of


def _pair(a: Int64, b: Int64, sizes: Int64) -> npt.NDArray[np.float64]:
    """Return 1 − IoU of the objects of two members that hold each kind of voxel, from the table of how they overlap."""
    shared, pair_of = np.unique(a * (int(b.max(initial=0)) + 1) + b, return_inverse=True)
    both = np.bincount(pair_of, sizes, len(shared))[pair_of]
    either = np.bincount(a, sizes)[a] + np.bincount(b, sizes)[b] - both
    apart = np.where((a > 0) & (b > 0), 1 - both / either, 1.0)
    apart[(a == 0) & (b == 0)] = 0
    return apart
