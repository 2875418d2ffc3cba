"""Cellpose-SAM as weak labeller: cellpose 4 runs in an environment of its own, for it cannot be installed beside cellpose 3."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rescueseg.errors import WeakLabelError, storage_errors
from rescueseg.geometry import ZYX, Spacing, resampled_shape, zyx
from rescueseg.models.cellpose.sections import plane_axes
from rescueseg.models.resample import resample
from rescueseg.records import VolumeRecord
from rescueseg.storage import file_digest
from rescueseg.weak_labels import cellpose_sam_program
from rescueseg.weak_labels.base import Float32, Numbers, WeakLabel, WeakLabeller, from_probabilities
from rescueseg.weak_labels.choice import Sources
from rescueseg.weak_labels.flow_objects import PERCENTILES, flow_objects
from rescueseg.weak_labels.intensities import PercentileScaling
from rescueseg.weak_labels.published import CELLPOSE_LICENCE, Published, check_channels

PIXELS = 30.0
"""How wide objects are shown to it: as in its training."""
CHANNELS = 3
"""Channels of an image that it takes, in any order."""
TIME_LIMIT_S = 3 * 3600
"""Of one image; on a CPU each plane takes seconds."""
_CHECK_LIMIT_S = 120
_TODO = "Make an environment with: python -m venv ENV; ENV/bin/pip install 'cellpose>=4,<5'; then give --python ENV/bin/python"


@dataclass(frozen=True)
class CellposeSamLabeller:
    """Labels by Cellpose-SAM (Pachitariu, Rariden & Stringer 2025, doi:10.1101/2025.04.28.651001).

    Parameters
    ----------
    python : str
        Python of an environment with cellpose 4.
    weights : str
        The weights file.
    diameter_um : float
        Of a typical object: the image is resampled so that it is as wide as the network expects.
    scaling : PercentileScaling
        Of the volume.
    time_limit_s : float
        Of one image.
    """

    python: str
    weights: str
    diameter_um: float
    scaling: PercentileScaling
    time_limit_s: float = TIME_LIMIT_S

    name = "cellpose-sam"
    n_classes = 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the diameter: an object that touches a block is then seen whole."""
        return zyx(math.ceil(self.diameter_um / s) for s in spacing_um_zyx)

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx) by the cell probability; see `WeakLabeller`.

        Raises
        ------
        WeakLabelError
            If the program fails, or takes longer than the limit.
        """
        return from_probabilities(self.maps(image, spacing_um_zyx)[0])

    def label_objects(self, image: Float32, spacing_um_zyx: Spacing) -> tuple[WeakLabel, Numbers]:
        """Label an image and number its objects; see `ObjectLabeller`. Raises as `label`."""
        probability, flow = self.maps(image, spacing_um_zyx)
        return flow_objects(probability, flow, self.diameter_um, spacing_um_zyx)

    def maps(self, image: Float32, spacing_um_zyx: Spacing) -> tuple[Float32, Float32]:
        """Return probabilities (2, z, y, x), background first, and flow (3, z, y, x) of an image. Raises as `label`."""
        axes, wish = plane_axes(spacing_um_zyx), self.diameter_um / PIXELS
        working = tuple(s if axes == (a,) else wish for a, s in enumerate(spacing_um_zyx))
        shape = image.shape[1:]
        scaled = torch.from_numpy(self.scaling.apply(image))[None]
        scaled = resample(scaled, resampled_shape(shape, spacing_um_zyx, working))[0]
        order = [
            axes[0],
            *(a for a in range(3) if a != axes[0]),
        ]  # the axis that planes are perpendicular to comes first
        flow, logit = self._run(scaled.permute(0, *(1 + a for a in order)).numpy(), planes_only=len(axes) == 1)
        back = [order.index(a) for a in range(3)]
        flow, logit = flow[back].transpose(0, *(1 + b for b in back)), logit.transpose(back)
        said = torch.from_numpy(np.ascontiguousarray(np.concatenate([flow, logit[np.newaxis]])))[None]
        values = resample(said, shape)[0]
        cell = torch.sigmoid(values[3])
        return torch.stack([1 - cell, cell]).numpy(), values[:3].numpy()

    def _run(self, image: Float32, *, planes_only: bool) -> tuple[Float32, Float32]:
        """Run the program on an image (czyx), and return flow and logit."""
        with tempfile.TemporaryDirectory(prefix="rescueseg-cellpose-") as name, storage_errors(name):
            folder = Path(name)
            request = {"weights": str(Path(self.weights).resolve()), "planes_only": planes_only}
            (folder / "request.json").write_text(json.dumps(request))
            np.save(folder / "image.npy", np.ascontiguousarray(image), allow_pickle=False)
            _run_python([self.python, "-I", str(cellpose_sam_program.__file__), name], self.weights, self.time_limit_s)
            try:
                flow, logit = (np.load(folder / f"{part}.npy", allow_pickle=False) for part in ("flow", "logit"))
            except (OSError, ValueError) as error:
                raise WeakLabelError("cellpose wrote no result", where=self.python, todo=_TODO) from error
        if flow.shape != (3, *image.shape[1:]) or logit.shape != image.shape[1:]:
            raise WeakLabelError(
                f"cellpose wrote arrays of shape {flow.shape} and {logit.shape} for an image of {image.shape[1:]} (z, y, x)",
                where=self.python,
                todo="Install the newest cellpose 4 there",
            )
        return flow, logit


def _run_python(command: list[str], where: str, limit_s: float) -> str:
    """Run Python and return what it printed; its last lines are in the error."""
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # what a program prints may be of any encoding
            check=False,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        raise WeakLabelError(
            f"cellpose took longer than {limit_s:g} s; it came as far as: {_last_line(printed) or 'starting'}",
            where=where,
            todo="Run it where there is a GPU, or with smaller patches",
        ) from error
    except OSError as error:
        raise WeakLabelError(f"{command[0]} cannot be run: {error.strerror}", where="--python", todo=_TODO) from error
    if process.returncode:
        raise WeakLabelError(
            f"cellpose failed with status {process.returncode}: {_last_line(process.stderr) or 'it says nothing'}",
            where=where,
            todo="Check that cellpose 4 and the weights work in that environment",
        )
    return process.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def open_weights(sources: Sources, volumes: Sequence[VolumeRecord]) -> Published:
    """Look at environment and weights; see `rescueseg.weak_labels.published_methods.open_published`."""
    check_channels(volumes, 1, CHANNELS, sources.weights)
    check_environment(sources.python)
    diameter = sources.diameter_um or 0.0

    def labeller(volume: VolumeRecord, parts: Sequence[Float32]) -> WeakLabeller:
        scaling = PercentileScaling.of(parts, volume.normalisation, *PERCENTILES)
        return CellposeSamLabeller(sources.python, sources.weights, diameter, scaling)

    seen = f"Objects of {diameter:g} µm are shown to the network {PIXELS:g} pixels wide; without a GPU it takes long"
    return Published.of("cellpose-sam", sources, file_digest(sources.weights), CELLPOSE_LICENCE, seen, labeller)


def check_environment(python: str) -> None:
    """Refuse a Python that has no cellpose 4; nothing of it is imported.

    Raises
    ------
    WeakLabelError
        If it is no program, or has another version or none.
    """
    if shutil.which(python) is None:
        raise WeakLabelError(f"{python} is no program", where="--python", todo=_TODO)
    asks = "from importlib.metadata import version, PackageNotFoundError\ntry:\n print(version('cellpose'))\n"
    asks += "except PackageNotFoundError:\n print('none')"
    found = _last_line(_run_python([python, "-I", "-c", asks], "--python", _CHECK_LIMIT_S))
    if found.partition(".")[0] != "4":
        what = "cellpose is not installed" if found == "none" else f"cellpose {found} is installed"
        raise WeakLabelError(f"{what} for {python}, and Cellpose-SAM needs version 4", where="--python", todo=_TODO)
