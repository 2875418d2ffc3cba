from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rescueseg.campaign import Campaign
from rescueseg.cli.main import app
from tests.whole_campaign import copy_of, make_whole_campaign


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return make_whole_campaign(tmp_path_factory.mktemp("whole"))


def test_damage_is_named_and_the_command_fails(whole: Campaign, tmp_path: Path) -> None:
    copied = copy_of(whole, tmp_path / "copy")
    healthy = run("verify", copied.url)
    assert healthy.exit_code == 0, healthy.output
    assert "Nothing is damaged" in healthy.output
    [shard] = list(Path(copied.url).glob("volumes/a.ome.zarr/0/c/0/0/0/0"))
    shard.unlink()
    Path(copied.url, "notes.txt").write_text("mine")
    found = run("verify", copied.url, "--json", str(tmp_path / "damage.json"))
    assert found.exit_code == 1
    assert "volumes/a.ome.zarr/0/c/0/0/0/0" in found.output
    assert "Not of this campaign: notes.txt" in found.output
    written = json.loads((tmp_path / "damage.json").read_text())
    assert [damage["where"] for damage in written["damage"]] == [str(shard)]


def test_backup_and_restore_by_command(whole: Campaign, tmp_path: Path) -> None:
    out, target = str(tmp_path / "backups"), str(tmp_path / "again")
    dry = run("backup", whole.url, out, "--dry-run")
    assert (dry.exit_code, Path(out).exists()) == (0, False), dry.output
    assert "Nothing was changed" in dry.output
    assert run("backup", whole.url, out).exit_code == 0
    assert "whole" in run("restore", out, "--list").output
    dry = run("restore", out, target, "--dry-run")
    assert (dry.exit_code, Path(target).exists()) == (0, False), dry.output
    assert run("restore", out, target).exit_code == 0
    assert run("verify", target).exit_code == 0
    again = run("restore", out, target)
    assert again.exit_code == 1
    assert "not empty" in again.output
    assert run("restore", out).exit_code == 2, "no folder was named"
    assert run("restore", str(tmp_path / "nothing"), target).exit_code == 1
