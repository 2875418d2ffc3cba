"""The loop and a delivery on a real server, a real cluster and a small phantom: what they leave, and that a rerun changes
nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tifffile
import zarr

from rescueseg.campaign import STAGES, Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.campaign.outside_trainings import RESULT
from rescueseg.campaign.stage_results import INFERENCE, TICKETS, TRIAL
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.records import DELIVERY
from rescueseg.evaluation.champion import champion
from rescueseg.queue.store import open_queue
from rescueseg.records import MapReference
from rescueseg.reports.generation_table import rows, to_markdown
from rescueseg.services.local_servers import Servers
from rescueseg.services.prefect_api import flow_command
from rescueseg.stages.due import count_due
from rescueseg.triage.records import TRIAGE
from rescueseg.volumes.batch_import import start_campaign
from rescueseg.volumes.ome_zarr import validate
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from tests.triage_summaries import whole_triage

SHAPE = (16, 64, 64)
SETTINGS = [
    "training.iterations=6",
    "training.threads=1",
    "sampling.starting_patches=2",
    "sampling.query_patches=2",
    "cluster.workers=1",
    "inference.mc_samples=2",
]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("services")
    with Servers(folder, f"sqlite:///{folder}/mlflow.db") as running:
        yield running


@pytest.fixture(scope="module")
def looped(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign after two generations."""
    folder = tmp_path_factory.mktemp("looped")
    image, truth, spacing = make_phantom(SHAPE, seed=3)
    tifffile.imwrite(folder / "raw.tif", image, metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "truth.tif", truth, metadata={"axes": "ZYX"})
    campaign = start_campaign(
        str(folder / "campaign"),
        settings_of("loop", ["organelle"], SETTINGS),
        [VolumeImport(str(folder / "raw.tif"), spacing=spacing, truth=str(folder / "truth.tif"), volume_id="phantom")],
    )
    result = _run(servers, "active-learning", campaign_url=campaign.url, generations=2)
    assert [row["generation"] for row in result] == [0, 1]
    return campaign


@pytest.mark.slow
def test_where_the_triage_names_several_trainers_the_better_one_makes_the_generation(
    servers: Servers, tmp_path: Path
) -> None:
    image, truth, spacing = make_phantom(SHAPE, seed=3)
    for name, voxels in (("raw", image), ("truth", truth)):
        tifffile.imwrite(tmp_path / f"{name}.tif", voxels, metadata={"axes": "ZYX"})
    campaign = start_campaign(
        str(tmp_path / "campaign"),
        settings_of("tried", ["organelle"], SETTINGS),
        [
            VolumeImport(
                str(tmp_path / "raw.tif"), spacing=spacing, truth=str(tmp_path / "truth.tif"), volume_id="phantom"
            )
        ],
    )
    campaign.records.write(TRIAGE, whole_triage("texture"))
    _run(servers, "active-learning", campaign_url=campaign.url, generations=1)
    trial, model = campaign.generation(0).require(TRIAL), campaign.generation(0).model()
    assert model is not None
    assert [c.trainer for c in trial.contestants] == ["nnunet", "monai_unet"]
    assert model.trainer == trial.trainer
    made = campaign.training(trial.winner.training).read(RESULT)
    assert made is not None
    assert made.model.digest == model.digest
    assert sorted(campaign.trainings()) == sorted(c.training for c in trial.contestants)
    assert "Why this trainer" in campaign.storage.read_bytes("reports/report.html").decode()


def _run(servers: Servers, flow: str, **parameters: Any) -> Any:
    done = subprocess.run(
        flow_command(flow, parameters), env=servers.environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("result: ")]
    return json.loads(line.removeprefix("result: "))


def _post(servers: Servers, path: str, **body: Any) -> list[dict[str, Any]]:
    return httpx.post(
        f"{servers.prefect.url}{path}", headers=servers.prefect.headers, json=body, trust_env=False
    ).json()


