"""A few annotators at a server that is killed; the command beside this test does it with many."""

from __future__ import annotations

from pathlib import Path

from tests.integration.annotators_against_server import make_campaign, run


def test_no_patch_is_held_by_two_and_none_is_lost(tmp_path: Path, database_url: str) -> None:
    campaign = make_campaign(tmp_path, database_url, tickets=40, lease_seconds=5)
    logs = tmp_path / "logs"
    logs.mkdir()
    figures = run(campaign, annotators=5, restarts=1, logs=logs, limit=240)
    assert figures["server kills"] == 1
    assert figures["events"]["accepted"] >= 30
