"""Makes the campaigns that `tests/integration/test_older_campaign.py` goes on with.

The two files in `tests/data/older_campaign` were made once, by the code of commit 5258b1b, and are never made anew:
their worth is that this code made them. From a checkout of that commit, with its virtual environment, with this file
and the test as they were when they came into the repository::

    cd CHECKOUT-OF-5258b1b
    .venv/bin/python REPOSITORY/tests/data/make_older_campaign.py

Two campaigns come out. `phantom` has classes, a triage that chose nnU-Net, recorded domains, a finished generation, a
training outside the loop (a MONAI U-Net) that was evaluated, and a second generation with half of its blocks inferred.
`objects` has numbered objects, blind pairs, first masks by a threshold, a classifier and the model, a finished
generation of a MONAI U-Net, a killed training outside the loop, and patches leased, submitted, sent back and skipped.
Each is in an MLflow database of its own, with the models and without the pictures. The same machine makes the same
voxels, labels, models, digests and ids each time; the clock times differ.
"""

from __future__ import annotations

import importlib.util
import json
import lzma
import random
import shutil
import sqlite3
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import tifffile
from rescueseg.annotation.labels import submit_labels
from rescueseg.annotation.local_desk import LocalDesk
from rescueseg.annotation.patch_labels import PatchLabels
from rescueseg.annotation.records import Lease
from rescueseg.annotation.server.access import add_token
from rescueseg.annotation.store import QueueStore, open_queue
from rescueseg.evaluation.kept import evaluate_and_keep
from rescueseg.evaluation.outside import evaluate_training
from rescueseg.intake import start_campaign
from rescueseg.phantom import make_phantom
from rescueseg.publish import publish
from rescueseg.triage.run import triage
from rescueseg.weak_labels.run import weak_label
from scipy import ndimage

from rescueseg import generation as stages
from rescueseg import tickets, trainings
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import Box, Patch
from rescueseg.simulation.annotator import AnnotatorOptions, SimulatedAnnotator
from rescueseg.tracking import Tracker
from rescueseg.volumes import consistency
from rescueseg.weak_labels import classifier

TESTS = Path(__file__).resolve().parents[1]
STORED = TESTS / "data" / "older_campaign"
SPACING = (0.25, 0.1, 0.1)
CENTURY = 60 * 24 * 365 * 100
"""Minutes: leases that still run when the test is."""
TRAINING = {
    "iterations": 80,
    "checkpoint_every": 8,
    "batch_size": 2,
    "window_zyx": [8, 32, 32],
    "channels": [4, 6, 6],
    "threads": 1,
    "warm_start": True,
}
SHARED: dict[str, Any] = {
    "seed": 11,
    "training": TRAINING,
    "cluster": {"workers": 1},
    "trigger": {"accepted_patches": 3},
}
PHANTOM = SHARED | {
    "name": "phantom",
    "classes": ["organelle"],
    "holdout": {"fraction": 0.3, "box_zyx": [4, 8, 8], "guard_zyx": [0, 1, 1]},
    "sampling": {"patch_zyx": [4, 12, 12], "starting_patches": 8, "query_patches": 3},
    "inference": {"mc_samples": 2, "tta_symmetries": 2, "window_zyx": [8, 32, 48], "block_voxels": 13_000},
}
OBJECTS = SHARED | {
    "name": "objects",
    "classes": ["cell"],
    "holdout": {
        "fraction": 0.4,
        "validation_boxes": 3,
        "test_boxes": 3,
        "box_zyx": [4, 12, 12],
        "guard_zyx": [0, 2, 2],
    },
    "sampling": {"patch_zyx": [4, 12, 12], "starting_patches": 7, "query_patches": 6},
    "annotation": {"labels": "instance", "review": True, "lease_minutes": CENTURY, "double_fraction": 0.25},
    "inference": {"mc_samples": 2, "tta_symmetries": 2},
}
ROUGH = Patch("phantom", Box((0, 6, 82), (4, 12, 12)))
"""What the triage looks at the labels of: more would leave no place to ask for."""
UNUSED = ("reports", "**/figures", "**/report.html", "**/triage.png", "**/*.log", "**/.lock")
"""What only people look at, and what nobody does."""


class Interrupted(Exception):  # noqa: N818
    """What stands for a kill."""


