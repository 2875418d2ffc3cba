"""Cellpose-SAM in an environment of its own: what goes there and comes back, and what is told when it fails.

`test_a_real_network` needs such an environment: ``python -m venv ENV; ENV/bin/pip install 'cellpose>=4,<5'``, and its Python in
the variable RESCUESEG_CELLPOSE4. It makes random weights of that architecture, 1.2 GB, and takes minutes on a CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rescueseg.errors import WeakLabelError
from rescueseg.evaluation.instances import compare_instances
from rescueseg.records import Normalisation
from rescueseg.weak_labels.cellpose_sam import CellposeSamLabeller, check_environment
from rescueseg.weak_labels.flow_objects import PERCENTILES
from rescueseg.weak_labels.intensities import PercentileScaling
from tests.stand_in_cellpose4 import install, save_weights
from tests.touching_balls import cones

PLAIN = Normalisation(low=-1e6, high=1e6, mean=0, std=1, linear=0)
SPACING, DIAMETER = (0.2, 0.1, 0.1), 2.4
REAL = os.environ.get("RESCUESEG_CELLPOSE4", "")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return install(tmp_path_factory.mktemp("environment") / "env")


def labeller(python: str, folder: Path, image: np.ndarray) -> CellposeSamLabeller:
    scaling = PercentileScaling.of([image], PLAIN, *PERCENTILES)
    return CellposeSamLabeller(python, save_weights(folder / "cpsam"), DIAMETER, scaling)


def test_touching_objects_come_apart(python: str, tmp_path: Path) -> None:
    image, truth = cones((24, 72, 72), SPACING, DIAMETER)
    raw = image[np.newaxis].astype(np.float32)
    check_environment(python)
    weak, numbers = labeller(python, tmp_path, raw).label_objects(raw, SPACING)
    found = compare_instances(numbers, truth)
    assert (found.matched[0], found.true) == (18, 18)
    assert np.array_equal(weak.labels > 0, numbers > 0)


@pytest.mark.parametrize("spacing", [(0.4, 0.08, 0.08), (0.08, 0.4, 0.08), (0.08, 0.08, 0.4)])
def test_of_a_coarse_stack_each_plane_is_seen_as_it_is(
    python: str, tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    """At 30 pixels per object nothing is resampled, so that the stand-in's answer is known to the last voxel."""
    image = np.random.default_rng(0).random((1, 5, 6, 7)).astype(np.float32)
    own = replace(labeller(python, tmp_path, image), scaling=PercentileScaling(PLAIN, (0.0,), (1.0,)))
    probability, flow = own.maps(image, spacing)
    np.testing.assert_allclose(probability[1], 1 / (1 + np.exp(-20 * (image[0] - 0.5))), atol=1e-4)
    coarse = int(np.argmax(spacing))
    for axis in range(3):
        expected = 0 if axis == coarse else 16 * np.gradient(image[0], axis=axis)
        np.testing.assert_allclose(flow[axis], expected * np.ones_like(flow[axis]), atol=1e-4)


def test_what_goes_wrong_there_is_told(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).random((1, 2, 6, 7)).astype(np.float32)
    own, spacing = labeller(python, tmp_path, image), (0.4, 0.08, 0.08)
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    with pytest.raises(WeakLabelError, match="no kernel image is available"):
        own.label(image, spacing)
    monkeypatch.delenv("STAND_IN_FAILS")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(WeakLabelError, match="holds no weights of Cellpose-SAM"):
        replace(own, weights=str(tmp_path / "other")).label(image, spacing)
    with pytest.raises(WeakLabelError, match="cannot be run"):
        replace(own, python=str(tmp_path / "none")).label(image, spacing)
    monkeypatch.setenv("STAND_IN_WAITS", "1")
    with pytest.raises(WeakLabelError, match="longer than 20 s; it came as far as: "):
        replace(own, time_limit_s=20).label(image, spacing)


