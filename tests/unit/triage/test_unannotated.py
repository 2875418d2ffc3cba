"""What is not annotated hides the structure, as the world beyond a patch does: it is no background."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.config import TriageConfig
from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.triage.evidence import measure_chunks
from rescueseg.triage.structure import RoughPatch, structure_evidence
from rescueseg.triage.tree import UNKNOWN, decide, title_of
from rescueseg.triage.unannotated import close_gaps

CUBIC = (1.0, 1.0, 1.0)
SHAPE = (24, 48, 48)
LONG = (24, 64, 96)


def ball(place: tuple[float, float, float], radius: float, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return np.asarray(sum((g - p) ** 2 for g, p in zip(grid, place, strict=True)) <= radius**2)


def balls(radius: float = 5.0) -> np.ndarray:
    """Nine balls, 16 voxels apart."""
    return np.any([ball((12, y, x), radius) for y in (8, 24, 40) for x in (8, 24, 40)], axis=0)


def tubes(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Tubes along x, 6 voxels thick, 16 apart."""
    truth = np.zeros(shape, bool)
    for y in range(8, shape[1], 16):
        truth[9:15, y - 3 : y + 3] = True
    return truth


STRUCTURES = {
    "balls": balls(),
    "touching balls": balls(8.5),
    "tubes": tubes(),
    "walls": (np.indices(SHAPE) % 12 == 0).any(0),
    "puncta": np.random.default_rng(0).random(SHAPE) < 0.01,
    "larger than the patch": ~ball((0, 0, 0), 4),
    "all there is": np.ones(SHAPE, bool),
}


def evidence(
    truth: np.ndarray,
    unknown: np.ndarray,
    spacing: Spacing = CUBIC,
    *,
    instances: bool = False,
    part: Box | None = None,
) -> dict[str, float | None]:
    """Return what is measured of a patch in the middle of a volume, or of a part of it; the part is all that is read."""
    image = 100 + 60 * ndimage.gaussian_filter(truth.astype(float), 0.6)
    image += np.random.default_rng(1).normal(0, 5, truth.shape)
    measures = {"v": measure_chunks([(Box((10, 10, 10), zyx(truth.shape)), image)], spacing)}
    labels = ndimage.label(truth, np.ones((3, 3, 3)))[0] if instances else truth.astype(np.uint8)
    inside = part or Box((0, 0, 0), zyx(truth.shape))
    box = Box(zyx(10 + o for o in inside.offset_zyx), inside.shape_zyx)
    whole = zyx(n + 20 for n in truth.shape)
    arrays = (a[inside.slices] for a in (image, np.where(unknown, 0, labels), unknown))
    patch = RoughPatch("v", box, whole, spacing, *arrays, instances)
    return {e.name: e.value for e in structure_evidence([patch], measures)}


def title(measured: dict[str, float | None]) -> str:
    return title_of(*decide({k: v for k, v in measured.items() if v is not None}, TriageConfig()))


def known_everywhere(truth: np.ndarray) -> np.ndarray:
    return np.zeros(truth.shape, bool)


@settings(deadline=None, max_examples=12)
@given(
    name=st.sampled_from(sorted(STRUCTURES)),
    margins=st.tuples(*[st.tuples(st.integers(0, n // 3), st.integers(0, n // 3)) for n in SHAPE]),
    spacing=st.sampled_from([CUBIC, (2.5, 1.0, 1.0)]),
    instances=st.booleans(),
)
@example(name="all there is", margins=((4, 4), (8, 8), (8, 8)), spacing=CUBIC, instances=False)
@example(name="tubes", margins=((0, 0), (0, 0), (16, 16)), spacing=CUBIC, instances=True)
@example(name="touching balls", margins=((1, 0), (3, 3), (0, 5)), spacing=CUBIC, instances=False)
def test_a_patch_in_an_unannotated_frame_is_triaged_as_the_patch_inside_the_frame(
    name: str, margins: tuple[tuple[int, int], ...], spacing: Spacing, instances: bool
) -> None:
    truth = STRUCTURES[name]
    inside = Box.from_bounds([a for a, _ in margins], [n - b for n, (_, b) in zip(SHAPE, margins, strict=True)])
    frame = np.ones(SHAPE, bool)
    frame[inside.slices] = False
    framed = evidence(truth, frame, spacing, instances=instances)
    assert framed == evidence(truth, known_everywhere(truth), spacing, instances=instances, part=inside)


def test_tubes_of_which_a_slab_is_annotated_are_not_called_round() -> None:
    """They were star-convex and 1.0 long: what is not annotated counted as background, and every tube as whole."""
    truth = tubes(LONG)
    unknown = np.ones(LONG, bool)
    unknown[:, :, 40:54] = False
    whole, slab = evidence(truth, known_everywhere(truth)), evidence(truth, unknown)
    assert title(whole).startswith("C")
    assert title(slab) == UNKNOWN
    assert (slab["whole_objects"], slab["thickness"]) == (0, whole["thickness"])


def test_what_is_not_annotated_may_have_any_shape() -> None:
    """An annotated ball among tubes: they leave it on both sides, and are as thick as they are."""
    truth, ragged = tubes(LONG), ~ball((12, 32, 48), 22, LONG)
    whole, seen = evidence(truth, known_everywhere(truth)), evidence(truth, ragged)
    assert seen["whole_objects"] == 0
    assert seen["length_most"] == 1000
    assert title(seen) in (UNKNOWN, title(whole))
    assert seen["thickness"] == pytest.approx(whole["thickness"], rel=0.1)
    assert seen["slenderness"] == pytest.approx(whole["slenderness"], abs=0.1)
    full = np.ones(LONG, bool)
    assert evidence(full, ragged)["thickness"] is None, "no border is seen"
    assert title(evidence(full, ragged)) == UNKNOWN


@pytest.mark.parametrize("instances", [False, True])
def test_objects_annotated_with_their_surroundings_alone_are_whole(instances: bool) -> None:
    """Sparse annotation: each object with four voxels of background, and nothing else."""
    truth = balls(3.0)
    unknown = ~ndimage.binary_dilation(truth, iterations=4)
    sparse = evidence(truth, unknown, instances=instances)
    full = evidence(truth, known_everywhere(truth), instances=instances)
    for name in ("objects", "whole_objects", "thickness", "length", "slenderness", "star_convexity", "sphericity"):
        assert sparse[name] == full[name], name
    assert sparse["whole_objects"] == 9


def test_a_doubtful_rim_does_not_cut_what_it_surrounds() -> None:
    truth = balls()
    rim = ndimage.binary_dilation(truth) & ~ndimage.binary_erosion(truth)
    seen, full = evidence(truth, rim), evidence(truth, known_everywhere(truth))
    assert (seen["whole_objects"], title(seen)) == (9, title(full))
    assert seen["thickness"] == pytest.approx(full["thickness"], abs=1)


def test_gaps_are_narrow_by_the_finest_voxels() -> None:
    """One plane of 20 µm that is not annotated hides more than two pixels of 1 µm do."""
    labels = np.ones((5, 8, 8), np.uint8)
    plane, columns = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    plane[2], columns[:, :, 3:5] = True, True
    assert close_gaps(labels, plane, CUBIC)[1].sum() == 0
    assert close_gaps(labels, plane, (20, 1, 1))[1].sum() == plane.sum()
    assert close_gaps(labels, columns, (20, 1, 1))[1].sum() == 0
