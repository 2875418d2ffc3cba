"""What is damaged, foreign or of a later version in a campaign is one error that names the file, whoever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import TRACKING
from rescueseg.cli.main import app
from rescueseg.config import InferenceConfig
from rescueseg.errors import ConfigError, StorageError, UnknownTokenError
from rescueseg.geometry import Box
from rescueseg.inference.maps import InferencePlan, VolumeMaps
from rescueseg.queue.store import open_queue
from rescueseg.records import Domains, Holdout, HoldoutBox, ModelReference, QueriedPatch, Relations
from rescueseg.server import access
from rescueseg.server.app import create_app
from rescueseg.services.prefect_api import wake
from rescueseg.services.state import read_state, stop_stale_servers, write_state
from rescueseg.storage import FORMAT, digest_json
from rescueseg.tracking.runs import CampaignRuns
from tests.annotation_server import HERE, fill
from tests.evaluated_campaign import holdout_boxes
from tests.unit.campaign.test_campaign import RECORD

PLAN = InferencePlan(
    model=ModelReference(generation=0, trainer="monai_unet", path="m", digest="d"),
    volume_id="v1",
    volume_digest="d",
    shape_zyx=(4, 8, 8),
    spacing_um_zyx=(1.0, 0.5, 0.5),
    n_classes=1,
    seed=0,
    inference=InferenceConfig(),
    window_zyx=(4, 8, 8),
    block_zyx=(4, 8, 8),
    chunk_zyx=(4, 8, 8),
)
MARKER = {"block": 0, "box": PLAN.blocks[0].to_dict(), "digest": "d", "plan": PLAN.digest}


def tracked(campaign: Campaign) -> str:
    """Return the id by which the experiment is found, without a server."""
    return CampaignRuns(campaign, "sqlite://")._identity()


def maps(campaign: Campaign) -> VolumeMaps:
    return VolumeMaps(campaign.generation(0), "v1")


RECORDS: dict[str, tuple[Any, Callable[[Campaign], object]]] = {
    "volumes/v1.json": (RECORD.to_json(), lambda c: c.volumes.record("v1")),
    "volumes/v1.json ": (RECORD.to_json(), lambda c: c.volumes.records()),
    "holdout.json": (holdout_boxes().to_json(), Campaign.holdout),
    "starting.json": ([], Campaign.starting_patches),
    "rough.json": ([], Campaign.rough_patches),
    "relations.json": (Relations().to_json(), lambda c: c.volumes.relations()),
    "domains.json": (Domains().to_json(), lambda c: c.volumes.domains()),
    "tracking.json": ({"id": "0" * 32}, tracked),
    "tokens/ab12.json": (
        {"token_id": "ab12", "name": "anna", "role": "admin", "digest": "0", "created_at": "2026-01-01T00:00:00Z"},
        lambda c: access.list_tokens(c.storage),
    ),
    "services/services.json": ({"prefect_api_url": "x", "mlflow_uri": "y"}, lambda c: read_state(c.services_folder)),
    "generations/0000/maps/v1.json": (
        {"generation": 0, "volume_id": "v1", "model_digest": "d", "quantities": [], "blocks": 1, "digest": "d"},
        lambda c: maps(c).reference(),
    ),
    "generations/0000/maps/v1.blocks/000000.json": (MARKER, lambda c: maps(c).finished_blocks(PLAN)),
}
"""A record of each kind that has a reader of its own."""


@pytest.mark.parametrize("name", RECORDS)
def test_a_sound_record_of_this_version_and_of_earlier_ones_is_read(campaign: Campaign, name: str) -> None:
    record, read = RECORDS[name]
    path = name.strip()
    campaign.storage.write_json(path, record)
    expected = read(campaign)
    for older in (record, {"format": 1, "record": record}):
        campaign.storage.write_bytes(path, json.dumps(older).encode())
        assert read(campaign) == expected


DAMAGES: dict[str, Callable[[str], str]] = {
    "emptied": lambda written: "",
    "cut": lambda written: written[: len(written) // 2],
    "of another tool": lambda written: '{"of": "another tool"}',
    "no object": lambda written: '"x"',
    "without its checksum": lambda written: json.dumps({k: v for k, v in json.loads(written).items() if k != "sha256"}),
    "another record under the same checksum": lambda written: json.dumps(json.loads(written) | {"record": {}}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_one_error(campaign: Campaign, name: str, damage: str) -> None:
    record, read = RECORDS[name]
    path = name.strip()
    campaign.storage.write_json(path, record)
    written = campaign.storage.read_bytes(path).decode()
    campaign.storage.write_bytes(path, DAMAGES[damage](written).encode())
    with pytest.raises(StorageError, match=r"^the file is damaged: |: the file is damaged: ") as caught:
        read(campaign)
    assert caught.value.where == campaign.storage.path(path)
    assert caught.value.todo


@pytest.mark.parametrize("name", [*RECORDS, "generations/0000/maps/v1.inference.json"])
def test_a_record_of_a_later_format_is_refused_by_every_reader(campaign: Campaign, name: str) -> None:
    record, read = RECORDS.get(name, ({}, lambda c: maps(c).plan()))
    path = name.strip()
    later = {"format": FORMAT + 1, "record": record, "sha256": digest_json(record), "signature": "x"}
    campaign.storage.write_bytes(path, json.dumps(later).encode())
    with pytest.raises(StorageError, match=f"a later version of rescueseg wrote this file: its format is {FORMAT + 1}"):
        read(campaign)


def test_another_digit_in_a_volume_is_refused(campaign: Campaign) -> None:
    campaign.volumes.save(RECORD)
    file = Path(campaign.url, "volumes/v1.json")
    file.write_text(file.read_text().replace('"high": 255.0', '"high": 355.0'))
    with pytest.raises(StorageError, match=r"v1\.json: the file is damaged: its checksum does not fit") as caught:
        campaign.volumes.record("v1")
    assert caught.value.where == str(file)
    shown = CliRunner().invoke(app, ["status", campaign.url])
    assert shown.exit_code == 1
    assert "checksum" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_record_of_another_volume_is_refused(campaign: Campaign) -> None:
    campaign.volumes.save(RECORD)
    file = Path(campaign.url, "volumes/v1.json")
    file.rename(file.with_name("v2.json"))
    for read in (campaign.volumes.records, lambda: campaign.volumes.record("v2")):
        with pytest.raises(StorageError, match=r"v2\.json: the file is damaged: it holds the record of volume 'v1'"):
            read()


@pytest.mark.parametrize("name", ["a copy of v1.json", "v1...json", "ü.json"])
def test_a_strange_file_among_the_volumes_is_named(campaign: Campaign, name: str) -> None:
    campaign.volumes.save(RECORD)
    Path(campaign.url, "volumes", name).write_bytes(campaign.storage.read_bytes("volumes/v1.json"))
    with pytest.raises(StorageError, match="this file is no record of a volume") as caught:
        campaign.volumes.records()
    assert caught.value.where == campaign.storage.path(f"volumes/{name}")


def test_a_folder_in_place_of_a_record_is_named(campaign: Campaign) -> None:
    Path(campaign.url, "volumes/v1.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"v1\.json: the file is damaged: a folder stands in its place"):
        campaign.volumes.records()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'name = "t"\nclasses = ["Zellw\xe4nde"]\n', "line 2 is no UTF-8 text"),
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b'name = "t', "not valid TOML"),
        (b"\0" * 100, "not valid TOML"),
        (b"seed = " + b"9" * 5000, "not valid TOML"),
        (b"a = " + b"[" * 100000, "not valid TOML"),
    ],
    ids=["latin 1", "empty", "blank", "cut", "zeros", "a long number", "deep"],
)
def test_a_damaged_campaign_file_is_one_error(campaign: Campaign, content: bytes, says: str) -> None:
    file = Path(campaign.url, "campaign.toml")
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        Campaign.open(campaign.url)
    assert caught.value.where == str(file)
    shown = CliRunner().invoke(app, ["status", campaign.url])
    assert shown.exit_code == 1
    assert "Traceback" not in shown.stderr


def test_a_lost_holdout_is_not_drawn_again(campaign: Campaign) -> None:
    assert campaign.holdout() is None
    box = HoldoutBox(volume_id="v1", box=Box((0, 0, 0), (2, 2, 2)), part="test", stratum="dense")
    campaign.freeze_holdout(Holdout(boxes=(box,), guard_zyx=(1, 1, 1)))
    campaign.save_starting_patches([QueriedPatch(volume_id="v1", box=Box((2, 4, 4), (2, 2, 2)), score=1.0)])
    file = Path(campaign.url, "holdout.json")
    file.unlink()
    with pytest.raises(StorageError, match="the frozen holdout is lost") as caught:
        campaign.freeze_holdout(Holdout(boxes=(box,), guard_zyx=(1, 1, 1)))
    assert caught.value.where == str(file)
    assert not file.exists()


def test_a_damaged_token_is_said_to_its_holder_alone_and_can_be_revoked(campaign: Campaign) -> None:
    anna, bob = (access.add_token(campaign.storage, name, "annotator") for name in ("anna", "bob"))
    token_id = anna.split("_")[1]
    file = Path(campaign.url, f"tokens/{token_id}.json")
    for content in ("", "{}", file.read_text().replace("annotator", "admin")):
        file.write_text(content)
        with TestClient(create_app(fill_once(campaign), is_open=False), base_url=HERE) as client:
            reply = client.get("/api/v1/info", headers={"Authorization": f"Bearer {anna}"})
            assert (reply.status_code, reply.json()["where"]) == (503, f"tokens/{token_id}.json")
            assert "the file is damaged" in reply.json()["what"]
            assert client.get("/api/v1/info", headers={"Authorization": f"Bearer {bob}"}).status_code == 200
        shown = CliRunner().invoke(app, ["token", "list", campaign.url])
        assert shown.exit_code == 1
        assert f"{token_id}.json" in shown.stderr.replace("\n", "")
    assert CliRunner().invoke(app, ["token", "revoke", campaign.url, token_id]).exit_code == 0
    with pytest.raises(UnknownTokenError):
        access.holder(campaign.storage, anna)
    assert [token.name for token in access.list_tokens(campaign.storage)] == ["bob"]


def fill_once(campaign: Campaign) -> Campaign:
    return campaign if campaign.volumes.records() else fill(campaign)


def test_a_token_under_another_name_is_refused(campaign: Campaign) -> None:
    token = access.add_token(campaign.storage, "anna", "annotator")
    [file] = Path(campaign.url, "tokens").iterdir()
    file.rename(file.with_name("00000000.json"))
    with pytest.raises(StorageError, match="the file is damaged: it holds the token"):
        access.holder(campaign.storage, token.replace(token.split("_")[1], "00000000"))
    (file.parent / "notes.txt").touch()
    with pytest.raises(StorageError, match=r"notes\.txt: this file is no token"):
        access.list_tokens(campaign.storage)


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 33])
def test_a_damaged_image_key_signs_nothing(campaign: Campaign, key: bytes) -> None:
    assert access.image_key(campaign.storage) == access.image_key(campaign.storage)
    Path(campaign.url, "image_key").write_bytes(key)
    with pytest.raises(StorageError, match=f"image_key: the file is damaged: it holds {len(key)} bytes, not 32"):
        access.image_key(campaign.storage)


@pytest.mark.parametrize("content", ["", "[]", '{"prefect_api_url": "x"', '{"prefect_api_url": "x"}', '"x"'])
def test_a_damaged_state_of_the_servers_is_no_state_without_servers(
    campaign: Campaign, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    folder = campaign.services_folder
    folder.mkdir()
    write_state(folder, "http://127.0.0.1:1", "y", "", {})
    assert read_state(folder) is None, "no Prefect server runs"
    file = folder / "services.json"
    file.write_text(content)
    for read in (read_state, stop_stale_servers):
        with pytest.raises(StorageError, match=r"the file is damaged: .* Stop the servers") as caught:
            read(folder)
        assert caught.value.where == str(file)
    store = open_queue(campaign)
    store.migrate()
    assert wake(campaign, store) is False, "labels that were handed in stay handed in"
    store.close()


def test_the_experiment_of_a_damaged_identity_is_not_replaced(campaign: Campaign) -> None:
    identity = tracked(campaign)
    assert tracked(campaign) == identity
    for content in ("{}", '{"id": 3}', '{"id": "x"}', "[]", ""):
        campaign.storage.write_bytes(TRACKING.path(), content.encode())
        with pytest.raises(StorageError, match=r"tracking\.json: the file is damaged"):
            tracked(campaign)
        assert campaign.storage.read_bytes(TRACKING.path()) == content.encode()
