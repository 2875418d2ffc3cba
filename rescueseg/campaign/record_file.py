"""The files of a campaign that hold one record each: their name, and what stands in them."""

from __future__ import annotations

from functools import cached_property
from typing import Generic, TypeVar, cast

from pydantic import JsonValue, TypeAdapter, ValidationError

from rescueseg.errors import StorageError, damaged

T = TypeVar("T")


class RecordFile(Generic[T]):
    """One kind of file in a campaign's folder, in that of a generation or of a training.

    Declared beside the record that it holds, and read and written by `rescueseg.campaign.folders.RecordFolder`.

    Parameters
    ----------
    name : str
        Its name without ``.json``.
    kind : type
        What it holds: a record, or a type that pydantic takes to JSON and back, such as ``tuple[MapReference, ...]``.

    Examples
    --------
    >>> steps = RecordFile("progress", tuple[int, int])
    >>> steps.parse([10, 80], "trainings/unet/progress.json")
    (10, 80)
    >>> steps.parse([10, "many"], "trainings/unet/progress.json")
    Traceback (most recent call last):
    ...
    rescueseg.errors.StorageError: trainings/unet/progress.json: the file is damaged: it does not hold what it should: \
at 1, input should be a valid integer, unable to parse string as an integer. Restore it from a backup
    """

    def __init__(self, name: str, kind: type[T]) -> None:
        self.name = name
        self._kind = kind

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        return TypeAdapter(self._kind)

    @cached_property
    def seconds(self) -> RecordFile[float]:
        """The file beside it that says how long the stage took, in seconds."""
        return seconds_file(self.name)

    def path(self, folder: str = "") -> str:
        """Return where it lies below the campaign, in a folder of it or at its root."""
        return f"{folder}/{self.name}.json" if folder else f"{self.name}.json"

    def parse(self, data: object, where: str) -> T:
        """Return what the JSON in a file says.

        Parameters
        ----------
        data : object
            As `json.loads` returns it.
        where : str
            The file, for the error message.

        Raises
        ------
        StorageError
            If it is damaged, or holds something else.
        """
        try:
            return self._adapter.validate_python(data)
        except StorageError as error:  # a record inside is of a later format
            raise StorageError(error.what, where=where, todo=error.todo) from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            message = first["msg"][:1].lower() + first["msg"][1:]
            what = f"it does not hold what it should: {f'at {place}, ' * bool(place)}{message}"
            raise damaged(where, what) from error
        except (KeyError, TypeError, AttributeError) as error:  # of a box without its offset, for one
            raise damaged(where, f"it does not hold what it should: {error}") from error

    def to_json(self, value: T) -> JsonValue:
        """Return what is written for a value."""
        return cast(JsonValue, self._adapter.dump_python(value, mode="json"))


def seconds_file(stage: str) -> RecordFile[float]:
    """Return the file that says how long a stage took, in seconds."""
    return RecordFile(f"{stage}.seconds", float)
