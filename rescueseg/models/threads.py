"""The number of threads that a network is computed with.

oneDNN plans an operation for a number of threads, which wait for one another. OpenMP may start fewer where it adjusts their
number to the load of the machine: the operation then waits for ever. It does so where `OMP_DYNAMIC` is set, or where a
library switches it on, as the OpenCV inside topolosses does when it is imported.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from threadpoolctl import threadpool_info


def set_threads(count: int) -> None:
    """Set the number of threads of this thread's operations, and keep OpenMP from starting fewer."""
    torch.set_num_threads(count)
    keep_threads()


def keep_threads() -> None:
    """Keep OpenMP from starting fewer threads than an operation of this thread asks for."""
    for runtime in _runtimes():
        runtime.omp_set_dynamic(0)


@lru_cache(maxsize=1)
def _runtimes() -> tuple[ctypes.CDLL, ...]:
    """Return the OpenMP runtimes that were loaded with torch."""
    return tuple(ctypes.CDLL(info["filepath"]) for info in threadpool_info() if info["user_api"] == "openmp")