def test_every_stage_is_committed_and_counted(looped: Campaign) -> None:
    for generation in (0, 1):
        assert looped.generation(generation).finished_stages() == list(STAGES), generation
    table = rows(looped.generations())
    assert [row.patches for row in table] == [2, 4]
    assert [row.voxels for row in table] == sorted(row.voxels for row in table)
    assert champion(looped.generations()) in (0, 1)
    assert set(table[0].seconds) == set(STAGES)
    page = to_markdown(looped.config.name, looped.generation(1))
    assert "| 0 | 2 |" in page
    assert "| 1 | 4 |" in page


def test_queried_patches_wait_with_the_prediction_as_first_mask(looped: Campaign) -> None:
    store = open_queue(looped)
    waiting = store.views.tickets(status="queued")
    assert {ticket.ticket_id for ticket in waiting} == set(looped.generation(1).require(TICKETS).tickets)
    for ticket in waiting:
        assert ticket.generation == 2
        assert ticket.prefill is not None
        assert looped.storage.read_array(ticket.prefill).shape == ticket.box.shape_zyx
    last = store.ledger.last_generation()
    assert last is not None
    assert last.finished_at is not None


def test_a_rerun_changes_nothing(looped: Campaign, servers: Servers) -> None:
    before = {p: p.read_bytes() for p in Path(looped.url, "generations").rglob("*.json")}
    assert _run(servers, "active-learning", campaign_url=looped.url, generations=2) == []
    assert {p: p.read_bytes() for p in Path(looped.url, "generations").rglob("*.json")} == before


def test_a_generation_that_is_not_due_does_nothing(looped: Campaign, servers: Servers) -> None:
    due = count_due(looped, open_queue(looped))
    assert (due.generation, due.due) == (2, False)
    result = _run(servers, "generation", campaign_url=looped.url, only_if_due=True)
    assert result == {"generation": None, "reason": "0 of 4 patches accepted since the last generation"}
    states = {run["state_name"] for run in _post(servers, "/flow_runs/filter")}
    assert states == {"Completed", "NotDue"}


def test_a_run_while_another_works_gives_way(looped: Campaign, servers: Servers) -> None:
    with open_queue(looped).ledger.lock("generation", "somebody else"):
        result = _run(servers, "generation", campaign_url=looped.url, only_if_due=True)
    assert result["reason"] == "another run is at work on this campaign"


def test_inference_on_demand_uses_the_champion(looped: Campaign, servers: Servers) -> None:
    maps = _run(servers, "infer-volume", campaign_url=looped.url, volume_id="phantom")
    number = champion(looped.generations())
    assert number is not None
    assert maps["generation"] == number
    assert MapReference.model_validate(maps) in looped.generation(number).require(INFERENCE)


def test_prefect_shows_named_tasks_and_an_artifact_and_holds_no_pickle(looped: Campaign, servers: Servers) -> None:
    names = {run["name"] for run in _post(servers, "/task_runs/filter")}
    assert {"training-g0", "inference-g1", "report-g1", "simulated-annotator", "sampling"} <= names
    keys = {artifact["key"] for artifact in _post(servers, "/artifacts/filter")}
    assert {"loop-generation-0", "loop-generation-1"} <= keys
    stored = list(Path(servers.environment["PREFECT_HOME"], "storage").iterdir())
    assert stored
    for path in stored:
        assert isinstance(json.loads(path.read_text()), (dict, list))


