"""First masks in a campaign: which tickets get one, which method is chosen, what is refused, and reruns."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from typer.testing import CliRunner

from rescueseg import volumes
from rescueseg.annotation.hand_in import submit_labels
from rescueseg.annotation.label_files import starting_labels
from rescueseg.campaign import Campaign
from rescueseg.campaign.route import TRIAGE_SUMMARY
from rescueseg.cli.main import app
from rescueseg.cli.sampling import MethodName
from rescueseg.config import check_config
from rescueseg.errors import QueueError, RescuesegError, WeakLabelError
from rescueseg.geometry import partition
from rescueseg.labels import IGNORE
from rescueseg.queue.records import Filters
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import Work
from rescueseg.stages import tickets
from rescueseg.weak_labels.base import BLOCK_ZYX
from rescueseg.weak_labels.choice import Sources, describe
from rescueseg.weak_labels.methods import METHODS
from rescueseg.weak_labels.prefill import weak_label
from rescueseg.weak_labels.scribbles import read_scribbles
from tests.choices import refused_choice
from tests.stand_in_ilastik import install, project
from tests.training_rig import balls
from tests.triage_summaries import triaged

SHAPE, SPACING = (24, 96, 96), (0.2, 0.1, 0.1)


def make(folder: Path, n_classes: int = 1, truth: bool = True) -> Campaign:
    classes = [f"class{c}" for c in range(1, n_classes + 1)]
    campaign = Campaign.create(str(folder / "c"), check_config({"name": "test", "classes": classes}))
    image, labels = balls(SHAPE, SPACING, 0, n_classes)
    tifffile.imwrite(folder / "v.tif", image, metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "t.tif", labels, metadata={"axes": "ZYX"})
    given = str(folder / "t.tif") if truth else None
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(folder / "v.tif"), volume_id="v", spacing=SPACING, truth=given)
    )
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    store.close()
    return campaign


@pytest.fixture
def made(tmp_path: Path) -> Campaign:
    return make(tmp_path)


@pytest.fixture
def store(made: Campaign) -> Iterator[QueueStore]:
    opened = open_queue(made)
    yield opened
    opened.close()


def accept_one(campaign: Campaign, store: QueueStore) -> str:
    lease = store.leases.claim("anna", 60, filters=Filters(purpose="pool"))
    assert lease is not None
    labels = np.asarray(volumes.open_truth(campaign.volumes, "v")[lease.ticket.box.slices])
    submit_labels(campaign, store, lease, "anna", labels, Work("test", 1.0))
    return lease.ticket_id


def files(campaign: Campaign) -> dict[str, bytes]:
    folder = Path(campaign.storage.path("weak_labels"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_waiting_tickets_get_a_mask_that_their_annotator_starts_from(made: Campaign, store: QueueStore) -> None:
    leased = store.leases.claim("bob", 60)
    assert leased is not None
    result = weak_label(made, store, "threshold")
    assert (result.method, result.tickets) == ("threshold", 3)
    for ticket in store.views.tickets(purpose="pool"):
        if ticket.ticket_id == leased.ticket_id:
            assert ticket.prefill is None, "what somebody works on stays as it is"
            continue
        assert re.fullmatch(f"weak_labels/threshold-[0-9a-f]{{12}}/{ticket.ticket_id}.npz", str(ticket.prefill))
        confidence = made.storage.read_array(str(ticket.prefill).replace(".npz", ".confidence.npz"))
        assert confidence.shape == ticket.box.shape_zyx
        assert [(e.event, e.actor) for e in store.views.history(ticket.ticket_id)] == [
            ("created", "rescueseg"), ("prefilled", "rescueseg"),
        ]  # fmt: skip
    lease = store.leases.claim("anna", 60)
    assert lease is not None
    truth = np.asarray(volumes.open_truth(made.volumes, "v")[lease.ticket.box.slices])
    start = starting_labels(made.storage, lease, made.config.n_classes)
    assert np.count_nonzero(start != truth) < 0.3 * np.count_nonzero(truth), "far less to change than from nothing"


def test_holdout_tickets_stay_empty(tmp_path: Path) -> None:
    campaign = make(tmp_path, truth=False)
    store = open_queue(campaign)
    weak_label(campaign, store)
    held = [t for t in store.views.tickets() if t.purpose != "pool"]
    assert len(held) == 8
    assert all(t.prefill is None for t in held)
    with pytest.raises(QueueError, match="could bias it"):
        store.tickets.prefill(held[0].ticket_id, "weak_labels/x.npz", "threshold")


@pytest.mark.parametrize("first", ["threshold", "blobs"])
def test_a_mask_that_an_annotation_makes_doubtful_is_taken_back(made: Campaign, store: QueueStore, first: str) -> None:
    """Bright balls stand out, and something else is meant: what no threshold finds."""
    assert weak_label(made, store, first).tickets == 4
    lease = store.leases.claim("anna", 60, filters=Filters(purpose="pool"))
    assert lease is not None
    truth = np.asarray(volumes.open_truth(made.volumes, "v")[lease.ticket.box.slices])
    meant = (truth == 0) & (np.indices(truth.shape).sum(axis=0) // 4 % 3 == 0)
    submit_labels(made, store, lease, "anna", meant.astype(np.uint8), Work("test", 1.0))
    told = weak_label(made, store, dry_run=True)
    painted = store.views.tickets("queued", "pool")
    assert (told.tickets, told.n_taken_back, set(told.doubts)) == (0, 3, {"v"})
    assert all(t.prefill for t in painted), "a dry run changes nothing"
    assert "3 earlier first masks would be taken back" in describe(told, dry_run=True)[-1]
    assert weak_label(made, store).n_taken_back == 3
    for ticket in store.views.tickets("queued", "pool"):
        assert ticket.prefill is None
        assert [e.event for e in store.views.history(ticket.ticket_id)] == ["created", "prefilled", "prefilled"]
    lease = store.leases.claim("bob", 60, filters=Filters(purpose="pool"))
    assert lease is not None
    assert not starting_labels(made.storage, lease, made.config.n_classes).any()
    again = weak_label(made, store)
    assert (again.tickets, again.n_taken_back) == (0, 0)


def test_a_rerun_changes_nothing_and_a_killed_run_goes_on(
    made: Campaign, store: QueueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, prefill = [], store.tickets.prefill

    def dies(ticket_id: str, path: str, method: str, classes: Sequence[str]) -> None:
        calls.append(ticket_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        prefill(ticket_id, path, method, classes)

    monkeypatch.setattr(store.tickets, "prefill", dies)
    with pytest.raises(KeyboardInterrupt):
        weak_label(made, store, "threshold")
    monkeypatch.undo()
    half = files(made)
    assert weak_label(made, store, "threshold").tickets == 3
    done, history = files(made), [store.views.history(t.ticket_id) for t in store.views.tickets()]
    assert half.items() <= done.items()
    assert weak_label(made, store, "threshold").tickets == 0
    assert files(made) == done
    assert [store.views.history(t.ticket_id) for t in store.views.tickets()] == history


def test_without_annotations_the_triage_chooses(made: Campaign, store: QueueStore) -> None:
    assert weak_label(made, store, dry_run=True).method == "threshold"
    made.records.write(TRIAGE_SUMMARY, triaged({"plateness": 0.9, "tubularity": 0.1}, problem="topology"))
    result = weak_label(made, store, dry_run=True)
    assert (result.method, result.tickets) == ("membranes", 4)
    assert not made.storage.exists("weak_labels/choice.json")
    assert all(t.prefill is None for t in store.views.tickets())


def test_accepted_annotations_choose_and_the_rest_gets_the_better_masks(made: Campaign, store: QueueStore) -> None:
    weak_label(made, store, "membranes")
    first = accept_one(made, store)
    accept_one(made, store)
    result = weak_label(made, store)
    assert set(result.agreements) == {"threshold", "blobs", "tubes", "membranes", "classifier"}
    assert result.agreements[result.method] == max(result.agreements.values()) > 0.8
    assert result.method != "membranes"
    choice = made.storage.read_json("weak_labels/choice.json")
    assert choice["method"] == result.method
    [compared] = [entry for entry in choice["compared_on"] if entry["ticket"] == first]
    assert compared["began_from"].startswith("weak_labels/membranes-")
    for ticket in store.views.tickets("queued", "pool"):
        assert str(ticket.prefill).startswith(f"weak_labels/{result.method}")
    assert weak_label(made, store).tickets == 0


def test_a_classifier_trained_on_another_intensity_scaling_is_not_used_again(made: Campaign, store: QueueStore) -> None:
    accept_one(made, store)
    weak_label(made, store, "classifier")
    volume = made.volumes.record("v")
    scaled = volume.normalisation.model_copy(update={"mean": 0.0, "std": 3 * volume.normalisation.std})
    made.volumes.save(volume.model_copy(update={"normalisation": scaled}))
    assert weak_label(made, store, "classifier").tickets == len(store.views.tickets("queued", "pool")) > 0
    assert len([name for name in files(made) if name.endswith(".skops")]) == 2


def test_refused_volumes_are_neither_learned_from_nor_labelled(made: Campaign, store: QueueStore) -> None:
    accept_one(made, store)
    made.volumes.save(made.volumes.record("v").model_copy(update={"volume_id": "other"}))
    shutil.copytree(made.storage.path("volumes/v.ome.zarr"), made.storage.path("volumes/other.ome.zarr"))
    made.volumes.save(made.volumes.record("v").model_copy(update={"refused": "its spacing is wrong"}))
    result = weak_label(made, store)
    assert "nothing is annotated yet" in result.reason
    assert result.tickets == 0, "all the waiting ones lie in the refused volume"
    with pytest.raises(WeakLabelError, match="annotate a patch first"):
        weak_label(made, store, "classifier")


def test_a_models_prediction_stays(made: Campaign, store: QueueStore) -> None:
    ticket = store.views.tickets("queued", "pool")[0]
    path = f"generations/0000/prefills/{ticket.ticket_id}.npz"
    store.tickets.prefill(ticket.ticket_id, path, "model")
    assert weak_label(made, store, "threshold").tickets == 3
    assert {t.ticket_id: t.prefill for t in store.views.tickets()}[ticket.ticket_id] == path


def test_scribbles_train_the_classifier_and_those_in_the_holdout_do_not(
    made: Campaign, store: QueueStore, tmp_path: Path
) -> None:
    truth = np.asarray(volumes.open_truth(made.volumes, "v")[:])
    scribbles = np.full(SHAPE, 255, np.uint8)
    scribbles[::4, ::4, ::4] = truth[::4, ::4, ::4]
    tifffile.imwrite(tmp_path / "s.tif", scribbles, metadata={"axes": "ZYX"})
    result = weak_label(made, store, sources=Sources(scribbles=(str(tmp_path / "s.tif"),)))
    assert (result.method, result.tickets) == ("classifier", 4)
    before = files(made)
    holdout = made.holdout()
    assert holdout is not None
    held = np.zeros(SHAPE, bool)
    for box in holdout.guarded("v", made.volumes.shared_places()):
        held[box.clip(SHAPE).slices] = True
    assert held.any()
    tifffile.imwrite(tmp_path / "s.tif", np.where(held, 255, scribbles), metadata={"axes": "ZYX"})
    weak_label(made, store, "classifier", Sources(scribbles=(str(tmp_path / "s.tif"),)))
    assert before.items() <= files(made).items()
    for ticket in store.views.tickets("queued", "pool"):
        made.storage.remove(str(ticket.prefill))
        store.tickets.prefill(ticket.ticket_id, "weak_labels/lost.npz", "test")
    assert weak_label(made, store, "classifier", Sources(scribbles=(str(tmp_path / "s.tif"),))).tickets == 4
    folders = sorted({name.split("/")[0] for name in files(made) if "/" in name})
    first, second = (
        {name.split("/")[1]: data for name, data in files(made).items() if name.startswith(folder) and ".npz" in name}
        for folder in folders
    )
    assert len(first) == 8
    assert first == second, "the same masks: what lay in the holdout had no say"


def test_features_of_scribbles_beside_the_holdout_do_not_see_it(made: Campaign, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.ones(SHAPE, np.uint8), metadata={"axes": "ZYX"})
    holdout, seen = made.holdout(), np.zeros(SHAPE)
    assert holdout is not None
    for patch, block in zip(
        read_scribbles(made, made.volumes.record("v"), str(tmp_path / "s.tif")),
        partition(SHAPE, BLOCK_ZYX),
        strict=True,
    ):
        seen[block.slices] = patch.image[0]
        assert ((patch.labels == IGNORE) == (patch.image[0] == 0)).all()
    for box in holdout.guarded("v", made.volumes.shared_places()):
        assert (seen[box.clip(SHAPE).slices] == 0).all()


def test_ilastik_is_run_where_it_is_installed(
    made: Campaign, store: QueueStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ilp = Sources(ilp=project(tmp_path / "a.ilp", ["background", "class1"]))
    monkeypatch.setenv("RESCUESEG_ILASTIK", str(tmp_path / "nothing.sh"))
    with pytest.raises(WeakLabelError, match=r"nothing\.sh is no program"):
        weak_label(made, store, "ilastik", ilp)
    monkeypatch.setenv("RESCUESEG_ILASTIK", install(tmp_path))
    assert weak_label(made, store, "ilastik", ilp).tickets == 4
    assert str(store.views.tickets("queued", "pool")[0].prefill).startswith("weak_labels/ilastik-")
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    other = Sources(ilp=project(tmp_path / "b.ilp", ["class1", "ground"]))
    with pytest.raises(WeakLabelError, match="status 1: RuntimeError: Could not find training data"):
        weak_label(made, store, "ilastik", other)


@pytest.mark.parametrize(
    ("method", "sources", "said"),
    [
        ("magic", Sources(), "unknown method 'magic'"),
        ("classifier", Sources(), "has nothing to start from"),
        ("ilastik", Sources(), "Give --ilp FILE"),
        ("champion", Sources(), "Give --from-campaign URL"),
        ("champion", Sources(from_campaign="/nowhere"), "there is no campaign here"),
        ("classifier", Sources(scribbles=("/nowhere.tif",)), "nowhere.tif"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_changes(
    made: Campaign, store: QueueStore, method: str, sources: Sources, said: str
) -> None:
    with pytest.raises(RescuesegError, match=said):
        weak_label(made, store, method, sources)
    assert files(made) == {}
    assert all(t.prefill is None for t in store.views.tickets())


def test_several_classes_need_a_method_that_tells_them_apart(tmp_path: Path) -> None:
    campaign = make(tmp_path, n_classes=2)
    store = open_queue(campaign)
    with pytest.raises(WeakLabelError, match="knows foreground alone, the campaign has 2 classes"):
        weak_label(campaign, store, "threshold")
    with pytest.raises(WeakLabelError, match="no method can tell 2 classes apart without annotations"):
        weak_label(campaign, store)
    for _ in range(2):
        accept_one(campaign, store)
    result = weak_label(campaign, store)
    assert (result.method, list(result.agreements)) == ("classifier", ["classifier"])
    truth = volumes.open_truth(campaign.volumes, "v")
    for ticket in store.views.tickets("queued", "pool"):
        labels = np.asarray(truth[ticket.box.slices])
        mask = campaign.storage.read_array(ticket.prefill) if ticket.prefill else np.zeros_like(labels)
        assert (mask == labels).mean() > 0.9
    assert (result.tickets, result.n_empty) == (1, 1), "where it finds nothing, no mask is written for the ticket"


def test_the_command_says_what_it_chose(made: Campaign) -> None:
    said = CliRunner().invoke(app, ["weak-label", made.url, "--dry-run"])
    assert "4 tickets would get a first mask" in said.stdout
    said = CliRunner().invoke(app, ["weak-label", made.url])
    assert said.exit_code == 0, said.output
    assert "Method threshold: nothing is annotated yet, and there is no triage" in said.stdout
    assert "4 tickets got a first mask" in said.stdout
    assert made.storage.read_json("weak_labels/choice.json")["method"] == "threshold"
    said = CliRunner().invoke(app, ["weak-label", made.url, "--method", "magic"])
    assert "'magic' is not one of 'auto', 'threshold', 'blobs'," in refused_choice(said)
    assert get_args(MethodName) == ("auto", *METHODS), "what --help says"


def test_a_method_that_is_none_is_refused(made: Campaign, store: QueueStore) -> None:
    before = files(made)
    with pytest.raises(WeakLabelError, match=r"unknown method 'magic'\. Choose one of auto, threshold"):
        weak_label(made, store, "magic")
    assert files(made) == before


def micrograph(folder: Path) -> Campaign:
    """Return a campaign whose image is dark and bright in equal parts, as electron micrographs are; few bodies are meant."""
    campaign = Campaign.create(str(folder / "em"), check_config({"name": "em", "classes": ["body"]}))
    rng = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), (1.5, 3, 3))
    texture /= texture.std()
    bodies = ndimage.gaussian_filter(rng.normal(size=SHAPE), (2, 5, 5))
    truth = (bodies > np.quantile(bodies, 0.9)).astype(np.uint8)
    image = 120 + 30 * np.clip(texture, -2, 2) + rng.normal(0, 5, SHAPE)
    tifffile.imwrite(folder / "em.tif", np.clip(image, 0, 255).astype(np.uint8), metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "bodies.tif", truth, metadata={"axes": "ZYX"})
    files = volumes.VolumeImport(
        str(folder / "em.tif"), volume_id="v", spacing=SPACING, truth=str(folder / "bodies.tif")
    )
    volumes.import_volume(campaign, files)
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    store.close()
    return campaign


def test_where_nothing_says_what_is_meant_a_ticket_starts_empty(tmp_path: Path) -> None:
    campaign = micrograph(tmp_path)
    store = open_queue(campaign)
    campaign.records.write(TRIAGE_SUMMARY, triaged(problem="topology", mask="threshold"))
    result = weak_label(campaign, store)
    assert (result.method, result.tickets, list(result.doubts)) == ("tubes", 0, ["v"])
    assert all(t.prefill is None for t in store.views.tickets())
    said = "\n".join(describe(result))
    assert "Tickets of 'v' start empty: bright and dark parts balance in it" in said
    assert "Annotate one more patch" in said
    assert weak_label(campaign, store, "tubes").tickets == 4, "a person's word is followed"


def test_what_fails_on_annotations_is_not_painted_and_costs_more_than_an_empty_start(tmp_path: Path) -> None:
    campaign = micrograph(tmp_path)
    store = open_queue(campaign)
    accept_one(campaign, store)
    result = weak_label(campaign, store)
    assert result.tickets == 0
    assert "of the voxels to correct" in result.doubts["v"]
    assert all(t.prefill is None for t in store.views.tickets("queued", "pool"))
    weak_label(campaign, store, result.method)
    truth = volumes.open_truth(campaign.volumes, "v")
    wrong = drawn = 0
    for ticket in store.views.tickets("queued", "pool"):
        labels = np.asarray(truth[ticket.box.slices])
        wrong += int((campaign.storage.read_array(str(ticket.prefill)) != labels).sum())
        drawn += int(labels.sum())
    assert wrong > 0.8 * drawn, "rightly so"


def test_scribbles_that_the_classifier_cannot_learn_from_paint_nothing(tmp_path: Path) -> None:
    campaign = micrograph(tmp_path)
    store = open_queue(campaign)
    scribbles = np.full(SHAPE, IGNORE, np.uint8)
    scribbles[::3, ::6, ::6] = np.random.default_rng(0).integers(0, 2, scribbles[::3, ::6, ::6].shape)
    tifffile.imwrite(tmp_path / "s.tif", scribbles, metadata={"axes": "ZYX"})
    result = weak_label(campaign, store, sources=Sources(scribbles=(str(tmp_path / "s.tif"),)))
    assert (result.method, result.tickets) == ("classifier", 0)
    assert "on scribbles that it was not trained on" in result.doubts["v"]


def test_where_nothing_is_to_do_nothing_is_computed(made: Campaign, store: QueueStore) -> None:
    accept_one(made, store)
    counted: list[str] = []
    weak_label(made, store, progress=lambda what, done, total: counted.append(what))
    assert "comparing methods" in counted
    for dry_run in (True, False):
        counted.clear()
        again = weak_label(made, store, dry_run=dry_run, progress=lambda what, done, total: counted.append(what))
        assert again.tickets == 0
        assert again.agreements, "as it was chosen before"
        assert not {"comparing methods", "training the pixel classifier"} & set(counted)
    while store.views.tickets("queued", "pool"):
        accept_one(made, store)
    counted.clear()
    result = weak_label(made, store, dry_run=True, progress=lambda what, done, total: counted.append(what))
    assert describe(result, dry_run=True)[0] == "Method auto: no ticket waits for a first mask"
    assert "comparing methods" not in counted
