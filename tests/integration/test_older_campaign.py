"""Campaigns that an older version made go on working: opened, resumed, inferred, evaluated, annotated.

`tests/data/older_campaign` holds two of them and what the older version said of them. They are never made anew: what a
later version adds to a record may stand beside what is expected, nothing may be missing. No module is named in what is
expected, so that modules may move. `tests/data/make_older_campaign.py` made them, with the functions `unpack`,
`relocate`, `described`, `predicted` and `go_on` of this file.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rescueseg.annotation.formats import FORMATS, read_labels
from rescueseg.annotation.formats.base import Frame, PatchFormat, relabel
from rescueseg.annotation.formats.handout import lease_of, write_patch
from rescueseg.annotation.label_files import read_version, starting_patch
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign, RecordFolder, outside_trainings, snapshot
from rescueseg.campaign.stage_results import (
    CHOICE,
    EFFORT,
    INFERENCE,
    PROGRESS,
    QUERY,
    SNAPSHOT,
    TICKETS,
    TRAINING,
    TrainingResult,
)
from rescueseg.cli.main import app
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.calibration import CALIBRATION, score_and_calibrate
from rescueseg.evaluation.champion import EVALUATION, champion, judgements
from rescueseg.evaluation.holdout_scores import check_evaluation, evaluate_generation, stored_maps
from rescueseg.evaluation.scores import FORMAT
from rescueseg.evaluation.stored_scores import current_evaluation, scored_today, stored_evaluation
from rescueseg.evaluation.training_scores import TRAINING_EVALUATION, stored_training_evaluation
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.geometry import Box
from rescueseg.inference.engine import InferenceJob, infer_volume, predict_boxes
from rescueseg.inference.maps import QUANTITIES, VolumeMaps
from rescueseg.labels import PatchLabels
from rescueseg.models.files import committed_files
from rescueseg.queue.check import check_queue
from rescueseg.queue.due import campaign_lock
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.records import Record, Snapshot
from rescueseg.reports import generation_table
from rescueseg.reports.generation_table import REPORT
from rescueseg.server.access import list_tokens
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages import publish, tickets, train_outside
from rescueseg.stages import train as stage_train
from rescueseg.stages.due import begin, count_due
from rescueseg.stages.evaluate import evaluate
from rescueseg.stages.infer import infer
from rescueseg.stages.snapshot import make_snapshot
from rescueseg.storage import digest_array
from rescueseg.tracking.tracker import Tracker
from rescueseg.triage.records import TRIAGE
from rescueseg.volumes import open_image, open_truth
from rescueseg.volumes.consistency import CONSISTENCY
from rescueseg.weak_labels.choice import CHOICE as METHOD_CHOICE
from rescueseg.weak_labels.prefill import weak_label

STORED = Path(__file__).parents[1] / "data" / "older_campaign"
EXPECTED: dict[str, Any] = (
    json.loads((STORED / "expected.json").read_text()) if (STORED / "expected.json").exists() else {}
)
NAMES = ("phantom", "objects")
PLACE = "/the-place-of-the-older-campaigns"
"""What stands in MLflow's database for the folder that holds the campaigns: it keeps absolute paths."""
OTHER_PROCESSOR = 0.02
"""Largest difference in a map between processors, measured 0.006: some compute in bfloat16, others in float32."""


