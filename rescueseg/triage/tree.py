"""The decision tree: evidence in, route out. Asked in a fixed order, the first yes decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from rescueseg.campaign.route import Profile
from rescueseg.config import TriageConfig
from rescueseg.records import Record

Problem = Literal["boundary", "snr", "topology", "other"]
Structure = Literal["star-convex", "blob", "network", "membrane", "fibre", "other"]
Complexity = Literal["moderate", "difficult", "extremely noisy"]
Mask = Literal["auto", "annotations", "truth", "threshold", "none"]
"""Where a rough mask comes from."""
Numbers = Mapping[str, float]

MASKS: tuple[Mask, ...] = ("auto", "annotations", "truth", "threshold", "none")
STRUCTURES: tuple[Structure, ...] = ("star-convex", "blob", "network", "membrane", "fibre", "other")


class Route(Record):
    """What a problem calls for."""

    name: str
    title: str
    """For people."""
    problem: Problem
    letter: str
    """A boundary, B SNR, C topology, D none of them."""
    trainers: tuple[str, ...]
    """Best first; the first that is installed is taken."""
    query: str
    """Query strategy."""
    postprocessing: Profile
    """What may be done to a mask of this kind without harm."""
    annotation: str
    """How people should annotate."""
    complexity: Complexity


_WHOLE_OBJECTS = "Annotate complete instances with their borders; where two touch, draw the border between them."
_CONTEXT = (
    "Annotate larger patches, and the look-alikes as background: context tells the structure from what resembles it."
)

ROUTES: dict[str, Route] = {
    route.name: route
    for route in (
        Route(
            name="low_snr", title="B SNR: noise", problem="snr", letter="B", trainers=("nnunet", "monai_unet"), query="power_bald",
            postprocessing="specks", complexity="extremely noisy",
            annotation="Annotate larger patches with context, with the mean of neighbouring planes beside the image; leave doubtful voxels as ignore.",
        ),
        Route(
            name="topology", title="C topology", problem="topology", letter="C", trainers=("monai_unet_topology", "nnunet", "monai_unet"),
            query="clasp_entropy", postprocessing="connected", complexity="difficult",
            annotation="Annotate along the structure, from branch to branch; a gap or a false bridge costs more than a rough border.",
        ),
        Route(
            name="texture", title="B SNR: texture", problem="snr", letter="B", trainers=("nnunet", "monai_unet"), query="clasp_entropy",
            postprocessing="specks", complexity="difficult", annotation=_CONTEXT,
        ),
        Route(
            name="star_convex", title="A boundary: star-convex", problem="boundary", letter="A", trainers=("stardist", "cellpose", "nnunet", "monai_unet"),
            query="clasp_entropy", postprocessing="filled", complexity="moderate", annotation=_WHOLE_OBJECTS,
        ),
        Route(
            name="blob", title="A boundary: blobs", problem="boundary", letter="A", trainers=("cellpose", "nnunet", "monai_unet"),
            query="clasp_entropy", postprocessing="filled", complexity="moderate", annotation=_WHOLE_OBJECTS,
        ),
        Route(
            name="custom", title="D none of them", problem="other", letter="D", trainers=("nnunet", "monai_unet"), query="clasp_entropy",
            postprocessing="specks", complexity="difficult",
            annotation="Annotate complete structures; no simple shape describes them.",
        ),
    )
}  # fmt: skip


class Step(Record):
    """One question of the tree and its answer."""

    question: str
    measured: float | None
    """In multiples of the threshold; from 1 on the answer is yes. None where the evidence is missing."""
    detail: str
    """The numbers behind it."""
    answer: bool | None
    """None where the evidence is missing, which counts as no."""
    route: str
    """Where a yes leads."""
    reason: str
    """Why the threshold is where it is."""


@dataclass(frozen=True)
class _Question:
    text: str
    route: str
    reads: tuple[str, ...]
    score: Callable[[Numbers, TriageConfig], float]
    detail: Callable[[Numbers, TriageConfig], str]
    thresholds: tuple[str, ...]
    words: tuple[Structure, ...]
    """The user's words that mean yes."""


