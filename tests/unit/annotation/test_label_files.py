"""Labels that were replaced, cut or emptied are refused by whoever reads them, and mended by who hands them in again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.annotation.label_files import read_version, starting_patch, store_labels
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.config import check_config
from rescueseg.errors import StorageError
from rescueseg.evaluation.truth import PARTS, holdout_truth
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.models.registry import get_trainer
from rescueseg.models.trainer import TrainingRequest
from rescueseg.models.training_items import load_item
from rescueseg.queue.records import AnnotationRecord, NewTicket
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import Work
from rescueseg.reports.agreement_page import single_version_view
from rescueseg.server.app import create_app
from rescueseg.storage import digest_array
from rescueseg.triage.rough_masks import rough_patches
from rescueseg.weak_labels.scribbles import read_accepted
from tests.annotation_server import HERE
from tests.evaluated_campaign import SPACING, make_campaign, phantom_truth

POOL = Box((0, 0, 86), (16, 40, 10))


@dataclass(frozen=True)
class Annotated:
    """A campaign whose holdout and one patch of the pool are annotated and accepted."""

    campaign: Campaign
    store: QueueStore

    def path(self, ticket_id: str) -> Path:
        """Return the file of a ticket's accepted labels."""
        [version] = self.store.views.annotations(ticket_id)
        return Path(self.campaign.storage.path(version.labels))

    def client(self) -> LocalClient:
        """Return a reviewer's client."""
        return LocalClient(self.campaign, self.store, "rita")

    def train(self) -> object:
        """Train on what is accepted."""
        snapshot = make_snapshot(self.campaign, 0, self.store.views.accepted("pool"))
        work = Path(self.campaign.url, "work")
        request = TrainingRequest(
            self.campaign.config, self.campaign.volumes, self.campaign.holdout(), snapshot, work, 1
        )
        return get_trainer("monai_unet").train(request, lambda *_: None)

    def load_item(self) -> object:
        """Read what is accepted as a training does."""
        [item] = make_snapshot(self.campaign, 0, self.store.views.accepted("pool")).items
        return load_item(self.campaign.volumes, item, SPACING)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    campaign, truth = make_campaign(folder, truth=False), phantom_truth()
    holdout = campaign.holdout()
    assert holdout is not None
    places = [("pool", "pool", POOL), *((f"{b.part}{i}", b.part, b.box) for i, b in enumerate(holdout.boxes))]
    store = open_queue(campaign)
    store.migrate()
    store.tickets.add([NewTicket(ticket_id=t, volume_id="phantom", box=box, purpose=p) for t, p, box in places])
    for _ in places:
        lease = store.leases.claim("anna", 60, resume=False)
        assert lease is not None
        submit_labels(campaign, store, lease, "anna", truth[lease.ticket.box.slices], Work("test", 1.0))
    store.close()
    return folder / "campaign"


@pytest.fixture
def annotated(original: Path, tmp_path: Path) -> Iterator[Annotated]:
    shutil.copytree(original, tmp_path / "campaign")
    campaign = Campaign.open(str(tmp_path / "campaign"))
    store = open_queue(campaign)
    yield Annotated(campaign, store)
    store.close()


