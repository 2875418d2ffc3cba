"""What all HTML pages share: templates, inlined pictures, and which scores are shown."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jinja2

from rescueseg.campaign import GenerationFolder
from rescueseg.evaluation.metric_table import METRICS, Metric
from rescueseg.evaluation.pooled import CEILING, Group

T = TypeVar("T")

_IN_TABLES = (
    *("dice", "precision", "recall", "surface_dice", "hd95_um", "cldice", "betti0_error", "betti1_error"),
    *("ap50", "pq"),
)
"""Scores of each group of boxes; the others are shown over all boxes only."""


def render_page(template: str, **values: Any) -> str:
    """Return a page that stands alone; values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rescueseg.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(ceiling_note=CEILING, **values)


def inline(data: bytes) -> str:
    """Return a PNG as a data URL, empty for none.

    Examples
    --------
    >>> inline(b"png"), inline(b"")
    ('data:image/png;base64,cG5n', '')
    """
    return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data else ""


def with_pictures(things: Sequence[T], name: str, figures: Mapping[str, bytes]) -> list[tuple[T, str]]:
    """Return things with their pictures `name_1.png` and so on; those without one are left out.

    Examples
    --------
    >>> with_pictures(["a", "b"], "worst", {"worst_2.png": b"png"})
    [('b', 'data:image/png;base64,cG5n')]
    """
    pictures = ((thing, figures.get(f"{name}_{n}.png", b"")) for n, thing in enumerate(things, start=1))
    return [(thing, inline(data)) for thing, data in pictures if data]


def shown_metrics(groups: Sequence[Group]) -> list[Metric]:
    """Return the scores to show group by group: of those that some group has."""
    return [m for m in METRICS if m.name in _IN_TABLES and any(m.name in g.scores for g in groups)]


def family(generation: GenerationFolder) -> str:
    """Return the model family of a generation, empty where its model is gone."""
    model = generation.model()
    return model.trainer if model else ""
