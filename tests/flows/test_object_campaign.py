"""A campaign of numbered objects with five annotators at once, from the file to the table that people take home."""

from __future__ import annotations

import csv
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from rescueseg.campaign import STAGES, Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.records import DELIVERY
from rescueseg.evaluation.instances import compare_instances
from rescueseg.queue.store import open_queue
from rescueseg.services.local_servers import Servers
from rescueseg.services.prefect_api import flow_command
from rescueseg.simulation.annotator import AnnotatorOptions, SimulatedAnnotator
from rescueseg.stages.tickets import prepare
from rescueseg.volumes.batch_import import start_campaign
from rescueseg.volumes.volume_files import VolumeImport

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]

SHAPE, SPACING = (28, 176, 176), (0.4, 0.2, 0.2)
ANNOTATORS = {f"annotator{i}": AnnotatorOptions(jitter_voxels=0.2 * i) for i in range(5)}
TABLES = {
    "stardist": ["training.stardist.channels=[8,16,32]", "training.stardist.rays=18", "training.iterations=700"],
    "cellpose": ["training.cellpose.channels=[8,16,32]", "training.iterations=700"],
}


def touching_cells() -> tuple[np.ndarray, np.ndarray]:
    """Return image and numbered truth: pairs of balls that touch, so that the pieces of a perfect mask are no objects."""
    rng = np.random.default_rng(4)
    places = np.indices(SHAPE) * np.array(SPACING)[:, None, None, None]
    truth = np.zeros(SHAPE, np.uint16)
    for z in (2.8, 8.2):
        for y in np.arange(3.0, 33.0, 5.5):
            for x in np.arange(3.0, 29.0, 8.5):
                for shift in (0.0, 3.5):
                    middle = np.array([z, y, x + shift]) + rng.uniform(-0.2, 0.2, 3)
                    inside = sum((places[i] - middle[i]) ** 2 for i in range(3)) < rng.uniform(1.7, 1.95) ** 2
                    truth[inside & (truth == 0)] = truth.max() + 1
    image = 400 + 900.0 * (truth > 0) + rng.normal(0, 150, SHAPE)
    return np.clip(image, 0, None).astype(np.uint16), truth


def annotate(campaign: Campaign) -> dict[str, int]:
    """Let the five work at once until nothing is left; return how many patches each handed in."""

    def work(name: str) -> int:
        with closing(open_queue(campaign)) as store:
            return SimulatedAnnotator(campaign, store, name, ANNOTATORS[name]).drain()

    with ThreadPoolExecutor(len(ANNOTATORS)) as pool:
        return dict(zip(ANNOTATORS, pool.map(work, ANNOTATORS), strict=True))


def run(servers: Servers, flow: str, **parameters: Any) -> None:
    done = subprocess.run(
        flow_command(flow, parameters), env=servers.environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("trainer", sorted(TABLES))
def test_five_annotators_end_at_a_table_of_objects(trainer: str, tmp_path: Path) -> None:
    pytest.importorskip(trainer)
    image, truth = touching_cells()
    for name, voxels in (("raw", image), ("truth", truth)):
        tifffile.imwrite(tmp_path / f"{name}.tif", voxels, metadata={"axes": "ZYX"})
    settings = [
        f"training.trainer={trainer}", "annotation.labels=instance", "training.threads=1", *TABLES[trainer],
        "sampling.patch_zyx=[14,32,32]", "holdout.validation_boxes=4", "holdout.test_boxes=2",
        "sampling.starting_patches=6", "sampling.query_patches=4", "cluster.workers=1", "inference.mc_samples=1",
        "inference.tta_symmetries=1",
    ]  # fmt: skip
    campaign = start_campaign(
        str(tmp_path / "campaign"),
        settings_of("cells", ["cell"], settings),
        [VolumeImport(str(tmp_path / "raw.tif"), spacing=SPACING, truth=str(tmp_path / "truth.tif"), truth_type="instance", volume_id="v")],
    )  # fmt: skip
    with closing(open_queue(campaign)) as store:
        prepare(campaign, store)
    with Servers(tmp_path / "services", f"sqlite:///{tmp_path}/mlflow.db") as servers:
        handed_in = [annotate(campaign)]
        run(servers, "generation", campaign_url=campaign.url)
        handed_in.append(annotate(campaign))
        run(servers, "generation", campaign_url=campaign.url)
        request = {"out": str(tmp_path / "out"), "volumes": ["v"], "objects": "yes", "formats": ["tiff"]}
        run(servers, "segment", campaign_url=campaign.url, request=request)
    assert sum(handed_in[0].values()) == 6, "the holdout has its truth already"
    assert sum(handed_in[1].values()) == 4
    with closing(open_queue(campaign)) as store:
        assert {a.annotator for a in store.views.accepted(purpose=None)} == {
            name for counts in handed_in for name, count in counts.items() if count
        }
    assert [g.finished_stages() for g in campaign.generations()] == [list(STAGES)] * 2

    folder = DeliveryFolder(str(tmp_path / "out"))
    delivery, [volume] = folder.records.read(DELIVERY), folder.delivered()
    assert delivery is not None
    objects = np.asarray(zarr.open_array(f"{folder.image_url('v')}/labels/objects", path="0", mode="r")[...])
    rows = list(csv.DictReader((tmp_path / "out" / "objects.csv").read_text().splitlines()))
    assert len(rows) == volume.objects == objects.max()
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "v_objects.tif"), objects)
    found = compare_instances(objects, truth)
    quality = 2 * found.iou / (found.found + found.true)
    print(
        json.dumps({"trainer": trainer, "handed in": handed_in, "objects": volume.objects, "panoptic quality": quality})
    )
    assert quality > 0.6, "of pieces, in which pairs are one, it would be a third of that or less"
