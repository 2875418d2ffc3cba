"""The campaigns and trainings that `delivery_objects.py` takes its figures from; it runs them itself where they are missing.

python tests/benchmarks/delivery_trainings.py --data FOLDER --out OUT --seeds 0 1 --seconds 180

Per data set and seed one campaign: its holdout, 12 starting patches annotated with the truth, object numbers included. Where
objects are numbered, two U-Nets are trained on the same patches for as many steps, one as without numbers, one that learns
the border distance too; where objects are what lies between membranes, one that learns the membranes; for vessels and
mitochondria one, with the topology loss for vessels. As many steps as fit into the seconds of processor time, measured once
per campaign. One line per training goes to OUT/trainings.jsonl, and a rerun skips what is there: kill it whenever you like.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from skimage.segmentation import find_boundaries

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import ANNOTATION
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.config import check_config
from rescueseg.models.registry import get_trainer
from rescueseg.models.trainer import TrainingRequest
from rescueseg.queue.store import make_queue
from rescueseg.records import AcceptedAnnotation, ModelReference, QueriedPatch
from rescueseg.sampling import starting_patches
from rescueseg.storage import digest_array
from rescueseg.volumes import open_truth
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

PATCHES = 12
MEASURED_STEPS = 40
MOST_SECONDS = 2 * 3600
VOLUME = "v"

Crop = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Problem:
    """What a data set is used for."""

    objects: Literal["numbered", "between membranes", "none"]
    trainer: str = "monai_unet"
    crop: Crop = (slice(None), slice(None), slice(None))

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Settings of the U-Net of each training, by name."""
        if self.objects == "numbered":
            return {"without_distance": {}, "with_distance": {"border_distance": True}}
        return {"membranes" if self.objects == "between membranes" else "mask": {}}


