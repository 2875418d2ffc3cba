"""Test scores of nnU-Net and the MONAI U-Net after equal processor time, and how often triage's route takes the better one.

python tests/benchmarks/families.py DATA_FOLDER OUT --seeds 2 --seconds 240

Per data set and seed one campaign: its holdout, 12 annotated starting patches (the truth), its triage on these patches.
nnU-Net and the MONAI U-Net (with the topology loss where the route says topology) train on the same snapshot, on one
thread, for as many steps as fit into the seconds of processor time, the set-up counted in; then both predict the holdout
boxes as the whole inference would. One JSON line per training goes to OUT/families.jsonl, and a rerun skips what is there:
kill it whenever you like. `--summary` prints the table of what is there and trains nothing.

What a change to the trainers does: run it in a clone of the version before, then here with `--before OUT_OF_THAT`. The
campaigns are then copies of those, with their patches, snapshots and holdouts, and the differences are paired.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from processor_time import cpu_seconds

from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.config import check_config
from rescueseg.evaluation.comparison import compare_generations
from rescueseg.evaluation.holdout_scores import assign, score_boxes
from rescueseg.evaluation.leak_check import require_unseen
from rescueseg.evaluation.pooled import group_scores
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.training_scores import predict_holdout
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.models.registry import get_trainer, trainer_names
from rescueseg.models.trainer import TrainingRequest
from rescueseg.queue.store import open_queue
from rescueseg.records import ModelReference
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages.tickets import prepare
from rescueseg.stages.triage import triage_campaign
from rescueseg.triage.records import TRIAGE
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

DATASETS = ("bbbc050_mosaic_train", "vesselnn_poon2015_BBB_noLeakage", "cdeep3m_mito_train")
PATCHES = 12
ROWS = "families.jsonl"
MEASURED_STEPS = 60
"""Of a whole short training: the topology loss begins late in it, and costs more than the network."""
SHOWN = ("dice", "surface_dice", "hd95_um", "cldice", "betti0_error", "betti1_error", "ap50", "pq", "vi", "ece", "error_auroc", "aurc")  # fmt: skip


def open_or_make(data: Path, out: Path, dataset: str, seed: int, before: Path | None = None) -> Campaign:
    """Return the campaign of a data set and seed with holdout, 12 annotated patches, triage and snapshot.

    With `before`, it is a copy of the campaign there, which must exist.
    """
    url = out / "campaigns" / f"{dataset}-{seed}"
    if before is not None and not url.exists():
        part = url.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(before / "campaigns" / url.name, part, ignore=shutil.ignore_patterns("runs"))
        part.rename(url)
    if not (url / "generations" / "0000" / "snapshot.json").exists():
        shutil.rmtree(url, ignore_errors=True)
        meta = json.loads((data / dataset / "meta.json").read_text())
        config = check_config(
            {
                "name": "families", "classes": ["object"], "seed": seed, "training": {"threads": 1},
                "sampling": {"starting_patches": PATCHES}, "inference": {"mc_samples": 1, "tta_symmetries": 2},
            }
        )  # fmt: skip
        campaign = Campaign.create(str(url), config)
        raw, labels = (str(data / dataset / name) for name in ("raw.tif", "labels.tif"))
        import_volume(
            campaign,
            VolumeImport(
                raw, volume_id="v", spacing=meta["voxel_size_um_zyx"], truth=labels, truth_type=meta["label_type"]
            ),
        )
        store = open_queue(campaign)
        prepare(campaign, store)
        SimulatedAnnotator(campaign, store).drain()
        triage_campaign(campaign, store, mask="annotations")
        snapshot = make_snapshot(campaign, 0, store.views.accepted("pool"))
        campaign.generation(0).write(SNAPSHOT, snapshot)
        store.close()
    return Campaign.open(str(url))


def contestants(campaign: Campaign) -> tuple[str, str]:
    """Return the two families: nnU-Net, and the MONAI U-Net with the loss that the route calls for."""
    triage = campaign.records.read(TRIAGE)
    assert triage is not None
    return "nnunet", "monai_unet_topology" if triage.route.name == "topology" else "monai_unet"


def train_for(campaign: Campaign, trainer: str, seconds: float, work: Path) -> tuple[ModelReference, dict[str, float]]:
    """Train as long as the processor time allows; return the model and what it took."""
    snapshot = campaign.generation(0).snapshot()
    assert snapshot is not None
    seed = campaign.config.seed

    def configured(iterations: int) -> TrainingRequest:
        training = campaign.config.training.model_copy(update={"trainer": trainer, "iterations": iterations})
        config = campaign.config.model_copy(update={"training": training})
        return TrainingRequest(config, campaign.volumes, campaign.holdout(), snapshot, work, seed)

    import monai.networks  # noqa: F401  so that its import is in no training's time

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    started = cpu_seconds()
    times: list[float] = []

    def measure(step: int, metrics: Mapping[str, float]) -> None:
        times.append(cpu_seconds())

    get_trainer(trainer).train(configured(MEASURED_STEPS), measure)
    setup, per_step = times[0] - started, (times[-1] - times[9]) / (len(times) - 10)
    shutil.rmtree(work)
    work.mkdir()
    iterations = max(10, int((seconds - setup) / per_step))
    started, wall = cpu_seconds(), time.monotonic()
    model = get_trainer(trainer).train(configured(iterations), lambda step, metrics: None)
    spent = {"cpu_seconds": round(cpu_seconds() - started, 1), "seconds": round(time.monotonic() - wall, 1)}
    relative = str(model.path.relative_to(campaign.storage.path("")))
    reference = ModelReference(generation=0, trainer=trainer, path=relative, digest=model.digest)
    return reference, {"iterations": model.iterations, "setup_seconds": round(setup, 1), **spent}


def evaluate(campaign: Campaign, model: ModelReference, number: int) -> Evaluation:
    """Predict the holdout boxes and score them."""
    truth = holdout_truth(campaign)
    require_unseen(campaign.generation(0), truth.boxes, campaign.volumes.shared_places())
    assignment = assign(campaign, model.model_copy(update={"generation": number}), truth)
    return score_boxes(assignment, predict_holdout(campaign, assignment))


def run(campaign: Campaign, dataset: str, seed: int, trainer: str, seconds: float) -> dict[str, Any]:
    """Train and evaluate one family."""
    work = Path(campaign.storage.path(f"runs/{trainer}"))
    model, spent = train_for(campaign, trainer, seconds, work)
    started = cpu_seconds()
    evaluation = evaluate(campaign, model, contestants(campaign).index(trainer))
    shutil.rmtree(work, ignore_errors=True)
    triage = campaign.records.read(TRIAGE)
    assert triage is not None
    snapshot = campaign.generation(0).snapshot()
    assert snapshot is not None
    return {
        "dataset": dataset, "seed": seed, "trainer": trainer, "patches": len(snapshot.items), **spent,
        "inference_seconds": round(cpu_seconds() - started, 1), "route": triage.route.title,
        "route_trainer": next(t for t in triage.route.trainers if t in trainer_names()), "evaluation": evaluation.to_json(),
    }  # fmt: skip


def summary(lines: list[dict[str, Any]]) -> None:
    """Print the scores of each family, their paired difference, and how often the route took the better one."""
    print(f"{'data set':32s} {'family':20s} seeds steps CPU s patches " + " ".join(f"{n[:10]:>10s}" for n in SHOWN))
    for dataset, trainer in dict.fromkeys((x["dataset"], x["trainer"]) for x in lines):
        of = [x for x in lines if (x["dataset"], x["trainer"]) == (dataset, trainer)]
        groups = [group_scores(Evaluation.model_validate(x["evaluation"]), "test", ("object",))[0] for x in of]
        means = {n: [g.scores[n].value for g in groups if n in g.scores] for n in SHOWN}
        cells = " ".join(f"{np.mean(v):10.3f}" if v else f"{'–':>10s}" for v in means.values())
        print(
            f"{dataset:32s} {trainer:20s} {','.join(str(x['seed']) for x in of):5s} {np.mean([x['iterations'] for x in of]):5.0f} "
            f"{np.mean([x['cpu_seconds'] for x in of]):5.0f} {np.mean([x['patches'] for x in of]):7.0f} {cells}"
        )
    print()
    right: dict[str, list[bool]] = {"dice": [], "cldice": []}
    for dataset, seed in dict.fromkeys((x["dataset"], x["seed"]) for x in lines):
        pair = {x["trainer"]: x for x in lines if (x["dataset"], x["seed"]) == (dataset, seed)}
        if len(pair) < 2 or "nnunet" not in pair:
            continue
        monai = next(name for name in pair if name != "nnunet")
        a, b = (Evaluation.model_validate(pair[name]["evaluation"]) for name in (monai, "nnunet"))
        found = compare_generations(a, b, "test", ("object",))[0].differences
        says = pair["nnunet"]["route_trainer"]
        words = []
        for name, answers in right.items():
            d = found[name]
            better = "nnunet" if (d.difference or 0) > 0 else monai
            answers.append(says == better)
            ends = f"[{d.interval[0]:+.3f}, {d.interval[1]:+.3f}]" if d.interval else ""
            words.append(
                f"{name} nnunet − {monai} {d.difference:+.3f} {ends}: {'right' if says == better else 'wrong'}"
            )
        print(f"{dataset} seed {seed}: route {pair['nnunet']['route']} takes {says}; " + "; ".join(words))
    for name, answers in right.items():
        if answers:
            print(f"By {name} the route took the better family in {sum(answers)} of {len(answers)} cases")


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows that are there already."""
    file = out / ROWS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def print_differences(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """Print what both versions reached in the same campaign, training by training, and the mean difference of each family."""
    print()
    differences: dict[str, list[float]] = {}
    of = {(b["dataset"], b["seed"], b["trainer"]): b for b in before}
    for x in after:
        earlier = of.get((x["dataset"], x["seed"], x["trainer"]))
        if earlier is None:
            continue
        boxes = [[box["box"] for box in line["evaluation"]["boxes"]] for line in (earlier, x)]
        assert boxes[0] == boxes[1], "not the same campaign"
        old, new = (line["evaluation"]["test"]["dice"] for line in (earlier, x))
        differences.setdefault(x["trainer"], []).append(new - old)
        print(
            f"{x['dataset']:32s} seed {x['seed']} {x['trainer']:20s} test Dice {old:.3f} → {new:.3f} ({new - old:+.3f}), "
            f"{earlier['iterations']} → {x['iterations']} steps in {earlier['cpu_seconds']} → {x['cpu_seconds']} CPU s"
        )
    for trainer, of_family in differences.items():
        print(f"{trainer}: mean difference {np.mean(of_family):+.3f} over {len(of_family)} trainings")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="to share the seeds among commands")
    parser.add_argument("--seconds", type=float, default=240.0, help="processor time of one training")
    parser.add_argument("--before", type=Path, help="OUT of a run of the version to compare with")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / ROWS
    lines = read_rows(options.out)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    todo = [] if options.summary else [(s, d) for s in seeds for d in options.datasets]
    for seed, dataset in todo:
        campaign = open_or_make(options.data, options.out, dataset, seed, options.before)
        for trainer in contestants(campaign):
            if trainer not in trainer_names():
                print(f"{trainer} is not installed: left out", flush=True)
                continue
            if any((x["dataset"], x["seed"], x["trainer"]) == (dataset, seed, trainer) for x in lines):
                continue
            line = run(campaign, dataset, seed, trainer, options.seconds)
            lines.append(line)
            with file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            test = line["evaluation"]["test"]
            print(f"{dataset} seed {seed} {trainer}: test Dice {test['dice']:.3f}, {line['iterations']} steps in "
                  f"{line['cpu_seconds']} s, inference {line['inference_seconds']} s", flush=True)  # fmt: skip
    summary(lines)
    if options.before is not None:
        print_differences(read_rows(options.before), lines)


if __name__ == "__main__":
    main()
