from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import clear_box, guard, make_snapshot
from rescueseg.errors import CampaignError, LeakError, SamplingError
from rescueseg.geometry import Box
from rescueseg.records import (
    AcceptedAnnotation,
    Holdout,
    HoldoutBox,
    Normalisation,
    Relations,
    Snapshot,
    SnapshotItem,
    VolumeRecord,
)
from rescueseg.sampling.starting_patches import candidate_boxes
from rescueseg.shared_places import IDENTITY, SharedPlaces

SHAPE = (20, 40, 40)


def annotation(ticket_id: str, box: Box, **changes: object) -> AcceptedAnnotation:
    values = {
        "ticket_id": ticket_id, "volume_id": "a", "box": box, "purpose": "pool", "generation": 0, "stratum": "dense",
        "annotation_id": "n1", "version": 1, "labels": "annotations/t/d.npz", "labels_digest": "d", "annotator": "ann",
        "tool": "napari", "seconds": 1.0, "voxels_corrected": 0,
    }  # fmt: skip
    return AcceptedAnnotation.model_validate(values | changes)


def record(volume_id: str = "a") -> VolumeRecord:
    return VolumeRecord(
        volume_id=volume_id, domain="d", shape_zyx=SHAPE, spacing_um_zyx=(1, 1, 1), channels=1, dtype="uint8",
        source="a.tif", digest="0", normalisation=Normalisation(low=0, high=1, mean=0, std=1),
    )  # fmt: skip


def hold(*boxes: Box) -> Holdout:
    held = tuple(HoldoutBox(volume_id="a", box=b, part="test", stratum="dense") for b in boxes)
    return Holdout(boxes=held, guard_zyx=(2, 4, 4))


@pytest.fixture
def held(campaign: Campaign) -> Campaign:
    campaign.volumes.save(record())
    campaign.freeze_holdout(hold(Box((0, 0, 0), (20, 10, 10))))
    return campaign


def test_read_box_is_the_patch_and_its_context(held: Campaign) -> None:
    snapshot = make_snapshot(held, 0, [annotation("t1", Box((4, 20, 20), (8, 8, 8)))])
    assert snapshot.items[0].read_box == Box((2, 16, 16), (12, 16, 16))


def test_order_does_not_matter_and_content_does(held: Campaign) -> None:
    one, two = annotation("t1", Box((4, 20, 20), (8, 8, 8))), annotation("t2", Box((4, 30, 20), (8, 8, 8)))
    assert make_snapshot(held, 1, [one, two]) == make_snapshot(held, 1, [two, one])
    other = annotation("t2", two.box, labels_digest="e")
    assert make_snapshot(held, 1, [one, two]).digest != make_snapshot(held, 1, [one, other]).digest
    assert make_snapshot(held, 0, [one]).digest == make_snapshot(held, 1, [one]).digest


def test_items_carry_the_objects_and_digests_stay_as_they_were_without(held: Campaign) -> None:
    plain = annotation("t1", Box((4, 20, 20), (8, 8, 8)))
    of_classes = make_snapshot(held, 0, [plain])
    made = make_snapshot(held, 0, [plain.model_copy(update={"instances": "o.npz", "instances_digest": "f"})])
    assert (made.items[0].instances, made.items[0].instances_digest) == ("o.npz", "f")
    assert made.digest == of_classes.digest, "the annotation's id stands for its objects"
    assert Snapshot.model_validate(made.to_json()) == made
    assert "instances" not in of_classes.items[0].to_json()
    assert "instances" not in of_classes.to_json()["items"][0]


def test_context_stops_at_the_holdout(held: Campaign) -> None:
    item = make_snapshot(held, 0, [annotation("t1", Box((4, 12, 0), (8, 8, 8)))]).items[0]
    assert item.read_box == Box((2, 10, 0), (12, 14, 12))


def test_annotation_in_the_holdout_is_a_leak(held: Campaign) -> None:
    with pytest.raises(LeakError, match="t1"):
        make_snapshot(held, 0, [annotation("t1", Box((4, 9, 0), (8, 8, 8)))])


def test_holdout_annotations_are_never_trained_on(held: Campaign) -> None:
    with pytest.raises(LeakError, match="test boxes"):
        make_snapshot(held, 0, [annotation("t1", Box((4, 20, 20), (8, 8, 8)), purpose="test")])


def test_unknown_volume_is_named(held: Campaign) -> None:
    with pytest.raises(CampaignError, match="'b'"):
        make_snapshot(held, 0, [annotation("t1", Box((4, 20, 20), (8, 8, 8)), volume_id="b")])


