"""What an earlier version scored: scored anew on the boxes it had, and a line says so, or why that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.stored_scores import SCORES, current_evaluation, scored_today
from rescueseg.geometry import Box
from rescueseg.records import HoldoutBox
from rescueseg.reports.campaign_report import write_report
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.evaluated_campaign import SHAPE, SPACING, make_campaign, write_generation


@pytest.fixture
def older(tmp_path: Path) -> Campaign:
    """Return a campaign whose only generation an earlier version scored; its holdout has grown into a volume since."""
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, 2.4)
    folder = campaign.generation(0)
    judged = folder.require(EVALUATION)
    before = judged.evaluation.model_copy(update={"format": 3})
    folder.write(EVALUATION, judged.model_copy(update={"evaluation": before}))
    image, truth, _ = make_phantom(SHAPE, SPACING, 4)
    for name, array in (("later", image), ("later_truth", truth)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array)
    later = VolumeImport(
        str(tmp_path / "later.tif"),
        volume_id="later",
        spacing=SPACING,
        truth=str(tmp_path / "later_truth.tif"),
        truth_type="semantic",
    )
    import_volume(campaign, later)
    holdout = campaign.holdout()
    assert holdout is not None
    new = HoldoutBox(volume_id="later", box=Box((0, 0, 0), (8, 24, 24)), part="validation", stratum="dense")
    campaign.freeze_holdout(holdout.model_copy(update={"boxes": (*holdout.boxes, new)}))
    return campaign


def test_it_is_scored_anew_on_the_boxes_it_had(older: Campaign) -> None:
    """The box of the later volume has no maps of that generation."""
    judged = older.generation(0).require(EVALUATION)
    lines: list[str] = []
    anew = current_evaluation(older, 0, choose_scored_objects, say=lines.append)
    assert lines == [
        "Generation 0 is scored anew: an earlier version counted objects, outlines and empty boxes otherwise"
    ]
    assert anew.complete
    assert [box.key for box in anew.boxes] == [box.key for box in judged.evaluation.boxes]
    assert older.generation(0).read(SCORES) == anew
    assert older.generation(0).require(EVALUATION) == judged
    assert current_evaluation(older, 0, choose_scored_objects, say=lines.append) == anew
    assert len(lines) == 1, "once"


def test_the_report_says_what_was_scored_anew(older: Campaign) -> None:
    page = Path(older.storage.path(write_report(older).path)).read_text()
    assert "Generation 0 is scored anew: an earlier version counted" in page


def test_without_maps_it_keeps_its_scores_and_a_line_says_why(older: Campaign) -> None:
    shutil.rmtree(older.storage.path(older.generation(0).path("maps")))
    [judgement], [line] = scored_today(older, choose_scored_objects)
    assert judgement == older.generation(0).require(EVALUATION)
    assert line.startswith("Generation 0 keeps scores that an earlier version counted otherwise: ")
    assert "maps" in line
