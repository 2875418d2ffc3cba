"""Objects by each family after equal processor time, and how often the triage's route takes the best one.

python tests/benchmarks/instance_families.py DATA_FOLDER OUT --seeds 2 --seconds 480

Per data set and seed one campaign of numbered objects: its holdout, 12 annotated starting patches (the truth), its triage on
these patches. Each family trains in its default configuration on the same snapshot, from scratch, on one thread, for as many
steps as fit into the seconds of processor time. Then, as a delivery does, threshold, clean-up and object rule are chosen on
the validation boxes, and the figures are those of the test boxes. "threshold" is the tuned threshold with the same choice of
object rules: pieces and watersheds. What was made of a box is made of the box with a margin and cut to it, and so are the
numbered objects of the truth.

One JSON line per training goes to OUT/instance_families.jsonl, and a rerun skips what is there: kill it whenever you like.
`--summary` prints the table of what is there and trains nothing; the rows of published runs lie in `tests/benchmarks/rows`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from families import train_for
from processor_time import cpu_seconds

from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.config import check_config
from rescueseg.delivery.masks import mask_of_box
from rescueseg.delivery.object_choice import choose_objects
from rescueseg.delivery.objects import objects_of_box
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.delivery.validation import ValidationBox
from rescueseg.evaluation.threshold_baseline import BoxImages, threshold_baseline
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.geometry import Box
from rescueseg.models.predictor import PROBABILITY
from rescueseg.models.registry import trainer_names
from rescueseg.queue.store import open_queue
from rescueseg.records import HoldoutBox, ModelReference
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages.tickets import prepare
from rescueseg.stages.triage import triage_campaign
from rescueseg.triage.records import TRIAGE
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.benchmarks.delivery_objects import Trial, choose, figures, maps_of_boxes, score

DATASETS = ("bbbc050_mosaic_train", "gonuclear_1135", "flyem_fib25_train2")
CROPS = {"flyem_fib25_train2": (slice(0, 100), slice(0, 140), slice(0, 140))}
FAMILIES = ("stardist", "cellpose", "nnunet", "monai_unet", "threshold")
PATCHES, VOLUME = 12, "v"
ROWS = "instance_families.jsonl"
SHOWN = ("ap50", "ap75", "pq", "vi", "dice")


@dataclass(frozen=True)
class NumberedTrial(Trial):
    """A model of a campaign of numbered objects."""

    @property
    def between(self) -> bool:
        """Objects are numbered."""
        return False


def open_or_make(data: Path, out: Path, dataset: str, seed: int) -> Campaign:
    """Return the campaign of a data set and seed with holdout, 12 annotated patches, triage and snapshot."""
    url = out / "campaigns" / f"{dataset}-{seed}"
    if not (url / "generations" / "0000" / "snapshot.json").exists():
        shutil.rmtree(url, ignore_errors=True)
        meta = json.loads((data / dataset / "meta.json").read_text())
        config = check_config(
            {
                "name": "families", "classes": ["object"], "seed": seed, "training": {"threads": 1},
                "annotation": {"labels": "instance"}, "sampling": {"starting_patches": PATCHES},
                "inference": {"mc_samples": 1, "tta_symmetries": 2},
            }
        )  # fmt: skip
        campaign = Campaign.create(str(url), config)
        files = url / "files"
        files.mkdir()
        for name in ("raw", "labels"):
            voxels = tifffile.imread(data / dataset / f"{name}.tif")
            tifffile.imwrite(files / f"{name}.tif", voxels[CROPS.get(dataset, ())])
        import_volume(
            campaign,
            VolumeImport(
                str(files / "raw.tif"), volume_id=VOLUME, spacing=meta["voxel_size_um_zyx"],
                truth=str(files / "labels.tif"), truth_type="instance",
            ),
        )  # fmt: skip
        store = open_queue(campaign)
        prepare(campaign, store)
        SimulatedAnnotator(campaign, store).drain()
        triage_campaign(campaign, store, mask="annotations")
        campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, 0, store.views.accepted("pool")))
        store.close()
    return Campaign.open(str(url))


def deliver(trial: Trial, rule: DeliveryRule) -> dict[str, float]:
    """Return the figures of the test boxes of a model."""
    spacing, scored = trial.campaign.volumes.record(VOLUME).spacing_um_zyx, []
    for box, read, maps in maps_of_boxes(trial, trial.boxes("test")):
        mask = mask_of_box(maps[PROBABILITY], rule, spacing)
        inner = box.box.relative_to(read).slices
        scored.append(score(trial, box, mask[inner], objects_of_box(mask, maps, rule, spacing)[inner]))
    return _with_dice(figures(trial, scored))


def deliver_threshold(campaign: Campaign) -> tuple[DeliveryRule, dict[str, float]]:
    """Return rule and figures of the tuned threshold."""
    model = ModelReference(generation=0, trainer="threshold", path="none", digest="")
    trial = NumberedTrial(campaign, "", "threshold", model)
    tuned = threshold_baseline(campaign).classes[0]
    images = BoxImages(campaign.volumes, holdout_truth(campaign))
    spacing = campaign.volumes.record(VOLUME).spacing_um_zyx

    def maps(part: str) -> list[tuple[HoldoutBox, dict[str, Any]]]:
        found = []
        for box, smoothed in images.smoothed(trial.boxes(part), tuned.channel, tuned.sigma):
            inside = tuned.segment(smoothed).astype(np.float32)
            found.append((box, {PROBABILITY: np.stack([1 - inside, inside])}))
        return found

    boxes = [
        ValidationBox(spacing, of, Box((0, 0, 0), box.box.shape_zyx).slices, trial.truth.labels(box), trial.objects(box), False)
        for box, of in maps("validation")
    ]  # fmt: skip
    plain = DeliveryRule(model_digest="", truth_digest="", cleanup=(CleanUp(),))
    rule, _ = choose_objects(boxes, plain, None, lambda *_: None)
    scored = []
    for box, of in maps("test"):
        mask = mask_of_box(of[PROBABILITY], rule, spacing)
        scored.append(score(trial, box, mask, objects_of_box(mask, of, rule, spacing)))
    return rule, _with_dice(figures(trial, scored))


def _with_dice(found: dict[str, float]) -> dict[str, float]:
    return {name: round(found[name], 4) for name in SHOWN if name in found}


def run(campaign: Campaign, dataset: str, seed: int, family: str, seconds: float) -> dict[str, Any]:
    """Train one family, and score its objects."""
    triage = campaign.records.read(TRIAGE)
    assert triage is not None
    row: dict[str, Any] = {"dataset": dataset, "seed": seed, "family": family, "route": triage.route.title}
    row["route_family"] = next(name for name in triage.route.trainers if name in trainer_names())
    if family == "threshold":
        rule, scores = deliver_threshold(campaign)
        return row | {"objects": rule.objects.to_json() if rule.objects else None, "scores": scores}
    work = Path(campaign.storage.path(f"runs/{family}"))
    model, spent = train_for(campaign, family, seconds, work)
    started = cpu_seconds()
    trial = NumberedTrial(campaign, dataset, family, model)
    rule = choose(trial)
    scores = deliver(trial, rule)
    row |= spent | {"delivery_seconds": round(cpu_seconds() - started, 1), "threshold": rule.threshold}
    shutil.rmtree(work, ignore_errors=True)
    return row | {"objects": rule.objects.to_json() if rule.objects else None, "scores": scores}


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Print the means over seeds, and how often the route's family was the best by panoptic quality."""
    print(f"| data set | family | seeds | steps | {' | '.join(SHOWN)} | objects |")
    print("|" + "---|" * (5 + len(SHOWN)))
    for dataset, family in dict.fromkeys((x["dataset"], x["family"]) for x in rows):
        of = [x for x in rows if (x["dataset"], x["family"]) == (dataset, family)]
        cells = [
            f"{np.mean([x['scores'][n] for x in of]):.3f}" if all(n in x["scores"] for x in of) else "–" for n in SHOWN
        ]
        steps = f"{np.mean([x.get('iterations', 0) for x in of]):.0f}"
        made = ", ".join(x["objects"]["source"] if x["objects"] else "none" for x in of)
        print(
            f"| {dataset} | {family} | {', '.join(str(x['seed']) for x in of)} | {steps} | {' | '.join(cells)} | {made} |"
        )
    right = []
    for dataset, seed in dict.fromkeys((x["dataset"], x["seed"]) for x in rows):
        of = {x["family"]: x for x in rows if (x["dataset"], x["seed"]) == (dataset, seed)}
        best = max(of, key=lambda name: of[name]["scores"].get("pq", 0.0))
        route = next(iter(of.values()))
        right.append(best == route["route_family"])
        print(f"{dataset} seed {seed}: route {route['route']} takes {route['route_family']}; best {best}")
    print(f"The route's family was the best in {sum(right)} of {len(right)}")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=480.0, help="processor time of one training")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / ROWS
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    todo = [] if options.summary else [(s, d, f) for s in seeds for d in options.datasets for f in options.families]
    todo = [t for t in todo if not any((x["seed"], x["dataset"], x["family"]) == t for x in rows)]
    trainings = sum(family != "threshold" for _, _, family in todo)
    print(
        f"{trainings} trainings of {options.seconds:.0f} s: about {trainings * options.seconds * 1.3 / 3600:.1f} h",
        flush=True,
    )
    for seed, dataset, family in todo:
        if family not in (*trainer_names(), "threshold"):
            print(f"{family} is not installed: left out", flush=True)
            continue
        row = run(open_or_make(options.data, options.out, dataset, seed), dataset, seed, family, options.seconds)
        rows.append(row)
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"{dataset} seed {seed} {family}: {row['scores']}, {row.get('iterations', 0)} steps", flush=True)
    summary(rows)


if __name__ == "__main__":
    main()
