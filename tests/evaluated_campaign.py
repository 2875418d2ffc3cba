"""A campaign whose model is a blurred, noisy truth: everything evaluation and report read, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import SNAPSHOT, TRAINING, TrainingResult
from rescueseg.config import check_config
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.champion import EVALUATION, judge
from rescueseg.evaluation.holdout_scores import evaluate_generation
from rescueseg.geometry import ZYX, Box
from rescueseg.inference.engine import volume_digest
from rescueseg.inference.maps import InferencePlan, VolumeMaps
from rescueseg.models.predictor import Output
from rescueseg.queue.store import make_queue
from rescueseg.records import Holdout, HoldoutBox, LabelType, MapReference, ModelReference, Snapshot, SnapshotItem
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

SHAPE = (24, 96, 96)
SPACING = (0.2, 0.1, 0.1)
STRATA = ("dense", "typical")
"""Four boxes of each in either part."""


def holdout_boxes(parts: tuple[str, ...] = ("validation", "test")) -> Holdout:
    """Return 8 boxes per part of 8×24×24 voxels on a grid."""
    boxes = [
        HoldoutBox(
            volume_id="phantom",
            box=Box((z, y, x), (8, 24, 24)),
            part=parts[i % len(parts)],
            stratum=STRATA[i // 2 % 2],
        )
        for i, (z, y, x) in enumerate((z, y, x) for z in (0, 12) for y in (0, 30, 60) for x in (0, 30, 60))
    ][:16]
    return Holdout(boxes=tuple(boxes), guard_zyx=(2, 4, 4))


def make_campaign(
    folder: Path,
    truth: bool = True,
    labels: npt.NDArray[Any] | None = None,
    classes: Sequence[str] = ("organelle",),
    truth_type: LabelType = "semantic",
) -> Campaign:
    """Return a campaign with one phantom volume and a frozen holdout; its truth are the labels, the phantom's without."""
    folder.mkdir(exist_ok=True)
    campaign = Campaign.create(str(folder / "campaign"), check_config({"name": "phantom", "classes": [*classes]}))
    make_queue(campaign)
    image, phantom, _ = make_phantom(SHAPE, SPACING, 3)
    for name, array in (("image", image), ("truth", phantom if labels is None else labels)):
        tifffile.imwrite(folder / f"{name}.tif", array)
    import_volume(
        campaign,
        VolumeImport(
            str(folder / "image.tif"),
            volume_id="phantom",
            spacing=SPACING,
            truth=str(folder / "truth.tif") if truth else None,
            truth_type=truth_type,
        ),
    )
    campaign.freeze_holdout(holdout_boxes())
    return campaign


def phantom_truth() -> npt.NDArray[np.uint8]:
    """Return the truth of the campaign's volume."""
    return make_phantom(SHAPE, SPACING, 3)[1]


def write_generation(
    campaign: Campaign, generation: int, noise: float, judged: bool = True, trainer: str = "monai_unet"
) -> None:
    """Write model, snapshot, maps and judgement of a generation whose errors grow with `noise`."""
    truth = phantom_truth()
    rng = np.random.default_rng(generation)
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), (0.7, 1.5, 1.5))
    logit = 4 * ndimage.gaussian_filter((truth > 0) - 0.5, 0.6) + noise * field / field.std()
    foreground = 1 / (1 + np.exp(-2 * logit))
    probability = np.stack([1 - foreground, foreground])
    entropy = -(probability * np.log(np.clip(probability, 1e-9, 1))).sum(axis=0)
    write_maps(campaign, generation, probability, entropy)
    write_model(campaign, generation, trainer)
    if judged:
        folder, evaluation = (
            campaign.generation(generation),
            evaluate_generation(campaign, generation, choose_scored_objects),
        )
        folder.write(EVALUATION, judge(campaign.generations(), evaluation, campaign.config))


def write_volume_maps(campaign: Campaign, generation: int, mask: npt.NDArray[np.bool_]) -> None:
    """Write model, snapshot and maps of a generation that is sure of a mask."""
    write_maps(campaign, generation, np.stack([~mask, mask]).astype(float), np.zeros(mask.shape))
    write_model(campaign, generation)


def write_model(campaign: Campaign, generation: int, trainer: str = "monai_unet") -> None:
    """Write a snapshot clear of the holdout and the reference of a model."""
    items = tuple(
        SnapshotItem(
            ticket_id=f"t{i}",
            volume_id="phantom",
            box=Box((i % 8, i, 86), (16, 20, 10)),
            read_box=Box((i % 8, i, 86), (16, 20, 10)),
            annotation_id=f"a{i}",
            labels="l",
            labels_digest="d",
        )
        for i in range(4 * (generation + 1))
    )
    snapshot = Snapshot(generation=generation, items=items, n_classes=1, holdout_digest="", digest=f"{generation:064x}")
    campaign.generation(generation).write(SNAPSHOT, snapshot)
    model = ModelReference(generation=generation, trainer=trainer, path="m", digest=f"{generation:064x}")
    campaign.generation(generation).write(TRAINING, TrainingResult(model=model, iterations=1))


def write_maps(
    campaign: Campaign,
    generation: int,
    probability: npt.NDArray[np.float64],
    entropy: npt.NDArray[np.float64],
    volume_id: str = "phantom",
    block: ZYX | None = None,
    others: Mapping[str, npt.NDArray[np.float64]] | None = None,
    outputs: Sequence[Output] = (),
) -> None:
    """Write the two maps that evaluation reads and others, in one block or in several, and what makes them complete.

    `outputs` are those of the others that the model says itself.
    """
    record = campaign.volumes.record(volume_id)
    shape, spacing = record.shape_zyx, record.spacing_um_zyx
    plan = InferencePlan(
        model=ModelReference(generation=generation, trainer="monai_unet", path="m", digest=f"{generation:064x}"),
        volume_id=volume_id,
        volume_digest=volume_digest(record),
        shape_zyx=shape,
        spacing_um_zyx=spacing,
        n_classes=len(probability) - 1,
        seed=0,
        inference=campaign.config.inference,
        window_zyx=(8, 32, 32),
        block_zyx=block or shape,
        chunk_zyx=block or shape,
        outputs=tuple(outputs),
    )
    maps = VolumeMaps(campaign.generation(generation), volume_id)
    maps.prepare(plan, campaign.config.classes)
    arrays = {"probability": probability, "predictive_entropy": entropy, **(others or {})}
    for index, box in enumerate(plan.blocks):
        files = {}
        for name, array in arrays.items():
            files |= maps.write(name, box, array[(..., *box.slices)].astype(np.float16))
        maps.mark(plan, index, "d", files)
    maps.finish(
        MapReference(
            generation=generation,
            volume_id=volume_id,
            model_digest=f"{generation:064x}",
            quantities=tuple(arrays),
            blocks=len(plan.blocks),
            digest="d",
        )
    )
