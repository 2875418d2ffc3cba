"""The parts of the weak labels whose answer is known: filters, stability, agreement, persistence, other champions."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.errors import WeakLabelError
from rescueseg.volumes.normalise import LINEAR, limits, measure, normalise
from rescueseg.weak_labels.base import WeakLabel
from rescueseg.weak_labels.champion import ChampionLabeller
from rescueseg.weak_labels.classifier import (
    PixelClassifier,
    dump_classifier,
    features,
    load_classifier,
    train_classifier,
)
from rescueseg.weak_labels.filters import derivative, gradient_magnitude, hessian_eigenvalues, laplacian
from rescueseg.weak_labels.ilastik import IlastikLabeller, label_order
from rescueseg.weak_labels.methods import FITTED, agreement, best_method, method_for, polarity
from rescueseg.weak_labels.threshold import fit_threshold, rough_mask
from tests.puncta import puncta
from tests.stand_in_ilastik import install, project
from tests.triage_summaries import triaged
from tests.trivial_predictors import Blur

SPACINGS = st.sampled_from([(0.1, 0.1, 0.1), (0.2, 0.1, 0.1), (0.15, 0.1, 0.12)])


def coordinates(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> list[np.ndarray]:
    return np.meshgrid(*((np.arange(n) - n // 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")


@settings(max_examples=6, deadline=None)
@given(spacing=SPACINGS, sigma=st.sampled_from([0.2, 0.3]))
def test_derivatives_of_a_parabola_on_any_grid(spacing: tuple[float, float, float], sigma: float) -> None:
    z, y, x = coordinates((31, 31, 31), spacing)
    image = (2 * z**2 + 0.5 * y**2 - x**2 + 3 * x).astype(np.float32)
    centre = (15, 15, 15)
    assert derivative(image, sigma, spacing, (2, 0, 0))[centre] == pytest.approx(4 * sigma**2, rel=0.05)
    assert gradient_magnitude(image, sigma, spacing)[centre] == pytest.approx(3 * sigma, rel=0.05)
    assert laplacian(image, sigma, spacing)[centre] == pytest.approx(3 * sigma**2, rel=0.05)
    assert hessian_eigenvalues(image, sigma, spacing)[(slice(None), *centre)] == pytest.approx(
        np.array([4, 1, -2]) * sigma**2, rel=0.06
    )


def test_two_levels_with_noise_are_told_apart_whatever_their_polarity() -> None:
    truth = np.zeros((12, 48, 48), bool)
    truth[3:9, 10:24, 12:30] = True
    noise = np.random.default_rng(0).normal(0, 0.2, truth.shape)
    for sign in (1, -1):
        image = (sign * 3.0 * truth + noise).astype(np.float32)[np.newaxis]
        chosen = fit_threshold([image], (0.2, 0.1, 0.1))
        assert chosen.bright is (sign == 1)
        made = rough_mask(image, (0.2, 0.1, 0.1))
        assert 2 * (made.labels & truth).sum() / (made.labels.sum() + truth.sum()) > 0.9


@settings(max_examples=10, deadline=None)
@given(gain=st.floats(0.2, 20), offset=st.floats(-5, 5))
def test_the_rough_mask_does_not_depend_on_gain_and_offset(gain: float, offset: float) -> None:
    rng = np.random.default_rng(3)
    truth = np.zeros((6, 24, 24))
    truth[2:5, 5:12, 8:18] = 2.0
    image = (truth + rng.normal(0, 0.2, truth.shape)).astype(np.float32)[np.newaxis]
    first = rough_mask(image, (0.1, 0.1, 0.1)).labels
    second = rough_mask(np.float32(gain) * image + np.float32(offset), (0.1, 0.1, 0.1)).labels
    assert (first != second).mean() < 0.01


def weak(labels: list[int], confidence: list[float]) -> WeakLabel:
    return WeakLabel(np.array([[labels]], np.uint8), np.array([[confidence]], np.float32))


def test_the_agreement_by_hand() -> None:
    made = weak([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    truth = np.array([[[1, 0, 1, 0, 255]]], np.uint8)
    # both: 1; mine: 1 + 0.5; theirs: 1 + 1; the voxel not annotated does not count
    assert agreement([(made, truth)], 1) == pytest.approx(2 / 3.5)
    assert agreement([(weak([0, 0], [1, 1]), np.zeros((1, 1, 2), np.uint8))], 1) == 1
    two = weak([1, 2, 2, 0], [1, 1, 1, 1])
    assert agreement([(two, np.array([[[1, 2, 0, 0]]], np.uint8))], 2) == pytest.approx((1 + 2 / 3) / 2)
    unsure = agreement([(weak([1, 1, 0], [1, 0, 1]), np.array([[[1, 0, 0]]], np.uint8))], 1)
    sure = agreement([(weak([1, 1, 0], [1, 1, 1]), np.array([[[1, 0, 0]]], np.uint8))], 1)
    assert unsure > sure, "a mistake counts more where the method was sure"


def test_the_tie_break_is_stable() -> None:
    assert best_method({"tubes": 0.5, "blobs": 0.5, "classifier": 0.4}) == "blobs"
    assert method_for(None)[0] == "threshold"


def test_the_triage_names_the_method_until_something_is_annotated() -> None:
    assert method_for(triaged(problem="topology"))[0] == "tubes"
    assert method_for(triaged({"plateness": 0.8, "tubularity": 0.1}, problem="topology"))[0] == "membranes"
    assert method_for(triaged({"plateness": 0.3, "tubularity": 0.6}, problem="topology"))[0] == "tubes"
    assert (
        method_for(triaged({"plateness": 0.8, "tubularity": 0.1}, problem="topology", mask="threshold"))[0] == "tubes"
    ), "a guess"
    assert method_for(triaged(problem="topology", structure="membrane"))[0] == "membranes"
    assert (
        method_for(triaged({"plateness": 0.8, "tubularity": 0.1}, problem="topology", structure="fibre"))[0] == "tubes"
    ), "the user's word"
    assert method_for(triaged(problem="boundary"))[0] == method_for(triaged(problem="other"))[0] == "threshold"


def test_the_polarity_is_what_was_measured_on_annotated_voxels() -> None:
    assert polarity(triaged({"contrast": -40.0}, problem="snr")) is False
    assert polarity(triaged({"contrast": 40.0}, problem="snr")) is True
    assert polarity(triaged({"contrast": 40.0}, problem="snr", mask="threshold")) is None, "a guess proves nothing"
    assert polarity(triaged(problem="snr")) is polarity(None) is None


@pytest.mark.parametrize("fit", FITTED.values(), ids=FITTED)
def test_a_known_polarity_is_kept(fit: Any) -> None:
    rng = np.random.default_rng(0)
    image = (ndimage.gaussian_filter(rng.normal(size=(12, 40, 40)), 3) * 20 + rng.normal(0, 0.1, (12, 40, 40)))[None]
    for bright in (True, False):
        made = fit([image.astype(np.float32)], (1.0, 1.0, 1.0), bright)
        assert getattr(made, "rough", made).bright is bright


@pytest.fixture(scope="module")
def trained() -> PixelClassifier:
    image = np.random.default_rng(0).normal(size=(2, 6, 20, 20)).astype(np.float32)
    labels = np.digitize(image[0], [0.0, 1.0]).astype(np.uint8)
    labels[:, ::2] = 255
    return train_classifier([image], [labels], [(0.1, 0.1, 0.1)], 2, dense=True, seed=4)


def test_a_classifier_is_the_same_after_saving_and_holds_no_pickle(trained: PixelClassifier) -> None:
    data = dump_classifier(trained)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert all(name.endswith((".json", ".npy")) for name in archive.namelist())
    again = load_classifier(data, "x.skops")
    image = np.random.default_rng(1).normal(size=(2, 5, 9, 8)).astype(np.float32)
    first, second = (c.label(image, (0.1, 0.1, 0.1)) for c in (trained, again))
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.confidence, second.confidence)
    assert set(np.unique(first.labels).tolist()) == {0, 1, 2}
    with pytest.raises(WeakLabelError, match="trained on 2 channels, the image has 1"):
        again.label(image[:1], (0.1, 0.1, 0.1))


class Stranger:
    """Not what a classifier is made of."""


def test_a_classifier_file_of_a_stranger_is_refused(trained: PixelClassifier) -> None:
    import skops.io

    held = {"forest": trained.forest, "channels": 2, "n_classes": 2, "scales_um": list(trained.scales_um)}
    for content, said in (
        (held | {"forest": Stranger()}, "does not belong in it"),
        (held | {"forest": np.ones(3)}, "is no pixel classifier"),
        (held | {"channels": 3}, "is no pixel classifier"),
        ({"forest": trained.forest}, "cannot be read"),
    ):
        with pytest.raises(WeakLabelError, match=said):
            load_classifier(skops.io.dumps(content), "x.skops")
    with pytest.raises(WeakLabelError, match=r"x\.skops: the saved classifier cannot be read"):
        load_classifier(dump_classifier(trained)[:500], "x.skops")


def test_annotations_of_one_label_alone_train_nothing() -> None:
    image, labels = np.zeros((1, 4, 4, 4), np.float32), np.ones((4, 4, 4), np.uint8)
    with pytest.raises(WeakLabelError, match="hold label 1 alone"):
        train_classifier([image], [labels], [(1.0, 1.0, 1.0)], 1, dense=True)


def test_features_have_the_count_that_loading_expects() -> None:
    image = np.zeros((2, 3, 4, 5), np.float32)
    assert features(image, (1.0, 1.0, 1.0), (1.0, 2.0)).shape == (2 * (1 + 5 * 2), 3, 4, 5)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["bg", "a", "b"], (0, 1, 2)),
        (["B", "rest", "A"], (1, 2, 0)),
        (["x", "y", "z"], (0, 1, 2)),
    ],
)
def test_labels_of_a_project_are_matched_by_name(tmp_path: Path, labels: list[str], order: tuple[int, ...]) -> None:
    assert label_order(project(tmp_path / "p.ilp", labels), ["a", "b"]) == order


def test_a_project_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeakLabelError, match=r"has 2 labels \(bg, a\), the campaign background and 2 classes"):
        label_order(project(tmp_path / "p.ilp", ["bg", "a"]), ["a", "b"])
    (tmp_path / "junk.ilp").write_bytes(b"junk")
    with pytest.raises(WeakLabelError, match="no pixel classification project"):
        label_order(str(tmp_path / "junk.ilp"), ["a"])


def test_ilastik_gets_the_voxels_as_they_were_imported(tmp_path: Path) -> None:
    image, _ = puncta((8, 32, 32), 0.002, 2000, hot=2)
    made = measure(image, (8, 32, 32))
    labeller = IlastikLabeller(install(tmp_path), str(tmp_path / "a.ilp"), (0, 1), made, "uint16")
    np.testing.assert_array_equal(labeller._raw(normalise(image, made)), image)


def test_an_older_champion_sees_clipped_images(campaign: Campaign) -> None:
    image, _ = puncta((8, 32, 32), 0.002, 150)
    made = measure(image, (8, 32, 32))
    seen: list[np.ndarray] = []

    class Spy(Blur):
        def members(self, windows, keys):  # type: ignore[no-untyped-def]
            seen.append(np.asarray(windows))
            yield from super().members(windows, keys)

    for linear in (0.0, LINEAR):
        spy = Spy(campaign.storage, campaign.config.inference)
        ChampionLabeller(spy, 0.25, linear, made).label(normalise(image, made), (0.2, 0.1, 0.1))
        _, high = limits(made)
        top = max(float(windows.max()) for windows in seen)
        assert top == pytest.approx(high if linear == 0 else normalise(image, made).max(), rel=1e-3)
        seen.clear()
