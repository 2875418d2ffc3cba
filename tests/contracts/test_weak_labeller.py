"""What the queue relies on, for every implementation of `WeakLabeller`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescueseg.campaign import Campaign
from rescueseg.errors import InferenceError
from rescueseg.evaluation.metrics import count_voxels
from rescueseg.geometry import Box, Spacing
from rescueseg.models.predictor import Group
from rescueseg.records import Normalisation
from rescueseg.voxels.components import label_components
from rescueseg.weak_labels.base import ObjectLabeller, WeakLabeller, label_box, label_box_objects
from rescueseg.weak_labels.champion import ChampionLabeller
from rescueseg.weak_labels.classifier import train_classifier
from rescueseg.weak_labels.flow_objects import PERCENTILES
from rescueseg.weak_labels.ilastik import IlastikLabeller
from rescueseg.weak_labels.intensities import PercentileScaling
from rescueseg.weak_labels.methods import FITTED
from tests import stand_in_cellpose4
from tests.stand_in_ilastik import install
from tests.trivial_predictors import Blur

SPACING: Spacing = (0.25, 0.1, 0.1)
SHAPE = (24, 64, 64)
AS_IT_IS = Normalisation(low=-100, high=100, mean=0, std=1)


def scene(kind: str, shape: tuple[int, int, int] = SHAPE, spacing: Spacing = SPACING) -> tuple[np.ndarray, np.ndarray]:
    """Return image (float32 czyx) and truth of balls, a tube bundle or membranes around cells, with a little noise."""
    z, y, x = np.meshgrid(*((np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    if kind == "membranes":
        distance = np.min(
            [np.abs(a - c) for a, cs in ((z, (2.0, 4.5)), (y, (2.0, 4.4)), (x, (1.8, 4.1))) for c in cs], 0
        )
        truth = distance < 0.13
    elif kind == "tubes":
        truth = np.min([np.hypot(z - a, y - b) for a, b in ((1.5, 1.5), (4.0, 3.0), (3.0, 5.0))], 0) < 0.4
    else:
        centres = [(a, b, c) for a in (1.5, 4.4) for b in (1.2, 3.2, 5.2) for c in (1.2, 3.2, 5.2)]
        truth = np.min([(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 for a, b, c in centres], 0) < 0.6**2
    noise = np.random.default_rng(5).normal(0, 0.15, shape)
    return (truth * 2.0 + noise).astype(np.float32)[np.newaxis], truth.astype(np.uint8)


@dataclass(frozen=True)
class Case:
    """One implementation, made for a scene, and how far it may depart from the whole image's labels block by block."""

    make: Callable[[Campaign, Path], WeakLabeller]
    kind: str = "blobs"
    departs: float = 0.0
    dice: float = 0.8


def fitted(method: str) -> Callable[[Campaign, Path], WeakLabeller]:
    kind = "blobs" if method == "threshold" else method
    return lambda campaign, folder: FITTED[method]([scene(kind)[0]], SPACING)


def classifier(campaign: Campaign, folder: Path) -> WeakLabeller:
    image, truth = scene("blobs")
    return train_classifier([image], [truth], [SPACING], 1, dense=True)


def ilastik(campaign: Campaign, folder: Path) -> WeakLabeller:
    return IlastikLabeller(install(folder), str(folder / "a.ilp"), (0, 1), AS_IT_IS, "float32")


def champion(campaign: Campaign, folder: Path) -> WeakLabeller:
    return ChampionLabeller(Smooth(campaign.storage, campaign.config.inference))


def cellpose(campaign: Campaign, folder: Path) -> WeakLabeller:
    pytest.importorskip("cellpose", reason="the extra 'cellpose' is not installed")
    from rescueseg.models.cellpose.published import load_published
    from rescueseg.models.cellpose.weights_file import read_weights
    from rescueseg.weak_labels.cellpose import CellposeLabeller
    from tests.cellpose_weights import save_climbing

    weights = read_weights(save_climbing(folder / "weights", 12.0))
    scaling = PercentileScaling.of([scene("blobs")[0]], AS_IT_IS, *PERCENTILES)
    return CellposeLabeller(load_published(weights), weights, 1.2, scaling, "cpu")