def replace(path: Path) -> None:
    """Put another mask into a file of labels, with a CRC of its own."""
    mask = np.load(path)["array"]
    path.unlink()
    np.savez_compressed(path, array=np.roll(mask, 1, axis=2) if mask.any() else mask + 1)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "replaced": replace,
    "emptied": lambda path: (path.unlink(), path.touch()),
    "cut": lambda path: (data := path.read_bytes(), path.unlink(), path.write_bytes(data[: len(data) // 2])),
    "deleted": Path.unlink,
}
READERS: dict[str, tuple[str, Callable[[Annotated], object]]] = {
    "evaluation": ("test1", lambda a: [holdout_truth(a.campaign).labels(b) for b in holdout_truth(a.campaign).boxes]),
    "its digest": ("test1", lambda a: holdout_truth(a.campaign).digest_of_all),
    "review": ("test1", lambda a: a.client().review_view("test1")),
    "version": ("test1", lambda a: a.client().version_labels("test1", 1)),
    "report": ("pool", lambda a: single_version_view(a.campaign, a.store, "pool")),
    "triage": ("pool", lambda a: rough_patches(a.campaign, a.store, "annotations", 0)),
    "weak labels": (
        "pool",
        lambda a: read_accepted(
            a.campaign.volumes, a.store.views.accepted()[0], 1, a.campaign.holdout(), a.campaign.volumes.shared_places()
        ),
    ),
    "training item": ("pool", Annotated.load_item),
    "training": ("pool", Annotated.train),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", READERS)
def test_labels_that_are_not_those_handed_in_are_refused(annotated: Annotated, reader: str, damage: str) -> None:
    ticket, read = READERS[reader]
    assert "test1" in {t.ticket_id for part in PARTS for t in annotated.store.views.tickets("accepted", part)}
    path = annotated.path(ticket)
    DAMAGES[damage](path)
    with pytest.raises(StorageError, match=r"Restore it") as caught:
        read(annotated)
    assert caught.value.where == str(path)
    assert caught.value.what.startswith("the file is missing" if damage == "deleted" else "the file is damaged: ")


@pytest.mark.parametrize("reader", [name for name in READERS if name not in ("training", "report")])
def test_and_sound_ones_are_read(annotated: Annotated, reader: str) -> None:
    assert READERS[reader][1](annotated) is not None


def test_the_server_says_what_is_damaged(annotated: Annotated) -> None:
    path = annotated.path("test1")
    replace(path)
    with TestClient(create_app(annotated.campaign, is_open=True), base_url=HERE) as client:
        reply = client.get("/api/v1/tickets/test1/view.npz")
    assert (reply.status_code, reply.json()["error"]) == (503, "StorageError")
    assert reply.json()["what"] == "the file is damaged: it holds other labels than were stored"


DRAWN = PatchLabels.of_instances(np.array([[[0, 1, 1], [2, 2, 0]], [[0, 0, 0], [5, 5, 5]]]))
"""Handed in and sent back."""


@pytest.fixture(params=["semantic", "instance"])
def sent_back(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Campaign, QueueStore]]:
    settings = {"name": "t", "classes": ["a"], "annotation": {"review": True, "labels": request.param}}
    campaign = Campaign.create(str(tmp_path / "c"), check_config(settings))
    store = open_queue(campaign)
    store.migrate()
    store.tickets.add([NewTicket(ticket_id="t", volume_id="v", box=Box((0, 0, 0), DRAWN.classes.shape))])
    hand_in(campaign, store)
    store.reviews.reject("t", "rita", "one too many")
    yield campaign, store
    store.close()


def hand_in(campaign: Campaign, store: QueueStore) -> AnnotationRecord:
    """Hand in the labels, objects where the campaign annotates those."""
    lease = store.leases.claim("anna", 60)
    assert lease is not None
    labels = DRAWN if campaign.config.annotation.labels == "instance" else PatchLabels(DRAWN.classes)
    return submit_labels(campaign, store, lease, "anna", labels, Work("test", 1.0))


def test_a_replaced_start_of_rejected_labels_is_refused(sent_back: tuple[Campaign, QueueStore]) -> None:
    campaign, store = sent_back
    lease = store.leases.claim("anna", 60)
    assert lease is not None
    assert (starting_patch(campaign.storage, lease, campaign.config).classes == DRAWN.classes).all()
    files = [lease.previous, lease.previous_instances] if lease.previous_instances else [lease.previous]
    for reference in files:
        assert reference is not None
        path = Path(campaign.storage.path(reference.path))
        whole = path.read_bytes()
        replace(path)
        with pytest.raises(StorageError, match="other labels than were stored") as caught:
            starting_patch(campaign.storage, lease, campaign.config)
        assert caught.value.where == str(path)
        path.unlink()
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_labels_handed_in_again_mend_a_damaged_file(
    sent_back: tuple[Campaign, QueueStore], damage: str
) -> None:
    campaign, store = sent_back
    for path in Path(campaign.url, "annotations/t").iterdir():
        assert path.stat().st_mode & 0o777 == 0o444, "nobody writes into it by mistake"
    [version] = store.views.annotations("t")
    stored = store_labels(campaign.storage, "t", read_version(campaign.storage, version), 0)
    assert stored.classes.path == version.labels
    for path in list(Path(campaign.url, "annotations/t").iterdir()):
        DAMAGES[damage](path)
    store_labels(campaign.storage, "t", DRAWN if version.instances else PatchLabels(DRAWN.classes), 0)
    mended = read_version(campaign.storage, version)
    assert np.array_equal(mended.classes, DRAWN.classes)
    assert mended.instances is None or np.array_equal(mended.instances, DRAWN.instances)
    assert (mended.instances is None) == (version.instances is None)


def test_a_sound_file_is_left_as_it_is(sent_back: tuple[Campaign, QueueStore]) -> None:
    campaign, store = sent_back
    [version] = store.views.annotations("t")
    path = Path(campaign.storage.path(version.labels))
    before = path.stat()
    store_labels(campaign.storage, "t", PatchLabels(DRAWN.classes), 0)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_labels_in_an_empty_file_are_stored_when_they_are_handed_in(campaign: Campaign) -> None:
    store = open_queue(campaign)
    store.migrate()
    store.tickets.add([NewTicket(ticket_id="t", volume_id="v", box=Box((0, 0, 0), DRAWN.classes.shape))])
    file = Path(campaign.url, "annotations/t", f"{digest_array(DRAWN.classes)}.npz")
    file.parent.mkdir(parents=True)
    file.touch()
    record = hand_in(campaign, store)
    assert Path(campaign.storage.path(record.labels)) == file
    assert np.array_equal(read_version(campaign.storage, record).classes, DRAWN.classes)
    store.close()
