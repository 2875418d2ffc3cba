"""The annotation server's routes, errors and access, in this process."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.engine import make_url

from rescueseg.annotation.formats.space import affine_mm
from rescueseg.annotation.packing import pack_labels
from rescueseg.annotation.roles import ROLES
from rescueseg.campaign import Campaign
from rescueseg.errors import AccessError, UnknownTokenError
from rescueseg.labels import PatchLabels
from rescueseg.server import access
from rescueseg.server.app import create_app
from tests.annotation_server import BOX, HERE, IMAGE, SPACING, fill


@pytest.fixture
def filled(campaign: Campaign) -> Campaign:
    return fill(campaign)


@pytest.fixture
def client(filled: Campaign) -> TestClient:
    return TestClient(create_app(filled, is_open=True), base_url=HERE)


def nifti(labels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> bytes:
    """Return labels as another program would write them: gzipped NIfTI of a zyx array."""
    return gzip.compress(nibabel.Nifti1Image(labels.T, affine).to_bytes())


def drawn() -> np.ndarray[Any, Any]:
    return (np.arange(BOX.size).reshape(BOX.shape_zyx) % 2).astype(np.uint8)


def as_they_are(labels: np.ndarray[Any, Any]) -> bytes:
    return nifti(labels, affine_mm(SPACING, BOX.offset_zyx))


def flipped(labels: np.ndarray[Any, Any]) -> bytes:
    """Return the same labels in the same place, stored from the other end of x and y."""
    affine = affine_mm(SPACING, BOX.offset_zyx)
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turn[:2, 3] = BOX.shape_zyx[2] - 1, BOX.shape_zyx[1] - 1
    return nifti(labels[:, ::-1, ::-1], affine @ turn)


def in_micrometre(labels: np.ndarray[Any, Any]) -> bytes:
    """Return the same labels as NIfTI-2 whose header counts in micrometre."""
    affine = affine_mm(SPACING, BOX.offset_zyx)
    image = nibabel.Nifti2Image(labels.T, np.diag([1000.0, 1000.0, 1000.0, 1.0]) @ affine)
    image.header.set_xyzt_units("micron")
    return bytes(image.to_bytes())


def npz(labels: np.ndarray[Any, Any]) -> bytes:
    return pack_labels(PatchLabels(labels))


def plain_npz(labels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [as_they_are, flipped, in_micrometre, npz, plain_npz])
@pytest.mark.parametrize("as_form", [False, True])
def test_labels_of_any_kind_arrive_voxel_for_voxel(
    client: TestClient, filled: Campaign, write: Callable[[Any], bytes], as_form: bool
) -> None:
    lease = client.post("/api/v1/tickets/next").json()
    body = {"files": {"labels": write(drawn())}} if as_form else {"content": write(drawn())}
    url = f"/api/v1/leases/{lease['lease_id']}/submit"
    done = client.post(url, params={"tool": "test", "override": True}, **body)
    assert done.status_code == 200, done.text
    assert np.array_equal(filled.storage.read_array(done.json()["labels"]), drawn())


def test_parts_of_a_patch_lie_where_the_patch_lies(client: TestClient) -> None:
    lease = client.post("/api/v1/tickets/next").json()
    answer = client.get(f"/api/v1/leases/{lease['lease_id']}/image.nii.gz")
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    patch = client.get(f"/api/v1/leases/{lease['lease_id']}/start.nii.gz", params={"area": "patch"})
    start = nibabel.Nifti1Image.from_bytes(gzip.decompress(patch.content))
    first = np.linalg.solve(image.affine, start.affine @ [0, 0, 0, 1])[:3].round(4)
    x, y, z = first.astype(int)
    assert np.asarray(image.dataobj)[x, y, z] == IMAGE[BOX.offset_zyx]
    assert start.shape == BOX.shape_zyx[::-1]
    missing = client.get(f"/api/v1/leases/{lease['lease_id']}/prediction.nii.gz")
    assert (missing.status_code, missing.json()["error"]) == (404, "TicketNotFoundError")


def test_an_image_address_needs_no_token_and_ends_with_its_lease(filled: Campaign) -> None:
    token = access.add_token(filled.storage, "anna", "annotator")
    client = TestClient(create_app(filled, is_open=False), base_url="http://lab.example")
    lease = client.post("/api/v1/tickets/next", headers={"Authorization": f"Bearer {token}"}).json()
    url = f"/api/v1/images/{lease['image_id']}.nii.gz"
    assert client.get(url).status_code == 200
    guessed = lease["image_id"][:-1] + ("0" if lease["image_id"][-1] != "0" else "1")
    assert client.get(f"/api/v1/images/{guessed}.nii.gz").status_code == 401
    client.post(f"/api/v1/leases/{lease['lease_id']}/release", headers={"Authorization": f"Bearer {token}"})
    assert client.get(url).status_code == 410


def test_what_was_looked_at_is_not_kept_for_an_ended_lease(client: TestClient) -> None:
    lease = client.post("/api/v1/tickets/next").json()["lease_id"]
    parts = [f"/api/v1/leases/{lease}/{part}" for part in ("view.npz", "image.nii.gz", "start.nii.gz")]
    assert [client.get(part).status_code for part in parts] == [200] * 3
    client.post(f"/api/v1/leases/{lease}/release")
    answers = [client.get(part) for part in parts]
    assert [(a.status_code, a.json()["error"]) for a in answers] == [(410, "LeaseExpiredError")] * 3


def test_roles_and_tokens(filled: Campaign) -> None:
    tokens = {role: access.add_token(filled.storage, role[:4], role) for role in ROLES}
    assert all(
        tokens["admin"].split("_", 2)[2] not in token.model_dump_json() for token in access.list_tokens(filled.storage)
    )
    client = TestClient(create_app(filled, is_open=False), base_url="http://lab.example")

    def status(role: str, url: str = "/api/v1/review") -> int:
        return client.get(url, headers={"Authorization": f"Bearer {tokens[role]}"}).status_code

    assert [status(role) for role in ROLES] == [403, 200, 200]
    assert status("annotator", "/api/v1/info") == 200
    assert client.get("/api/v1/info").status_code == 401
    assert client.get("/api/v1/info", params={"annotator": "anna"}).status_code == 401
    access.revoke_token(filled.storage, access.list_tokens(filled.storage)[0].token_id)
    assert 401 in [status(role, "/api/v1/info") for role in ROLES]
    for wrong in (tokens["reviewer"][:-1], "rescueseg_../../x_y", "", "ü", tokens["admin"].split("_")[1]):
        with pytest.raises(UnknownTokenError):
            access.holder(filled.storage, wrong)
    with pytest.raises(AccessError):
        access.add_token(filled.storage, "a\nb", "annotator")


def test_somebody_elses_lease_is_theirs(client: TestClient) -> None:
    lease = client.post("/api/v1/tickets/next", params={"annotator": "anna"}).json()
    for part in ("view.npz", "image.nii.gz"):
        other = client.get(f"/api/v1/leases/{lease['lease_id']}/{part}", params={"annotator": "bob"})
        assert (other.status_code, other.json()["error"]) == (403, "NotYourLeaseError")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8642"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "["},
        {"Host": "127.1"},
        {"Host": "127.1:8642"},
        {"Host": "localhost.evil"},
        {"Host": "127.0.0.1:80@evil"},
        {"Host": "0.0.0.0:8642"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8643"},
        {"Origin": "http://localhost:8642"},
        {"Origin": "https://127.0.0.1"},
        {"Origin": "https://localhost:8642"},
        {"X-Forwarded-For": "10.0.0.1"},
    ],
)
def test_pages_and_proxies_elsewhere_get_nothing_without_a_token(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/api/v1/info", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (403, "AccessError")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:8643", "https://localhost:8642"])
def test_a_page_elsewhere_changes_nothing_by_a_request_that_needs_no_leave(
    client: TestClient, filled: Campaign, kind: str, origin: str
) -> None:
    """Browsers send such a POST without asking first."""
    before = client.get("/api/v1/info").json()
    headers = {"Origin": origin, "Content-Type": kind}
    for path in ("/api/v1/tickets/next", f"/api/v1/leases/{'0' * 32}/submit", "/monai/activelearning/queue"):
        answer = client.post(path, params={"annotator": "eve"}, headers=headers, content=b"{}")
        assert (answer.status_code, answer.json()["error"]) == (403, "AccessError"), path
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Content-Type"}
    asked = client.options("/api/v1/tickets/next", headers=asks)
    assert asked.status_code in (400, 403)
    assert "access-control-allow-origin" not in asked.headers
    assert client.get("/api/v1/info").json() == before


def test_a_page_of_this_server_or_of_an_allowed_one_may_ask(filled: Campaign) -> None:
    url = "https://viewer.example"
    config = filled.config.model_copy(
        update={"server": filled.config.server.model_copy(update={"allowed_origins": (url,)})}
    )
    client = TestClient(create_app(Campaign(filled.storage, config), is_open=True), base_url=HERE)
    assert client.get("/api/v1/info", headers={"Origin": HERE}).status_code == 200
    answer = client.get("/api/v1/info", headers={"Origin": url})
    assert answer.headers["access-control-allow-origin"] == url
    guarded = TestClient(create_app(Campaign(filled.storage, config), is_open=False), base_url="http://lab.example")
    refused = guarded.get("/api/v1/info", headers={"Origin": url})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, url)
    asks = {"Origin": url, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"}
    assert guarded.options("/api/v1/tickets/next", headers=asks).status_code == 200


def test_no_body_is_parsed_before_a_known_token_is_shown(filled: Campaign) -> None:
    client = TestClient(create_app(filled, is_open=False), base_url="http://lab.example")
    asked = [
        ("POST", "/api/v1/tickets/next"), ("POST", f"/api/v1/leases/{'0' * 32}/submit"), ("GET", "/nowhere"),
        ("POST", "/monai/activelearning/queue"), ("PUT", "/monai/datastore/label"), ("PUT", "/monai/session/"),
        ("GET", "/monai/datastore/"),
    ]  # fmt: skip
    for shown in ({}, *({"Authorization": text} for text in ("Bearer rescueseg_00000000_x", "Bearer ", "Basic eDp5"))):
        for method, path in asked:
            headers = {"Content-Type": "application/json", **shown}
            answer = client.request(method, path, content=b"{" if method != "GET" else None, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (401, "UnknownTokenError"), (method, path, shown)
            assert answer.headers["www-authenticate"] == "Bearer"


def test_what_needs_no_token_is_open(filled: Campaign) -> None:
    token = access.add_token(filled.storage, "anna", "annotator")
    client = TestClient(create_app(filled, is_open=False), base_url="http://lab.example")
    sample = client.post("/monai/activelearning/queue", headers={"Authorization": f"Bearer {token}"}).json()["id"]
    for path in (
        "/", "/page/js/main.js", "/api/v1/health", "/api/v1/openapi.json", f"/api/v1/images/{sample}.nii.gz",
        "/monai/auth/", f"/monai/datastore/image?image={sample}", f"/monai/datastore/image/info?image={sample}",
        f"/monai/datastore/label?label={sample}&tag=original",
    ):  # fmt: skip
        assert client.get(path).status_code == 200, path
    login = {"username": "anna", "password": token}
    assert client.post("/monai/auth/token", data=login).json()["access_token"] == token
    assert client.put(f"/monai/datastore/label?image={sample}", files={"label": b""}).status_code == 401


def test_only_uploads_may_be_large(client: TestClient) -> None:
    lease = client.post("/api/v1/tickets/next").json()["lease_id"]
    large = b'{"reason": "' + b"x" * 2**16 + b'"}'
    answer = client.post(f"/api/v1/leases/{lease}/skip", content=large, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (413, "LabelError")
    pieces = (large[at : at + 4096] for at in range(0, len(large), 4096))  # their length is not announced
    assert client.post("/api/v1/tickets/next", content=pieces).status_code in (400, 413)
    assert client.post("/monai/auth/token", data={"username": "x" * 2**16, "password": ""}).status_code == 413
    url = f"/api/v1/leases/{lease}/submit?tool=test"
    assert client.post(url, content=bytes(2**17)).status_code == 422, "labels that cannot be read"
    assert client.post(url, content=bytes(2**21)).status_code == 413
    for length in ("x", "-1", "9" * 5000):
        assert client.post("/api/v1/tickets/next", headers={"Content-Length": length}).status_code == 413
    assert client.get("/api/v1/info", headers={"Content-Length": "2000000"}).status_code == 200
    assert [held["lease_id"] for held in client.get("/api/v1/leases").json()] == [lease]


def test_a_damaged_database_is_said_so(client: TestClient, filled: Campaign) -> None:
    lease = client.post("/api/v1/tickets/next").json()["lease_id"]
    client.app.state.service.store.close()  # type: ignore[attr-defined]
    database = make_url(filled.database_url).database
    assert database is not None
    for suffix in ("-wal", "-shm"):
        Path(database + suffix).unlink(missing_ok=True)
    Path(database).write_bytes(b"this is not a database" * 100)
    answer = client.post(f"/api/v1/leases/{lease}/submit?tool=test", content=npz(drawn()))
    assert (answer.status_code, answer.json()["error"]) == (503, "StorageError")


def test_every_route_is_documented(client: TestClient) -> None:
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    own = {path: methods for path, methods in paths.items() if path.startswith("/api/")}
    assert len(own) > 15
    for path, methods in own.items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            assert operation["description"], (path, method)
            if path != "/api/v1/health":
                assert {"401", "403", "422"} <= set(operation["responses"]), (path, method)
