"""The triage of whole campaigns: what it writes, what it bars, and how its evidence follows the image."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.campaign.label_arrays import read_objects
from rescueseg.campaign.route import current_choice
from rescueseg.cli.main import app
from rescueseg.errors import CampaignError, ConfigError, SamplingError
from rescueseg.geometry import Box
from rescueseg.queue.store import open_queue
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages import tickets
from rescueseg.stages.triage import triage_campaign
from rescueseg.triage.advice import hardest
from rescueseg.triage.evidence import measure_chunks
from rescueseg.triage.records import TRIAGE, Triage
from rescueseg.triage.rough_masks import rough_patches
from rescueseg.triage.structure import RoughPatch
from rescueseg.triage.tree import ROUTES
from rescueseg.triage.triage import harmless, triage_classes
from rescueseg.volumes.batch_import import add_volumes, start_campaign
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from tests.choices import refused_choice

SPACING = (2.0, 1.0, 1.0)


def cells(shape: tuple[int, int, int] = (24, 96, 96), seed: int = 0) -> np.ndarray:
    """Numbered balls, some of which touch."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros(shape, np.uint16)
    grid = np.indices(shape)
    for i in range(1, 26):
        centre = [rng.integers(4, n - 4) for n in shape]
        radius = rng.uniform(6, 8)
        away = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, SPACING, strict=True))
        numbers[(away <= radius**2) & (numbers == 0)] = i
    return numbers


def picture(numbers: np.ndarray, noise: float = 8.0, contrast: float = 60.0, seed: int = 1) -> np.ndarray:
    image = 100 + contrast * ndimage.gaussian_filter((numbers > 0).astype(float), (0.5, 1, 1))
    return image + np.random.default_rng(seed).normal(0, noise, numbers.shape)


def make(folder: Path, image: np.ndarray, truth: np.ndarray, kind: Any = "instance", **more: Any) -> Campaign:
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "raw.tif", image, metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "truth.tif", truth, metadata={"axes": "ZYX"})
    return start_campaign(
        str(folder / "campaign"),
        settings_of("cells", ["cell"], more.pop("settings", [])),
        [
            VolumeImport(
                str(folder / "raw.tif"),
                spacing=SPACING,
                truth=str(folder / "truth.tif"),
                truth_type=kind,
                volume_id="v",
            )
        ],
        say=lambda line: None,
    )


def run(campaign: Campaign, **options: Any) -> Triage:
    store = open_queue(campaign)
    return triage_campaign(campaign, store, **options)


def numbers_of(result: Triage) -> dict[str, float]:
    return {e.name: e.value for e in result.evidence if e.value is not None}


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return make(tmp_path, np.clip(picture(cells()), 0, 255).astype(np.uint8), cells())


def test_touching_balls_are_a_boundary_problem_and_everything_is_written_down(campaign: Campaign) -> None:
    result = run(campaign, mask="truth")
    assert (result.problem, result.letter, result.complexity, result.mask) == ("boundary", "A", "moderate", "truth")
    assert result.trainer == "nnunet"
    assert any("stardist" in line and "would come first" in line for line in result.advice)
    assert campaign.records.read(TRIAGE) == result
    assert campaign.storage.read_bytes("triage.png").startswith(b"\x89PNG")
    assert result.chunks_read <= result.chunks
    assert run(campaign, mask="truth") == result, "the same again"
    assert run(campaign) == result, "auto goes on with the truth that was looked at"


def test_what_was_looked_at_is_barred_from_the_holdout_and_counts_as_annotated(campaign: Campaign) -> None:
    run(campaign, mask="truth")
    rough = campaign.rough_patches()
    assert rough
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    holdout = campaign.holdout()
    assert holdout is not None
    assert not any(p.box.intersects(b) for p in rough for b in holdout.guarded("v", campaign.volumes.shared_places()))
    assert {p.box for p in rough} <= {t.box for t in store.views.tickets(purpose="pool")}
    campaign.storage.remove("rough.json")
    with pytest.raises(SamplingError, match="frozen"):
        run(campaign, mask="truth")


