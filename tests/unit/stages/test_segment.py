"""The steps of a delivery in their order: killed at any write, labels removed, corrected, asked for otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nrrd
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import zarr

from rescueseg.campaign import Campaign
from rescueseg.campaign.folders import RecordFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.new_volumes import NewVolume
from rescueseg.delivery.places import table_path
from rescueseg.delivery.records import DELIVERY, DeliveredVolume
from rescueseg.delivery.request import SegmentRequest, delivery_model
from rescueseg.delivery.sources import source_of
from rescueseg.errors import InferenceError, StorageError, UnreadableVolumeError, VolumeError
from rescueseg.queue.store import make_queue, open_queue
from rescueseg.stages.segment import deliver, finish, prepare
from rescueseg.storage import Storage
from tests.evaluated_campaign import SHAPE, make_campaign, phantom_truth, write_maps, write_model


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign whose model is unsure in places, with a frozen holdout."""
    made = make_campaign(tmp_path_factory.mktemp("segment") / "campaign")
    make_queue(made)
    rng = np.random.default_rng(0)
    foreground = np.clip(0.8 * (phantom_truth() > 0) + 0.1 + 0.12 * rng.normal(size=SHAPE), 0.01, 0.99)
    entropy = -(foreground * np.log(foreground) + (1 - foreground) * np.log(1 - foreground))
    write_maps(made, 0, np.stack([1 - foreground, foreground]), entropy)
    write_model(made, 0)
    return made


def ignore(_what: str, _done: int, _total: int) -> None:
    pass


def run(campaign: Campaign, request: SegmentRequest) -> list[DeliveredVolume]:
    """Give the command, as the flow does."""
    targets = prepare(campaign, request, ignore)
    assert targets.failures == {}
    store = open_queue(campaign)
    volumes = [deliver(campaign, store, targets.request, v, None, ignore) for v in targets.volumes]
    finish(campaign, store, targets.request, ignore)
    return volumes


def request_for(out: Path, **more: object) -> SegmentRequest:
    given = {"out": str(out), "volumes": ("phantom",), "generation": 0, "objects": "yes", "formats": ("nrrd",)}
    return SegmentRequest.model_validate(given | more)


def content(out: Path) -> dict[str, npt.NDArray[np.generic] | list[object] | bytes]:
    """Return all that is delivered: voxels of every level, rows, files."""
    found: dict[str, npt.NDArray[np.generic] | list[object] | bytes] = {}
    group = zarr.open_group(str(out / "phantom.ome.zarr"), mode="r")
    for path, array in group.members(max_depth=None):
        if isinstance(array, zarr.Array):
            found[path] = np.asarray(array[...])
    found["rows"] = pq.read_table(out / table_path("phantom")).to_pylist()
    found["csv"] = (out / "objects.csv").read_bytes()
    return found


def same(a: dict[str, npt.NDArray[np.generic] | list[object] | bytes], b: dict[str, object]) -> bool:
    return set(a) == set(b) and all(
        np.array_equal(a[k], b[k]) if isinstance(a[k], np.ndarray) else a[k] == b[k] for k in a
    )