# what is compared -----------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a value as it is after a round trip through JSON, records as theirs."""
    if isinstance(value, Record):
        value = value.to_json()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def differences(expected: Any, found: Any, where: str = "") -> Iterator[str]:
    """Yield what is missing or other than expected; what is found beyond it in a record is welcome."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, inner in expected.items():
            if key in found:
                yield from differences(inner, found[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is missing"
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{where}[{index}]")
    elif expected != found:
        yield f"{where} was {expected!r}, is {found!r}"


def same(expected: Any, found: Any) -> bool:
    """Tell whether nothing is missing or other than expected; say in the failing test what is."""
    assert list(differences(expected, plain(found)))[:10] == []
    return True


SCORED_OTHERWISE = {
    *("format", "surface_dice", "hd95_um", "instances", "share"),
    *("found_skeleton", "found_inside", "true_skeleton", "true_inside"),
}
"""What format 4 counts otherwise than format 3, and the weight of a box that it does not keep."""


def scored_alike(scores: Any) -> Any:
    """Return what both formats count alike; what says nothing, and was 0 or 1 then, is left out too."""
    if isinstance(scores, list):
        return [scored_alike(inner) for inner in scores]
    if not isinstance(scores, dict):
        return scores
    left_out = set(SCORED_OTHERWISE)
    parts = scores["classes"] if "boxes" in scores and "classes" in scores else [scores]
    for counts in (part.get("counts") for part in parts):
        if isinstance(counts, dict):  # of a class; a box has a list of them
            left_out |= {"recall"} if not counts["tp"] + counts["fn"] else set()
            left_out |= {"precision"} if not counts["tp"] + counts["fp"] else set()
        elif isinstance(counts, list) and not any(sum(c.values()) for c in counts):
            left_out |= {"dice"}
    return {key: scored_alike(inner) for key, inner in scores.items() if key not in left_out}


def unformatted(scores: Any) -> Any:
    """Return scores without the number of their format, which counts changes of the scoring."""
    if isinstance(scores, list):
        return [unformatted(inner) for inner in scores]
    if isinstance(scores, dict):
        return {key: unformatted(inner) for key, inner in scores.items() if key != "format"}
    return scores


def stored(campaign: Campaign, generation: int, name: str) -> Any:
    """Return a file of a generation as it lies there."""
    return campaign.storage.read_json(campaign.generation(generation).path(f"{name}.json"))


MOVED = {
    "channels": [("unet", "channels"), ("nnunet", "channels")],
    "nnunet_planner": [("nnunet", "planner")],
    "nnunet_configuration": [("nnunet", "configuration")],
} | {
    name: [("unet", name)] for name in ("deep_supervision", "ema", "balanced_classes", "cldice_weight", "betti_weight")
}
"""Where the settings of `[training]` stand that have moved into a family's table."""


def as_named_now(config: Any) -> Any:
    """Return a campaign's settings under the names that they have now; their values are as they were."""
    training = {key: value for key, value in config["training"].items() if key not in MOVED}
    for old, places in MOVED.items():
        for family, new in places:
            training.setdefault(family, {})[new] = config["training"][old]
    return config | {"training": training}


# what a campaign says, part by part -----------------------------------------------------------------------------------


def _config(campaign: Campaign, _: QueueStore) -> Any:
    return campaign.config.model_dump(mode="json")


def _volumes(campaign: Campaign, _: QueueStore) -> Any:
    return [
        {
            "record": volume,
            "image": digest_array(np.asarray(open_image(campaign.volumes, volume.volume_id)[:])),
            "truth": digest_array(np.asarray(open_truth(campaign.volumes, volume.volume_id)[:])),
            "objects": None
            if volume.truth != "instance"
            else digest_array(np.asarray(open_truth(campaign.volumes, volume.volume_id, instances=True)[:])),
        }
        for volume in campaign.volumes.records(refused=True)
    ]


def _looked_at(campaign: Campaign, _: QueueStore) -> Any:
    return {
        "domains": campaign.volumes.domains(),
        "consistency": campaign.records.read(CONSISTENCY),
        "triage": campaign.records.read(TRIAGE),
        "rough": [[patch.volume_id, patch.box.to_dict()] for patch in campaign.rough_patches()],
    }


def _sampled(campaign: Campaign, _: QueueStore) -> Any:
    return {
        "holdout": campaign.holdout(),
        "digest": campaign.holdout_digest(),
        "truth": holdout_truth(campaign).digest_of_all,
        "starting": campaign.starting_patches(),
    }


def _queue(campaign: Campaign, store: QueueStore) -> Any:
    return {
        "counts": store.views.counts(),
        "tickets": store.views.tickets(),
        "accepted": store.views.accepted(None),
        "leases": store.views.leases(),
        "history": {ticket.ticket_id: store.views.history(ticket.ticket_id) for ticket in store.views.tickets()},
        "work": store.views.efforts(),
        "comparisons": store.views.comparisons(),
        "last_generation": store.ledger.last_generation(),
        "accepted_since": store.ledger.accepted_since_last_generation(),
    }


def _annotations(campaign: Campaign, store: QueueStore) -> Any:
    versions = [version for ticket in store.views.tickets() for version in store.views.annotations(ticket.ticket_id)]
    return [{"record": version, "labels": read_version(campaign.storage, version).digest} for version in versions]


def _first_masks(campaign: Campaign, store: QueueStore) -> Any:
    paths = {ticket.prefill for ticket in store.views.tickets() if ticket.prefill}
    return {
        "masks": {path: digest_array(campaign.storage.read_array(path)) for path in sorted(paths)},
        "choice": RecordFolder(campaign.storage, "weak_labels").read(METHOD_CHOICE),
    }