def test_truth_of_a_volume_held_out_whole_is_left_alone_and_so_is_that_of_its_copies(tmp_path: Path) -> None:
    numbers = cells()
    held = make(tmp_path, picture(numbers), numbers, settings=['holdout.volumes=["v"]'])
    tifffile.imwrite(tmp_path / "copy.tif", picture(numbers)[:, ::-1], metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "turned.tif", numbers[:, ::-1], metadata={"axes": "ZYX"})
    add_volumes(
        held,
        [
            VolumeImport(
                str(tmp_path / "copy.tif"), spacing=SPACING, truth=str(tmp_path / "turned.tif"), truth_type="instance"
            )
        ],
        say=lambda _: None,
    )
    assert held.volumes.shared_places().related("v") == ["v", "copy"]
    with pytest.raises(SamplingError, match=r"beside what holdout.volumes holds out"):
        run(held, mask="truth")
    assert held.rough_patches() == []


def test_patches_in_a_refused_volume_are_not_looked_at_and_get_no_ticket(campaign: Campaign) -> None:
    run(campaign, mask="truth")
    record = campaign.volumes.record("v")
    campaign.volumes.save(record.model_copy(update={"volume_id": "good", "files": ""}))
    shutil.copytree(campaign.storage.path("volumes/v.ome.zarr"), campaign.storage.path("volumes/good.ome.zarr"))
    campaign.volumes.save(record.model_copy(update={"refused": "its spacing is wrong"}))
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    assert {t.volume_id for t in store.views.tickets()} == {"good"}
    assert run(campaign, mask="auto").mask == "none"
    campaign.volumes.save(record)
    tickets.prepare(campaign, store)
    SimulatedAnnotator(campaign, store).drain()
    campaign.volumes.save(record.model_copy(update={"refused": "its spacing is wrong"}))
    assert run(campaign).mask == "annotations"


def test_accepted_annotations_are_the_better_mask(campaign: Campaign) -> None:
    with pytest.raises(SamplingError, match="no patch is annotated"):
        run(campaign, mask="annotations")
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    SimulatedAnnotator(campaign, store).drain()
    assert run(campaign).mask == "annotations"


def test_without_any_label_a_threshold_is_guessed_and_said(campaign: Campaign) -> None:
    result = run(campaign)
    assert result.mask == "threshold"
    assert not result.is_guess, "two places are needed, and the volume is as large as one"
    assert any("a threshold paints here does not tell the shape" in line for line in result.advice)
    bare = run(campaign, mask="none", structure="network")
    assert (bare.letter, bare.mask, bare.disagreement) == ("C", "none", "")


def test_word_and_measurement_are_both_shown(campaign: Campaign) -> None:
    result = run(campaign, mask="truth", structure="network")
    assert result.letter == "C"
    assert "measured alone it would be A" in result.disagreement


def test_the_route_is_the_default_and_a_person_may_override(tmp_path: Path) -> None:
    noisy = make(tmp_path / "a", picture(cells(), noise=60).astype(np.float32), cells())
    assert (current_choice(noisy).trainer, current_choice(noisy).strategy) == ("monai_unet", "clasp_entropy")
    assert run(noisy, mask="truth").route.name == "low_snr"
    assert current_choice(noisy).strategy == "power_bald"
    decided = Campaign(noisy.storage, settings_of("n", ["a"], ["query.strategy=entropy", "training.trainer=mine"]))
    assert (current_choice(decided).trainer, current_choice(decided).strategy) == ("mine", "entropy")


