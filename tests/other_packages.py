"""The package of `tests/toy_family`, put where Python finds installed packages, as an installation would: no network."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

TOY = Path(__file__).parent / "toy_family"


def install_toy_family(site: Path) -> None:
    """Write the metadata of the package into a folder, and let this process and those it starts find both.

    Parameters
    ----------
    site : Path
        An empty folder.
    """
    project = tomllib.loads((TOY / "pyproject.toml").read_text())["project"]
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(text)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join([*lines, ""]))
    sys.path += [str(site), str(TOY)]
    earlier = [path for path in [os.environ.get("PYTHONPATH", "")] if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*earlier, str(site), str(TOY)])