def _stages(campaign: Campaign, _: QueueStore) -> Any:
    files = (SNAPSHOT, TRAINING, INFERENCE, EVALUATION, QUERY, TICKETS, REPORT, EFFORT, CHOICE)
    return {
        g.number: {
            **{file.name: g.read(file) for file in files},
            "training": with_losses(g, g.read(TRAINING)),
            "seconds": generation_table.stage_seconds(g),
            "progress": g.read(PROGRESS),
        }
        for g in campaign.generations()
    }


def with_losses(folder: RecordFolder, result: TrainingResult | None) -> Any:
    """Return a training as older versions kept it, with its losses."""
    return None if result is None else plain(result) | {"losses": plain(outside_trainings.read_losses(folder))}


def _models(campaign: Campaign, _: QueueStore) -> Any:
    found = {g.number: g.model() for g in campaign.generations()}
    return {
        g: {"record": model, "bytes": [len(data) for data in committed_files(campaign.storage, model)]}
        for g, model in found.items()
        if model is not None
    }


def _maps(campaign: Campaign, _: QueueStore) -> Any:
    ids = [volume.volume_id for volume in campaign.volumes.records()]
    return {g.number: {name: _maps_of(campaign, g.number, name) for name in ids} for g in campaign.generations()}


def _maps_of(campaign: Campaign, generation: int, volume_id: str) -> Any:
    planned, reference = (
        VolumeMaps(campaign.generation(generation), volume_id).plan(),
        VolumeMaps(campaign.generation(generation), volume_id).reference(),
    )
    assert planned is not None
    return {
        "plan": planned.model_dump(mode="json", exclude={"factory"}),
        "digest": planned.digest,
        "blocks": [block.to_dict() for block in planned.blocks],
        "finished": VolumeMaps(campaign.generation(generation), planned.volume_id).finished_blocks(planned),
        "reference": reference,
        "voxels": {q: digest_array(_map(campaign, generation, volume_id, q)) for q in planned.quantities}
        if reference
        else None,
    }


def _map(campaign: Campaign, generation: int, volume_id: str, quantity: str) -> np.ndarray:
    return np.asarray(VolumeMaps(campaign.generation(generation), volume_id).open(quantity)[:])


def _judged(campaign: Campaign, _: QueueStore) -> Any:
    return {
        "judgements": judgements(campaign.generations()),
        "champion": champion(campaign.generations()),
        "calibrations": {g.number: g.read(CALIBRATION) for g in campaign.generations()},
        "metrics": [judgement.evaluation.metrics() for judgement in judgements(campaign.generations())],
    }


def _table(campaign: Campaign, store: QueueStore) -> Any:
    due = count_due(campaign, store)
    return {"rows": generation_table.rows(campaign.generations()), "due": [due.generation, due.due]}


def _outside(campaign: Campaign, _: QueueStore) -> Any:
    return {name: _training(campaign, name) for name in campaign.trainings()}


def _training(campaign: Campaign, name: str) -> Any:
    folder = campaign.training(name)
    return {
        "request": outside_trainings.read_request(folder),
        "finished": with_losses(folder, folder.read(outside_trainings.RESULT)),
        "step": outside_trainings.step_of(folder),
        "evaluation": folder.read(TRAINING_EVALUATION),
        "calibration": folder.read(CALIBRATION),
    }


def _tokens(campaign: Campaign, _: QueueStore) -> Any:
    return list_tokens(campaign.storage)


PARTS: dict[str, Callable[[Campaign, QueueStore], Any]] = {
    "config": _config,
    "volumes": _volumes,
    "looked_at": _looked_at,
    "sampled": _sampled,
    "queue": _queue,
    "annotations": _annotations,
    "first_masks": _first_masks,
    "stages": _stages,
    "models": _models,
    "maps": _maps,
    "judged": _judged,
    "table": _table,
    "outside": _outside,
    "tokens": _tokens,
}


def described(campaign: Campaign) -> dict[str, Any]:
    """Return all that is compared of a campaign; changes nothing in it."""
    with closing(open_queue(campaign)) as store:
        parts = {name: plain(part(campaign, store)) for name, part in PARTS.items()}
    return parts | {"tracked": tracked(campaign)}


def tracked(campaign: Campaign) -> Any:
    """Return what MLflow's database holds of a campaign."""
    tracker = Tracker(campaign)
    runs = tracker.runs.client.search_runs([tracker.runs.experiment_id])
    model = tracker.runs.client.get_registered_model(tracker.runs.name)
    return {
        "experiment": tracker.runs.name,
        "runs": {run.data.tags["rescueseg.key"]: _run(run) for run in runs},
        "versions": [
            [version.version, dict(version.tags)]
            for version in tracker.runs.client.search_model_versions(f"name = '{tracker.runs.name}'")
        ],
        "aliases": {name: int(version) for name, version in model.aliases.items()},
    }


