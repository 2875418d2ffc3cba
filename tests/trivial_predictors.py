"""Predictors without a network, importable by Dask workers, for the tests of the block engine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import uniform_filter

from rescueseg.campaign import Campaign
from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX, Spacing
from rescueseg.models.predictor import AXES, Group, Output, class_probabilities
from rescueseg.records import ModelReference
from rescueseg.storage import Storage


class Blur:
    """Depends on the whole window, its place in it, the window's key, the symmetry and the sample."""

    in_channels = 1
    networks = 1

    def __init__(self, storage: Storage, config: InferenceConfig) -> None:
        self.n_classes = Campaign.open(storage.url).config.n_classes
        self.config = config

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (class_probabilities(self.n_classes),)

    def window_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        return self.config.window_zyx or (8, 16, 16)

    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        for network, symmetry in np.ndindex(self.networks, self.config.tta_symmetries):
            width = 3 + 2 * symmetry + 4 * network
            blurred = np.stack([uniform_filter(w[0], width) + 0.1 * w[0].mean() for w in windows])
            for sample in range(self.config.mc_samples):
                noise = [np.random.default_rng([key, symmetry, sample]).normal() for key in keys]
                logits = blurred + np.asarray(noise, np.float32)[:, None, None, None]
                others = [0.3 * c * logits for c in range(1, self.n_classes)]
                scores = np.exp(np.stack([-logits, logits, *others], axis=1) - np.abs(logits)[:, None])
                probabilities = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
                yield Group(network, symmetry), {"probability": torch.from_numpy(probabilities)}


def blur(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Blur:
    return Blur(storage, config)


class Ensemble(Blur):
    networks = 2


def ensemble(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Ensemble:
    return Ensemble(storage, config)


class Objects(Blur):
    """Says a border distance, too, another one in each member."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (*super().outputs, Output(name="border_distance", channels=1, kind="distance"))

    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        for group, member in super().members(windows, keys):
            yield group, member | {"border_distance": 2 * member["probability"][:, 1:2]}


def objects(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Objects:
    return Objects(storage, config)


class Faint(Blur):
    """Gives every foreground class a probability of 1e-5, a hundredth of it where the image is dark."""

    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        faint = np.where(windows[:, 0] > 0, np.float32(1e-5), np.float32(1e-7))
        probabilities = np.stack([1 - self.n_classes * faint, *[faint] * self.n_classes], axis=1)
        for sample in range(self.config.mc_samples):
            yield Group(0, sample % self.config.tta_symmetries), {"probability": torch.from_numpy(probabilities)}


def faint(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Faint:
    return Faint(storage, config)


class DiesOnce(Blur):
    """Takes its process down at its second batch, but once only."""

    def __init__(self, storage: Storage, config: InferenceConfig) -> None:
        super().__init__(storage, config)
        self.calls = 0
        self.flag = Path(storage.path("died"))

    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        self.calls += 1
        if self.calls == 2:
            try:
                self.flag.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os._exit(1)
        return super().members(windows, keys)


def dies_once(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> DiesOnce:
    return DiesOnce(storage, config)


class ObjectsDieOnce(DiesOnce, Objects):
    """Says a border distance, and dies once."""


def objects_die_once(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> ObjectsDieOnce:
    return ObjectsDieOnce(storage, config)


class DiesAlways(Blur):
    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        os._exit(1)


def dies_always(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> DiesAlways:
    return DiesAlways(storage, config)


class Diverged(Blur):
    """Gives a NaN in the window that holds the brightest voxel."""

    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        for group, member in super().members(windows, keys):
            member["probability"][torch.from_numpy(windows.max(axis=(1, 2, 3, 4)) > 3)] = np.nan
            yield group, member


def diverged(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Diverged:
    return Diverged(storage, config)


class Reserved(Blur):
    """Names an output like a map of the uncertainty."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (*super().outputs, Output(name="mc_variance", channels=1, kind="distance"))


def reserved(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Reserved:
    return Reserved(storage, config)


class Forgotten(Blur):
    """Names an output that its members do not hold."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (*super().outputs, Output(name="flow", channels=3, kind="flow", directions=AXES))


def forgotten(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Forgotten:
    return Forgotten(storage, config)


class TwoChannels(Blur):
    in_channels = 2


def two_channels(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> TwoChannels:
    return TwoChannels(storage, config)


class WrongShape(Blur):
    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        yield Group(0, 0), {"probability": torch.zeros((len(windows), 2, 3, 3, 3))}


def wrong_shape(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> WrongShape:
    return WrongShape(storage, config)
