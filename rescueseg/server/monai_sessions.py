"""Sessions for clients of MONAI Label: an image that somebody uploads, stored for a while and predicted by the champion.

Below the campaign's services folder: ``monai-sessions/<id>/image.nii`` and ``session.json``, removed after their expiry.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import BoundedSemaphore
from typing import IO, Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile

from rescueseg.annotation.local_client import LocalClient
from rescueseg.errors import LabelError, QueueError, TicketNotFoundError, storage_errors
from rescueseg.server.monai_users import MonaiUsers
from rescueseg.storage import write_atomically

EXPIRY_SECONDS = 3600
MOST_SECONDS = 24 * 3600
PREDICT_SECONDS = 900
MOST_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20
MOST_SESSIONS = 4
"""Of one person at a time."""
_ONE_AT_A_TIME = BoundedSemaphore(1)
_ID = re.compile(r"[0-9a-f]{32}")


def session_routes(router: APIRouter, users: MonaiUsers) -> None:
    """Add the routes below ``/session/``; `users` knows who sends a request."""

    @router.put("/session/", summary="Bring an image of one's own: NIfTI, gzipped")
    def create(
        request: Request,
        files: Annotated[list[UploadFile], File()],
        client_id: Annotated[str, Form()] = "",
        expiry: int = EXPIRY_SECONDS,
    ) -> dict[str, Any]:
        client = users.client(request, client_id)
        if len(files) != 1 or not str(files[0].filename).lower().endswith(".nii.gz"):
            raise LabelError("a session takes one image as .nii.gz", where="files", todo="Save it so and send it again")
        remove_old_sessions(client.campaign.services_folder)
        _check_count(client)
        session = uuid.uuid4().hex
        folder = _root(client.campaign.services_folder) / session
        now = int(time.time())
        about = {
            "name": session,
            "path": "",
            "image": "image.nii",
            "meta": {"annotator": client.annotator},
            "create_ts": now,
            "last_access_ts": now,
            "expiry": min(max(expiry, 60), MOST_SECONDS),
        }
        with storage_errors(str(folder)):
            folder.mkdir(parents=True)
            try:
                _inflate(files[0].file, folder / "image.nii")
            except LabelError:
                shutil.rmtree(folder)
                raise
            write_atomically(folder / "session.json", json.dumps(about).encode())
        return {"session_id": session, "session_info": about}

    @router.get("/session/{session}", summary="What is known of a session")
    def read(request: Request, session: str, update_ts: bool = False) -> dict[str, Any]:  # noqa: ARG001
        client = users.client(request)
        return _read_info(_folder(client, session))

    @router.delete("/session/{session}", summary="End a session")
    def end(request: Request, session: str) -> dict[str, str]:
        client = users.client(request)
        shutil.rmtree(_folder(client, session))
        return {"session_id": session}


def _root(services_folder: Path) -> Path:
    return services_folder / "monai-sessions"


def _check_count(client: LocalClient) -> None:
    """Refuse another session of a person who has `MOST_SESSIONS`."""
    own = 0
    for folder in _root(client.campaign.services_folder).glob("*"):
        with suppress(OSError, ValueError, KeyError):
            own += _read_info(folder)["meta"]["annotator"] == client.annotator
    if own >= MOST_SESSIONS:
        raise QueueError(f"you have {own} sessions", where=client.annotator, todo="End one, or wait until one runs out")


def _inflate(file: IO[bytes], out: Path) -> None:
    """Unpack an image, of which no more than `MOST_BYTES` are ever inflated."""
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as inside, out.open("wb") as target:
            for _ in range(MOST_BYTES // CHUNK_BYTES):
                if not (chunk := inside.read(CHUNK_BYTES)):
                    return
                target.write(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise LabelError("the image is no gzip, or damaged", where="files", todo="Save it again as .nii.gz") from error
    raise LabelError(f"the image is larger than {MOST_BYTES >> 20} MiB", where="files", todo="Bring a smaller part")


def _read_info(folder: Path) -> dict[str, Any]:
    info = json.loads((folder / "session.json").read_text())
    assert isinstance(info, dict)
    return info


def _folder(client: LocalClient, session: str) -> Path:
    """Return the folder of a running session that this person may use."""
    remove_old_sessions(client.campaign.services_folder)
    folder = _root(client.campaign.services_folder) / session
    exists = _ID.fullmatch(session) and (folder / "session.json").is_file()
    if exists and (client.role == "admin" or _read_info(folder)["meta"]["annotator"] == client.annotator):
        return folder
    raise TicketNotFoundError("there is no such session", where=session[:64], todo="Bring the image again")


def remove_old_sessions(services_folder: Path) -> None:
    """Remove expired sessions, and incomplete ones that a killed server left."""
    for folder in _root(services_folder).glob("*") if _root(services_folder).is_dir() else ():
        is_over = False
        try:
            about = _read_info(folder)
            is_over = about["create_ts"] + about["expiry"] < time.time()
        except (OSError, ValueError, KeyError):
            with suppress(OSError):  # another request removes it at the same time
                is_over = folder.stat().st_mtime + EXPIRY_SECONDS < time.time()
        if is_over:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def prediction(client: LocalClient, session: str) -> Iterator[Path]:
    """Yield the champion's mask of a session's image as a NIfTI file, which is deleted afterwards.

    The model runs in a process of its own, so that the server stays small.

    Raises
    ------
    LabelError
        If the image cannot be predicted; the message says why.
    """
    folder = _folder(client, session)
    if not _ONE_AT_A_TIME.acquire(blocking=False):
        raise QueueError("another image is being predicted", where=session, todo="Try again when it is done")
    out = folder / f"{uuid.uuid4().hex}.nii.gz"
    command = [sys.executable, "-m", "rescueseg.server.predict_file", client.campaign.url]
    try:
        process = subprocess.run(
            [*command, str(folder / "image.nii"), str(out)], capture_output=True, text=True, timeout=PREDICT_SECONDS
        )
        if process.returncode or not out.exists():
            lines = process.stderr.strip().splitlines() or ["it ended without a word"]
            raise LabelError(
                f"the image cannot be predicted: {lines[-1]}", where=session, todo="Mend it, bring it again"
            )
        yield out
    except subprocess.TimeoutExpired as error:
        raise LabelError("the prediction took too long", where=session, todo="Bring a smaller image") from error
    finally:
        _ONE_AT_A_TIME.release()
        out.unlink(missing_ok=True)
