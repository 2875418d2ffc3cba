"""A volume's mask, made block by block, is that of the whole volume in memory: voxel for voxel."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import ndimage

from rescueseg.campaign.folders import GenerationFolder
from rescueseg.config import InferenceConfig
from rescueseg.delivery import mask_passes
from rescueseg.delivery.block_pass import Arrays
from rescueseg.delivery.estimate import SCRATCH
from rescueseg.delivery.folder import MASK, DeliveryFolder, SourceVolume
from rescueseg.delivery.label_arrays import LabelArray
from rescueseg.delivery.masks import make_mask, mask_of_box
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.delivery.uncleaned import uncleaned_of_box
from rescueseg.evaluation.temperature import temper
from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.inference.maps import InferencePlan, VolumeMaps
from rescueseg.postprocessing.mask_steps import clean_mask
from rescueseg.records import MapReference, ModelReference
from rescueseg.storage import Storage
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.ome_zarr import create_image

SPACING = (0.3, 0.1, 0.1)
SHAPE = (14, 37, 41)
MODEL = ModelReference(generation=0, trainer="monai_unet", path="m", digest="m")
ALL_STEPS = (
    CleanUp(bridge_um=0.5, bridge_probability=0.2, spurs_um=0.4, smallest_um3=0.05, cavities_um3=0.1),
    CleanUp(bridge_um=0.6, bridge_probability=0.1, spurs_um=0.3, cavities_um3=0.5, largest=True),
)
RULE = DeliveryRule(model_digest="m", truth_digest="t", temperature=1.3, threshold=0.45, cleanup=ALL_STEPS)
PLAIN = RULE.model_copy(update={"cleanup": (CleanUp(), CleanUp())})


def random_probability(seed: int, shape: ZYX = SHAPE, smooth: float = 1.3) -> np.ndarray:
    """Return maps of two classes: blobs, branches, and noise on top that makes specks, holes and gaps."""
    rng = np.random.default_rng(seed)
    sigma = (0.0, smooth / 2, smooth, smooth)
    logits = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), sigma)
    logits = 5 * logits / logits.std() + rng.normal(size=(3, *shape)) * 0.7
    logits[0] += 1
    odds = np.exp(logits - logits.max(axis=0))
    return np.asarray(odds / odds.sum(axis=0), np.float16)


def write_maps(folder: Path, probability: np.ndarray) -> SourceVolume:
    """Write the map of probabilities, and what makes it complete."""
    source = SourceVolume("v", str(folder), str(folder), 0)
    shape = probability.shape[1:]
    plan = InferencePlan(
        model=MODEL, volume_id="v", volume_digest="d", shape_zyx=shape, spacing_um_zyx=SPACING, n_classes=2, seed=0,
        inference=InferenceConfig(), window_zyx=(8, 8, 8), block_zyx=(8, 16, 16), chunk_zyx=(8, 16, 16),
    )  # fmt: skip
    maps = VolumeMaps(GenerationFolder.of(Storage(str(folder)), 0), "v")
    maps.prepare(plan, ["a", "b"])
    for index, box in enumerate(plan.blocks):
        maps.mark(plan, index, "d", maps.write("probability", box, probability[(slice(None), *box.slices)]))
    reference = MapReference(
        generation=0, volume_id="v", model_digest="m", quantities=("probability",), blocks=len(plan.blocks), digest="d"
    )
    maps.finish(reference)
    return source


def make_target(folder: Path, probability: np.ndarray, rule: DeliveryRule, block: ZYX) -> TargetVolume:
    """Return a volume whose maps are there, and whose mask is still empty."""
    out = DeliveryFolder(str(folder / "out"))
    target = TargetVolume(write_maps(folder, probability), out, rule, probability.shape[1:], SPACING, block)
    create_empty(target)
    return target


def create_empty(target: TargetVolume) -> None:
    layout = ImageLayout(target.shape_zyx, np.uint8, SPACING, chunks=target.block_zyx, shards=target.block_zyx)
    create_image(target.label_url(MASK), layout)


def made(target: TargetVolume, digest: str = "maps") -> np.ndarray:
    make_mask(target, Step(target.out.pass_url("v", "mask"), digest))
    return LabelArray(target.label_url(MASK), "0").read(Box((0, 0, 0), target.shape_zyx))


@pytest.fixture(scope="module")
def probability() -> np.ndarray:
    return random_probability(1)


def test_each_step_changes_these_maps(probability: np.ndarray) -> None:
    """What follows compares nothing that a missing step would not show."""
    tempered = temper(probability.astype(np.float32), RULE.temperature)
    labels = uncleaned_of_box(probability.astype(np.float32), RULE)
    assert np.array_equal(np.unique(labels), [0, 1, 2])
    whole = clean_mask(labels, tempered, SPACING, ALL_STEPS)
    for c, name in itertools.product((0, 1), CleanUp.model_fields):
        without = [*ALL_STEPS]
        without[c] = without[c].model_copy(update={name: False if name == "largest" else 0.0})
        if without[c] != ALL_STEPS[c]:
            assert not np.array_equal(clean_mask(labels, tempered, SPACING, without), whole), (c, name)


@pytest.mark.parametrize("block", [(14, 37, 41), (7, 19, 41), (5, 37, 41), (14, 13, 21)])
def test_blocks_do_not_show(tmp_path: Path, probability: np.ndarray, block: ZYX) -> None:
    expected = mask_of_box(probability.astype(np.float32), RULE, SPACING)
    assert np.array_equal(made(make_target(tmp_path, probability, RULE, block)), expected)


@pytest.mark.parametrize("seed", range(4))
def test_random_maps_and_rules(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 9)), int(rng.integers(5, 26)), int(rng.integers(5, 26)))
    cleanup = tuple(
        CleanUp(
            bridge_um=rng.choice([0, 0.25, 0.7]),
            bridge_probability=rng.choice([0, 0.2]),
            spurs_um=rng.choice([0, 0.25, 0.65]),
            smallest_um3=rng.choice([0, 0.02, 0.2]),
            cavities_um3=rng.choice([0, 0.01, 1.0]),
            largest=bool(rng.random() < 0.3),
        )
        for _ in range(2)
    )
    rule = RULE.model_copy(update={"cleanup": cleanup, "temperature": float(rng.uniform(0.5, 2))})
    probability = random_probability(seed, shape, smooth=float(rng.uniform(0.3, 1.5)))
    block = zyx(-(-n // int(rng.integers(1, 3))) for n in shape)
    expected = mask_of_box(probability.astype(np.float32), rule, SPACING)
    assert np.array_equal(made(make_target(tmp_path, probability, rule, block)), expected)


def test_a_rule_without_clean_up_needs_one_pass(tmp_path: Path, probability: np.ndarray) -> None:
    target = make_target(tmp_path, probability, PLAIN, (8, 16, 16))
    mask = made(target)
    assert np.array_equal(mask, uncleaned_of_box(probability.astype(np.float32), PLAIN))
    assert np.array_equal(mask, mask_of_box(probability.astype(np.float32), PLAIN, SPACING))
    assert Storage(target.out.pass_url("v", "mask")).list("") == ["uncleaned"]
    assert not Storage(target.out.work_url("scratch", "v")).exists("")


@pytest.mark.parametrize(
    "where", ["_write_numbers", "_write_between", "_add_regions", "_write_thin", "_find_touches", "_drop", "_fill"]
)
def test_a_rerun_goes_on_where_it_was_killed(
    tmp_path: Path, probability: np.ndarray, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    expected = mask_of_box(probability.astype(np.float32), RULE, SPACING)
    target = make_target(tmp_path, probability, RULE, (14, 37, 21))
    whole, calls = getattr(mask_passes, where), list[Box]()

    def killed(job: object, box: Box) -> Arrays:
        if calls:
            raise KeyboardInterrupt
        calls.append(box)
        arrays: Arrays = whole(pickle.loads(pickle.dumps(job)), box)
        return arrays

    monkeypatch.setattr(mask_passes, where, killed)
    with pytest.raises(KeyboardInterrupt):
        made(target)
    monkeypatch.setattr(mask_passes, where, whole)
    monkeypatch.setattr("rescueseg.delivery.masks._write_uncleaned", no_block)
    assert np.array_equal(made(target), expected)
    monkeypatch.setattr(VolumeMaps, "open", no_block)
    assert np.array_equal(made(target), expected)
    assert not Storage(target.out.work_url("scratch", "v")).list("")


def no_block(*_: object) -> Arrays:
    raise AssertionError("a block was done again")


def test_another_rule_or_other_blocks_begin_anew(tmp_path: Path, probability: np.ndarray) -> None:
    """The same rule and blocks twice among them: each time the mask is made anew, which its digest says."""
    target = make_target(tmp_path, probability, PLAIN, (14, 19, 41))
    cases = ((PLAIN, (14, 19, 41)), (RULE, (14, 19, 41)), (RULE, (14, 37, 41)), (RULE, (14, 19, 41)))
    for number, (rule, block) in enumerate(cases):
        target = replace(target, rule=rule, block_zyx=block)
        create_empty(target)
        whole = mask_of_box(probability.astype(np.float32), rule, SPACING)
        assert np.array_equal(made(target, digest=f"{number}"), whole)


def test_scratch_of_another_digest_is_not_taken_for_ours(
    tmp_path: Path, probability: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed under one rule, then under another with fewer blocks, then the first again."""
    target = make_target(tmp_path, probability, RULE, (7, 19, 41))
    whole = mask_passes._write_thin
    monkeypatch.setattr(mask_passes, "_write_thin", no_block)
    with pytest.raises(AssertionError):
        made(target)
    with pytest.raises(AssertionError):
        made(replace(target, block_zyx=(14, 19, 41)))
    monkeypatch.setattr(mask_passes, "_write_thin", whole)
    assert np.array_equal(made(target), mask_of_box(probability.astype(np.float32), RULE, SPACING))


def test_what_lies_between_passes_is_no_more_than_an_estimate_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is done on noise, which compresses badly, and nothing is removed."""
    shape = (48, 64, 64)
    target = make_target(tmp_path, random_probability(3, shape, smooth=0.3), RULE, (24, 64, 64))
    monkeypatch.setattr(mask_passes.Cleaning, "remove_scratch", lambda self: None)
    made(target)
    work = tmp_path / "out" / "work"
    size = sum(p.stat().st_size for p in work.rglob("*") if p.is_file())
    arrays = [zarr.open_array(p.parent, mode="r") for p in (work / "scratch").rglob("zarr.json")]
    assert sum(a.dtype.itemsize for a in arrays) + 3 == SCRATCH
    assert 0 < size <= SCRATCH * np.prod(shape)
