"""The triage of a campaign: read a bounded sample, measure, ask the tree, write down what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rescueseg.campaign import Campaign
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError
from rescueseg.geometry import ZYX, Patch
from rescueseg.progress import Progress
from rescueseg.queue.store import QueueStore
from rescueseg.sampling.holdout import expected_shapes
from rescueseg.triage.advice import Grounds, advice, disagreement, hardest
from rescueseg.triage.evidence import Evidence, ImageMeasures, image_evidence
from rescueseg.triage.guess import guess_holds
from rescueseg.triage.records import ClassTriage, SuggestedPatch, Triage
from rescueseg.triage.rough_masks import rough_patches, with_labels
from rescueseg.triage.sample import Sample, check_channel, measure_volumes
from rescueseg.triage.structure import RoughPatch, structure_evidence
from rescueseg.triage.suggestion import suggested_patch
from rescueseg.triage.trainer_choice import pick_trainer
from rescueseg.triage.tree import MASKS, ROUTES, Mask, Route, Step, Structure, decide
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
    request = _Request(structure or "", shape, source, all(p.instances for p in patches))
    return _record(decision, request, read, shapes, place, campaign.config)


@dataclass(frozen=True)
class _Decision:
    route: Route
    steps: Sequence[Step]
    evidence: Sequence[Evidence]
    classes: Sequence[ClassTriage] = ()
    is_guess: bool = False
    """Whether the route follows from a threshold's mask."""


@dataclass(frozen=True)
class _Request:
    """What the triage was told, and where its mask comes from."""

    word: str
    shape: Structure | None
    mask: str
    instances: bool


def _record(
    decision: _Decision,
    request: _Request,
    read: Sample,
    shapes: Mapping[str, ZYX],
    place: Patch | None,
    config: CampaignConfig,
) -> Triage:
    """Return the record of a decision, with the trainer that is installed and what people should do."""
    route = decision.route
    trainer = pick_trainer(route, numbered=config.annotation.labels == "instance")
    # what a threshold painted contradicts nobody
    numbers = numbers_of(decision.evidence) if request.mask != "threshold" else {}
    grounds = Grounds(
        route, decision.steps, decision.classes, trainer, request.mask, request.instances, decision.is_guess
    )
    return Triage(
        problem=route.problem,
        letter=route.letter,
        route=route,
        trainer=trainer.name,
        missing=trainer.missing,
        structure=request.shape,
        word=request.word,
        is_guess=decision.is_guess,
        disagreement=disagreement(numbers, config.triage, request.word, request.shape, route),
        mask=request.mask,
        steps=tuple(decision.steps),
        evidence=tuple(decision.evidence),
        thresholds=config.triage.model_dump(),
        patch_zyx=dict(shapes),
        complexity=route.complexity,
        advice=tuple(advice(grounds)),
        chunks_read=read.chunks_read,
        chunks=read.chunks,
        suggested=None if place is None else SuggestedPatch.of(place),
        classes=tuple(decision.classes),
    )


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


def harmless(route: Route, numbers: Mapping[str, float], classes: Sequence[ClassTriage]) -> Route:
    """Return a route whose cleaning harms no class, and fills no vesicle of which the wall is the structure."""
    profiles = {ROUTES[c.route].postprocessing for c in classes}
    if len(profiles) > 1:
        return route.model_copy(update={"postprocessing": "none"})
    if numbers.get("hollow", 0.0) > 0.5 and route.postprocessing == "filled":
        return route.model_copy(update={"postprocessing": "specks"})
    return route
