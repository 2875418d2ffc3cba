"""MONAI Label's own client, unmodified, against our endpoint."""

from __future__ import annotations

import gzip
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile

from rescueseg import volumes
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import Box
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue, utc_now
from rescueseg.server.access import add_token
from tests import evaluated_campaign
from tests.annotation_server import served
from tests.next_snapshot import next_labels

client_module = pytest.importorskip("monailabel.client.client", reason="MONAI Label's client is not installed")

REAL = ("vesselnn_poon2015_BBB_noLeakage", "bbbc050_mosaic_train", "cdeep3m_mito_train")
CROP = Box((2, 100, 130), (10, 60, 70))
BOX = Box((3, 20, 24), (5, 24, 30))
NOT_ANNOTATED = "not annotated"


def campaign_of(folder: Path, image: np.ndarray, spacing: tuple[float, float, float], **annotation: Any) -> Campaign:
    """Return a campaign of one volume with one queued patch that has a first mask."""
    classes = ["organelle"] if annotation else ["organelle", "other one"]
    config = check_config({"name": "rest", "classes": classes, "annotation": annotation})
    campaign = Campaign.create(str(folder / "campaign"), config)
    tifffile.imwrite(folder / "raw.tif", image)
    volumes.import_volume(campaign, volumes.VolumeImport(str(folder / "raw.tif"), volume_id="v", spacing=spacing))
    prefill = np.zeros(BOX.shape_zyx, np.uint8)
    prefill[1, 2:9, 3:5] = 1
    campaign.storage.write_array("weak_labels/t/a.npz", prefill)
    open_queue(campaign).tickets.add(
        [NewTicket(ticket_id="a", volume_id="v", box=BOX, prefill="weak_labels/t/a.npz", reason="worst case")]
    )
    return campaign


def real_crop(folder: Path, name: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    spacing = tuple(json.loads((folder / name / "meta.json").read_text())["voxel_size_um_zyx"])
    return tifffile.imread(folder / name / "raw.tif")[CROP.slices], spacing


def client_of(url: str, folder: Path, name: str = "anna") -> Any:
    return client_module.MONAILabelClient(f"{url}/monai", str(folder), name)


def save(path: Path, zyx: np.ndarray, like: Path) -> Path:
    nib.save(nib.Nifti1Image(zyx.T, nib.load(like).affine), path)
    return path


def fetch(url: str, image_id: str, path: Path) -> bytes:
    """Fetch an image as 3D Slicer does: by its id alone."""
    with urllib.request.urlopen(f"{url}/monai/datastore/image?image={image_id}") as answer:
        content: bytes = answer.read()
    path.write_bytes(content)
    return content


@pytest.mark.parametrize("name", REAL)
def test_a_real_patch_goes_out_and_comes_back_in_its_place(name: str, real_data: Path, tmp_path: Path) -> None:
    image, spacing = real_crop(real_data, name)
    campaign = campaign_of(tmp_path, image, spacing)
    with served(campaign) as url:
        client = client_of(url, tmp_path)
        assert not client.auth_enabled()
        info = client.info()
        assert info["labels"] == {"organelle": 1, "other one": 2, NOT_ANNOTATED: 255}
        assert "config" not in info
        sample = client.next_sample("queue", {})
        content = fetch(url, sample["id"], tmp_path / sample["name"])
        assert sample["checksum"] == f"SHA256:{hashlib.sha256(content).hexdigest()}"
        seen = SimpleITK.ReadImage(str(tmp_path / sample["name"]))
        context = LocalClient(campaign, open_queue(campaign), "anna").view(sample["id"][:32]).context
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(seen), image[context.slices])
        np.testing.assert_allclose(seen.GetSpacing()[::-1], np.array(spacing) / 1000, rtol=1e-5)

        start = Path(client.download_label(sample["id"], "original"))
        overlay = SimpleITK.ReadImage(str(start))
        assert overlay.GetSize() == seen.GetSize()
        np.testing.assert_allclose(overlay.GetOrigin(), seen.GetOrigin())
        np.testing.assert_allclose(overlay.GetDirection(), seen.GetDirection())
        inside = BOX.relative_to(context).slices
        mask = SimpleITK.GetArrayFromImage(overlay)
        outside = np.ones(mask.shape, bool)
        outside[inside] = False
        assert (mask[outside] == 255).all()
        assert mask[inside].sum() == 14

        drawn = np.random.default_rng(5).integers(0, 3, mask.shape).astype(np.uint8)
        drawn[inside][0, :3, :4] = 3  # 3D Slicer numbers its segments anew and tells their names
        segments = [{"name": n, "idx": i} for n, i in (("other one", 1), ("organelle", 2), (NOT_ANNOTATED, 3))]
        expected = np.array([0, 2, 1, 255], np.uint8)[drawn[inside]]
        path = save(tmp_path / "my label.nii.gz", drawn, start)
        hand_in(client, sample["id"], path, {"label_info": segments})
        assert client.next_sample("queue", {}) == {}
    (accepted,) = open_queue(campaign).views.accepted()
    assert accepted.annotator == "anna"
    np.testing.assert_array_equal(next_labels(campaign, "a", "v", BOX), expected)


