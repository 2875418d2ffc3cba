"""A file that a library writes by its path, all of it or nothing, also where the delivery lies on an object store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rescueseg.errors import storage_errors
from rescueseg.storage import Storage, replace_atomically


@contextmanager
def whole_file(storage: Storage, relative: str) -> Iterator[Path]:
    """Yield where to write a file on this machine; once it is written, it takes its place.

    Where the storage is remote the file is written to the folder for temporary files and then uploaded.

    Parameters
    ----------
    storage : Storage
        Where it goes.
    relative : str
        Its path there.

    Yields
    ------
    Path
        A new name with the same ending.

    Raises
    ------
    StorageError
        If the disk is full.
    """
    path = storage.path(relative)
    ending = "".join(Path(relative).suffixes[-2:])
    with storage_errors(path):
        if storage.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(Path(path), ending=ending) as part:
                yield part
            return
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, f"file{ending}")
            yield part
            storage.fs.put_file(str(part), path)
