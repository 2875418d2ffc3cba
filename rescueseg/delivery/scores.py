"""How good the delivered masks are on the test boxes, beside what the model alone and what the threshold alone would give.

The figures are those of `rescueseg.evaluation`, computed from what lies in the delivery: a mask that was cleaned in the whole
volume is cropped to the box, not cleaned in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.delivery.folder import MASK, OBJECTS, DeliveryFolder, SourceVolume
from rescueseg.delivery.heights import foreground
from rescueseg.delivery.label_arrays import LabelArray
from rescueseg.delivery.records import Delivery, DeliveryRule, Score
from rescueseg.delivery.uncleaned import uncleaned_of_box
from rescueseg.evaluation.box_objects import TrueObjects
from rescueseg.evaluation.holdout_scores import Assignment, score_box
from rescueseg.evaluation.instances import connected_components, renumber_objects
from rescueseg.evaluation.pooled import group_scores
from rescueseg.evaluation.scores import FORMAT, BoxScore, Evaluation
from rescueseg.evaluation.truth import truth_of_part
from rescueseg.geometry import Box
from rescueseg.labels import IGNORE, most_likely
from rescueseg.models.predictor import PROBABILITY
from rescueseg.records import HoldoutBox

FIGURES = ("dice", "cldice", "betti0_error", "betti1_error", "betti2_error", "ap50", "ap75", "pq", "vi")
"""Names as in `rescueseg.evaluation.metric_table`; those without a value are left out."""
Variant = Literal["most_likely", "rule", "delivered"]
_Mask = npt.NDArray[np.uint8]


def delivered_scores(
    campaign: Campaign, folder: DeliveryFolder, delivery: Delivery, sources: Sequence[SourceVolume]
) -> tuple[tuple[Score, ...], int]:
    """Score a delivery on the test boxes of the campaign's volumes in it.

    Parameters
    ----------
    campaign : Campaign
        With the truth of the boxes.
    folder : DeliveryFolder
        With the finished labels.
    delivery : Delivery
        Its rule and its model.
    sources : sequence of SourceVolume
        What was delivered, with the maps; those of files are left out.

    Returns
    -------
    scores : tuple of Score
        Dice, its value for each class as "dice of …" where there are several, clDice, errors of the Betti numbers, and where
        the truth numbers objects AP, panoptic quality and variation of information: of the delivered objects, and of
        connected pieces for what was not made into objects. Without maps, which may be removed, only what was delivered
        has figures.
    boxes : int
        How many boxes these rest on; 0 and no scores without one.

    Raises
    ------
    RescuesegError
        If a file of truth, maps or labels is damaged.
    """
    source_of = {source.volume_id: source for source in sources if source.volumes_url == campaign.url}
    truth = truth_of_part(campaign, "test")
    boxes = [b for b in truth.boxes if b.volume_id in source_of and (truth.labels(b) != IGNORE).any()]
    if not boxes:
        return (), 0
    assignment = Assignment(delivery.model, truth, delivery.classes, ("none", 0.0))
    variants: tuple[Variant, ...] = ("most_likely", "rule", "delivered")
    if not all(source_of[b.volume_id].maps.reference() for b in boxes):
        variants = ("delivered",)
    figures = {}
    for variant in variants:
        scored = [_score(assignment, folder, delivery.rule, source_of[b.volume_id], b, variant) for b in boxes]
        figures[variant] = _figures(assignment, scored)
    names = dict.fromkeys(name for variant in reversed(variants) for name in figures[variant])
    scores = [
        Score(
            name=name,
            most_likely=figures.get("most_likely", {}).get(name),
            rule=figures.get("rule", {}).get(name),
            delivered=figures["delivered"].get(name),
        )
        for name in names
    ]
    return tuple(scores), len(boxes)


def _figures(assignment: Assignment, boxes: Sequence[BoxScore]) -> dict[str, float]:
    """Return the figures of scored boxes, by name."""
    evaluation = Evaluation(
        generation=assignment.model.generation,
        model_digest=assignment.model.digest,
        validation=None,
        test=None,
        boxes=tuple(boxes),
        format=FORMAT,
    )
    figures: dict[str, float] = {}
    for group in group_scores(evaluation, "test", assignment.classes):
        values = {name: figure.value for name, figure in group.scores.items()}
        if group.kind == "all":
            figures |= {name: values[name] for name in FIGURES if name in values}
        elif group.kind == "class" and "dice" in values:
            figures[f"dice of {group.name}"] = values["dice"]
    return figures


def _score(
    assignment: Assignment,
    folder: DeliveryFolder,
    rule: DeliveryRule,
    source: SourceVolume,
    box: HoldoutBox,
    variant: Variant,
) -> BoxScore:
    """Score a mask in one box as a model that is sure of it."""
    region = assignment.truth.context(box)
    mask = _mask(folder, rule, source, region, variant)
    sure = np.stack([mask == c for c in range(len(assignment.classes) + 1)]).astype(np.float32)
    score = score_box(assignment, box, {PROBABILITY: sure}, np.zeros(box.box.shape_zyx, np.float32))
    if rule.objects is None:
        return score
    between = rule.objects.source == "boundary"
    true = TrueObjects.of(assignment.truth, box, lambda labels: (labels == rule.object_class) != between)
    if true is None:
        return score
    if variant == "delivered":
        made: npt.NDArray[Any] = LabelArray(f"{folder.image_url(box.volume_id)}/labels/{OBJECTS}", "0").read(region)
    else:
        made = connected_components(foreground(mask, rule, len(assignment.classes)))
    instances = true.compare(renumber_objects(made))
    details = [
        detail.model_copy(update={"instances": instances if c == rule.object_class else None})
        for c, detail in enumerate(score.details, start=1)
    ]
    return score.model_copy(update={"details": tuple(details)})


def _mask(folder: DeliveryFolder, rule: DeliveryRule, source: SourceVolume, region: Box, variant: Variant) -> _Mask:
    if variant == "delivered":
        array = LabelArray(f"{folder.image_url(source.volume_id)}/labels/{MASK}", "0")
        return array.read(region).astype(np.uint8)
    stored = source.maps.open(PROBABILITY)[(slice(None), *region.slices)]
    probability = np.asarray(stored, np.float32)
    return most_likely(probability) if variant == "most_likely" else uncleaned_of_box(probability, rule)
