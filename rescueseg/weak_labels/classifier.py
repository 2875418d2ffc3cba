"""An ilastik-style pixel classifier: multi-scale features and a random forest, trained on a few annotated voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import skops.io
from sklearn.ensemble import RandomForestClassifier

from rescueseg.errors import WeakLabelError
from rescueseg.geometry import ZYX, Spacing
from rescueseg.labels import IGNORE
from rescueseg.randomness import random_generator
from rescueseg.weak_labels.base import Float32, Labels, WeakLabel, from_probabilities
from rescueseg.weak_labels.filters import filter_reach, finest, gradient_magnitude, hessian_eigenvalues, smooth

SCALES = (1.0, 2.0, 4.0, 8.0)
"""Standard deviations of the features, in multiples of the finest voxel size."""
MOST_PER_CLASS = 20_000
"""Annotated voxels of a class that the forest is grown on."""
TREES, DEPTH, LEAF = 60, 16, 4
TRUSTED = frozenset({"sklearn.tree._tree.Tree"})
"""The one type beyond those that skops trusts by itself that a saved classifier may hold."""


@dataclass(frozen=True)
class PixelClassifier:
    """A trained pixel classifier.

    Parameters
    ----------
    forest : RandomForestClassifier
        Its classes are labels, 0…K.
    channels : int
        Image channels.
    n_classes : int
        K, foreground classes.
    scales_um : tuple of float
        Standard deviations of the features in micrometre.
    """

    forest: RandomForestClassifier
    channels: int
    n_classes: int
    scales_um: tuple[float, ...]

    name = "classifier"

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the reach of the largest scale, in voxels."""
        return filter_reach(max(self.scales_um), spacing_um_zyx)

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx); see `WeakLabeller`.

        Raises
        ------
        WeakLabelError
            If it has other channels than those trained on.
        """
        if image.shape[0] != self.channels:
            raise WeakLabelError(
                f"the classifier was trained on {self.channels} channels, the image has {image.shape[0]}",
                todo="Train one on volumes like this",
            )
        table = features(image, spacing_um_zyx, self.scales_um).reshape(-1, image[0].size).T
        probabilities = np.zeros((self.n_classes + 1, image[0].size), np.float32)
        probabilities[self.forest.classes_] = self.forest.predict_proba(table).T
        return from_probabilities(probabilities.reshape(-1, *image.shape[1:]))


def features(image: Float32, spacing_um_zyx: Spacing, scales_um: Sequence[float]) -> Float32:
    """Return the features of each voxel, float32 (features, z, y, x).

    Of each channel the intensity, and at each scale the smoothed intensity, the length of the gradient and the
    eigenvalues of the Hessian: what `skimage.feature.multiscale_basic_features` and ilastik [1]_ compute, with scales in
    micrometre on any voxel grid.

    Parameters
    ----------
    image : ndarray of float32, czyx
        Normalised; mirrored at its border.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    scales_um : sequence of float
        Standard deviations in micrometre.

    References
    ----------
    .. [1] Berg et al., doi:10.1038/s41592-019-0582-9.
    """
    stack: list[Float32] = []
    for channel in image:
        stack.append(channel)
        for scale in scales_um:
            stack.append(smooth(channel, scale, spacing_um_zyx))
            stack.append(gradient_magnitude(channel, scale, spacing_um_zyx))
            stack.extend(hessian_eigenvalues(channel, scale, spacing_um_zyx))
    return np.stack(stack)


def train_classifier(
    images: Sequence[Float32],
    labels: Sequence[Labels],
    spacings: Sequence[Spacing],
    n_classes: int,
    *,
    dense: bool,
    seed: int = 0,
) -> PixelClassifier:
    """Train a pixel classifier.

    Parameters
    ----------
    images : sequence of ndarray of float32, czyx
        Normalised images of the annotated patches; nothing beyond them is read.
    labels : sequence of ndarray of uint8, zyx
        0 background, 1…K classes, 255 not annotated.
    spacings : sequence of tuple of float
        Voxel size of each, in micrometre.
    n_classes : int
        K.
    dense : bool
        Whether the patches are annotated whole, so that the frequency of a class means something; of scribbles each
        class counts the same.
    seed : int
        Of the sample and the forest.

    Raises
    ------
    WeakLabelError
        If fewer than two different labels occur.
    """
    scales = tuple(s * min(finest(spacing) for spacing in spacings) for s in SCALES)
    rng = random_generator(seed, "pixel classifier")
    values = np.concatenate([array.ravel() for array in labels])
    present = [int(v) for v in np.unique(values) if v != IGNORE]
    if len(present) < 2:
        raise WeakLabelError(
            "the annotations hold " + (f"label {present[0]} alone" if present else "no label"),
            where="pixel classifier",
            todo="Annotate some voxels of at least two of background (0) and the classes",
        )
    sample, weights = _sample(values, present, dense, rng)
    tables, start = [], 0
    for image, array, spacing in zip(images, labels, spacings, strict=True):
        here = sample[(sample >= start) & (sample < start + array.size)] - start
        if len(here):
            tables.append(features(image, spacing, scales).reshape(-1, array.size)[:, here].T)
        start += array.size
    forest = RandomForestClassifier(TREES, max_depth=DEPTH, min_samples_leaf=LEAF, random_state=seed, n_jobs=1)
    forest.fit(np.concatenate(tables), values[sample], sample_weight=weights)
    return PixelClassifier(forest, images[0].shape[0], n_classes, scales)


def _sample(
    values: Labels, present: Sequence[int], dense: bool, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return voxels to learn from, in ascending order, and their weights."""
    weights = np.zeros(len(values))
    for label in present:
        places = np.flatnonzero(values == label)
        subset = places if len(places) <= MOST_PER_CLASS else rng.choice(places, MOST_PER_CLASS, replace=False)
        weights[subset] = (len(places) if dense else 1.0) / len(subset)
    sample = np.flatnonzero(weights)
    return sample, weights[sample] * len(sample) / weights.sum()


def dump_classifier(classifier: PixelClassifier) -> bytes:
    """Return a classifier as a skops file: nothing in it is pickled."""
    data: bytes = skops.io.dumps(
        {
            "forest": classifier.forest,
            "channels": classifier.channels,
            "n_classes": classifier.n_classes,
            "scales_um": list(classifier.scales_um),
        }
    )
    return data


def load_classifier(data: bytes, where: str) -> PixelClassifier:
    """Read what `dump_classifier` wrote; types that do not belong in it are refused before anything is built.

    Parameters
    ----------
    data : bytes
        The file.
    where : str
        Its path, for the error message.

    Raises
    ------
    WeakLabelError
        If it is damaged, holds any other type, or is no classifier.
    """

    def refused(what: str) -> WeakLabelError:
        return WeakLabelError(f"the saved classifier {what}", where=where, todo="Remove the file and train it again")

    try:
        if unknown := set(skops.io.get_untrusted_types(data=data)) - TRUSTED:
            raise refused(f"holds {', '.join(sorted(unknown))}, which does not belong in it")
        content: Any = skops.io.loads(data, trusted=sorted(TRUSTED))
        forest, channels, n_classes = content["forest"], int(content["channels"]), int(content["n_classes"])
        scales = tuple(float(s) for s in content["scales_um"])
    except WeakLabelError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise refused(f"cannot be read: {error}") from error
    if not isinstance(forest, RandomForestClassifier) or forest.n_features_in_ != channels * (1 + 5 * len(scales)):
        raise refused("is no pixel classifier")
    return PixelClassifier(forest, channels, n_classes, scales)
