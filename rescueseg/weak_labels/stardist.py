"""A model that StarDist trained as weak labeller: its network in torch, its own suppression and drawing of polyhedra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stardist.geometry import polyhedron_to_label
from stardist.nms import non_maximum_suppression_3d
from torch.nn import functional

from rescueseg.errors import WeakLabelError
from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.models.registry import resolve_device
from rescueseg.models.stardist.published import PublishedStarDist, load_network
from rescueseg.models.stardist.published_config import WEIGHTS_FILE, Thresholds, rays_of, read_config
from rescueseg.records import VolumeRecord
from rescueseg.storage import digest_json, file_digest
from rescueseg.weak_labels.base import Float32, Numbers, WeakLabel, WeakLabeller, renumber_by_place
from rescueseg.weak_labels.choice import Sources
from rescueseg.weak_labels.intensities import PercentileScaling
from rescueseg.weak_labels.published import Published, check_channels

PERCENTILES = (1.0, 99.8)
"""That become 0 and 1, as in StarDist's examples."""
_LICENCE = (
    "the folder does not say it: whether your use of a published model, and of the data that it was trained on, is allowed "
    "is for you to check"
)
_VOXELS = "StarDist's network sees voxels as they are: it finds objects about as many voxels wide as those that it has learned from"


@dataclass(frozen=True)
class StarDistLabeller:
    """Labels by a StarDist model in 3D (Weigert et al. 2020, doi:10.1109/WACV45572.2020.9093435), voxels as they are.

    Parameters
    ----------
    network : PublishedStarDist
        With the weights, on the device.
    rays : Rays_Base
        StarDist's own.
    thresholds : Thresholds
        The model's.
    scaling : PercentileScaling
        Of the volume.
    device : str
        A torch device.
    """

    network: PublishedStarDist
    rays: Any
    thresholds: Thresholds
    scaling: PercentileScaling
    device: str

    name = "stardist"
    n_classes = 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:  # noqa: ARG002
        """Return how far the network sees, in steps of what its input must be a multiple of.

        So its grid lies on a block as on the whole image, where the block begins at such a step.
        """
        config = self.network.config
        return zyx(-(-n // m) * m for n, m in zip(config.reach_zyx, config.multiple_zyx, strict=True))

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx) by its polyhedra; see `WeakLabeller`.

        The confidence is the object's probability in polyhedra, and one minus it around them: least at the border.
        """
        return self.label_objects(image, spacing_um_zyx)[0]

    def label_objects(self, image: Float32, spacing_um_zyx: Spacing) -> tuple[WeakLabel, Numbers]:  # noqa: ARG002
        """Label an image and number its objects; see `ObjectLabeller`."""
        shape = zyx(image.shape[1:])
        probability, lengths = self.network.predict(self.scaling.apply(image), torch.device(self.device))
        numbers = self._polyhedra(probability, lengths, shape)
        whole = [n * g for n, g in zip(probability.shape, self.network.config.grid, strict=True)]
        fine = functional.interpolate(torch.from_numpy(probability)[None, None], whole, mode="trilinear")[0, 0].numpy()
        sure = fine[tuple(slice(n) for n in shape)]
        confidence = np.where(numbers > 0, sure, 1 - sure).astype(np.float32)
        return WeakLabel((numbers > 0).astype(np.uint8), np.clip(confidence, 0, 1)), numbers

    def _polyhedra(self, probability: Float32, lengths: Float32, shape_zyx: ZYX) -> Numbers:
        """Return the voxels of the polyhedra that stay, the more probable one on top."""
        none = np.zeros(shape_zyx, np.uint32)
        if not (probability > self.thresholds.prob).any():
            return none
        grid, rays = self.network.config.grid, self.rays
        points, scores, kept = non_maximum_suppression_3d(
            lengths, probability, rays, grid=grid, prob_thresh=self.thresholds.prob, nms_thresh=self.thresholds.nms
        )
        if not len(points):
            return none
        drawn = polyhedron_to_label(kept, points, rays=rays, prob=scores, shape=shape_zyx, verbose=False)
        return renumber_by_place(drawn)


def open_weights(sources: Sources, volumes: Sequence[VolumeRecord]) -> Published:
    """Read a model's folder; see `rescueseg.weak_labels.published_methods.open_published`."""
    folder, device = sources.weights, resolve_device("auto")
    config, thresholds = read_config(folder, WeakLabelError)
    rays = rays_of(config, folder, WeakLabelError)
    network = load_network(folder, config, WeakLabelError).to(torch.device(device))
    check_channels(volumes, config.n_channel_in, config.n_channel_in, folder)

    def labeller(volume: VolumeRecord, parts: Sequence[Float32]) -> WeakLabeller:
        scaling = PercentileScaling.of(parts, volume.normalisation, *PERCENTILES)
        return StarDistLabeller(network, rays, thresholds, scaling, device)

    said = [config.model_dump(mode="json"), thresholds.model_dump(mode="json")]
    digest = digest_json([*said, file_digest(str(Path(folder, WEIGHTS_FILE)))])
    return Published.of("stardist", sources, digest, _LICENCE, _VOXELS, labeller)