def main() -> None:
    """Make both campaigns, move them, write down what they say, and pack them."""
    test = load_test()
    with_known_ids()
    with tempfile.TemporaryDirectory() as folder:
        made, moved = Path(folder, "made"), Path(folder, "moved")
        make_phantom_campaign(made / "phantom")
        make_objects_campaign(made / "objects")
        mlflow.set_tracking_uri(None)
        for name in test.NAMES:
            tidy(made / name)
            for known, neutral in (
                (made, test.PLACE),
                (Path.cwd(), "/checkout"),
                (f"{tempfile.gettempdir()}/", "/scratch/"),
            ):
                test.relocate(made / name, str(known), neutral)
                rewrite(made / name, str(known), neutral)
            compact(made / name)
        STORED.mkdir(parents=True, exist_ok=True)
        pack(made, test.NAMES)
        expected = {name: test.described(test.unpack(moved, name)) for name in test.NAMES}
        expected["predicted"] = predictions(test, Campaign.open(str(moved / "phantom")))
    (STORED / "expected.json").write_text(json.dumps(expected, sort_keys=True, separators=(",", ":")) + "\n")


def predictions(test: ModuleType, campaign: Campaign) -> dict[str, list[float]]:
    """Return what the models of both generations predict, once the second one is finished."""
    mlflow.set_tracking_uri(campaign.tracking_uri)
    found = test.predicted(campaign, "champion")
    with closing(open_queue(campaign)) as store:
        test.go_on(campaign, store)
    return found | test.predicted(campaign, "candidate")


