"""The first tickets, and what they must wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tifffile
from typer.testing import CliRunner

from rescueseg import volumes
from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import EFFORT
from rescueseg.cli.main import app
from rescueseg.config import check_config
from rescueseg.errors import ConfigError, QueueError, SamplingError
from rescueseg.geometry import Box, Patch
from rescueseg.queue.due import campaign_lock
from rescueseg.queue.records import Filters
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import Work
from rescueseg.records import HoldoutBox
from rescueseg.stages import tickets
from rescueseg.stages.due import begin
from rescueseg.stages.snapshot import make_snapshot
from rescueseg.volumes.phantom import make_phantom


def add(campaign: Campaign, folder: Path, name: str, truth: bool = True, seed: int = 3) -> None:
    image, labels, spacing = make_phantom((16, 64, 64), seed=seed)
    for part, array in (("image", image), ("truth", labels)):
        tifffile.imwrite(folder / f"{part}.tif", array, metadata={"axes": "ZYX"})
    given = str(folder / "truth.tif") if truth else None
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(folder / "image.tif"), volume_id=name, spacing=spacing, truth=given)
    )


@pytest.fixture
def store(campaign: Campaign, tmp_path: Path) -> Iterator[QueueStore]:
    """The queue of a campaign with one volume and its first tickets."""
    add(campaign, tmp_path, "a")
    opened = open_queue(campaign)
    tickets.prepare(campaign, opened)
    yield opened
    opened.close()


def accept_one(campaign: Campaign, store: QueueStore) -> None:
    lease = store.leases.claim("ann", 60, filters=Filters(purpose="pool"))
    assert lease is not None
    truth = volumes.open_truth(campaign.volumes, lease.ticket.volume_id)
    submit_labels(campaign, store, lease, "ann", truth[lease.ticket.box.slices], Work("test", 1.0))


def test_the_holdout_grows_between_generations_only(campaign: Campaign, store: QueueStore, tmp_path: Path) -> None:
    accept_one(campaign, store)
    assert begin(campaign, store) == 0
    frozen = campaign.holdout()
    assert tickets.prepare(campaign, store) == 0, "nothing new is no reason to refuse"
    add(campaign, tmp_path, "b", seed=4)
    with pytest.raises(SamplingError, match=r"^b: generation 0 was begun and not finished"):
        tickets.prepare(campaign, store)
    with campaign_lock(campaign.config, store), pytest.raises(QueueError, match="holds the lock"):
        tickets.prepare(campaign, store)
    assert campaign.holdout() == frozen
    store.ledger.finish_generation(0)
    tickets.prepare(campaign, store)
    grown = campaign.holdout()
    assert grown is not None
    assert "b" in {box.volume_id for box in grown.boxes}


def test_a_copy_is_known_before_anything_is_drawn_or_trained(
    campaign: Campaign, store: QueueStore, tmp_path: Path
) -> None:
    """In a campaign of an earlier version, too, whose volumes were never compared."""
    accept_one(campaign, store)
    first = campaign.holdout()
    assert first is not None
    add(campaign, tmp_path, "b", truth=False)
    campaign.storage.remove("relations.json")
    folder = Path(campaign.storage.path(""))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    tickets.preview_sampling(Campaign.open(campaign.url), lambda: store)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    begin(campaign, store)
    make_snapshot(campaign, 0, store)
    assert campaign.volumes.shared_places().related("a") == ["a", "b"]
    campaign.storage.remove("relations.json")
    store.ledger.finish_generation(0)
    tickets.prepare(campaign, store)
    assert campaign.volumes.shared_places().related("a") == ["a", "b"]
    grown = campaign.holdout()
    assert grown is not None
    assert grown.of("b", campaign.volumes.shared_places()) == grown.of("a", campaign.volumes.shared_places())
    boxes = [box.box for box in grown.boxes]
    assert not any(a.intersects(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(t.box.intersects(box) for t in store.views.tickets(purpose="pool") for box in boxes)


def test_a_patch_that_turns_out_to_lie_in_a_box_of_a_copy_is_left_out_and_named(
    campaign: Campaign, store: QueueStore, tmp_path: Path
) -> None:
    """As in a campaign whose volumes were compared after patches were annotated."""
    accept_one(campaign, store)
    accept_one(campaign, store)
    first, second = store.views.accepted("pool")
    add(campaign, tmp_path, "b")
    frozen = campaign.holdout()
    assert frozen is not None
    box = HoldoutBox(volume_id="b", box=first.box, part="test", stratum="dense")
    campaign.freeze_holdout(frozen.model_copy(update={"boxes": (*frozen.boxes, box)}))
    begin(campaign, store)
    assert [item.ticket_id for item in make_snapshot(campaign, 0, store).items] == [second.ticket_id]
    assert campaign.generation(0).require(EFFORT).left_out == (first.ticket_id,)
    assert store.ledger.accepted_since_last_generation() == 0
    shown = CliRunner().invoke(app, ["status", campaign.url])
    assert f"Left out of training: {first.ticket_id} lies in" in shown.output.replace("\n", " ")


def test_patches_accepted_before_the_snapshot_count_as_trained_on(campaign: Campaign, store: QueueStore) -> None:
    accept_one(campaign, store)
    begin(campaign, store)
    accept_one(campaign, store)
    assert len(make_snapshot(campaign, 0, store).items) == 2
    assert store.ledger.accepted_since_last_generation() == 0
    accept_one(campaign, store)
    make_snapshot(campaign, 0, store)
    assert store.ledger.accepted_since_last_generation() == 1, "the snapshot stays as it was made"


def test_an_unknown_strategy_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = check_config({"name": "test", "classes": ["organelle"], "query": {"strategy": "clasp_entropie"}})
    campaign = Campaign.create(str(tmp_path / "campaign"), config)
    store = open_queue(campaign)
    with pytest.raises(ConfigError, match="unknown query strategy"):
        begin(campaign, store)
    assert store.ledger.last_generation() is None


@pytest.mark.parametrize("strategy", ["object_disagreement", "power_object_disagreement"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "those of 'monai_unet' do not, as it is set"),
        ({"training": {"trainer": "nnunet"}}, "those of 'nnunet' do not"),
        ({"training": {"unet": {"border_distance": True}}, "inference": {"tta_symmetries": 1, "mc_samples": 1}},
         "at least two members.*Set inference.tta_symmetries"),
        ({"training": {"trainer": "stardist"}, "inference": {"tta_symmetries": 1, "mc_samples": 8}},
         "at least two members.*Set inference.tta_symmetries or training.members to 2"),
        ({"training": {"dropout": 0, "unet": {"border_distance": True}}, "inference": {"tta_symmetries": 1, "mc_samples": 8}},
         "at least two members.*Set inference.tta_symmetries or training.members to 2"),
    ],
)  # fmt: skip
def test_disagreement_about_objects_that_cannot_be_is_refused_before_anything_is_trained(
    tmp_path: Path, strategy: str, changes: dict[str, Any], message: str
) -> None:
    head = {"name": "test", "classes": ["nucleus"], "annotation": {"labels": "instance"}}
    campaign = Campaign.create(
        str(tmp_path / "campaign"), check_config(head | {"query": {"strategy": strategy}} | changes)
    )
    store = open_queue(campaign)
    with pytest.raises(ConfigError, match=message):
        begin(campaign, store)
    assert store.ledger.last_generation() is None


def test_disagreement_about_objects_is_no_fault_where_they_are_told_apart(tmp_path: Path) -> None:
    """What is asked for next is a patch to train on."""
    settings = {"training": {"unet": {"border_distance": True}}, "query": {"strategy": "object_disagreement"}}
    config = check_config({"name": "test", "classes": ["nucleus"], "annotation": {"labels": "instance"}} | settings)
    campaign = Campaign.create(str(tmp_path / "campaign"), config)
    with pytest.raises(QueueError, match="no accepted patch"):
        begin(campaign, open_queue(campaign))


def test_a_wrong_table_of_a_family_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = check_config({"name": "test", "classes": ["organelle"], "training": {"unett": {"ema": 0.5}}})
    campaign = Campaign.create(str(tmp_path / "campaign"), config)
    store = open_queue(campaign)
    with pytest.raises(ConfigError, match=r"campaign\.toml: there is no model family 'unett'.*nnunet.*unet"):
        begin(campaign, store)
    assert store.ledger.last_generation() is None


def test_the_rehearsal_is_what_is_done_and_writes_nothing(campaign: Campaign, tmp_path: Path) -> None:
    add(campaign, tmp_path, "a", truth=False)
    campaign.save_rough_patches([Patch("a", Box((4, 20, 20), (6, 12, 12)))])

    def no_queue() -> QueueStore:
        raise AssertionError("the first sampling asks nothing of the queue")

    before = {path: path.read_bytes() for path in Path(campaign.url).rglob("*") if path.is_file()}
    holdout, starting = tickets.preview_sampling(campaign, no_queue)
    assert {path: path.read_bytes() for path in Path(campaign.url).rglob("*") if path.is_file()} == before
    assert campaign.holdout() is None
    assert campaign.starting_patches() is None
    opened = open_queue(campaign)
    assert opened.views.tickets() == []
    assert tickets.prepare(campaign, opened) == len(
        tickets.first_tickets(campaign.config, campaign.volumes.records(), holdout, starting)
    )
    assert campaign.holdout() == holdout
    assert campaign.starting_patches() == starting
    assert starting[0].reason == "rough mask of the triage"
    assert len(starting) == campaign.config.sampling.starting_patches
    first = next(t for t in opened.views.tickets(purpose="pool") if t.box == starting[0].box)
    assert (first.stratum, first.reason) == ("rough_mask", "rough mask of the triage")
    assert tickets.preview_sampling(campaign, no_queue) == (holdout, starting)
    opened.close()