class KilledError(BaseException):
    """Like a kill: nothing that waits for errors sees it."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, write: int) -> Iterator[list[str]]:
    """Let the work end before its n-th write of a record or marker."""
    names: list[str] = []
    real = Storage.write_bytes

    def write_bytes(self: Storage, relative: str, data: bytes, *, read_only: bool = False) -> None:
        names.append(relative)
        if len(names) == write:
            raise KilledError
        real(self, relative, data, read_only=read_only)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", write_bytes)
        yield names


def test_killed_before_any_write_and_given_again_it_ends_alike(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(campaign, request_for(tmp_path / "undisturbed"))
    with killed_at(monkeypatch, 0) as names:
        run(campaign, request_for(tmp_path / "counted"))
    expected = content(tmp_path / "undisturbed")
    assert len(names) > 15
    for write in range(2, len(names) + 1, 5):
        out = tmp_path / f"killed{write}"
        with killed_at(monkeypatch, write), pytest.raises(KilledError):
            run(campaign, request_for(out))
        [volume] = run(campaign, request_for(out))
        assert same(expected, content(out)), names[write - 1]
        assert volume.version == 1


def test_labels_that_were_removed_are_made_again_even_when_markers_are_left(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(campaign, request_for(out))
    expected, folder = content(out), DeliveryFolder(str(out))
    folder.storage.remove("phantom.ome.zarr")
    folder.storage.remove("phantom_mask.nrrd")
    run(campaign, request_for(out))
    assert same(expected, content(out))
    assert (out / "phantom_mask.nrrd").exists()
    table = folder.storage.path(table_path("phantom"))
    Path(table).unlink()
    folder.storage.remove("records/phantom.json")
    with monkeypatch.context() as patch, suppress(KilledError):  # killed with the pyramids' markers there
        patch.setattr("rescueseg.stages.segment.write_table", _killed)
        run(campaign, request_for(out))
    assert folder.storage.exists("work/passes/phantom/pyramid")
    folder.storage.remove("phantom.ome.zarr")
    run(campaign, request_for(out))
    assert same(expected, content(out))


def _killed(*_given: object) -> None:
    raise KilledError


def test_asked_for_otherwise_all_volumes_follow(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    [first] = run(campaign, request_for(out))
    assert first.labels == ("mask", "objects")
    [again] = run(campaign, SegmentRequest(out=str(out)))  # what is left open stays
    assert again == first
    [second] = run(campaign, SegmentRequest(out=str(out), objects="no"))
    assert second.labels == ("mask",)
    assert second.digest != first.digest
    assert not (out / "phantom.ome.zarr" / "labels" / "objects").exists()
    delivery = DeliveryFolder(str(out)).records.read(DELIVERY)
    assert delivery is not None
    assert delivery.rule.objects is None


def test_what_was_not_imported_cannot_be_delivered_again(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    [volume] = run(campaign, request_for(out))
    folder = DeliveryFolder(str(out))
    foreign = volume.model_copy(update={"volume_id": "gone", "in_campaign": False, "source": "/data/gone.tif"})
    folder.records.write(folder.volume_record("gone"), foreign)
    with pytest.raises(InferenceError, match=r"Name the file again: /data/gone\.tif"):
        deliver(campaign, open_queue(campaign), request_for(out), "gone", None, ignore)
    assert prepare(campaign, request_for(out), ignore).volumes == ("phantom",)


def test_formats_of_before_follow_the_labels(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(campaign, request_for(out))
    assert (out / "phantom_objects.nrrd").exists()
    [volume] = run(campaign, SegmentRequest(out=str(out), objects="no"))
    assert [file.path for file in volume.files] == ["phantom_mask.nrrd"]
    assert not (out / "phantom_objects.nrrd").exists()
    mask = np.asarray(zarr.open_array(str(out / "phantom.ome.zarr/labels/mask"), path="0", mode="r")[...])
    written, _ = nrrd.read(str(out / "phantom_mask.nrrd"))
    assert np.array_equal(written.T, mask)


def test_a_folder_that_somebody_else_took_meanwhile_is_left_alone(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    targets, folder = prepare(campaign, request_for(out), ignore), DeliveryFolder(str(out))
    ours = folder.records.read(DELIVERY)
    assert ours is not None
    folder.records.write(DELIVERY, ours.model_copy(update={"campaign_url": "/elsewhere", "campaign_id": "e" * 32}))
    with pytest.raises(StorageError, match="delivery of campaign /elsewhere"):
        deliver(campaign, open_queue(campaign), targets.request, "phantom", None, ignore)
    assert folder.delivered() == []


def test_a_moved_campaign_goes_on_with_its_deliveries(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(campaign, request_for(out))
    folder = DeliveryFolder(str(out))
    delivery = folder.records.read(DELIVERY)
    assert delivery is not None
    folder.records.write(DELIVERY, delivery.model_copy(update={"campaign_url": "/where/it/was"}))
    assert prepare(campaign, SegmentRequest(out=str(out)), ignore).volumes == ("phantom",)


def test_maps_of_other_intensities_are_not_taken(campaign: Campaign, tmp_path: Path) -> None:
    """A generation keeps its maps; the delivery's own would be made in its work folder."""
    out, record = tmp_path / "out", campaign.volumes.record("phantom")
    targets, folder = prepare(campaign, request_for(out), ignore), DeliveryFolder(str(out))
    delivery = folder.records.read(DELIVERY)
    assert delivery is not None
    chosen = delivery_model(campaign, targets.request)
    assert source_of(campaign, folder, chosen, delivery, "phantom").maps_url == campaign.url
    normalisation = record.normalisation.model_copy(update={"high": record.normalisation.high * 2})
    try:
        campaign.volumes.save(record.model_copy(update={"normalisation": normalisation}))
        source = source_of(campaign, folder, chosen, delivery, "phantom")
    finally:
        campaign.volumes.save(record)
    assert (source.maps_url, source.volumes_url) == (folder.work_url(), campaign.url)


def test_a_file_and_another_volume_of_its_name_are_told_apart(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(campaign, request_for(out), ignore)
    folder = DeliveryFolder(str(out))
    delivery = folder.records.read(DELIVERY)
    assert delivery is not None
    record = campaign.volumes.record("phantom")
    other = NewVolume(record=record.model_copy(update={"digest": "o" * 64}), path="p.tif", source="s", likeness="like")
    RecordFolder(Storage(folder.work_url())).write(RecordFile("new/phantom", NewVolume), other)
    with pytest.raises(VolumeError, match="another volume of it since"):
        source_of(campaign, folder, delivery_model(campaign, request_for(out)), delivery, "phantom")


def test_when_no_file_can_be_delivered_nothing_is_written(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"no image")
    request = SegmentRequest(out=str(tmp_path / "out"), files=(str(tmp_path / "bad.tif"),), generation=0)
    with pytest.raises(UnreadableVolumeError, match="none of the files can be delivered"):
        prepare(campaign, request, ignore)
    assert not (tmp_path / "out" / "delivery.json").exists()
