"""How many members of a distribution it takes to find the patches that all of them would name.

python tests/benchmarks/fewer_members.py DATA OUT vesselnn_poon2015_BBB_noLeakage

A model is trained once per volume as in `engine_speed.py`. Its windows are predicted with 8 dropout samples under 8
symmetries, with fewer of both, and once without dropout. Patches of `--patch` voxels, half of a patch apart, are ranked by the
mean of a map over them: the entropy weighted by the probability of the class, which the strategy `clasp_entropy` ranks by,
and the mutual information of `power_bald`. Printed is the share of the 5 % highest that is also among those of the full maps,
and the processor time over that of the pass without dropout. Another seed of the full maps says how much of that is chance.
The last rows take the full maps of the windows that are least certain in the pass without dropout, and that pass elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parent))
import families
from engine_speed import model_of

from rescueseg.geometry import Box
from rescueseg.inference.blending import WindowBlender
from rescueseg.inference.box_means import box_sums
from rescueseg.inference.boxes import Pixels, WindowStatistics, channel_layout
from rescueseg.inference.engine import InferenceJob, make_plan
from rescueseg.inference.maps import InferencePlan
from rescueseg.models.registry import load_predictor
from rescueseg.volumes.opening import open_image

FULL = (8, 8)
FEWER = ((1, 2), (1, 3), (2, 2), (2, 3), (3, 2), (3, 4), (1, 8), (8, 1))
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
TOP = 0.05
Scores = dict[str, npt.NDArray[np.float64]]


def statistics_of(
    job: InferenceJob, image: npt.NDArray[Any], members: tuple[int, int], seed: int
) -> tuple[InferencePlan, list[torch.Tensor], float]:
    """Return the plan, the statistics of every window, and the processor time; (0, 1) is one pass without dropout."""
    samples, symmetries = members
    config = job.inference.model_copy(update={"mc_samples": max(1, samples), "tta_symmetries": symmetries})
    job = replace(job, inference=config, seed=seed)
    predictor: Any = load_predictor(job.maps.generation.storage, job.model, config, "cpu")
    if not samples:
        predictor._plan = predictor._plan.model_copy(update={"dropout": 0.0})
    plan = make_plan(job)
    statistics, pixels = WindowStatistics(plan, predictor), Pixels(image, job.volume.normalisation)
    began = time.process_time()
    values = [statistics.of([pixels.window(plan.grid.box(i))], [i])[0] for i in range(len(plan.grid))]
    return plan, values, time.process_time() - began


def scores_of(plan: InferencePlan, values: Sequence[torch.Tensor], patch: Sequence[int]) -> Scores:
    """Return the mean of each ranked map over every patch."""
    layout, whole = channel_layout(plan), Box((0, 0, 0), plan.shape_zyx)
    blender = WindowBlender(whole)
    for part in plan.grid.parts(whole):
        blender.add(part, values[part.index][(slice(None), *part.cut)])
    maps = blender.blended().numpy()
    ranges = [range(0, n - p + 1, max(1, p // 2)) for n, p in zip(plan.shape_zyx, patch, strict=True)]
    starts = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    entropy = maps[layout["predictive_entropy"].start]
    place = layout["mutual_information"].start
    information = maps[place] if place < len(maps) else np.zeros_like(entropy)
    ranked = {"clasp_entropy": entropy * maps[1], "mutual information": information}
    return {name: box_sums(values, (0, 0, 0), starts, starts + np.asarray(patch)) for name, values in ranked.items()}


def common(scores: Scores, full: Scores) -> str:
    """Return for each map which share of the highest patches is the same."""
    shares = []
    for name, values in full.items():
        count = max(1, round(TOP * len(values)))
        same = set(np.argsort(-scores[name], kind="stable")[:count]) & set(np.argsort(-values, kind="stable")[:count])
        shares.append(f"{len(same) / count:6.2f}")
    return "  ".join(shares)


def run(job: InferenceJob, image: npt.NDArray[Any], patch: Sequence[int]) -> None:
    """Print the rows of a volume."""
    plan, full, cost = statistics_of(job, image, FULL, job.seed)
    _, single, single_cost = statistics_of(job, image, (0, 1), job.seed)
    reference = scores_of(plan, full, patch)
    patches = len(next(iter(reference.values())))
    print(f"{plan.shape_zyx}, {len(plan.grid)} windows of {plan.window_zyx}, {patches} patches of {tuple(patch)}")
    print(f"{'samples × symmetries':44s} {'time':>6}  {'  '.join(reference)}")

    def show(name: str, time_share: float, scores: Scores) -> None:
        print(f"{name:44s} {time_share:6.1f}  {common(scores, reference)}", flush=True)

    show("8 × 8", cost / single_cost, reference)
    _, again, again_cost = statistics_of(job, image, FULL, job.seed + 1)
    show("8 × 8, another seed", again_cost / single_cost, scores_of(plan, again, patch))
    show("one pass without dropout", 1.0, scores_of(plan, single, patch))
    for members in FEWER:
        _, values, own_cost = statistics_of(job, image, members, job.seed + 2)
        show(f"{members[0]} × {members[1]}", own_cost / single_cost, scores_of(plan, values, patch))
    channel = channel_layout(plan)["predictive_entropy"].start
    order = np.argsort([-float(values[channel].mean()) for values in single])
    for share in SHARES:
        chosen: Mapping[int, torch.Tensor] = {int(i): full[i] for i in order[: max(1, round(share * len(order)))]}
        mixed = [chosen.get(i, values) for i, values in enumerate(single)]
        show(
            f"8 × 8 in the {share:.0%} least certain windows",
            1 + len(chosen) / len(order) * cost / single_cost,
            scores_of(plan, mixed, patch),
        )


def main() -> None:
    """Run the volumes one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--patch", type=int, nargs=3, default=(8, 48, 48), metavar=("Z", "Y", "X"))
    parser.add_argument("--seconds", type=float, default=120.0, help="processor time of the training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for dataset in options.datasets:
        campaign = families.open_or_make(options.data, options.out, dataset, seed=1)
        job = InferenceJob.of(campaign, model_of(campaign, "monai_unet", options.seconds), "v")
        print(dataset)
        run(job, np.asarray(open_image(campaign.volumes, "v")[...]), options.patch)


if __name__ == "__main__":
    main()
