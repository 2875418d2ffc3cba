"""Models that StarDist trained: the network in torch says what it says in TensorFlow, and nothing that does not fit is read.

What StarDist says was made by ``python tests/data/make_stardist_models.py FOLDER``, where TensorFlow is installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("stardist", reason="the extra 'stardist' is not installed")

from rescueseg.errors import InferenceError
from rescueseg.models.stardist import published
from rescueseg.models.stardist.published import PublishedStarDist, load_network
from rescueseg.models.stardist.published_config import WEIGHTS_FILE, rays_of, read_config
from rescueseg.records import Normalisation
from rescueseg.weak_labels.intensities import PercentileScaling
from rescueseg.weak_labels.stardist import StarDistLabeller

DATA = Path(__file__).parents[2] / "data"
BALLS, RANDOM = DATA / "stardist_balls", DATA / "stardist_random"


def load(folder: Path | str) -> PublishedStarDist:
    """Read a folder whole, as the weak labeller does."""
    config, _ = read_config(str(folder), InferenceError)
    rays_of(config, str(folder), InferenceError)
    return load_network(str(folder), config)


@pytest.mark.parametrize("folder", [BALLS, RANDOM])
def test_the_network_says_what_it_says_in_tensorflow(folder: Path) -> None:
    with np.load(folder / "expected.npz") as expected:
        probability, lengths = load(folder).predict(expected["image"][np.newaxis], torch.device("cpu"))
        shape = expected["probability"].shape  # StarDist cuts off what it added
        inside = tuple(slice(n) for n in shape)
        np.testing.assert_allclose(probability[inside], expected["probability"], atol=1e-4)
        np.testing.assert_allclose(lengths[inside], expected["lengths"], atol=1e-4, rtol=1e-4)
        assert np.ptp(expected["probability"]) > 0.2


def test_the_objects_are_those_of_stardist() -> None:
    config, thresholds = read_config(str(BALLS), InferenceError)
    rays = rays_of(config, str(BALLS), InferenceError)
    as_it_is = Normalisation(low=-1e6, high=1e6, mean=0, std=1, linear=0)
    scaling = PercentileScaling(as_it_is, (0.0,), (1.0,))
    labeller = StarDistLabeller(load(BALLS), rays, thresholds, scaling, "cpu")
    with np.load(BALLS / "expected.npz") as expected:
        weak, numbers = labeller.label_objects(expected["image"][np.newaxis], (0.25, 0.1, 0.1))
        assert len(np.unique(numbers)) == 4
        np.testing.assert_array_equal(numbers > 0, expected["found"] > 0)
        pairs = np.unique(np.stack([numbers.ravel(), expected["found"].ravel()]), axis=1)
        assert pairs.shape == (2, 4), "each object is one of theirs"
        np.testing.assert_array_equal(weak.labels, numbers > 0)


@pytest.mark.parametrize("folder", [BALLS, RANDOM])
def test_tiles_say_what_the_whole_image_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load(folder)
    image = np.random.default_rng(0).normal(size=(1, 40, 150, 90)).astype(np.float32)
    whole = network.predict(image, torch.device("cpu"))
    monkeypatch.setattr(published, "_WHOLE_VOXELS", 0)
    monkeypatch.setattr(published, "_TILE", (16, 48, 32))
    for mine, theirs in zip(network.predict(image, torch.device("cpu")), whole, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", [BALLS, RANDOM])
def test_nothing_beyond_the_reach_matters(folder: Path) -> None:
    config = load(folder).config.model_copy(update={"unet_activation": "linear", "unet_last_activation": "linear"})
    network = PublishedStarDist(config)  # in which nothing is cut off, and nothing cancels
    for weights in network.parameters():
        weights.data.fill_(0.01)
    reach, multiple = config.reach_zyx, config.multiple_zyx
    shape = [2 * (-(-r // m) + 1) * m for r, m in zip(reach, multiple, strict=True)]
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, *shape))).float()
    image.requires_grad_()
    middle = [n // g // 2 for n, g in zip(shape, config.grid, strict=True)]
    network(image)[1][(0, slice(None), *middle)].sum().backward()
    assert image.grad is not None
    touched = torch.nonzero(image.grad[0, 0]).numpy()
    centre = np.array(middle) * config.grid
    assert len(touched) > 1000
    assert (np.abs(touched - centre).max(axis=0) <= reach).all()


def changed(folder: Path, **fields: Any) -> str:
    shutil.copytree(BALLS, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return str(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet"}, "backbone is 'resnet', and only 'unet'"),
        ({"n_dim": 2}, "2 dimensions"),
        ({"unet_batch_norm": True}, "batch normalisation"),
        ({"grid": [1, 3, 3]}, "powers of two"),
        ({"rays_json": {"name": "__import__('os').abort", "kwargs": {}}}, "its rays are '__import__"),
        ({"rays_json": {"name": "Rays_GoldenSpiral", "kwargs": {"n": "24"}}}, "no numbers"),
        ({"rays_json": {"name": "Rays_GoldenSpiral", "kwargs": {"m": 24}}}, "rays cannot be made"),
        ({"rays_json": {"name": "Rays_GoldenSpiral", "kwargs": {"n": 12}}}, "24 rays by its configuration, and 12"),
        ({"unet_activation": "swish"}, "'unet_activation'"),
        ({"unet_n_filter_base": 10**9}, "'unet_n_filter_base'"),
        ({"n_channel_in": 2}, "layer 'before_0' has .*kernel.*, not"),
        ({"unet_n_depth": 2}, "layer 'down_level_1_no_0' is missing"),
        ({"net_conv_after_unet": 0}, "a layer 'features' more"),
        ({"unet_prefix": "a."}, "is missing"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    folder = changed(tmp_path / "model", **fields)
    with pytest.raises(InferenceError, match=message) as raised:
        load(folder)
    assert raised.value.todo


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"no", "holds no JSON"),
        ("config.json", b"{}", "'n_dim'"),
        ("config.json", b"[" * 100_000, "holds no JSON"),
        ("config.json", b" " * 2_000_000, "far too large"),
        ("config.json", None, "cannot be read"),
        ("thresholds.json", b'{"prob": 3}', "'prob'"),
        (WEIGHTS_FILE, b"no", "cannot be read"),
        (WEIGHTS_FILE, None, "cannot be read"),
    ],
)
def test_a_folder_that_is_damaged_is_refused(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    folder = Path(changed(tmp_path / "model"))
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(InferenceError, match=message):
        load(folder)


def test_a_missing_folder_and_an_empty_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="no such folder"):
        read_config(str(BALLS / WEIGHTS_FILE), InferenceError)
    folder = changed(tmp_path / "model")
    with h5py.File(tmp_path / "model" / WEIGHTS_FILE, "w") as file:
        file["layers/conv3d/vars/0"] = np.zeros(3)
    with pytest.raises(InferenceError, match="names no layers"):
        load(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path / "model")
    with h5py.File(tmp_path / "model" / WEIGHTS_FILE, "r+") as file:
        file["dist/dist/bias"][3] = np.nan
    with pytest.raises(InferenceError, match="'dist' are not finite"):
        load(folder)


HUGE = {"unet_n_filter_base": 512, "unet_expansion": 4, "unet_n_depth": 3}
"""Its widest layers have tens of gigabytes of weights."""


def test_a_configuration_allocates_nothing_that_the_file_does_not_hold(tmp_path: Path) -> None:
    """The address space of a process of its own is bounded, by 3 GB more than it has when all is imported."""
    folder = changed(tmp_path / "model", **HUGE)
    code = (
        "import resource, sys\n"
        "from rescueseg.errors import InferenceError\n"
        "from rescueseg.models.stardist.published import load_network\n"
        "from rescueseg.models.stardist.published_config import read_config\n"
        "config, _ = read_config(sys.argv[1], InferenceError)\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 3 * 2**30,) * 2)\n"
        "try:\n    load_network(sys.argv[1], config)\n"
        "except InferenceError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "the weights do not fit the configuration" in done.stdout


def test_numbers_that_the_file_claims_and_does_not_hold_are_not_read(tmp_path: Path) -> None:
    """HDF5 stores no dataset that was never written."""
    folder = changed(tmp_path / "model", net_conv_after_unet=0, unet_n_filter_base=512, unet_expansion=2)
    config, _ = read_config(folder, InferenceError)
    with torch.device("meta"):
        network = PublishedStarDist(config.model_copy(update={"unet_n_depth": 3}))
    with h5py.File(Path(folder, WEIGHTS_FILE), "w") as file:
        names = []
        for name, conv in network.convs.items():
            assert isinstance(conv, torch.nn.Conv3d)
            layer = name.replace("before", "conv3d")
            names.append(layer)
            group = file.create_group(layer)
            shapes = {"kernel": (*conv.kernel_size, conv.in_channels, conv.out_channels), "bias": (conv.out_channels,)}
            for role, shape in shapes.items():
                group.create_dataset(role, shape, np.float32)
            group.attrs["weight_names"] = list(shapes)
        file.attrs["layer_names"] = names
    assert Path(folder, WEIGHTS_FILE).stat().st_size < 100_000
    with pytest.raises(InferenceError, match=r"its network has .* GB of weights"):
        load_network(folder, network.config)


@pytest.mark.parametrize("case", ["link", "soft", "group", "raw", "virtual"])
def test_a_file_that_leads_to_another_is_refused(tmp_path: Path, case: str) -> None:
    """What lies there could change, and the digest of the file would stay."""
    folder = Path(changed(tmp_path / "model"))
    shutil.copy(folder / WEIGHTS_FILE, tmp_path / "other.h5")
    with h5py.File(folder / WEIGHTS_FILE, "r+") as file:
        bias = file["dist/dist/bias"][...]
        place = "dist" if case == "group" else "dist/dist/bias"
        attributes = dict(file["dist"].attrs)
        del file[place]
        if case == "raw":
            bias.tofile(tmp_path / "raw")
            file.create_dataset(place, bias.shape, bias.dtype, external=[(str(tmp_path / "raw"), 0, bias.nbytes)])
        elif case == "virtual":
            layout = h5py.VirtualLayout(bias.shape, bias.dtype)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), place, bias.shape)
            file.create_virtual_dataset(place, layout)
        elif case == "soft":
            file["there"] = h5py.ExternalLink(str(tmp_path / "other.h5"), place)
            file[place] = h5py.SoftLink("/there")
        else:
            file[place] = h5py.ExternalLink(str(tmp_path / "other.h5"), place)
        assert attributes.keys() == file["dist"].attrs.keys()
        np.testing.assert_array_equal(file["dist/dist/bias"][...], bias)
    with pytest.raises(InferenceError, match="another file"):
        load(folder)


def test_thresholds_are_the_models_or_those_that_stardist_begins_with(tmp_path: Path) -> None:
    assert read_config(str(BALLS), InferenceError)[1].nms == 0.3
    assert read_config(str(RANDOM), InferenceError)[1].model_dump() == {"prob": 0.5, "nms": 0.4}
