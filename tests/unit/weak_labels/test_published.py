"""Weights from elsewhere in a campaign: what must be given, what is kept of them, and that objects come apart."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

pytest.importorskip("cellpose", reason="the extra 'cellpose' is not installed")

from rescueseg import volumes
from rescueseg.annotation.label_files import starting_patch
from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.cli.main import app
from rescueseg.config import check_config
from rescueseg.errors import WeakLabelError
from rescueseg.evaluation.instances import compare_instances
from rescueseg.geometry import ZYX, Spacing
from rescueseg.models.cellpose.published import load_published
from rescueseg.models.cellpose.weights_file import read_weights
from rescueseg.queue.records import Filters
from rescueseg.queue.store import open_queue
from rescueseg.records import Normalisation
from rescueseg.stages import tickets
from rescueseg.storage import file_digest
from rescueseg.volumes.normalise import normalise
from rescueseg.voxels.components import label_components
from rescueseg.weak_labels.base import WeakLabel, label_box_objects
from rescueseg.weak_labels.cellpose import CellposeLabeller
from rescueseg.weak_labels.choice import WEIGHTS, Sources, describe
from rescueseg.weak_labels.flow_objects import PERCENTILES, flow_objects
from rescueseg.weak_labels.intensities import PercentileScaling
from rescueseg.weak_labels.methods import METHODS, AnnotatedPatch, agreements
from rescueseg.weak_labels.options import OPTIONS, READ, check_options
from rescueseg.weak_labels.prefill import weak_label
from rescueseg.weak_labels.published_methods import open_published
from rescueseg.weak_labels.samples import sample_volume
from tests import stand_in_cellpose4
from tests.cellpose_weights import save_climbing, save_without_diameter
from tests.touching_balls import cones

SPACING = (0.2, 0.1, 0.1)
DIAMETER = 2.4


def make(folder: Path, labels: str = "instance", classes: tuple[str, ...] = ("cell",), channels: int = 1) -> Campaign:
    config = {"name": "test", "classes": list(classes), "annotation": {"labels": labels}}
    campaign = Campaign.create(str(folder / "c"), check_config(config))
    image, numbers = cones((24, 96, 96), SPACING, DIAMETER)
    many = image if channels == 1 else np.stack([image] * channels)
    tifffile.imwrite(folder / "v.tif", many, metadata={"axes": "ZYX" if channels == 1 else "CZYX"})
    tifffile.imwrite(folder / "t.tif", numbers.astype(np.uint16), metadata={"axes": "ZYX"})
    truth = str(folder / "t.tif") if labels == "instance" else None
    volumes.import_volume(
        campaign,
        volumes.VolumeImport(str(folder / "v.tif"), volume_id="v", spacing=SPACING, truth=truth, truth_type="instance"),
    )
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    store.close()
    return campaign


def sources(folder: Path, **changes: object) -> Sources:
    fields = {"weights": save_climbing(folder / "own", 16.0, slope=8.0, threshold=0.2), "diameter_um": DIAMETER}
    return Sources(**fields | changes)


def test_touching_objects_come_apart(tmp_path: Path) -> None:
    image, truth = cones((24, 72, 72), SPACING, DIAMETER)
    raw = image[np.newaxis].astype(np.float32)
    plain = Normalisation(low=-1e6, high=1e6, mean=0, std=1, linear=0)
    weights = read_weights(sources(tmp_path).weights)
    scaling = PercentileScaling.of([raw], plain, *PERCENTILES)
    labeller = CellposeLabeller(load_published(weights), weights, DIAMETER, scaling, "cpu")
    weak, numbers = labeller.label_objects(raw, SPACING)
    found = compare_instances(numbers, truth)
    assert len(np.unique(truth)) > 15
    assert label_components(weak.labels > 0, 26)[1] < 5, "in the mask they hang together"
    assert 2 * found.iou / (found.found + found.true) > 0.85  # panoptic quality


def test_a_voxel_whose_object_was_too_small_is_background_without_confidence() -> None:
    """A ball of 12 voxels across in a flow towards its middle stays; a speck of the same probability is no object."""
    z, y, x = np.meshgrid(*(np.arange(24) - 8.0,) * 3, indexing="ij")
    distance = np.sqrt(z**2 + y**2 + x**2)
    cell = np.where(distance < 6, 0.9, 0.25).astype(np.float32)
    cell[20, 20, 20] = 0.98
    flow = np.where(distance < 6, -np.stack([z, y, x]) / np.maximum(distance, 1), 0).astype(np.float32)
    weak, numbers = flow_objects(np.stack([1 - cell, cell]), flow, 12.0, (1.0, 1.0, 1.0))
    assert (weak.labels[8, 8, 8], weak.labels[20, 20, 20], numbers.max()) == (1, 0, 1)
    assert weak.confidence[8, 8, 8] == pytest.approx(0.8)
    assert weak.confidence[0, 0, 0] == pytest.approx(0.5)
    assert weak.confidence[20, 20, 20] == 0


class Speckled:
    """Finds one large object and, in its mask alone, a speck beside it."""

    name, n_classes = "speckled", 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        return (0, 0, 0)

    def label(self, image: np.ndarray, spacing_um_zyx: Spacing) -> WeakLabel:
        labels = (image[0] > 0).astype(np.uint8)
        return WeakLabel(labels, np.ones(labels.shape, np.float32))

    def label_objects(self, image: np.ndarray, spacing_um_zyx: Spacing) -> tuple[WeakLabel, np.ndarray]:
        numbers = (image[0] > 1).astype(np.uint32)
        return WeakLabel((numbers > 0).astype(np.uint8), np.ones(numbers.shape, np.float32)), numbers


def test_methods_are_compared_by_the_mask_that_people_get() -> None:
    """Of four annotated voxels all are found; the mask holds four more, which belong to no object."""
    image = np.zeros((1, 1, 4, 4), np.float32)
    image[0, 0, 0], image[0, 0, 2] = 2, 1
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, 0] = 1
    patches = [AnnotatedPatch("t", "v", image, labels, (1.0, 1.0, 1.0))]
    made = {
        numbered: agreements({"it": {"v": Speckled()}}, patches, 1, 0, numbered=numbered) for numbered in (True, False)
    }
    assert (made[True]["it"].dice, made[True]["it"].invented) == (1, 0)
    assert made[False]["it"].dice == pytest.approx(2 / 3)
    assert made[False]["it"].invented == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("blobs", {"weights": "cyto3"}, "the method 'blobs' does not read --weights"),
        ("threshold", {"scribbles": ("a.tif",), "ilp": "a"}, "does not read --scribbles, --ilp"),
        ("classifier", {"from_campaign": "a"}, "does not read --from-campaign"),
        (
            "cellpose",
            {"weights": "a", "diameter_um": 1.0, "python": "p"},
            "the method 'cellpose' does not read --python",
        ),
        ("stardist", {"weights": "a", "diameter_um": 1.0, "licence": "CC0"}, "does not read --diameter"),
        ("auto", {"diameter_um": 1.0, "licence": "CC0"}, "--diameter, --licence says something of weights"),
        (
            "auto",
            {"weights": str(Path(__file__).parent), "diameter_um": 1.0},
            "the method 'stardist' does not read --diam",
        ),
    ],
)
def test_an_option_that_a_method_does_not_read_is_refused(method: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(WeakLabelError, match=message) as raised:
        check_options(method, Sources(**given))
    assert raised.value.todo


def test_what_a_method_reads_passes() -> None:
    every = {"scribbles": ("a.tif",), "ilp": "a", "from_campaign": "a"}
    check_options("auto", Sources(**every, weights="cpsam", diameter_um=1.0, licence="CC0", python="python"))
    check_options("auto", Sources(weights="cyto3", diameter_um=1.0))
    check_options("cellpose-sam", Sources(weights="a", diameter_um=1.0, licence="CC0", python="python"))
    check_options("classifier", Sources(scribbles=("a.tif",)))
    assert set(OPTIONS) == {field.name for field in fields(Sources)}
    assert set(READ) <= set(METHODS)


def test_annotators_start_from_the_objects_and_what_made_them_is_kept(tmp_path: Path) -> None:
    campaign = make(tmp_path)
    store = open_queue(campaign)
    given = sources(tmp_path, licence="CC0")
    result = weak_label(campaign, store, "cellpose", given)
    assert result.tickets > 0
    lease = store.leases.claim("anna", 60, filters=Filters(purpose="pool"))
    assert lease is not None
    start = starting_patch(campaign.storage, lease, campaign.config)
    assert start.instances is not None
    volume, image = campaign.volumes.record("v"), volumes.open_image(campaign.volumes, "v")
    labeller = open_published("cellpose", given, [volume]).labeller(volume, sample_volume(campaign, volume))
    box = lease.ticket.box
    _, numbers = label_box_objects(labeller, image, box, volume.normalisation, volume.spacing_um_zyx)
    np.testing.assert_array_equal(start.instances, numbers)
    truth = np.asarray(volumes.open_truth(campaign.volumes, "v", instances=True)[box.slices])
    assert np.count_nonzero((numbers > 0) != (truth > 0)) < 0.15 * np.count_nonzero(truth)
    prefill = str(lease.ticket.prefill)
    assert campaign.storage.read_array(prefill).dtype == np.uint32
    confidence = campaign.storage.read_array(prefill.replace(".npz", ".confidence.npz"))
    assert confidence.shape == start.classes.shape
    used = RecordFolder(campaign.storage, prefill.rpartition("/")[0]).read(WEIGHTS)
    assert used is not None
    assert (used.weights, used.weights_digest, used.licence) == ("own", file_digest(given.weights), "CC0")
    assert (used.method, used.diameter_um) == ("cellpose", DIAMETER)
    assert weak_label(campaign, store, "cellpose", given).tickets == 0, "a rerun changes nothing"
    other = weak_label(campaign, store, "cellpose", sources(tmp_path, diameter_um=2.0), dry_run=True)
    assert other.tickets == result.tickets - 1, "another diameter makes other masks"
    store.close()


def test_a_renamed_file_that_shows_objects_at_another_width_makes_other_masks(tmp_path: Path) -> None:
    campaign, own = make(tmp_path), sources(tmp_path)
    store = open_queue(campaign)
    cyto = save_without_diameter(tmp_path / "cyto", own.weights)
    nuclei, cyto2 = (str(shutil.copy(cyto, tmp_path / name)) for name in ("nuclei", "cyto2"))
    given = {name: replace(own, weights=path) for name, path in (("cyto", cyto), ("cyto2", cyto2), ("nuclei", nuclei))}
    made = weak_label(campaign, store, "cellpose", given["cyto"])
    assert made.tickets > 0
    assert any("30 pixels wide, as the name of the file says" in line for line in made.notes)
    assert weak_label(campaign, store, "cellpose", given["cyto2"]).tickets == 0
    again = weak_label(campaign, store, "cellpose", given["nuclei"])
    assert again.tickets == made.tickets
    assert any("17 pixels wide" in line for line in again.notes)
    [prefill, *_] = [str(t.prefill) for t in store.views.tickets("queued", "pool")]
    used = RecordFolder(campaign.storage, prefill.rpartition("/")[0]).read(WEIGHTS)
    assert used is not None
    assert (used.pixels, used.weights_digest) == (17, file_digest(cyto))
    store.close()


def test_weights_alone_choose_the_method_and_their_licence_is_told(tmp_path: Path) -> None:
    campaign = make(tmp_path, "semantic")
    store = open_queue(campaign)
    result = weak_label(campaign, store, "auto", sources(tmp_path))
    assert result.method == "cellpose"
    told = describe(result)
    assert any("CC-BY-NC" in line and "for you to check" in line for line in told)
    assert any("16 pixels wide" in line for line in told)
    [ticket, *_] = [t for t in store.views.tickets("queued", "pool") if t.prefill]
    mask = campaign.storage.read_array(str(ticket.prefill))
    assert (mask.dtype, set(np.unique(mask).tolist())) == (np.uint8, {0, 1})
    bright = np.asarray(volumes.open_image(campaign.volumes, "v")[(0, *ticket.box.slices)]) > 1700
    assert np.count_nonzero(mask != bright) < 0.1 * np.count_nonzero(bright)
    store.close()


def test_what_cannot_be_used_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    two_classes = make(tmp_path / "one", "semantic", ("a", "b"))
    channels = make(tmp_path / "two", "semantic", channels=3)
    for campaign, given, message in (
        (channels, Sources(), "--weights FILE --diameter UM"),
        (channels, sources(tmp_path, diameter_um=None), "--weights FILE --diameter UM"),
        (channels, sources(tmp_path, weights=str(tmp_path / "none")), "no such file"),
        (channels, sources(tmp_path), "takes 2 channels, volume 'v' has 3"),
        (two_classes, sources(tmp_path), "knows foreground alone"),
    ):
        store = open_queue(campaign)
        with pytest.raises(WeakLabelError, match=message):
            weak_label(campaign, store, "cellpose", given)
        assert not campaign.storage.exists("weak_labels")
        assert all(t.prefill is None for t in store.views.tickets())
        store.close()


def test_the_command_takes_the_weights(tmp_path: Path) -> None:
    campaign, given = make(tmp_path), sources(tmp_path)
    options = ["--method", "cellpose", "--weights", given.weights, "--diameter", "2.4", "--licence", "CC0", "--dry-run"]
    said = CliRunner().invoke(app, ["weak-label", campaign.storage.url, *options])
    assert said.exit_code == 0, said.output
    assert "Licence of the weights: CC0" in said.output
    assert "would get a first mask" in said.output
    refused = CliRunner().invoke(app, ["weak-label", campaign.storage.url, "--method", "blobs", *options[2:]])
    assert refused.exit_code != 0
    assert "does not read --weights, --diameter, --licence" in " ".join(refused.stderr.split())


def test_percentiles_are_those_of_the_intensities_as_imported() -> None:
    rng = np.random.default_rng(0)
    raw = rng.gamma(2, 100, (2, 8, 32, 32)).astype(np.float32)
    normalisation = Normalisation(low=0, high=2000, mean=200, std=150, linear=10)
    scaled = normalise(raw, normalisation)
    found = PercentileScaling.of([scaled[:, :4], scaled[:, 4:]], normalisation, 1, 99.8).apply(scaled)
    for channel, values in zip(found, raw, strict=True):
        low, high = np.percentile(values, (1, 99.8))
        np.testing.assert_allclose(channel, (values - low) / (high - low), atol=1e-4)
    flat = np.full((1, 2, 2, 2), 3.0, np.float32)
    assert not PercentileScaling.of([flat], normalisation, 1, 99).apply(flat).any()


def test_a_stardist_model_numbers_objects_in_a_campaign(tmp_path: Path) -> None:
    pytest.importorskip("stardist", reason="the extra 'stardist' is not installed")
    campaign, model = make(tmp_path), str(Path(__file__).parents[2] / "data" / "stardist_balls")
    store = open_queue(campaign)
    result = weak_label(campaign, store, "auto", Sources(weights=model))
    assert result.method == "stardist"
    assert any("sees voxels as they are" in line for line in describe(result))
    prefills = [str(t.prefill) for t in store.views.tickets("queued", "pool")]
    assert len(prefills) == result.tickets > 0
    assert {campaign.storage.read_array(path).dtype for path in prefills} == {np.dtype(np.uint32)}
    used = RecordFolder(campaign.storage, prefills[0].rpartition("/")[0]).read(WEIGHTS)
    assert used is not None
    assert (used.method, used.weights, used.diameter_um) == ("stardist", "stardist_balls", None)
    assert "for you to check" in used.licence
    store.close()


def test_cellpose_sam_is_chosen_where_a_python_is_given(tmp_path: Path) -> None:
    campaign = make(tmp_path)
    store = open_queue(campaign)
    python, weights = stand_in_cellpose4.install(tmp_path / "env"), stand_in_cellpose4.save_weights(tmp_path / "cpsam")
    given = Sources(weights=weights, diameter_um=DIAMETER, python=python)
    result = weak_label(campaign, store, "auto", given, dry_run=True)
    assert (result.method, result.tickets > 0) == ("cellpose-sam", True)
    assert any("CC-BY-NC" in line for line in describe(result))
    with pytest.raises(WeakLabelError, match="--python PYTHON"):
        weak_label(campaign, store, "cellpose-sam", Sources(weights=weights, diameter_um=DIAMETER))
    store.close()