def test_a_failing_flow_says_why_in_one_line(servers: Servers, tmp_path: Path) -> None:
    done = subprocess.run(
        [*flow_command("generation", {"campaign_url": str(tmp_path)})],
        env=servers.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "there is no campaign here" in line


# a delivery of what the loop has learned -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def delivered(servers: Servers, looped: Campaign, tmp_path_factory: pytest.TempPathFactory) -> DeliveryFolder:
    """A delivery of its volume and of a file that is in no campaign, with objects; another file cannot be read."""
    folder = tmp_path_factory.mktemp("files")
    image, _, spacing = make_phantom(SHAPE, seed=8)
    tifffile.imwrite(folder / "second.tif", image, metadata={"axes": "ZYX"})
    _run(
        servers,
        "segment",
        campaign_url=looped.url,
        request={
            "out": str(folder / "out"),
            "volumes": ["phantom"],
            "files": [str(folder / "second.tif")],
            "spacing_um_zyx": spacing,
            "objects": "yes",
            "formats": ["tiff"],
        },
    )
    return DeliveryFolder(str(folder / "out"))


def _labels(folder: DeliveryFolder, volume_id: str, name: str, level: int = 0) -> np.ndarray:
    array = zarr.open_array(f"{folder.image_url(volume_id)}/labels/{name}", path=str(level), mode="r")
    return np.asarray(array[...])


def _files(folder: DeliveryFolder) -> dict[str, tuple[int, int]]:
    root = Path(folder.url)
    return {
        str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in root.rglob("*")
        if p.is_file() and ".ome.zarr" in str(p)
    }


def test_every_volume_is_delivered_with_labels_objects_and_a_table(delivered: DeliveryFolder) -> None:
    assert [(v.volume_id, v.in_campaign) for v in delivered.delivered()] == [("phantom", True), ("second", False)]
    table = (Path(delivered.url) / "objects.csv").read_text().splitlines()
    assert len(table) - 1 == sum(v.objects or 0 for v in delivered.delivered()) > 0
    for volume in delivered.delivered():
        validate(delivered.image_url(volume.volume_id))
        mask, objects = (_labels(delivered, volume.volume_id, name) for name in ("mask", "objects"))
        assert mask.shape == SHAPE
        assert mask.any()
        assert not objects[mask == 0].any()
        assert np.array_equal(np.unique(objects[objects > 0]), np.arange(1, (volume.objects or 0) + 1))
        assert {f.path for f in volume.files} == {
            f"{volume.volume_id}_mask.tif",
            f"{volume.volume_id}_objects.tif",
        }
        for file in volume.files:
            name = file.path.removesuffix(".tif").rsplit("_", 1)[1]
            assert np.array_equal(
                tifffile.imread(f"{delivered.url}/{file.path}"), _labels(delivered, volume.volume_id, name)
            )
    assert (Path(delivered.url) / "index.html").exists()


def test_the_volume_with_test_boxes_gets_scores(delivered: DeliveryFolder) -> None:
    delivery = delivered.records.read(DELIVERY)
    assert delivery is not None
    assert delivery.boxes > 0
    dice = next(s for s in delivery.scores if s.name.startswith("dice"))
    assert None not in (dice.most_likely, dice.rule, dice.delivered)
    assert any(trial.chosen for trial in delivery.rule.trials)


def test_given_again_it_changes_nothing(servers: Servers, looped: Campaign, delivered: DeliveryFolder) -> None:
    before, records = _files(delivered), delivered.delivered()
    _run(
        servers,
        "segment",
        campaign_url=looped.url,
        request={"out": delivered.url, "volumes": ["phantom", "second"], "objects": "yes"},
    )
    assert _files(delivered) == before
    assert delivered.delivered() == records


def test_places_for_review_become_tickets_and_come_back(
    servers: Servers, looped: Campaign, delivered: DeliveryFolder
) -> None:
    before = {t.ticket_id for t in open_queue(looped).views.tickets()}
    request = {"out": delivered.url, "volumes": ["phantom", "second"], "objects": "yes", "review": 2}
    _run(servers, "segment", campaign_url=looped.url, request=request)
    tickets = [t for t in open_queue(looped).views.tickets() if t.ticket_id not in before]
    assert len(tickets) == 2
    for ticket in tickets:
        assert ticket.prefill is not None
        shown = looped.storage.read_array(ticket.prefill)
        assert np.array_equal(shown, _labels(delivered, ticket.volume_id, "mask")[ticket.box.slices])
