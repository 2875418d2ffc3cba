"""The triage of a campaign: read a bounded sample, measure, ask the tree, write down what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import DEFAULT_TRAINER
from rescueseg.config import TriageConfig
from rescueseg.errors import ConfigError
from rescueseg.models.registry import suited_to, trainer_names
from rescueseg.progress import Progress
from rescueseg.queue.store import QueueStore
from rescueseg.sampling.holdout import expected_shapes
from rescueseg.triage.evidence import Evidence, ImageMeasures, image_evidence
from rescueseg.triage.guess import guess_holds
from rescueseg.triage.records import ClassTriage, SuggestedPatch, Triage
from rescueseg.triage.rough_masks import rough_patches, with_labels
from rescueseg.triage.sample import check_channel, measure_volumes
from rescueseg.triage.structure import RoughPatch, structure_evidence
from rescueseg.triage.suggestion import suggested_patch
from rescueseg.triage.tree import CUT, MASKS, ROUTES, UNKNOWN, Mask, Route, Step, Structure, decide, title_of
from rescueseg.triage.words import Named, shape_of
from rescueseg.volumes.comparison import ensure_compared


def triage(
    campaign: Campaign,
    store: QueueStore,
    *,
    structure: Named | None = None,
    mask: Mask = "auto",
    channel: int = 0,
    progress: Progress | None = None,
) -> Triage:
    """Triage a campaign; `rescueseg.stages.triage` writes down what is returned.

    Parameters
    ----------
    campaign : Campaign
        With at least one volume. Its ``triage`` settings hold the thresholds.
    store : QueueStore
        Its queue: accepted annotations make the best rough mask.
    structure : str, optional
        The user's word for the structure, such as "mitochondria"; decides the questions about shape.
    mask : str
        Where a rough mask comes from; see `rescueseg.triage.rough_masks.rough_patches`.
    channel : int
        Of the image.
    progress : callable, optional
        Told how far the reading is.

    Returns
    -------
    Triage
        The same for the same volumes, mask and settings.

    Raises
    ------
    ConfigError
        If the structure or the kind of mask is unknown.
    CampaignError
        If the campaign has no volume, or none with this channel.
    SamplingError
        If the mask asked for cannot be had.
    """
    shape = shape_of(structure)
    if mask not in MASKS:
        raise ConfigError(f"'{mask}' is unknown", where="mask", todo=f"Choose one of {', '.join(MASKS)}")
    ensure_compared(campaign.volumes, progress)
    check_channel(campaign.volumes, channel)
    rough, source = rough_patches(campaign, store, mask, channel)
    shapes = expected_shapes(campaign)  # patches of truth that are drawn just now are in the way of the holdout
    read = measure_volumes(campaign.volumes, channel, shapes, progress)
    place = suggested_patch(campaign, store, read.places)
    patches = with_labels(rough)
    source = source if patches else "none"
    decision = _decision(campaign, patches, read.measures, shape, is_threshold=source == "threshold")
    route, numbers = decision.route, numbers_of(decision.evidence)
    trainer, missing = pick_trainer(route)
    return Triage(
        problem=route.problem,
        letter=route.letter,
        route=route,
        trainer=trainer,
        missing=missing,
        structure=shape,
        word=structure or "",
        is_guess=decision.is_guess,
        disagreement=""
        if source == "threshold"
        else _disagreement(numbers, campaign.config.triage, structure, shape, route),
        mask=source,
        steps=tuple(decision.steps),
        evidence=tuple(decision.evidence),
        thresholds=campaign.config.triage.model_dump(),
        patch_zyx=shapes,
        complexity=route.complexity,
        advice=(
            *_advice(decision, trainer, missing, source, instances=all(p.instances for p in patches)),
            *_cut_advice(decision.steps, decision.classes),
        ),
        chunks_read=read.chunks_read,
        chunks=read.chunks,
        suggested=None if place is None else SuggestedPatch.of(place),
        classes=tuple(decision.classes),
    )


@dataclass(frozen=True)
class _Decision:
    route: Route
    steps: Sequence[Step]
    evidence: Sequence[Evidence]
    classes: Sequence[ClassTriage] = ()
    is_guess: bool = False
    """Whether the route follows from a threshold's mask."""


def _decision(
    campaign: Campaign,
    patches: Sequence[RoughPatch],
    measures: Mapping[str, ImageMeasures],
    shape: Structure | None,
    *,
    is_threshold: bool,
) -> _Decision:
    """Measure the patches and ask the tree, class by class where several are annotated."""
    config = campaign.config.triage
    of_image = image_evidence(list(measures.values()), [v.spacing_um_zyx for v in campaign.volumes.records()])
    classes = [] if is_threshold else triage_classes(campaign, patches, measures, of_image, shape)
    if classes:
        decisive = hardest(classes)
        route = harmless(ROUTES[decisive.route], numbers_of(decisive.evidence), classes)
        return _Decision(route, decisive.steps, decisive.evidence, classes)
    is_blind = is_threshold and not guess_holds(patches, measures, config)
    evidence = [*of_image, *structure_evidence(patches, measures)]
    route, steps = decide(numbers_of(evidence), config, shape, is_blind=is_blind)
    is_guess = is_threshold and shape is None and route.problem in ("boundary", "topology")
    return _Decision(harmless(route, numbers_of(evidence), []), steps, evidence, is_guess=is_guess)


