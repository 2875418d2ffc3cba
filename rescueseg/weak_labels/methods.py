"""Which method makes the first masks: by agreement with accepted annotations, else by the triage's problem type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rescueseg.campaign.route import TriageSummary
from rescueseg.errors import WeakLabelError
from rescueseg.geometry import Spacing
from rescueseg.labels import IGNORE
from rescueseg.weak_labels.base import Float32, Labels, ObjectLabeller, WeakLabel, WeakLabeller
from rescueseg.weak_labels.classical import fit_blobs, fit_membranes, fit_tubes
from rescueseg.weak_labels.classifier import PixelClassifier, train_classifier
from rescueseg.weak_labels.judgement import invented, spared
from rescueseg.weak_labels.threshold import fit_threshold

Fit = Callable[[Sequence[Float32], Spacing, bool | None], WeakLabeller]

FITTED: dict[str, Fit] = {
    "threshold": fit_threshold,
    "blobs": fit_blobs,
    "tubes": fit_tubes,
    "membranes": fit_membranes,
}
"""Methods that need nothing but the image; they know foreground alone."""
METHODS: dict[str, str] = {
    "threshold": "the most stable of many global and local thresholds",
    "blobs": "Laplacian of Gaussian and watershed",
    "tubes": "ridge filter and hysteresis",
    "membranes": "ridge filter and watershed",
    "classifier": "random forest on multi-scale features, trained on scribbles or accepted annotations",
    "ilastik": "your ilastik project (--ilp), where ilastik is installed",
    "champion": "the model of an earlier campaign (--from-campaign)",
    "cellpose": "weights that Cellpose 3 saved, such as cyto3 (--weights, --diameter)",
    "cellpose-sam": "weights of Cellpose-SAM, where an environment has cellpose 4 (--weights, --diameter, --python)",
    "stardist": "a model that StarDist trained in 3D (--weights)",
}
"""Every method by name, with what it does; `auto` chooses."""
BY_PROBLEM = {"boundary": "threshold", "snr": "threshold", "topology": "tubes"}
"""The method for each problem type of the triage, as long as nothing is annotated. Where topology means sheets, membranes."""
LEAST_WEIGHT = 0.5
"""Weight in the agreement of a voxel whose confidence is 0; one of confidence 1 counts 1."""


@dataclass(frozen=True)
class Agreement:
    """How well a method does on annotated patches.

    Parameters
    ----------
    dice : float
        See `agreement`.
    spared : float or None
        See `rescueseg.weak_labels.judgement.spared`.
    invented : float
        See `rescueseg.weak_labels.judgement.invented`.
    """

    dice: float
    spared: float | None
    invented: float


@dataclass(frozen=True)
class AnnotatedPatch:
    """An accepted annotation with its image.

    Parameters
    ----------
    name : str
        Ticket id.
    volume_id : str
        Its volume.
    image : ndarray of float32, czyx
        The patch, normalised, without context.
    labels : ndarray of uint8, zyx
        0 background, 1…K classes, 255 not annotated.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    """

    name: str
    volume_id: str
    image: Float32
    labels: Labels
    spacing_um_zyx: Spacing


def agreement(pairs: Sequence[tuple[WeakLabel, Labels]], n_classes: int) -> float:
    """Return the Dice of weak labels with annotations, each voxel weighted by the confidence.

    Parameters
    ----------
    pairs : sequence of (WeakLabel, ndarray of uint8, zyx)
        Weak label and annotation of the same patch; voxels annotated as 255 do not count.
    n_classes : int
        K; the mean over the classes that occur in an annotation or a weak label.

    Returns
    -------
    float
        In [0, 1]; 1 when neither holds any class. A voxel of confidence c weighs (1 + c) / 2: a mistake where the method
        was sure misleads an annotator more.

    Examples
    --------
    Two voxels, both labelled 1, where the second is background; the method was sure of the first alone:

    >>> weak = WeakLabel(np.ones((1, 1, 2), np.uint8), np.array([[[1.0, 0.0]]], np.float32))
    >>> agreement([(weak, np.array([[[1, 0]]], np.uint8))], n_classes=1)
    0.8
    """
    values = []
    for number in range(1, n_classes + 1):
        both = either = 0.0
        for weak, truth in pairs:
            weight = np.where(
                truth == IGNORE, 0, LEAST_WEIGHT + (1 - LEAST_WEIGHT) * weak.confidence.astype(np.float64)
            )
            mine, theirs = weak.labels == number, truth == number
            both += float(weight[mine & theirs].sum())
            either += float(weight[mine].sum() + weight[theirs].sum())
        if either:
            values.append(2 * both / either)
    return float(np.mean(values)) if values else 1.0


def classifier_agreement(
    patches: Sequence[AnnotatedPatch], n_classes: int, seed: int, *, dense: bool = True
) -> Agreement | None:
    """Return the agreement of the pixel classifier on patches that it was not trained on.

    Each patch is labelled by a classifier trained on the others; a single one is halved along its longest axis.

    Parameters
    ----------
    patches : sequence of AnnotatedPatch
        At least one.
    n_classes : int
        K.
    seed : int
        Of the training.
    dense : bool
        Whether the patches are annotated whole.

    Returns
    -------
    Agreement or None
        None where a fold's annotations hold one label alone.
    """
    folds = list(patches) if len(patches) > 1 else _halves(patches[0])
    pairs = []
    try:
        for left_out in folds:
            others = [p for p in folds if p is not left_out]
            classifier = train_patches(others, n_classes, seed, dense=dense)
            pairs.append((classifier.label(left_out.image, left_out.spacing_um_zyx), left_out.labels))
    except WeakLabelError:
        return None
    return _compared(pairs, n_classes)


def _compared(pairs: Sequence[tuple[WeakLabel, Labels]], n_classes: int) -> Agreement:
    masks = [(weak.labels, labels) for weak, labels in pairs]
    return Agreement(agreement(pairs, n_classes), spared(masks), invented(masks))


def train_patches(
    patches: Sequence[AnnotatedPatch], n_classes: int, seed: int, *, dense: bool = True
) -> PixelClassifier:
    """Train the pixel classifier on annotated patches; see `train_classifier`."""
    return train_classifier(
        [p.image for p in patches],
        [p.labels for p in patches],
        [p.spacing_um_zyx for p in patches],
        n_classes,
        dense=dense,
        seed=seed,
    )


def _halves(patch: AnnotatedPatch) -> list[AnnotatedPatch]:
    axis = int(np.argmax(patch.labels.shape))
    middle = patch.labels.shape[axis] // 2
    cut = [tuple(part if a == axis else slice(None) for a in range(3)) for part in (slice(middle), slice(middle, None))]
    return [
        AnnotatedPatch(
            patch.name, patch.volume_id, patch.image[(slice(None), *c)], patch.labels[c], patch.spacing_um_zyx
        )
        for c in cut
    ]


def agreements(
    labellers: Mapping[str, Mapping[str, WeakLabeller]],
    patches: Sequence[AnnotatedPatch],
    n_classes: int,
    seed: int,
    *,
    numbered: bool = False,
) -> dict[str, Agreement]:
    """Return each method's agreement with annotated patches, the pixel classifier's cross-validated.

    Compared is the mask that people get.

    Parameters
    ----------
    labellers : mapping of str to mapping of str to WeakLabeller
        By method and volume id.
    patches : sequence of AnnotatedPatch
        At least one.
    n_classes : int
        K.
    seed : int
        Of the classifier.
    numbered : bool
        Whether people get numbered objects: the mask of a method that numbers them is then that of its objects.
    """
    table = {
        method: _compared([(_label(of[p.volume_id], p, numbered), p.labels) for p in patches], n_classes)
        for method, of in labellers.items()
    }
    trained = classifier_agreement(patches, n_classes, seed)
    return table if trained is None else table | {"classifier": trained}


def _label(labeller: WeakLabeller, patch: AnnotatedPatch, numbered: bool) -> WeakLabel:
    if numbered and isinstance(labeller, ObjectLabeller):
        return labeller.label_objects(patch.image, patch.spacing_um_zyx)[0]
    return labeller.label(patch.image, patch.spacing_um_zyx)


def best_method(table: Mapping[str, float]) -> str:
    """Return the method of highest agreement; of equal ones the first by `METHODS`.

    Examples
    --------
    >>> best_method({"classifier": 0.8, "threshold": 0.8, "tubes": 0.3})
    'threshold'
    """
    order = list(METHODS)
    return max(table, key=lambda method: (table[method], -order.index(method)))


def method_for(triage: TriageSummary | None) -> tuple[str, str]:
    """Return the method for what the triage wrote (None before it), and why."""
    if not triage:
        return "threshold", "nothing is annotated yet, and there is no triage"
    problem = triage.problem
    reason = f"nothing is annotated yet, and the triage says '{problem}'"
    if problem == "topology" and _is_sheet(triage):
        return "membranes", f"{reason}, of sheets"
    return BY_PROBLEM.get(problem, "threshold"), reason


def polarity(triage: TriageSummary | None) -> bool | None:
    """Tell whether the structure is brighter than its surroundings; None where the triage saw no annotated voxel."""
    if not triage or triage.mask not in ("annotations", "truth"):
        return None
    contrast = triage.measured("contrast")
    return None if contrast is None else contrast > 0


def _is_sheet(triage: TriageSummary) -> bool:
    if triage.structure is not None:
        return triage.structure == "membrane"
    if triage.mask not in ("annotations", "truth"):  # a threshold's guess has ragged, flat pieces
        return False
    plate, tube = triage.measured("plateness"), triage.measured("tubularity")
    return plate is not None and tube is not None and plate > 0.5 > tube
