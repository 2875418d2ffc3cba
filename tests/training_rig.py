"""Small campaigns with bright balls on a dim noisy ground: easy, so that a short training learns them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import ANNOTATION
from rescueseg.config import check_config
from rescueseg.geometry import Box
from rescueseg.labels import IGNORE
from rescueseg.models.registry import find_entry, get_trainer
from rescueseg.models.trainer import TrainingRequest
from rescueseg.queue.store import make_queue
from rescueseg.records import Snapshot, SnapshotItem
from rescueseg.storage import digest_array, digest_json
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

SHAPE = (24, 96, 96)
SPACING = (0.2, 0.1, 0.1)
NARROW = {"channels": [8, 16, 32]}
QUICK = {"window_zyx": [8, 32, 32], "threads": 1, "checkpoint_every": 4}
FAMILIES = {"unet": NARROW, "nnunet": NARROW, "stardist": NARROW | {"rays": 18}, "cellpose": NARROW}
"""Tables of the families that have networks to make small."""


def balls(shape: Sequence[int], spacing: Sequence[float], seed: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image (uint16) and truth (uint8): class c is about 1000 * c**2 above a ground of 500."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.uint8)
    field = [n * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    for i in range(24):
        centre = [rng.uniform(0, f) for f in field]
        inside = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < 0.8**2
        truth[inside] = 1 + i % n_classes
    image = 500 + 1000.0 * truth.astype(float) ** 2 + rng.normal(0, 200, shape)
    return np.clip(image, 0, None).astype(np.uint16), truth


def with_tables(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return training settings with changes; those of a family's table leave the rest of the table as it is."""
    inner = {k: {**settings[k], **v} for k, v in changes.items() if isinstance(v, Mapping) and k in settings}
    return {**settings, **changes, **inner}


def make_campaign(
    root: Path,
    *,
    trainer: str = "monai_unet",
    n_classes: int = 1,
    spacings: Sequence[Sequence[float]] = (SPACING,),
    channels: int = 1,
    numbered: bool = False,
    annotates_objects: bool | None = None,
    **training: Any,
) -> Campaign:
    """Make a campaign with one volume per spacing; `training` holds settings, tables of families as dictionaries.

    A numbered truth tells the pieces of one class apart. Where objects are annotated, which is for trainers that learn from
    them unless said otherwise, there is one too.
    """
    if annotates_objects is None:
        annotates_objects = trainer != "auto" and find_entry(trainer).needs_instances
    numbered = numbered or annotates_objects
    config = check_config(
        {
            "name": "rig",
            "classes": [f"class{c}" for c in range(1, n_classes + 1)],
            "training": with_tables({"trainer": trainer, **QUICK, **FAMILIES}, training),
            "inference": {"mc_samples": 2, "tta_symmetries": 2},
            "annotation": {"labels": "instance" if annotates_objects else "semantic"},
        }
    )
    campaign = Campaign.create(str(root / "campaign"), config)
    make_queue(campaign)
    for i, spacing in enumerate(spacings):
        shape = [max(8, round(n * a / b)) for n, a, b in zip(SHAPE, SPACING, spacing, strict=True)]
        image, truth = balls(shape, spacing, i, n_classes)
        stack = image if channels == 1 else np.stack([image, *[image[::-1]] * (channels - 1)], axis=1)
        axes = "ZYX" if channels == 1 else "ZCYX"
        tifffile.imwrite(root / f"v{i}.tif", stack, imagej=True, metadata={"axes": axes})
        tifffile.imwrite(root / f"t{i}.tif", ndimage.label(truth)[0].astype(np.uint16) if numbered else truth)
        import_volume(
            campaign,
            VolumeImport(
                str(root / f"v{i}.tif"),
                volume_id=f"v{i}",
                spacing=spacing,
                truth=str(root / f"t{i}.tif"),
                truth_type="instance" if numbered else "semantic",
            ),
        )
    return campaign


def make_snapshot(
    campaign: Campaign,
    boxes: Sequence[Box],
    *,
    volume_ids: Sequence[str] | None = None,
    halo: Sequence[int] = (0, 0, 0),
    labels: Mapping[int, np.ndarray] | None = None,
) -> Snapshot:
    """Annotate boxes with the truth, or with `labels` where given for a box's index."""
    from rescueseg.volumes import open_truth

    items = []
    for i, box in enumerate(boxes):
        volume_id = volume_ids[i] if volume_ids else "v0"
        truth = open_truth(campaign.volumes, volume_id)
        array = (labels or {}).get(i, np.asarray(truth[box.slices], np.uint8))
        digest = digest_array(array)
        path = ANNOTATION.path(ticket=f"ticket{i}", digest=digest)
        campaign.storage.write_array(path, array)
        numbered = _number_objects(campaign, volume_id, box, path, array)
        items.append(
            SnapshotItem(
                ticket_id=f"ticket{i}",
                volume_id=volume_id,
                box=box,
                read_box=box.expand(halo).clip(truth.shape),
                annotation_id=f"annotation{i}",
                labels=path,
                labels_digest=digest,
                **numbered,
            )
        )
    return Snapshot(
        generation=0,
        items=tuple(items),
        n_classes=campaign.config.n_classes,
        holdout_digest="",
        digest=digest_json([item.to_json() for item in items]),
    )


def _number_objects(campaign: Campaign, volume_id: str, box: Box, labels: str, classes: np.ndarray) -> dict[str, str]:
    """Store the object numbers of a box beside its classes, where the campaign annotates objects."""
    from rescueseg.volumes import open_truth

    if campaign.config.annotation.labels != "instance":
        return {}
    objects = np.asarray(open_truth(campaign.volumes, volume_id, instances=True)[box.slices])
    objects = np.where((classes > 0) & (classes != IGNORE), objects, 0).astype(objects.dtype)
    path = labels.replace(".npz", "-objects.npz")
    campaign.storage.write_array(path, objects)
    return {"instances": path, "instances_digest": digest_array(objects)}


BOXES = (Box((0, 0, 0), (12, 48, 48)), Box((12, 0, 48), (12, 48, 48)), Box((0, 48, 0), (12, 48, 48)))


def main(campaign_url: str, work_dir: str, last: str) -> None:
    """Train the snapshot stored in a campaign: the process that the tests kill, at a step that it does not go beyond."""

    def say(step: int, _: Mapping[str, float]) -> None:
        print(step, flush=True)
        if step == int(last):
            time.sleep(600)

    campaign = Campaign.open(campaign_url)
    snapshot = campaign.generation(0).snapshot()
    assert snapshot is not None
    trainer = get_trainer(campaign.config.training.trainer)
    trainer.train(
        TrainingRequest(campaign.config, campaign.volumes, campaign.holdout(), snapshot, Path(work_dir), 3), say
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