def cellpose_sam(campaign: Campaign, folder: Path) -> WeakLabeller:
    from rescueseg.weak_labels.cellpose_sam import CellposeSamLabeller

    python = folder / "env" / "bin" / "python"
    if not python.exists():
        stand_in_cellpose4.install(folder / "env")
    scaling = PercentileScaling.of([scene("blobs")[0]], AS_IT_IS, *PERCENTILES)
    weights = stand_in_cellpose4.save_weights(folder / "cpsam")
    return CellposeSamLabeller(str(python), weights, 1.2, scaling)


def stardist(campaign: Campaign, folder: Path) -> WeakLabeller:
    pytest.importorskip("stardist", reason="the extra 'stardist' is not installed")
    from rescueseg.models.stardist.published import load_network
    from rescueseg.models.stardist.published_config import rays_of, read_config
    from rescueseg.weak_labels.stardist import PERCENTILES as OWN
    from rescueseg.weak_labels.stardist import StarDistLabeller

    model = str(Path(__file__).parents[1] / "data" / "stardist_balls")  # trained on such balls at this spacing
    config, thresholds = read_config(model, InferenceError)
    scaling = PercentileScaling.of([scene("blobs")[0]], AS_IT_IS, *OWN)
    rays = rays_of(config, model, InferenceError)
    return StarDistLabeller(load_network(model, config), rays, thresholds, scaling, "cpu")


class Smooth(Blur):
    """A predictor that looks three voxels far, so that windows do not matter."""

    def members(self, windows, keys):  # type: ignore[no-untyped-def]
        from scipy.ndimage import uniform_filter

        for symmetry in range(2):
            logits = np.stack([uniform_filter(w[0], 3) for w in windows]) - 1
            foreground = 1 / (1 + np.exp(-8 * logits))
            yield Group(0, symmetry), {"probability": np.stack([1 - foreground, foreground], axis=1).astype(np.float32)}


CASES = {
    "threshold": Case(fitted("threshold")),
    "blobs": Case(fitted("blobs"), departs=0.005),
    "tubes": Case(fitted("tubes"), "tubes"),
    "membranes": Case(fitted("membranes"), "membranes", departs=0.005),
    "classifier": Case(classifier),
    "ilastik": Case(ilastik),
    "champion": Case(champion, departs=0.005),
    "cellpose": Case(cellpose, departs=0.005),
    "cellpose-sam": Case(cellpose_sam, departs=0.005),
    "stardist": Case(stardist, departs=0.005),
}


OBJECTS = ["cellpose", "stardist"]
"""Those that tell objects apart; Cellpose-SAM does so as Cellpose does, tests/unit/weak_labels/test_cellpose_sam.py."""
SLOW = {"cellpose-sam"}
"""They start a program for each block."""


@pytest.fixture(params=[pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in sorted(CASES)])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def labeller(case: Case, campaign: Campaign, tmp_path: Path) -> WeakLabeller:
    return case.make(campaign, tmp_path)


def check(labeller: WeakLabeller, image: np.ndarray, spacing: Spacing = SPACING) -> None:
    before = image.copy()
    made = labeller.label(image, spacing)
    assert made.labels.shape == made.confidence.shape == image.shape[1:]
    assert (made.labels.dtype, made.confidence.dtype) == (np.uint8, np.float32)
    assert made.labels.max() <= labeller.n_classes
    assert np.isfinite(made.confidence).all()
    assert 0 <= made.confidence.min() <= made.confidence.max() <= 1
    assert np.array_equal(image, before), "the image is left as it is"


def test_a_mask_has_classes_and_a_confidence(labeller: WeakLabeller, case: Case) -> None:
    assert isinstance(labeller, WeakLabeller)
    check(labeller, scene(case.kind)[0])


