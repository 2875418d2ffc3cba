"""A file or folder is replaced whole or not at all."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from rescueseg.storage import replace_atomically, write_atomically

ROOT = Path(__file__).parents[2]


class StopError(Exception):
    """Stands for whatever stops a writer in the middle."""


def _stop_after(write: Callable[[Path], object], path: Path) -> None:
    with replace_atomically(path) as part:
        write(part)
        raise StopError


def _write_folder(part: Path) -> None:
    part.mkdir()
    (part / "weights").write_text("w")


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with replace_atomically(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(StopError):
        _stop_after(lambda part: part.write_text("ne"), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_and_its_rest_is_removed_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with replace_atomically(path) as part:
        _write_folder(part)
        assert not path.exists()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["model", "model/weights"]
    with pytest.raises(StopError):
        _stop_after(_write_folder, tmp_path / "other")
    assert list(tmp_path.iterdir()) == [path]


def test_the_part_is_hidden_and_ends_as_its_writer_needs(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / "a.nii.gz", ending=".nii.gz") as part:
        assert part.name.startswith(".a.nii.gz.")
        assert part.name.endswith(".part.nii.gz")
        part.touch()
    with replace_atomically(tmp_path / "a.json") as part:
        assert part.suffix == ".part", "what lists *.json must not see it"
        part.touch()


def test_write_atomically_makes_the_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.bin", b"x")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.bin"]


MOVES = {
    "rescueseg/storage.py": "replace_atomically",
    "rescueseg/annotation/watch.py": "a mask that was handed in goes to another folder",
    "rescueseg/upkeep/backup_records.py": "content whose name, its digest, is known when it is written",
    "rescueseg/volumes/volume_import.py": "the part of an import has a fixed name, for the next one to find",
}
"""Files that move a file or folder, and why."""


def _moves(tree: ast.AST) -> bool:
    """Tell whether a module renames: `replace` with one argument is a path's, with two a text's or a date's."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            of_path = call.func.attr in ("rename", "replace") and len(call.args) == 1 and not call.keywords
            if of_path or ast.unparse(call.func) in ("os.replace", "os.rename", "shutil.move"):
                return True
    return False


def test_nothing_else_writes_beside_a_file_and_moves_it() -> None:
    files = ((p.relative_to(ROOT).as_posix(), ast.parse(p.read_text())) for p in (ROOT / "rescueseg").rglob("*.py"))
    assert {name for name, tree in files if _moves(tree)} == MOVES.keys()
