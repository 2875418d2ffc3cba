"""A few arrays in one file, with the digest of what they were made of."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.delivery.block_pass import Arrays
from rescueseg.storage import Storage

_DIGEST = "digest of the file"


def write_arrays(storage: Storage, name: str, digest: str, arrays: Arrays) -> None:
    """Write arrays by name; the file is there as a whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{**arrays, _DIGEST: np.asarray(digest)})
    storage.write_bytes(name, buffer.getvalue())


def read_arrays(storage: Storage, name: str, digest: str) -> dict[str, npt.NDArray[Any]] | None:
    """Return what `write_arrays` wrote, None where it did not or of something else."""
    if not storage.exists(name):
        return None
    with np.load(io.BytesIO(storage.read_bytes(name)), allow_pickle=False) as file:
        arrays = dict(file)
    return arrays if str(arrays.pop(_DIGEST, "")) == digest else None