def _run(run: Any) -> dict[str, Any]:
    tags = {name: value for name, value in run.data.tags.items() if name.startswith("rescueseg.")}
    return {
        "id": run.info.run_id,
        "status": run.info.status,
        "tags": tags,
        "params": dict(run.data.params),
        "metrics": dict(run.data.metrics),
        "inputs": [used.dataset.digest for used in run.inputs.dataset_inputs],
    }


def predicted(campaign: Campaign, alias: str) -> dict[str, list[float]]:
    """Return some probabilities of a model as MLflow keeps it, loaded as a user of it would, by its generation."""
    import mlflow.pyfunc

    tracker = Tracker(campaign)
    tags = tracker.runs.client.get_model_version_by_alias(tracker.runs.name, alias).tags
    logged = tracker.runs.client.get_logged_model(tags["rescueseg.model_id"])
    volume = campaign.volumes.records()[0]
    image = np.asarray(open_image(campaign.volumes, volume.volume_id)[..., :32], np.float32)
    loaded = mlflow.pyfunc.load_model(logged.artifact_location.removeprefix("file://"))
    probability = loaded.predict(image, params={"spacing_um_zyx": list(volume.spacing_um_zyx), "tempered": False})
    return {tags["rescueseg.generation"]: [round(float(p), 5) for p in probability[1, ::3, ::6, ::8].ravel()]}


def go_on(campaign: Campaign, store: QueueStore) -> None:
    """Finish generation 1 as the flow does."""
    with campaign_lock(campaign.config, store):
        assert begin(campaign, store) == 1
        make_snapshot(campaign, 1, store)
        stage_train.train(campaign, 1, no_training)
        infer(campaign, 1, None, ignore)
        evaluate(campaign, 1)
        tickets.query(campaign, 1, store)
        tickets.enqueue(campaign, 1, store)
        publish.publish(campaign, 1)
        store.ledger.finish_generation(1)
    assert check_queue(campaign) == []


# the stored campaigns -------------------------------------------------------------------------------------------------


def relocate(campaign: Path, before: str, after: str) -> None:
    """Replace the start of the paths in the database of MLflow, the one place that keeps absolute ones."""
    with closing(sqlite3.connect(campaign / "mlflow.db")) as connection, connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for column in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if re.match("TEXT|VARCHAR", column[2]):
                    change = f"UPDATE {table} SET {column[1]} = replace({column[1]}, ?, ?) WHERE instr({column[1]}, ?)"
                    connection.execute(change, (before, after, before))


def unpack(folder: Path, name: str) -> Campaign:
    """Unpack one of the stored campaigns below a folder and open it there."""
    with tarfile.open(STORED / "campaigns.tar.xz") as archive:
        ours = [member for member in archive.getmembers() if member.name.split("/")[0] == name]
        archive.extractall(folder, ours, filter="data")
    relocate(folder / name, PLACE, str(folder))
    return Campaign.open(str(folder / name))


def upgraded(folder: Path, name: str) -> Campaign:
    """Unpack one of the stored campaigns and bring it to this version, as a person has to first."""
    campaign = unpack(folder, name)
    told = CliRunner().invoke(app, ["upgrade", campaign.url])
    assert told.exit_code == 0, told.output
    return campaign


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return when each file below a folder was written, and what it holds."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def maps_folder(campaign: Campaign, generation: int) -> Path:
    return Path(campaign.storage.path(campaign.generation(generation).path("maps")))


def no_training(step: int, metrics: Mapping[str, float]) -> None:
    pytest.fail(f"step {step} is trained again")


def ignore(*_: Any) -> None:
    return


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Campaign]:
    """Both campaigns, for tests that only read."""
    folder = tmp_path_factory.mktemp("older")
    return {name: upgraded(folder, name) for name in NAMES}


@pytest.fixture
def phantom(tmp_path: Path) -> Campaign:
    return upgraded(tmp_path, "phantom")


@pytest.fixture
def objects(tmp_path: Path) -> Campaign:
    return upgraded(tmp_path, "objects")


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[QueueStore]:
    """The queue of the campaign that the test asks for."""
    name = next(name for name in NAMES if name in request.fixturenames)
    with closing(open_queue(request.getfixturevalue(name))) as opened:
        yield opened


