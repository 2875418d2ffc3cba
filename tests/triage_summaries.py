"""What a triage may have found, for tests of those who read it."""

from __future__ import annotations

from typing import Any

from rescueseg.campaign.route import TriageSummary
from rescueseg.triage.records import Triage
from rescueseg.triage.tree import ROUTES


def triaged(measured: dict[str, float | None] | None = None, **fields: Any) -> TriageSummary:
    """Return the summary of a triage that measured these numbers; the other fields are those of a noisy volume."""
    noisy = {
        "problem": "snr",
        "trainer": "nnunet",
        "route": {"query": "power_bald", "postprocessing": "specks"},
        "structure": None,
        "mask": "truth",
        "evidence": [{"name": name, "value": value} for name, value in (measured or {}).items()],
    }
    return TriageSummary.model_validate(noisy | fields)


def whole_triage(route: str, trainer: str = "") -> Triage:
    """Return a triage that found a route; its trainer is the route's first where none is given."""
    found = ROUTES[route]
    return Triage(
        problem=found.problem,
        letter=found.letter,
        route=found,
        trainer=trainer or found.trainers[0],
        missing=(),
        structure=None,
        disagreement="",
        mask="truth",
        steps=(),
        evidence=(),
        thresholds={},
        patch_zyx={},
        complexity=found.complexity,
        advice=("Annotate.",),
        chunks_read=1,
        chunks=1,
    )
