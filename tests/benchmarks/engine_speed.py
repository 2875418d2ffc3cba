"""The block engine's plain pass against what people would use instead: the same weights, in the same precision, on one thread.

python tests/benchmarks/engine_speed.py DATA OUT --repeats 3
python tests/benchmarks/engine_speed.py DATA OUT --trainer nnunet bbbc050_mosaic_train
python tests/benchmarks/engine_speed.py DATA OUT --workers bbbc050_mosaic_train

For each volume a model is trained once (`--seconds` of processor time; OUT keeps it) as `tests/benchmarks/families.py` does.
Then, alternating: the engine with one symmetry and without dropout, whole maps on the disk; MONAI's
`sliding_window_inference` at the same overlap in a few batches, with the engine's window and with that of the training, as is
usual there; one forward of the whole volume, as far as memory goes; and for `nnunet` nnU-Net's own `nnUNetPredictor` at its
defaults, without mirroring, with both windows. The peers leave their result in memory. Seconds are those of the clock,
setting up not included: the engine's is told on a line of its own. Dice is that of the mask on the test boxes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers.utils import sliding_window_inference

sys.path.insert(0, str(Path(__file__).parent))
import families

from rescueseg.campaign import Campaign
from rescueseg.config import ClusterConfig, InferenceConfig
from rescueseg.geometry import ZYX, Box, round_up, zyx
from rescueseg.inference.engine import InferenceJob, infer, make_plan
from rescueseg.inference.maps import VolumeMaps
from rescueseg.models.members import NetworksPredictor
from rescueseg.models.predictor import Predictor
from rescueseg.models.registry import load_predictor
from rescueseg.models.resample import resample
from rescueseg.models.split_network import SplitNetwork
from rescueseg.records import ModelReference
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.storage import Storage
from rescueseg.volumes.normalise import normalise
from rescueseg.volumes.opening import open_image, open_truth

DATASETS = ("bbbc050_mosaic_train", "cdeep3m_mito_train", "vesselnn_poon2015_BBB_noLeakage")
BATCHES = (1, 2, 4)
Mask = npt.NDArray[np.bool_]


def model_of(campaign: Campaign, trainer: str, seconds: float) -> ModelReference:
    """Return the model of a family, trained once."""
    relative = f"models/{trainer}"
    note = f"{relative}/reference.json"
    if campaign.storage.exists(note):
        return ModelReference.model_validate(campaign.storage.read_json(note))
    work = Path(campaign.storage.path(f"runs/{trainer}"))
    trained, spent = families.train_for(campaign, trainer, seconds, work)
    print(f"trained: {spent}", flush=True)
    shutil.copytree(campaign.storage.path(trained.path), campaign.storage.path(f"{relative}/model"), dirs_exist_ok=True)
    model = trained.model_copy(update={"path": f"{relative}/model"})
    campaign.storage.write_json(note, model.to_json())
    shutil.rmtree(work, ignore_errors=True)
    return model


class WithoutDropout(torch.nn.Module):
    """A network as one function of an image, as nnU-Net's predictor calls it."""

    def __init__(self, network: SplitNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return resample(self.network.head(self.network.features(image), None), image.shape[2:])


def load_without_dropout(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Predictor:
    """Load a predictor whose pass drops nothing, as that of the peers."""
    predictor = load_predictor(storage, model, config, device)
    assert isinstance(predictor, NetworksPredictor)
    predictor._plan, predictor._samples = predictor._plan.model_copy(update={"dropout": 0.0}), 1
    return predictor


class Peers:
    """What the peers need: the network with its precision, and the volume as it sees it."""

    def __init__(self, campaign: Campaign, job: InferenceJob) -> None:
        predictor = load_predictor(campaign.storage, job.model, job.inference, "cpu")
        assert isinstance(predictor, NetworksPredictor)
        volume = job.volume
        self.window = predictor.window_zyx(volume.spacing_um_zyx)
        if self.window != predictor._window:
            raise SystemExit(f"the network's window {predictor._window} is not that of the volume, {self.window}")
        self.training_window = zyx(campaign.storage.read_json(f"{job.model.path}/model.json")["plan"]["window_zyx"])
        self.precision = predictor._precision().dtype
        self.network = predictor._networks[0]
        self.axes = [2 + axis for axis in predictor._axes]
        self.overlap, self.classes = job.inference.overlap, len(job.classes) + 1
        image = np.asarray(open_image(campaign.volumes, job.volume_id)[...])
        self.image = torch.from_numpy(normalise(image, volume.normalisation))[None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class probabilities of images (n, c, z, y, x), as the model computes them."""
        with torch.autocast("cpu", self.precision or torch.bfloat16, enabled=self.precision is not None):
            logits = self.network.head(self.network.features(images.permute(0, 1, *self.axes).contiguous()), None)
        back = [2 + self.axes.index(axis) for axis in (2, 3, 4)]
        logits = resample(logits.permute(0, 1, *back)[:, : self.classes].float(), images.shape[2:])
        return torch.softmax(logits, dim=1)

    def monai(self, window: ZYX, batch: int) -> Mask:
        """Return the mask of MONAI's sliding window inference."""
        with torch.inference_mode():
            probabilities = sliding_window_inference(
                self.image,
                window,
                batch,
                self.forward,
                overlap=self.overlap,
                mode="gaussian",
                padding_mode="reflect",
            )
        return np.asarray(probabilities[0].argmax(dim=0).numpy() > 0)

    def whole(self) -> Mask:
        """Return the mask of a single forward of the whole volume, padded to what the network's strides need."""
        shape = self.image.shape[2:]
        padded = round_up(shape, [32 if n > 32 else 16 for n in shape])
        pads = [p for n, m in reversed(list(zip(shape, padded, strict=True))) for p in (0, m - n)]
        with torch.inference_mode():
            probabilities = self.forward(torch.nn.functional.pad(self.image, pads, mode="reflect"))
        z, y, x = shape
        return np.asarray(probabilities[0, :, :z, :y, :x].argmax(dim=0).numpy() > 0)

    def nnunet(self, window: ZYX) -> Mask:
        """Return the mask of nnU-Net's predictor, which computes in float32 on a CPU."""
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(
            tile_step_size=0.5, use_gaussian=True, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.network = WithoutDropout(self.network)
        predictor.configuration_manager = SimpleNamespace(patch_size=[window[a - 2] for a in self.axes])
        predictor.label_manager = SimpleNamespace(num_segmentation_heads=self.classes)
        logits = predictor.predict_sliding_window_return_logits(self.image[0].permute(0, *(a - 1 for a in self.axes)))
        back = [1 + self.axes.index(axis) for axis in (2, 3, 4)]
        return np.asarray(logits.permute(0, *back).argmax(dim=0).numpy() > 0)


def engine(job: InferenceJob) -> Mask:
    """Return the mask of the engine's maps, which it writes and reads."""
    shutil.rmtree(job.maps_url, ignore_errors=True)
    Path(job.maps_url).mkdir(parents=True)
    reference = infer(job)
    maps = VolumeMaps(job.maps.generation, job.volume_id)
    assert maps.reference() == reference
    return np.asarray(np.asarray(maps.open("probability")[:]).argmax(axis=0) > 0)


def dice(mask: Mask, truth: npt.NDArray[Any], boxes: list[Box]) -> float:
    """Return the Dice of a mask over boxes, pooled."""
    pairs = [(mask[box.slices], truth[box.slices] > 0) for box in boxes]
    both, one, other = (
        sum(int(part.sum()) for part in parts) for parts in zip(*((m & t, m, t) for m, t in pairs), strict=True)
    )
    return 2 * both / max(1, one + other)


def run(campaign: Campaign, job: InferenceJob, repeats: int) -> None:
    """Print the rows of a volume."""
    trainer = job.model.trainer
    config = job.inference.model_copy(update={"mc_samples": 1, "tta_symmetries": 1})
    job = replace(job, inference=config, workers=1, load=load_without_dropout)
    shutil.rmtree(job.maps_url, ignore_errors=True)
    began = time.monotonic()
    plan = make_plan(job)
    setup = time.monotonic() - began
    peers = Peers(campaign, job)
    ways: dict[str, Callable[[], Mask]] = {"engine": lambda: engine(job)}
    for named, window in (("", peers.window), (", training window", peers.training_window)):
        ways |= {f"MONAI{named}, batch {batch}": partial(peers.monai, window, batch) for batch in BATCHES}
        if trainer == "nnunet":
            ways[f"nnUNetPredictor{named}"] = partial(peers.nnunet, window)
    ways["one forward"] = peers.whole
    took: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, float] = {}
    truth = np.asarray(open_truth(campaign.volumes, "v")[...])
    holdout = campaign.holdout()
    assert holdout is not None
    boxes = holdout.of("v", campaign.volumes.shared_places(), "test")
    for turn in range(repeats + 1):  # the first turn warms up
        for name, way in ways.items():
            began = time.monotonic()
            mask = way()
            if turn:
                took[name].append(time.monotonic() - began)
                scores[name] = dice(mask, truth, boxes)
    medians = {name: float(np.median(values)) for name, values in took.items()}
    print(f"{trainer}: {plan.shape_zyx}, window {plan.window_zyx} (training {peers.training_window}), {len(plan.grid)} windows, "
          f"{peers.precision or 'float32'}, {plan.inference.forward}; setting up {setup:.1f} s", flush=True)  # fmt: skip
    for name, median in medians.items():
        times = " ".join(f"{value:.2f}" for value in took[name])
        print(
            f"  {name:33s} {median:7.2f} s  {median / medians['engine']:5.2f} × the engine  test Dice {scores[name]:.4f}  ({times})",
            flush=True,
        )


def compare_workers(job: InferenceJob, repeats: int) -> None:
    """Print how much sooner two workers are done than one, with the members that the settings name."""
    job = replace(job, workers=2)
    took: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        clients = {n: stack.enter_context(open_cluster(ClusterConfig(workers=n))) for n in took}
        for turn in range(repeats + 1):  # the first turn warms up
            for workers, client in clients.items():
                shutil.rmtree(job.maps_url, ignore_errors=True)
                Path(job.maps_url).mkdir(parents=True)
                began = time.monotonic()
                infer(job, client)
                if turn:
                    took[workers].append(time.monotonic() - began)
    ratios = [one / two for one, two in zip(took[1], took[2], strict=True)]
    print(f"two workers against one: {np.median(ratios):.2f} times as fast ({' '.join(f'{r:.2f}' for r in ratios)}); "
          f"{' '.join(f'{s:.1f}' for s in took[1])} s against {' '.join(f'{s:.1f}' for s in took[2])} s", flush=True)  # fmt: skip


def main() -> None:
    """Run the volumes one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("datasets", nargs="*", default=DATASETS)
    parser.add_argument("--trainer", default="monai_unet")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--float32", action="store_true", help="as on a processor that does not compute in bfloat16")
    parser.add_argument("--forward", default="auto", help="how the engine computes the network, see inference.forward")
    parser.add_argument("--workers", action="store_true", help="two workers against one instead")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    if options.float32:
        patch("rescueseg.models.precision.autocast_dtype", lambda device: None).start()
    for dataset in options.datasets:
        campaign = families.open_or_make(options.data, options.out, dataset, seed=1)
        print(dataset)
        job = InferenceJob.of(campaign, model_of(campaign, options.trainer, options.seconds), "v")
        config = job.inference.model_copy(update={"forward": options.forward})
        job = replace(job, inference=config, maps_url=campaign.storage.path("speed"))
        if options.workers:
            compare_workers(job, options.repeats)
        else:
            run(campaign, job, options.repeats)


if __name__ == "__main__":
    main()
