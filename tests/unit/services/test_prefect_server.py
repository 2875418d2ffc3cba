"""The secret's file: whose it is, who reads it, and that it is made anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rescueseg.errors import StorageError
from rescueseg.services.prefect_server import (
    SECRET_FILE,
    PrefectServer,
    make_private,
    make_secret,
    read_secret,
    server_of_environment,
    where_prefect,
)
from rescueseg.services.state import read_state


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_reads_the_secret_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_private(tmp_path / "a" / "services")
        secret = make_secret(tmp_path / "a" / "services")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a" / "services") == 0o700
    assert mode(tmp_path / "a" / "services" / SECRET_FILE) == 0o600
    assert [path.name for path in (tmp_path / "a" / "services").iterdir()] == [SECRET_FILE]
    assert read_secret(tmp_path / "a" / "services") == secret
    assert len(secret) > 40


def test_a_folder_of_an_earlier_version_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    make_private(tmp_path)
    assert mode(tmp_path) == 0o700


def test_a_file_system_without_permissions_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no")

    real = os.open
    tmp_path.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(os, "open", lambda path, flags, mode: real(path, flags, 0o755))
    make_private(tmp_path)
    assert read_secret(tmp_path) == "" != make_secret(tmp_path)
    assert "other accounts of this machine may read it" in caplog.text


def test_each_start_makes_another_secret_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).touch(mode=0o644)
    with (tmp_path / SECRET_FILE).open() as opened_before:
        secrets = {make_secret(tmp_path) for _ in range(3)}
        assert len(secrets) == 3
        assert opened_before.read() == "", "who had the old file open reads nothing new"
    assert mode(tmp_path / SECRET_FILE) == 0o600
    assert read_secret(tmp_path) in secrets


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "no")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="writing is not allowed"):
        make_secret(tmp_path)


def test_who_may_not_enter_knows_of_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert read_state(tmp_path) is None
    assert read_secret(tmp_path) == ""


def test_the_page_and_the_way_past_its_login_stand_in_one_line() -> None:
    line = where_prefect(PrefectServer("http://127.0.0.1:4200/api", "hidden"), Path("/data/my liver/services"))
    assert line.startswith("http://127.0.0.1:4200 ")
    assert line.endswith("cat '/data/my liver/services/prefect-secret'")
    assert "hidden" not in line


def test_the_environment_names_a_server_and_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api/")
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    assert server_of_environment() == PrefectServer("http://prefect:4200/api")
    assert PrefectServer("http://prefect:4200/api").settings == {"PREFECT_API_URL": "http://prefect:4200/api"}
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "one")
    assert server_of_environment() == PrefectServer("http://prefect:4200/api", "one")
    monkeypatch.setenv("PREFECT_API_URL", "")
    assert server_of_environment() is None
