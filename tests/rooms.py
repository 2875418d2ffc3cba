"""The rooms of rescueseg and the imports between them, read from the code: what `tests/flows/test_imports.py` holds.

A room is a folder of the package; the loose modules of the root are one room together. A folder within a room belongs to
it. Every import counts: at the top, inside a function, for typing alone, and a module's name in a string.

    python tests/rooms.py                 # this tree
    python tests/rooms.py --root FOLDER   # another checkout, such as an earlier commit's

The order of the rooms is the table in `docs/architecture.md`; a checkout without it is put into the order that a greedy
search finds best.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
PACKAGE = "rescueseg"
LOOSE = "root"
LONG = 400
_MODULE = re.compile(rf"{PACKAGE}(\.\w+)+(:\w+)?")


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another."""

    path: str
    line: int
    source: str
    target: str
    within_function: bool


def modules(root: Path) -> dict[str, Path]:
    """Return the files of the package by dotted name."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(root: Path) -> Iterator[Import]:
    """Yield every import between two modules of the package."""
    files = modules(root)
    for source, path in files.items():
        tree = ast.parse(path.read_text())
        functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
        inner = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            for name in _names(node):
                target = _module(name, files)
                if target and target != source:
                    yield Import(str(path.relative_to(root)), node.lineno, source, target, id(node) in inner)


def _names(node: ast.AST) -> list[str]:
    """Return the dotted names that a node imports, or names in a string."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
        return [node.value.replace(":", ".")]
    return []


def _module(name: str, files: Mapping[str, Path]) -> str:
    """Return the longest part of a dotted name that is a module; empty where only the package itself is."""
    while name not in files and "." in name:
        name = name.rpartition(".")[0]
    return name if name in files and name != PACKAGE else ""


def room(module: str, files: Mapping[str, Path]) -> str:
    """Return the room of a module: the first folder below the package."""
    parts = module.split(".")
    is_folder = len(parts) > 2 or files[module].name == "__init__.py"
    return parts[1] if len(parts) > 1 and is_folder else LOOSE


def rooms_apart(module: str, files: Mapping[str, Path]) -> str:
    """Return the room of a module where each loose module is a room of its own, as in a house without rooms."""
    name = room(module, files)
    return module.split(".")[-1] if name == LOOSE else name


def documented_order(root: Path) -> list[str]:
    """Return the rooms in the order of the table in `docs/architecture.md`; empty where there is none."""
    page = root / "docs" / "architecture.md"
    if not page.exists():
        return []
    return re.findall(r"^\| `(\w+)/?` \|", page.read_text(), flags=re.MULTILINE)


def best_order(arrows: Counter[tuple[str, str]]) -> list[str]:
    """Return an order with few upward arrows: Eades, Lin and Smyth 1993, doi:10.1016/0020-0190(93)90079-O."""
    graph = nx.DiGraph()
    graph.add_weighted_edges_from((a, b, n) for (a, b), n in arrows.items())
    high: list[str] = []
    low: list[str] = []
    while graph:
        if leaves := [n for n in graph if graph.out_degree(n) == 0]:
            low += leaves
            graph.remove_nodes_from(leaves)
        elif tops := [n for n in graph if graph.in_degree(n) == 0]:
            high += tops
            graph.remove_nodes_from(tops)
        else:
            node = max(graph, key=lambda n: graph.out_degree(n, "weight") - graph.in_degree(n, "weight"))
            high.append(node)
            graph.remove_node(node)
    return low + high[::-1]


def upward(found: Sequence[Import], files: Mapping[str, Path], order: Sequence[str]) -> list[Import]:
    """Return the imports of a room that stands later in the order, or not in it."""
    rank = {name: i for i, name in enumerate(order)}
    return [
        i
        for i in found
        if (a := room(i.source, files)) != (b := room(i.target, files)) and rank.get(b, len(rank)) > rank.get(a, -1)
    ]


def circles(pairs: Iterator[tuple[str, str]]) -> list[set[str]]:
    """Return the groups of modules or rooms that import each other."""
    graph = nx.DiGraph((a, b) for a, b in pairs if a != b)
    return [group for group in nx.strongly_connected_components(graph) if len(group) > 1]


def help_seconds(root: Path, runs: int = 5) -> float:
    """Return the median wall-clock seconds of ``rescueseg --help``."""
    module = f"{PACKAGE}.cli.main" if (root / PACKAGE / "cli").is_dir() else f"{PACKAGE}.cli"
    command = [sys.executable, "-c", f"from {module} import app; app()", "--help"]
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(command, cwd=root, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Print the measures of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    root = parser.parse_args().root.resolve()
    files, found = modules(root), list(imports(root))
    lines = {module: len(path.read_text().splitlines()) for module, path in files.items()}
    loose = [m for m in files if "." in m and room(m, files) == LOOSE]
    order, of_room = documented_order(root), room
    told = "the order of docs/architecture.md"
    if not order:
        of_room, told = rooms_apart, "the best order found"
        order = best_order(Counter((of_room(i.source, files), of_room(i.target, files)) for i in found))
    rank = {name: i for i, name in enumerate(order)}
    up = [i for i in found if rank[of_room(i.target, files)] > rank[of_room(i.source, files)]]
    arrows = {(of_room(i.source, files), of_room(i.target, files)) for i in up}
    sizes: Counter[str] = Counter()
    for module, count in lines.items():
        sizes[of_room(module, files)] += count
    (largest, size), total = sizes.most_common(1)[0], sum(lines.values())
    knots = circles((of_room(i.source, files), of_room(i.target, files)) for i in found)
    print(f"loose modules in the root       {len(loose)}")
    print(f"imports inside functions        {sum(i.within_function for i in found)}")
    print(f"upward imports between rooms    {len(up)} in {len(arrows)} arrows ({told})")
    print(f"rooms that import each other    {sum(map(len, knots))} of {len(sizes)}")
    print(f"circles between files           {len(circles((i.source, i.target) for i in found))}")
    print(f"largest room                    {largest}, {size / total:.1%} of {total:,} lines")
    print(f"files over {LONG} lines            {sum(count > LONG for count in lines.values())}")
    print(f"seconds of --help               {help_seconds(root):.2f}")


if __name__ == "__main__":
    main()
