"""What a triage may have found, for tests of those who read it."""

from __future__ import annotations

from typing import Any

from rescueseg.campaign.route import TriageSummary


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
