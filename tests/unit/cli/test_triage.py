"""What `rescueseg triage` prints: answers, whose they are, and why some are not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from typer.testing import CliRunner

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.cli.main import app
from rescueseg.geometry import Box
from rescueseg.queue.records import Filters
from rescueseg.queue.store import open_queue
from rescueseg.queue.submission import Work
from rescueseg.stages.hints import ask_example
from rescueseg.triage import rough_masks
from rescueseg.volumes.batch_import import start_campaign
from rescueseg.volumes.volume_files import VolumeImport

SHAPE = (12, 64, 64)


def balls() -> np.ndarray:
    """Balls of radius 3, 16 voxels apart."""
    places = np.indices(SHAPE).astype(float) % np.array([12, 16, 16])[:, None, None, None]
    return ((places - np.array([6, 8, 8])[:, None, None, None]) ** 2).sum(0) <= 9


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    image = 100 + 60 * ndimage.gaussian_filter(balls().astype(float), 0.6)
    image += np.random.default_rng(0).normal(0, 5, SHAPE)
    tifffile.imwrite(tmp_path / "raw.tif", image.astype(np.float32), metadata={"axes": "ZYX"})
    volume = VolumeImport(str(tmp_path / "raw.tif"), spacing=(1.0, 1.0, 1.0), volume_id="v")
    settings = settings_of("balls", ["ball"], ["sampling.patch_zyx=[8, 32, 32]"])
    return start_campaign(str(tmp_path / "c"), settings, [volume], say=lambda line: None)


def answers(campaign: Campaign, *options: str) -> tuple[dict[str, str], str]:
    """Return what is printed after each question, and all of it."""
    done = CliRunner().invoke(app, ["triage", campaign.url, *options])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    questions = {
        key: text.split(key, 1)[1].split("?", 1)[1].split(" Are ")[0].split(" Is ")[0].strip()
        for key in ("topology", "texture", "too small", "star-convex", "blob-like")
    }
    return questions, text


def test_no_word_is_spoken_of_where_none_was_said(campaign: Campaign) -> None:
    """It printed "not known, by your word (measured: no)"."""
    printed, text = answers(campaign)
    assert "by your word" not in text
    assert "Rough mask from: threshold" in text
    assert printed["topology"].startswith("not known (")
    assert "what a threshold paints need not be the structure" in printed["topology"]
    assert printed["texture"].startswith("no ("), "which a threshold tells"


def test_no_place_is_named_where_the_threshold_need_not_see_the_structure(campaign: Campaign) -> None:
    _, text = answers(campaign)
    assert "at a voxel where you see it: rescueseg sample" in text
    assert "--example v:z,y,x annotate it, triage again" in text
    assert CliRunner().invoke(app, ["sample", campaign.url, "--example", "v:6,40,40"]).exit_code == 0
    _, text = answers(campaign)
    assert "annotate the example that waits: rescueseg queue next" in text
    assert "--example" not in text


def test_a_word_is_named_where_it_decides_alone(campaign: Campaign) -> None:
    printed, _ = answers(campaign, "--structure", "network")
    assert printed["topology"].startswith("yes, by your word (measured: no) (")
    assert printed["too small"].startswith("no (")
    unmeasured, _ = answers(campaign, "--structure", "network", "--mask", "none")
    assert unmeasured["topology"].startswith("yes, by your word (measured: not known): not measured")
    assert unmeasured["texture"].startswith("not known: not measured"), "no word answers that"


def hand_in(campaign: Campaign, labels: np.ndarray) -> None:
    """Annotate a patch in the middle of the volume as the middle of `labels` says."""
    store = open_queue(campaign)
    lease = store.leases.claim("ann", 60, filters=Filters(), ticket_id=ask_example(campaign, store, "v:6,32,32"))
    assert lease is not None
    submit_labels(campaign, store, lease, "ann", labels[lease.ticket.box.slices], Work("test", 60.0))


def test_a_patch_annotated_in_a_corner_is_read_there(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large patch the middle is read: here nothing is annotated in it."""
    monkeypatch.setattr(rough_masks, "_MOST_VOXELS", 1000)
    labels = np.full(SHAPE, 255, np.uint8)
    corner = (slice(2, 10), slice(17, 27), slice(18, 28))
    labels[corner] = balls()[corner]
    hand_in(campaign, labels)
    (patch,), source = rough_masks.rough_patches(campaign, open_queue(campaign), "auto", 0)
    assert source == "annotations"
    assert patch.box == Box((2, 17, 18), (8, 10, 10))
    assert not patch.unknown.any()


def test_a_patch_that_is_all_structure_is_not_known_and_asks_for_more(campaign: Campaign) -> None:
    hand_in(campaign, np.ones(SHAPE, np.uint8))
    printed, text = answers(campaign)
    assert "Rough mask from: annotations" in text
    assert printed["topology"].startswith("not known: not measured")
    assert "Problem not known yet" in text
    assert "no simple shape describes them" not in text
    assert "show too little of the structure's border" in text
