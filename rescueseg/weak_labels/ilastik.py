"""A headless run of ilastik on a user's pixel-classification project (`.ilp`), where ilastik is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rescueseg.errors import WeakLabelError, storage_errors
from rescueseg.geometry import ZYX, Spacing
from rescueseg.records import Normalisation
from rescueseg.volumes.normalise import denormalise
from rescueseg.weak_labels.base import Float32, WeakLabel, from_probabilities

VARIABLE = "RESCUESEG_ILASTIK"
"""Environment variable that names ilastik's program where it is not on the PATH."""
PROGRAMS = ("run_ilastik.sh", "ilastik")
MARGIN: ZYX = (35, 35, 35)
"""Reach of ilastik's largest default feature: 3.5 times a scale of 10 voxels."""


@dataclass(frozen=True)
class IlastikLabeller:
    """Runs ilastik's headless mode [1]_ on each block; it gets intensities as they were imported.

    Parameters
    ----------
    program : str
        ilastik's program.
    project : str
        The `.ilp` file.
    order : tuple of int
        ilastik's label (counted from 0) of background and of each class.
    normalisation : Normalisation
        Of the volume: taken back, since the project was trained on raw intensities.
    dtype : str
        Type of the volume's voxels.

    References
    ----------
    .. [1] https://www.ilastik.org/documentation/basics/headless; Berg et al., doi:10.1038/s41592-019-0582-9.
    """

    program: str
    project: str
    order: tuple[int, ...]
    normalisation: Normalisation
    dtype: str

    name = "ilastik"

    @property
    def n_classes(self) -> int:
        """Number of classes, background not counted."""
        return len(self.order) - 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:  # noqa: ARG002
        """Return the reach of ilastik's features, which are in voxels."""
        return MARGIN

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:  # noqa: ARG002
        """Label an image (float32 czyx); see `WeakLabeller`.

        Raises
        ------
        WeakLabelError
            If ilastik fails, or what it writes does not fit.
        """
        with tempfile.TemporaryDirectory(prefix="rescueseg-ilastik-") as folder, storage_errors(folder):
            source, target = Path(folder, "image.h5"), Path(folder, "probabilities.h5")
            with h5py.File(source, "w") as file:
                file["data"] = np.moveaxis(self._raw(image), 0, -1)
            self._run(source, target)
            with h5py.File(target) as file:
                probabilities = np.asarray(file["exported_data"], np.float32)
        if (
            probabilities.shape[:3] != image.shape[1:]
            or probabilities.ndim != 4
            or probabilities.shape[3] <= max(self.order)
        ):
            raise WeakLabelError(
                f"ilastik wrote probabilities of shape {probabilities.shape} for an image of {image.shape[1:]} (z, y, x)",
                where=self.project,
                todo="Use a pixel classification project for 3D images (z, y, x, channel)",
            )
        return from_probabilities(np.ascontiguousarray(np.moveaxis(probabilities, -1, 0)[list(self.order)]))

    def _raw(self, image: Float32) -> Any:
        raw, kind = denormalise(image, self.normalisation), np.dtype(self.dtype)
        if kind.kind == "f":
            return raw.astype(kind)
        return np.clip(np.rint(raw.astype(np.float64)), np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)

    def _run(self, source: Path, target: Path) -> None:
        command = [
            self.program,
            "--headless",
            "--readonly=1",
            f"--project={self.project}",
            "--export_source=Probabilities",
            "--output_format=hdf5",
            "--output_axis_order=zyxc",
            "--output_internal_path=/exported_data",
            f"--output_filename_format={target}",
            "--input_axes=zyxc",
            f"--raw_data={source}/data",
        ]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode or not target.exists():
            lines = [line.strip() for line in (process.stderr or process.stdout).splitlines() if line.strip()]
            raise WeakLabelError(
                f"ilastik failed with status {process.returncode}: {lines[-1] if lines else 'it lines nothing'}",
                where=self.project,
                todo="Open the project in ilastik, check that it predicts, and save it",
            )


def find_ilastik() -> str:
    """Return ilastik's program: the one that `RESCUESEG_ILASTIK` names, else the one on the PATH.

    Raises
    ------
    WeakLabelError
        If there is none.
    """
    named = os.environ.get(VARIABLE, "")
    program = shutil.which(named) if named else next((p for name in PROGRAMS if (p := shutil.which(name))), None)
    if program is None:
        raise WeakLabelError(
            f"{named} is no program" if named else "ilastik is not installed",
            where="--method ilastik",
            todo=f"Install it from https://www.ilastik.org, and set {VARIABLE} to its run_ilastik.sh",
        )
    return program


def label_order(project: str, classes: Sequence[str]) -> tuple[int, ...]:
    """Return which label of a project is the background, and which each class.

    Labels are matched by name where all classes are found by theirs; the first other one is the background.
    Otherwise the first label is the background, and the others are the classes in their order.

    Parameters
    ----------
    project : str
        The `.ilp` file.
    classes : sequence of str
        Names of the campaign's classes 1…K.

    Raises
    ------
    WeakLabelError
        If it cannot be read, is no pixel classification, or has another number of labels than background and classes.
    """
    try:
        with h5py.File(project) as file:
            names = [n.decode() if isinstance(n, bytes) else str(n) for n in file["PixelClassification/LabelNames"][()]]
    except (OSError, KeyError) as error:
        raise WeakLabelError(
            f"it is no pixel classification project: {error}", where=project, todo="Give the .ilp that ilastik saved"
        ) from error
    if len(names) != len(classes) + 1:
        raise WeakLabelError(
            f"the project has {len(names)} labels ({', '.join(names)}), the campaign background and {len(classes)} classes",
            where=project,
            todo="Train a project with one label for the background and one for each class",
        )
    lower = [name.strip().lower() for name in names]
    class_names = [name.strip().lower() for name in classes]
    if set(class_names) <= set(lower) and len(set(lower)) == len(lower):
        order = [lower.index(name) for name in class_names]
        return (next(i for i in range(len(names)) if i not in order), *order)
    return tuple(range(len(names)))
