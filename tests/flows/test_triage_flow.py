"""The triage as a flow on real servers: what it leaves in the campaign, in Prefect and in MLflow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import pytest
import tifffile
from mlflow import MlflowClient

from rescueseg.campaign.campaign_file import settings_of
from rescueseg.services.local_servers import Servers
from rescueseg.services.prefect_api import flow_command
from rescueseg.volumes.batch_import import start_campaign
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport

pytestmark = pytest.mark.timeout(300)


def test_evidence_and_picture_are_artifacts_in_prefect_and_mlflow(tmp_path: Path) -> None:
    image, truth, spacing = make_phantom((16, 64, 64), seed=3)
    tifffile.imwrite(tmp_path / "raw.tif", image, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "truth.tif", truth, metadata={"axes": "ZYX"})
    campaign = start_campaign(
        str(tmp_path / "campaign"),
        settings_of("Triaged_1.x", ["organelle"]),
        [VolumeImport(str(tmp_path / "raw.tif"), spacing=spacing, truth=str(tmp_path / "truth.tif"))],
    )
    with Servers(tmp_path / "services", f"sqlite:///{tmp_path}/mlflow.db") as servers:
        command = flow_command("triage", {"campaign_url": campaign.url, "mask": "truth"})
        done = subprocess.run(command, env=servers.environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        [line] = [line for line in done.stdout.splitlines() if line.startswith("result: ")]
        assert json.loads(line.removeprefix("result: ")) == campaign.storage.read_json("triage.json")
        response = httpx.post(
            f"{servers.prefect.url}/artifacts/filter", headers=servers.prefect.headers, json={}, trust_env=False
        )
        kinds = {artifact["type"] for artifact in response.json() if artifact["key"]}
        assert kinds >= {"markdown", "table", "image"}
        client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
        [experiment] = [e for e in client.search_experiments() if e.name == "Triaged_1.x"]
        files = {
            f.path
            for run in client.search_runs([experiment.experiment_id])
            for f in client.list_artifacts(run.info.run_id, "triage")
        }
        assert files == {"triage/triage.json", "triage/triage.png"}