def load_test() -> ModuleType:
    """Return the module of the test, which says what is written down."""
    specification = importlib.util.spec_from_file_location("older", TESTS / "integration" / "test_older_campaign.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def with_known_ids() -> None:
    """Let every run draw the same ids of leases, annotations and runs."""
    numbers = random.Random(5258)
    uuid.uuid4 = lambda: uuid.UUID(int=numbers.getrandbits(128), version=4)


# the campaigns --------------------------------------------------------------------------------------------------------


def make_phantom_campaign(folder: Path) -> None:
    """Classes; generation 0 finished, generation 1 with half of its blocks inferred."""
    image, truth, _ = make_phantom((8, 24, 200), SPACING, seed=5)
    campaign = start(folder, PHANTOM, image, truth, "semantic")
    consistency.apply(campaign, consistency.check(campaign))
    with closing(open_queue(campaign)) as store:
        campaign.save_rough_patches([ROUGH])
        triage(campaign, store, mask="truth")
        tickets.prepare(campaign, store)
        annotate_all(campaign, store)
        run_generation(campaign, store)
        evaluate_and_keep(campaign, 0)
        planned = trainings.plan(campaign, store, "monai_unet", 0)
        trainings.run_tracked(campaign, planned)
        evaluate_training(campaign, planned.name)
        annotate_all(campaign, store)
        try:
            run_generation(campaign, store, blocks=2)
        except Interrupted:
            return
    raise SystemExit("generation 1 was not interrupted")


def make_objects_campaign(folder: Path) -> None:
    """Numbered objects; generation 0 finished, then patches in every state."""
    image, truth, _ = make_phantom((8, 56, 56), SPACING, seed=3)
    numbered = ndimage.label(truth)[0].astype(np.uint32)
    campaign = start(folder, OBJECTS, image, numbered, "instance")
    for name, role in (("anna", "annotator"), ("rita", "reviewer")):
        add_token(campaign, name, role)
    classifier.TREES = 5
    with closing(open_queue(campaign)) as store:
        tickets.prepare(campaign, store)
        weak_label(campaign, store, "threshold")
        for name in ("anna", "ben"):
            annotate(campaign, store, name, 4)
        accept_all(campaign, store)
        weak_label(campaign, store, "auto")
        weak_label(campaign, store, "classifier")
        run_generation(campaign, store)
        leave_in_work(campaign, store)
        kill_training(campaign, trainings.plan(campaign, store, "monai_unet_topology", 0))


def start(folder: Path, settings: Mapping[str, Any], image: np.ndarray, truth: np.ndarray, kind: Any) -> Campaign:
    """Start a campaign with one volume of its name."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [str(Path(scratch, name)) for name in ("image.tif", "truth.tif")]
        for file, array in zip(files, (image, truth), strict=True):
            tifffile.imwrite(file, array, metadata={"axes": "ZYX"})
        return start_campaign(
            str(folder),
            check_config(dict(settings)),
            files[:1],
            spacing=SPACING,
            truths=files[1:],
            truth_type=kind,
            names=[str(settings["name"])],
        )


# a generation ---------------------------------------------------------------------------------------------------------


def run_generation(campaign: Campaign, store: QueueStore, blocks: int | None = None) -> None:
    """Run the next generation as the flow does, up to the interruption after some blocks."""
    mlflow.set_tracking_uri(campaign.tracking_uri)  # without a server the registry looks there for the model
    tracker = Tracker(campaign)
    with stages.campaign_lock(campaign, store):
        g = stages.begin(campaign, store)
        work: dict[str, Callable[[], Any]] = {
            "snapshot": lambda: stages.make_snapshot(campaign, g, store),
            "training": lambda: stages.train(campaign, g, lambda *_: None),
            "inference": lambda: stages.infer(campaign, g, None, interruption(blocks)),
            "evaluation": lambda: stages.evaluate(campaign, g),
            "query": lambda: tickets.query(campaign, g, store),
            "tickets": lambda: tickets.enqueue(campaign, g, store),
        }
        for stage, function in work.items():
            with tracker.stage(g, stage):
                function()
        publish(campaign, g)
        store.finish_generation(g)


def interruption(blocks: int | None) -> Callable[[str, int, int], None]:
    """Return a progress callback that breaks the inference off after some blocks."""

    def progress(_: str, done: int, total: int) -> None:
        assert blocks is None or total > blocks
        if done == blocks:
            raise Interrupted

    return progress


def kill_training(campaign: Campaign, planned: trainings.OutsideTraining) -> None:
    """Break a training outside the loop off behind its first checkpoint."""

    def progress(step: int, _: Mapping[str, float]) -> None:
        if step == campaign.config.training.checkpoint_every + 3:
            raise Interrupted

    try:
        trainings.run(campaign, planned, progress)
    except Interrupted:
        return
    raise SystemExit("the training was not interrupted")


# annotating -----------------------------------------------------------------------------------------------------------


def annotate_all(campaign: Campaign, store: QueueStore) -> None:
    """Annotate whatever is queued, a little wrong."""
    SimulatedAnnotator(campaign, store, options=AnnotatorOptions(jitter_voxels=0.7)).drain()


def annotate(campaign: Campaign, store: QueueStore, name: str, count: int) -> None:
    """Hand in some patches, with an object number that needs more than 16 bits."""
    annotator = SimulatedAnnotator(campaign, store, name, AnnotatorOptions(jitter_voxels=0.5))
    for _ in range(count):
        lease = LocalDesk(campaign, store, name).next()
        if lease is None:
            return
        labels = PatchLabels.of_components(annotator.draw(lease.ticket))
        assert labels.instances is not None
        labels.instances[labels.instances == 1] = 70_001
        submit_labels(campaign, store, lease, name, labels, "simulated", 20.0)


def accept_all(campaign: Campaign, store: QueueStore) -> None:
    """Accept whatever waits for a reviewer."""
    reviewer = LocalDesk(campaign, store, "rita")
    for ticket in reviewer.to_review():
        reviewer.accept(ticket.ticket_id)


def leave_in_work(campaign: Campaign, store: QueueStore) -> None:
    """Leave one patch sent back, one skipped, one submitted and one leased."""
    back, skipped, submitted, leased = [t for t in store.tickets("queued", "pool", 1) if t.annotators == 1][:4]
    hand_in(campaign, store, back.ticket_id)
    LocalDesk(campaign, store, "rita").reject(back.ticket_id, "the borders are wrong")
    desk = LocalDesk(campaign, store, "anna")
    desk.skip(take(campaign, store, "anna", skipped.ticket_id).lease_id, "nothing can be seen")
    hand_in(campaign, store, submitted.ticket_id)
    store.heartbeat(take(campaign, store, "ben", leased.ticket_id).lease_id, "ben")


def take(campaign: Campaign, store: QueueStore, name: str, ticket_id: str) -> Lease:
    """Lease a patch to somebody."""
    lease = LocalDesk(campaign, store, name).next(ticket_id=ticket_id, another=True)
    assert lease is not None
    return lease


def hand_in(campaign: Campaign, store: QueueStore, ticket_id: str) -> None:
    """Hand in a patch as anna."""
    lease = take(campaign, store, "anna", ticket_id)
    labels = PatchLabels.of_components(SimulatedAnnotator(campaign, store).draw(lease.ticket))
    submit_labels(campaign, store, lease, "anna", labels, "simulated", 20.0)


# files ----------------------------------------------------------------------------------------------------------------


def tidy(campaign: Path) -> None:
    """Remove what is not needed."""
    for pattern in UNUSED:
        for path in [*campaign.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def rewrite(campaign: Path, before: str, after: str) -> None:
    """Replace absolute paths in what nobody reads again: MLflow's notes and the job of nnU-Net's process."""
    for path in (*campaign.rglob("MLmodel"), *campaign.rglob("job.json")):
        path.write_text(path.read_text().replace(before, after))


def compact(campaign: Path) -> None:
    """Leave each database as one file without gaps."""
    for name in ("campaign.db", "mlflow.db"):
        with closing(sqlite3.connect(campaign / name)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("VACUUM")


def pack(folder: Path, names: tuple[str, ...]) -> None:
    """Pack the campaigns, all files of one time and owner."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        return member

    with (
        lzma.open(STORED / "campaigns.tar.xz", "wb", preset=9 | lzma.PRESET_EXTREME) as file,
        tarfile.open(fileobj=file, mode="w") as archive,
    ):
        for name in names:
            archive.add(folder / name, name, filter=plain)


if __name__ == "__main__":
    main()