@pytest.fixture
def registry(phantom: Campaign) -> Iterator[None]:
    """Without a server the registry of MLflow looks for a new model where the process says."""
    import mlflow

    mlflow.set_tracking_uri(phantom.tracking_uri)
    yield
    mlflow.set_tracking_uri(None)


# opening --------------------------------------------------------------------------------------------------------------


def test_the_stored_files_are_small() -> None:
    assert sum(path.stat().st_size for path in STORED.iterdir()) <= 2 * 2**20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_all_is_read_as_it_was(untouched: dict[str, Campaign], name: str, part: str) -> None:
    campaign = untouched[name]
    with closing(open_queue(campaign)) as opened:
        found = plain(PARTS[part](campaign, opened))
    expected = EXPECTED[name][part]
    assert same(unformatted(as_named_now(expected) if part == "config" else expected), unformatted(found))


@pytest.mark.parametrize("name", NAMES)
def test_mlflow_holds_what_it_did(untouched: dict[str, Campaign], name: str) -> None:
    assert same(EXPECTED[name]["tracked"], tracked(untouched[name]))


@pytest.mark.parametrize("name", NAMES)
def test_the_status_is_shown(untouched: dict[str, Campaign], name: str) -> None:
    shown = CliRunner().invoke(app, ["status", untouched[name].url])
    assert shown.exit_code == 0, shown.output
    for status, count in EXPECTED[name]["queue"]["counts"].items():
        assert not count or f"{count} {status}" in shown.output
    assert f"Generation {EXPECTED[name]['table']['due'][0]} is" in shown.output
    assert f"champion is generation {EXPECTED[name]['judged']['champion']}" in shown.output


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_changed_before_a_person_upgrades_it(tmp_path: Path, name: str) -> None:
    campaign = unpack(tmp_path, name)
    before = contents(tmp_path)
    for command in (["status"], ["queue", "status"], ["upgrade", "--dry-run"]):
        told = CliRunner().invoke(app, [*command, campaign.url])
        said = "Would copy the database" if command[0] == "upgrade" else f"rescueseg upgrade {campaign.url}"
        assert said in told.output
        assert told.exit_code == (command[0] != "upgrade")
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes]:
    """Return what each file below a folder holds, but for the log that SQLite keeps beside an open database."""
    return {
        path: content for path, (_, content) in files_of(folder).items() if path.suffix not in (".db-wal", ".db-shm")
    }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_the_queue_looks_damaged(untouched: dict[str, Campaign], name: str) -> None:
    assert check_queue(untouched[name]) == []


@pytest.mark.parametrize("name", NAMES)
def test_its_images_are_listed_and_again_nothing_is_to_be_done(untouched: dict[str, Campaign], name: str) -> None:
    assert all(record.files for record in untouched[name].volumes.records(refused=True))
    assert "Nothing to do" in CliRunner().invoke(app, ["upgrade", untouched[name].url]).output


def test_a_damaged_image_is_not_listed(tmp_path: Path) -> None:
    campaign = unpack(tmp_path, "phantom")
    shard = next(path for path in sorted(Path(campaign.url, "volumes").rglob("0/c/**/*")) if path.is_file())
    shard.unlink()
    told = CliRunner().invoke(app, ["upgrade", campaign.url])
    assert told.exit_code == 1
    assert [record.files for record in campaign.volumes.records(refused=True)] == [""]
    with closing(open_queue(campaign)) as opened:
        assert opened.views.tickets(), "its queue is of this version all the same"


def test_the_copy_made_before_the_upgrade_is_the_older_database(tmp_path: Path) -> None:
    campaign = unpack(tmp_path, "phantom")
    with closing(sqlite3.connect(Path(campaign.url) / "campaign.db")) as connection:
        before = list(connection.iterdump())
    assert CliRunner().invoke(app, ["upgrade", campaign.url]).exit_code == 0
    [copy] = Path(campaign.url).glob("campaign.db.0002-*")
    with closing(sqlite3.connect(copy)) as connection:
        assert list(connection.iterdump()) == before


# what was finished stays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_inferring_again_computes_nothing(tmp_path: Path, name: str) -> None:
    campaign = upgraded(tmp_path, name)
    [expected] = stored(campaign, 0, "inference")
    model, before, seen = campaign.generation(0).model(), files_of(maps_folder(campaign, 0)), []
    assert model is not None
    found = infer_volume(campaign, model, expected["volume_id"], progress=lambda *counts: seen.append(counts))
    assert same(expected, found)
    assert seen == [(expected["blocks"], expected["blocks"])]
    assert files_of(maps_folder(campaign, 0)) == before


