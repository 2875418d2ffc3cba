"""What a triage tells people to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rescueseg.config import TriageConfig
from rescueseg.triage.records import ClassTriage
from rescueseg.triage.trainer_choice import PickedTrainer
from rescueseg.triage.tree import CUT, ROUTES, UNKNOWN, Route, Step, Structure, decide, title_of


@dataclass(frozen=True)
class Grounds:
    """What the advice follows from.

    Parameters
    ----------
    route : Route
        What was decided.
    steps : sequence of Step
        The questions with their answers.
    classes : sequence of ClassTriage
        Where several classes are annotated, each by itself.
    trainer : PickedTrainer
        The one that is taken, and better ones that cannot be.
    mask : str
        Where the rough mask comes from.
    instances : bool
        Whether it numbers the objects.
    is_guess : bool
        Whether the route follows from a threshold's mask.
    """

    route: Route
    steps: Sequence[Step]
    classes: Sequence[ClassTriage]
    trainer: PickedTrainer
    mask: str
    instances: bool
    is_guess: bool


def advice(grounds: Grounds) -> list[str]:
    """Return what people should do, one sentence or two per line."""
    is_known = title_of(grounds.route, grounds.steps) != UNKNOWN
    lines = [grounds.route.annotation if is_known else "Annotate complete structures, with what lies around them."]
    lines += _about_the_trainer(grounds.trainer)
    lines.append(
        "Try the cheap way first: 'rescueseg weak-label', and see the tuned threshold in the report; the champion must beat it."
    )
    if grounds.route.name == "topology" and grounds.mask != "none" and not grounds.instances:
        lines.append(
            "Cells that are pressed together look like a network in a class mask: if it is cells, say --structure cells."
        )
    lines += _about_the_mask(grounds, is_known=is_known)
    if len(grounds.classes) > 1:
        routes = ", ".join(f"{c.name}: {ROUTES[c.route].title}" for c in grounds.classes)
        lines.append(f"Each class alone: {routes}. The route is that of {hardest(grounds.classes).name}, the hardest.")
    return lines


def _about_the_trainer(trainer: PickedTrainer) -> list[str]:
    """Return which trainers would come before the best that can be used, what that takes, and which two are tried."""
    lines = []
    if trainer.missing:
        names, verb = " and ".join(trainer.missing), "are" if len(trainer.missing) > 1 else "is"
        lines.append(f"{names} would come first and {verb} not installed: {trainer.name} is the next best.")
    if trainer.need_objects:
        names, verb = " and ".join(trainer.need_objects), "learn" if len(trainer.need_objects) > 1 else "learns"
        lines.append(
            f"{names} would come first and {verb} from numbered objects: make the campaign with annotation.labels=instance."
        )
    if len(trainer.usable) > 1:
        lines.append(
            f"Unless training.trainer names one, {trainer.usable[0]} and {trainer.usable[1]} train on the first patches for "
            "equal time, and the validation boxes choose."
        )
    return lines


def _about_the_mask(grounds: Grounds, *, is_known: bool) -> list[str]:
    """Return what to do where the rough mask does not tell the shape, or tells it by guess."""
    lines = []
    if grounds.is_guess:
        lines.append(
            "The shape was guessed from a threshold, which may have painted something else: confirm it by one annotated patch, "
            "or say what it is with --structure."
        )
    elif grounds.mask == "threshold":
        lines.append(
            "What a threshold paints here does not tell the shape: annotate one patch and triage again, or say what it is "
            "with --structure."
        )
    elif grounds.mask == "none":
        lines.append("Shape and contrast were not measured: annotate one patch, or say what it is with --structure.")
    if any(CUT in step.detail for step in grounds.steps):
        lines.append(
            "The patches cut the structure: how long it is is not known. Annotate a larger patch, or say what it is with --structure."
        )
    elif grounds.mask in ("annotations", "truth") and not is_known:
        lines.append(
            "The patches show too little of the structure's border to tell its shape. Annotate a patch with more background, a "
            "larger one, or say what it is with --structure."
        )
    return lines


def hardest(classes: Sequence[ClassTriage]) -> ClassTriage:
    """Return the class whose route comes first in the order of the questions, of several the one with most voxels.

    One network learns all classes: what the hardest of them needs (more context against noise, a loss that minds topology)
    does the others no harm, while the route of the largest class would give up the hardest.
    """
    return min(classes, key=lambda c: (list(ROUTES).index(c.route), -c.voxels))


def disagreement(
    numbers: Mapping[str, float], config: TriageConfig, word: str, shape: Structure | None, route: Route
) -> str:
    """Return where a person's word leads elsewhere than what was measured; empty where it does not, or nothing tells.

    Parameters
    ----------
    numbers : mapping of str to float
        What was measured, by name.
    config : TriageConfig
        The campaign's thresholds.
    word : str
        What the person said.
    shape : str or None
        The shape that it names.
    route : Route
        Where both together lead.
    """
    if shape is None:
        return ""
    measured, steps = decide(numbers, config)
    if title_of(measured, steps) == UNKNOWN or measured.name == route.name:
        return ""
    return f"by your word '{word}' the route is {route.title}; measured alone it would be {measured.title}"
