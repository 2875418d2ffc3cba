"""Evidence of a few patches: what is cut, hollow, tiny or all there is, and what several classes are like, each by itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from rescueseg.config import TriageConfig
from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.triage.evidence import measure_chunks
from rescueseg.triage.objects import ObjectShape, describe_object, describe_objects
from rescueseg.triage.structure import RoughPatch, _lengths, structure_evidence
from rescueseg.triage.tree import decide

CUBIC = (1.0, 1.0, 1.0)
Places = list[tuple[float, float, float]]


def balls(shape: tuple[int, int, int], places: Places, radius: float, spacing: Spacing = CUBIC) -> np.ndarray:
    """Numbered balls; places in voxels."""
    numbers = np.zeros(shape, np.int32)
    grid = np.indices(shape).astype(float)
    for number, place in enumerate(places, start=1):
        away = sum(((g - p) * s) ** 2 for g, p, s in zip(grid, place, spacing, strict=True))
        numbers[away <= radius**2] = number
    return numbers


def lattice(shape: tuple[int, int, int], step: int, seed: int = 0) -> Places:
    """Places `step` voxels apart, each moved by less than one voxel."""
    rng = np.random.default_rng(seed)
    starts = np.stack(np.meshgrid(*[np.arange(step // 2, n, step) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    return [(z, y, x) for z, y, x in (starts + rng.uniform(-0.5, 0.5, starts.shape)).tolist()]


def measured(
    labels: np.ndarray, spacing: Spacing = CUBIC, *, instances: bool = False, inside: bool = True, noise: float = 5.0
) -> dict[str, float]:
    """Return the evidence of one patch; `inside`: the volume goes on beyond all of its faces."""
    offset = (10, 10, 10) if inside else (0, 0, 0)
    whole = zyx(n + 2 * o for n, o in zip(labels.shape, offset, strict=True))
    image = 100 + 60 * ndimage.gaussian_filter((labels > 0).astype(float), 0.6)
    image += np.random.default_rng(1).normal(0, noise, labels.shape)
    box = Box(offset, zyx(labels.shape))
    patch = RoughPatch("v", box, whole, spacing, image, labels, np.zeros(labels.shape, bool), instances)
    evidence = structure_evidence([patch], {"v": measure_chunks([(box, image)], spacing)})
    return {e.name: e.value for e in evidence if e.value is not None}


def route(numbers: dict[str, float]) -> str:
    return decide(numbers, TriageConfig())[0].name


@pytest.fixture
def smoothed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Voxels and widest standard deviation, in voxels, of every Gaussian filter."""
    calls: list[tuple[int, float]] = []
    filtered = ndimage.gaussian_filter

    def counted(image: np.ndarray, sigma: Any, *rest: Any, **more: Any) -> np.ndarray:
        calls.append((image.size, float(np.max(sigma))))
        return np.asarray(filtered(image, sigma, *rest, **more))

    monkeypatch.setattr(ndimage, "gaussian_filter", counted)
    return calls


def test_a_patch_that_is_all_structure_has_no_thickness_and_costs_nothing(smoothed: list[tuple[int, float]]) -> None:
    numbers = measured(np.ones((48, 64, 64), np.uint8))
    smoothed_before = len(smoothed)
    shapes = describe_objects(np.ones((48, 64, 64), np.int32), CUBIC)
    assert len(smoothed) == smoothed_before, "nothing is filtered where no border is seen"
    assert [(s.volume, s.cut, s.skeleton) for s in shapes] == [(48 * 64 * 64, True, 0.0)]
    assert all(map(math.isnan, (shapes[0].thickness, shapes[0].tubularity, shapes[0].sphericity)))
    assert "thickness" not in numbers
    assert "slenderness" not in numbers
    assert decide(numbers, TriageConfig())[0].name == "custom"


def test_an_object_larger_than_the_patch_has_no_thickness(smoothed: list[tuple[int, float]]) -> None:
    """A corner of the background is all that is seen beside it."""
    labels = np.ones((48, 64, 64), np.uint8)
    labels[:4, :4, :4] = 0
    numbers = measured(labels)
    assert "thickness" not in numbers
    assert max(size for size, _ in smoothed) <= labels.size
    assert {"objects", "density", "snr"} <= set(numbers)


