"""Weights that Cellpose 3 saved: what is read, that the network says what it says in Cellpose, and what is refused unrun."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cellpose", reason="the extra 'cellpose' is not installed")

from cellpose import core
from cellpose.models import CellposeModel

from rescueseg.errors import InferenceError, TrainingError
from rescueseg.models.cellpose import weights_file
from rescueseg.models.cellpose.published import load_published, published_plan, published_predictor
from rescueseg.models.cellpose.weights_file import read_weights
from rescueseg.models.predictor import FLOW, PROBABILITY
from rescueseg.storage import file_digest
from tests.cellpose_weights import save_climbing, save_random

PUBLISHED = (32, 64, 128, 256)


def test_a_file_says_how_the_network_is_built_and_how_wide_objects_are(tmp_path: Path) -> None:
    path = save_random(tmp_path / "cyto3")
    weights = read_weights(path)
    assert (weights.in_channels, weights.channels, weights.pixels) == (2, (6, 6), 30)
    assert weights.digest == file_digest(path)
    assert read_weights(save_climbing(tmp_path / "own", 12.0)).pixels == 12
    state = torch.load(path, weights_only=True)
    without = OrderedDict((name, value) for name, value in state.items() if not name.startswith("diam"))
    for name, pixels in (("cyto", 30), ("nucleitorch_0", 17)):
        torch.save(without, tmp_path / name, _use_new_zipfile_serialization=False)  # as years ago
        assert read_weights(str(tmp_path / name)).pixels == pixels


@pytest.mark.parametrize("channels", [(8, 16, 32), PUBLISHED])
def test_the_network_says_what_cellpose_says(tmp_path: Path, channels: tuple[int, ...]) -> None:
    """Compared with Cellpose's own evaluation of a volume, which adds a margin of eight zeros to planes of 16 pixels."""
    path = save_random(tmp_path / "weights", channels)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 16, 32, 16)).astype(np.float32)
    if channels == PUBLISHED:
        theirs = CellposeModel(gpu=False, pretrained_model=path, device=torch.device("cpu"))
        _, (_, flows, logits, _), _ = theirs.eval(
            np.moveaxis(image, 0, -1), channels=None, channel_axis=3, z_axis=0, normalize=False, rescale=1.0, do_3D=True,
            compute_masks=False,
        )  # fmt: skip
        flows, logits = np.asarray(flows) / 2, np.asarray(logits) / 3
    else:
        from cellpose.resnet_torch import CPnet

        network = CPnet([2, *channels], 3, 3)
        network.load_state_dict(torch.load(path, weights_only=True))
        said, _ = core.run_3D(network, np.moveaxis(image, 0, -1))
        logits = said[:, 2].mean(axis=0)
        flows = np.stack([(said[1][0] + said[2][0]) / 2, (said[0][0] + said[2][1]) / 2, (said[0][1] + said[1][1]) / 2])
    weights = read_weights(path)
    padded = np.pad(image, ((0, 0), *[(8, 8)] * 3))
    plan = published_plan(weights, 30.0, (1.0, 1.0, 1.0), padded.shape[1:])
    assert (plan.spacing_um_zyx, plan.inference_window_zyx) == ((1.0, 1.0, 1.0), padded.shape[1:])
    predictor = published_predictor(load_published(weights), plan, "cpu")
    [(_, member)] = predictor.members(padded[np.newaxis], [0])
    inner = (0, slice(None), *[slice(8, -8)] * 3)
    np.testing.assert_allclose(member[FLOW][inner], flows / 5, atol=1e-4, rtol=1e-4)
    probability = np.asarray(member[PROBABILITY])[inner][1]
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-5)
    assert np.ptp(probability) > 0.01, "the weights tell voxels apart"


def test_planes_are_shown_at_the_scale_that_the_weights_say(tmp_path: Path) -> None:
    weights = read_weights(save_climbing(tmp_path / "own", 12.0))
    cube = published_plan(weights, 6.0, (0.5, 0.25, 0.25), (30, 400, 400))
    assert (cube.spacing_um_zyx, cube.axes, cube.inference_window_zyx) == ((0.5,) * 3, (0, 1, 2), (30, 112, 112))
    stack = published_plan(weights, 6.0, (2.0, 0.25, 0.25), (7, 400, 400))
    assert (stack.spacing_um_zyx, stack.axes, stack.inference_window_zyx) == ((2.0, 0.5, 0.5), (0,), (7, 200, 200))


