"""Objects and masks as they are delivered, against the connected pieces and the most likely classes of the same holdout.

python tests/benchmarks/delivery_objects.py --data FOLDER --out OUT --seeds 0 1 --seconds 180

Trainings that are missing run first (see `delivery_trainings.py`: at its start it says how much processor time they take).
Then, for each model: temperature, threshold, clean-up and object rule are chosen on the validation boxes, the figures are
those of the test boxes. What was delivered of a box is made of the box with a margin and cut to it, and so are the numbered
objects of the truth. Objects between membranes have no voxel of a membrane, neither in the truth. One line per model goes to
OUT/deliveries.jsonl, and a rerun skips what is there; at the end the tables are printed, in Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.delivery.masks import mask_of_box
from rescueseg.delivery.object_choice import choose_objects
from rescueseg.delivery.objects import objects_of_box
from rescueseg.delivery.records import DeliveryRule
from rescueseg.delivery.request import DeliveryModel
from rescueseg.delivery.rule import choose_rule
from rescueseg.delivery.validation import read_validation
from rescueseg.evaluation.calibration import CALIBRATION, score_and_calibrate
from rescueseg.evaluation.holdout_scores import Assignment, assign, score_box
from rescueseg.evaluation.instances import compare_instances, connected_components, renumber_objects
from rescueseg.evaluation.pooled import group_scores
from rescueseg.evaluation.scores import BoxScore, Evaluation
from rescueseg.evaluation.training_scores import predict_holdout
from rescueseg.evaluation.truth import HoldoutTruth, holdout_truth
from rescueseg.geometry import Box, zyx
from rescueseg.inference.engine import InferenceJob, predict_boxes
from rescueseg.labels import most_likely
from rescueseg.models.predictor import PROBABILITY
from rescueseg.records import HoldoutBox, ModelReference
from tests.benchmarks.delivery_trainings import (
    PROBLEMS,
    VOLUME,
    append_line,
    arguments,
    cpu_seconds,
    open_or_make,
    read_lines,
    train_missing,
)

MARGIN = 16
"""Around a test box, in multiples of the finest voxel size."""
OF_OBJECTS = ("ap50", "ap75", "pq", "vi")
OF_MASKS = ("dice", "cldice", "betti0_error", "betti1_error", "betti2_error")
Maps = dict[str, npt.NDArray[np.float32]]
Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Trial:
    """A model and the holdout that it is measured on."""

    campaign: Campaign
    dataset: str
    arm: str
    model: ModelReference

    @property
    def between(self) -> bool:
        """Whether objects are what lies between membranes."""
        return PROBLEMS[self.dataset].objects == "between membranes"

    @cached_property
    def truth(self) -> HoldoutTruth:
        """The truth of the holdout."""
        return holdout_truth(self.campaign)

    @cached_property
    def assignment(self) -> Assignment:
        """What is evaluated."""
        return assign(self.campaign, self.model, self.truth)

    @cached_property
    def _between(self) -> Numbers:
        """The true objects between membranes, all of the volume."""
        return np.asarray(tifffile.imread(Path(self.campaign.storage.path("files/objects.tif"))))

    def objects(self, box: HoldoutBox) -> Numbers | None:
        """Return the true objects of a box, None where objects are not told apart."""
        if self.between:
            return self._between[box.box.slices]
        return self.truth.objects(box)

    def boxes(self, part: str) -> list[HoldoutBox]:
        """Return the boxes of a part of the holdout."""
        return [box for box in self.truth.boxes if box.part == part]


def choose(trial: Trial) -> DeliveryRule:
    """Choose on the validation boxes how masks and objects are made."""
    folder, problem = trial.campaign.training(trial.arm), PROBLEMS[trial.dataset]
    validation = replace(trial.assignment, truth=_part(trial, "validation"))
    predicted = predict_holdout(trial.campaign, validation)
    folder.write(CALIBRATION, score_and_calibrate(validation, predicted)[1])
    chosen = DeliveryModel(trial.model, folder, trial.arm, frozenset({VOLUME}))
    rule = choose_rule(trial.campaign, chosen, with_objects=problem.objects == "numbered")
    if not trial.between:
        return rule
    boxes = read_validation(trial.campaign, chosen.model, _part(trial, "validation"), stored=False)
    numbered = [
        replace(box, objects=trial.objects(held)) for box, held in zip(boxes, trial.boxes("validation"), strict=True)
    ]
    rule, trials = choose_objects(numbered, rule, 1, lambda *_: None)
    return rule.model_copy(update={"trials": (*rule.trials, *trials)})


def _part(trial: Trial, part: str) -> HoldoutTruth:
    """Return the truth of one part of the holdout."""
    truth = holdout_truth(trial.campaign)
    truth.boxes = tuple(box for box in truth.boxes if box.part == part)
    return truth


def maps_of_boxes(trial: Trial, boxes: Sequence[HoldoutBox]) -> Iterator[tuple[HoldoutBox, Box, Maps]]:
    """Yield each box, the larger one that is read, and its maps, rounded to the dtype that maps are stored in."""
    record, dtype = trial.campaign.volumes.record(VOLUME), np.dtype(trial.campaign.config.inference.map_dtype)
    reach = zyx(int(np.ceil(MARGIN * min(record.spacing_um_zyx) / s)) for s in record.spacing_um_zyx)
    around = [box.box.expand(reach).clip(record.shape_zyx) for box in boxes]
    predicted = predict_boxes(InferenceJob.of(trial.campaign, trial.model, VOLUME), around)
    for box, read, maps in zip(boxes, around, predicted, strict=True):
        yield box, read, {name: values.astype(dtype).astype(np.float32) for name, values in maps.items()}


def score(trial: Trial, box: HoldoutBox, mask: npt.NDArray[np.uint8], made: Numbers | None) -> BoxScore:
    """Score a mask, and objects where there are any, as those of a model that is sure of it; both of the box alone."""
    context = trial.truth.context(box)
    around = np.zeros(context.shape_zyx, np.uint8)
    around[box.box.relative_to(context).slices] = mask
    sure = np.stack([around == 0, around == 1]).astype(np.float32)
    scored = score_box(trial.assignment, box, {PROBABILITY: sure}, np.zeros(mask.shape, np.float32))
    true = trial.objects(box)
    if made is None or true is None:
        return scored
    instances = compare_instances(renumber_objects(made), renumber_objects(true))
    return scored.model_copy(update={"details": (scored.details[0].model_copy(update={"instances": instances}),)})


def figures(trial: Trial, boxes: Sequence[BoxScore]) -> dict[str, float]:
    """Return the figures of all boxes together."""
    evaluation = Evaluation(
        generation=0, model_digest=trial.model.digest, validation=None, test=None, boxes=tuple(boxes)
    )
    plain = group_scores(evaluation, "test", trial.assignment.classes)[0].scores
    return {
        name: plain[name].value for name in (*OF_OBJECTS, *OF_MASKS) if name in plain and plain[name].value is not None
    }  # type: ignore[misc]


def measure(trial: Trial) -> dict[str, Any]:
    """Choose the rule, and score what is delivered and the connected pieces of the most likely class."""
    started = cpu_seconds()
    rule = choose(trial)
    spacing = trial.campaign.volumes.record(VOLUME).spacing_um_zyx
    today, delivered = [], []
    for box, read, maps in maps_of_boxes(trial, trial.boxes("test")):
        inner = box.box.relative_to(read).slices
        likely = most_likely(maps[PROBABILITY])[inner]
        pieces = None if rule.objects is None else connected_components(likely == (0 if trial.between else 1))
        today.append(score(trial, box, likely, pieces))
        mask = mask_of_box(maps[PROBABILITY], rule, spacing)
        made = None if rule.objects is None else objects_of_box(mask, maps, rule, spacing)[inner]
        delivered.append(score(trial, box, mask[inner], made))
    return {
        "boxes": len(today), "rule": rule.to_json(), "today": figures(trial, today),
        "delivered": figures(trial, delivered), "cpu_seconds": round(cpu_seconds() - started, 1),
    }  # fmt: skip


def words(rule: dict[str, Any]) -> str:
    """Say in a few words what was chosen."""
    parts = [f"T {rule['temperature']:.2f}", f"threshold {rule['threshold']:g}"]
    parts += [f"{name} {value:g}" for name, value in rule["cleanup"][0].items() if value]
    parts += [f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in (rule["objects"] or {}).items() if value]  # fmt: skip
    return ", ".join(parts)


def table(lines: Sequence[dict[str, Any]], names: Sequence[str], today: str) -> None:
    """Print the means over seeds of some figures, of today's result and of what is delivered."""
    print(f"| data set | model | seeds | {' | '.join(f'{n} {today} → delivered' for n in names)} | chosen |")
    print("|" + "---|" * (4 + len(names)))
    for dataset, arm in dict.fromkeys((line["dataset"], line["arm"]) for line in lines):
        of = sorted(
            (line for line in lines if (line["dataset"], line["arm"]) == (dataset, arm)), key=lambda x: x["seed"]
        )
        cells = []
        for name in names:
            pairs = [(x["today"][name], x["delivered"][name]) for x in of if name in x["today"] and name in x["delivered"]]  # fmt: skip
            cells.append(" → ".join(f"{value:.3f}" for value in np.mean(pairs, axis=0)) if pairs else "–")
        chosen = "; ".join(words(x["rule"]) for x in of)
        print(f"| {dataset} | {arm} | {', '.join(str(x['seed']) for x in of)} | {' | '.join(cells)} | {chosen} |")
    print()