def topology_score(e: Numbers, t: TriageConfig) -> float:
    """Return how complex the topology is: slender, and either long or one connected whole; 1 is the threshold."""
    return min(e["slenderness"] / t.slenderness, max(e["length"] / t.length, e["connected"] / t.connected))


QUESTIONS = (
    _Question(
        "Is the SNR extremely low?", "low_snr", ("snr",),
        lambda e, t: t.snr / max(e["snr"], 1e-9),
        lambda e, t: f"SNR {e['snr']:.2g} against {t.snr:g}",
        ("snr",), (),
    ),
    _Question(
        "Is the topology complex?", "topology", ("slenderness", "length", "connected"), topology_score,
        lambda e, t: f"slenderness {e['slenderness']:.2f} ({t.slenderness:g}) and length {e['length']:.3g} ({t.length:g}) "
        f"or connected {e['connected']:.2f} ({t.connected:g})",
        ("slenderness", "length", "connected"), ("network", "membrane", "fibre"),
    ),
    _Question(
        "Is the background's texture strong?", "texture", ("texture",),
        lambda e, t: e["texture"] / t.texture,
        lambda e, t: f"texture {e['texture']:.2g} of the contrast against {t.texture:g}",
        ("texture",), (),
    ),
    _Question(
        "Are the objects roughly star-convex?", "star_convex", ("star_convexity",),
        lambda e, t: e["star_convexity"] / t.star_convexity,
        lambda e, t: f"star-convexity {e['star_convexity']:.2f} against {t.star_convexity:g}",
        ("star_convexity",), ("star-convex",),
    ),
    _Question(
        "Are they blob-like?", "blob", ("sphericity",),
        lambda e, t: e["sphericity"] / t.sphericity,
        lambda e, t: f"sphericity {e['sphericity']:.2f} against {t.sphericity:g}",
        ("sphericity",), ("blob",),
    ),
)  # fmt: skip
"""In the order in which they are asked."""


def decide(evidence: Numbers, thresholds: TriageConfig, word: Structure | None = None) -> tuple[Route, list[Step]]:
    """Walk the tree.

    Parameters
    ----------
    evidence : mapping of str to float
        Measured numbers by name; what is missing answers no.
    thresholds : TriageConfig
        The campaign's.
    word : str, optional
        What the user says the structure is: decides the questions about shape.

    Returns
    -------
    route : Route
        The first question answered with yes leads to it; ``custom`` when there is none.
    steps : list of Step
        All questions with their answers, those behind the first yes too.

    Examples
    --------
    Round objects in an image of little noise; without any evidence there is no route of its own:

    >>> numbers = {"snr": 12.0, "slenderness": 0.1, "length": 1.0, "connected": 0.0}
    >>> numbers |= {"texture": 0.05, "star_convexity": 0.9}
    >>> route, steps = decide(numbers, TriageConfig())
    >>> route.name, [step.answer for step in steps]
    ('star_convex', [False, False, False, True, None])
    >>> decide({}, TriageConfig())[0].name
    'custom'
    """
    steps = [_ask(question, evidence, thresholds, word) for question in QUESTIONS]
    name = next((step.route for step in steps if step.answer), "custom")
    return ROUTES[name], steps


def _ask(question: _Question, evidence: Numbers, thresholds: TriageConfig, word: Structure | None) -> Step:
    is_measured = all(name in evidence for name in question.reads)
    score = question.score(evidence, thresholds) if is_measured else None
    answer = None if score is None else score >= 1
    about_shape = bool(question.words)
    if about_shape and word is not None:
        answer = word in question.words
    fields = TriageConfig.model_fields
    return Step(
        question=question.text,
        measured=None if score is None else round(score, 4),
        detail=question.detail(evidence, thresholds) if is_measured else "not measured",
        answer=answer,
        route=question.route,
        reason=" ".join(fields[name].description or "" for name in question.thresholds),
    )
