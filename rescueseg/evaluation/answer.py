"""The answers that people look for after a generation: better or not, by how much, and whether to annotate another batch.

The report, MLflow and the terminal all say it in these words, so that one question has one answer.
"""

from __future__ import annotations

from typing import NamedTuple

from rescueseg.campaign import Campaign
from rescueseg.evaluation.champion import Judgement, headline, judgements
from rescueseg.evaluation.learning_curve import advise


class Answer(NamedTuple):
    """Three sentences on the last generation of a campaign."""

    headline: str
    """Whether it is better than the champion before it."""
    figures: str
    """By how much, how surely, and over which boxes; empty for the first generation."""
    advice: str
    """Whether to go on, and what another batch would bring."""

    def lines(self) -> list[str]:
        """Return the sentences that say something, each as a line."""
        return [line for line in self if line]


def answer(campaign: Campaign, judgement: Judgement) -> Answer:
    """Answer for a generation that was judged, with what is known of the campaign now.

    Parameters
    ----------
    campaign : Campaign
        Its settings and evaluated generations give the advice.
    judgement : Judgement
        Of the generation.
    """
    reason = judgement.comparison.reason if judgement.comparison else ""
    figures = f"{reason[:1].upper()}{reason[1:]}." if reason else ""
    advice = advise(campaign)
    return Answer(headline(judgement), figures, f"{advice}." if advice else "")


def last_answer(campaign: Campaign) -> Answer | None:
    """Answer for the last generation that was judged; None before the first."""
    history = judgements(campaign.generations())
    return answer(campaign, history[-1]) if history else None
