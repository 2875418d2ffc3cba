"""A small campaign with everything in it: volumes, truth, labels, a finished generation, tickets that wait with a first mask."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import tifffile

from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign, layout
from rescueseg.config import check_config
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.holdout_scores import check_evaluation
from rescueseg.evaluation.stored_scores import store_scores
from rescueseg.inference import engine
from rescueseg.queue.store import open_queue
from rescueseg.reports import generation_table
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages import evaluate, infer, snapshot, tickets, train
from rescueseg.stages.stage import commit
from rescueseg.upkeep.backup import files_of
from rescueseg.volumes.comparison import ensure_compared
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

SETTINGS: dict[str, Any] = {
    "name": "whole",
    "classes": ["organelle"],
    "training": {
        "trainer": "monai_unet", "iterations": 4, "window_zyx": [8, 16, 16], "batch_size": 1, "threads": 1,
        "unet": {"channels": [8, 16, 32]},
    },
    "inference": {"mc_samples": 1, "tta_symmetries": 1, "block_voxels": 20_000, "window_zyx": [8, 16, 16]},
    "holdout": {"validation_boxes": 2, "test_boxes": 2},
    "sampling": {"starting_patches": 3, "query_patches": 2},
    "cluster": {"workers": 1},
}  # fmt: skip


def make_whole_campaign(folder: Path) -> Campaign:
    """Make the campaign, its first generation done and judged, with the code that a flow calls."""
    campaign = make_annotated_campaign(folder)
    run_generation(campaign)
    return campaign


def make_annotated_campaign(folder: Path, **settings: Any) -> Campaign:
    """Make the campaign, its starting patches accepted."""
    folder.mkdir(exist_ok=True)
    campaign = Campaign.create(str(folder / "campaign"), check_config(SETTINGS | settings))
    for name, seed in (("a", 1), ("b", 2)):
        image, truth, _ = make_phantom((16, 64, 64), (0.2, 0.1, 0.1), seed)
        tifffile.imwrite(folder / f"{name}.tif", image)
        tifffile.imwrite(folder / f"{name}_truth.tif", truth)
        import_volume(
            campaign,
            VolumeImport(
                str(folder / f"{name}.tif"),
                volume_id=name,
                spacing=(0.2, 0.1, 0.1),
                truth=str(folder / f"{name}_truth.tif"),
            ),
        )
    ensure_compared(campaign.volumes)
    with closing(open_queue(campaign)) as store:
        tickets.prepare(campaign, store)
        SimulatedAnnotator(campaign, store).drain()
    return campaign


def run_generation(campaign: Campaign) -> None:
    """Run the first generation, or go on with it; what is done is not done again."""
    with closing(open_queue(campaign)) as store:
        store.ledger.begin_generation(0, len(store.views.accepted("pool")))
        snapshot.make_snapshot(campaign, 0, store)
        train.train(campaign, 0, lambda step, metrics: None)
        infer.infer(campaign, 0, None, lambda what, done, total: None)
        evaluate.evaluate(campaign, 0)
        tickets.query(campaign, 0, store)
        tickets.enqueue(campaign, 0, store)
        folder = campaign.generation(0)
        commit(folder, generation_table.REPORT, generation_table.row(folder), 1.0)  # the stage itself needs MLflow
        store.ledger.finish_generation(0)


# what it says ---------------------------------------------------------------------------------------------------------


def contents(campaign: Campaign) -> dict[str, bytes]:
    """Return every file that holds data, by path, and the rows of the database."""
    rows = {}
    engine_ = sa.create_engine(campaign.database_url)
    with engine_.connect() as connection:
        tables = sa.MetaData()
        tables.reflect(connection)
        for table in tables.sorted_tables:
            rows[f"table {table.name}"] = repr(sorted(map(str, connection.execute(sa.select(table))))).encode()
    engine_.dispose()
    return rows | {f.path: campaign.storage.read_bytes(f.path) for f in files_of(campaign) if is_data(f.path)}


def is_data(path: str) -> bool:
    """Tell whether figures or labels can depend on a file: not on settings, which are a person's, and not on pages."""
    free = (layout.CAMPAIGN_FILE, layout.IMAGE_KEY, layout.REPORT, layout.SERVICES, layout.TRIAGE_PICTURE)
    return not any(place.matches(path) for place in free) and not path.endswith("progress.json")


def forget_caches() -> None:
    """Let nothing that was read before a fault be remembered."""
    engine._predictor.cache_clear()
    engine._context.cache_clear()


