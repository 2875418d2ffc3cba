from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescueseg.active_learning import candidates
from rescueseg.active_learning.candidates import CandidateTable, score_candidates
from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.errors import InferenceError
from rescueseg.geometry import Box, axis_starts, partition
from rescueseg.inference import box_means
from rescueseg.progress import CountProgress

SHAPE = (6, 10, 14)


@dataclass
class Map:
    """A map in memory that counts the voxels read from it."""

    data: np.ndarray
    chunks: tuple[int, ...]
    read: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        part = self.data[index]
        self.read = max(self.read, part.size)
        return part


Maps = dict[str, dict[str, Map]]


def make_maps(volume_ids: str = "ab", n_classes: int = 2, dtype: str = "float16") -> Maps:
    rng = np.random.default_rng(1)
    made: Maps = {}
    for volume_id in volume_ids:
        probability = rng.dirichlet(np.ones(n_classes + 1), SHAPE).transpose(3, 0, 1, 2).astype(dtype)
        made[volume_id] = {name: Map(rng.random(SHAPE).astype(dtype), (2, 4, 4)) for name in box_means.SCORES}
        made[volume_id]["probability"] = Map(probability, (n_classes + 1, 2, 4, 4))
    return made


def serve(monkeypatch: pytest.MonkeyPatch, maps: Maps, block: tuple[int, int, int]) -> None:
    class Stored:
        def __init__(self, generation: GenerationFolder, volume_id: str) -> None:
            self.maps = maps[volume_id]

        def open_several(self, wanted: Sequence[str]) -> dict[str, Map]:
            return {quantity: self.maps[quantity] for quantity in wanted}

        def blocks(self) -> list[Box]:
            return partition(SHAPE, block)

    monkeypatch.setattr(candidates, "VolumeMaps", Stored)


def score(campaign: Campaign, boxes: dict[str, list[Box]], progress: CountProgress | None = None) -> CandidateTable:
    return score_candidates(campaign.generation(0), boxes, 2, campaign.volumes.shared_places(), progress)


@pytest.fixture
def two_classes(campaign: Campaign) -> Campaign:
    campaign.config = campaign.config.model_copy(update={"classes": ("a", "b")})
    return campaign


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.integers(2, 14)] * 3), st.integers(30, 900))
def test_streamed_means_are_the_means(two_classes: Campaign, block: tuple[int, int, int], most: int) -> None:
    maps = make_maps()
    starts = product(*(axis_starts(*axis) for axis in zip(SHAPE, (3, 5, 5), (2, 2, 3), strict=True)))
    boxes = {"b": [Box(start, (3, 5, 5)) for start in starts], "a": [Box((1, 2, 3), (4, 6, 7))]}
    with pytest.MonkeyPatch.context() as patch:
        serve(patch, maps, block)
        patch.setattr(box_means, "_BLOCK_VOXELS", most)
        table = score(two_classes, boxes)
    assert table.volume_ids == ("a", *["b"] * len(boxes["b"]))
    assert list(table.boxes) == [*boxes["a"], *boxes["b"]]
    for row, (volume_id, box) in enumerate(zip(table.volume_ids, table.boxes, strict=True)):
        values = {name: np.asarray(m.data[(..., *box.slices)], float) for name, m in maps[volume_id].items()}
        for name in box_means.SCORES:
            assert table.scores[name][row] == pytest.approx(values[name].mean(), rel=1e-9)
        probability, entropy = values["probability"], values["predictive_entropy"]
        assert table.foreground[row] == pytest.approx(probability[1:].sum(axis=0).mean(), rel=1e-5)
        expected = (probability[1:] * entropy).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(table.class_entropy[row], expected, rtol=1e-5)
    assert max(m.read for m in maps["b"].values()) <= 3 * max(most, 32)


def test_blocks_without_candidates_are_not_read(two_classes: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = make_maps("a")
    maps["a"]["mc_variance"].data[:, :, 8:] = np.nan
    serve(monkeypatch, maps, (2, 4, 4))
    seen: list[tuple[int, int]] = []
    table = score(
        two_classes, {"a": [Box((0, 0, 0), (6, 10, 8))], "c": []}, lambda done, total: seen.append((done, total))
    )
    assert np.isfinite(table.scores["mc_variance"]).all()
    assert seen == [(i + 1, 36) for i in range(36)]


def test_values_that_are_not_finite_are_an_error(two_classes: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = make_maps("a")
    maps["a"]["mutual_information"].data[3, 3, 3] = np.inf
    serve(monkeypatch, maps, SHAPE)
    with pytest.raises(InferenceError, match="not finite"):
        score(two_classes, {"a": [Box((0, 0, 0), (6, 10, 8))]})


def test_nothing_to_score(two_classes: Campaign) -> None:
    table = score(two_classes, {"a": []})
    assert len(table) == 0
    assert table.class_entropy.shape == (0, 2)
