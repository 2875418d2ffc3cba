"""The campaign folder: atomic, relocatable, closed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from rescueseg.campaign import Campaign, check_id
from rescueseg.config import check_config
from rescueseg.errors import CampaignError, ConfigError, LeaseExpiredError, StorageError
from rescueseg.evaluation.scores import FORMAT as SCORES_FORMAT
from rescueseg.evaluation.scores import Evaluation
from rescueseg.geometry import Box
from rescueseg.records import Holdout, HoldoutBox, Normalisation, VolumeRecord
from rescueseg.storage import FORMAT, Storage, digest_array, digest_json

RECORD = VolumeRecord(
    volume_id="v1",
    domain="d",
    shape_zyx=(4, 8, 8),
    spacing_um_zyx=(1.0, 0.5, 0.5),
    channels=1,
    dtype="uint8",
    source="v1.tif",
    digest="0" * 64,
    normalisation=Normalisation(low=0, high=255, mean=10, std=3),
)


def box(x: int, part: str = "test") -> HoldoutBox:
    return HoldoutBox(volume_id="v1", box=Box((0, 0, x), (2, 2, 2)), part=part, stratum="dense")


def test_a_campaign_moves_with_its_folder(campaign: Campaign, tmp_path: Path) -> None:
    campaign.volumes.save(RECORD)
    campaign.freeze_holdout(Holdout(boxes=(box(0),), guard_zyx=(1, 1, 1)))
    shutil.move(campaign.url, tmp_path / "elsewhere")
    moved = Campaign.open(str(tmp_path / "elsewhere"))
    assert moved.volumes.records() == [RECORD]
    assert moved.holdout() == Holdout(boxes=(box(0),), guard_zyx=(1, 1, 1))
    assert str(tmp_path / "elsewhere") in str(moved.database_url)
    assert str(tmp_path / "campaign") not in (tmp_path / "elsewhere" / "campaign.toml").read_text()


def test_there_is_one_campaign_in_a_folder(campaign: Campaign) -> None:
    with pytest.raises(CampaignError, match="already"):
        Campaign.create(campaign.url, campaign.config)


def test_opening_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="rescueseg init"):
        Campaign.open(str(tmp_path))


def test_the_holdout_only_grows(campaign: Campaign) -> None:
    campaign.freeze_holdout(Holdout(boxes=(box(0), box(4)), guard_zyx=(1, 1, 1)))
    for smaller in [
        Holdout(boxes=(box(0),), guard_zyx=(1, 1, 1)),
        Holdout(boxes=(box(0), box(4)), guard_zyx=(0, 1, 1)),
    ]:
        with pytest.raises(CampaignError, match="only grow"):
            campaign.freeze_holdout(smaller)
    grown = Holdout(boxes=(box(0), box(4), box(8)), guard_zyx=(1, 1, 1))
    campaign.freeze_holdout(grown)
    assert campaign.holdout() == grown
    assert len(grown.of("v1", campaign.volumes.shared_places(), "test")) == 3
    assert grown.of("v1", campaign.volumes.shared_places(), "validation") == []


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "a\0b"])
def test_no_path_leaves_the_campaign(campaign: Campaign, path: str) -> None:
    with pytest.raises(CampaignError, match="leaves the campaign"):
        campaign.storage.write_bytes(path, b"x")


def test_a_link_out_of_the_campaign_is_refused(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    Path(campaign.url, "link").symlink_to(tmp_path / "outside")
    with pytest.raises(CampaignError, match="by a link"):
        campaign.storage.write_bytes("link/x", b"x")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_folder_with_a_picture_of_its_own_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "triage.png").write_bytes(b"mine")
    with pytest.raises(CampaignError, match=r"holds 'triage\.png'"):
        Campaign.create(str(tmp_path), check_config({"name": "c", "classes": ["a"]}))


@pytest.mark.parametrize("value", ["", "..", "a/b", "a b", "a\n", ".hidden", "a" * 200])
def test_unsafe_ids_are_refused(value: str) -> None:
    with pytest.raises(CampaignError, match="no valid ticket id"):
        check_id(value, "ticket id")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a.json", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full") as error:
        storage.write_bytes("a.json", b"new")
    assert "Free some space" in str(error.value)
    assert storage.read_bytes("a.json") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_same_storage_on_another_filesystem() -> None:
    config = check_config({"name": "m", "classes": ["x"], "database_url": "postgresql://nowhere/x"})
    campaign = Campaign.create("memory://campaigns/one", config)
    campaign.volumes.save(RECORD)
    again = Campaign.open("memory://campaigns/one")
    assert again.volumes.records() == [RECORD]
    assert again.config == config
    with pytest.raises(CampaignError, match="needs a database"):
        Campaign.create("memory://campaigns/two", check_config({"name": "m", "classes": ["x"]}))


def test_a_damaged_json_file_is_one_clear_error(campaign: Campaign) -> None:
    campaign.storage.write_bytes("holdout.json", b"{broken")
    with pytest.raises(StorageError, match=r"holdout.json: the file is damaged"):
        campaign.holdout()


def test_a_record_says_its_format_and_one_without_it_is_read(campaign: Campaign) -> None:
    campaign.freeze_holdout(Holdout(boxes=(box(0),), guard_zyx=(1, 1, 1)))
    document = json.loads(campaign.storage.read_bytes("holdout.json"))
    assert document["format"] == FORMAT
    campaign.storage.write_bytes("holdout.json", json.dumps(document["record"]).encode())
    assert campaign.holdout() == Holdout(boxes=(box(0),), guard_zyx=(1, 1, 1))


def test_a_record_of_a_later_version_is_refused_by_name(campaign: Campaign) -> None:
    campaign.freeze_holdout(Holdout(boxes=(box(0),), guard_zyx=(1, 1, 1)))
    later = {"format": FORMAT + 1, "record": {"unheard": "of"}}
    campaign.storage.write_bytes("holdout.json", json.dumps(later).encode())
    with pytest.raises(StorageError, match=r"holdout\.json: a later version of rescueseg wrote this file"):
        campaign.holdout()


def test_scores_of_a_later_version_are_refused() -> None:
    with pytest.raises(StorageError, match="a later version of rescueseg"):
        Evaluation(generation=0, model_digest="", validation=None, test=None, boxes=(), format=SCORES_FORMAT + 1)


def test_a_campaign_file_of_a_later_version_is_refused_by_name(campaign: Campaign) -> None:
    written = campaign.storage.read_bytes("campaign.toml").decode()
    assert "format = 1\n" in written
    campaign.storage.write_bytes("campaign.toml", written.replace("format = 1\n", "").encode())
    assert Campaign.open(campaign.url).config == campaign.config
    campaign.storage.write_bytes("campaign.toml", written.replace("format = 1\n", "format = 2\nnew = 3\n").encode())
    with pytest.raises(ConfigError, match=r"campaign\.toml: a later version of rescueseg wrote this file"):
        Campaign.open(campaign.url)


def test_arrays_round_trip_without_pickle(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    storage.write_array("a/b.npz", labels)
    np.testing.assert_array_equal(storage.read_array("a/b.npz"), labels)
    np.savez(tmp_path / "evil.npz", array=np.array([{"a": 1}], dtype=object))
    with pytest.raises(StorageError, match="pickle"):
        storage.read_array("evil.npz")


def test_digests_tell_shape_and_type_apart() -> None:
    flat = np.zeros(4, np.uint8)
    assert digest_array(flat) != digest_array(flat.reshape(2, 2))
    assert digest_array(flat) != digest_array(flat.astype(np.int8))
    assert digest_array(flat) == digest_array(np.zeros(8, np.uint8)[::2])
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})


def test_errors_cross_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(LeaseExpiredError("too late", where="ticket 7", todo="Lease it again")))
    assert isinstance(error, LeaseExpiredError)
    assert (error.what, error.where, error.todo) == ("too late", "ticket 7", "Lease it again")
    assert str(error) == "ticket 7: too late. Lease it again"
