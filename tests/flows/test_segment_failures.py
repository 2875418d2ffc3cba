"""What the flow of a delivery says when volumes, or what closes it, cannot be done."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.logging import disable_run_logger

from flows import segment as flow
from rescueseg.delivery.request import SegmentRequest
from rescueseg.errors import InferenceError, StorageError
from rescueseg.queue.store import make_queue
from rescueseg.stages.segment import Targets
from tests.evaluated_campaign import make_campaign


def fail(name: str) -> None:
    raise StorageError(f"{name} is damaged", where=name, todo="Restore it from a backup")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, volumes: tuple[str, ...], failures: dict[str, str]) -> None:
    """Run the flow without its tasks: of the volumes those called "bad…" fail, and so does what closes it."""
    campaign = make_campaign(folder / "campaign")
    make_queue(campaign)
    request = SegmentRequest(out=str(folder / "out"))

    def segment_volume(_url: str, _request: SegmentRequest, volume_id: str, *_: object) -> None:
        if volume_id.startswith("bad"):
            fail(volume_id)

    targets = Targets(request=request, volumes=volumes, failures=failures)
    monkeypatch.setattr(flow, "prepare", lambda *_: targets)
    monkeypatch.setattr(flow, "segment_volume", segment_volume)
    monkeypatch.setattr(flow, "finish", lambda *_: fail("table"))
    monkeypatch.setattr(flow, "scheduler_of", lambda *_: nullcontext(SimpleNamespace(address="", tls_folder="")))
    with disable_run_logger():
        flow.segment.fn(campaign.url, request)


def test_all_that_failed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InferenceError) as caught:
        run(tmp_path, monkeypatch, ("good", "bad1", "bad2"), {"flat.tif": "it holds no image"})
    for name in ("flat.tif: it holds no image", "bad1: bad1 is damaged", "bad2: bad2 is damaged", "table is damaged"):
        assert name in caught.value.what


def test_what_closes_it_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="table is damaged"):
        run(tmp_path, monkeypatch, ("good",), {})