def test_what_is_easy_is_found_and_mistakes_are_less_certain(labeller: WeakLabeller, case: Case) -> None:
    image, truth = scene(case.kind)
    made = labeller.label(image, SPACING)
    dice = count_voxels(made.labels, truth, 1)[0].dice
    assert dice is not None
    assert dice > case.dice
    wrong = made.labels != truth
    if wrong.any():
        assert made.confidence[wrong].mean() < made.confidence[~wrong].mean()


def test_the_same_image_gives_the_same_mask(
    labeller: WeakLabeller, case: Case, campaign: Campaign, tmp_path: Path
) -> None:
    image = scene(case.kind)[0]
    again = case.make(campaign, tmp_path)
    first, second = labeller.label(image, SPACING), again.label(image.copy(), SPACING)
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.confidence, second.confidence)


def test_block_by_block_gives_what_the_whole_image_gives(labeller: WeakLabeller, case: Case) -> None:
    image = scene(case.kind)[0]
    whole = label_box(labeller, image, Box((0, 0, 0), SHAPE), AS_IT_IS, SPACING)
    blocks = label_box(labeller, image, Box((0, 0, 0), SHAPE), AS_IT_IS, SPACING, block_zyx=(24, 40, 40))
    part = label_box(labeller, image, Box((4, 10, 20), (12, 30, 30)), AS_IT_IS, SPACING)
    assert (blocks.labels != whole.labels).mean() <= case.departs
    assert (part.labels != whole.labels[4:16, 10:40, 20:50]).mean() <= case.departs
    assert (np.abs(blocks.confidence - whole.confidence) > 1e-3).mean() <= 2 * case.departs


@pytest.mark.parametrize("case", OBJECTS, indirect=True)
def test_objects_are_the_pieces_of_the_mask_wherever_it_is_cut(labeller: WeakLabeller, case: Case) -> None:
    """Of balls apart each is an object, in any box its own, numbered from 1 on."""
    assert isinstance(labeller, ObjectLabeller)
    image, truth = scene(case.kind)
    balls = label_components(truth > 0, 26)[0]
    for box in (Box((0, 0, 0), SHAPE), Box((4, 10, 20), (12, 30, 30))):
        weak, numbers = label_box_objects(labeller, image, box, AS_IT_IS, SPACING)
        assert (numbers.dtype, numbers.shape) == (np.uint32, box.shape_zyx)
        assert np.array_equal(numbers > 0, weak.labels > 0)
        found = np.unique(numbers[numbers > 0])
        assert found.tolist() == list(range(1, len(found) + 1))
        inside = balls[box.slices]
        for number in np.unique(inside[inside > 0]):
            if (inside == number).sum() > 60:
                counts = np.bincount(numbers[inside == number])
                assert counts.argmax() > 0
                assert counts.max() > case.dice * counts.sum()
                assert (inside[numbers == counts.argmax()] != number).mean() < 1 - case.dice


@pytest.mark.parametrize("value", [0.0, -3.0, 7.5])
def test_a_constant_image_is_labelled_as_the_contract_says(labeller: WeakLabeller, value: float) -> None:
    image = np.full((1, 8, 20, 20), value, np.float32)
    check(labeller, image)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*(st.integers(1, 9),) * 3),
    spacing=st.tuples(*(st.sampled_from([0.05, 0.1, 0.4, 2.0]),) * 3),
    seed=st.integers(0, 3),
)
def test_tiny_patches_of_any_spacing(
    labeller: WeakLabeller, shape: tuple[int, int, int], spacing: Spacing, seed: int
) -> None:
    image = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
    check(labeller, image, spacing)


@pytest.mark.parametrize("method", sorted(FITTED))
@pytest.mark.parametrize("image", [np.zeros((1, 6, 7, 8), np.float32), np.ones((1, 1, 1, 1), np.float32)])
def test_fitted_to_nothing_a_method_finds_nothing(method: str, image: np.ndarray) -> None:
    made = FITTED[method]([image], SPACING).label(image, SPACING)
    assert not made.labels.any()
    assert not made.confidence.any()
