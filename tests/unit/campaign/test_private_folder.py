"""Folders that only their user can enter: made so, found again, and refused wherever somebody else was first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rescueseg.campaign import Campaign
from rescueseg.campaign.private_folder import cache_folder, local_folder, private_folder
from rescueseg.config import check_config
from rescueseg.errors import CampaignError
from rescueseg.storage import digest_json, write_atomically

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make folders of another user")


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """A campaign off the local disk, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = check_config({"name": "m", "classes": ["x"], "database_url": "postgresql://nowhere/x"})
    campaign = Campaign.create(f"memory://{tmp_path.name}", config)
    campaign.storage.write_json("consistency.json", {})
    return campaign


def place(campaign: Campaign) -> Path:
    """Return the folder in the cache where the campaign's work folders lie."""
    return cache_folder() / "rescueseg-work" / digest_json(campaign.url)[:16]


def test_a_work_folder_is_its_users_alone_and_is_found_again(remote: Campaign) -> None:
    folder = remote.generation(3).work_folder()
    write_atomically(folder / "members" / "0" / "checkpoint.pt", b"half")
    assert folder == place(remote) / "generations" / "0003" / "training"
    for path in (folder, *folder.parents):
        if path == cache_folder():
            break
        assert path.stat().st_mode & 0o777 == 0o700
    again = Campaign.open(remote.url).generation(3).work_folder()
    assert (again / "members" / "0" / "checkpoint.pt").read_bytes() == b"half"
    assert Campaign.open(remote.url).training("x").work_folder() != again


def test_a_killed_process_finds_its_folder_in_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from rescueseg.campaign.private_folder import cache_folder, private_folder\n"
        "folder = private_folder(cache_folder(), 'rescueseg-work/a/training', 'x')\n"
        "(folder / 'checkpoint').touch(); print(folder, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -9
    assert list(private_folder(tmp_path, "rescueseg-work/a/training", "x").iterdir()) == [
        Path(done.stdout.strip(), "checkpoint")
    ]


@pytest.mark.parametrize("depth", range(5))
def test_a_link_on_the_way_is_refused_and_nothing_is_written_through_it(
    remote: Campaign, tmp_path: Path, depth: int
) -> None:
    target = tmp_path / "somewhere"
    target.mkdir(mode=0o700)
    below = [place(remote).parent, place(remote), *(place(remote) / p for p in ("generations", "generations/0000"))]
    planted = [*below, place(remote) / "generations/0000/training"][depth]
    planted.parent.mkdir(parents=True, mode=0o700)
    for path in (cache_folder() / "rescueseg-work", *planted.parents):
        if path.is_relative_to(cache_folder()) and path.exists():
            path.chmod(0o700)
    planted.symlink_to(target)
    with pytest.raises(CampaignError, match=r"a link or a file lies where a folder belongs.*XDG_CACHE_HOME") as error:
        remote.generation(0).work_folder()
    assert str(planted) in str(error.value)
    assert list(target.iterdir()) == []


@needs_root
@pytest.mark.parametrize("inside", ["", "generations", "generations/0000"])
def test_a_folder_that_another_user_made_first_is_refused(remote: Campaign, inside: str) -> None:
    planted = place(remote) / inside
    planted.mkdir(parents=True)
    for path in (planted, *planted.parents):
        if path.is_relative_to(cache_folder()):
            path.chmod(0o700)
    os.chown(planted, NOBODY, NOBODY)
    with pytest.raises(CampaignError, match=rf"belongs to somebody else \(user {NOBODY}\).*Remove it after a look"):
        remote.generation(0).work_folder()
    assert list(planted.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o701])
def test_a_folder_that_others_can_enter_is_refused(remote: Campaign, mode: int) -> None:
    private_folder(cache_folder(), "rescueseg-work", "x").chmod(mode)
    with pytest.raises(CampaignError, match=rf"others can look into the folder \(mode {mode:o}\)"):
        remote.generation(0).work_folder()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_whose_entries_others_can_exchange_is_refused(remote: Campaign, mode: int) -> None:
    cache_folder().mkdir()
    cache_folder().chmod(mode)
    with pytest.raises(CampaignError, match="others can exchange what lies in the folder"):
        remote.generation(0).work_folder()
    cache_folder().chmod(mode | 0o1000)  # as the system's temporary folder
    assert remote.generation(0).work_folder().is_dir()


@needs_root
def test_the_cache_of_another_user_is_refused(remote: Campaign) -> None:
    cache_folder().mkdir()
    os.chown(cache_folder(), NOBODY, NOBODY)
    with pytest.raises(CampaignError, match="others can exchange"):
        remote.generation(0).work_folder()


def test_a_cache_that_is_a_link_of_ones_own_is_fine(remote: Campaign, tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    cache_folder().symlink_to(tmp_path / "large-disk")
    assert remote.generation(0).work_folder().is_relative_to(tmp_path / "large-disk")


def test_no_work_folder_leaves_the_campaign(remote: Campaign) -> None:
    with pytest.raises(CampaignError, match="leaves the campaign"):
        local_folder(remote.storage, "../other")


def test_a_file_in_the_way_is_one_clear_error(remote: Campaign) -> None:
    cache_folder().mkdir()
    (cache_folder() / "rescueseg-work").touch()
    with pytest.raises(CampaignError, match="a link or a file"):
        remote.generation(0).work_folder()


def test_a_cache_that_cannot_be_made_is_one_clear_error(remote: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(CampaignError, match=r"/proc/nowhere: the folder cannot be used: .*XDG_CACHE_HOME"):
        remote.generation(0).work_folder()


def test_a_relative_name_of_the_cache_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache")
