"""What every trainer promises, whatever it is made of."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import dump_config
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.config import TrainingConfig
from rescueseg.errors import ConfigError, InferenceError, LeakError, StorageError, TrainingError
from rescueseg.geometry import Box, partition, zyx
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.models.registry import complete_families, find_entry, get_trainer, load_predictor, trainer_names
from rescueseg.models.trainer import (
    TrainedModel,
    TrainerCapabilities,
    TrainingRequest,
    check_gpus,
    check_request,
    ignore_progress,
    model_digest,
)
from rescueseg.models.unet.settings import UNetSettings
from rescueseg.records import Holdout, HoldoutBox, ModelReference, Snapshot
from rescueseg.sections import Section
from rescueseg.volumes import open_image, open_truth
from rescueseg.volumes.normalise import normalise, read_box
from tests.training_rig import BOXES, make_campaign, make_snapshot

SEED = 3


SLOW = {"nnunet", "monai_unet_topology"}
"""One starts a process for every training, the other is the U-Net once more; what is quick of them is in
`tests/unit/models/test_nnunet.py` and `tests/unit/models/test_topology_loss.py`."""


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in trainer_names()]
)
def trainer_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def several_classes(trainer: str) -> None:
    """Skip a test of several classes for a trainer of numbered objects, which are of one class."""
    if find_entry(trainer).needs_instances:
        pytest.skip("it learns from numbered objects, which are of one class")


def train(
    campaign: Campaign, snapshot: Snapshot, work_dir: Path, progress: Any = ignore_progress, **request: Any
) -> TrainedModel:
    trainer = get_trainer(campaign.config.training.trainer)
    return trainer.train(
        TrainingRequest(
            campaign.config,
            campaign.volumes,
            campaign.holdout(),
            snapshot,
            work_dir,
            request.pop("seed", SEED),
            **request,
        ),
        progress,
    )


def publish(campaign: Campaign, model: TrainedModel) -> ModelReference:
    for file in sorted(model.path.iterdir()):
        campaign.storage.write_bytes(f"model/{file.name}", file.read_bytes())
    return ModelReference(generation=0, trainer=campaign.config.training.trainer, path="model", digest=model.digest)


def mean_probability(campaign: Campaign, model: TrainedModel, volume_id: str, box: Box) -> np.ndarray:
    predictor = load_predictor(campaign.storage, publish(campaign, model), campaign.config.inference, "cpu")
    record = campaign.volumes.record(volume_id)
    window = Box(box.offset_zyx, predictor.window_zyx(record.spacing_um_zyx))
    image = normalise(read_box(open_image(campaign.volumes, volume_id), window), record.normalisation)
    members = [member["probability"][0] for _, member in predictor.members(image[None], [5])]
    config = campaign.config.inference
    assert len(members) == predictor.networks * config.mc_samples * config.tta_symmetries
    return np.mean(members, axis=0)


def dice(campaign: Campaign, model: TrainedModel, value: int = 1) -> float:
    box = Box((4, 60, 60), (16, 32, 32))
    found = mean_probability(campaign, model, "v0", box).argmax(axis=0)
    reach = Box(box.offset_zyx, found.shape).clip(campaign.volumes.record("v0").shape_zyx)
    found = found[tuple(slice(0, n) for n in reach.shape_zyx)] == value
    truth = np.asarray(open_truth(campaign.volumes, "v0")[reach.slices]) == value
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def test_learns_an_easy_volume_and_reports_every_step(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=80)
    steps: list[int] = []
    metrics: list[dict[str, float]] = []
    model = train(
        campaign,
        make_snapshot(campaign, BOXES),
        tmp_path / "work",
        lambda step, values: (steps.append(step), metrics.append(dict(values))),
    )
    assert dice(campaign, model) >= 0.8
    assert steps == list(range(1, 81))
    assert all({"loss", "learning_rate"} <= m.keys() for m in metrics)
    assert [entry["loss"] for entry in model.losses] == [m["loss"] for m in metrics]
    assert model.iterations == 80
    assert model.warnings == ()
    assert model.seconds > 0


def assert_same(campaign: Campaign, one: TrainedModel, other: TrainedModel) -> None:
    """The same model, bit for bit where the trainer says so, else within 0.03 Dice."""
    if "cpu" in get_trainer(campaign.config.training.trainer).capabilities.exact_on:
        assert one.digest == other.digest
        assert one.losses == other.losses
    else:
        assert abs(dice(campaign, one) - dice(campaign, other)) <= 0.03


def test_the_same_request_gives_the_same_digest_and_another_seed_another(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=5)
    snapshot = make_snapshot(campaign, BOXES)
    first = train(campaign, snapshot, tmp_path / "a")
    np.random.seed(99)
    again = train(campaign, snapshot, tmp_path / "b")
    other = train(campaign, snapshot, tmp_path / "c", seed=SEED + 1)
    assert_same(campaign, first, again)
    assert first.digest != other.digest
    weights, description = (first.path / name for name in ("model.safetensors", "model.json"))
    assert model_digest(weights.read_bytes(), description.read_bytes()) == first.digest
    assert sorted(p.name for p in first.path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_finished_training_is_not_repeated(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=3)
    snapshot = make_snapshot(campaign, BOXES)
    first = train(campaign, snapshot, tmp_path / "work")
    again = train(campaign, snapshot, tmp_path / "work", lambda step, _: pytest.fail(f"step {step} taken again"))
    assert again == first


def test_another_request_in_the_same_folder_starts_afresh(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=3)
    first = train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work")
    second = train(campaign, make_snapshot(campaign, BOXES[:2]), tmp_path / "work")
    alone = train(campaign, make_snapshot(campaign, BOXES[:2]), tmp_path / "other")
    assert first.digest != second.digest
    assert_same(campaign, second, alone)


def test_killed_at_any_step_it_resumes_to_the_same_model(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=20, checkpoint_every=8)
    snapshot = make_snapshot(campaign, BOXES)
    campaign.generation(0).write(SNAPSHOT, snapshot)
    undisturbed = train(campaign, snapshot, tmp_path / "undisturbed")
    # six steps before the next checkpoint: a worker behind a pipe takes a few more until it notices
    firsts = [run_and_kill(campaign, tmp_path / "work", at) for at in (2, 10)]
    assert firsts == [1, 1], "each run goes on behind the last checkpoint"
    assert not (tmp_path / "work" / "model").exists()
    resumed = train(campaign, snapshot, tmp_path / "work", lambda step, _: firsts.append(step))
    assert firsts[2] == 9
    assert_same(campaign, resumed, undisturbed)


def run_and_kill(campaign: Campaign, work_dir: Path, at_step: int) -> int:
    """Train in a process of its own, kill -9 it once it has taken a step, and return the first step it took."""
    command = [sys.executable, "-m", "tests.training_rig", campaign.url, str(work_dir), str(at_step)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        steps = []
        for line in process.stdout:
            steps.append(int(line))
            if steps[-1] == at_step:
                process.kill()
                break
        assert steps[-1] == at_step
        assert process.wait() == -9
    return steps[0]


def test_a_full_disk_is_one_clear_error_and_the_rerun_finishes(
    trainer_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=6)
    snapshot = make_snapshot(campaign, BOXES)
    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("os.fsync", full)
        lines = (
            "import os",
            "def full(_):",
            f"    raise OSError({errno.ENOSPC}, 'No space left on device')",
            "os.fsync = full",
        )
        (tmp_path / "sitecustomize.py").write_text("\n".join(lines))  # for a trainer's own process
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        with pytest.raises(StorageError, match="full"):
            train(campaign, snapshot, tmp_path / "work")
    assert not (tmp_path / "work" / "model").exists()
    assert_same(campaign, train(campaign, snapshot, tmp_path / "work"), train(campaign, snapshot, tmp_path / "other"))


def test_nothing_outside_the_read_boxes_is_read(trainer_name: str, tmp_path: Path) -> None:
    import zarr

    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=4)
    snapshot = make_snapshot(campaign, BOXES, halo=(0, 8, 8))
    before = train(campaign, snapshot, tmp_path / "a")
    volume = campaign.volumes.record("v0")
    campaign.volumes.save(volume.model_copy(update={"files": ""}))  # so that its files may be altered
    level = zarr.open_group(zarr_store(campaign.volumes.image_url("v0")), mode="r+")["0"]
    voxels = level[:]
    spoilt = np.full_like(voxels, 60000)
    for item in snapshot.items:
        spoilt[(0, *item.read_box.slices)] = voxels[(0, *item.read_box.slices)]
    level[:] = spoilt
    assert (spoilt != voxels).any()
    assert_same(campaign, train(campaign, snapshot, tmp_path / "b"), before)


def test_ignored_voxels_teach_nothing(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=80)
    truth = open_truth(campaign.volumes, "v0")
    partial = {}
    for i, box in enumerate(BOXES):
        labels = np.asarray(truth[box.slices]).copy()
        labels[:, ::2] = 255
        partial[i] = labels
    model = train(campaign, make_snapshot(campaign, BOXES, labels=partial), tmp_path / "work")
    assert dice(campaign, model) >= 0.75


@pytest.mark.parametrize("labels", [None, 255])
def test_without_a_labelled_voxel_there_is_one_clear_error(
    trainer_name: str, tmp_path: Path, labels: int | None
) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=2)
    boxes = [] if labels is None else BOXES[:1]
    nothing = {0: np.full(BOXES[0].shape_zyx, 255, np.uint8)}
    with pytest.raises(TrainingError, match=r"Annotate"):
        train(campaign, make_snapshot(campaign, boxes, labels=nothing), tmp_path / "work")
    assert not (tmp_path / "work" / "model").exists()


def test_a_damaged_label_array_is_refused(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=2)
    snapshot = make_snapshot(campaign, BOXES)
    campaign.storage.write_array(snapshot.items[1].labels, np.zeros(BOXES[1].shape_zyx, np.uint8))
    with pytest.raises(StorageError, match=r"other labels than were stored.*backup"):
        train(campaign, snapshot, tmp_path / "work")


def test_a_class_nobody_labelled_is_a_warning(trainer_name: str, tmp_path: Path) -> None:
    several_classes(trainer_name)
    campaign = make_campaign(tmp_path, trainer=trainer_name, n_classes=3, iterations=2)
    labels = {}
    for i, box in enumerate(BOXES):
        array = np.asarray(open_truth(campaign.volumes, "v0")[box.slices]).copy()
        array[array == 2] = 255
        labels[i] = array
    model = train(campaign, make_snapshot(campaign, BOXES, labels=labels), tmp_path / "work")
    assert len(model.warnings) == 1
    assert "class2" in model.warnings[0]
    assert mean_probability(campaign, model, "v0", BOXES[0]).shape[0] == 4


def test_only_background_labelled_trains_with_warnings(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=3)
    nothing = {0: np.zeros(BOXES[0].shape_zyx, np.uint8)}
    model = train(campaign, make_snapshot(campaign, BOXES[:1], labels=nothing), tmp_path / "work")
    assert "class1" in model.warnings[0]
    assert np.isfinite([entry["loss"] for entry in model.losses]).all()


def test_one_patch_smaller_than_the_window_is_enough(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=3)
    model = train(campaign, make_snapshot(campaign, [Box((5, 5, 5), (3, 11, 20))]), tmp_path / "work")
    found = mean_probability(campaign, model, "v0", BOXES[0])
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-4)


def test_several_classes_and_channels(trainer_name: str, tmp_path: Path) -> None:
    several_classes(trainer_name)
    campaign = make_campaign(tmp_path, trainer=trainer_name, n_classes=2, channels=2, iterations=90)
    model = train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work")
    assert dice(campaign, model, 2) >= 0.6


def test_volumes_of_unlike_spacing_train_together(trainer_name: str, tmp_path: Path) -> None:
    spacings = ((0.2, 0.1, 0.1), (0.4, 0.2, 0.2))
    campaign = make_campaign(tmp_path, trainer=trainer_name, spacings=spacings, iterations=80)
    boxes = [*BOXES, Box((0, 0, 0), (10, 24, 24))]
    snapshot = make_snapshot(campaign, boxes, volume_ids=["v0", "v0", "v0", "v1"])
    model = train(campaign, snapshot, tmp_path / "work")
    predictor = load_predictor(campaign.storage, publish(campaign, model), campaign.config.inference, "cpu")
    fine, coarse = (predictor.window_zyx(s) for s in spacings)
    assert coarse == tuple(n // 2 for n in fine)
    box = Box((0, 24, 24), coarse)
    found = mean_probability(campaign, model, "v1", box)
    assert found.shape[1:] == coarse
    reach = box.clip(campaign.volumes.record("v1").shape_zyx)
    inside = found[(slice(None), *(slice(0, n) for n in reach.shape_zyx))].argmax(axis=0)
    truth = np.asarray(open_truth(campaign.volumes, "v1")[reach.slices])
    assert 2 * ((inside == 1) & (truth == 1)).sum() / (inside.sum() + truth.sum()) > 0.6


def test_a_warm_start_begins_where_the_other_model_ended(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=40)
    snapshot = make_snapshot(campaign, BOXES)
    first = train(campaign, snapshot, tmp_path / "first")
    cold = train(campaign, snapshot, tmp_path / "cold", seed=8)
    warm = train(campaign, snapshot, tmp_path / "warm", seed=8, warm_start=first.path)
    assert warm.digest != cold.digest
    assert np.mean([e["loss"] for e in warm.losses[:5]]) < 0.7 * np.mean([e["loss"] for e in cold.losses[:5]])


def test_a_warm_start_from_nothing_is_refused(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=2)
    with pytest.raises(TrainingError, match="warm_start"):
        train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work", warm_start=tmp_path / "none")


def test_a_changed_model_file_is_not_loaded(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=2)
    reference = publish(campaign, train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work"))
    description = json.loads(campaign.storage.read_bytes("model/model.json"))
    campaign.storage.write_json("model/model.json", description | {"seed": 1})
    with pytest.raises(InferenceError, match="not the one"):
        load_predictor(campaign.storage, reference, campaign.config.inference, "cpu")


def test_the_process_is_left_as_it_was(trainer_name: str, tmp_path: Path) -> None:
    import torch

    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=2, threads=2)
    threads, torch_state, numpy_state = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state()[1].copy()
    environment = {k: v for k, v in os.environ.items() if k.startswith("nnUNet")}
    train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert {k: v for k, v in os.environ.items() if k.startswith("nnUNet")} == environment


def test_a_training_in_this_process_takes_the_threads_it_is_given(tmp_path: Path) -> None:
    import torch

    campaign = make_campaign(tmp_path, trainer="monai_unet", iterations=2, threads=2)
    inside: list[int] = []
    train(
        campaign, make_snapshot(campaign, BOXES), tmp_path / "work", lambda *_: inside.append(torch.get_num_threads())
    )
    assert inside == [2, 2]


def test_a_leaking_snapshot_is_refused(trainer_name: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer_name, iterations=2)
    snapshot = make_snapshot(campaign, BOXES, halo=(0, 8, 8))
    corner = snapshot.items[0].read_box.stop_zyx
    held = Box(zyx(n - 1 for n in corner), (2, 4, 4))
    holdout = HoldoutBox(volume_id="v0", box=held, part="test", stratum="dense")
    campaign.freeze_holdout(Holdout(boxes=(holdout,), guard_zyx=(1, 2, 2)))
    with pytest.raises(LeakError, match="holdout box"):
        train(campaign, snapshot, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("spacing", [(1.0, 0.1, 0.1), (0.1, 0.4, 0.1)])
def test_it_learns_whichever_axis_is_coarse(
    trainer_name: str, tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    window = [2, 32, 32] if spacing[0] == 1 else [16, 8, 16]
    campaign = make_campaign(
        tmp_path, trainer=trainer_name, spacings=(spacing,), iterations=60, window_zyx=window, checkpoint_every=60
    )
    shape = campaign.volumes.record("v0").shape_zyx
    boxes = partition(shape, [-(-n // 2) for n in shape])
    model = train(campaign, make_snapshot(campaign, boxes[:-1]), tmp_path / "work")
    found = mean_probability(campaign, model, "v0", boxes[-1]).argmax(axis=0)
    reach = Box(boxes[-1].offset_zyx, zyx(found.shape)).clip(shape)
    found = found[tuple(slice(0, n) for n in reach.shape_zyx)] == 1
    truth = np.asarray(open_truth(campaign.volumes, "v0")[reach.slices]) == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) >= 0.6


class Able:
    """A trainer that does not train."""

    name = "unable"
    settings = UNetSettings
    ignored: ClassVar[Mapping[str, str]] = {}

    def __init__(self, capabilities: TrainerCapabilities) -> None:
        self.capabilities = capabilities

    def train(self, request: TrainingRequest, progress: Any) -> TrainedModel:
        raise NotImplementedError


def test_what_a_trainer_cannot_do_is_refused_with_the_reason(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, n_classes=2, channels=2, gpus=2)
    labels = {0: np.full(BOXES[0].shape_zyx, 255, np.uint8)}
    snapshot = make_snapshot(campaign, BOXES, labels=labels)
    request = TrainingRequest(
        campaign.config, campaign.volumes, campaign.holdout(), snapshot, tmp_path / "work", SEED, warm_start=tmp_path
    )
    able = TrainerCapabilities(partial_labels=True, several_gpus=True)
    check_request(Able(able), request)
    for change, reason in (
        ({"warm_start": False}, "start from another model"),
        ({"several_classes": False}, "several classes"),
        ({"several_channels": False}, "several channels"),
        ({"several_gpus": False}, "several GPUs"),
        ({"partial_labels": False}, "partial labels"),
        ({"needs_instances": True}, "without numbered objects"),
    ):
        with pytest.raises(TrainingError, match=f"'unable' cannot .*{reason}"):
            check_request(Able(replace(able, **change)), request)


def test_who_needs_objects_is_given_them(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    bare = make_snapshot(campaign, BOXES)
    items = tuple(item.model_copy(update={"instances": "objects.npz"}) for item in bare.items)
    able = Able(TrainerCapabilities(partial_labels=True, needs_instances=True))
    check_request(
        able,
        TrainingRequest(
            campaign.config,
            campaign.volumes,
            campaign.holdout(),
            bare.model_copy(update={"items": items}),
            tmp_path,
            SEED,
        ),
    )


def another(model: type[Section], name: str) -> Any:
    """Return a value of a setting that is allowed and not its default."""
    default = model.model_fields[name].default
    for value in (True, 0.25, 2, [8, 16, 32], *get_args(model.model_fields[name].annotation)):
        with suppress(ValidationError):
            if getattr(model.model_validate({name: value}), name) != default:
                return value
    raise AssertionError(f"no other value of {name} is known")


IGNORED = [(name, path) for name in trainer_names() for path in get_trainer(name).ignored]


@pytest.mark.parametrize(("name", "path"), IGNORED)
def test_a_setting_that_a_trainer_would_not_heed_is_refused(tmp_path: Path, name: str, path: str) -> None:
    family, _, setting = path.rpartition(".")
    value = another(get_trainer(name).settings if family else TrainingConfig, setting)
    campaign = make_campaign(tmp_path, trainer=name, **({family: {setting: value}} if family else {setting: value}))
    with pytest.raises(TrainingError, match=rf"training\.{path}: the trainer '{name}' cannot .*leave it at"):
        train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", trainer_names())
def test_an_unknown_setting_of_its_family_is_refused(tmp_path: Path, name: str) -> None:
    family = get_trainer(name).settings.family
    campaign = make_campaign(tmp_path, trainer=name, **{family: {"chanels": 3}})
    with pytest.raises(ConfigError, match=rf"unknown key 'training\.{family}\.chanels'"):
        train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", trainer_names())
def test_a_campaign_that_a_triage_gave_its_trainer_asks_for_nothing_by_its_defaults(tmp_path: Path, name: str) -> None:
    made = make_campaign(tmp_path, trainer="auto", annotates_objects=find_entry(name).needs_instances)
    completed = complete_families(made.config, "")
    assert completed.training.families["unet"]["betti_weight"] == 0.0, "the file holds the defaults"
    made.storage.write_bytes("campaign.toml", dump_config(completed).encode())
    campaign = Campaign.open(made.url)
    assert campaign.config == completed
    snapshot = make_snapshot(campaign, BOXES)
    check_request(
        get_trainer(name),
        TrainingRequest(campaign.config, campaign.volumes, campaign.holdout(), snapshot, tmp_path / "work", SEED),
    )


def test_several_gpus_are_refused_where_there_are_none(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="nnunet", gpus=4)
    with pytest.raises(TrainingError, match="4 GPUs are asked for, and the training runs on 'cpu'"):
        train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("present", "batch_size", "reason"),
    [(2, 4, "there are 2"), (4, 2, "a batch of 2 windows"), (4, 4, ""), (4, None, "")],
)
def test_every_gpu_is_there_and_gets_a_window(present: int, batch_size: int | None, reason: str) -> None:
    refused = pytest.raises(TrainingError, match=reason) if reason else nullcontext()
    with refused:
        check_gpus(4, "cuda", present, batch_size)


def test_one_gpu_is_what_the_unet_takes(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="monai_unet", gpus=2)
    with pytest.raises(TrainingError, match="several GPUs"):
        train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work")


def test_an_unknown_trainer_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="monai_unet"):
        get_trainer("nnunett")


def test_the_registry_imports_neither_torch_nor_monai() -> None:
    code = "import sys, rescueseg.models; sys.exit(bool({'torch', 'monai'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
