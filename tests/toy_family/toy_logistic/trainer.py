"""The trainer, and the predictor of its models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from scipy.ndimage import gaussian_filter

from rescueseg.config import InferenceConfig
from rescueseg.errors import InferenceError
from rescueseg.geometry import ZYX, Spacing, resampled_shape
from rescueseg.labels import IGNORE
from rescueseg.models import checkpoints
from rescueseg.models.files import member_folder, model_errors, read_committed, read_trained_model, read_warm_start
from rescueseg.models.members import symmetries
from rescueseg.models.predictor import AXES, Group, Output, class_probabilities
from rescueseg.models.resample import resample
from rescueseg.models.survey import scratch_reason
from rescueseg.models.trainer import (
    WEIGHTS_FILE,
    TrainedModel,
    TrainerCapabilities,
    TrainingRequest,
    check_request,
    unlabelled_warnings,
)
from rescueseg.models.training_items import TrainingSet
from rescueseg.progress import StepProgress
from rescueseg.randomness import keyed_generator
from rescueseg.records import ModelReference
from rescueseg.storage import Storage, digest_json
from toy_logistic.family import ToyPlan, ToySettings, make_plan

Float32 = npt.NDArray[np.float32]


def features(image: Float32, plan: ToyPlan) -> Float32:
    """Return what the model sees of each voxel: (f, z, y, x) from czyx."""
    smooth = [image]
    for scale in plan.scales_um:
        widths = [scale / s for s in plan.spacing_um_zyx]
        smooth.append(np.stack([gaussian_filter(channel, widths, mode="nearest") for channel in image]))
    return np.concatenate([np.ones_like(image[:1]), *smooth, image**2]).astype(np.float32)


def softmax(logits: Float32) -> Float32:
    exp = np.exp(logits - logits.max(axis=0, keepdims=True))
    return exp / exp.sum(axis=0, keepdims=True)


class ToyTrainer:
    """Fits the weights by Adam on windows around labelled voxels."""

    name = "toy_logistic"
    capabilities = TrainerCapabilities(partial_labels=True)
    settings = ToySettings
    ignored: ClassVar[Mapping[str, str]] = {"dropout": "drop channels", "members": "train an ensemble"}

    def train(self, request: TrainingRequest, progress: StepProgress) -> TrainedModel:
        """Train, or go on training, and commit the model as the last act."""
        check_request(self, request)
        plan = make_plan(request.config, request.volumes, request.snapshot)
        earlier = read_warm_start(request.warm_start)
        identity = digest_json(
            {
                "plan": plan.to_json(),
                "snapshot": request.snapshot.digest,
                "seed": request.seed,
                "warm_start": earlier.digest if earlier else "",
            }
        )
        if (model := read_trained_model(request.work_dir, identity)) is None:
            self._train(request, plan, identity, progress)
            model = read_trained_model(request.work_dir, identity)
        assert model is not None
        return model

    def _train(self, request: TrainingRequest, plan: ToyPlan, identity: str, progress: StepProgress) -> None:
        data, folder = TrainingSet(request.volumes, request.snapshot, plan), member_folder(request.work_dir, 0)
        weights, reason = first_weights(plan, request.warm_start)
        moments, losses, before, started = np.zeros((2, *weights.shape)), [], 0.0, time.monotonic()
        if (state := checkpoints.load_checkpoint(folder, identity)) is not None:
            weights, moments = state["weights"].numpy().copy(), state["moments"].numpy().copy()
            losses, before = list(state["losses"]), state["seconds"]
        while len(losses) < plan.iterations:
            loss, gradient = loss_and_gradient(weights, data.batch(request.seed, len(losses)), plan)
            losses.append(loss)
            moments[0] += 0.1 * (gradient - moments[0])
            moments[1] += 0.01 * (gradient**2 - moments[1])
            mean, square = moments[0] / (1 - 0.9 ** len(losses)), moments[1] / (1 - 0.99 ** len(losses))
            weights = weights - plan.learning_rate * mean / (np.sqrt(square) + 1e-8)
            progress(len(losses), {"loss": loss, "learning_rate": plan.learning_rate})
            if len(losses) % request.config.training.checkpoint_every == 0:
                kept = {"weights": torch.from_numpy(weights), "moments": torch.from_numpy(moments)}
                seconds = before + time.monotonic() - started
                checkpoints.save_checkpoint(folder, {"request": identity, "losses": losses, "seconds": seconds, **kept})
        classes = request.config.classes
        description = {
            "trainer": self.name,
            "request": identity,
            "plan": plan.to_json(),
            "snapshot": request.snapshot.digest,
            "warnings": [*unlabelled_warnings(classes, data.unlabelled_classes), *([reason] if reason else [])],
        }
        entries = [{"step": i + 1.0, "loss": x, "learning_rate": plan.learning_rate} for i, x in enumerate(losses)]
        log = {"seconds": before + time.monotonic() - started, "losses": entries, "notes": []}
        checkpoints.export_model(request.work_dir, {"weights": torch.from_numpy(weights)}, description, log)


def first_weights(plan: ToyPlan, folder: Path | None) -> tuple[npt.NDArray[np.float64], str]:
    """Return the weights to start from, and why they are not those of the model that is named."""
    scratch = np.zeros((plan.n_classes + 1, 1 + plan.in_channels * (2 + len(plan.scales_um))))
    model = read_warm_start(folder)
    if folder is None or model is None:
        return scratch, ""
    with model_errors(str(folder)):
        old = ToyPlan.model_validate(model.description["plan"])
        names = {"number of classes": "n_classes", "number of image channels": "in_channels"}
        names |= {"training.toy.scales_um": "scales_um"}
        reason = scratch_reason({k: (getattr(old, v), getattr(plan, v)) for k, v in names.items()})
        return (scratch, reason) if reason else (safetensors.numpy.load_file(folder / WEIGHTS_FILE)["weights"], "")


def loss_and_gradient(
    weights: npt.NDArray[np.float64], batch: Sequence[tuple[torch.Tensor, torch.Tensor]], plan: ToyPlan
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the mean cross-entropy over labelled voxels, and its gradient."""
    total, count, gradient = 0.0, 0, np.zeros_like(weights)
    for image, labels in batch:
        known = labels[0].numpy() != IGNORE
        seen, truth = features(image.numpy(), plan)[:, known], labels[0].numpy()[known]
        probability = softmax(weights @ seen)
        total -= float(np.log(np.maximum(probability[truth, np.arange(len(truth))], 1e-12)).sum())
        probability[truth, np.arange(len(truth))] -= 1
        gradient += probability @ seen.T
        count += len(truth)
    return total / max(count, 1), gradient / max(count, 1)