class Bomb:
    """What a pickle may ask for: a call of any function."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def save_outputs(path: Path, state: dict[str, Any]) -> None:
    torch.save(state | {"output.2.weight": torch.zeros(2, 6, 1, 1), "output.2.bias": torch.zeros(2)}, path)


OUTPUT, FIRST = "output.2.weight", "downsample.down.res_down_0.conv.conv_0.2.weight"
COUNTER = "downsample.down.res_down_0.conv.conv_0.0.num_batches_tracked"
Save = Callable[[Path, dict[str, Any]], None]
REFUSED: dict[str, tuple[Save, str]] = {
    "pickle": (lambda p, s: p.write_bytes(pickle.dumps(Bomb(p.parent / "boom"))), "something else than tensors"),
    "torch pickle": (lambda p, s: torch.save({**s, "x": Bomb(p.parent / "boom")}, p), "something else than tensors"),
    "text": (lambda p, s: p.write_bytes(b"hello") and None, "cannot be read as weights"),
    "empty": (lambda p, s: p.write_bytes(b"") and None, "cannot be read as weights"),
    "list": (lambda p, s: torch.save([1, 2], p), "holds no table of weights"),
    "numbers": (lambda p, s: torch.save({"epoch": 3}, p), "holds no table of weights"),
    "other": (lambda p, s: torch.save({"a": torch.zeros(2)}, p), "not the weights of Cellpose 3"),
    "sam": (lambda p, s: torch.save({"W2": torch.zeros(2), "encoder.pos_embed": torch.zeros(2)}, p), "cellpose-sam"),
    "more": (lambda p, s: torch.save({**s, "more.bias": torch.zeros(2)}, p), "'more.bias' is \\(2,\\), not part of it"),
    "less": (lambda p, s: torch.save({k: v for k, v in s.items() if "full" not in k}, p), "is missing"),
    "outputs": (save_outputs, "has 2 outputs"),
    "expanded": (lambda p, s: torch.save({**s, OUTPUT: torch.zeros(1).expand(3, 10**11 // 3, 1, 1)}, p), "have 26"),
    "expanded bias": (lambda p, s: torch.save({**s, "more": torch.zeros(1).expand(2 * 10**8)}, p), "have 26"),
    "sparse": (lambda p, s: torch.save({**s, OUTPUT: torch.zeros(3, 6, 1, 1).to_sparse()}, p), "is no plain tensor"),
    "meta": (lambda p, s: torch.save({**s, OUTPUT: torch.zeros(3, 6, 1, 1, device="meta")}, p), "is no plain tensor"),
    "scalar": (lambda p, s: torch.save({**s, OUTPUT: torch.zeros(())}, p), "not the weights of Cellpose 3"),
    "integers": (lambda p, s: torch.save({**s, OUTPUT: torch.zeros(3, 6, 1, 1).long()}, p), "6, 1, 1\\) of int64, not"),
    "counter": (lambda p, s: torch.save({**s, COUNTER: torch.zeros(())}, p), "is \\(\\), not \\(\\) of int64"),
    "no diameter": (lambda p, s: torch.save({**s, "diam_mean": torch.zeros(0)}, p), "objects are nan pixels wide"),
    "wide": (lambda p, s: torch.save({**s, "diam_mean": torch.full((1,), 1e6)}, p), "objects are 1e\\+06 pixels wide"),
    "no channels": (lambda p, s: torch.save({**s, FIRST: torch.zeros(0, 2, 3, 3)}, p), "not the weights of Cellpose 3"),
    "nan": (lambda p, s: torch.save({**s, "output.2.bias": torch.full((3,), torch.nan)}, p), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_is_no_weights_file_is_refused_and_nothing_runs(tmp_path: Path, case: str) -> None:
    save, message = REFUSED[case]
    state = torch.load(save_random(tmp_path / "good"), weights_only=True)
    save(tmp_path / "bad", state)
    with pytest.raises(InferenceError, match=message) as raised:
        read_weights(str(tmp_path / "bad"))
    assert raised.value.todo
    assert raised.value.where == str(tmp_path / "bad")
    assert not (tmp_path / "boom").exists()


def test_a_cut_and_a_missing_file_are_told(tmp_path: Path) -> None:
    path = Path(save_random(tmp_path / "good"))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InferenceError, match="cannot be read as weights"):
        read_weights(str(path))
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(TrainingError, match="no such file"):
            read_weights(str(missing), TrainingError)


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_random(tmp_path / "good")
    monkeypatch.setattr(weights_file, "MOST_BYTES", 10_000)
    with pytest.raises(InferenceError, match="weights of Cellpose 3 have 26"):
        read_weights(path)
    torch.save(torch.load(path, weights_only=True), tmp_path / "old", _use_new_zipfile_serialization=False)
    with pytest.raises(InferenceError, match="weights of Cellpose 3 have 26"):
        read_weights(str(tmp_path / "old"))
    with zipfile.ZipFile(path) as packed, zipfile.ZipFile(tmp_path / "small", "w", zipfile.ZIP_DEFLATED) as smaller:
        for member in packed.infolist():
            smaller.writestr(member.filename, packed.read(member))
        smaller.writestr("weights/data/999", bytes(2_000_000))
    assert (tmp_path / "small").stat().st_size < 500_000
    monkeypatch.setattr(weights_file, "MOST_BYTES", 1_000_000)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the size is looked at first"))
    with pytest.raises(InferenceError, match="the file holds 2 MB"):
        read_weights(str(tmp_path / "small"))


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    """Bytes anywhere are changed, in the zip and in the pickle of years ago."""
    state = torch.load(save_random(tmp_path / "good"), weights_only=True)
    rng = np.random.default_rng(0)
    refused = 0
    for is_zip in (True, False):
        torch.save(state, tmp_path / "good", _use_new_zipfile_serialization=is_zip)
        content = (tmp_path / "good").read_bytes()
        for _ in range(25):
            damaged = bytearray(content)
            for place in rng.integers(0, min(len(damaged), 6000), 3):
                damaged[place] = rng.integers(256)
            (tmp_path / "bad").write_bytes(damaged)
            try:
                read_weights(str(tmp_path / "bad"))
            except InferenceError:
                refused += 1
    assert refused > 10
