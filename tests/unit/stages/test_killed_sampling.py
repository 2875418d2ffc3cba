"""A sampling that was killed at any of its writes, and run again, leaves what one that was never killed leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import SamplingError
from rescueseg.queue.records import Filters
from rescueseg.queue.store import open_queue
from rescueseg.queue.submission import Work
from rescueseg.queue.tickets import Tickets
from rescueseg.sampling import patches
from rescueseg.stages import tickets
from rescueseg.stages.hints import ask_example
from rescueseg.storage import Storage

SHAPE = (16, 96, 96)
MASK = np.asarray(np.random.default_rng(0).random(SHAPE) < 0.3) & (np.arange(96) < 48)
WRITES = {"example": 6, "scribbles": 3, "nothing": 3}
"""The example and its ticket, once more its ticket, the holdout, the starting patches, all tickets; else the last three."""


class Killed(BaseException):
    """Stands for the end of the process."""


class Sampling:
    """A campaign that is sampled, with an example, scribbles or nothing.

    Parameters
    ----------
    folder : Path
        For the campaign and its images.
    how : str
        Of `WRITES`.
    """

    def __init__(self, folder: Path, how: str) -> None:
        config = {"name": "test", "classes": ["organelle"]}
        self.campaign = Campaign.create(str(folder / "campaign"), check_config(config))
        image = 300 + 80 * MASK + np.random.default_rng(1).normal(0, 10, SHAPE)
        strokes = np.where(np.arange(16)[:, None, None] == 8, MASK, 255)
        for name, array in (("a", image.astype(np.float32)), ("strokes", strokes.astype(np.uint8))):
            tifffile.imwrite(folder / f"{name}.tif", array)
        volumes.import_volume(
            self.campaign, volumes.VolumeImport(str(folder / "a.tif"), volume_id="a", spacing=(0.1, 0.1, 0.1))
        )
        self.store = open_queue(self.campaign)
        self.how, self.scribbles = how, [str(folder / "strokes.tif")] if how == "scribbles" else []
        self.left, self.is_counting = -1, False

    def count(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Return a write that is counted, and that kills in place of the one that none is left for."""

        def instead(*args: Any, **given: Any) -> Any:
            if self.is_counting:
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return write(*args, **given)

        return instead

    def work(self, again: bool = False) -> None:
        """Do what a person does: show the structure, annotate it, sample; again what is missing."""
        if self.how == "example" and not self.campaign.example_patches():
            self.counted(lambda: ask_example(self.campaign, self.store, "8,48,20"))
        elif self.how == "example" and not self.store.views.accepted():
            for run in (lambda: tickets.preview_sampling(self.campaign, lambda: self.store), self.prepare):
                with pytest.raises(SamplingError, match=r"is not (queued|annotated) yet"):
                    run()
                assert self.campaign.holdout() is None
        if self.how == "example" and not self.store.views.accepted():
            lease = self.store.leases.claim("ann", 60, filters=Filters())
            assert lease is not None
            labels = MASK[lease.ticket.box.slices].astype(np.uint8)
            submit_labels(self.campaign, self.store, lease, "ann", labels, Work("test", 60.0))
        if again and self.scribbles and self.campaign.starting_patches() is not None:
            with pytest.raises(SamplingError, match="Leave --scribbles out"):
                self.prepare()
            self.scribbles = []
        self.counted(self.prepare)

    def counted(self, command: Callable[[], object]) -> None:
        self.is_counting = True
        try:
            command()
        finally:
            self.is_counting = False

    def prepare(self) -> object:
        return tickets.prepare(self.campaign, self.store, scribbles=self.scribbles)

    def result(self) -> tuple[object, ...]:
        """Return what it left."""
        asked = [t.model_dump(exclude={"created_at", "updated_at"}) for t in self.store.views.tickets()]
        planned = self.campaign.holdout(), self.campaign.starting_patches()
        return planned, self.campaign.example_patches(), asked


@pytest.fixture
def sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Sampling]:
    """Return a function that makes one whose writes count."""
    monkeypatch.setattr(patches, "_MOST_MEASURED", 24)

    def make(how: str) -> Sampling:
        made = Sampling(tmp_path, how)
        monkeypatch.setattr(Storage, "write_bytes", made.count(Storage.write_bytes))
        monkeypatch.setattr(Tickets, "add", made.count(Tickets.add))
        return made

    return make


_WHOLE: dict[str, tuple[object, ...]] = {}


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that returns what a sampling leaves that is not killed."""

    def of(how: str) -> tuple[object, ...]:
        if how not in _WHOLE:
            with monkeypatch.context() as patch:
                patch.setattr(patches, "_MOST_MEASURED", 24)
                made = Sampling(tmp_path_factory.mktemp("whole"), how)
                patch.setattr(Storage, "write_bytes", made.count(Storage.write_bytes))
                patch.setattr(Tickets, "add", made.count(Tickets.add))
                made.work()
            assert -1 - made.left == WRITES[how], "each is killed at below"
            _WHOLE[how] = made.result()
        return _WHOLE[how]

    return of


@pytest.mark.parametrize(("how", "number"), [(how, n) for how, writes in WRITES.items() for n in range(writes)])
def test_a_killed_sampling_and_its_rerun_give_what_one_run_gives(
    sampling: Callable[[str], Sampling], whole: Callable[[str], Any], how: str, number: int
) -> None:
    expected = whole(how)
    killed = sampling(how)
    killed.left = number
    with pytest.raises(Killed):
        killed.work()
    killed.left = -1
    if killed.campaign.holdout() is not None and killed.campaign.starting_patches() is None:
        planned = tickets.preview_sampling(killed.campaign, lambda: killed.store, scribbles=killed.scribbles)
        assert planned == expected[0]
    killed.work(again=True)
    assert killed.result() == expected


def test_a_rerun_without_the_scribbles_asks_for_them(sampling: Callable[[str], Sampling]) -> None:
    killed = sampling("scribbles")
    killed.left = 1
    with pytest.raises(Killed):
        killed.work()
    killed.left, killed.scribbles = -1, []
    with pytest.raises(SamplingError, match=r"drawn by scribbles.*Give the same once more"):
        killed.work()
    assert killed.campaign.starting_patches() is None
