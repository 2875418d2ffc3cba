"""The decision tree: evidence in, route out. Asked in a fixed order, the first yes decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rescueseg.campaign.route import Profile
from rescueseg.config import TriageConfig
from rescueseg.records import Record

Problem = Literal["boundary", "snr", "topology", "other"]
Structure = Literal["star-convex", "blob", "network", "membrane", "fibre", "puncta", "other"]
Complexity = Literal["moderate", "difficult", "extremely noisy"]
Mask = Literal["auto", "annotations", "truth", "threshold", "none"]
"""Where a rough mask comes from."""
Numbers = Mapping[str, float]

MASKS: tuple[Mask, ...] = ("auto", "annotations", "truth", "threshold", "none")
STRUCTURES: tuple[Structure, ...] = ("star-convex", "blob", "network", "membrane", "fibre", "puncta", "other")


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
            name="puncta", title="A boundary: puncta", problem="boundary", letter="A", trainers=("nnunet", "monai_unet"),
            query="clasp_entropy", postprocessing="none", complexity="moderate",
            annotation="Annotate every one, also the dim ones, and leave doubtful ones as ignore: of so few voxels each one counts.",
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


CUT = "the patches cut it"
"""Stands in the detail of a question that is not answered for that."""
BLIND = "what a threshold paints need not be the structure"
"""The same."""
_ROUND = ("star_convex", "blob")
"""Routes of objects that are round."""


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
    instead: tuple[str, ...] = ()
    """What is read where that is missing."""
    is_open: Callable[[Numbers, TriageConfig], bool] | None = None
    """Whether a no is not known, since patches cut what was measured."""


def topology_score(e: Numbers, t: TriageConfig) -> float:
    """Return how complex the topology is: slender, and either long or one connected whole; 1 is the threshold."""
    return min(e["slenderness"] / t.slenderness, max(e["length"] / t.length, e["connected"] / t.connected))


def length_unknown(e: Numbers, t: TriageConfig) -> bool:
    """Tell whether the structure may be slender, and long enough for a complex topology, beyond what the patches show of it."""
    slenderness, length = (e.get(f"{name}_most", e[name]) for name in ("slenderness", "length"))
    return slenderness >= t.slenderness and length >= t.length


def blob_score(e: Numbers, t: TriageConfig) -> float:
    """Return how blob-like objects are: by their surface, and where the patches cut nearly all, by how little slender they are."""
    return e["sphericity"] / t.sphericity if "sphericity" in e else (1 - e["slenderness"]) / (1 - t.slenderness)


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
        ("slenderness", "length", "connected"), ("network", "membrane", "fibre"), is_open=length_unknown,
    ),
    _Question(
        "Is the background's texture strong?", "texture", ("texture",),
        lambda e, t: e["texture"] / t.texture,
        lambda e, t: f"texture {e['texture']:.2g} of the contrast against {t.texture:g}",
        ("texture",), (),
    ),
    _Question(
        "Are the objects too small to have a shape?", "puncta", ("puncta",),
        lambda e, t: e["puncta"] / t.puncta,
        lambda e, t: f"{e['puncta']:.2f} of the structure in objects of fewer than 27 voxels against {t.puncta:g}",
        ("puncta",), ("puncta",),
    ),
    _Question(
        "Are the objects roughly star-convex?", "star_convex", ("star_convexity",),
        lambda e, t: e["star_convexity"] / t.star_convexity,
        lambda e, t: f"star-convexity {e['star_convexity']:.2f} against {t.star_convexity:g}",
        ("star_convexity",), ("star-convex",),
    ),
    _Question(
        "Are they blob-like?", "blob", ("sphericity",), blob_score,
        lambda e, t: f"sphericity {e['sphericity']:.2f} against {t.sphericity:g}"
        if "sphericity" in e
        else f"too few are whole; slenderness {e['slenderness']:.2f} against {t.slenderness:g}",
        ("sphericity",), ("blob",), instead=("slenderness",),
    ),
)  # fmt: skip
"""In the order in which they are asked."""


def decide(
    evidence: Numbers, thresholds: TriageConfig, word: Structure | None = None, *, is_blind: bool = False
) -> tuple[Route, list[Step]]:
    """Walk the tree.

    Parameters
    ----------
    evidence : mapping of str to float
        Measured numbers by name; what is missing answers no.
    thresholds : TriageConfig
        The campaign's.
    word : str, optional
        What the user says the structure is: decides the questions about shape.
    is_blind : bool
        Whether what was measured may be another structure than the one that is meant, see `rescueseg.triage.guess`: the
        questions about shape are then not answered.

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
    ('star_convex', [False, False, False, None, True, True])
    >>> decide({}, TriageConfig())[0].name
    'custom'
    """
    steps = [_ask(question, evidence, thresholds, word, is_blind=is_blind) for question in QUESTIONS]
    if any(CUT in step.detail and step.answer is None for step in steps):
        steps = [_unsettled(step) if step.route in _ROUND else step for step in steps]
    name = next((step.route for step in steps if step.answer), "custom")
    return ROUTES[name], steps


def _unsettled(step: Step) -> Step:
    """Return a question about roundness without its answer: pieces of a line that patches cut may be round."""
    return step.model_copy(update={"answer": None, "detail": f"{step.detail}; pieces of what is cut may be round"})


def _ask(
    question: _Question, evidence: Numbers, thresholds: TriageConfig, word: Structure | None, *, is_blind: bool
) -> Step:
    is_measured = any(names and all(name in evidence for name in names) for names in (question.reads, question.instead))
    score = round(question.score(evidence, thresholds), 4) if is_measured else None
    answer = None if score is None else score >= 1
    cut = answer is False and question.is_open is not None and question.is_open(evidence, thresholds)
    if cut:
        answer = None
    about_shape = bool(question.words)
    blind = about_shape and is_blind and is_measured and word is None
    if about_shape and is_blind:
        answer = None
    if about_shape and word is not None:
        answer = word in question.words
    fields = TriageConfig.model_fields
    reasons = [text for text, holds in ((CUT, cut), (BLIND, blind)) if holds]
    return Step(
        question=question.text,
        measured=score,
        detail="; ".join([question.detail(evidence, thresholds), *reasons]) if is_measured else "not measured",
        answer=answer,
        route=question.route,
        reason=" ".join(fields[name].description or "" for name in question.thresholds),
    )


UNKNOWN = "not known yet"


def title_of(route: Route, steps: Sequence[Step]) -> str:
    """Return the problem for people; not known where a question about shape is open that would lead elsewhere.

    None of them it is only where the topology was answered, and one of the two questions about roundness: where the
    patches show no border, or cut what would tell, neither is.
    """
    answered = {step.route for step in steps if step.answer is not None}
    is_known = route.name != "custom" or ("topology" in answered and not answered.isdisjoint(_ROUND))
    return route.title if is_known else UNKNOWN
