"""The most doubtful places and objects, against what a plain search over whole arrays finds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.delivery import places
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.merges import MERGE, Correction, Merge, correction_file, corrections_folder
from rescueseg.delivery.places import (
    PLACES,
    PlacesToProofread,
    doubtful_objects,
    doubtful_places,
    keep_places,
    kept_places,
)
from rescueseg.geometry import Box, Patch
from rescueseg.inference import box_means
from rescueseg.records import AcceptedAnnotation
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


def test_places_are_kept_while_the_labels_stay_as_they_are(
    delivered: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mask = DeliveryFolder(str(tmp_path / "out")), np.zeros(SHAPE, np.uint8)
    assert kept_places(folder) == ()
    record, sources = deliver(delivered, folder, "phantom", mask, None, mask), [source(delivered, "phantom")]
    keep_places(delivered, folder, sources, 3)
    expected = tuple(doubtful_places(delivered, sources, 3))
    assert kept_places(folder) == expected
    with monkeypatch.context() as without:
        without.setattr(places, "doubtful_places", None)
        folder.records.write(folder.volume_record("phantom"), record.model_copy(update={"seconds": 2.0}))
        keep_places(delivered, folder, sources, 3)
        for changed in ({"digest": "another"}, {"version": 2}):
            folder.records.write(folder.volume_record("phantom"), record.model_copy(update=changed))
            with pytest.raises(TypeError):
                keep_places(delivered, folder, sources, 3)
    keep_places(delivered, folder, sources, 2)
    assert kept_places(folder) == expected[:2]


def correct(folder: DeliveryFolder, box: Box) -> None:
    """Write that a box of the volume was corrected."""
    annotation = AcceptedAnnotation(
        ticket_id="t", annotation_id="a", volume_id="phantom", box=box, purpose="pool", annotator="anna",
        labels="l", labels_digest="d", generation=1, stratum="", version=1, tool="", seconds=0, voxels_corrected=1,
    )  # fmt: skip
    inside = corrections_folder(folder, "phantom", "0001")
    inside.write(MERGE, Merge(base="b", annotations=(annotation,), largest=0))
    correction = Correction(
        ticket_id="t", annotation_id="a", annotator="anna", handed_in=datetime(2026, 1, 1, tzinfo=UTC), box=box,
        voxels=1, largest=0, digests={},
    )  # fmt: skip
    inside.write(correction_file("t"), correction)


def test_what_was_corrected_makes_room_for_the_next_places(delivered: Campaign, tmp_path: Path) -> None:
    folder, mask = DeliveryFolder(str(tmp_path / "out")), np.zeros(SHAPE, np.uint8)
    record, sources = deliver(delivered, folder, "phantom", mask, None, mask), [source(delivered, "phantom")]
    keep_places(delivered, folder, sources, 3)
    corrected = kept_places(folder)[0]
    correct(folder, corrected.box)
    folder.records.write(folder.volume_record("phantom"), record.model_copy(update={"version": 2}))
    keep_places(delivered, folder, sources, 3)
    assert [p.box for p in kept_places(folder)] == [box for box, _ in brute_force(delivered, 3, [corrected.box])]


def test_places_stay_where_the_maps_are_gone(delivered: Campaign, tmp_path: Path) -> None:
    folder, mask = DeliveryFolder(str(tmp_path / "out")), np.zeros(SHAPE, np.uint8)
    record, sources = deliver(delivered, folder, "phantom", mask, None, mask), [source(delivered, "phantom")]
    keep_places(delivered, folder, sources, 4)
    before = kept_places(folder)
    other = record.model_copy(update={"volume_id": "other", "in_campaign": False})
    folder.records.write(folder.volume_record("other"), other)
    keep_places(delivered, folder, [], 4)  # neither has maps any more
    assert kept_places(folder) == before
    Path(folder.storage.path("records/other.json")).unlink()
    gone = [
        p.model_copy(update={"volume_id": "other", "entropy": e}) for p, e in zip(before, (9, 8, 0, -1), strict=True)
    ]
    folder.records.write(PLACES, PlacesToProofread(digest="before", places=tuple(gone)))
    folder.records.write(folder.volume_record("other"), other)
    keep_places(delivered, folder, sources, 4)
    assert kept_places(folder) == (*gone[:2], *before[:2])
    Path(folder.storage.path("records/other.json")).unlink()
    keep_places(delivered, folder, sources, 4)
    assert kept_places(folder) == before


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