SLOPE = Output(name="slope", channels=3, kind="flow", directions=AXES)
"""How fast the smoothed image rises along each axis, per micrometre."""
DESCENT = Output(name="descent", channels=4, kind="distance", directions=((1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1)))
"""How fast it falls along each of four rays."""


def slopes(seen: Float32, plan: ToyPlan) -> tuple[Float32, Float32]:
    """Return slope (3, z, y, x) and descent (4, z, y, x) from the features of a window."""
    smooth = seen[1 + plan.in_channels]
    along = [
        np.gradient(smooth, s, axis=axis) if smooth.shape[axis] > 1 else np.zeros_like(smooth)
        for axis, s in enumerate(plan.spacing_um_zyx)
    ]
    falls = [np.maximum(-sign * along[axis], 0) for axis in (0, 2) for sign in (1, -1)]
    return np.stack(along).astype(np.float32), np.stack(falls).astype(np.float32)


class ToyPredictor:
    """Samples are drawn around the weights; features are smoothed in the frame of each symmetry."""

    networks = 1

    def __init__(self, weights: npt.NDArray[np.float64], plan: ToyPlan, config: InferenceConfig) -> None:
        self.n_classes, self.in_channels = plan.n_classes, plan.in_channels
        self._weights, self._plan, self._config = weights, plan, config

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (class_probabilities(self.n_classes), SLOPE, DESCENT)

    def window_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        window = self._config.window_zyx or self._plan.window_zyx
        return resampled_shape(window, self._plan.spacing_um_zyx, spacing_um_zyx)

    def members(self, windows: Float32, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, Float32]]]:
        size = self._config.window_zyx or self._plan.window_zyx
        images = resample(torch.from_numpy(np.ascontiguousarray(windows)), size)
        for index, symmetry in enumerate(symmetries(self._config.tta_symmetries, False, self.outputs)):
            seen = [features(image, self._plan) for image in symmetry.apply(images).numpy()]
            vectors = {
                output.name: resample(symmetry.invert(torch.from_numpy(np.stack(values)), output), windows.shape[2:])
                for output, values in zip(
                    (SLOPE, DESCENT), zip(*(slopes(f, self._plan) for f in seen), strict=True), strict=True
                )
            }
            for sample in range(self._config.mc_samples):
                noise = [keyed_generator(key, index, sample).normal(size=self._weights.shape) for key in keys]
                logits = np.stack(
                    [
                        np.tensordot(self._weights + self._plan.spread * n, f, 1)
                        for n, f in zip(noise, seen, strict=True)
                    ]
                )
                turned = resample(symmetry.invert(torch.from_numpy(logits.astype(np.float32))), windows.shape[2:])
                member = {"probability": torch.softmax(turned, dim=1), **vectors}
                yield Group(0, index), {name: tensor.numpy().copy() for name, tensor in member.items()}


def load_predictor(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> ToyPredictor:
    """Load a finished model of a campaign."""
    weights, description = read_committed(storage, model)
    with model_errors(f"{storage.url}/{model.path}", InferenceError):
        plan = ToyPlan.model_validate(description["plan"])
        return ToyPredictor(safetensors.numpy.load(weights)["weights"], plan, config)
