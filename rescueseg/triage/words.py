"""What people call their structure, and the shape that the triage's questions know."""

from __future__ import annotations

from typing import Literal, get_args

from rescueseg.errors import ConfigError
from rescueseg.triage.tree import STRUCTURES, Structure

Named = Literal[
    "nuclei", "cells", "vesicles", "mitochondria", "puncta", "vessels", "neurites", "fibres", "membranes",
    "star-convex", "blob", "network", "membrane", "fibre", "other",
]  # fmt: skip
"""What may be said: a structure of the specimen, or a shape."""

SHAPES: dict[str, tuple[Structure, str]] = {
    "nuclei": ("star-convex", "round or oval"),
    "cells": ("star-convex", "also those that touch on all sides"),
    "vesicles": ("star-convex", "filled or hollow; puncta where they are a few voxels wide"),
    "mitochondria": ("blob", "short rods and beans; network where they join into one"),
    "puncta": ("puncta", "spots of a few voxels"),
    "vessels": ("network", "branched tubes"),
    "neurites": ("network", "branched, thin"),
    "fibres": ("fibre", "long lines that do not branch"),
    "membranes": ("membrane", "thin sheets"),
}
"""Of each structure of the specimen the shape it mostly has, and what that means."""
NAMES: tuple[Named, ...] = get_args(Named)


def shape_of(name: Named | None) -> Structure | None:
    """Return the shape of what a person names; a shape is its own.

    Raises
    ------
    ConfigError
        If the name is not known.

    Examples
    --------
    >>> shape_of("mitochondria"), shape_of("membrane"), shape_of(None)
    ('blob', 'membrane', None)
    """
    if name is None:
        return None
    if name in SHAPES:
        return SHAPES[name][0]
    for shape in STRUCTURES:
        if shape == name:
            return shape
    raise ConfigError(f"'{name}' is unknown", where="structure", todo=f"Choose one of {', '.join(NAMES)}")


def choices() -> str:
    """Return what may be said of a structure, one after the other, for people."""
    return "; ".join(f"{name} ({meaning})" for name, (_, meaning) in SHAPES.items())
