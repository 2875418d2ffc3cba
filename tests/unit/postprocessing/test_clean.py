"""Masks are cleaned as the route allows: specks go, what may be part of the structure stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.campaign.route import TRIAGE_SUMMARY, profile_of
from rescueseg.postprocessing.clean import clean
from rescueseg.triage.tree import ROUTES
from tests.triage_summaries import triaged

SPACING = (2.0, 1.0, 1.0)
THICKNESS = 6.0  # a speck is smaller than a ball 3 µm across: 7 voxels


def scene() -> np.ndarray:
    labels = np.zeros((12, 40, 40), np.uint8)
    labels[3:9, 5:17, 5:17] = 1
    labels[5:7, 9:12, 9:12] = 0  # a cavity
    labels[5, 30, 30] = 1  # a speck
    labels[5, 10, 20] = 1  # within 6 µm of the object
    labels[0, 35, 5] = 1  # cut by the border
    labels[8, 30, 10:13] = 2  # a speck of another class
    return labels


@pytest.mark.parametrize(
    ("profile", "kept"),
    [
        ("none", {"speck", "near", "border", "other", "cavity"}),
        ("specks", {"border", "cavity"}),
        ("filled", {"border"}),
        ("connected", {"near", "border", "cavity"}),
    ],
)
def test_each_profile_keeps_what_it_says(profile: str, kept: set[str]) -> None:
    before = scene()
    after = clean(before, SPACING, profile, THICKNESS)  # type: ignore[arg-type]
    found = {
        "speck": after[5, 30, 30] == 1,
        "near": after[5, 10, 20] == 1,
        "border": after[0, 35, 5] == 1,
        "other": after[8, 30, 11] == 2,
        "cavity": after[6, 10, 10] == 0,
    }
    assert {name for name, there in found.items() if there} == kept
    assert (after[3:9, 5:17, 5:17][scene()[3:9, 5:17, 5:17] == 1] == 1).all(), "the object stays"
    np.testing.assert_array_equal(before, scene())


@given(
    hnp.arrays(np.uint8, (6, 10, 10), elements=st.integers(0, 2)),
    st.sampled_from(["none", "specks", "filled", "connected"]),
    st.floats(0.5, 20),
)
@settings(deadline=None, max_examples=60)
def test_cleaning_twice_changes_nothing_more_and_invents_no_class(
    labels: np.ndarray, profile: str, thickness: float
) -> None:
    once = clean(labels, SPACING, profile, thickness)  # type: ignore[arg-type]
    if profile != "connected":  # what kept a piece may itself have gone
        np.testing.assert_array_equal(clean(once, SPACING, profile, thickness), once)  # type: ignore[arg-type]
    assert set(np.unique(once)) <= {0, *np.unique(labels).tolist()}
    if profile != "filled":
        assert ((once == labels) | (once == 0)).all()


def test_the_triages_route_decides_and_a_person_may_override(tmp_path: Path) -> None:
    campaign = Campaign.create(str(tmp_path), settings_of("n", ["a"]))
    assert profile_of(campaign.config, campaign.records.read(TRIAGE_SUMMARY)) == ("none", 0.0)
    campaign.records.write(TRIAGE_SUMMARY, triaged({"thickness": 4.0}, route=ROUTES["topology"].to_json()))
    assert profile_of(campaign.config, campaign.records.read(TRIAGE_SUMMARY)) == ("connected", 4.0)
    decided = Campaign(campaign.storage, settings_of("n", ["a"], ["annotation.postprocessing=filled"]))
    assert profile_of(decided.config, decided.records.read(TRIAGE_SUMMARY)) == ("filled", 4.0)
    campaign.records.write(TRIAGE_SUMMARY, triaged(route=ROUTES["topology"].to_json()))
    assert profile_of(campaign.config, campaign.records.read(TRIAGE_SUMMARY)) == ("none", 0.0), "nothing was measured"
