"""Patches as tasks of a CVAT server, through `cvat-sdk` (the extra ``cvat``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from urllib3.exceptions import HTTPError

from rescueseg.annotation.formats.base import Frame, PatchFiles
from rescueseg.annotation.formats.cvat import label_definitions
from rescueseg.errors import ConfigError, ServiceError

TOKEN_VARIABLE = "CVAT_ACCESS_TOKEN"
FORMAT = "CVAT for images 1.1"


def is_task(text: str) -> bool:
    """Tell whether a text is the address of a CVAT task.

    Examples
    --------
    >>> is_task("https://cvat.example/tasks/12"), is_task("masks/tasks_12.zip")
    (True, False)
    """
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and parts.path.rstrip("/").rpartition("/")[0].endswith("/tasks")


def upload(url: str, files: PatchFiles, frame: Frame) -> str:
    """Make a CVAT task of a patch, with its mask as annotations; return the address of the task.

    Parameters
    ----------
    url : str
        Of the server; the environment's `CVAT_ACCESS_TOKEN` gives access.
    files : PatchFiles
        What the format ``cvat`` wrote.
    frame : Frame
        The patch.

    Raises
    ------
    ConfigError
        If `cvat-sdk` or the token is missing.
    ServiceError
        If the server does not answer or refuses.
    """
    with _cvat_client(url) as client:
        spec = {"name": frame.ticket_id, "labels": label_definitions(frame)}
        task = client.tasks.create_from_data(
            spec,
            [str(files.image)],
            data_params={"image_quality": 100, "sorting_method": "lexicographical"},
            annotation_path=str(files.labels),
            annotation_format="CVAT 1.1",
        )
        return f"{url.rstrip('/')}/tasks/{task.id}"


def download(task: str, target: Path) -> Path:
    """Fetch a task's annotations as a zip; errors as in `upload`."""
    url, _, number = task.rstrip("/").rpartition("/tasks/")
    if not number.isdigit():
        raise ConfigError(f"'{task}' is no task of CVAT", todo="Such as https://cvat.example/tasks/12")
    with _cvat_client(url) as client:
        client.tasks.retrieve(int(number)).export_dataset(FORMAT, str(target), include_images=False)
    return target


@contextmanager
def _cvat_client(url: str) -> Iterator[Any]:
    try:
        import cvat_sdk
        from cvat_sdk.core.exceptions import CvatSdkException
        from cvat_sdk.exceptions import OpenApiException
    except ImportError as error:
        raise ConfigError("cvat-sdk is not installed", todo="Install rescueseg[cvat]") from error
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise ConfigError(
            f"{TOKEN_VARIABLE} is not set",
            where=url,
            todo="Make an access token in CVAT and put it into the environment",
        )
    try:
        with cvat_sdk.make_client(url, access_token=token) as client:
            yield client
    except (CvatSdkException, OpenApiException, HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ServiceError(
            f"CVAT: {reason}", where=url, todo="Check address, token and task, then try again"
        ) from error