def test_a_tree_of_tubes_is_a_topology_problem(tmp_path: Path) -> None:
    tubes = np.zeros((24, 96, 96), np.uint8)
    for offset in range(6, 96, 22):
        tubes[10:13, offset : offset + 5] = 1
        tubes[10:13, :, offset : offset + 5] = 1
    result = run(make(tmp_path, picture(tubes).astype(np.float32), tubes, "semantic"), mask="truth")
    assert (result.letter, result.complexity) == ("C", "difficult")
    assert any("pressed together" in line for line in result.advice), "a class mask cannot tell"


def degraded(change: Callable[[np.ndarray, float], np.ndarray], steps: list[float], tmp_path: Path) -> list[Triage]:
    clean = picture(cells(), noise=4.0)
    return [
        run(make(tmp_path / str(i), change(clean, step).astype(np.float32), cells()), mask="truth")
        for i, step in enumerate(steps)
    ]


def test_added_poisson_gaussian_noise_lowers_the_snr_step_by_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    results = degraded(
        lambda image, s: (
            rng.poisson(np.clip(image, 0, None) / (s / 10 + 0.01)) * (s / 10 + 0.01) + rng.normal(0, s, image.shape)
        ),
        [0.0, 8.0, 16.0, 32.0, 64.0],
        tmp_path,
    )
    snr = [numbers_of(r)["snr"] for r in results]
    assert all(a > b for a, b in itertools.pairwise(snr)), snr
    assert results[0].letter == "A"
    assert results[-1].route.name == "low_snr"


def test_added_axial_blur_lengthens_the_axial_correlation_step_by_step(tmp_path: Path) -> None:
    results = degraded(lambda image, s: ndimage.gaussian_filter(image, (s, 0, 0)), [0.0, 1.5, 3.0], tmp_path)
    blur = [numbers_of(r)["axial_blur"] for r in results]
    assert blur == sorted(blur)
    assert blur[-1] > 1.3 * blur[0]


def test_gain_and_offset_change_nothing_that_decides(tmp_path: Path) -> None:
    results = degraded(lambda image, s: image * s + 1000 * (s - 1), [1.0, 7.0], tmp_path)
    first, second = (numbers_of(r) for r in results)
    assert results[0].route == results[1].route
    for name in ("snr", "texture", "length", "star_convexity", "axial_blur", "z_drift"):
        assert second[name] == pytest.approx(first[name], rel=0.05, abs=0.01), name
    assert second["contrast"] == pytest.approx(7 * first["contrast"], rel=0.02)


def test_a_campaign_that_cannot_be_triaged_says_why(campaign: Campaign, tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="channel 3"):
        run(campaign, channel=3)
    with pytest.raises(ConfigError, match="'tube' is unknown"):
        run(campaign, structure="tube")
    with pytest.raises(ConfigError, match="'thresold' is unknown"):
        run(campaign, mask="thresold")
    empty = Campaign.create(str(tmp_path / "empty"), settings_of("e", ["a"]))
    with pytest.raises(CampaignError, match="no volume"):
        run(empty)
    assert campaign.records.read(TRIAGE) is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("depth", [1, 2, 65])
def test_volumes_whose_chunks_are_one_plane_or_two_deep(tmp_path: Path, depth: int) -> None:
    image = np.random.default_rng(0).integers(0, 200, (depth, 48, 48)).astype(np.uint8)
    campaign = make(tmp_path, image, (image > 150).astype(np.uint8), "semantic")
    named = {e.name: e.value for e in run(campaign, mask="none").evidence}
    assert named["noise"] is not None
    if depth < 65:
        assert named["axial_blur"] is None


