"""Settings that had another name in earlier versions: moved where a campaign file is read, refused where a person writes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rescueseg.errors import ConfigError

RENAMED: dict[str, tuple[str, ...]] = {
    "training.channels": ("training.unet.channels", "training.nnunet.channels"),
    "training.deep_supervision": ("training.unet.deep_supervision",),
    "training.ema": ("training.unet.ema",),
    "training.balanced_classes": ("training.unet.balanced_classes",),
    "training.cldice_weight": ("training.unet.cldice_weight",),
    "training.betti_weight": ("training.unet.betti_weight",),
    "training.nnunet_planner": ("training.nnunet.planner",),
    "training.nnunet_configuration": ("training.nnunet.configuration",),
}
"""What each is called now; one that several families read has become a setting of each of them."""


def move_renamed(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings of a campaign file under the names of this version.

    Parameters
    ----------
    data : mapping
        Settings by name, tables as mappings; it is left as it is.
    where : str
        The file, for the error message.

    Raises
    ------
    ConfigError
        If a setting stands there under both its names.

    Examples
    --------
    >>> move_renamed({"name": "liver", "training": {"ema": 0.9, "iterations": 300}}, "campaign.toml")
    {'name': 'liver', 'training': {'iterations': 300, 'unet': {'ema': 0.9}}}
    """
    moved = _copy(data)
    for old, paths in RENAMED.items():
        *above, name = old.split(".")
        table = _table(moved, above)
        if name not in table:
            continue
        value = table.pop(name)
        for path in paths:
            *sections, new = path.split(".")
            target = _table(moved, sections, make=True)
            if new in target:
                raise ConfigError(
                    f"'{old}' is called '{path}' now, and both stand here", where=where, todo=f"Remove '{old}'"
                )
            target[new] = value
    return moved


def refuse_renamed(key: str, where: str) -> None:
    """Refuse a setting that a person calls by its earlier name.

    Raises
    ------
    ConfigError
        It says what to write instead.
    """
    if key in RENAMED:
        todo = " or ".join(f"'{path}'" for path in RENAMED[key])
        raise ConfigError(f"'{key}' has another name now", where=where, todo=f"Write {todo}")


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _table(data: dict[str, Any], sections: list[str], make: bool = False) -> dict[str, Any]:
    """Return a table within a table; an empty one where there is none, which stays there if it is to be made."""
    for section in sections:
        inner = data.setdefault(section, {}) if make else data.get(section, {})
        data = inner if isinstance(inner, dict) else {}  # what is no table is refused when the settings are checked
    return data