@pytest.mark.parametrize("name", NAMES)
def test_evaluating_again_counts_the_same_voxels(untouched: dict[str, Campaign], name: str) -> None:
    campaign = untouched[name]
    recorded = scored_alike(stored(campaign, 0, "evaluation")["evaluation"])
    assert recorded["boxes"][0]["counts"]
    assert same(recorded, scored_alike(plain(evaluate_generation(campaign, 0, choose_scored_objects))))


@pytest.mark.parametrize("name", NAMES)
def test_calibrating_again_finds_the_temperature(untouched: dict[str, Campaign], name: str) -> None:
    campaign = untouched[name]
    folder, assignment = campaign.generation(0), check_evaluation(campaign, 0)
    kept = folder.read(CALIBRATION)
    _, found = score_and_calibrate(assignment, stored_maps(folder, assignment))
    assert kept is not None
    assert (found.model_digest, found.truth_digest) == (kept.model_digest, kept.truth_digest)
    assert found.metrics() == pytest.approx(kept.metrics(), rel=2e-3)


def test_kept_evaluations_of_an_earlier_format_are_scored_anew_and_say_why(phantom: Campaign) -> None:
    judged = stored(phantom, 0, "evaluation")
    assert judged["evaluation"]["format"] < FORMAT
    assert stored_evaluation(phantom, 0) is None
    lines: list[str] = []
    anew = current_evaluation(phantom, 0, choose_scored_objects, say=lines.append)
    assert lines == [
        "Generation 0 is scored anew: an earlier version counted objects, outlines and empty boxes otherwise"
    ]
    assert anew.complete
    assert stored_evaluation(phantom, 0) == anew
    assert stored(phantom, 0, "evaluation") == judged, "what was judged stays as it is"
    assert [j.evaluation.complete for j in scored_today(phantom, choose_scored_objects)[0]][:1] == [True]
    [training] = phantom.trainings()
    assert stored_training_evaluation(phantom, training)[0] is None


@pytest.mark.parametrize("name", NAMES)
def test_a_box_predicted_in_memory_is_that_of_the_map(untouched: dict[str, Campaign], name: str) -> None:
    campaign = untouched[name]
    model, volume = campaign.generation(0).model(), campaign.volumes.records()[0].volume_id
    assert model is not None
    box = Box((2, 4, 8), (4, 16, 40))
    [found] = predict_boxes(InferenceJob.of(campaign, model, volume), [box])
    for quantity in QUANTITIES:
        stored = _map(campaign, 0, volume, quantity)[(..., *box.slices)].astype(np.float32)
        np.testing.assert_allclose(found[quantity], stored, atol=OTHER_PROCESSOR, err_msg=quantity)


@pytest.mark.parametrize("name", NAMES)
def test_the_snapshots_are_reproduced(untouched: dict[str, Campaign], name: str) -> None:
    campaign = untouched[name]
    with closing(open_queue(campaign)) as opened:
        accepted = opened.views.accepted("pool")
    for generation in campaign.generations():
        recorded = generation.snapshot()
        assert recorded is not None
        known = {item.annotation_id for item in recorded.items}
        ours = [annotation for annotation in accepted if annotation.annotation_id in known]
        made = snapshot.make_snapshot(campaign, generation.number, ours)
        assert same(recorded.to_json(), made.to_json())
        assert [item.instances for item in made.items] == [annotation.instances for annotation in ours]


@pytest.mark.parametrize("generation", [0, 1])
def test_a_training_whose_result_was_lost_is_made_by_the_trainer_of_today(phantom: Campaign, generation: int) -> None:
    """The trainer's format has risen: what an earlier one left unfinished is no beginning of another model."""
    for lost in ("training.json", "training.seconds.json", "model"):
        phantom.storage.remove(phantom.generation(generation).path(lost))
    steps: list[int] = []
    made = stage_train.train(phantom, generation, lambda step, _: steps.append(step))
    assert steps == list(range(1, made.iterations + 1))
    assert phantom.generation(generation).model() == made.model


# what was half done goes on -------------------------------------------------------------------------------------------