def test_a_phantom_from_the_command_line(tmp_path: Path) -> None:
    image, truth, spacing = make_phantom((16, 64, 64), seed=3)
    tifffile.imwrite(tmp_path / "raw.tif", image, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "truth.tif", truth, metadata={"axes": "ZYX"})
    volume = VolumeImport(str(tmp_path / "raw.tif"), spacing=spacing, truth=str(tmp_path / "truth.tif"))
    start_campaign(str(tmp_path / "c"), settings_of("p", ["organelle"]), [volume], say=lambda line: None)
    runner = CliRunner()
    wrong = runner.invoke(app, ["triage", str(tmp_path / "c"), "--structure", "tube"])
    assert "'tube' is not one of 'nuclei', 'cells', 'vesicles'," in refused_choice(wrong)
    wrong = runner.invoke(app, ["triage", str(tmp_path / "c"), "--mask", "guess"])
    assert "'guess' is not one of 'auto', 'annotations', 'truth'," in refused_choice(wrong)
    done = runner.invoke(app, ["triage", str(tmp_path / "c"), "--mask", "truth"])
    assert done.exit_code == 0, done.output
    assert "Problem" in done.output
    assert "triage.png" in done.output
    assert (tmp_path / "c" / "triage.png").exists()


def test_numbers_of_accepted_annotations_are_read_where_objects_are_numbered(tmp_path: Path) -> None:
    settings = ["annotation.labels=instance", "sampling.patch_zyx=[12, 36, 36]", "holdout.box_zyx=[4, 8, 8]"]
    campaign = make(tmp_path, picture(cells()), cells(), settings=settings)
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    SimulatedAnnotator(campaign, store).drain()
    patches, _ = rough_patches(campaign, store, "annotations", 0)
    accepted = store.views.accepted("pool")
    assert len(patches) == len(accepted) > 0
    for patch, annotation in zip(patches, accepted, strict=True):
        assert patch.instances
        np.testing.assert_array_equal(patch.labels, read_objects(campaign.storage, annotation))
    assert max(int(patch.labels.max()) for patch in patches) > 1, "a class mask has ones alone"


def test_of_several_classes_the_hardest_decides_and_cleaning_harms_none(tmp_path: Path) -> None:
    labels = (cells() > 0).astype(np.uint8)
    labels[:, :, :40] = 0
    for offset in range(4, 96, 22):
        labels[10:13, offset : offset + 4, :34] = 2
    labels[10:13, :, 12:16] = 2
    campaign = Campaign.create(str(tmp_path / "two"), settings_of("two", ["nucleus", "vessel"]))
    box, image = Box((0, 0, 0), (24, 96, 96)), picture(labels)
    patch = RoughPatch("v", box, (24, 96, 300), SPACING, image, labels, np.zeros(labels.shape, bool), instances=False)
    measures = {"v": measure_chunks([(box, image)], SPACING)}
    classes = triage_classes(campaign, [patch], measures, [], None)
    assert [(c.name, c.voxels) for c in classes] == [
        ("nucleus", int((labels == 1).sum())),
        ("vessel", int((labels == 2).sum())),
    ]
    assert classes[0].route in ("star_convex", "blob")
    assert classes[1].route == "topology"
    assert hardest(classes).name == "vessel"
    assert classes[1].voxels < classes[0].voxels, "not the larger one"
    assert harmless(ROUTES["topology"], {}, classes).postprocessing == "none", "filling and keeping suit one class each"
    assert harmless(ROUTES["topology"], {}, classes[1:]).postprocessing == "connected"
    assert harmless(ROUTES["star_convex"], {"hollow": 0.9}, []).postprocessing == "specks", "vesicles stay hollow"
    single = RoughPatch("v", box, box.shape_zyx, SPACING, image, (labels == 1) * 1, patch.unknown, instances=False)
    assert triage_classes(campaign, [single], measures, [], None) == []


def test_a_triage_written_before_classes_were_told_apart_still_loads(campaign: Campaign) -> None:
    result = run(campaign, mask="truth")
    older = result.model_dump(mode="json")
    del older["classes"]
    del older["thresholds"]["puncta"]
    for item in older["evidence"]:
        del item["censored"]
    older["steps"] = [step for step in older["steps"] if step["route"] != "puncta"]
    loaded = Triage.model_validate(older)
    assert (loaded.route, loaded.classes, loaded.title) == (result.route, (), result.title)
