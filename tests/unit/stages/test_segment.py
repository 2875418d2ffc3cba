"""The steps of a delivery in their order: killed at any write, labels removed, corrected, asked for otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import zarr

from rescueseg.campaign import Campaign
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.places import table_path
from rescueseg.delivery.records import DELIVERY, DeliveredVolume
from rescueseg.delivery.request import SegmentRequest
from rescueseg.errors import InferenceError
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