def test_gapless_numbered_cells_are_measured_with_bounded_filters(smoothed: list[tuple[int, float]]) -> None:
    shape = (48, 64, 64)
    places = np.array(lattice(shape, 22, seed=3))
    grid = np.stack(np.indices(shape), -1).reshape(-1, 3)
    cells = (((grid[:, None] - places[None]) ** 2).sum(-1).argmin(1) + 1).reshape(shape).astype(np.uint16)
    numbers = measured(cells, instances=True)
    sigmas = [sigma for size, sigma in smoothed if size != cells.size]
    assert max(sigmas) < 6.5
    assert max(size for size, _ in smoothed) < 200_000
    assert numbers["objects"] == len(places)
    assert numbers["thickness"] == pytest.approx(22, rel=0.35)
    assert numbers["length"] < 5
    assert numbers["connected"] == 0


def test_the_smoothing_of_a_thick_object_is_bounded_and_its_shape_the_same(smoothed: list[tuple[int, float]]) -> None:
    small, large = (describe_object(balls((2 * r + 3,) * 3, [(r + 1,) * 3], r) > 0, CUBIC) for r in (6, 18))
    assert max(sigma for _, sigma in smoothed) < 6.5
    assert large.tubularity + large.plateness == pytest.approx(small.tubularity + small.plateness, abs=0.08)


