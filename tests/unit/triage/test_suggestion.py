"""The suggested patch: a place that is free and shows something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.geometry import Box
from rescueseg.queue.store import open_queue
from rescueseg.stages import tickets
from rescueseg.stages.triage import triage_campaign
from rescueseg.triage.records import TRIAGE
from rescueseg.triage.suggestion import ranges, suggested_patch
from rescueseg.volumes.batch_import import start_campaign
from rescueseg.volumes.volume_files import VolumeImport

SHAPE = (32, 96, 96)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Noise, with a bright ball in one corner."""
    rng = np.random.default_rng(0)
    z, y, x = np.indices(SHAPE)
    image = rng.normal(100, 3, SHAPE) + 80 * ((z - 16) ** 2 + (y - 24) ** 2 + (x - 72) ** 2 < 100)
    tifffile.imwrite(tmp_path / "raw.tif", image.astype(np.uint8), metadata={"axes": "ZYX"})
    settings = settings_of("t", ["ball"], ["sampling.patch_zyx=[8, 24, 24]"])
    volume = VolumeImport(str(tmp_path / "raw.tif"), spacing=(1.0, 1.0, 1.0), volume_id="v")
    return start_campaign(str(tmp_path / "campaign"), settings, [volume], say=lambda _: None)


def test_the_suggested_patch_has_a_place_that_shows_the_structure(campaign: Campaign) -> None:
    result = triage_campaign(campaign, open_queue(campaign), mask="none")
    assert result.suggested is not None
    place = Box(result.suggested.offset_zyx, result.suggested.shape_zyx)
    assert result.suggested.volume_id == "v"
    assert place.shape_zyx == (8, 24, 24)
    assert place.intersects(Box((6, 14, 62), (20, 20, 20))), str(place)
    assert Box((0, 0, 0), SHAPE).contains(place)
    assert campaign.records.read(TRIAGE) == result


def test_what_is_held_out_or_annotated_is_not_suggested(campaign: Campaign) -> None:
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    holdout, shared = campaign.holdout(), campaign.volumes.shared_places()
    assert holdout is not None
    blocked = [*holdout.guarded("v", shared), *(t.box for t in store.views.tickets())]
    image = np.zeros(SHAPE)
    places = ranges(Box((0, 0, 0), SHAPE), image, (8, 24, 24), SHAPE)
    for _ in range(3):
        patch = suggested_patch(campaign, store, {"v": places})
        if patch is None:
            break
        assert not any(patch.box.intersects(box) for box in blocked)
        places.remove((patch.box, 0.0))
    full = [
        (box, span)
        for box, span in ranges(Box((0, 0, 0), SHAPE), image, (8, 24, 24), SHAPE)
        if any(box.intersects(b) for b in blocked)
    ]
    assert full
    assert suggested_patch(campaign, store, {"v": full}) is None, "rather none than one that is taken"


def test_a_patch_larger_than_what_was_read_lies_around_it_within_the_volume() -> None:
    values = np.arange(64.0).reshape(4, 4, 4)
    [(place, span)] = ranges(Box((0, 8, 8), (4, 4, 4)), values, (8, 8, 8), (16, 20, 12))
    assert place == Box((0, 6, 4), (8, 8, 8))
    assert span == pytest.approx(63 * 0.96, abs=0.5)