def test_finished_blocks_are_kept_and_the_others_computed(phantom: Campaign) -> None:
    maps, said = maps_folder(phantom, 1), EXPECTED["phantom"]["maps"]["1"]["phantom"]
    before, seen = files_of(maps), []
    infer(phantom, 1, None, lambda _, done, total: seen.append((done, total)))
    total, finished = len(said["blocks"]), len(said["finished"])
    assert 0 < finished < total
    assert seen == [(done, total) for done in range(finished, total + 1)]
    after = files_of(maps)
    assert {path: after[path] for path in before} == before
    planned = VolumeMaps(phantom.generation(1), "phantom").plan()
    assert planned is not None
    assert planned.digest == said["digest"]
    done = VolumeMaps(phantom.generation(1), planned.volume_id).finished_blocks(planned)
    assert sorted(done) == list(range(total))
    assert same(said["finished"], done)


@pytest.mark.usefixtures("registry")
def test_the_half_done_generation_goes_on_to_its_end(phantom: Campaign, store: QueueStore) -> None:
    said = EXPECTED["phantom"]
    go_on(phantom, store)
    for stage in ("snapshot", "training"):
        assert same(said["stages"]["1"][stage], stored(phantom, 1, stage))
    judged = judgements(phantom.generations())
    assert same(unformatted(said["judged"]["judgements"][0]), unformatted(plain(judged[0])))
    assert judged[1].comparison is not None
    assert judged[1].comparison.boxes > 0
    asked, queued = phantom.generation(1).require(QUERY).patches, phantom.generation(1).require(TICKETS).tickets
    assert len(asked) == len(queued) == phantom.config.sampling.query_patches
    for ticket in (t for t in store.views.tickets() if t.generation == 2):
        assert ticket.prefill is not None
        assert phantom.storage.read_array(ticket.prefill).shape == ticket.box.shape_zyx
    assert [row.generation for row in generation_table.rows(phantom.generations())] == [0, 1]
    assert "| 1 |" in generation_table.to_markdown(phantom.config.name, phantom.generation(1))
    assert_mlflow_went_on(phantom)


def assert_mlflow_went_on(campaign: Campaign) -> None:
    """Generation 1 joins the older experiment, no run is there twice, and the models predict as before."""
    before, after = EXPECTED["phantom"]["tracked"], tracked(campaign)
    ids = {key: run["id"] for key, run in after["runs"].items()}
    assert before["experiment"] == after["experiment"]
    assert same({key: run["id"] for key, run in before["runs"].items()}, ids)
    client = Tracker(campaign).runs.client
    assert len(client.search_runs([Tracker(campaign).runs.experiment_id])) == len(ids)
    assert after["runs"]["generation/1"]["status"] == "FINISHED"
    curve = client.get_metric_history(ids["campaign"], "validation_dice")
    assert [point.step for point in curve] == [0, 1]
    where = client.get_run(ids["generation/1"]).info.artifact_uri
    assert where.removeprefix("file://").startswith(campaign.url), "MLflow's files lie beside the campaign"
    for alias in ("candidate", "champion"):
        [(generation, found)] = predicted(campaign, alias).items()
        assert found == pytest.approx(EXPECTED["predicted"][generation], abs=OTHER_PROCESSOR)


def test_a_killed_training_of_an_earlier_trainer_starts_anew_and_comes_to_its_end(
    objects: Campaign, store: QueueStore
) -> None:
    [name] = objects.trainings()
    request = outside_trainings.read_request(objects.training(name))
    planned = train_outside.plan(objects, store, request.trainer, 0)
    assert planned == request
    assert objects.training(name).read(outside_trainings.RESULT) is None
    steps: list[int] = []
    done = train_outside.run(objects, planned, lambda step, _: steps.append(step))
    last = done.iterations
    assert steps == list(range(1, last + 1)), "the trainer's format has risen since the checkpoint"
    losses = outside_trainings.read_losses(objects.training(name))
    assert len(losses) == last
    assert all(math.isfinite(entry["loss"]) for entry in losses)
    assert objects.training(name).read(outside_trainings.RESULT) is not None


def test_a_finished_training_outside_the_loop_is_found_again(phantom: Campaign, store: QueueStore) -> None:
    [name] = phantom.trainings()
    request = outside_trainings.read_request(phantom.training(name))
    planned = train_outside.plan(phantom, store, request.trainer, 0)
    assert planned == request
    found = train_outside.run(phantom, planned, no_training)
    expected = EXPECTED["phantom"]["outside"][name]["finished"]
    assert same(expected, with_losses(phantom.training(name), found))


# annotating goes on ---------------------------------------------------------------------------------------------------


def drawn(campaign: Campaign, store: QueueStore, ticket: Any) -> PatchLabels:
    """Return what somebody who sees the truth would hand in."""
    return PatchLabels.of_components(SimulatedAnnotator(campaign, store).draw(ticket))


