"""A campaign in MLflow, against a real server on SQLite with proxied artifacts."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest

import rescueseg
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import SNAPSHOT, TRAINING, TrainingResult
from rescueseg.config import TrackingConfig, check_config
from rescueseg.errors import ServiceError
from rescueseg.evaluation.calibration import CALIBRATION, Calibration
from rescueseg.evaluation.champion import Judgement
from rescueseg.evaluation.pooled import part_score
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.temperature import temper
from rescueseg.geometry import Box
from rescueseg.models.files import CHECKPOINT_FILE, MODEL_FOLDER, checkpoints, member_folder, read_model
from rescueseg.models.survey import Survey
from rescueseg.queue.store import open_queue
from rescueseg.records import ModelReference, Normalisation, Snapshot, SnapshotItem, VolumeRecord
from rescueseg.stages import train_outside
from rescueseg.stages.publish import run_tracked
from rescueseg.storage import write_atomically
from rescueseg.tracking.live import LiveRun
from rescueseg.tracking.models import CODE
from rescueseg.tracking.runs import tracking_uri
from rescueseg.tracking.tracker import Tracker
from rescueseg.volumes.normalise import LINEAR
from tests.training_rig import BOXES, make_campaign, make_snapshot
from tests.unit.evaluation.test_pooled import box_score, evaluation

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def tracked(tmp_path: Path, mlflow_server: str) -> Campaign:
    """Return a campaign with a volume, a snapshot and a small trained model of generation 0."""
    config = check_config({"name": "mito", "classes": ["mito"], "tracking": {"mlflow_uri": mlflow_server}})
    campaign = Campaign.create(str(tmp_path / "campaign"), config)
    campaign.volumes.save(
        VolumeRecord(
            volume_id="v",
            domain="d",
            shape_zyx=(8, 16, 16),
            spacing_um_zyx=(0.1, 0.1, 0.1),
            channels=1,
            dtype="uint8",
            source="v.tif",
            digest="0",
            normalisation=Normalisation(low=0, high=1, mean=0, std=1, linear=LINEAR),
        )
    )
    item = SnapshotItem(
        ticket_id="t",
        volume_id="v",
        box=Box((0, 0, 0), (4, 4, 4)),
        read_box=Box((0, 0, 0), (4, 4, 4)),
        annotation_id="a",
        labels="l",
        labels_digest="d",
    )
    snapshot = Snapshot(generation=0, items=(item,), n_classes=1, holdout_digest="", digest="ab" * 32)
    campaign.generation(0).write(SNAPSHOT, snapshot)
    save_model(campaign, 0)
    return campaign


def save_model(campaign: Campaign, generation: int) -> ModelReference:
    path = campaign.generation(generation).path("model")
    campaign.storage.write_bytes(f"{path}/model.safetensors", b"weights")
    campaign.storage.write_bytes(f"{path}/model.json", json.dumps({"generation": generation}).encode())
    model = ModelReference(generation=generation, trainer="monai_unet", path=path, digest=f"{generation:064d}")
    campaign.generation(generation).write(TRAINING, TrainingResult(model=model, iterations=1))
    return model


def judgement(generation: int, champion: int) -> Judgement:
    evaluation = Evaluation(generation=generation, model_digest="m", validation=None, test=None, boxes=())
    return Judgement(
        evaluation=evaluation, champion=champion, comparison=None, annotated_patches=1, annotated_voxels=64
    )


def log_generation(campaign: Campaign, generation: int = 0, champion: int = 0) -> Tracker:
    """Log a whole generation, as a flow does."""
    tracker = Tracker(campaign)
    run = tracker.runs.generation_run(generation)
    tracker.log_config(run)
    snapshot = campaign.generation(0).snapshot()
    assert snapshot is not None
    tracker.log_snapshot(generation, snapshot)
    with tracker.stage(generation, "training") as training, tracker.live(lambda: training, dict) as live:
        for step in (1, 2, 3):
            live(step, {"loss": 1 / step})
    tracker.log_files(run, {"figures/curve.png": b"png", "report.html": b"<html>"})
    model = campaign.generation(generation).model()
    assert model is not None
    registered = tracker.register_model(generation, model)
    tracker.log_judgement(judgement(generation, champion), registered, {"seconds_training": 3.0})
    tracker.runs.finish_generation(generation)
    return tracker


def test_an_empty_part_has_no_dice_in_mlflow(tracked: Campaign) -> None:
    boxes = [box_score(i, [(0, 0, 0)]) for i in range(4)]
    nothing = evaluation(boxes).model_copy(update={"test": part_score("test", boxes, ("mito",))})
    tracker = Tracker(tracked)
    model = tracked.generation(0).model()
    assert model is not None
    judged = judgement(0, 0).model_copy(update={"evaluation": nothing})
    tracker.log_judgement(judged, tracker.register_model(0, model))
    logged = tracker.runs.client.get_run(tracker.runs.generation_run(0)).data.metrics
    assert "test_ece" in logged
    assert not {"test_dice", "test_iou", "test_precision", "test_recall", "test_pool_dice"} & set(logged)


def test_a_rerun_adds_nothing(tracked: Campaign) -> None:
    first = log_generation(tracked)
    again = log_generation(tracked)
    assert again.runs.experiment_id == first.runs.experiment_id
    assert again.runs.campaign_run() == first.runs.campaign_run()
    client = first.runs.client
    runs = client.search_runs([first.runs.experiment_id])
    assert sorted(r.info.run_name for r in runs) == ["generation 0", "mito (all generations)", "training"]
    assert all(r.info.status == "FINISHED" for r in runs)
    curve = client.get_metric_history(first.runs.campaign_run(), "annotated_voxels")
    assert [(m.step, m.value) for m in curve] == [(0, 64.0)]
    loss = client.get_metric_history(first.runs.stage_run(0, "training"), "loss")
    assert [m.step for m in loss] == [1, 2, 3]
    assert len(client.search_model_versions(f"name = '{first.runs.name}'")) == 1
    assert len(client.search_logged_models([first.runs.experiment_id])) == 1
    generation = client.get_run(first.runs.generation_run(0))
    assert generation.data.params["annotated_voxels"] == "64"
    assert generation.data.tags["mlflow.note.content"].startswith("Generation 0 is the first")
    inputs = generation.inputs.dataset_inputs
    assert [i.dataset.digest for i in inputs] == [("ab" * 32)[:36]]
    assert [f.path for f in client.list_artifacts(first.runs.generation_run(0), "figures")] == ["figures/curve.png"]


def test_runs_are_nested(tracked: Campaign) -> None:
    tracker = Tracker(tracked)
    stage = tracker.runs.client.get_run(tracker.runs.stage_run(0, "inference"))
    assert stage.data.tags["mlflow.parentRunId"] == tracker.runs.generation_run(0)
    generation = tracker.runs.client.get_run(tracker.runs.generation_run(0))
    assert "mlflow.parentRunId" not in generation.data.tags, "or the list of runs hides the generations"


def test_candidate_and_champion(tracked: Campaign) -> None:
    log_generation(tracked)
    save_model(tracked, 1)
    tracker = log_generation(tracked, 1, champion=0)
    client = tracker.runs.client
    assert client.get_model_version_by_alias(tracker.runs.name, "candidate").tags["rescueseg.generation"] == "1"
    assert client.get_model_version_by_alias(tracker.runs.name, "champion").tags["rescueseg.generation"] == "0"
    log_generation(tracked, 1, champion=1)
    assert client.get_model_version_by_alias(tracker.runs.name, "champion").tags["rescueseg.generation"] == "1"
    assert len(client.search_model_versions(f"name = '{tracker.runs.name}'")) == 2


def test_a_model_that_an_earlier_version_stored_is_stored_anew(tracked: Campaign) -> None:
    tracker = log_generation(tracked)
    client, name = tracker.runs.client, tracker.runs.name
    former = client.get_model_version_by_alias(name, "champion")
    client.delete_model_version_tag(name, former.version, CODE)
    client.delete_logged_model_tag(former.tags["rescueseg.model_id"], CODE)
    save_model(tracked, 1)
    log_generation(tracked, 1, champion=0)
    champion = client.get_model_version_by_alias(name, "champion")
    assert champion.version != former.version
    assert champion.tags["rescueseg.model_digest"] == former.tags["rescueseg.model_digest"]
    mlflow.set_tracking_uri(tracker.uri)
    stored = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@champion"))
    imports = [line for line in (stored / "pyfunc_model.py").read_text().splitlines() if "rescueseg." in line]
    assert imports == ["from rescueseg.tracking.served_model import SegmentationModel"], "a name kept for ever"
    assert f"rescueseg=={rescueseg.__version__}" in (stored / "requirements.txt").read_text().splitlines()


def test_a_kill_while_the_model_is_stored_leaves_one_whole_model(
    tracked: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tracked.generation(0).model()
    assert model is not None
    tracker = Tracker(tracked)
    for point in ("log_model_artifacts", "finalize_logged_model", "create_model_version"):
        with monkeypatch.context() as patch:
            patch.setattr(tracker.runs.client, point, lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                tracker.register_model(0, model)
    registered = Tracker(tracked).register_model(0, model)
    models = tracker.runs.client.search_logged_models([tracker.runs.experiment_id])
    assert [(m.model_id, str(m.status)) for m in models] == [(registered.model_id, "READY")]
    files = {f.path for f in tracker.runs.client.list_logged_model_artifacts(registered.model_id)}
    assert {"MLmodel", "pyfunc_model.py", "requirements.txt"} <= files
    assert not any(name.endswith(".pkl") for name in files)


def test_two_campaigns_of_one_name_do_not_mix(tracked: Campaign, tmp_path: Path) -> None:
    other = Campaign.create(str(tmp_path / "other"), tracked.config)
    mine, theirs = Tracker(tracked), Tracker(other)
    assert mine.runs.experiment_id != theirs.runs.experiment_id
    assert mine.runs.name != theirs.runs.name
    assert mine.runs.campaign_run() != theirs.runs.campaign_run()


def test_a_failed_stage_says_so_and_a_rerun_mends_it(tracked: Campaign) -> None:
    tracker = Tracker(tracked)
    with pytest.raises(ValueError, match="boom"), tracker.stage(0, "inference") as run:
        raise ValueError("boom")
    assert tracker.runs.client.get_run(run).info.status == "FAILED"
    with tracker.stage(0, "inference"):
        assert tracker.runs.client.get_run(run).info.status == "RUNNING"
    assert tracker.runs.client.get_run(run).info.status == "FINISHED"


def test_a_stage_killed_after_its_commit_does_not_run_for_ever(tracked: Campaign) -> None:
    tracker = Tracker(tracked)
    killed = tracker.stage(0, "inference")
    run = killed.__enter__()  # and nothing ends it: the process is gone
    log_generation(tracked)
    assert tracker.runs.client.get_run(run).info.status == "FINISHED"


def test_a_failing_server_does_not_hide_why_a_stage_failed(tracked: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    tracker = Tracker(tracked)
    monkeypatch.setattr(tracker.runs.client, "set_terminated", refuse)
    with pytest.raises(ValueError, match="boom"), tracker.stage(0, "inference"):
        raise ValueError("boom")


def test_no_server_is_one_clear_error(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # it would wait for a server that is being restarted
    with pytest.raises(ServiceError, match="MLflow server runs"):
        Tracker(campaign, "http://127.0.0.1:9").runs.campaign_run()


@pytest.mark.timeout(120)
def test_a_dead_server_costs_live_points_and_never_holds_the_training_up(campaign: Campaign) -> None:
    tracker = Tracker(campaign, "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="300 steps are missing from MLflow's curves: .*MLflow refused"):
        train_live(tracker, 300)


@pytest.mark.timeout(120)
def test_a_server_that_takes_calls_and_never_answers_does_neither(campaign: Campaign) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        tracker = Tracker(campaign, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.warns(UserWarning, match="2 steps are missing .*timeout"):
            train_live(tracker, 2)


def train_live(tracker: Tracker, steps: int) -> None:
    """Tell of a training's steps as fast as they come."""
    with tracker.live(partial(tracker.runs.stage_run, 0, "training"), dict) as live:
        for step in range(steps):
            live(step, {"loss": 1.0})