def numbers_of(evidence: Sequence[Evidence]) -> dict[str, float]:
    """Return what could be measured, by name."""
    return {e.name: e.value for e in evidence if e.value is not None}


def triage_classes(
    campaign: Campaign,
    patches: Sequence[RoughPatch],
    measures: Mapping[str, ImageMeasures],
    of_image: Sequence[Evidence],
    structure: Structure | None,
) -> list[ClassTriage]:
    """Measure each annotated class by itself, and say which route would suit it alone; nothing where there is only one."""
    voxels: Counter[int] = Counter()
    for patch in patches:
        voxels.update(patch.class_voxels())
    if len(voxels) < 2:
        return []
    found = []
    for value in sorted(voxels):
        evidence = [*of_image, *structure_evidence([patch.of_class(value) for patch in patches], measures)]
        route, steps = decide(numbers_of(evidence), campaign.config.triage, structure)
        name = campaign.config.classes[value - 1]
        found.append(
            ClassTriage(name=name, route=route.name, voxels=voxels[value], steps=tuple(steps), evidence=tuple(evidence))
        )
    return found


def hardest(classes: Sequence[ClassTriage]) -> ClassTriage:
    """Return the class whose route comes first in the order of the questions, of several the one with most voxels.

    One network learns all classes: what the hardest of them needs (more context against noise, a loss that minds topology)
    does the others no harm, while the route of the largest class would give up the hardest.
    """
    return min(classes, key=lambda c: (list(ROUTES).index(c.route), -c.voxels))


def harmless(route: Route, numbers: Mapping[str, float], classes: Sequence[ClassTriage]) -> Route:
    """Return a route whose cleaning harms no class, and fills no vesicle of which the wall is the structure."""
    profiles = {ROUTES[c.route].postprocessing for c in classes}
    if len(profiles) > 1:
        return route.model_copy(update={"postprocessing": "none"})
    if numbers.get("hollow", 0.0) > 0.5 and route.postprocessing == "filled":
        return route.model_copy(update={"postprocessing": "specks"})
    return route


def pick_trainer(route: Route) -> tuple[str, tuple[str, ...]]:
    """Return the first of a route's trainers that is installed, and the better ones that are not.

    A trainer of another package that names the route as its own comes first, unless the route has a place for it.
    """
    others = tuple(name for name in suited_to(route.name) if name not in route.trainers)
    installed = trainer_names()
    for index, name in enumerate(ranked := (*others, *route.trainers)):
        if name in installed:
            return name, ranked[:index]
    return DEFAULT_TRAINER, ranked


def _disagreement(
    numbers: dict[str, float], config: TriageConfig, word: str | None, shape: Structure | None, route: Route
) -> str:
    if shape is None:
        return ""
    measured, steps = decide(numbers, config)
    if title_of(measured, steps) == UNKNOWN or measured.name == route.name:
        return ""
    return f"by your word '{word}' the route is {route.title}; measured alone it would be {measured.title}"


def _cut_advice(steps: Sequence[Step], classes: Sequence[ClassTriage]) -> list[str]:
    """Return what to do where the patches cut the structure, and which class decided."""
    lines = []
    if any(CUT in step.detail for step in steps):
        lines.append(
            "The patches cut the structure: how long it is is not known. Annotate a larger patch, or say what it is with --structure."
        )
    if len(classes) > 1:
        routes = ", ".join(f"{c.name}: {ROUTES[c.route].title}" for c in classes)
        lines.append(f"Each class alone: {routes}. The route is that of {hardest(classes).name}, the hardest.")
    return lines


def _advice(decision: _Decision, trainer: str, missing: tuple[str, ...], mask: str, *, instances: bool) -> list[str]:
    lines = [decision.route.annotation]
    if missing:
        lines.append(
            f"{' and '.join(missing)} would come first and {'are' if len(missing) > 1 else 'is'} not installed: {trainer} is the next best."
        )
    lines.append(
        "Try the cheap way first: 'rescueseg weak-label', and see the tuned threshold in the report; the champion must beat it."
    )
    if decision.route.name == "topology" and mask != "none" and not instances:
        lines.append(
            "Cells that are pressed together look like a network in a class mask: if it is cells, say --structure cells."
        )
    if decision.is_guess:
        lines.append(
            "The shape was guessed from a threshold, which may have painted something else: confirm it by one annotated patch, "
            "or say what it is with --structure."
        )
    elif mask == "threshold":
        lines.append(
            "What a threshold paints here does not tell the shape: annotate one patch and triage again, or say what it is "
            "with --structure."
        )
    elif mask == "none":
        lines.append("Shape and contrast were not measured: annotate one patch, or say what it is with --structure.")
    return lines