@pytest.mark.parametrize(("diameter", "spacing"), [(6, CUBIC), (10, CUBIC), (16, CUBIC), (12, (3.0, 1.0, 1.0))])
def test_a_ball_is_as_thick_as_its_diameter_wherever_its_middle_lies(diameter: int, spacing: Spacing) -> None:
    rng = np.random.default_rng(diameter)
    thickness = []
    for shift in rng.uniform(-0.5, 0.5, (8, 3)):
        shape = zyx(int(diameter / s) + 4 for s in spacing)
        middle = tuple((n - 1) / 2 + d for n, d in zip(shape, shift, strict=True))
        ball = balls(shape, [middle], diameter / 2, spacing) > 0  # type: ignore[list-item]
        thickness.append(describe_object(ball, spacing).thickness)
    assert np.mean(thickness) == pytest.approx(diameter, abs=0.5 if spacing == CUBIC else 1.0)
    assert max(abs(t - diameter) for t in thickness) < max(spacing)


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_a_ball_in_a_stack_of_a_few_slices_is_as_thick(planes: int) -> None:
    """The volume's faces are no borders of what they cut."""
    slices = (balls((11, 24, 24), [(5.0, 11.5, 11.5)], 5.0) > 0)[5 - planes // 2 :][:planes]
    numbers = measured(slices.astype(np.uint8), inside=False)
    assert numbers["thickness"] == pytest.approx(10, abs=0.5)
    assert numbers["slenderness"] < 0.3


@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_sheets_and_rods_are_as_thick_as_they_have_voxels(width: int) -> None:
    assert describe_object(np.ones((width, 30, 30), bool), CUBIC).thickness == width
    assert describe_object(np.ones((width, 30, width), bool), CUBIC).thickness == width


@pytest.mark.parametrize(("radius", "spacing"), [(1.0, CUBIC), (1.5, CUBIC), (2.5, (3.0, 1.0, 1.0))])
def test_puncta_too_small_for_a_shape_still_have_snr_texture_and_density(radius: float, spacing: Spacing) -> None:
    places = lattice((16, 64, 64), 8)
    labels = balls((16, 64, 64), places, radius, spacing)
    assert np.bincount(labels.ravel())[1:].max() < 40
    numbers = measured((labels > 0).astype(np.uint8), spacing)
    assert {"snr", "texture", "thickness"} <= set(numbers)
    assert numbers["density"] == pytest.approx(len(places) / (16 * 64 * 64 * math.prod(spacing)), rel=0.02)
    assert numbers["puncta"] > 0.5
    assert numbers["thickness"] == pytest.approx(2 * radius, rel=0.35)
    assert route(numbers) == "puncta"
    assert route(measured((labels > 0).astype(np.uint8), spacing, noise=60.0)) == "low_snr"


@pytest.mark.parametrize("instances", [False, True])
def test_the_walls_of_separate_vesicles_are_no_network(instances: bool) -> None:
    places = lattice((40, 60, 60), 20)
    walls = balls((40, 60, 60), places, 8.0)
    walls[balls((40, 60, 60), places, 6.0) > 0] = 0
    numbers = measured(walls if instances else (walls > 0).astype(np.uint8), instances=instances)
    assert numbers["hollow"] == 1
    assert numbers["length"] < 5, "was over 100: the skeleton of a closed wall is a surface"
    assert numbers["thickness"] == pytest.approx(2, abs=1)
    assert route(numbers) == "star_convex"


def test_walls_that_cells_share_stay_a_network() -> None:
    walls = np.zeros((40, 40, 40), np.uint8)
    for axis in range(3):
        for place in (4, 20, 36):
            np.moveaxis(walls, axis, 0)[place] = 1
    numbers = measured(walls)
    assert numbers["hollow"] == 0
    assert route(numbers) == "topology"


def test_long_tubes_that_cross_the_patch_are_long_whatever_the_patch_shows() -> None:
    """Twenty tubes of 64 voxels: no end is seen, so that each is at least some 20 times as long as is seen of it."""
    tubes = np.zeros((32, 64, 64), np.uint8)
    z, _, x = np.indices(tubes.shape)
    for centre_z in (4, 12, 20, 28):
        for centre_x in range(6, 64, 13):
            tubes[(z - centre_z) ** 2 + (x - centre_x) ** 2 <= 4] = 1
    numbers = measured(tubes)
    assert numbers["length"] > 100
    assert numbers["length_most"] == 1000, "no end is seen"
    assert route(numbers) == "topology"


def test_rods_that_end_in_the_patch_are_as_long_as_they_are() -> None:
    rods = np.zeros((32, 64, 64), np.uint8)
    for place in range(4, 64, 10):
        rods[6:10, place : place + 4, 10:40] = 1
    numbers = measured(rods)
    assert numbers["length"] == pytest.approx(26 / 4, rel=0.15)
    assert numbers["length_most"] == numbers["length"]
    assert route(numbers) != "topology"


def test_one_short_stretch_of_a_tube_is_not_known_to_be_short() -> None:
    tube = np.zeros((24, 24, 24), np.uint8)
    tube[9:15, 9:15, :] = 1
    _, steps = decide(measured(tube), TriageConfig())
    assert steps[1].answer is None
    assert "the patches cut it" in steps[1].detail


def tubes(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    """A lattice of tubes along (1, 1, 0), (1, 0, 1), (0, 1, 1): slanted to every face."""
    z, y, x = np.indices(shape).astype(float)
    mask = np.zeros(shape, np.uint8)
    for first, second, third in ((z, y, x), (x, z, y), (y, x, z)):
        across = (first - second) / math.sqrt(2)
        aside = (across + 10 * math.sqrt(2)) % (20 * math.sqrt(2)) - 10 * math.sqrt(2)
        mask[aside**2 + ((third + 10) % 20 - 10) ** 2 <= radius**2] = 1
    return mask


def bent_tube(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    """A tube that leaves the patch at both ends of x, on a wave along y, in the middle plane."""
    z, y, x = np.indices(shape).astype(float)
    middle = shape[1] / 2 + shape[1] / 5 * np.sin(2 * np.pi * x / shape[2])
    return ((z - shape[0] / 2) ** 2 + (y - middle) ** 2 <= radius**2).astype(np.uint8)


def test_a_lone_organelle_that_leaves_the_patch_is_no_network() -> None:
    """As long as a mitochondrion's stretch in a small patch: seven times its thickness, and nothing else in the patch."""
    numbers = measured(bent_tube((20, 56, 56), 4.0))
    assert 5 < numbers["length"] < 12
    assert numbers["connected"] == 0
    _, steps = decide(numbers, TriageConfig())
    assert next(step for step in steps if step.route == "topology").answer is None, "the patch cuts it"


def test_the_skeleton_of_what_nearly_fills_the_patch_is_no_line() -> None:
    """A rough lump, three times as wide as thick at most, of which the skeleton has branches all over."""
    rng = np.random.default_rng(4)
    noise = ndimage.gaussian_filter(rng.normal(size=(24, 56, 56)), (2.5, 4, 4))
    lump = (noise > np.quantile(noise, 0.45)).astype(np.uint8)
    patch = RoughPatch("v", Box((9, 9, 9), (24, 56, 56)), (60, 90, 90), (3.0, 1.0, 1.0), noise, lump, lump > 1, False)
    for shape in patch.shapes(patch.objects()):
        if not math.isnan(shape.thickness):
            sides = [max(1.0, side / shape.thickness) for side in (72.0, 56.0, 56.0)]
            assert shape.skeleton / shape.thickness <= math.prod(sides) / 4 + 1e-9


def test_small_patches_of_mitochondria_never_say_network(real_data: Path) -> None:
    """Eight patches each, as a campaign's first round has them."""
    if not (real_data / "cdeep3m_mito_train").is_dir():
        pytest.skip("this volume is not here")
    image, truth = (tifffile.imread(real_data / "cdeep3m_mito_train" / f"{name}.tif") for name in ("raw", "labels"))
    spacing, shape, full = (0.03, 0.01, 0.01), (20, 56, 56), zyx(truth.shape)
    measures = {"v": measure_chunks([(Box((0, 0, 0), (4, 512, 512)), image[:4, :512, :512])], spacing)}
    said = []
    for seed in range(200, 208):
        rng = np.random.default_rng(seed)
        drawn = [Box(zyx(rng.integers(n - s) for n, s in zip(full, shape, strict=True)), shape) for _ in range(8)]
        boxes = [box for box in drawn if truth[box.slices].any()]
        patches = [
            RoughPatch("v", b, full, spacing, image[b.slices], truth[b.slices], np.zeros(shape, bool), instances=False)
            for b in boxes
        ]
        numbers = {e.name: e.value for e in structure_evidence(patches, measures) if e.value is not None}
        said.append(next(step.answer for step in decide(numbers, TriageConfig())[1] if step.route == "topology"))
    assert True not in said, said


def test_slivers_that_a_face_cuts_off_do_not_make_the_lines_long() -> None:
    """A cut line ten times as long as thick, and five slivers of it: twenty times, but short. Twice 22 over three ends, not 110."""

    def line(length: float, thickness: float) -> ObjectShape:
        return ObjectShape(length * thickness**2, thickness, 1.0, 0, 0, length, 1.0, 0.0, 0.5, 0.5, cut=True)

    least, _ = _lengths([line(20.0, 2.0), *[line(2.0, 0.1)] * 5])
    total, thickness = 30.0, (20 * 2.0 + 5 * 2 * 0.1) / 30
    assert least == pytest.approx(2 * total / thickness / 3, rel=0.01), "no end seen: up to three were to be expected"


@pytest.mark.parametrize(("inner", "length"), [(1.0, 20.0), (0.3, 20.0), (0.2, 5.0)])
def test_lines_near_faces_are_not_known_to_be_long_where_no_end_would_be_seen(inner: float, length: float) -> None:
    """Six lines five times as long as thick, cut, no end seen; of those that lie near faces alone, what is seen counts."""
    line = ObjectShape(20.0, 2.0, 1.0, 0, 0, 10.0, 1.0, 0.0, 0.5, 0.5, cut=True, inner=inner)
    assert _lengths([line] * 6)[0] == pytest.approx(length, rel=0.01)


def test_what_a_slice_shows_of_a_network_is_not_called_round() -> None:
    """As deep as the tubes are thick, a patch shows them as discs and ovals."""
    network = tubes((40, 60, 60), 3.0)
    assert route(measured(network)) == "topology"
    taken, steps = decide(measured(network[:5]), TriageConfig())
    assert taken.name == "custom", "was called blobs"
    assert steps[1].answer is None


def test_coarse_planes_make_no_ends_of_a_slanted_tube() -> None:
    """Its skeleton has spurs at the steps from plane to plane, of which one was counted as an end."""
    spacing = (5.0, 1.0, 1.0)
    grid = np.stack(np.indices((8, 60, 60)), -1) * np.array(spacing) - np.array((17.5, 29.5, 29.5))
    for seed in range(2, 6):
        rng = np.random.default_rng(seed)
        way = rng.normal(size=3) * np.array([0.5, 1, 1])
        away = grid - rng.uniform(-2, 2, 3)
        along = away @ (way / np.linalg.norm(way))
        tube = (away**2).sum(-1) - along**2 <= 36
        assert [shape.tips for shape in describe_objects(tube.astype(np.int32), spacing)] == [0]


def test_each_class_can_be_measured_by_itself() -> None:
    labels = (balls((32, 64, 64), lattice((32, 64, 64), 21), 7.0) > 0).astype(np.uint8)
    labels[14:18, :, 30:34] = 2
    numbers = np.arange(1, labels.size + 1).reshape(labels.shape) * 0 + (labels > 0)
    image = np.zeros(labels.shape)
    box = Box((0, 0, 0), zyx(labels.shape))
    unknown = np.zeros(labels.shape, bool)
    semantic = RoughPatch("v", box, box.shape_zyx, CUBIC, image, labels, unknown, instances=False)
    numbered = RoughPatch("v", box, box.shape_zyx, CUBIC, image, numbers, unknown, instances=True, classes=labels)
    expected = {value: int((labels == value).sum()) for value in (1, 2)}
    for patch in (semantic, numbered):
        assert patch.class_voxels() == expected
        assert [int((patch.of_class(v).labels > 0).sum()) for v in (1, 2)] == list(expected.values())
