"""The script beside this test takes minutes; that its campaign can be trained at all is told in seconds."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.models.unet.trainer import plan_training
from rescueseg.queue.store import open_queue
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages import tickets
from tests.integration.kill_campaign import SETTINGS, make_campaign


def test_the_campaign_that_is_killed_can_be_trained(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign", tmp_path)
    with closing(open_queue(campaign)) as store:
        tickets.prepare(campaign, store)
        SimulatedAnnotator(campaign, store).drain()
        snapshot = make_snapshot(campaign, 0, store.views.accepted())
    assert plan_training(campaign.config, campaign.volumes, snapshot).iterations == SETTINGS["training"]["iterations"]
