"""One exception tree. Every message says what was wrong, where, and what to do about it.

::

    RescuesegError
    ├── ConfigError            the campaign file: unknown key, value out of range
    ├── CampaignError          the campaign folder: missing, already there, a path that leaves it
    ├── VolumeError            an image that cannot be used
    │   ├── UnreadableVolumeError
    │   ├── MissingSpacingError
    │   ├── InvalidVolumeError     dimensionality, NaNs, empty axes
    │   └── ExampleUnavailable     a public example that is neither cached nor within reach
    ├── LabelError             a label array that does not fit: shape, classes, dtype
    │   └── LabelWarningsError     it fits, but looks odd: a person can override
    ├── QueueError             a ticket's status does not allow the operation
    │   ├── LeaseExpiredError
    │   ├── NotYourLeaseError
    │   └── TicketNotFoundError
    ├── AccessError            a person's role does not allow the operation
    │   └── UnknownTokenError
    ├── LeakError              a training read would touch the holdout
    ├── SamplingError          no room for the holdout or the starting budget
    ├── WeakLabelError         a first mask cannot be made
    ├── TrainingError
    ├── InferenceError
    ├── EvaluationError
    ├── StorageError           disk full, no permission, lost connection, a file that is damaged or lost
    └── ServiceError           a server that did not start or did not answer
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

RESTORE = "Restore it from a backup"
"""What is to be done about whatever is damaged or lost."""


class RescuesegError(Exception):
    """Base of everything rescueseg raises on purpose.

    Parameters
    ----------
    what : str
        What was wrong.
    where : str, optional
        The file, volume, ticket or key it was wrong in.
    todo : str, optional
        What the person can do about it.
    """

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, where, todo
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}. {todo}" if todo else message)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the three parts when the error crosses a process boundary."""
        return _rebuild, (type(self), self.what, self.where, self.todo)


def _rebuild(cls: type[RescuesegError], what: str, where: str, todo: str) -> RescuesegError:
    return cls(what, where=where, todo=todo)


class ConfigError(RescuesegError):
    """The campaign file holds something it may not."""


class CampaignError(RescuesegError):
    """The campaign folder cannot be used."""


class VolumeError(RescuesegError):
    """An image volume cannot be used."""


class UnreadableVolumeError(VolumeError):
    """The file is missing, damaged or of an unknown format."""


class MissingSpacingError(VolumeError):
    """Neither the metadata nor the user states the physical spacing."""


class InvalidVolumeError(VolumeError):
    """Readable, but not a 3D image: dimensionality, NaNs, empty axes."""


class ExampleUnavailable(VolumeError):  # noqa: N818
    """A public example volume is neither cached nor within reach; a caller may take another one."""


class LabelError(RescuesegError):
    """A label array does not fit its patch: shape, dtype or classes."""


class LabelWarningsError(LabelError):
    """Labels fit their patch but look odd; nothing was handed in, and a person can override.

    Parameters
    ----------
    what, where, todo : str
        As of every error.
    warnings : tuple of rescueseg.annotation.client.LabelWarning
        What is odd, one by one.
    """

    def __init__(self, what: str, *, where: str = "", todo: str = "", warnings: tuple[Any, ...] = ()) -> None:
        super().__init__(what, where=where, todo=todo)
        self.warnings = warnings

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the warnings too."""
        return partial(LabelWarningsError, where=self.where, todo=self.todo, warnings=self.warnings), (self.what,)


class QueueError(RescuesegError):
    """A ticket's status does not allow the operation."""


class LeaseExpiredError(QueueError):
    """The lease ended before the work was handed in."""


class NotYourLeaseError(QueueError):
    """The lease belongs to somebody else."""


class TicketNotFoundError(QueueError):
    """There is no such ticket or assignment."""


class AccessError(RescuesegError):
    """A person's role does not allow the operation."""


class UnknownTokenError(AccessError):
    """There is no token where one is needed, or nobody has this one."""


class LeakError(RescuesegError):
    """A voxel that training would read lies inside a holdout box."""


class SamplingError(RescuesegError):
    """The volumes leave no room for the holdout or the starting budget."""


class WeakLabelError(RescuesegError):
    """A first mask cannot be made with this method and these inputs."""


class TrainingError(RescuesegError):
    """Training cannot run with this request."""


class InferenceError(RescuesegError):
    """Inference cannot run with this model, volume or settings."""


class EvaluationError(RescuesegError):
    """An evaluation would not be valid."""


class StorageError(RescuesegError):
    """The storage refused: full, read-only, out of reach; or what it holds is not what was stored."""


class ServiceError(RescuesegError):
    """A server did not start or did not answer."""


def damaged(path: str, what: str) -> StorageError:
    """Return the error for a file that does not hold what was stored in it.

    Parameters
    ----------
    path : str
        The whole path of the file.
    what : str
        What is wrong with it.

    Examples
    --------
    >>> print(damaged("liver/volumes/v.json", "its checksum does not fit"))
    liver/volumes/v.json: the file is damaged: its checksum does not fit. Restore it from a backup
    """
    return StorageError(f"the file is damaged: {what}", where=path, todo=RESTORE)


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn the operating system's storage errors into a `StorageError` that says what to do.

    Parameters
    ----------
    where : str
        The path or URL being written.

    Raises
    ------
    StorageError
        For a full disk, an exhausted quota, missing permission or a read-only file system.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                "the disk is full", where=where, todo="Free some space and run again; nothing was changed"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                "writing is not allowed", where=where, todo="Check the owner and the mount, then run again"
            ) from error
        raise
