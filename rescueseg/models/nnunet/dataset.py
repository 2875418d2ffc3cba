"""A snapshot as a dataset in nnU-Net's raw format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from rescueseg.campaign import VolumeFolder
from rescueseg.errors import TrainingError
from rescueseg.geometry import Spacing
from rescueseg.labels import IGNORE
from rescueseg.models.nnunet.folds import Case
from rescueseg.models.training_items import Item, load_item
from rescueseg.records import Snapshot


@dataclass(frozen=True)
class Dataset:
    """What `write_dataset` wrote: the cases, and the classes without a labelled voxel."""

    cases: tuple[Case, ...]
    unlabelled_classes: tuple[int, ...]


def write_dataset(volumes: VolumeFolder, snapshot: Snapshot, spacing_um_zyx: Spacing, folder: Path) -> Dataset:
    """Write a snapshot as an nnU-Net dataset.

    A case is all that may be read around a patch, at the working spacing and on its domain's intensity scale; voxels
    that nobody labelled are class K + 1, which nnU-Net calls ``ignore``. Patches without a labelled voxel are left out.

    Parameters
    ----------
    volumes : VolumeFolder
        Where images and labels lie.
    snapshot : Snapshot
        What may be read.
    spacing_um_zyx : tuple of float
        Working spacing, micrometre.
    folder : Path
        Becomes the dataset: ``imagesTr``, ``labelsTr``, ``dataset.json``.

    Raises
    ------
    TrainingError
        If not one voxel is labelled.
    StorageError
        If a label array is damaged.
    """
    ignore = snapshot.n_classes + 1
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    cases: list[Case] = []
    classes: set[int] = set()
    channels = 0
    for item in snapshot.items:
        loaded = load_item(volumes, item, spacing_um_zyx)
        annotated = loaded.labels != IGNORE
        if not annotated.any():
            continue
        classes |= {int(value) for value in np.unique(loaded.labels[annotated])}
        name, channels = f"case_{len(cases):04d}", len(loaded.image)
        _write_case(folder, name, loaded, ignore, spacing_um_zyx)
        cases.append(Case(name, item.volume_id, item.read_box, int(annotated.sum())))
    if not cases:
        raise TrainingError(
            "not one voxel is labelled",
            where=f"snapshot of generation {snapshot.generation}",
            todo="Annotate at least one patch, and leave some voxels other than 255",
        )
    labels = {"background": 0, **{f"class_{c}": c for c in range(1, ignore)}, "ignore": ignore}
    description = {
        "channel_names": {str(c): "noNorm" for c in range(channels)},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".tif",
        "overwrite_image_reader_writer": "Tiff3DIO",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))
    return Dataset(tuple(cases), tuple(c for c in range(1, ignore) if c not in classes))


def _write_case(folder: Path, name: str, item: Item, ignore: int, spacing_um_zyx: Spacing) -> None:
    """Write one case so that nnU-Net's preprocessing leaves it as it is.

    What is exactly zero at a border would be cropped, and a dataset without a voxel above background has no
    fingerprint: zeros become the smallest number, and every case ends in one mirrored plane that is ignored.
    """
    image = np.pad(item.image, [(0, 0), (0, 1), (0, 0), (0, 0)], mode="symmetric")
    image[image == 0] = np.finfo(np.float32).tiny
    labels = np.where(item.labels == IGNORE, ignore, item.labels.astype(np.int16)).astype(np.int16)
    labels = np.pad(labels, [(0, 1), (0, 0), (0, 0)], constant_values=ignore)
    spacing = json.dumps({"spacing": spacing_um_zyx})
    for channel, plane in enumerate(image):
        tifffile.imwrite(folder / "imagesTr" / f"{name}_{channel:04d}.tif", plane, photometric="minisblack")
    tifffile.imwrite(folder / "labelsTr" / f"{name}.tif", labels, photometric="minisblack")
    for part in ("imagesTr", "labelsTr"):
        (folder / part / f"{name}.json").write_text(spacing)
