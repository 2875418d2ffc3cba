"""Polyhedra have the volume of the balls that their rays describe, and overlaps are StarDist's."""

from __future__ import annotations

import numpy as np
import pytest

from rescueseg.errors import ConfigError
from rescueseg.models import polyhedra
from rescueseg.models.members import symmetries
from rescueseg.models.polyhedra import bounds, star_directions, suppress_overlaps, voxels_of
from rescueseg.models.predictor import Output

pytest.importorskip("stardist", reason="the extra 'stardist' is not installed")
SPACING = (0.5, 0.2, 0.25)


@pytest.mark.parametrize("count", [18, 66])
def test_the_rays_are_unit_vectors_and_the_same_in_every_turned_frame(count: int) -> None:
    directions = star_directions(count)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)
    output = Output(name="rays", channels=count, kind="distance", directions=[tuple(d) for d in directions.tolist()])
    assert len(symmetries(99, True, [output])) == 16


def test_a_ball_has_its_volume_in_any_spacing() -> None:
    radius = 2.0
    box, mask = voxels_of(np.full(258, radius, np.float32), SPACING)
    assert mask.sum() * np.prod(SPACING) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)
    places = (np.argwhere(mask) + box.offset_zyx) * SPACING
    assert np.linalg.norm(places, axis=1).max() <= radius + 1e-4
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=0.02)


def test_a_polyhedron_of_any_lengths_lies_within_its_bounds_and_holds_its_rays() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.uniform(0.4, 3.0, 66).astype(np.float32)
    box, mask = voxels_of(lengths, SPACING)
    low, high = bounds(np.array([[7, 8, 9]]), lengths[None], SPACING)
    assert (low[0] - (7, 8, 9)).tolist() == list(box.offset_zyx)
    assert (high[0] - low[0]).tolist() == list(box.shape_zyx)
    steps = np.linspace(0, 0.8, 9)[:, None, None] * lengths[None, :, None] * star_directions(66)
    along = np.rint(steps / SPACING).astype(int) - box.offset_zyx
    inside = mask[tuple(along.reshape(-1, 3).T)]
    assert inside.mean() > 0.9


def test_of_two_that_overlap_the_more_probable_one_stays() -> None:
    points = np.array([[10, 20, 20], [10, 20, 24], [10, 20, 60]])
    lengths = np.full((3, 66), 2.0, np.float32)
    stays = suppress_overlaps(points, np.array([0.6, 0.9, 0.3], np.float32), lengths, SPACING)
    assert stays.tolist() == [False, True, True]
    apart = points + np.array([[0, 0, 0], [0, 0, 14], [0, 0, 0]])
    assert suppress_overlaps(apart, np.array([0.6, 0.9, 0.3], np.float32), lengths, SPACING).all()
    assert suppress_overlaps(points[:0], np.zeros(0, np.float32), lengths[:0], SPACING).tolist() == []


def test_tensorflow_stays_out() -> None:
    import subprocess
    import sys

    code = "import sys; from rescueseg.models.polyhedra import star_directions; star_directions(18); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_package_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    polyhedra._rays.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "stardist", None)
    with pytest.raises(ConfigError, match=r"pip install 'rescueseg\[stardist\]'"):
        star_directions(18)
