"""The triage of a campaign: read a bounded sample, measure, ask the tree, write down what came out."""

from __future__ import annotations

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
from rescueseg.triage.evidence import ImageMeasures, image_evidence, measure_chunks, structure_evidence
from rescueseg.triage.records import Triage
from rescueseg.triage.rough_masks import rough_patches, with_labels
from rescueseg.triage.tree import MASKS, STRUCTURES, Mask, Route, Structure, decide
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
    evidence = [
        *image_evidence(list(measures.values()), [v.spacing_um_zyx for v in volumes]),
        *structure_evidence(patches, measures),
    ]
    numbers = {e.name: e.value for e in evidence if e.value is not None}
    route, steps = decide(numbers, campaign.config.triage, structure)
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
        advice=tuple(_advice(route, trainer, missing, source, all(p.instances for p in patches))),
        chunks_read=chunks_read,
        chunks=chunks,
    )


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
        lines.append("The shape was guessed from a threshold: annotate one patch and triage again.")
    elif mask == "none":
        lines.append("Shape and contrast were not measured: annotate one patch, or say what it is with --structure.")
    return lines
