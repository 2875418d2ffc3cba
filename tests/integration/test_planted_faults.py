"""Faults planted at random in a campaign: `verify` reports each, or it is harmless; and none changes a figure silently."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.errors import RescuesegError
from rescueseg.upkeep.verify import verify
from tests.whole_campaign import FIGURES, contents, copy_of, forget_caches, make_whole_campaign, plant


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return make_whole_campaign(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def figures(whole: Campaign, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("healthy")
    return {name: read(copy_of(whole, folder / name).url) for name, read in FIGURES.items()}


def read_all(campaign: Campaign) -> dict[str, Any] | None:
    """Return what a campaign says; None where not even its database can be read."""
    try:
        return contents(campaign)
    except Exception:
        return None


def test_a_healthy_campaign_has_no_damage(whole: Campaign) -> None:
    found = verify(whole)
    assert found.damage == []
    assert found.unknown == []
    assert found.files > 50


def reported_or_harmless(whole: Campaign, folder: Path, seed: int) -> None:
    """Plant one fault and look at everything."""
    copied = copy_of(whole, folder)
    before = contents(copied)
    fault = plant(copied, random.Random(seed))
    found = verify(copied)
    if not found.damage and not found.unchecked:
        after = read_all(copied)
        changed = [name for name in before if after is None or after.get(name) != before[name]]
        values = [name for name in changed if not same_value(before[name], (after or {}).get(name))]
        assert values == [], f"fault {seed}, {fault}: nobody noticed"


def same_value(one: bytes, other: bytes | None) -> bool:
    """Tell whether two JSON files hold the same record, with or without a checksum, or two archives the same array."""
    if other is None:
        return False
    try:
        a, b = json.loads(one), json.loads(other)
    except ValueError:
        try:
            arrays = [np.load(io.BytesIO(x), allow_pickle=False)["array"] for x in (one, other)]
        except Exception:
            return False
        return bool(np.array_equal(*arrays))
    inner = [x["record"] if isinstance(x, dict) and "record" in x else x for x in (a, b)]
    return bool(inner[0] == inner[1])


def same_figures_or_an_error(whole: Campaign, figures: dict[str, Any], folder: Path, seed: int) -> None:
    """Plant one fault and let the commands meet it, without a look before."""
    rng = random.Random(seed)
    copied = copy_of(whole, folder)
    fault = plant(copied, rng)
    name = rng.choice(sorted(FIGURES))
    forget_caches()
    try:
        result = FIGURES[name](copied.url)
    except RescuesegError:
        return
    assert result == figures[name], f"fault {seed}, {fault}: {name} changed silently"


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in range(0, 60, 20)], ids=str)
def test_planted_faults_are_reported(whole: Campaign, tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        reported_or_harmless(whole, tmp_path / "copy", seed)


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in range(10_000, 10_040, 20)], ids=str)
def test_planted_faults_change_no_figure(
    whole: Campaign, figures: dict[str, Any], tmp_path: Path, seeds: range
) -> None:
    for seed in seeds:
        same_figures_or_an_error(whole, figures, tmp_path / "copy", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 500, 50)], ids=str)
def test_500_planted_faults_are_reported(whole: Campaign, tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        reported_or_harmless(whole, tmp_path / "copy", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(10_000, 10_100, 50)], ids=str)
def test_100_planted_faults_change_no_figure(
    whole: Campaign, figures: dict[str, Any], tmp_path: Path, seeds: range
) -> None:
    for seed in seeds:
        same_figures_or_an_error(whole, figures, tmp_path / "copy", seed)
