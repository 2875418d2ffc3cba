from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from rescueseg import patches, sampling
from rescueseg.campaign import Campaign
from rescueseg.geometry import Box, choose_non_overlapping
from rescueseg.records import Holdout, Normalisation, VolumeRecord
from rescueseg.strata import HOLDOUT_STRATA

VOLUMES = {
    "cdeep3m": ((30, 1024, 1024), (0.03, 0.01, 0.01)),
    "vessel": ((15, 512, 512), (5, 0.994, 0.994)),
    "vessel25": ((25, 512, 512), (5, 0.994, 0.994)),
    "bbbc050": ((51, 480, 480), (1.75, 0.8, 0.8)),
    "gonuclear": ((100, 100, 100), (0.28, 0.13, 0.13)),
    "fib25": ((250, 250, 250), (0.01, 0.01, 0.01)),
    "phantom": ((24, 128, 128), (0.3, 0.1, 0.1)),
    "flat": ((1, 2048, 2048), (1, 0.1, 0.1)),
    "tall": ((600, 64, 64), (0.1, 0.1, 0.1)),
    "stardist": ((31, 61, 57), (1, 0.5, 0.5)),
    "large": ((2000, 2000, 2000), (0.1, 0.1, 0.1)),
}


def add(campaign: Campaign, name: str, volume_id: str = "a", truth: bool = False, **changes: object) -> VolumeRecord:
    shape, spacing = VOLUMES[name]
    record = VolumeRecord(
        volume_id=volume_id, domain="d", shape_zyx=shape, spacing_um_zyx=spacing, channels=1, dtype="uint8",
        source="a.tif", digest="0", normalisation=Normalisation(low=0, high=1, mean=0, std=1),
        truth="semantic" if truth else None,
    )  # fmt: skip
    campaign.save_volume(record)
    return record


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Box]]:
    """Volumes made of noise whose brightness rises along x and whose contrast rises along y."""
    read_boxes: list[Box] = []

    def reader(campaign: Campaign, volume: VolumeRecord) -> Callable[[Box], np.ndarray]:
        def read(box: Box) -> np.ndarray:
            read_boxes.append(box)
            _, y, x = (np.arange(o, o + n) for o, n in zip(box.offset_zyx, box.shape_zyx, strict=True))
            stripes = np.where(x // 6 % 2 == 0, 1.0, -1.0)[None] * (y / volume.shape_zyx[1])[:, None]
            noise = np.random.default_rng(box.offset_zyx).normal(0, 0.1, box.shape_zyx)
            return (noise + stripes + x / volume.shape_zyx[2])[None].astype(np.float32)

        return read

    monkeypatch.setattr(patches, "volume_reader", reader)
    yield read_boxes


def check_holdout(campaign: Campaign, holdout: Holdout) -> None:
    held = 0
    for volume in campaign.volumes():
        boxes = holdout.of(volume.volume_id)
        whole = Box((0, 0, 0), volume.shape_zyx)
        assert all(whole.contains(box) for box in boxes)
        assert not any(a.intersects(b) for i, a in enumerate(boxes) for b in boxes[:i])
        held += sum(box.size for box in boxes)
    assert held <= campaign.config.holdout.fraction * sum(math.prod(v.shape_zyx) for v in campaign.volumes())


@pytest.mark.parametrize("truth", [False, True])
@pytest.mark.parametrize("name", VOLUMES)
def test_holdout_and_pool_fit_on_every_shape(campaign: Campaign, name: str, truth: bool, images: list[Box]) -> None:
    add(campaign, name, truth=truth)
    holdout = sampling.draw_holdout(campaign)
    check_holdout(campaign, holdout)
    assert [b.part for b in holdout.boxes] == ["validation", "test"] * 8
    for part in ("validation", "test"):
        assert [b.stratum for b in holdout.boxes if b.part == part] == list(HOLDOUT_STRATA)
    candidates = sampling.candidate_boxes(campaign, "a")
    assert not any(c.intersects(g) for c in candidates[:3000] for g in holdout.guarded("a"))
    assert len(choose_non_overlapping(candidates, 30)) >= (12 if name == "stardist" else 30)
    assert min(holdout.guard_zyx) >= 1
    assert sum(box.size for box in images) < 3e8
