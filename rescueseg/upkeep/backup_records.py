"""What a backup consists of, and where its parts lie.

::

    objects/ab/abcdef…          the content of a file, named by its sha256; backups share what did not change
    backups/20261129T094501.000000Z.json   one backup: every file's path, sha256 and size; written last
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import StorageError, storage_errors
from rescueseg.records import Record
from rescueseg.storage import Storage, file_digest

DatabaseKind = Literal["sqlite", "postgresql"]


class BackupFile(Record):
    """One file of a backup."""

    path: str
    """Below the campaign."""
    sha256: str
    size: int
    """Bytes."""
    stamp: str = ""
    """When the source was last written, as its file system says it: what is unchanged is not read again."""


class Backup(Record):
    """One backup of a campaign."""

    campaign: str
    """Its name."""
    campaign_id: str = ""
    """Its id; empty of a campaign of an earlier version."""
    url: str
    """Where it lay."""
    made_at: datetime
    version: str
    """Of rescueseg."""
    database: DatabaseKind
    database_sha256: str
    """Of the copy of the queue's database."""
    database_size: int
    files: tuple[BackupFile, ...]
    left_out: tuple[str, ...] = ()
    """Files that could not be stored, each with the reason; none that the campaign needs."""
    seconds: float = Field(ge=0)

    @property
    def size(self) -> int:
        """Bytes of all that it holds."""
        return self.database_size + sum(file.size for file in self.files)


class BackupFolder:
    """A folder that holds the backups of a campaign.

    Parameters
    ----------
    path : Path
        It is made with the first backup.
    """

    def __init__(self, path: Path) -> None:
        if "://" in str(path) or ":/" in str(path):
            raise StorageError("backups go into a local folder", where=str(path), todo="Name a folder of this machine")
        self.path = path.resolve()
        if self.path.exists() and not self.path.is_dir():
            raise StorageError("this is no folder", where=str(path), todo="Name a folder for the backups")
        self._storage = Storage(str(self.path))

    def names(self) -> list[str]:
        """Return the names of the backups, oldest first."""
        return [name.removesuffix(".json") for name in self._storage.list("backups") if _NAME.fullmatch(name)]

    def read(self, name: str = "") -> Backup:
        """Return a backup, the latest when no name is given.

        Raises
        ------
        StorageError
            If there is none of the name, or what says what it holds is damaged.
        """
        names = self.names()
        if not names or (name and name not in names):
            raise StorageError(
                f"there is no backup{f' {name}' * bool(name)}",
                where=str(self.path),
                todo=f"Backups: {', '.join(names) or 'none yet; make one with rescueseg backup CAMPAIGN OUT'}",
            )
        path = f"backups/{name or names[-1]}.json"
        return _BACKUP.parse(self._storage.read_json(path), self._storage.path(path))

    def write(self, backup: Backup) -> str:
        """Write what a backup holds, and return its name: from then on it is one."""
        name = f"{backup.made_at:%Y%m%dT%H%M%S.%fZ}"
        self._storage.write_json(f"backups/{name}.json", backup.to_json())
        return name

    def object(self, sha256: str) -> Path:
        """Return where the content of that digest lies."""
        return self.path / "objects" / sha256[:2] / sha256

    @contextmanager
    def new_object(self) -> Iterator[Path]:
        """Yield a place to write content at before its digest is known; what was not moved from there is removed."""
        folder = self.path / "objects"
        with storage_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f".{os.getpid()}.{os.urandom(4).hex()}.part"
            try:
                yield part
            finally:
                with suppress(FileNotFoundError):
                    part.unlink()

    def holds(self, sha256: str, size: int, *, anew: bool = False) -> bool:
        """Tell whether content is there, by its size; with `anew`, by its digest."""
        path = self.object(sha256)
        if not path.is_file() or path.stat().st_size != size:
            return False
        return not anew or file_digest(str(path)) == sha256

    def keep(self, part: Path, sha256: str, *, anew: bool = False) -> None:
        """Move content to its place; nothing happens where the same lies there, see `holds`."""
        target = self.object(sha256)
        if self.holds(sha256, part.stat().st_size, anew=anew):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(0o400)
        with part.open("rb") as file:  # what the backup will name must outlast a power cut
            os.fsync(file.fileno())
        part.replace(target)


_BACKUP = RecordFile("backup", Backup)
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z\.json")