def test_points_wait_for_a_server_that_comes_back(tracked: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(tracked)
    run = tracker.runs.stage_run(0, "training")
    away, tried = threading.Event(), threading.Event()
    whole = tracker.check_server

    def check() -> None:
        tried.set()
        if away.is_set():
            raise ServiceError("away", where="MLflow", todo="Wait")
        whole()

    monkeypatch.setattr(tracker, "check_server", check)
    away.set()
    with tracker.live(lambda: run, dict) as live:
        live(1, {"loss": 3.0})
        assert tried.wait(60)
        with pytest.warns(UserWarning, match="the training goes on, its points wait for MLflow: .*away"):
            live_until_warned(live)
        away.clear()
    points = tracker.runs.client.get_metric_history(run, "loss")
    assert [(p.step, p.value) for p in points if p.step < 3] == [(1, 3.0), (2, 2.0)]


def live_until_warned(live: LiveRun) -> None:
    """Go on with a training until it has warned that points wait."""
    for step in itertools.count(2):
        live(step, {"loss": 4.0 - step})
        if live.has_warned:
            return
        time.sleep(0.05)


def test_a_training_of_many_steps_is_sent_in_few_requests(tracked: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(tracked)
    run = tracker.runs.stage_run(0, "training")
    requests = []
    log_batch = tracker.runs.client.log_batch
    monkeypatch.setattr(tracker.runs.client, "log_batch", lambda *a, **k: (requests.append(1), log_batch(*a, **k)))
    with tracker.live(lambda: run, dict) as live:
        for step in range(1, 1201):
            live(step, {"loss": 1 / step, "learning_rate": 0.01})
    history = tracker.runs.client.get_metric_history(run, "loss")
    assert sorted(p.step for p in history) == list(range(1, 1201))
    assert len(requests) <= 8
    with tracker.live(lambda: run, dict) as again:
        again(1200, {"loss": 5.0})
    assert len(tracker.runs.client.get_metric_history(run, "loss")) == 1200, "a rerun adds no second point"


def test_a_changed_checkpoint_replaces_the_one_before_and_an_unchanged_one_is_not_sent(
    tracked: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rescueseg.tracking.live.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("rescueseg.tracking.live.EVERY", 0.05)
    tracker, sent, looked = Tracker(tracked), [], []
    run = tracker.runs.stage_run(0, "training")
    log_file = tracker.log_file
    monkeypatch.setattr(tracker, "log_file", lambda *args: (log_file(*args), sent.append(args[1])))
    work = tmp_path / "work"

    def look() -> dict[str, Path]:
        looked.append(1)
        return checkpoints(work)

    def wait_for(count: int, what: list[object]) -> None:
        while len(what) < count:
            time.sleep(0.02)

    with tracker.live(lambda: run, look):
        for version in (1, 2):
            write_atomically(member_folder(work, 0) / CHECKPOINT_FILE, f"state {version}".encode())
            wait_for(version, sent)
        wait_for(len(looked) + 3, looked)
    assert sent == ["members/0/checkpoint.pt"] * 2
    stored = tracker.runs.client.download_artifacts(run, "members/0/checkpoint.pt", str(tmp_path))
    assert Path(stored).read_text() == "state 2"


def test_a_training_outside_the_loop_is_a_whole_run(
    tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from rescueseg.models.unet.loop import Run

    made = make_campaign(tmp_path, iterations=12)
    made.generation(0).write(SNAPSHOT, make_snapshot(made, BOXES))
    campaign = Campaign(
        made.storage, made.config.model_copy(update={"tracking": TrackingConfig(mlflow_uri=mlflow_server)})
    )
    planned = train_outside.plan(campaign, open_queue(campaign), "monai_unet_topology", generation=0)
    tracker = Tracker(campaign)
    client, run_id = tracker.runs.client, tracker.runs.training_run(planned.name)
    advance = Run.advance

    def die_at_ten(self: Run) -> dict[str, float]:
        if self.step == 9:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", die_at_ten)
        with pytest.raises(KeyboardInterrupt):
            run_tracked(campaign, planned)
    assert client.get_run(run_id).info.status == "FAILED"
    stored = client.download_artifacts(run_id, "members/0/checkpoint.pt", str(tmp_path))
    assert torch.load(stored, weights_only=True)["step"] == 8

    result = run_tracked(campaign, planned)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.trainer"] == "monai_unet_topology"
    assert run.data.params["training.iterations"] == "12"
    assert run.data.metrics["seconds"] == result.seconds
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == [planned.snapshot.digest[:36]]
    assert [p.step for p in client.get_metric_history(run_id, "loss")] == list(range(1, 13))
    [model] = client.search_logged_models([tracker.runs.experiment_id])
    assert (model.params["model_digest"], model.source_run_id) == (result.model.digest, run_id)
    assert [o.model_id for o in run.outputs.model_outputs] == [model.model_id]
    assert not client.search_model_versions(f"name = '{tracker.runs.name}'"), "candidate and champion are generations"
    assert run_tracked(campaign, planned) == result
    assert len(client.search_logged_models([tracker.runs.experiment_id])) == 1


def test_without_a_server_everything_stays_in_the_campaign(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    tracker = Tracker(campaign)
    assert tracker.uri == tracking_uri(campaign) == campaign.tracking_uri
    tracker.log_files(tracker.runs.campaign_run(), {"note.txt": b"hello"})
    assert set(tmp_path.iterdir()) == before
    assert [f.path for f in tracker.runs.client.list_artifacts(tracker.runs.campaign_run())] == ["note.txt"]


def test_nothing_but_tracking_imports_mlflow() -> None:
    importing = {
        path.relative_to(REPOSITORY).parts[1]
        for path in (REPOSITORY / "rescueseg").rglob("*.py")
        if any(line.strip().startswith(("import mlflow", "from mlflow")) for line in path.read_text().splitlines())
    }
    assert importing == {"tracking"}


def test_the_stored_model_predicts(tracked: Campaign) -> None:
    import mlflow

    from rescueseg.models.checkpoints import export_model
    from rescueseg.models.unet.network import build_network, get_weights
    from rescueseg.models.unet.plan import make_plan

    plan = make_plan(
        tracked.config.training,
        Survey(in_channels=1, spacing_um_zyx=(0.1, 0.1, 0.1), volume_zyx=(8, 16, 16), field_zyx=(8, 16, 16)),
        1,
    )
    network = build_network(plan.network, seed=0)
    work = Path(tracked.storage.path(tracked.generation(0).path()))
    export_model(work, get_weights(network), {"plan": plan.to_json(), "warnings": []}, {})
    stored = read_model(work / MODEL_FOLDER)
    assert stored is not None
    model = ModelReference(generation=0, trainer="monai_unet", path="generations/0000/model", digest=stored.digest)
    tracker = Tracker(tracked)
    calibration = Calibration(generation=0, model_digest=model.digest, temperature=2.0, validation=None, test=None)
    tracked.generation(0).write(CALIBRATION, calibration)
    registered = tracker.register_model(0, model)
    mlflow.set_tracking_uri(tracker.uri)
    loaded = mlflow.pyfunc.load_model(registered.uri)
    assert loaded.unwrap_python_model()._linear == LINEAR, "scaled as what it was trained on"
    image = np.random.default_rng(0).random((1, 10, 20, 20), dtype=np.float32)
    probability = loaded.predict(image)
    assert probability.shape == (2, 10, 20, 20)
    assert probability.sum(axis=0) == pytest.approx(1.0, abs=1e-4)
    assert np.array_equal(probability, loaded.predict(image))
    assert loaded.metadata.metadata["temperature"] == 2.0
    np.testing.assert_array_equal(loaded.predict(image, params={"tempered": True}), temper(probability, 2.0))
