"""Delivered labels as TIFF, NIfTI and NRRD, for programs that know no OME-Zarr."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescueseg.delivery.block_pass import Arrays
from rescueseg.delivery.folder import MASK, OBJECTS
from rescueseg.delivery.label_arrays import LabelArray
from rescueseg.delivery.label_files import LabelFile, write_nifti, write_nrrd, write_tiff
from rescueseg.delivery.records import ExportedFile
from rescueseg.delivery.request import Format
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.delivery.whole_file import whole_file
from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.image_files.placement import Placement
from rescueseg.storage import digest_json
from rescueseg.volumes.ome_zarr import open_level

_WRITERS: Mapping[Format, tuple[str, Callable[[Path, LabelFile], None]]] = {
    "tiff": (".tif", write_tiff),
    "nifti": (".nii.gz", write_nifti),
    "nrrd": (".nrrd", write_nrrd),
}
_UM_PER_MM = 1000.0
_PYRAMID = 4 / 3
"""Voxels of all levels for each at full resolution, where two axes are halved at a time."""
_MARGIN = 1.02
"""For headers, indices, and blocks that cannot be compressed."""


def export_labels(target: TargetVolume, step: Step, formats: Sequence[Format]) -> tuple[ExportedFile, ...]:
    """Write ``<volume>_mask`` and, where there are objects, ``<volume>_objects`` in each format, plane by plane.

    A file has its name when it is complete. One that was written for the same is left alone. Where the volume came from a
    file with a place in space, such as a NIfTI, the NIfTI and NRRD have the same place, so that they lie on it.

    Parameters
    ----------
    target : TargetVolume
        Its labels must be complete at full resolution.
    step : Step
        Of the export.
    formats : sequence of {"tiff", "nifti", "nrrd"}
        ``.tif`` (see `rescueseg.delivery.label_files.write_tiff`), ``.nii.gz``, ``.nrrd``.

    Returns
    -------
    tuple of ExportedFile
        All files of these formats, also those that were there.

    Raises
    ------
    StorageError
        If the disk is full.
    """
    names = (MASK,) if target.rule.objects is None else (MASK, OBJECTS)
    return tuple(_export(target, step, name, form) for form in formats for name in names)


def _export(target: TargetVolume, step: Step, name: str, form: Format) -> ExportedFile:
    ending, write = _WRITERS[form]
    path = f"{target.volume_id}_{name}{ending}"
    made_for = digest_json([step.digest, name, form, list(target.spacing_um_zyx)])
    storage, note = target.out.storage, f"{name}_{form}.json"
    if step.storage.exists(note) and storage.exists(path):
        known = step.storage.read_json(note)
        if known == {"made_for": made_for, "bytes": storage.fs.size(storage.path(path))}:
            return ExportedFile(path=path, format=form, bytes=known["bytes"])
    labels = _label_file(target, step, name)
    with whole_file(storage, path) as part:
        write(part, labels)
        size = part.stat().st_size
    step.storage.write_json(note, {"made_for": made_for, "bytes": size})
    return ExportedFile(path=path, format=form, bytes=size)


def _label_file(target: TargetVolume, step: Step, name: str) -> LabelFile:
    array = open_level(target.label_url(name))
    blocks = zyx(array.shards or array.chunks)
    finding = step.run(step.block_pass(f"highest_{name}", zyx(array.shape), blocks), _highest, target.labels(name))
    affine, in_mm = _affine_um(target)
    return LabelFile(
        array=array,
        spacing_um_zyx=target.spacing_um_zyx,
        affine_um=affine,
        highest=max(int(result["highest"]) for result in finding.results()),
        classes=len(target.rule.cleanup) if name == MASK else None,
        in_mm=in_mm,
    )


def _highest(labels: LabelArray, box: Box) -> Arrays:
    return {"highest": np.asarray(labels.read(box).max())}


def _affine_um(target: TargetVolume) -> tuple[Any, bool]:
    """Return where voxels lie, x, y, z to micrometre, and whether the image's file says so in millimetre."""
    said = target.source.volumes.record(target.volume_id).placement
    placement = Placement.from_json(said) if said else None
    if placement is not None and placement.space == "anatomical" and placement.um_per_unit:
        affine = placement.affine.copy()
        affine[:3] *= placement.um_per_unit
        sizes = [step * placement.um_per_unit for step in placement.steps]
        if np.allclose(sizes, target.spacing_um_zyx, rtol=1e-3, atol=0):
            return affine, math.isclose(placement.um_per_unit, _UM_PER_MM)
    return np.diag([*target.spacing_um_zyx[::-1], 1.0]), False


def bytes_of_delivery(
    shape_zyx: ZYX, channels: int, itemsize: int, *, with_objects: bool, formats: Sequence[Format]
) -> dict[str, int]:
    """Return how many bytes a delivered volume takes at most; labels mostly take a small part of it.

    Parameters
    ----------
    shape_zyx : tuple of int
        In voxels.
    channels, itemsize : int
        Of its image, and bytes of a voxel of one channel; 0 channels where it is left out.
    with_objects : bool
        Whether there are objects beside the mask.
    formats : sequence of str
        Files that are written besides.

    Returns
    -------
    dict of str to int
        Of "image", "labels" and "files".

    Examples
    --------
    >>> bytes_of_delivery((10, 100, 100), 1, 2, with_objects=True, formats=("tiff",))
    {'image': 272000, 'labels': 680000, 'files': 510000}
    """
    voxels = math.prod(shape_zyx) * _MARGIN
    of_labels = 5 if with_objects else 1
    return {
        "image": round(voxels * channels * itemsize * _PYRAMID),
        "labels": round(voxels * of_labels * _PYRAMID),
        "files": round(voxels * of_labels * len(formats)),
    }