def summary(lines: Sequence[dict[str, Any]]) -> None:
    """Print the tables."""
    with_objects = [line for line in lines if line["rule"]["objects"]]
    table(with_objects, OF_OBJECTS, "connected pieces")
    table([line for line in lines if not line["rule"]["objects"]], OF_MASKS, "most likely class")


def main() -> None:
    """Run what is missing, then print the tables."""
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("--summary", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--trained", action="store_true", help="train nothing")
    options = parser.parse_args()
    file = options.out / "deliveries.jsonl"
    if not options.summary:
        every = read_lines(options.out / "trainings.jsonl")
        if not options.trained:
            every = train_missing(options.data, options.out, options.datasets, options.seeds, options.seconds)
        for line in every:
            name = {key: line[key] for key in ("dataset", "seed", "arm")}
            if line["dataset"] not in options.datasets or line["seed"] not in options.seeds:
                continue
            if any({key: x[key] for key in name} == name for x in read_lines(file)):
                continue
            campaign = open_or_make(options.data, options.out, line["dataset"], line["seed"])
            model = ModelReference.model_validate(line["model"])
            found = measure(Trial(campaign, line["dataset"], line["arm"], model))
            append_line(file, name | found)
            print(json.dumps(name), found["cpu_seconds"], "s", found["today"], found["delivered"], flush=True)
    summary(read_lines(file))


if __name__ == "__main__":
    main()
