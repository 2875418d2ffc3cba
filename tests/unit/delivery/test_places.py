"""The most doubtful places and objects, against what a plain search over whole arrays finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.delivery import places
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.places import doubtful_objects, doubtful_places, keep_places, kept_places
from rescueseg.geometry import Box, Patch
from rescueseg.inference import box_means
from tests.delivered_campaign import deliver, object_rows, source, write_table
from tests.evaluated_campaign import SHAPE, make_campaign, write_generation

PATCH = (6, 20, 20)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    campaign = make_campaign(tmp_path_factory.mktemp("places"))
    settings = {"name": "phantom", "classes": ["organelle"], "sampling": {"patch_zyx": list(PATCH)}}
    campaign.config = check_config(settings)
    holdout = campaign.holdout()
    assert holdout is not None
    few = holdout.model_copy(update={"boxes": holdout.boxes[:2]})
    campaign.storage.write_json("holdout.json", few.to_json())
    write_generation(campaign, 0, 1.5, judged=False)
    return campaign


def overlaps(one: Box, other: Box) -> bool:
    sides = zip(one.offset_zyx, one.stop_zyx, other.offset_zyx, other.stop_zyx, strict=True)
    return all(a < d and c < b for a, b, c, d in sides)


def brute_force(campaign: Campaign, count: int, occupied: list[Box]) -> list[tuple[Box, float]]:
    entropy = np.asarray(source(campaign, "phantom").maps.open("predictive_entropy")[...], np.float64)
    holdout = campaign.holdout()
    assert holdout is not None
    barred = [b.box.expand(holdout.guard_zyx) for b in holdout.boxes] + occupied
    axes = [[*range(0, n - p, p // 2), n - p] for n, p in zip(SHAPE, PATCH, strict=True)]
    boxes = [Box((z, y, x), PATCH) for z in axes[0] for y in axes[1] for x in axes[2]]
    free = [b for b in boxes if not any(overlaps(b, other) for other in barred)]
    means = {box: float(entropy[box.slices].mean()) for box in free}
    chosen: list[Box] = []
    for box in sorted(free, key=lambda b: (-round(means[b], 12), b)):
        if len(chosen) < count and not any(overlaps(box, other) for other in chosen):
            chosen.append(box)
    return [(box, means[box]) for box in chosen]


@pytest.mark.parametrize("most", [700, 4_000_000])
def test_places_are_those_of_a_plain_search(delivered: Campaign, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(box_means, "_BLOCK_VOXELS", most)
    found = doubtful_places(delivered, [source(delivered, "phantom")], 5)
    expected = brute_force(delivered, 5, [])
    assert [p.box for p in found] == [box for box, _ in expected]
    assert [p.entropy for p in found] == pytest.approx([mean for _, mean in expected], abs=1e-6)
    occupied = [found[0].box, found[2].box]
    rest = doubtful_places(delivered, [source(delivered, "phantom")], 100, [Patch("phantom", box) for box in occupied])
    assert [p.box for p in rest] == [box for box, _ in brute_force(delivered, 100, occupied)]
    assert not any(overlaps(p.box, box) for p in rest for box in occupied)


def test_no_place_lies_where_a_holdout_may_still_be_drawn(delivered: Campaign) -> None:
    holdout, sources = delivered.holdout(), [source(delivered, "phantom")]
    assert holdout is not None
    try:
        elsewhere = holdout.model_copy(update={"volumes": ("another",)})
        delivered.storage.write_json("holdout.json", elsewhere.to_json())
        assert doubtful_places(delivered, sources, 3) == []
        drawn = holdout.model_copy(update={"volumes": ("another", "phantom")})
        delivered.storage.write_json("holdout.json", drawn.to_json())
        assert len(doubtful_places(delivered, sources, 3)) == 3
        delivered.storage.remove("holdout.json")
        assert doubtful_places(delivered, sources, 3) == []
    finally:
        delivered.storage.write_json("holdout.json", holdout.to_json())


def test_places_are_kept_until_the_labels_are_made_anew(
    delivered: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mask = DeliveryFolder(str(tmp_path / "out")), np.zeros(SHAPE, np.uint8)
    assert kept_places(folder) == ()
    record, sources = deliver(delivered, folder, "phantom", mask, None, mask), [source(delivered, "phantom")]
    keep_places(delivered, folder, sources, 3)
    expected = tuple(doubtful_places(delivered, sources, 3))
    assert kept_places(folder) == expected
    folder.records.write(folder.volume_record("phantom"), record.model_copy(update={"version": 2}))
    with monkeypatch.context() as without:
        without.setattr(places, "doubtful_places", None)
        keep_places(delivered, folder, sources, 3)
        folder.records.write(folder.volume_record("phantom"), record.model_copy(update={"digest": "another"}))
        with pytest.raises(TypeError):
            keep_places(delivered, folder, sources, 3)
    keep_places(delivered, folder, sources, 2)
    assert kept_places(folder) == expected[:2]


def test_objects_of_the_highest_entropy_come_first(tmp_path: Path) -> None:
    folder, rng = DeliveryFolder(str(tmp_path / "out")), np.random.default_rng(2)
    expected = []
    for name in ("a", "b"):
        objects = np.zeros((6, 12, 30), np.uint32)
        for number in range(1, 11):
            objects[1:4, 2:9, 3 * number - 3 : 3 * number - 1] = number
        entropy = rng.random(objects.shape)
        write_table(folder, name, object_rows(objects, entropy))
        expected += [(-entropy[objects == n].mean(), name, n) for n in range(1, 11)]
    found = doubtful_objects(folder, ["a", "b", "none"], 7)
    assert [(o.volume_id, o.number) for o in found] == [(name, n) for _, name, n in sorted(expected)[:7]]
    first = found[0]
    assert first.entropy == pytest.approx(-min(expected)[0])
    assert first.box == Box((1, 2, 3 * first.number - 3), (3, 7, 2))