def test_read_box_in_the_holdout_is_a_leak() -> None:
    item = SnapshotItem(
        ticket_id="t1", volume_id="a", box=Box((4, 20, 20), (8, 8, 8)), read_box=Box((4, 5, 5), (8, 23, 23)),
        annotation_id="n", labels="l", labels_digest="d",
    )  # fmt: skip
    with pytest.raises(LeakError, match="t1"):
        guard(hold(Box((0, 0, 0), (20, 10, 10))), [item], SharedPlaces({}))
    guard(hold(Box((0, 0, 0), (20, 5, 5))), [item], SharedPlaces({}))
    copy = item.model_copy(update={"volume_id": "b"})
    guard(hold(Box((0, 0, 0), (20, 10, 10))), [copy], SharedPlaces({"a": SHAPE, "b": SHAPE}))
    with pytest.raises(LeakError, match="touches the holdout box"):
        guard(
            hold(Box((0, 0, 0), (20, 10, 10))), [copy], SharedPlaces({"a": SHAPE, "b": SHAPE}, [("a", "b", IDENTITY)])
        )


def test_a_copy_of_the_volume_is_held_out_too(held: Campaign) -> None:
    """Its patches are no candidates, its context stops at the holdout boxes, and what lies in them is refused."""
    held.volumes.save(record("b"))
    item = make_snapshot(held, 0, [annotation("t1", Box((4, 12, 0), (8, 8, 8)), volume_id="b")]).items[0]
    assert item.read_box == make_snapshot(held, 0, [annotation("t1", Box((4, 12, 0), (8, 8, 8)))]).items[0].read_box
    with pytest.raises(LeakError, match="overlaps the holdout box"):
        make_snapshot(held, 0, [annotation("t1", Box((4, 4, 4), (8, 8, 8)), volume_id="b")])
    others = [annotation("t1", Box((4, 4, 4), (8, 8, 8)), volume_id="b"), annotation("t2", Box((4, 20, 20), (8, 8, 8)))]
    assert [i.ticket_id for i in make_snapshot(held, 0, others).items] == ["t2"], "it was annotated as another volume's"
    with pytest.raises(LeakError, match="overlaps the holdout box"):
        make_snapshot(held, 0, [others[1], annotation("t1", Box((4, 4, 4), (8, 8, 8)))])
    assert candidate_boxes(held, "b", []) == candidate_boxes(held, "a", [])
    held.volumes.save(record("b").model_copy(update={"digest": "another image"}))
    with pytest.raises(CampaignError, match="never compared"):
        make_snapshot(held, 0, [annotation("t1", Box((4, 4, 4), (8, 8, 8)), volume_id="b")])
    held.volumes.save_relations(Relations(compared={v.volume_id: v.digest for v in held.volumes.records()}))
    make_snapshot(held, 0, [annotation("t1", Box((4, 4, 4), (8, 8, 8)), volume_id="b")])


def test_needs_a_holdout_and_annotations(campaign: Campaign) -> None:
    campaign.volumes.save(record())
    with pytest.raises(SamplingError, match="not frozen"):
        make_snapshot(campaign, 0, [annotation("t1", Box((4, 20, 20), (8, 8, 8)))])
    campaign.freeze_holdout(hold(Box((0, 0, 0), (20, 10, 10))))
    with pytest.raises(SamplingError, match="no accepted"):
        make_snapshot(campaign, 0, [])


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    offset = [draw(st.integers(0, n - 1)) for n in SHAPE]
    return Box(tuple(offset), tuple(draw(st.integers(1, n - o)) for n, o in zip(SHAPE, offset, strict=True)))


@settings(deadline=None)
@given(boxes(), st.lists(boxes(), max_size=6), st.tuples(*[st.integers(0, 12)] * 3))
def test_no_voxel_that_is_read_lies_in_the_holdout(box: Box, held: list[Box], context: tuple[int, int, int]) -> None:
    volume = np.zeros(SHAPE, bool)
    for one in held:
        volume[one.slices] = True
    if volume[box.slices].any():
        with pytest.raises(LeakError):
            clear_box(box, SHAPE, context, held)
        return
    read = clear_box(box, SHAPE, context, held)
    assert not volume[read.slices].any()
    assert read.contains(box)
    assert box.expand(context).clip(SHAPE).contains(read)
    assert clear_box(box, SHAPE, context, held[::-1]) == read
