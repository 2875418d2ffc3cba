"""A training outside the loop as a flow on real servers: the model in the campaign, its loss in MLflow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rescueseg.campaign import outside_trainings
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.queue.store import open_queue
from rescueseg.services.local_servers import Servers
from rescueseg.services.prefect_api import flow_command
from rescueseg.stages import train_outside
from tests.training_rig import BOXES, make_campaign, make_snapshot

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


def test_the_loss_is_seen_in_mlflow_and_the_model_lies_in_the_campaign(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="nnunet", iterations=6, checkpoint_every=3)
    campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, BOXES))
    store = open_queue(campaign)
    with Servers(tmp_path / "services", f"sqlite:///{tmp_path}/mlflow.db") as servers:
        command = flow_command("train", {"campaign_url": campaign.url, "generation": 0})
        done = subprocess.run(command, env=servers.environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        [line] = [line for line in done.stdout.splitlines() if line.startswith("result: ")]
        planned = train_outside.plan(campaign, store, generation=0)
        result = campaign.training(planned.name).read(outside_trainings.RESULT)
        assert result is not None
        losses = outside_trainings.read_losses(campaign.training(planned.name))
        assert json.loads(line.removeprefix("result: ")) == result.model.to_json()
        client = MlflowClient(servers.mlflow_uri)
        experiments = [e.experiment_id for e in client.search_experiments()]
        [run] = client.search_runs(experiments, filter_string=f"tags.`rescueseg.key` = 'training/{planned.name}'")
        assert run.info.status == "FINISHED"
        assert run.data.params["training.trainer"] == "nnunet"
        points = client.get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in points] == list(range(1, 7))
        assert [point.value for point in points] == pytest.approx([entry["loss"] for entry in losses])
        dice = client.get_metric_history(run.info.run_id, "pseudo_dice")
        assert {point.step for point in dice} <= {3, 6}
        assert dice
