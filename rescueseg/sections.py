"""Tables of settings, and the one clear error where a key or a value in them is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rescueseg.errors import ConfigError


class Section(BaseModel):
    """A table of settings: unknown keys are refused, and nothing in it changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


def check_section(model: type[S], data: Mapping[str, Any], where: str, prefix: str = "") -> S:
    """Return a table of settings, checked.

    Parameters
    ----------
    model : type of Section
        What the table may hold.
    data : mapping
        Settings by name, tables within it as mappings.
    where : str
        Where they stand, for the error message.
    prefix : str
        What stands before their names there, such as ``training.unet.``.

    Raises
    ------
    ConfigError
        If a key is unknown (the nearest known one is suggested) or a value out of range (the message says what is
        allowed).
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        path = f"{prefix}{'.'.join(str(part) for part in location)}"
        # a table of a model family may have any name: what is neither a known key nor a table gives 'dict_type'
        if first["type"] in ("extra_forbidden", "dict_type"):
            raise ConfigError(f"unknown key '{path}'", where=where, todo=_suggest(model, location, prefix)) from error
        key = f"'{path}': " if path else ""
        raise ConfigError(f"{key}{first['msg']}", where=where, todo="Change the value and run again") from error


def _suggest(model: type[BaseModel], location: tuple[int | str, ...], prefix: str) -> str:
    """Name the known key nearest to an unknown one."""
    table, section = model, prefix
    for part in location[:-1]:
        annotation = table.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        table, section = annotation, f"{section}{part}."
    paths = {name: f"{section}{name}" for name in table.model_fields}
    paths |= {key: f"{section}{path}" for key, path in _nested_keys(table) if key not in paths}
    near = difflib.get_close_matches(str(location[-1]), paths, n=1, cutoff=0.5)
    return f"Did you mean '{paths[near[0]]}'?" if near else f"Known keys here: {', '.join(sorted(table.model_fields))}"


def _nested_keys(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield name and path of the settings in a table's own tables."""
    for section, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from ((key, f"{section}.{key}") for key in field.annotation.model_fields)
