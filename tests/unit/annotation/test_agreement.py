"""Agreement of two annotators, their consensus, and a reviewer's day."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from typer.testing import CliRunner

from rescueseg.annotation.agreement import agreement, object_f1
from rescueseg.annotation.consensus import staple
from rescueseg.annotation.pairs import annotators_of, more_complete, resolve_pairs
from rescueseg.campaign import Campaign
from rescueseg.cli.queue import queue_app
from rescueseg.config import check_config
from rescueseg.errors import ConfigError
from rescueseg.labels import PatchLabels, corrected_voxels
from rescueseg.reports import agreement_table as report
from rescueseg.reports.gallery import disagreement
from tests.benchmarks.reviewers_day import HABITS, make_campaign, quality, work_through

SHAPE = (3, 4, 5)
classes = arrays.arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 2, 255]))
objects = arrays.arrays(np.uint32, SHAPE, elements=st.integers(0, 4))


def labels(values: np.ndarray) -> PatchLabels:
    return PatchLabels(np.asarray(values, np.uint8))


def test_agreement_is_dice_where_both_looked() -> None:
    one, two = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    one[0], two[0, :2] = 1, 1
    assert agreement(labels(one), labels(two), 2).dice == {1: pytest.approx(2 * 10 / 30, abs=1e-6)}
    two[0, 2:] = 255
    assert agreement(labels(one), labels(two), 2).value == 1.0
    nothing = labels(np.zeros(SHAPE))
    assert (agreement(nothing, nothing, 2).value, agreement(nothing, nothing, 2).dice) == (1.0, {})
    one[:], two[:], one[:2], two[2:] = 1, 1, 255, 255
    assert agreement(labels(one), labels(two), 2).value == 0.0, "nothing was looked at twice"


@given(classes, classes)
@settings(deadline=None)
def test_agreement_is_symmetric_and_whole_with_oneself(one: np.ndarray, two: np.ndarray) -> None:
    found = agreement(labels(one), labels(two), 2)
    assert found == agreement(labels(two), labels(one), 2)
    assert 0 <= found.value <= 1
    assert agreement(labels(one), labels(one), 2).value == (one != 255).any(), "where nobody looked nobody agrees"


@given(objects)
@settings(deadline=None)
def test_other_numbers_are_the_same_objects(ids: np.ndarray) -> None:
    other = (ids * 17 + 3) * (ids > 0)
    assert object_f1(ids, other) == 1
    assert corrected_voxels(PatchLabels.of_instances(other), PatchLabels.of_instances(ids)) == 0
    assert not disagreement(PatchLabels.of_instances(ids), PatchLabels.of_instances(other)).any()


@given(objects, objects)
@settings(deadline=None)
def test_two_objects_are_the_same_where_more_than_half_of_their_voxels_are(one: np.ndarray, two: np.ndarray) -> None:
    """Every pair of objects is looked at; numbers may be as large as a file holds."""
    far = two.astype(np.uint32) * np.uint32(1_000_000_007)
    pairs = [(one == a, far == b) for a in set(one[one > 0].tolist()) for b in set(far[far > 0].tolist())]
    same = sum(2 * int((a & b).sum()) > int((a | b).sum()) for a, b in pairs)
    total = len(np.unique(one[one > 0])) + len(np.unique(far[far > 0]))
    assert object_f1(one, far) == (pytest.approx(2 * same / total, abs=1e-6) if total else 1)


def test_merged_objects_disagree_though_the_voxels_are_the_same() -> None:
    two = np.zeros(SHAPE, np.uint32)
    two[0, :2], two[0, 2:] = 1, 2
    one = (two > 0).astype(np.uint32)
    merged, split = PatchLabels.of_instances(one), PatchLabels.of_instances(two)
    found = agreement(merged, split, 1)
    assert (found.dice, found.objects, found.value) == ({1: 1.0}, 0.0, 0.0)
    assert corrected_voxels(merged, split) == 10, "the half that now continues another object"
    assert (disagreement(merged, split) == 3).sum() == 10


def test_staple_follows_the_majority_and_trusts_it_more() -> None:
    truth = np.zeros((8, 16, 16), np.uint8)
    truth[2:6, 4:12, 4:12] = 1
    wild = truth.copy()
    wild[2:6, 12:15] = 1
    made, provenance = staple([labels(truth), labels(truth), labels(wild)], 1)
    assert np.array_equal(made.classes, truth)
    trust = [one["specificity"] for one in provenance["performance"]["1"]]
    assert trust[2] < trust[0] == trust[1]


def test_a_consensus_fills_what_one_left_out() -> None:
    one, two = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    one[0], two[0], two[1], one[2, 0], two[2, 0] = 255, 1, 255, 255, 255
    made, _ = staple([labels(one), labels(two)], 1)
    assert np.array_equal(made.classes[0], two[0])
    assert np.array_equal(made.classes[1], one[1])
    assert (made.classes[2, 0] == 255).all()
    assert more_complete([labels(one), labels(two)]) == 0


def test_a_consensus_numbers_objects_as_the_first_and_adds_those_of_the_others() -> None:
    one, two = np.zeros(SHAPE, np.uint32), np.zeros(SHAPE, np.uint32)
    one[0, :2], two[0, :3], two[2] = 5, 9, 4
    first, second = PatchLabels.of_instances(one), PatchLabels.of_instances(two)
    made, _ = staple([first, second, second], 1)
    assert made.instances is not None
    assert set(made.instances[0, :3].ravel()) == {5}
    assert set(made.instances[2].ravel()) == {6}
    assert np.array_equal(made.instances > 0, made.classes == 1)


def test_the_share_of_double_patches_is_that_of_the_settings_and_the_same_in_every_run(tmp_path: Path) -> None:
    config = check_config({"name": "a", "classes": ["x"], "annotation": {"double_fraction": 0.3}})
    campaign = Campaign.create(str(tmp_path / "c"), config)
    drawn = [annotators_of(campaign.config, f"t{n}") for n in range(1000)]
    assert set(drawn) == {1, 2}
    assert 240 < drawn.count(2) < 360
    assert drawn == [annotators_of(campaign.config, f"t{n}") for n in range(1000)]


def test_instances_are_of_one_class() -> None:
    with pytest.raises(ConfigError, match="exactly one class"):
        check_config({"name": "a", "classes": ["x", "y"], "annotation": {"labels": "instance"}})


def test_a_reviewers_day(tmp_path: Path) -> None:
    campaign, store = make_campaign(tmp_path, None, "semantic", 4, 1)
    work_through(campaign, store)
    assert store.views.counts()["accepted"] == 4
    events = [entry.event for t in store.views.tickets() for entry in store.views.history(t.ticket_id)]
    assert {"compared", "rejected", "fixed", "consensus", "accepted"} <= set(events)
    measured = report.measure(campaign, store)
    assert len(measured) == 5, "one was done twice"
    anna, bob = report.by_annotator(measured, 0.8)
    assert (anna.who, bob.who) == tuple(HABITS)
    assert anna.voxel_ratio is not None
    assert bob.voxel_ratio is not None
    assert anna.voxel_ratio > 1 > bob.voxel_ratio, "one draws too much, the other too little"
    (pair,) = report.by_pair(measured, 0.8)
    assert pair.agreement == pytest.approx(np.mean([m.comparison.agreement for m in measured]))
    assert (pair.patches, pair.lowest) == (5, min(m.comparison.agreement for m in measured))
    assert 0 < pair.surface_dice["structure"] < 1
    found = quality(campaign, store)
    assert found["lead"] == [1.0]
    assert np.mean(found["accepted"]) > np.mean(found["anna"])
    for done in store.views.efforts():
        assert done.seconds > 0
    resolve_pairs(campaign, store)
    page = tmp_path / "agreement.html"
    shown = CliRunner().invoke(queue_app, ["agreement", campaign.url, "--html", str(page), "--pictures", "1"])
    assert shown.exit_code == 0, shown.output
    assert "anna and" in shown.output
    assert page.read_text().count("data:image/png") == 2
    picture = tmp_path / "view.png"
    drawn = CliRunner().invoke(
        queue_app, ["review", campaign.url, store.views.tickets()[0].ticket_id, "-o", str(picture)]
    )
    assert drawn.exit_code == 0, drawn.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    spent = CliRunner().invoke(queue_app, ["effort", campaign.url, "--patches"])
    assert re.search(r"anna +4 +1 ", spent.output), spent.output
