"""The folder of a generation and that of a training outside the loop, with the records in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rescueseg.campaign.layout import (
    CHECKPOINTS,
    GENERATION,
    MODEL,
    OUTSIDE_CHECKPOINTS,
    OUTSIDE_MODEL,
    STAGES,
    TRAINING,
)
from rescueseg.campaign.private_folder import local_folder
from rescueseg.campaign.record_file import RecordFile, T
from rescueseg.campaign.stage_results import PROGRESS, SNAPSHOT
from rescueseg.campaign.stage_results import TRAINING as TRAINING_RESULT
from rescueseg.errors import CampaignError
from rescueseg.records import ModelReference, Snapshot
from rescueseg.storage import Storage


@dataclass(frozen=True)
class RecordFolder:
    """A folder of a campaign, and the records in it.

    Parameters
    ----------
    storage : Storage
        The campaign's root.
    folder : str
        Its path below the root; empty for the root itself.
    """

    storage: Storage
    folder: str = ""

    def path(self, *parts: str) -> str:
        """Return a path inside the folder, below the campaign."""
        return "/".join((self.folder, *parts) if self.folder else parts)

    def read(self, file: RecordFile[T]) -> T | None:
        """Return what a file holds, None where there is none.

        Raises
        ------
        StorageError
            If it is damaged, holds something else, or a later version wrote it.
        """
        path = file.path(self.folder)
        if not self.storage.exists(path):
            return None
        return file.parse(self.storage.read_json(path), self.storage.name_of(path))

    def write(self, file: RecordFile[T], value: T) -> None:
        """Write a file atomically. A stage's result is its commit point, after which a rerun skips the stage."""
        self.storage.write_json(file.path(self.folder), file.to_json(value))

    def has(self, file: RecordFile[T]) -> bool:
        """Tell whether a file is there; it is not read."""
        return self.storage.exists(file.path(self.folder))


@dataclass(frozen=True)
class GenerationFolder(RecordFolder):
    """One generation; made by `of`.

    Parameters
    ----------
    storage, folder
        As of `RecordFolder`.
    number : int
        The generation's.
    """

    number: int = 0

    @classmethod
    def of(cls, storage: Storage, number: int) -> GenerationFolder:
        """Return a generation of the campaign at `storage`, begun or not."""
        return cls(storage, GENERATION.path(generation=number), number)

    def all(self) -> list[GenerationFolder]:
        """Return the generations begun in the same campaign, by number."""
        return generations(self.storage)

    def require(self, file: RecordFile[T]) -> T:
        """Return what a finished stage wrote; raises as `read`, too.

        Raises
        ------
        CampaignError
            If it has not finished.
        """
        result = self.read(file)
        if result is None:
            raise CampaignError(
                f"the stage '{file.name}' of generation {self.number} has not finished",
                where=self.storage.url,
                todo="Run 'rescueseg generation CAMPAIGN'; it goes on where it stopped",
            )
        return result

    def finished_stages(self) -> list[str]:
        """Return which of `STAGES` have finished; no result is read."""
        names = set(self.storage.list(self.folder))
        return [stage for stage in STAGES if f"{stage}.json" in names]

    def note_progress(self, what: str, done: int, total: int) -> None:
        """Write how far a running stage is, to be shown to people; nothing depends on it."""
        self.write(PROGRESS, (what, done, total))

    def snapshot(self) -> Snapshot | None:
        """Return the training set, None before it was made."""
        return self.read(SNAPSHOT)

    def model(self) -> ModelReference | None:
        """Return the model, None before it was trained."""
        training = self.read(TRAINING_RESULT)
        return None if training is None else training.model

    def model_folder(self) -> str:
        """Return where the model's files lie, below the campaign."""
        return MODEL.path(generation=self.number)

    def work_folder(self) -> Path:
        """Return the local folder of the training; see `rescueseg.campaign.private_folder.local_folder`."""
        return local_folder(self.storage, CHECKPOINTS.path(generation=self.number))


@dataclass(frozen=True)
class TrainingFolder(RecordFolder):
    """One training outside the loop; made by `of`.

    Parameters
    ----------
    storage, folder
        As of `RecordFolder`.
    name : str
        The training's.
    """

    name: str = ""

    @classmethod
    def of(cls, storage: Storage, name: str) -> TrainingFolder:
        """Return a training of the campaign at `storage`, begun or not."""
        return cls(storage, TRAINING.path(training=name), name)

    def model_folder(self) -> str:
        """Return where the model's files lie, below the campaign."""
        return OUTSIDE_MODEL.path(training=self.name)

    def work_folder(self) -> Path:
        """Return the local folder of the training; see `rescueseg.campaign.private_folder.local_folder`."""
        return local_folder(self.storage, OUTSIDE_CHECKPOINTS.path(training=self.name))


def generations(storage: Storage) -> list[GenerationFolder]:
    """Return the generations begun in the campaign at `storage`, by number."""
    return [GenerationFolder.of(storage, int(name)) for name in storage.list(GENERATION.top) if name.isdigit()]
