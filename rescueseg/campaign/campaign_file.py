"""The campaign file, `campaign.toml`: settings from TOML and back, and those of a new campaign from KEY=VALUE pairs."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

import tomli_w

from rescueseg.campaign.renamed_settings import move_renamed, refuse_renamed
from rescueseg.config import CampaignConfig, check_config
from rescueseg.errors import RESTORE, ConfigError

FORMAT = 1
"""Of the campaign file; raised when an earlier version would misread one."""


def decode_config(data: bytes, where: str) -> str:
    """Return the text of a campaign file.

    Raises
    ------
    ConfigError
        If it is empty, or not saved as UTF-8.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"line {line} is no UTF-8 text", where=where, todo="Save the file as UTF-8, or restore it from a backup"
        ) from error
    if not text.strip():
        raise ConfigError("the file is empty", where=where, todo=RESTORE)
    return text


def parse_config(text: str, where: str = "campaign.toml") -> CampaignConfig:
    r"""Read a campaign file; settings that had another name in an earlier version are moved.

    Parameters
    ----------
    text : str
        TOML.
    where : str
        Its path, for the error message.

    Raises
    ------
    ConfigError
        If it is no TOML, holds an unknown key (the nearest known one is suggested) or a value out of range.

    Examples
    --------
    >>> config = parse_config('name = "liver"\nclasses = ["nucleus", "vessel"]\n[training]\niterations = 300')
    >>> config.n_classes, config.training.iterations, config.sampling.query_patches
    (2, 300, 4)
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are no TOMLDecodeError
        raise ConfigError(f"not valid TOML: {error}", where=where, todo="Mend the file and run again") from error
    if isinstance(version := data.get("format"), int) and version > FORMAT:
        raise ConfigError(
            f"a later version of rescueseg wrote this file: its format is {version}, this version reads up to {FORMAT}",
            where=where,
            todo="Install that version or a later one, and run again",
        )
    return check_config(move_renamed(data, where), where)


def dump_config(config: CampaignConfig) -> str:
    """Return the text of a campaign file; settings that are None (the program decides them) are left out.

    Examples
    --------
    >>> config = settings_of("liver", ["nucleus"])
    >>> print(dump_config(config).splitlines()[1])
    name = "liver"
    """
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def settings_of(name: str, classes: Sequence[str], pairs: Sequence[str] = ()) -> CampaignConfig:
    """Return the settings of a new campaign from ``section.key=value`` pairs.

    Raises
    ------
    ConfigError
        If a pair is malformed, a key unknown or called otherwise now, or a value out of range.

    Examples
    --------
    >>> config = settings_of("liver", ["nucleus", "vessel"], ["training.iterations=300", "query.strategy=bald"])
    >>> config.training.iterations, config.query.strategy
    (300, 'bald')
    """
    data: dict[str, Any] = {"name": name, "classes": [c.strip() for c in classes if c.strip()]}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"'{pair}' is no KEY=VALUE", where="--set", todo="E.g. --set training.iterations=300")
        refuse_renamed(key.strip(), "--set")
        *sections, last = key.strip().split(".")
        table = data
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"'{section}' is no section", where="--set", todo="E.g. training.iterations=300")
        try:
            table[last] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            table[last] = value
    return check_config(data, "--set")