def test_what_it_prints_in_another_encoding_does_not_hide_the_error(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nprintf 'm\\377tal driver is too old\\n' >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(WeakLabelError, match="failed with status 3: m\ufffdtal driver is too old"):
        check_environment(str(script))


class Bomb:
    """What a pickle may ask for: a call of any function."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_is_not_run_there_either(python: str, tmp_path: Path) -> None:
    image = np.zeros((1, 2, 6, 7), np.float32)
    torch.save({"W2": Bomb(tmp_path / "boom")}, tmp_path / "bad")
    own = replace(labeller(python, tmp_path, image), weights=str(tmp_path / "bad"))
    with pytest.raises(WeakLabelError, match="cellpose failed"):
        own.label(image, (0.4, 0.08, 0.08))
    assert not (tmp_path / "boom").exists()


def test_another_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeakLabelError, match="is no program"):
        check_environment(str(tmp_path / "python"))
    old = install(tmp_path / "old", "3.1.1")
    with pytest.raises(WeakLabelError, match=r"cellpose 3\.1\.1 is installed"):
        check_environment(old)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "empty")], check=True)
    with pytest.raises(WeakLabelError, match="cellpose is not installed"):
        check_environment(str(tmp_path / "empty" / "bin" / "python"))


_MAKE = """
import sys, numpy as np, torch
from cellpose.vit import CPSAM
torch.manual_seed(0)
network = CPSAM().eval()
network.save_model(sys.argv[1])
image = np.load(sys.argv[2])
said = []
for axis in [0] if len(image) == 1 else [0, 1, 2]:
    planes = torch.from_numpy(np.moveaxis(image, axis, 0).copy())
    tile = torch.zeros(len(planes), 3, 256, 256)
    rows, columns = (slice(128 - n // 2, 128 + n // 2) for n in planes.shape[1:])
    tile[:, 0, rows, columns] = planes
    with torch.no_grad():
        said.append(network(tile)[0][:, :, rows, columns].numpy())
np.savez(sys.argv[3], *said)
"""


@pytest.mark.slow
@pytest.mark.needs_cellpose4
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not REAL, reason="RESCUESEG_CELLPOSE4 names no Python of an environment with cellpose 4")
@pytest.mark.parametrize("shape", [(1, 16, 24), (2, 2, 2)])
def test_a_real_network(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """Planes in the middle of a tile of zeros, as cellpose 4 lays them there: of a stack, and of a cube in three orientations.

    Of a cube, the planes across an axis say the flow along the two others, and each component is the mean of both that say it.
    """
    assert shutil.which(REAL)
    check_environment(REAL)
    image = np.random.default_rng(0).normal(scale=1 if shape[0] == 1 else 10, size=(1, *shape)).astype(np.float32)
    np.save(tmp_path / "image.npy", image[0])
    files = [str(tmp_path / name) for name in ("cpsam", "image.npy", "said.npz")]
    subprocess.run([REAL, "-I", "-c", _MAKE, *files], check=True)
    with np.load(files[2]) as archive:
        said = [np.moveaxis(archive[name], 0, 1) for name in archive.files]
    own = CellposeSamLabeller(REAL, files[0], DIAMETER, PercentileScaling(PLAIN, (0.0,), (1.0,)))
    is_stack = len(said) == 1
    probability, flow = own.maps(image, (0.4, 0.08, 0.08) if is_stack else (0.08, 0.08, 0.08))
    if is_stack:
        [(flow_y, flow_x, logit)] = said
        expected = np.stack([0 * flow_y, flow_y, flow_x])
    else:
        along_y, along_x = (np.moveaxis(said[axis], 1, 1 + axis) for axis in (1, 2))  # back to z, y, x
        expected = np.stack([along_y[0] + along_x[0], said[0][0] + along_x[1], said[0][1] + along_y[1]]) / 2
        logit = (said[0][2] + along_y[2] + along_x[2]) / 3
    np.testing.assert_allclose(flow, expected / 5, atol=1e-3)
    np.testing.assert_allclose(probability[1], 1 / (1 + np.exp(-logit)), atol=1e-3)
    if not is_stack:  # exchanged components, and exchanged axes, would be seen
        assert min(np.abs(expected[a] - expected[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.05
        assert min(np.abs(expected - np.moveaxis(expected, 1, to)).max() for to in (2, 3)) > 0.05
