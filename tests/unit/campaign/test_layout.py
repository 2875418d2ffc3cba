from __future__ import annotations

import ast
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from rescueseg.campaign import Campaign, layout
from rescueseg.campaign.layout import CAMPAIGN_FILE, GENERATION, PARTS, PLACES, STAGES, TRAINING, describe
from rescueseg.errors import CampaignError

ROOT = Path(__file__).parents[3]
OLDER = ROOT / "tests" / "data" / "older_campaign" / "campaigns.tar.xz"


def test_the_map_of_the_house_holds_the_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert f"```\n{describe()}\n```" in page, "copy it anew from describe()"


def called(node: ast.Call) -> str:
    """Return the name of a function that is called, without that of its object."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_every_place_is_used_or_holds_records() -> None:
    """What is no record is looked up in the table, by some module; records are found by their `RecordFile`."""
    modules = [path.read_text() for path in (ROOT / "rescueseg").rglob("*.py") if path.name != "layout.py"]
    names = {name for module in modules for name in re.findall(r"\b[A-Z_]{4,}\b", module)}
    records = {f"{name}.json" for module in modules for name in re.findall(r'RecordFile\(\s*"(\w+)"', module)}
    places = {name: place for name, place in vars(layout).items() if isinstance(place, layout.Place)}
    unused = [
        name
        for name, place in places.items()
        if name not in names and place.pattern not in records and not place.pattern.endswith("/{record}.json")
    ]
    assert unused == []


def test_no_other_module_writes_a_path_of_its_own() -> None:
    files = [re.escape(p.pattern) for p in PLACES if "{" not in p.pattern and p not in (CAMPAIGN_FILE,)]
    folders = sorted({p.pattern.split("/")[0] for p in PLACES if "/" in p.pattern})
    own = re.compile(rf"({'|'.join(files)})|({'|'.join(folders)})/.+")
    written = []
    for path in sorted((ROOT / "rescueseg").rglob("*.py")):
        if path.name == "layout.py":
            continue
        tree = ast.parse(path.read_text())
        documented = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in parts)
            if isinstance(node, ast.Call) and called(node) in ("list", "path", "RecordFolder", "Path"):
                text = next((a.value for a in node.args if isinstance(a, ast.Constant) and a.value in folders), "")
                if text:
                    written.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
            if isinstance(node, (ast.JoinedStr, ast.Constant)) and id(node) not in documented and own.fullmatch(text):
                written.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
    allowed = [r"rescueseg/records\.py:\d+: holdout\.json"]  # names the file in a message, from a room below
    assert [w for w in written if not any(re.fullmatch(a, w) for a in allowed)] == []


def test_every_file_of_a_campaign_is_in_the_table() -> None:
    with tarfile.open(OLDER) as archive:
        files = [member.name.split("/", 1)[1] for member in archive if member.isfile()]
    places = [place for place in PLACES if place not in (GENERATION, TRAINING)]
    assert [file for file in files if not any(place.matches(file) for place in places)] == []
    used = {place.pattern for place in places for file in files if place.matches(file)}
    assert len(used) > 20, "the campaigns hold almost everything"


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_that_holds_a_part_is_no_free_place(campaign: Campaign, part: str) -> None:
    storage = campaign.storage
    for path in Path(storage.root).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    storage.write_bytes(f"{part}/x" if "." not in part else part, b"foreign")
    with pytest.raises(CampaignError, match=re.escape(part)):
        Campaign.create(campaign.url, campaign.config)
    assert storage.list("") == [part], "nothing was written"


def test_the_records_of_the_stages_are_in_the_table(campaign: Campaign) -> None:
    for stage in STAGES:
        path = campaign.generation(3).path(f"{stage}.json")
        assert path == f"generations/0003/{stage}.json"
        assert any(place.matches(path) for place in PLACES)
