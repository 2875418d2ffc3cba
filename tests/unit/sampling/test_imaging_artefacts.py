"""Each imaging artefact is put into a clean synthetic image and found; in the clean one nothing is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.geometry import Box
from rescueseg.records import Normalisation, VolumeRecord
from rescueseg.sampling import imaging_artefacts, strata

SHAPE = (16, 64, 64)
Image = np.ndarray
STRUCTURAL = imaging_artefacts.KINDS[1:]


def clean(seed: int = 0, noise: float = 5.0, shape: tuple[int, int, int] = SHAPE) -> Image:
    """Blurred blobs of contrast about 40 in noise: no two planes alike, no line in common."""
    rng = np.random.default_rng(seed)
    padded = [n + 24 for n in shape]  # the filter's margin is another texture
    blobs = ndimage.gaussian_filter(rng.normal(size=padded), (1.5, 3, 3))[12:-12, 12:-12, 12:-12]
    return (100 + 40 * blobs / 0.045 + rng.normal(0, noise, shape)).astype(np.float32)


def strengths(image: Image) -> dict[str, float]:
    smooth = ndimage.uniform_filter(image, (1, 3, 3), mode="nearest")
    found = imaging_artefacts.structural_strengths(image, smooth, strata.residual_noise(image, smooth))
    return dict(zip(STRUCTURAL, found.tolist(), strict=True))


def blank(image: Image) -> None:
    image[7] = 100 + np.random.default_rng(1).normal(0, 5, image.shape[1:])


def repeated(image: Image) -> None:
    image[9] = image[8]


def drift(image: Image) -> None:
    image[8:] = np.roll(image[8:], 25, axis=2) + 150


def seam(image: Image) -> None:
    image[:, :, 31:] = image[:, ::-1, 31:] + 40


def stripes(image: Image) -> None:
    image += 6 * np.random.default_rng(2).normal(size=(image.shape[0], image.shape[1], 1)).astype(np.float32)


ADDED: dict[str, Callable[[Image], None]] = {
    "blank_plane": blank,
    "repeated_plane": repeated,
    "drift_step": drift,
    "seam": seam,
    "stripes": stripes,
}


@pytest.mark.parametrize("kind", ADDED)
@pytest.mark.parametrize("seed", range(5))
def test_what_was_put_in_is_found(kind: str, seed: int) -> None:
    image = clean(seed)
    ADDED[kind](image)
    found = strengths(image)
    assert max(found, key=lambda k: found[k]) == kind
    assert found[kind] >= 1


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    noise=st.floats(0.5, 80),
    shape=st.sampled_from([(16, 64, 64), (1, 64, 64), (3, 40, 40), (40, 20, 20), (8, 28, 28), (5, 5, 5), (1, 1, 1)]),
    scale=st.floats(0.001, 1000),
)
def test_nothing_is_found_in_a_clean_image_at_any_scale(seed, noise, shape, scale) -> None:
    assert max(strengths(clean(seed, noise, shape)).values()) < 1
    assert max(strengths(np.float32(scale) * clean(seed, noise, shape)).values()) < 1


def test_a_constant_image_has_no_artefact() -> None:
    image = np.full(SHAPE, 7, np.float32)
    assert imaging_artefacts.structural_strengths(image, image, 1e-6).max() < 1
    assert imaging_artefacts.saturated_shares([imaging_artefacts.top_values(image)]).tolist() == [0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_saturation_is_the_share_of_clipped_voxels(dtype) -> None:
    """Any bit depth: the image is cut at 150 of a possible 255, 65535 or more."""
    whole = [clean(seed).astype(dtype) for seed in range(4)]
    assert imaging_artefacts.saturated_shares(map(imaging_artefacts.top_values, whole)).tolist() == [0, 0, 0, 0]
    cut = [np.minimum(image, 150) for image in whole[:3]]
    dark = np.minimum(whole[3], 120)
    found = imaging_artefacts.saturated_shares(map(imaging_artefacts.top_values, [*cut, dark]))
    assert found.tolist() == [*(float((image >= 150).mean()) for image in whole[:3]), 0]
    assert imaging_artefacts.saturation_strength(found)[3] == 0
    assert imaging_artefacts.saturation_strength(found)[:3].min() >= 1


@pytest.mark.parametrize(("contrast", "noise"), [(1.3, 1.3), (1.0, 1.5)])
def test_a_lasting_change_of_contrast_or_noise_is_found_from_many_boxes(contrast: float, noise: float) -> None:
    image, grain = clean(4, noise=0, shape=(20, 256, 256)), np.random.default_rng(5).normal(0, 5, (20, 256, 256))
    image[12:] = 100 + contrast * (image[12:] - 100)
    grain[12:] *= noise
    whole = (image + grain).astype(np.float32)
    boxes = [Box((z, y, x), (10, 32, 32)) for z in (0, 10) for y in range(0, 256, 32) for x in range(0, 256, 32)]
    levels = []
    for box in boxes:
        part = whole[box.slices]
        levels.append(imaging_artefacts.plane_levels(part, ndimage.uniform_filter(part, (1, 3, 3), mode="nearest")))
    found = imaging_artefacts.gain_steps([box.offset_zyx[0] for box in boxes], levels, 20, 64)
    assert found.shape == (19,)
    assert found.argmax() == 11
    assert found[11] == pytest.approx(np.log(max(contrast, noise)) / 0.1, rel=0.3)
    assert np.delete(found, 11).max() < 1
    assert imaging_artefacts.gain_steps([0] * 7, levels[:7], 20, 64).max() == 0, "too few boxes to tell"


def volume(shape: tuple[int, int, int], dtype: str = "uint8") -> VolumeRecord:
    return VolumeRecord(
        volume_id="v", domain="d", shape_zyx=shape, spacing_um_zyx=(1, 1, 1), channels=1, dtype=dtype, source="a",
        digest="0", normalisation=Normalisation(low=0, high=255, mean=100, std=40),
    )  # fmt: skip


def test_features_are_what_they_say() -> None:
    """Three boxes side by side: empty and noisy, blobs, the same blobs faint; and the corner of the volume."""
    rng = np.random.default_rng(0)
    blobs = clean(1, noise=0) - 100
    parts = [np.zeros(SHAPE), blobs, 0.3 * blobs]
    image = np.concatenate([100 + part + rng.normal(0, 6, SHAPE) for part in parts], axis=2)
    whole = np.clip(image, 0, 255).astype(np.uint8)[None]
    boxes = [Box((0, 0, 64 * i), SHAPE) for i in range(3)]
    found = strata.measure(lambda box: whole[(slice(None), *box.slices)], boxes, volume((16, 64, 192)))
    assert found.residual_snr.argmax() == found.contrast.argmax() == found.edge.argmax() == 1
    assert found.contrast[1] / found.contrast[2] == pytest.approx(1 / 0.3, rel=0.2)
    noise = found.contrast / found.residual_snr
    assert noise == pytest.approx(6 / 40, rel=0.1)
    assert found.faces.tolist() == [1, 0, 1]
    assert found.eligible("volume_edge").tolist() == [True, False, True]
    assert found.score("low_snr")[found.eligible("low_snr")].argmax() == found.eligible("low_snr").sum() - 1
    assert not found.eligible(strata.ARTEFACT).any()
    assert "SNR" in found.reason("low_snr", 2)


def test_the_floor_of_the_noise_is_the_quantisation() -> None:
    """A denoised image without noise has the SNR that rounding to whole numbers leaves it."""
    stairs = np.tile(np.repeat(np.arange(100, 108), 8), (16, 64, 1)).astype(np.uint8)[None]
    [snr] = strata.measure(
        lambda box: stairs[(slice(None), *box.slices)], [Box((0, 0, 0), SHAPE)], volume(SHAPE)
    ).residual_snr
    assert snr == pytest.approx(7 * np.sqrt(12), rel=0.01)
