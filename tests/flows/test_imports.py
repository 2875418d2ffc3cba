"""Imports run one way, flows → tasks → rescueseg, and what must be quick imports nothing slow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "rescueseg": {"prefect", "flows", "tasks"},
    "tasks": {"flows"},
    "flows": set(),
}
ONLY = {
    "mlflow": {f"rescueseg/tracking/{name}.py" for name in ("tracker", "models", "pyfunc_model")},
    "prefect": set(),
    "dask_jobqueue": {"rescueseg/cluster.py"},
    "dask_cuda": {"rescueseg/cluster.py"},
}
"""Packages that only these modules of the library may import at run time."""
CLUSTERS = {"LocalCluster", "SLURMCluster", "LocalCUDACluster"}


def _imports(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_run_one_way(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in _imports(path)
        if name in FORBIDDEN[package]
    }
    assert not wrong


@pytest.mark.parametrize("package", sorted(ONLY))
def test_only_one_module_speaks_to(package: str) -> None:
    users = {
        str(path.relative_to(ROOT)) for path in (ROOT / "rescueseg").rglob("*.py") if package in set(_imports(path))
    }
    assert users <= ONLY[package]


def test_flows_are_made_of_tasks() -> None:
    used = {name for path in (ROOT / "flows").rglob("*.py") for name in _imports(path)}
    assert "tasks" in used


@pytest.mark.parametrize(
    "module",
    [
        "rescueseg.cli",
        "rescueseg.campaign",
        "rescueseg.config",
        "rescueseg.orchestration",
        "rescueseg.annotation.remote_desk",
        "rescueseg.annotation.server.app",
    ],
)
def test_what_must_be_quick_imports_nothing_slow(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'monai', 'mlflow', 'prefect', 'distributed'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
