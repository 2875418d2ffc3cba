"""Fixtures that every kind of test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rescueseg.campaign import Campaign
from rescueseg.config import check_config


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Return an empty campaign with one class."""
    return Campaign.create(str(tmp_path / "campaign"), check_config({"name": "test", "classes": ["organelle"]}))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real volumes; the test is skipped where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RESCUESEG_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real volumes in {folder} (set RESCUESEG_TEST_DATA)")
    return folder
