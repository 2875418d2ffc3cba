"""Every random number comes from `rescueseg.randomness`, and no stream changes its numbers between versions."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rescueseg.models.ensemble_training import member_seed
from rescueseg.randomness import keyed_generator, random_generator, seed_numpy, seeded_generator, window_key
from rescueseg.triage.image import haar_noise
from rescueseg.volumes.normalise import measure
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.subsample import sample_boxes

ROOT = Path(__file__).parents[2]


def test_the_same_keys_give_the_same_numbers_and_others_give_others() -> None:
    first = random_generator(1, "query", 0).integers(2**60)
    assert first == random_generator(1, "query", 0).integers(2**60)
    assert first not in (
        random_generator(*keys).integers(2**60) for keys in [(1, "query", 1), (1, "query"), (2, "query", 0)]
    )


def test_the_numbers_stay_the_same_between_versions() -> None:
    """A campaign begun with an older version must draw the same patches when it is rerun."""
    assert random_generator(0, "holdout").integers(1000, size=4).tolist() == [324, 354, 135, 865]
    assert keyed_generator(7, "windows", 0).integers(100, size=3).tolist() == [44, 10, 6]


def test_window_keys_stay_the_same_between_versions_and_are_distinct() -> None:
    """The maps of a generation must not change when it is inferred again."""
    assert [window_key(0, "stack", 0), window_key(5, "v", 0)] == [572847468554575151, 4397112176118879811]
    keys = {window_key(seed, volume, index) for seed in (0, 1) for volume in "ab" for index in range(100)}
    assert len(keys) == 400
    assert all(0 <= key < 2**63 for key in keys)


@pytest.mark.parametrize("entropy", [(0,), (7,), (2**40,), (3, 12, 40, 40)])
def test_plain_numbers_seed_as_numpy_does(entropy: tuple[int, ...]) -> None:
    seed = entropy[0] if len(entropy) == 1 else list(entropy)
    assert seeded_generator(*entropy).random(5).tolist() == np.random.default_rng(seed).random(5).tolist()


def test_numpys_own_generator_is_seeded_as_numpy_does() -> None:
    state = np.random.get_state()
    try:
        seed_numpy(2**32 - 1)
        assert np.random.rand(3).tolist() == np.random.RandomState(2**32 - 1).rand(3).tolist()
    finally:
        np.random.set_state(state)


# the numbers of each stream, as they were before the streams shared one module ----------------------------------------


def test_the_sample_of_chunks_that_intensities_are_scaled_by_stays() -> None:
    image = np.arange(40 * 50 * 60, dtype=np.float32).reshape(1, 40, 50, 60)
    scaling = measure(image, (8, 10, 10))
    assert (scaling.low, scaling.high) == pytest.approx((942.305, 119210.26), rel=1e-9)
    assert (scaling.mean, scaling.std) == pytest.approx((63782.21953424889, 33643.54016552917), rel=1e-6)


def test_the_phantom_stays() -> None:
    image, truth, _ = make_phantom((12, 40, 40), seed=3)
    assert hashlib.sha256(truth.tobytes()).hexdigest().startswith("5b47315fa83b58a3")
    assert image[0, 0, :6].tolist() == [204, 189, 140, 177, 192, 140]
    assert image[5, 20, :6].tolist() == [197, 206, 176, 212, 237, 268]


def test_the_dither_under_the_noise_of_an_image_stays() -> None:
    noise = haar_noise(np.arange(2 * 8 * 8).reshape(2, 8, 8) % 7, step=1.0)
    assert noise.tolist() == pytest.approx([0.42565204637284226, 0.2886751345948129], rel=1e-12)


def test_the_sample_of_chunks_for_histograms_stays() -> None:
    boxes = sample_boxes((64, 64, 64), (16, 16, 16), 4 * 16**3, "histogram")
    assert [box.offset_zyx for box in boxes] == [(0, 0, 48), (16, 48, 32), (32, 0, 32), (48, 32, 32)]


def test_the_seeds_of_an_ensembles_members_stay() -> None:
    assert [member_seed(5, member) for member in range(3)] == [5, 1321357194, 830275052]


# nothing else draws ---------------------------------------------------------------------------------------------------

GENERATORS = {"default_rng", "RandomState", "Philox", "PCG64", "SeedSequence"}


def draws(tree: ast.AST) -> Iterator[str]:
    """Yield what makes, seeds or uses a generator by itself: numpy's functions, Python's module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith(("np.random.", "numpy.random.")) and name.split(".")[2] != "Generator":
                yield name
        elif isinstance(node, ast.Call):
            yield from {ast.unparse(node.func)} & {"np.random.Generator", "numpy.random.Generator"}
        elif isinstance(node, ast.Name):
            yield from {node.id} & GENERATORS
        elif isinstance(node, ast.Import):
            yield from {a.name for a in node.names} & {"random", "numpy.random"}
        elif isinstance(node, ast.ImportFrom):
            yield from {node.module or ""} & {"random", "numpy.random"}


@pytest.mark.parametrize("package", ["rescueseg", "tasks", "flows"])
def test_only_the_module_of_random_numbers_makes_generators(package: str) -> None:
    """Torch, which has generators of its own, is seeded in `rescueseg/models` with numbers of `keyed_generator`."""
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / package).rglob("*.py")}
    files.pop("rescueseg/randomness.py", None)
    assert {name: list(calls) for name, text in files.items() if (calls := set(draws(ast.parse(text))))} == {}
    assert [n for n, text in files.items() if "manual_seed" in text and not n.startswith("rescueseg/models/")] == []


@pytest.mark.parametrize(
    "line",
    [
        "rng = np.random.default_rng(seed)",
        "np.random.seed(0)",
        "np.random.shuffle(boxes)",
        "rng = np.random.Generator(np.random.Philox(key=3))",
        "from numpy.random import default_rng",
        "import random",
        "from random import shuffle",
    ],
)
def test_a_generator_is_seen_wherever_it_hides(line: str) -> None:
    assert list(draws(ast.parse(line)))
    assert not list(draws(ast.parse("def draw(rng: np.random.Generator) -> int: ...")))
