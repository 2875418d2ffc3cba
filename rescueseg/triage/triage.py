"""The triage of a campaign: read a bounded sample, measure, ask the tree, write down what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.route import DEFAULT_TRAINER
from rescueseg.config import TriageConfig
from rescueseg.errors import CampaignError, ConfigError
from rescueseg.geometry import Box
from rescueseg.models.registry import suited_to, trainer_names
from rescueseg.progress import Progress
from rescueseg.queue.store import QueueStore
from rescueseg.sampling.holdout import expected_shapes
from rescueseg.triage.evidence import Evidence, ImageMeasures, image_evidence, measure_chunks
from rescueseg.triage.records import ClassTriage, Triage
from rescueseg.triage.rough_masks import rough_patches, with_labels
from rescueseg.triage.structure import RoughPatch, structure_evidence
from rescueseg.triage.tree import MASKS, ROUTES, STRUCTURES, Mask, Route, Step, Structure, decide
from rescueseg.volumes import open_image
from rescueseg.volumes.comparison import ensure_compared
from rescueseg.volumes.subsample import sample_boxes

SAMPLE_VOXELS = 24_000_000
"""Voxels that are looked at, over all volumes."""


def triage(
    campaign: Campaign,
    store: QueueStore,
    *,
    structure: Structure | None = None,
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
        The user's word for the structure; decides the questions about shape.
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
    for value, choices, what in ((structure, (None, *STRUCTURES), "structure"), (mask, MASKS, "mask")):
        if value not in choices:
            raise ConfigError(
                f"'{value}' is unknown", where=what, todo=f"Choose one of {', '.join(k for k in choices if k)}"
            )
    ensure_compared(campaign.volumes, progress)
    measures, chunks_read, chunks = measure_volumes(campaign.volumes, channel, progress)
    rough, source = rough_patches(campaign, store, mask, channel)
    patches = with_labels(rough)
    source = source if patches else "none"
    volumes = campaign.volumes.records()
    of_image = image_evidence(list(measures.values()), [v.spacing_um_zyx for v in volumes])
    classes = triage_classes(campaign, patches, measures, of_image, structure) if source != "threshold" else []
    if len(classes) > 1:
        decisive = hardest(classes)
        evidence, steps, route = list(decisive.evidence), list(decisive.steps), ROUTES[decisive.route]
    else:
        evidence = [*of_image, *structure_evidence(patches, measures)]
        route, steps = decide(numbers_of(evidence), campaign.config.triage, structure, is_guess=source == "threshold")
    numbers = numbers_of(evidence)
    route = harmless(route, numbers, classes)
    trainer, missing = pick_trainer(route)
    return Triage(
        problem=route.problem,
        letter=route.letter,
        route=route,
        trainer=trainer,
        missing=missing,
        structure=structure,
        disagreement=_disagreement(numbers, campaign.config.triage, structure, route),
        mask=source,
        steps=tuple(steps),
        evidence=tuple(evidence),
        thresholds=campaign.config.triage.model_dump(),
        patch_zyx=expected_shapes(campaign),
        complexity=route.complexity,
        advice=(
            *_advice(route, trainer, missing, source, all(p.instances for p in patches)),
            *_cut_advice(steps, classes),
        ),
        chunks_read=chunks_read,
        chunks=chunks,
        classes=tuple(classes) if len(classes) > 1 else (),
    )


def numbers_of(evidence: Sequence[Evidence]) -> dict[str, float]:
    """Return what could be measured, by name."""
    return {e.name: e.value for e in evidence if e.value is not None}


def triage_classes(
    campaign: Campaign,
    patches: Sequence[RoughPatch],
    measures: dict[str, ImageMeasures],
    of_image: Sequence[Evidence],
    structure: Structure | None,
) -> list[ClassTriage]:
    """Measure each annotated class by itself, and say which route would suit it alone."""
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


def measure_volumes(
    folder: VolumeFolder, channel: int, progress: Progress | None = None
) -> tuple[dict[str, ImageMeasures], int, int]:
    """Measure a bounded sample of every volume's chunks.

    Returns
    -------
    measures : dict of str to ImageMeasures
        By volume.
    n_read, total : int
        Chunks read, and chunks in all.
    """
    volumes = folder.records()
    if not volumes:
        raise CampaignError("the campaign has no volume", where=folder.url, todo="Add one with 'rescueseg add'")
    if any(channel >= v.channels for v in volumes):
        raise CampaignError(f"not every volume has a channel {channel}", where=folder.url, todo="Count channels from 0")
    samples: list[tuple[str, Any, list[Box]]] = []
    total = 0
    for volume in volumes:
        array = open_image(folder, volume.volume_id)
        chunk = array.chunks[-3:]
        boxes = sample_boxes(volume.shape_zyx, chunk, SAMPLE_VOXELS // len(volumes), "triage", volume.volume_id)
        samples.append((volume.volume_id, array, boxes))
        total += int(np.prod([-(-n // c) for n, c in zip(volume.shape_zyx, chunk, strict=True)]))
    spacings = {volume.volume_id: volume.spacing_um_zyx for volume in volumes}
    n_read, n_boxes = 0, sum(len(boxes) for _, _, boxes in samples)
    measures = {}
    for volume_id, array, boxes in samples:
        chunks = []
        for box in boxes:
            chunks.append((box, np.asarray(array[(channel, *box.slices)])))
            n_read += 1
            if progress is not None:
                progress("chunk", n_read, n_boxes)
        measures[volume_id] = measure_chunks(chunks, spacings[volume_id])
    return measures, n_read, total


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


def _disagreement(numbers: dict[str, float], config: TriageConfig, word: Structure | None, route: Route) -> str:
    if word is None:
        return ""
    measured, steps = decide(numbers, config)
    if all(step.answer is None for step in steps) or measured.name == route.name:
        return ""
    return f"by your word '{word}' the route is {route.title}; measured alone it would be {measured.title}"


def _cut_advice(steps: Sequence[Step], classes: Sequence[ClassTriage]) -> list[str]:
    """Return what to do where the patches cut the structure, and which class decided."""
    lines = []
    if any("the patches cut it" in step.detail for step in steps):
        lines.append(
            "The patches cut the structure: how long it is is not known. Annotate a larger patch, or say what it is with --structure."
        )
    if len(classes) > 1:
        routes = ", ".join(f"{c.name}: {ROUTES[c.route].title}" for c in classes)
        lines.append(f"Each class alone: {routes}. The route is that of {hardest(classes).name}, the hardest.")
    return lines


def _advice(route: Route, trainer: str, missing: tuple[str, ...], mask: str, instances: bool) -> list[str]:
    lines = [route.annotation]
    if missing:
        lines.append(
            f"{' and '.join(missing)} would come first and {'are' if len(missing) > 1 else 'is'} not installed: {trainer} is the next best."
        )
    lines.append(
        "Try the cheap way first: 'rescueseg weak-label', and see the tuned threshold in the report; the champion must beat it."
    )
    if route.name == "topology" and mask != "none" and not instances:
        lines.append(
            "Cells that are pressed together look like a network in a class mask: if it is cells, say --structure star-convex."
        )
    if mask == "threshold":
        lines.append(
            "The shape was guessed from a threshold, which may have painted something else: annotate one patch and triage again, "
            "or say what it is with --structure."
        )
    elif mask == "none":
        lines.append("Shape and contrast were not measured: annotate one patch, or say what it is with --structure.")
    return lines
