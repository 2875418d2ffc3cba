"""Imports run one way, flows → tasks → rescueseg and from room to room, and what must be quick imports nothing slow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import rooms

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "rescueseg": {"prefect", "flows", "tasks"},
    "tasks": {"flows"},
    "flows": set(),
}
ONLY = {
    "mlflow": {
        f"rescueseg/tracking/{name}.py" for name in ("runs", "tracker", "models", "pyfunc_model", "served_model")
    },
    "prefect": set(),
    "dask_jobqueue": {"rescueseg/services/dask_cluster.py"},
    "dask_cuda": {"rescueseg/services/dask_cluster.py"},
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
        "rescueseg.cli.main",
        "rescueseg.campaign",
        "rescueseg.config",
        "rescueseg.services.prefect_api",
        "rescueseg.annotation.remote_client",
        "rescueseg.server.app",
        "rescueseg.models.registry",
    ],
)
def test_what_must_be_quick_imports_nothing_slow(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'monai', 'mlflow', 'prefect', 'distributed'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# rooms ----------------------------------------------------------------------------------------------------------------

FILES = rooms.modules(ROOT)
IMPORTS = list(rooms.imports(ROOT))
ORDER = rooms.documented_order(ROOT)


def test_every_room_stands_in_the_order_of_the_architecture_page() -> None:
    assert {rooms.room(module, FILES) for module in FILES if "." in module} <= set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


def test_a_room_imports_only_rooms_above_it_in_that_order() -> None:
    """Imports within functions, for typing alone and module names in strings count like any other."""
    assert [f"{i.path}:{i.line} {i.target}" for i in rooms.upward(IMPORTS, FILES, ORDER)] == []


def test_neither_files_nor_rooms_import_each_other() -> None:
    assert rooms.circles((i.source, i.target) for i in IMPORTS) == []
    assert rooms.circles((rooms.room(i.source, FILES), rooms.room(i.target, FILES)) for i in IMPORTS) == []


def test_an_upward_import_is_seen_wherever_it_hides(tmp_path: Path) -> None:
    package = tmp_path / "rescueseg"
    for name in ("low", "high"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "high" / "thing.py").write_text("value = 1\n")
    for line in (
        "from rescueseg.high.thing import value",
        "import rescueseg.high.thing",
        "def f():\n    from rescueseg.high import thing",
        "if TYPE_CHECKING:\n    from rescueseg.high.thing import value",
        "COMMAND = ['-m', 'rescueseg.high.thing']",
        "LOADER = 'rescueseg.high.thing:value'",
    ):
        (package / "low" / "thing.py").write_text(f"{line}\n")
        files, imports = rooms.modules(tmp_path), list(rooms.imports(tmp_path))
        assert [i.target for i in rooms.upward(imports, files, ["low", "high"])] == ["rescueseg.high.thing"], line
        assert rooms.upward(imports, files, ["high", "low"]) == []


LAZY = (
    "rescueseg/cli/",
    "rescueseg/models/registry.py",
    "rescueseg/models/precision_trial.py",
    "rescueseg/models/cellpose/settings.py",
    "rescueseg/weak_labels/published_methods.py",
)
"""Where modules are imported only when they are needed: commands, the families of models, and weights from elsewhere; the
U-Net of a trial of precision without MONAI's optional packages."""
FORMATS = {"liffile", "mrcfile", "nd2", "pylibCZIrw"}
EXTRAS = {"napari", "cvat_sdk", "dask_cuda", "dask_jobqueue", "topolosses", "stardist", "cellpose"} | FORMATS
"""Packages that not every installation has."""


def test_imports_stand_at_the_top() -> None:
    wrong = []
    for path in (ROOT / "rescueseg").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(LAZY):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                packages = {package for node in ast.walk(function) for package in _packages(node)}
                wrong += [f"{name}:{function.lineno} {function.name} imports {p}" for p in sorted(packages - EXTRAS)]
    assert wrong == []


def _packages(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "importlib.import_module",
        "import_module",
        "__import__",
    ):
        name = node.args[0]
        return {name.value.split(".")[0] if isinstance(name, ast.Constant) else f"what {ast.unparse(name)} names"}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


def test_the_architecture_page_names_where_modules_are_imported_within_functions() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    [sentence] = re.findall(r"Imports stand at the top of a file\. Only (.*?) import", page, flags=re.DOTALL)
    assert sorted(f"rescueseg/{name}" for name in re.findall("`(.*?)`", sentence)) == sorted(LAZY)
