from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from rescueseg.campaign import Campaign
from rescueseg.delivery.records import RULE, CleanUp, DeliveryRule
from rescueseg.errors import StorageError
from rescueseg.upkeep.backup import back_up, files_of
from rescueseg.upkeep.backup_records import BackupFolder
from rescueseg.upkeep.restore import restore
from rescueseg.upkeep.upgrade import upgrade_steps
from rescueseg.upkeep.verify import is_record, verify

OLDER = Path(__file__).parents[2] / "data" / "older_campaign" / "campaigns.tar.xz"


def unpack(folder: Path, name: str) -> Campaign:
    with tarfile.open(OLDER) as archive:
        archive.extractall(folder, filter="data")
    return Campaign.open(str(folder / name))


@pytest.mark.parametrize("name", ["phantom", "objects"])
def test_an_older_campaign_is_upgraded_and_whole(name: str, tmp_path: Path) -> None:
    campaign = unpack(tmp_path, name)
    campaign.storage.remove("generations/0000/choice.json")  # still earlier versions kept none
    for step in upgrade_steps(campaign):
        step.act()
    assert upgrade_steps(campaign) == []
    assert all(volume.files for volume in campaign.volumes.records(refused=True))
    documents = {
        f.path: json.loads(campaign.storage.read_bytes(f.path)) for f in files_of(campaign) if is_record(f.path)
    }
    assert [path for path, document in documents.items() if "sha256" not in document] == []
    assert verify(campaign).damage == []


def test_a_backup_of_an_older_campaign_is_restored_and_then_upgraded(tmp_path: Path) -> None:
    campaign, folder = unpack(tmp_path, "phantom"), BackupFolder(tmp_path / "backups")
    found = verify(campaign)
    assert found.damage == [], "an earlier version is no damage"
    assert any("rescueseg upgrade" in error.todo for error in found.unchecked)
    back_up(campaign, folder)
    restored = restore(folder, tmp_path / "restored")
    for step in upgrade_steps(restored):
        step.act()
    assert verify(restored).damage == verify(restored).unchecked == []


def test_a_shard_lost_before_the_upgrade_is_not_taken_for_what_was_stored(tmp_path: Path) -> None:
    campaign = unpack(tmp_path, "phantom")
    shard = next(Path(campaign.url).glob("volumes/phantom.ome.zarr/0/c/0/0/0/*"))
    shard.unlink()
    *others, image, records = upgrade_steps(campaign)
    assert "checksum" in records.what
    for step in others:
        step.act()
    with pytest.raises(StorageError, match="damaged"):
        image.act()
    assert not campaign.volumes.record("phantom").files


def test_a_rule_of_deliveries_that_does_not_hold_what_it_should_is_damage(tmp_path: Path) -> None:
    campaign = unpack(tmp_path, "phantom")
    for step in upgrade_steps(campaign):
        step.act()
    generation = campaign.generations()[0]
    generation.write(RULE, DeliveryRule(model_digest="m", truth_digest="", cleanup=(CleanUp(),)))
    assert verify(campaign).damage == []
    path = f"{generation.folder}/delivery.json"
    campaign.storage.write_json(path, {"model_digest": "m", "truth_digest": "", "threshold": "high"})
    assert [error.where for error in verify(campaign).damage] == [campaign.storage.path(path)]
