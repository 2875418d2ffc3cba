"""How often the files of a campaign are read: once for each volume, however many volumes there are."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.cli.main import app
from rescueseg.config import check_config
from rescueseg.geometry import Box
from rescueseg.inference.box_means import SCORES
from rescueseg.queue.store import open_queue
from rescueseg.records import Holdout, HoldoutBox
from rescueseg.stages.evaluate import evaluate
from rescueseg.stages.tickets import query
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.evaluated_campaign import write_maps, write_model

COUNTS = 3, 6
SHAPE, BOX, SPACING = (8, 32, 32), (8, 8, 8), (0.2, 0.1, 0.1)
_reading: list[tuple[str, list[str]]] = []
"""The folder that is watched now, if any, and the files that were opened in it."""


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _reading and isinstance(arguments[0], str | Path) and str(arguments[1]).startswith("r"):
        folder, files = _reading[-1]
        if str(arguments[0]).startswith(f"{folder}/"):
            files.append(str(arguments[0])[len(folder) + 1 :])


sys.addaudithook(_note)


@contextmanager
def files_read(campaign: Campaign) -> Iterator[Counter[str]]:
    """Count the files of a campaign that are opened for reading meanwhile."""
    counts: Counter[str] = Counter()
    _reading.append((campaign.url, []))
    try:
        yield counts
    finally:
        counts.update(_reading.pop()[1])


def evaluation(campaign: Campaign) -> None:
    assert evaluate(campaign, 0).evaluation.boxes


def next_query(campaign: Campaign) -> None:
    with closing(open_queue(campaign)) as store:
        assert query(campaign, 0, store).candidates


def status(campaign: Campaign) -> None:
    result = CliRunner().invoke(app, ["status", campaign.url], catch_exceptions=False)
    assert "v2: 8×32×32 voxels" in result.output


def make_campaign(folder: Path, count: int) -> Campaign:
    """Return a campaign of volumes with truth, two holdout boxes in each, and the maps of generation 0."""
    folder.mkdir()
    campaign = Campaign.create(
        str(folder / "campaign"),
        check_config({"name": "many", "classes": ["o"], "sampling": {"patch_zyx": list(BOX)}}),
    )
    open_queue(campaign).close()
    rng, boxes = np.random.default_rng(0), []
    for name in (f"v{number}" for number in range(count)):
        tifffile.imwrite(folder / "image.tif", rng.integers(0, 60_000, SHAPE).astype(np.uint16))
        truth = rng.random(SHAPE) < 0.3
        tifffile.imwrite(folder / "truth.tif", truth.astype(np.uint8))
        files = str(folder / "image.tif"), str(folder / "truth.tif")
        import_volume(campaign, VolumeImport(files[0], volume_id=name, spacing=SPACING, truth=files[1]))
        boxes += [
            HoldoutBox(volume_id=name, box=Box((0, 0, 16 * n), BOX), part=part, stratum="typical")
            for n, part in enumerate(("validation", "test"))
        ]
        entropy, *others = (rng.random(SHAPE) for _ in SCORES)
        probability = np.stack([~truth, truth]).astype(float)
        write_maps(campaign, 0, probability, entropy, name, others=dict(zip(SCORES[1:], others, strict=True)))
    campaign.freeze_holdout(Holdout(boxes=tuple(boxes), guard_zyx=(0, 1, 1)))
    write_model(campaign, 0)
    return campaign


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> list[Campaign]:
    folder = tmp_path_factory.mktemp("many")
    return [make_campaign(folder / str(count), count) for count in COUNTS]


@pytest.mark.parametrize(
    ("operation", "of_each", "maps_of_each"), [(evaluation, 1, 2), (next_query, 1, 2), (status, 2, 0)]
)
def test_what_is_read_of_a_volume_does_not_depend_on_how_many_there_are(
    campaigns: list[Campaign], operation: Callable[[Campaign], None], of_each: int, maps_of_each: int
) -> None:
    for campaign, count in zip(campaigns, COUNTS, strict=True):
        with files_read(campaign) as files:
            operation(campaign)
        sorts: Counter[str] = Counter()
        for file, times in files.items():
            sorts[re.sub(r"\bv\d\b", "<volume>", file)] += times
        assert sorts["volumes/<volume>.json"] == of_each * count
        assert sorts["generations/0000/maps/<volume>.json"] == maps_of_each * count
        assert sorts["holdout.json"] == (2 if operation is next_query else 1)
        assert sorts["relations.json"] == (0 if operation is status else 1)
        arrays = {sort: times for sort, times in sorts.items() if sort.endswith("zarr.json")}
        assert set(arrays.values()) <= {count}, f"each array is opened once: {arrays}"
        assert bool(arrays) == (operation is not status)
        assert not [sort for sort in sorts if sort.endswith((".zarray", ".zattrs", ".zgroup"))], "all are Zarr 3"
