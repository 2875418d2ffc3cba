"""Doubtful places of a delivery in the queue: which, what they start from, and what becomes of new volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from rescueseg.annotation.label_files import starting_patch
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.config import check_config
from rescueseg.delivery.folder import DeliveryFolder, SourceVolume
from rescueseg.delivery.new_volumes import NewVolume, NewVolumes
from rescueseg.delivery.places import PROOFREADING, doubtful_places
from rescueseg.errors import QueueError, StorageError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.queue.due import campaign_lock
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.records import Domain, Domains, VolumeRecord
from rescueseg.stages import tickets
from rescueseg.stages.proofreading import join_campaign, queue_places
from rescueseg.volumes.normalise import rescaled
from rescueseg.volumes.opening import open_image
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from tests.delivered_campaign import deliver, source, write_delivery
from tests.evaluated_campaign import SHAPE, SPACING, make_campaign, phantom_truth, write_generation, write_maps
from tests.whole_campaign import make_annotated_campaign

PATCH = (6, 20, 20)


def delivered(folder: Path, labels: str = "semantic") -> tuple[Campaign, DeliveryFolder]:
    """Return a campaign with one generation, and a delivery of its volume whose two objects touch."""
    campaign = make_campaign(folder)
    settings = {"name": "phantom", "classes": ["organelle"], "sampling": {"patch_zyx": list(PATCH)}}
    campaign.config = check_config(settings | {"annotation": {"labels": labels, "review": False}})
    holdout = campaign.holdout()
    assert holdout is not None
    campaign.storage.write_json("holdout.json", holdout.model_copy(update={"boxes": holdout.boxes[:2]}).to_json())
    write_generation(campaign, 0, 1.5, judged=False)
    out = DeliveryFolder(str(folder / "out"))
    write_delivery(campaign, out)
    objects = np.where(np.arange(SHAPE[2]) < 48, 1, 2) * np.ones(SHAPE, np.uint32)
    deliver(
        campaign,
        out,
        "phantom",
        (phantom_truth() > 0).astype(np.uint8),
        objects.astype(np.uint32),
        np.ones(SHAPE, "u1"),
    )
    return campaign, out


def annotate(campaign: Campaign, ticket_id: str) -> npt.NDArray[np.uint8]:
    """Hand in what a ticket starts from, one voxel changed; return the classes."""
    client = LocalClient(campaign, open_queue(campaign), "anna")
    lease = client.next(ticket_id=ticket_id)
    assert lease is not None
    start = starting_patch(campaign.storage, lease, campaign.config)
    classes = start.classes.copy()
    classes[0, 0, 0] = 1 - classes[0, 0, 0]
    client.submit(lease.lease_id, PatchLabels(classes), "napari", override=True)
    return classes


def test_the_most_doubtful_places_wait_with_the_delivered_mask(tmp_path: Path) -> None:
    campaign, out = delivered(tmp_path)
    store, sources = open_queue(campaign), [source(campaign, "phantom")]
    expected = doubtful_places(campaign, sources, 3)
    new = queue_places(campaign, store, out, sources, 3)
    queued = {ticket.ticket_id: ticket for ticket in store.views.tickets("queued")}
    assert [queued[name].box for name in new] == [place.box for place in expected]
    for name in new:
        ticket = queued[name]
        assert (ticket.stratum, ticket.purpose, ticket.generation) == (PROOFREADING, "pool", 1)
        assert ticket.prefill is not None
        mask = (phantom_truth() > 0)[ticket.box.slices]
        assert np.array_equal(campaign.storage.read_array(ticket.prefill), mask)
        assert ticket.classes == (("organelle",) if mask.any() else ())
    assert queue_places(campaign, store, out, sources, 3) == []
    assert {t.ticket_id for t in store.views.tickets()} == set(new)

    annotate(campaign, new[0])
    [another] = queue_places(campaign, store, out, sources, 3)
    assert store.views.ticket(another).box == doubtful_places(campaign, sources, 4)[3].box


def test_what_was_corrected_is_in_the_next_snapshot(tmp_path: Path) -> None:
    campaign, out = delivered(tmp_path)
    store = open_queue(campaign)
    [name] = queue_places(campaign, store, out, [source(campaign, "phantom")], 1)
    classes = annotate(campaign, name)
    snapshot = make_snapshot(campaign, 1, store.views.accepted())
    [item] = [item for item in snapshot.items if item.ticket_id == name]
    assert np.array_equal(campaign.storage.read_array(item.labels), classes)


def test_objects_that_touch_stay_apart_where_objects_are_numbered(tmp_path: Path) -> None:
    campaign, out = delivered(tmp_path, "instance")
    store = open_queue(campaign)
    names = queue_places(campaign, store, out, [source(campaign, "phantom")], 30)
    across = [t for t in map(store.views.ticket, names) if t.box.offset_zyx[2] < 48 < t.box.stop_zyx[2]]
    assert across
    ticket = across[0]
    lease = LocalClient(campaign, open_queue(campaign), "anna").next(ticket_id=ticket.ticket_id)
    assert lease is not None
    start = starting_patch(campaign.storage, lease, campaign.config)
    assert start.instances is not None
    columns = np.arange(ticket.box.offset_zyx[2], ticket.box.stop_zyx[2])
    assert np.array_equal(start.instances, np.broadcast_to(np.where(columns < 48, 1, 2), PATCH))


# files that were not in the campaign ----------------------------------------------------------------------------------


def new_file(folder: Path) -> tuple[Campaign, QueueStore, NewVolumes, NewVolume, VolumeImport]:
    """Return an annotated campaign, and a file imported for a delivery, with maps and labels."""
    campaign = make_annotated_campaign(folder, sampling={"starting_patches": 3, "patch_zyx": [8, 16, 16]})
    image, truth, _ = make_phantom((16, 64, 64), SPACING, 9)
    tifffile.imwrite(folder / "fresh.tif", image * 2)
    new = NewVolumes(campaign, DeliveryFolder(str(folder / "out")), frozenset({"a"}))
    file = VolumeImport(str(folder / "fresh.tif"), spacing=SPACING)
    added = new.add(file)
    rng, foreground = np.random.default_rng(0), np.clip(truth, 0, 1) * 0.8 + 0.1
    write_maps(new.work, 0, np.stack([1 - foreground, foreground]), rng.random(truth.shape), "fresh")
    deliver(campaign, new.folder, "fresh", (truth > 0).astype(np.uint8), None, image)
    return campaign, open_queue(campaign), new, added, file


def add_file(
    campaign: Campaign, new: NewVolumes, folder: Path, image: npt.NDArray[np.generic], entropy: npt.NDArray[np.float64]
) -> SourceVolume:
    """Deliver another file, with maps and an empty mask; it is called as its folder."""
    folder.mkdir()
    tifffile.imwrite(folder / f"{folder.name}.tif", image)
    new.add(VolumeImport(str(folder / f"{folder.name}.tif"), spacing=SPACING))
    half = np.full((2, *image.shape), 0.5)
    write_maps(new.work, 0, half, entropy, folder.name)
    deliver(campaign, new.folder, folder.name, np.zeros(image.shape, np.uint8), None, image)
    return SourceVolume(folder.name, new.work.url, new.work.url, 0)


def test_only_files_with_a_place_in_the_queue_join(tmp_path: Path) -> None:
    campaign, store, new, _, _ = new_file(tmp_path)
    sources = [SourceVolume("fresh", new.work.url, new.work.url, 0)]
    image = make_phantom((16, 64, 64), SPACING, 21)[0]
    sources.append(add_file(campaign, new, tmp_path / "sure", image, np.zeros(image.shape)))
    assert queue_places(campaign, store, new.folder, sources, 0) == []
    assert campaign.volumes.ids() == ["a", "b"]
    names = queue_places(campaign, store, new.folder, sources, 3)
    assert {store.views.ticket(name).volume_id for name in names} == {"fresh"}
    assert campaign.volumes.ids() == ["a", "b", "fresh"]
    with campaign_lock(campaign.config, store):  # nothing is missing, so nothing joins
        assert queue_places(campaign, store, new.folder, sources, 3) == []


def test_what_a_mirrored_copy_shows_of_the_holdout_is_never_asked_for(tmp_path: Path) -> None:
    campaign, store, new, _, _ = new_file(tmp_path)
    holdout, image = campaign.holdout(), make_phantom((16, 64, 64), SPACING, 1)[0]  # as volume a
    assert holdout is not None
    boxes = [box.box for box in holdout.boxes if box.volume_id == "a"]
    assert boxes
    mirrored = [Box((*b.offset_zyx[:2], 64 - b.stop_zyx[2]), b.shape_zyx) for b in boxes]
    entropy = np.random.default_rng(3).random(image.shape) * 0.1
    for box in mirrored:
        entropy[box.slices] = 1
    copy = add_file(campaign, new, tmp_path / "mirror", np.ascontiguousarray(image[..., ::-1]), entropy)
    first = doubtful_places(campaign, [copy], 1)[0].box
    assert any(first.intersects(box) for box in mirrored)  # nobody knows yet what it shows
    fresh = SourceVolume("fresh", new.work.url, new.work.url, 0)
    tickets_ = [store.views.ticket(name) for name in queue_places(campaign, store, new.folder, [fresh, copy], 4)]
    assert len(tickets_) == 4
    shown = [box.expand(holdout.guard_zyx) for box in mirrored]
    assert not any(t.box.intersects(box) for t in tickets_ if t.volume_id == "mirror" for box in shown)
    assert "fresh" in {t.volume_id for t in tickets_}


def test_a_holdout_that_names_no_volume_covers_those_of_before(tmp_path: Path) -> None:
    campaign, store, new, _, _ = new_file(tmp_path)
    holdout = campaign.holdout()
    assert holdout is not None
    campaign.storage.write_json("holdout.json", holdout.model_copy(update={"volumes": ()}).to_json())
    join_campaign(campaign, store, new.folder, "fresh")
    assert campaign.holdout() == holdout.model_copy(update={"volumes": ("a", "b", "fresh")})


@pytest.mark.parametrize("recorded", [False, True])
def test_files_unlike_each_other_never_share_a_domain(tmp_path: Path, recorded: bool) -> None:
    campaign, store, new, added, _ = new_file(tmp_path)
    rng, shape = np.random.default_rng(1), (16, 64, 64)
    noise = rng.random(shape)
    sparse = np.where(noise < 0.97, 100 + noise * 10, 30_000 * noise).astype(np.uint16)
    dark = (60_000 - np.clip(rng.exponential(300, shape) ** 2 / 50, 0, 60_000)).astype(np.uint16)
    for name, image in (("sparse", sparse), ("dark", dark)):
        add_file(campaign, new, tmp_path / name, image, np.zeros(shape))
    plain = added.record.domain
    judged: dict[str, VolumeRecord] = {name: new.work.volumes.record(name) for name in ("sparse", "dark")}
    assert {record.domain for record in judged.values()} == {f"{plain}-2"}
    known = {name: campaign.volumes.record(name).normalisation for name in ("a", "b")}
    if recorded:
        other_scale = rescaled(added.record.normalisation, [(2.0, 5.0)])  # the same but for the microscope's gain
        domains = [
            Domain(name=name, spacing_um_zyx=SPACING, normalisation=scaling, volumes={volume: scaling})
            for name, volume, scaling in ((plain, "a", other_scale), (f"{plain}-2", "b", known["b"]))
        ]
        campaign.volumes.save_domains(Domains(domains=tuple(domains)))
    for name in ("sparse", "dark", "fresh"):
        join_campaign(campaign, store, new.folder, name)
    numbers = ("3", "4") if recorded else ("2", "3")
    joined = {name: campaign.volumes.record(name) for name in ("sparse", "dark", "fresh")}
    assert [joined[name].domain for name in ("sparse", "dark")] == [f"{plain}-{n}" for n in numbers]
    assert joined["fresh"].domain == plain
    assert joined["sparse"].normalisation == judged["sparse"].normalisation
    if recorded:
        members = {d.name: set(d.volumes) for d in campaign.volumes.domains().domains}
        assert members[plain] == {"a", "fresh"}
        assert members[f"{plain}-2"] == {"b"}


def test_a_new_file_joins_with_its_domain_and_never_the_holdout(tmp_path: Path) -> None:
    campaign, store, new, added, file = new_file(tmp_path)
    boxes, sources = campaign.holdout(), [SourceVolume("fresh", new.work.url, new.work.url, 0)]
    names = queue_places(campaign, store, new.folder, sources, 4)
    assert len(names) == 4
    joined = campaign.volumes.record("fresh")
    assert joined == added.record.model_copy(update={"files": joined.files})
    assert np.array_equal(open_image(campaign.volumes, "fresh")[...], open_image(new.work.volumes, "fresh")[...])
    tickets.prepare(campaign, store)  # as each loop begins: the holdout grows in volumes that it has not seen
    holdout = campaign.holdout()
    assert boxes is not None
    assert holdout is not None
    assert holdout.boxes == boxes.boxes
    assert "fresh" in holdout.volumes
    assert new.add(file) == added
    assert queue_places(campaign, store, new.folder, sources, 4) == []
    classes = annotate(campaign, names[0])
    snapshot = make_snapshot(campaign, 0, store.views.accepted())
    [item] = [item for item in snapshot.items if item.volume_id == "fresh"]
    assert np.array_equal(campaign.storage.read_array(item.labels), classes)


def test_a_new_file_joins_the_recorded_domains(tmp_path: Path) -> None:
    campaign, store, new, added, _ = new_file(tmp_path)
    known = campaign.volumes.record("a")
    volumes = dict.fromkeys(("a", "b"), known.normalisation)
    recorded = Domain(name="mine", spacing_um_zyx=SPACING, normalisation=known.normalisation, volumes=volumes)
    campaign.volumes.save_domains(Domains(domains=(recorded,)))
    join_campaign(campaign, store, new.folder, "fresh")
    domain = campaign.volumes.domains().of("fresh")
    assert domain is not None
    assert (domain.name, domain.volumes["fresh"]) == (added.record.domain, added.record.normalisation)
    assert campaign.volumes.domains().of("a") == recorded


def test_a_file_joins_between_generations_and_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign, store, new, added, _ = new_file(tmp_path)
    with campaign_lock(campaign.config, store), pytest.raises(QueueError):
        join_campaign(campaign, store, new.folder, "fresh")
    assert "fresh" not in campaign.volumes.ids()
    with pytest.raises(StorageError, match="the copy of volume 'stale' is gone"):
        join_campaign(campaign, store, new.folder, "stale")
    with monkeypatch.context() as broken:
        broken.setattr(Campaign, "freeze_holdout", lambda self, holdout: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            join_campaign(campaign, store, new.folder, "fresh")
    assert "fresh" in campaign.volumes.ids()
    joined = join_campaign(campaign, store, new.folder, "fresh")
    assert joined.normalisation == added.record.normalisation
    holdout = campaign.holdout()
    assert holdout is not None
    assert "fresh" in holdout.volumes
