"""Folders outside a campaign that only their owner may enter: made closed, and refused where somebody else could reach in."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath

from rescueseg.errors import CampaignError, storage_errors
from rescueseg.storage import Storage, digest_json


def cache_folder() -> Path:
    """Return this user's folder for what can be made again; `XDG_CACHE_HOME` moves it."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def local_folder(storage: Storage, relative: str) -> Path:
    """Return a local folder for a path below a campaign; of a remote campaign, a private one in the user's cache.

    Raises
    ------
    CampaignError
        If the path leaves the campaign, or somebody else could reach into the folder in the cache.
    """
    inside = storage.path(relative)
    if storage.is_local:
        return Path(inside)
    return private_folder(
        cache_folder(),
        f"rescueseg-work/{digest_json(storage.url)[:16]}/{relative}",
        todo="Remove it after a look at what it holds, or set XDG_CACHE_HOME to a folder of your own",
    )


def private_folder(base: Path, relative: str, todo: str) -> Path:
    """Return a folder below `base` that only this user can enter; what is missing is made.

    Every folder on the way from `base` is opened without following a link and looked at before anything is made in it.

    Parameters
    ----------
    base : Path
        A folder of this user or the system's; made when missing.
    relative : str
        The path below it, at least one name.
    todo : str
        What the person can do about a folder that is refused.

    Raises
    ------
    CampaignError
        If `base` cannot be used, or a folder on the way is a link or no folder, belongs to somebody else, or lets
        others in.
    StorageError
        If the disk is full or not writable.
    """
    try:
        base.mkdir(parents=True, mode=0o700, exist_ok=True)
        folder = base.resolve()
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CampaignError(f"the folder cannot be used: {error.strerror}", where=str(base), todo=todo) from error
    try:
        if _is_open_to_others(os.fstat(here)):
            raise CampaignError("others can exchange what lies in the folder", where=str(folder), todo=todo)
        for name in PurePosixPath(relative).parts:
            folder /= name
            below = _open(folder, name, here, todo)
            os.close(here)
            here = below
    finally:
        os.close(here)
    return folder


def _open(folder: Path, name: str, parent: int, todo: str) -> int:
    """Return a descriptor of a folder in `parent`, made when missing and checked."""
    with storage_errors(str(folder)):
        with suppress(FileExistsError):
            os.mkdir(name, mode=0o700, dir_fd=parent)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except NotADirectoryError as error:  # a link to a folder too
            raise CampaignError("a link or a file lies where a folder belongs", where=str(folder), todo=todo) from error
    found = os.fstat(descriptor)
    why = ""
    if found.st_uid != os.geteuid():
        why = f"the folder belongs to somebody else (user {found.st_uid})"
    elif mode := found.st_mode & 0o077:
        why = f"others can look into the folder (mode {0o700 | mode:o})"
    if why:
        os.close(descriptor)
        raise CampaignError(why, where=str(folder), todo=todo)
    return descriptor


def _is_open_to_others(found: os.stat_result) -> bool:
    """Tell whether somebody else can exchange the entries of a folder; not those of the system's temporary folder."""
    foreign = found.st_uid not in (0, os.geteuid())
    return foreign or bool(found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX)