def hand_in(client: Any, image_id: str, path: Path, params: dict[str, Any]) -> None:
    """Submit, once more where the mask looks odd."""
    with suppress(client_module.MONAILabelClientException):
        client.save_label(image_id, str(path), params=params)
        return
    client.save_label(image_id, str(path), params=params)


@pytest.fixture
def phantom(tmp_path: Path) -> Campaign:
    image = np.random.default_rng(1).integers(0, 60000, CROP.shape_zyx).astype(np.uint16)
    return campaign_of(tmp_path, image, (0.4, 0.2, 0.1))


def refused(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(client_module.MONAILabelClientException) as caught:
        call(*arguments, **named)
    return str(caught.value.msg)


def test_what_is_wrong_is_refused_and_nothing_changes(phantom: Campaign, tmp_path: Path) -> None:
    with served(phantom) as url:
        client = client_of(url, tmp_path)
        assert "no strategy" in refused(client.next_sample, "random", {})
        lease = client.next_sample("pool", {})["id"]
        assert client.next_sample("pool", {})["id"] == lease, "one goes on with the patch one holds"
        assert client_of(url, tmp_path, "bob").next_sample("queue", {}) == {}, "nobody else gets it"
        start = Path(client.download_label(lease, "original"))
        mask = np.asarray(nib.load(start).dataobj).T
        elsewhere = nib.Nifti1Image(mask.T, np.diag([1.0, 1.0, 1.0, 1.0]))
        nib.save(elsewhere, tmp_path / "elsewhere.nii.gz")
        save(tmp_path / "small.nii.gz", mask[1:], start)
        save(tmp_path / "class.nii.gz", np.where(mask == 1, 9, mask), start)
        (tmp_path / "text.nii.gz").write_text("no image at all")
        (tmp_path / "cut.nii.gz").write_bytes(start.read_bytes()[:-300])
        for file in ("elsewhere", "small", "class", "text", "cut"):
            said = refused(client.save_label, lease, str(tmp_path / f"{file}.nii.gz"))
            assert "Status: 4" in said
        assert "no class" in refused(
            client.save_label, lease, str(start), params={"label_info": [{"name": "x", "idx": 1}]}
        )
        assert "Status: 4" in refused(client_of(url, tmp_path, "bob").save_label, lease, str(start))
        assert "no model has predicted" in refused(client.infer, "champion", lease, {})
        assert "Import it" in refused(client.upload_image, str(start), "mine")
        assert "not served" in refused(client.train_start, "champion", {})
        assert not client.train_status(check_if_running=True)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(url, "0" * 32, tmp_path / "none")
        for odd in ({"name": "organelle"}, [1], 5, "abc", [{"name": "organelle", "idx": [1]}]):
            said = refused(client.save_label, lease, str(start), params={"label_info": odd})
            assert "Status: 422" in said
            assert "label_info" in said
    assert open_queue(phantom).views.annotations("a") == []


def test_objects_are_numbered_anew_and_ignore_is_kept(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 60000, CROP.shape_zyx).astype(np.uint16)
    campaign = campaign_of(tmp_path, image, (0.4, 0.2, 0.1), labels="instance")
    with served(campaign) as url:
        client = client_of(url, tmp_path)
        lease = client.next_sample("queue", {})["id"]
        start = Path(client.download_label(lease, "original"))
        mask = np.asarray(nib.load(start).dataobj).T.copy()
        inside = BOX.relative_to(LocalClient(campaign, open_queue(campaign), "anna").view(lease[:32]).context).slices
        drawn = mask[inside]
        drawn[...] = 0
        drawn[0:3, 2:8, 2:8], drawn[2:5, 12:20, 12:20], drawn[0:2, 18:24, 0:9] = 7, 200, 255
        for odd in (-1.0, 1.5, np.nan, 5e9):
            wrong = save(tmp_path / "odd.nii.gz", np.where(mask == 7, odd, mask).astype(np.float64), start)
            assert "must be whole" in refused(client.save_label, lease, str(wrong))
        hand_in(client, lease, save(tmp_path / "objects.nii.gz", mask, start), {})
    labels = LocalClient(campaign, open_queue(campaign), "anna").version_labels("a", 1)
    assert labels.instances is not None
    np.testing.assert_array_equal(labels.instances, np.where(drawn == 255, 0, drawn))
    np.testing.assert_array_equal(labels.ignore, drawn == 255)


def test_a_lease_that_ran_out_is_taken_again_and_a_lost_reply_is_given_again(phantom: Campaign, tmp_path: Path) -> None:
    with served(phantom) as url:
        client = client_of(url, tmp_path)
        lease = client.next_sample("queue", {})["id"]
        start = Path(client.download_label(lease, "original"))
        mask = np.asarray(nib.load(start).dataobj).T.copy()
        mask[mask == 0] = 2
        path = save(tmp_path / "late.nii.gz", mask, start)
        store = open_queue(phantom)
        assert store.leases.expire(utc_now() + timedelta(days=1)) == 1
        hand_in(client, lease, path, {})
        [(first)] = store.views.annotations("a")
        client.save_label(lease, str(path), params={})
        assert store.views.annotations("a") == [first], "the same again changes nothing"


def test_a_session_keeps_an_image_for_a_while(phantom: Campaign, tmp_path: Path) -> None:
    with served(phantom) as url:
        client = client_of(url, tmp_path)
        lease = client.next_sample("queue", {})["id"]
        fetch(url, lease, tmp_path / "mine.nii.gz")
        session = client.create_session(str(tmp_path / "mine.nii.gz"))["session_id"]
        assert client.get_session(session)["meta"]["annotator"] == "anna"
        assert "no champion" in refused(client.infer, "champion", "", {}, session_id=session)
        client.remove_session(session)
        bomb = tmp_path / "bomb.nii.gz"
        with gzip.open(bomb, "wb") as file:
            for _ in range(80):
                file.write(bytes(2**20))
        assert "larger than" in refused(client.create_session, str(bomb))
        assert not any((phantom.services_folder / "monai-sessions").iterdir())
        sessions = [client.create_session(str(tmp_path / "mine.nii.gz"))["session_id"] for _ in range(4)]
        assert "you have 4 sessions" in refused(client.create_session, str(tmp_path / "mine.nii.gz"))
        assert len(set(sessions)) == 4
        assert "no such session" in refused(client.get_session, session)
        assert "404" in refused(client.get_session, "../../campaign.toml")


def test_the_model_predicts_pool_patches_and_never_the_holdout(tmp_path: Path) -> None:
    campaign = evaluated_campaign.make_campaign(tmp_path / "evaluated")
    evaluated_campaign.write_generation(campaign, 0, noise=0.5, judged=False)
    inside = np.argwhere(evaluated_campaign.phantom_truth() > 0)
    box = Box(tuple(inside[len(inside) // 2]), (6, 20, 16)).clip(evaluated_campaign.SHAPE)
    store = open_queue(campaign)
    store.tickets.add(
        [
            NewTicket(ticket_id="p", volume_id="phantom", box=box),
            NewTicket(ticket_id="t", volume_id="phantom", box=Box((0, 0, 0), (8, 24, 24)), purpose="test"),
        ]
    )
    with served(campaign) as url:
        client = client_of(url, tmp_path)
        assert client.info()["models"]["champion"]["type"] == "segmentation"
        sample = client.next_sample("pool", {})
        file, params = client.infer("champion", sample["id"], {"result_extension": ".nrrd", "result_dtype": "uint8"})
        assert params["label_names"] == {"organelle": 1, NOT_ANNOTATED: 255}
        fetch(url, sample["id"], tmp_path / sample["name"])
        found, image = SimpleITK.ReadImage(file), SimpleITK.ReadImage(str(tmp_path / sample["name"]))
        assert (found.GetSize(), found.GetOrigin()) == (image.GetSize(), image.GetOrigin())
        view = LocalClient(campaign, store, "anna").view(sample["id"][:32])
        assert view.prediction is not None
        expected = np.full(view.context.shape_zyx, 255, np.uint8)
        expected[view.inside.slices] = view.prediction[view.inside.slices]
        assert (expected == 1).sum() > 0
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), expected)
        held = client_of(url, tmp_path, "bob").next_sample("test", {})
        assert "bias" in refused(client_of(url, tmp_path, "bob").infer, "champion", held["id"], {})


def test_beyond_the_loopback_a_token_is_the_password(phantom: Campaign, tmp_path: Path) -> None:
    token = add_token(phantom.storage, "anna", "annotator")
    with served(phantom, "--tokens") as url:
        client = client_of(url, tmp_path, "somebody else")
        assert client.auth_enabled()
        assert "Status: 401" in refused(client.info)
        assert "Status: 401" in refused(client.auth_token, "anna", token[:-1])
        assert "Status: 401" in refused(client.auth_token, "bob", token)
        client.update_auth(client.auth_token("anna", token))
        assert client.auth_valid_token()
        sample = client.next_sample("queue", {})
        assert open_queue(phantom).views.leases()[0].annotator == "anna"
        assert set(client.datastore()["objects"]) == {sample["id"]}
        for call in (client.train_stop, lambda: client.train_start("champion", {})):
            assert "needs the role 'admin'" in refused(call)
        assert fetch(url, sample["id"], tmp_path / sample["name"]), "images need no token"
        start = Path(client.download_label(sample["id"], "original"))
        hand_in(client, sample["id"], start, {})
        assert client.info()["datastore"]["completed"] == 1, "its stale content-length does no harm"
    assert [a.annotator for a in open_queue(phantom).views.accepted()] == ["anna"]