def figures_of_evaluation(url: str) -> Any:
    """Return what `rescueseg evaluate` would write."""
    campaign = Campaign.open(url)
    return [r.to_json() for r in store_scores(campaign, check_evaluation(campaign, 0), choose_scored_objects)]


def figures_of_query(url: str) -> Any:
    """Return what the query stage of the generation would ask for."""
    campaign = Campaign.open(url)
    campaign.storage.remove("generations/0000/query.json")
    with closing(open_queue(campaign)) as store:
        return tickets.query(campaign, 0, store).to_json()


def figures_of_training(url: str) -> Any:
    """Return the digest of a model that the next generation would train."""
    campaign = Campaign.open(url)
    for name in ("training.json", "snapshot.json", "training", "model"):
        campaign.storage.remove(f"generations/0000/{name}")
    with closing(open_queue(campaign)) as store:
        made = snapshot.make_snapshot(campaign, 0, store)
    return made.digest, train.train(campaign, 0, lambda step, metrics: None).model.digest


def figures_of_a_patch(url: str) -> Any:
    """Return what `queue next` and the page show of the next patch, and of every version in the queue."""
    campaign = Campaign.open(url)
    with closing(open_queue(campaign)) as store:
        client = LocalClient(campaign, store, "anna")
        lease = client.next()
        assert lease is not None
        view = client.view(lease.lease_id)
        arrays = [view.image, view.start.classes, view.prediction, view.uncertainty]
        shown = [None if a is None else np.asarray(a).tobytes() for a in arrays]
        history = [(v.version, v.voxels_corrected) for v in store.views.annotations(lease.ticket_id)]
        return shown, lease.ticket_id, str(view.ticket.box), view.spacing_um_zyx, history


FIGURES: dict[str, Callable[[str], Any]] = {
    "evaluation": figures_of_evaluation,
    "query": figures_of_query,
    "training": figures_of_training,
    "patch": figures_of_a_patch,
}


# faults ---------------------------------------------------------------------------------------------------------------

FAULTS = (
    "flipped",
    "run of bytes",
    "cut",
    "emptied",
    "deleted",
    "another file of its kind",
    "newer format",
    "no checksum",
)


def plant(campaign: Campaign, rng: random.Random) -> str:
    """Do harm to one file of a campaign at random, and say what was done."""
    paths = [f.path for f in files_of(campaign) if is_data(f.path)] + [layout.DATABASE.path()] * 8
    fault, path = rng.choice(FAULTS), rng.choice(paths)
    if path.endswith(".db") or (fault in FAULTS[6:] and not path.endswith(".json")):
        fault = rng.choice(("cut", "emptied", "deleted")) if path.endswith(".db") else rng.choice(FAULTS[:5])
    place = Path(campaign.storage.path(path))
    if path.endswith(".db"):
        for name in (f"{place}-wal", f"{place}-shm"):
            Path(name).unlink(missing_ok=True)
    place.chmod(0o600)
    content = bytearray(place.read_bytes())
    if fault == "deleted":
        place.unlink()
        return f"{path}: {fault}"
    if fault == "flipped" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif fault == "run of bytes" and content:
        start = rng.randrange(len(content))
        content[start : start + 40] = rng.randbytes(len(content[start : start + 40]))
    elif fault == "cut":
        del content[rng.randrange(max(1, len(content))) :]
    elif fault == "emptied":
        content.clear()
    elif fault == "another file of its kind":
        alike = [p for p in paths if Path(p).suffix == place.suffix and p != path and not p.endswith(".db")]
        if layout.PREFILL.matches(path):  # a first mask has no digest: the person who gets it looks at it
            alike = []
        content = bytearray(Path(campaign.storage.path(rng.choice(alike or [path]))).read_bytes())
    elif fault == "newer format":
        content = bytearray(content.replace(b'"format": 2', b'"format": 99').replace(b'"format": 1', b'"format": 99'))
    elif fault == "no checksum":  # what an older version wrote: no damage
        data = json.loads(bytes(content))
        record = data["record"] if isinstance(data, dict) and "record" in data else data
        content = bytearray(json.dumps(record).encode())
    place.write_bytes(content)
    return f"{path}: {fault}"


def copy_of(campaign: Campaign, target: Path) -> Campaign:
    """Return a copy of a campaign that nothing has open."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(campaign.storage.root, target)
    return Campaign.open(str(target))
