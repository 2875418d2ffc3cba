"""Reading files from unknown sources: never more bytes than labels of the patch can need."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path
from typing import IO

from rescueseg.errors import LabelError

HEAD_BYTES = 1 << 20
"""Most bytes that a header with all its extensions may take."""


def most_bytes(voxels: int) -> int:
    """Return the largest size in bytes of an uncompressed label file of a patch: 8 bytes a voxel and a header.

    Examples
    --------
    >>> most_bytes(32**3) - HEAD_BYTES
    262144
    """
    return 8 * voxels + HEAD_BYTES


def too_large(where: str = "") -> LabelError:
    """Return the error for a file that unpacks to more than its patch."""
    return LabelError(
        "the file is larger than a mask of its patch can be",
        where=where,
        todo="Hand in the mask of this patch, unresampled and uncropped",
    )


def read_file(path: Path, limit: int, *, gzipped: bool = False) -> bytes:
    """Read a whole file, unpacked.

    Raises
    ------
    LabelError
        If it holds more than `limit` bytes.
    OSError, EOFError, zlib.error
        If it is damaged.
    """
    with gzip.open(path) if gzipped else path.open("rb") as file:
        return read_stream(file, limit)


def read_stream(file: IO[bytes] | gzip.GzipFile, limit: int) -> bytes:
    """Read to the end of a stream; errors as in `read_file`."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise too_large()
    return data


def unpack(data: bytes, encoding: str, limit: int) -> bytes:
    """Undo the encoding of NRRD voxels: raw, gzip or bzip2.

    Raises
    ------
    LabelError
        If the encoding is another, or the voxels are more than `limit` bytes.
    OSError, EOFError, zlib.error
        If they are damaged.
    """
    if encoding == "raw":
        plain = data[: limit + 1]
    elif encoding in ("gzip", "gz"):
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        plain = inflate.decompress(data, limit + 1)
        if len(plain) <= limit and not inflate.eof:
            raise EOFError("the compressed voxels end too early")
    elif encoding in ("bzip2", "bz2"):
        expand = bz2.BZ2Decompressor()
        plain = expand.decompress(data, limit + 1)
        if len(plain) <= limit and not expand.eof:
            raise EOFError("the compressed voxels end too early")
    else:
        raise LabelError(f"the encoding '{encoding}' is not read", todo="Save the mask raw or with gzip")
    if len(plain) > limit:
        raise too_large()
    return plain
