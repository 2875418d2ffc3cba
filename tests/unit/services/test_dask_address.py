"""Which schedulers may be spoken to, told before anything starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rescueseg.campaign.campaign_file import parse_config
from rescueseg.config import ClusterConfig
from rescueseg.errors import ConfigError
from rescueseg.services.dask_address import check_address, is_unprotected


def named(address: str, tls_folder: str = "") -> ClusterConfig:
    return ClusterConfig(kind="address", address=address, tls_folder=tls_folder)


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:8786", "127.0.0.1:8786", "tcp://localhost", "tcp://[::1]:8786", "tcp://127.3.2.1:1"]
)
def test_a_scheduler_of_this_machine_may_go_without_tls(address: str) -> None:
    check_address(named(address))
    assert is_unprotected(named(address))


@pytest.mark.parametrize(
    "address",
    [
        *(
            "tcp://scheduler:8786",
            "scheduler:8786",
            "tcp://0.0.0.0:8786",
            "tcp://10.0.0.1:8786",
            "tcp://[fe80::1]:8786",
        ),
        *("tcp://localhost.evil.example:8786", "tcp://127.1:8786", "ws://127.0.0.1:8786", "ucx://127.0.0.1:8786"),
    ],
)
def test_others_need_tls(address: str) -> None:
    with pytest.raises(ConfigError, match="not protected by TLS"):
        check_address(named(address, "/tls"))


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:80@evil", "tls://a b:1", "tls://", "tcp://x://127.0.0.1:1", "::1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="no address of a scheduler"):
        check_address(named(address, "/tls"))


def test_tls_needs_credentials() -> None:
    with pytest.raises(ConfigError, match=r"tls_folder: tls://scheduler:8786 needs credentials"):
        check_address(named("tls://scheduler:8786"))
    check_address(named("tls://scheduler:8786", "/tls"))
    assert not is_unprotected(named("tls://scheduler:8786", "/tls"))


def test_campaigns_that_name_such_a_scheduler_still_open() -> None:
    text = 'name = "old"\nclasses = ["x"]\n[cluster]\nkind = "address"\naddress = "tcp://scheduler:8786"\n'
    assert parse_config(text).cluster == named("tcp://scheduler:8786")


def test_clusters_that_are_started_here_pass() -> None:
    check_address(ClusterConfig(kind="local", address="tcp://scheduler:8786"))


def test_asking_imports_no_dask() -> None:
    code = "import sys, rescueseg.services.dask_address; print('distributed' in sys.modules or 'dask' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