PROBLEMS = {
    "bbbc050_mosaic_train": Problem("numbered"),
    "gonuclear_1135": Problem("numbered"),
    "flyem_fib25_train2": Problem("between membranes", crop=(slice(0, 100), slice(0, 200), slice(0, 200))),
    "plantseg_ovule_cells": Problem("between membranes"),
    "vesselnn_poon2015_BBB_noLeakage": Problem("none", trainer="monai_unet_topology"),
    "vesselnn_burgess2014_tgMouse": Problem("none", trainer="monai_unet_topology"),
    "cdeep3m_mito_train": Problem("none"),
}


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results, none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Add a result; several processes may."""
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def campaign_url(out: Path, dataset: str, seed: int) -> Path:
    """Return where the campaign of a data set and seed lies."""
    return out / "campaigns" / f"{dataset}-{seed}"


def open_or_make(data: Path, out: Path, dataset: str, seed: int) -> Campaign:
    """Return the campaign of a data set and seed with its holdout and the snapshot of its annotated patches."""
    url, problem = campaign_url(out, dataset, seed), PROBLEMS[dataset]
    if not (url / "generations" / "0000" / "snapshot.json").exists():
        shutil.rmtree(url, ignore_errors=True)
        between = problem.objects == "between membranes"
        config = check_config(
            {
                "name": "delivery", "classes": ["membrane" if between else "object"], "seed": seed,
                "annotation": {"labels": "instance" if problem.objects == "numbered" else "semantic"},
                "training": {"threads": 1, "trainer": problem.trainer},
                "inference": {"mc_samples": 1, "tta_symmetries": 2},
            }
        )  # fmt: skip
        campaign = Campaign.create(str(url), config)
        make_queue(campaign)
        import_volume(campaign, _volume(data / dataset, url / "files", problem))
        starting_patches.draw_holdout(campaign)
        accepted = _annotate(campaign, starting_patches.starting_patches(campaign, PATCHES))
        campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, 0, accepted))
    return Campaign.open(str(url))


def _volume(source: Path, folder: Path, problem: Problem) -> VolumeImport:
    """Write what is used of a data set, membranes in place of numbers where objects lie between them."""
    folder.mkdir(parents=True)
    meta = json.loads((source / "meta.json").read_text())
    raw, labels = (tifffile.imread(source / f"{name}.tif") for name in ("raw", "labels"))
    raw, labels = raw[problem.crop], labels[problem.crop]
    kind = meta["label_type"]
    if problem.objects == "between membranes":
        membranes = find_boundaries(labels, mode="thick").astype(np.uint8)
        tifffile.imwrite(folder / "objects.tif", np.where(membranes == 1, 0, labels))
        labels, kind = membranes, "semantic"
    tifffile.imwrite(folder / "raw.tif", raw)
    tifffile.imwrite(folder / "labels.tif", labels)
    return VolumeImport(
        str(folder / "raw.tif"),
        volume_id=VOLUME,
        spacing=meta["voxel_size_um_zyx"],
        truth=str(folder / "labels.tif"),
        truth_type=kind,
    )


def _annotate(campaign: Campaign, chosen: Sequence[QueriedPatch]) -> list[AcceptedAnnotation]:
    """Label patches with the truth, and number their objects where the campaign numbers objects."""
    numbered = campaign.config.annotation.labels == "instance"
    accepted = []
    for i, patch in enumerate(chosen):
        of_objects: dict[str, Any] = {}
        for kind, dtype in (("labels", np.uint8), ("instances", np.uint32))[: 1 + numbered]:
            truth = open_truth(campaign.volumes, VOLUME, instances=kind == "instances")
            array = np.asarray(truth[patch.box.slices]).astype(dtype)
            digest = digest_array(array)
            path = ANNOTATION.path(ticket=f"{kind}{i}", digest=digest)
            campaign.storage.write_array(path, array)
            of_objects |= {kind: path, f"{kind}_digest": digest}
        accepted.append(
            AcceptedAnnotation(
                ticket_id=f"truth{i:02d}", volume_id=VOLUME, box=patch.box, purpose="pool", generation=0,
                stratum=patch.stratum, annotation_id=f"truth{i:02d}", version=1, annotator="truth", tool="none",
                seconds=0.0, voxels_corrected=0, **of_objects,
            )
        )  # fmt: skip
    return accepted


def cpu_seconds() -> float:
    """Return the processor time of this process and its ended children."""
    return sum(os.times()[:4])


def train(campaign: Campaign, arm: str, settings: Mapping[str, Any], steps: int, progress: Any = None) -> Any:
    """Train one model; `progress` is called at each step."""
    snapshot = campaign.generation(0).snapshot()
    assert snapshot is not None
    values = campaign.config.training.model_dump(mode="json") | {"iterations": steps, "unet": dict(settings)}
    training = type(campaign.config.training).model_validate(values)
    config = campaign.config.model_copy(update={"training": training})
    work = Path(campaign.storage.path(f"runs/{arm}"))
    request = TrainingRequest(config, campaign.volumes, campaign.holdout(), snapshot, work, config.seed)
    return get_trainer(training.trainer).train(request, progress or (lambda step, metrics: None))


def steps_within(campaign: Campaign, seconds: float) -> int:
    """Return how many steps fit into the processor time of a training, measured once and kept with the campaign."""
    file = Path(campaign.storage.path("steps.json"))
    if not file.exists():
        import monai.networks  # noqa: F401  so that its import is in no training's time

        started, times = cpu_seconds(), list[float]()
        train(campaign, "measured", {}, MEASURED_STEPS, lambda step, metrics: times.append(cpu_seconds()))
        shutil.rmtree(campaign.storage.path("runs/measured"))
        per_step = (times[-1] - times[9]) / (len(times) - 10)
        file.write_text(json.dumps({"setup": times[0] - started, "per_step": per_step}))
    measured = json.loads(file.read_text())
    return max(MEASURED_STEPS, int((seconds - measured["setup"]) / measured["per_step"]))


def train_missing(
    data: Path, out: Path, datasets: Sequence[str], seeds: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Run the trainings that are missing; return the lines of all."""
    file = out / "trainings.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    todo = [
        (seed, dataset, arm)
        for seed in seeds
        for dataset in datasets
        for arm in PROBLEMS[dataset].arms
        if not any((x["dataset"], x["seed"], x["arm"]) == (dataset, seed, arm) for x in read_lines(file))
    ]
    need = len(todo) * seconds * 1.3
    print(f"{len(todo)} trainings of {seconds:.0f} s of processor time: about {need / 3600:.1f} h in all", flush=True)
    if need > MOST_SECONDS:
        raise SystemExit("that is more than two hours of processor time: name fewer data sets, seeds or seconds")
    for seed, dataset, arm in todo:
        campaign = open_or_make(data, out, dataset, seed)
        steps = steps_within(campaign, seconds)
        started, wall = cpu_seconds(), time.monotonic()
        model = train(campaign, arm, PROBLEMS[dataset].arms[arm], steps)
        reference = ModelReference(
            generation=0,
            trainer=PROBLEMS[dataset].trainer,
            path=str(model.path.relative_to(campaign.storage.path(""))),
            digest=model.digest,
        )
        snapshot = campaign.generation(0).snapshot()
        assert snapshot is not None
        line = {
            "dataset": dataset, "seed": seed, "arm": arm, "patches": len(snapshot.items), "steps": steps,
            "cpu_seconds": round(cpu_seconds() - started, 1), "seconds": round(time.monotonic() - wall, 1),
            "model": reference.to_json(),
        }  # fmt: skip
        append_line(file, line)
        print(f"{dataset} seed {seed} {arm}: {steps} steps in {line['cpu_seconds']} s", flush=True)
    return read_lines(file)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the options that both commands share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--seconds", type=float, default=180.0, help="processor time of one training")
    return parser


if __name__ == "__main__":
    options = arguments(__doc__).parse_args()
    train_missing(options.data, options.out, options.datasets, options.seeds, options.seconds)