def ticket_with(store: QueueStore, event: str) -> str:
    """Return the one ticket that an event happened to."""
    [found] = [
        t.ticket_id for t in store.views.tickets() if event in {e.event for e in store.views.history(t.ticket_id)}
    ]
    return found


def test_patches_in_work_are_handed_in_and_accepted(objects: Campaign, store: QueueStore) -> None:
    before = {annotation.ticket_id for annotation in store.views.accepted("pool")}
    client, reviewer = LocalClient(objects, store, "ben"), LocalClient(objects, store, "rita")
    [lease] = client.leases()
    made = drawn(objects, store, lease.ticket)
    done = client.submit(lease.lease_id, made, "test", override=True)
    assert done.verdict == "submitted"
    assert done.instances is not None
    waiting = [ticket.ticket_id for ticket in reviewer.to_review()]
    assert len(waiting) == 2
    assert lease.ticket_id in waiting
    for ticket_id in waiting:
        assert reviewer.accept(ticket_id).verdict == "accepted"
    assert {annotation.ticket_id for annotation in store.views.accepted("pool")} == before | {*waiting}
    assert read_version(objects.storage, store.views.annotations(lease.ticket_id)[-1]) == made
    following = snapshot.make_snapshot(objects, 1, store.views.accepted("pool"))
    assert isinstance(following, Snapshot)
    assert {item.ticket_id for item in following.items} == before | {*waiting}


def test_a_patch_sent_back_goes_on_from_the_labels_handed_in(objects: Campaign, store: QueueStore) -> None:
    rejected = ticket_with(store, "rejected")
    [version] = store.views.annotations(rejected)
    client = LocalClient(objects, store, version.annotator)
    lease = client.next(ticket_id=rejected)
    assert lease is not None
    assert lease.comment == version.comment != ""
    assert starting_patch(objects.storage, lease, objects.config) == read_version(objects.storage, version)
    done = client.submit(lease.lease_id, drawn(objects, store, lease.ticket), "test", override=True)
    assert done.version == version.version + 1


def test_a_skipped_patch_is_taken_up_again(objects: Campaign, store: QueueStore) -> None:
    lease = LocalClient(objects, store, "ben").next(ticket_id=ticket_with(store, "skipped"), another=True)
    assert lease is not None
    assert store.views.ticket(lease.ticket_id).status == "leased"


@pytest.mark.parametrize("kind", [k for k in FORMATS if "instance" in k.carries], ids=lambda kind: kind.name)
def test_a_leased_patch_is_exported(objects: Campaign, store: QueueStore, tmp_path: Path, kind: PatchFormat) -> None:
    client = LocalClient(objects, store, "ben")
    [lease] = client.leases()
    view, info = client.view(lease.lease_id), client.info()
    assert view.prediction is not None, "it is shown with the model's maps"
    files = write_patch(kind, tmp_path / "todo", lease, view, info)
    assert lease_of(files.labels, client.leases()).lease_id == lease.lease_id
    assert read_labels(files.labels, Frame.of(view, info)) == relabel(view.start)


def test_first_masks_are_known_and_made_again_by_the_stored_classifier(objects: Campaign, store: QueueStore) -> None:
    ours = [
        t for t in store.views.tickets("queued", "pool") if t.prefill and t.prefill.startswith("weak_labels/classifier")
    ]
    assert ours
    assert weak_label(objects, store, "classifier", dry_run=True).tickets == 0
    masks = {t.prefill: objects.storage.read_array(t.prefill) for t in ours if t.prefill}
    assert weak_label(objects, store, "threshold").tickets == len(ours)
    for path in masks:
        objects.storage.remove(path)
    [classifier] = Path(objects.storage.path("weak_labels")).rglob("*.skops")
    written = classifier.stat().st_mtime_ns
    assert weak_label(objects, store, "classifier").tickets == len(ours)
    assert classifier.stat().st_mtime_ns == written, "it is not trained again"
    for path, mask in masks.items():
        assert (objects.storage.read_array(path) == mask).mean() > 0.99


def test_a_moved_campaign_is_the_same(phantom: Campaign, tmp_path: Path) -> None:
    before = champion(phantom.generations())
    shutil.move(phantom.url, tmp_path / "elsewhere")
    moved = Campaign.open(str(tmp_path / "elsewhere"))
    assert champion(moved.generations()) == before
    [expected] = stored(moved, 0, "inference")
    assert same(expected, VolumeMaps(moved.generation(0), expected["volume_id"]).reference())
