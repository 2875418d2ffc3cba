"""Credentials of Dask clusters: private files, new for each cluster, and nothing is read that others could have read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rescueseg.errors import CampaignError, ConfigError
from rescueseg.services.dask_credentials import make_credentials, read_credentials, temporary_credentials


def test_credentials_are_new_each_time_private_and_gone_at_the_end(tmp_path: Path) -> None:
    keys = set()
    for beside in (None, tmp_path / "campaign" / "services"):
        with temporary_credentials(beside) as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert {p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()} == dict.fromkeys(
                ("ca.pem", "cert.pem", "key.pem"), 0o600
            )
            security = read_credentials(folder)
            assert security.require_encryption
            assert security.get_tls_config_for_role("worker")["key"] == str(folder / "key.pem")
            keys.add((folder / "key.pem").read_text())
        assert not folder.exists()
    assert len(keys) == 2


def test_credentials_for_a_scheduler_that_runs_by_itself_are_kept(tmp_path: Path) -> None:
    assert make_credentials(tmp_path / "tls")
    key = (tmp_path / "tls" / "key.pem").read_text()
    assert not make_credentials(tmp_path / "tls")
    assert (tmp_path / "tls" / "key.pem").read_text() == key
    (tmp_path / "tls" / "ca.pem").unlink()  # as a kill in between leaves it
    assert make_credentials(tmp_path / "tls")
    assert (tmp_path / "tls" / "key.pem").read_text() != key


def test_the_command_refuses_a_folder_that_others_can_enter(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir(mode=0o755)
    with pytest.raises(CampaignError, match="chmod 700"):
        make_credentials(tmp_path / "tls")
    command = [sys.executable, "-m", "rescueseg.services.dask_credentials", str(tmp_path / "tls")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "others can look into the folder (mode 755)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    make_credentials(tmp_path / "tls")
    (tmp_path / "tls" / "key.pem").chmod(mode)
    with pytest.raises(ConfigError, match=rf"not its reader's alone \(user {os.geteuid()}, mode {mode:o}\).*chmod 600"):
        read_credentials(tmp_path / "tls")


def test_missing_credentials_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no ca.pem .*python -m rescueseg.services.dask_credentials"):
        read_credentials(tmp_path)
