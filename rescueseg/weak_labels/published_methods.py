"""The methods that use weights from elsewhere: which one does, what must be given and installed, and where it is.

A module is imported when its method is used, for it imports the package of an extra.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, cast

from rescueseg.errors import WeakLabelError
from rescueseg.records import VolumeRecord
from rescueseg.weak_labels.choice import Sources
from rescueseg.weak_labels.published import Published


class PublishedMethod(NamedTuple):
    """A method that uses weights from elsewhere; it knows foreground alone, and numbers its objects."""

    module: str
    """Has a function ``open_weights(sources, volumes)`` that returns a `Published`."""
    options: str
    """What must be given, for people."""
    needs: tuple[str, ...]
    """Fields of `Sources` that must be given."""
    package: str = ""
    """Must be installed; the extra is called so, too."""


PUBLISHED: dict[str, PublishedMethod] = {
    "cellpose": PublishedMethod(
        "rescueseg.weak_labels.cellpose",
        "--weights FILE --diameter UM",
        ("weights", "diameter_um"),
        "cellpose",
    ),
    "cellpose-sam": PublishedMethod(
        "rescueseg.weak_labels.cellpose_sam",
        "--weights FILE --diameter UM --python PYTHON",
        ("weights", "diameter_um", "python"),
    ),
    "stardist": PublishedMethod("rescueseg.weak_labels.stardist", "--weights FOLDER", ("weights",), "stardist"),
}


def method_of(sources: Sources) -> str:
    """Return the method that uses the weights a person gave; empty where none were given."""
    if not sources.weights:
        return ""
    if sources.python:
        return "cellpose-sam"
    return "stardist" if Path(sources.weights).is_dir() else "cellpose"


def open_published(method: str, sources: Sources, volumes: Iterable[VolumeRecord]) -> Published:
    """Read weights.

    Parameters
    ----------
    method : str
        One of `PUBLISHED`.
    sources : Sources
        Where they are.
    volumes : iterable of VolumeRecord
        That they are for; their channels count.

    Raises
    ------
    WeakLabelError
        If something is not given or not installed, the weights cannot be used, or take other channels.
    StorageError
        If they cannot be read.
    """
    entry = PUBLISHED[method]
    if not all(getattr(sources, name) for name in entry.needs):
        raise WeakLabelError(
            f"the method '{method}' lacks what it needs", where="--method", todo=f"Give {entry.options}"
        )
    if entry.package and find_spec(entry.package) is None:
        raise WeakLabelError(
            f"the method '{method}' needs the package {entry.package}",
            where="--method",
            todo=f"Install it with: pip install 'rescueseg[{entry.package}]'",
        )
    return cast(Published, importlib.import_module(entry.module).open_weights(sources, tuple(volumes)))
