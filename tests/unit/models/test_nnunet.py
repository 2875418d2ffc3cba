"""nnU-Net as a trainer: its dataset, folds and plans, and one real training; the contract suite has the rest."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.errors import TrainingError
from rescueseg.geometry import Box
from rescueseg.models.nnunet.dataset import write_dataset
from rescueseg.models.nnunet.folds import Case, choose_folds, group_cases
from rescueseg.models.nnunet.plan import NnUNetNetwork, NnUNetPlan
from rescueseg.shared_places import IDENTITY, SharedPlaces
from rescueseg.volumes import open_truth
from tests.contracts.test_trainer import dice, train
from tests.training_rig import BOXES, SPACING, make_campaign, make_snapshot


def case(name: str, volume_id: str, offset: tuple[int, int, int], voxels: int = 1) -> Case:
    return Case(name, volume_id, Box(offset, (4, 10, 10)), voxels)


def test_a_case_is_patch_and_context_with_the_context_ignored(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="nnunet", n_classes=2, channels=2)
    snapshot = make_snapshot(campaign, BOXES, halo=(0, 6, 6))
    dataset = write_dataset(campaign.volumes, snapshot, SPACING, tmp_path / "raw")
    assert [c.box for c in dataset.cases] == [item.read_box for item in snapshot.items]
    assert dataset.unlabelled_classes == ()
    description = json.loads((tmp_path / "raw/dataset.json").read_text())
    assert description["labels"] == {"background": 0, "class_1": 1, "class_2": 2, "ignore": 3}
    assert description["channel_names"] == {"0": "noNorm", "1": "noNorm"}
    item = snapshot.items[0]
    labels = tifffile.imread(tmp_path / "raw/labelsTr/case_0000.tif")
    inside = item.box.relative_to(item.read_box).slices
    assert np.array_equal(labels[inside], open_truth(campaign.volumes, "v0")[item.box.slices])
    outside = np.ones(labels.shape, bool)
    outside[inside] = False
    assert (labels[outside] == 3).all()
    for channel in range(2):
        image = tifffile.imread(tmp_path / f"raw/imagesTr/case_0000_{channel:04d}.tif")
        assert image.shape == labels.shape
        assert (image != 0).all(), "nnU-Net would crop what is exactly zero"
        assert abs(image.mean()) < 2, "on the domain's intensity scale"
    assert json.loads((tmp_path / "raw/imagesTr/case_0000.json").read_text())["spacing"] == list(SPACING)


def test_folds_are_volumes_where_there_are_several() -> None:
    cases = [case(f"c{i}", f"v{i % 3}", (0, 20 * i, 0)) for i in range(6)]
    folds = choose_folds(cases, 3, SharedPlaces({}))
    assert sorted(sorted(fold["val"]) for fold in folds) == [["c0", "c3"], ["c1", "c4"], ["c2", "c5"]]


def test_volumes_that_show_the_same_are_one_to_the_folds() -> None:
    cases = [
        case("a", "v", (0, 0, 0)),
        case("b", "copy", (0, 0, 0)),
        case("c", "v", (0, 40, 0)),
        case("d", "w", (0, 0, 0)),
    ]
    shapes = dict.fromkeys(("v", "copy", "w"), (8, 100, 100))
    places = SharedPlaces(shapes, [("v", "copy", IDENTITY)])
    assert sorted(sorted(c.name for c in group) for group in group_cases(cases, places)) == [["a", "b", "c"], ["d"]]
    assert sorted(sorted(c.name for c in group) for group in group_cases(cases[:3], places)) == [["a", "b"], ["c"]]


def test_in_one_volume_patches_whose_contexts_touch_stay_together() -> None:
    cases = [
        case("a", "v", (0, 0, 0)),
        case("b", "v", (0, 9, 0)),
        case("c", "v", (0, 18, 0)),
        case("d", "v", (0, 40, 0)),
    ]
    assert sorted(sorted(c.name for c in group) for group in group_cases(cases, SharedPlaces({}))) == [
        ["a", "b", "c"],
        ["d"],
    ]
    assert choose_folds(cases, 2, SharedPlaces({})) == [], "none below three groups"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 50)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_no_fold_reads_what_it_is_judged_by(places: list[tuple[int, int, int]], count: int) -> None:
    cases = [case(f"c{i:02d}", "v", (0, y, x), n) for i, (y, x, n) in enumerate(places)]
    boxes = {c.name: c.box for c in cases}
    folds = choose_folds(cases, count, SharedPlaces({}))
    assert len(folds) in (0, count)
    for fold in folds:
        assert fold["val"]
        assert not any(boxes[t].intersects(boxes[v]) for t in fold["train"] for v in fold["val"])
    if folds:
        assert sorted(name for fold in folds for name in fold["val"]) == sorted(boxes)


def network() -> NnUNetNetwork:
    return NnUNetNetwork(
        architecture="plain",
        in_channels=1,
        n_classes=2,
        features=(32, 64, 128, 256),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2)),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        encoder_blocks=(2, 2, 2, 2),
        decoder_blocks=(2, 2, 2),
        dropout=0.1,
    )


def test_a_network_is_read_from_plans_as_it_is_written_to_them() -> None:
    whole = network()
    plans = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": whole.arguments(),
    }
    assert NnUNetNetwork.read(plans, 1, 2, dropout=0.1) == whole
    assert whole.total_stride == (2, 8, 8)


def test_the_network_is_cut_to_the_features_asked_for() -> None:
    cut = network().cut((8, 16))
    assert (cut.features, cut.strides, cut.decoder_blocks) == ((8, 16), ((1, 1, 1), (1, 2, 2)), (2,))
    assert network().cut((8, 16, 32, 64, 128)).features == (8, 16, 32, 64), "at most as deep as it is"
    assert network().cut(None) == network()
    coarse = network().cut((8, 16, 32), strided=True)
    assert (coarse.features, coarse.strides) == ((8, 16, 32), network().strides[1:4]), "without its finest level"
    assert network().cut((8, 16), strided=True) == cut, "of two levels none can be spared"


def test_axes_are_turned_back() -> None:
    plan = NnUNetPlan(
        network=network(),
        planner="default",
        configuration="3d_fullres",
        spacing_um_zyx=SPACING,
        axes=(2, 0, 1),
        window_zyx=(1, 2, 3),
        inference_window_zyx=(1, 2, 3),
        batch_size=2,
        iterations=1,
    )
    ordered = [plan.window_zyx[axis] for axis in plan.axes]
    assert ordered == [3, 1, 2]
    assert plan.to_zyx(ordered) == plan.window_zyx
    assert plan.total_stride_zyx == (8, 8, 2)


def test_it_learns_in_a_process_of_its_own_and_leaves_this_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", "/nowhere")
    campaign = make_campaign(tmp_path, trainer="nnunet", iterations=80, checkpoint_every=40)
    metrics: list[dict[str, float]] = []
    snapshot = make_snapshot(campaign, BOXES)
    before = dict(os.environ)
    model = train(campaign, snapshot, tmp_path / "work", lambda _, values: metrics.append(dict(values)))
    assert dict(os.environ) == before
    assert dice(campaign, model) >= 0.8
    assert list(model.losses) == metrics
    assert [int(e["step"]) for e in metrics if "pseudo_dice" in e] == [40, 80]
    assert not (tmp_path / "work/nnunet").exists(), "what nnU-Net pickles is not kept"
    again = train(campaign, snapshot, tmp_path / "work", lambda step, _: pytest.fail(f"step {step} taken again"))
    assert again == model


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_as_that_and_the_rerun_finishes(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="nnunet", iterations=3)
    snapshot = make_snapshot(campaign, BOXES)

    def kill_it(step: int, metrics: object) -> None:
        for child in psutil.Process().children():
            child.send_signal(signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"nnU-Net's process was killed by SIGKILL"):
        train(campaign, snapshot, tmp_path / "work", kill_it)
    assert train(campaign, snapshot, tmp_path / "work").iterations == 3
