"""The rule of a delivery, chosen on the validation boxes: threshold, what is cleaned of which class, how objects are made.

One setting after the other is tried, and kept where it is better by more than chance (`Tried.is_better`): nothing is cleaned
for nothing. The
test boxes are never read, so that what they say of the delivered mask is true of other places, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import TRIAGE_SUMMARY, current_trainer
from rescueseg.delivery.object_choice import OBJECT_TRIALS, choose_objects
from rescueseg.delivery.records import CleanUp, DeliveryRule, Trial
from rescueseg.delivery.request import DeliveryModel, SegmentRequest
from rescueseg.delivery.uncleaned import Float32, classes_of_voxels
from rescueseg.delivery.validation import (
    StructureSize,
    Tried,
    ValidationBox,
    read_validation,
    structure_size,
    validation_digest,
)
from rescueseg.evaluation.calibration import CALIBRATION
from rescueseg.evaluation.metric_table import METRICS, Tables
from rescueseg.evaluation.metrics import count_voxels
from rescueseg.evaluation.pooled import pool
from rescueseg.evaluation.temperature import temper
from rescueseg.evaluation.topology import compare_topology
from rescueseg.evaluation.truth import truth_of_part
from rescueseg.geometry import Floats, Spacing
from rescueseg.labels import IGNORE
from rescueseg.models.predictor import PROBABILITY
from rescueseg.postprocessing.mask_steps import clean_mask
from rescueseg.progress import Progress

THRESHOLDS = tuple(round(0.2 + 0.05 * n, 2) for n in range(13))
CLEANING_TRIALS = 30
"""At most so many clean-up settings are tried; of many classes each gets fewer."""
_MEASURES = {metric.name: metric for metric in METRICS if metric.name in ("dice", "cldice")}
Mask = npt.NDArray[np.uint8]
_PROGRESS = "settings tried on the validation boxes"


def choose_rule(
    campaign: Campaign,
    chosen: DeliveryModel,
    *,
    with_objects: bool = False,
    boundary_class: str = "",
    progress: Progress | None = None,
) -> DeliveryRule:
    """Choose on the validation boxes how a model's maps become masks and objects.

    The temperature is the one that the model's evaluation fitted. The threshold is that with the best mean Dice over the
    classes; then for one class after the other each step of the clean-up, with sizes in multiples of what the class's
    structures measure in truth. Where the campaign's problem is thin structures that must not break, the score is the mean
    of Dice and clDice. Only the largest piece is kept where boxes are at least half of their volume: nobody knows of smaller
    ones whether the volume holds a single piece. Objects are chosen by panoptic quality.

    Parameters
    ----------
    campaign : Campaign
        The campaign; without a validation box that has a truth, the rule is the plain one and nothing is tried.
    chosen : DeliveryModel
        The model.
    with_objects : bool
        Whether objects are made.
    boundary_class : str
        Class that is the boundary between objects.
    progress : callable, optional
        Called with what is counted, settings tried, and how many there are at most.

    Returns
    -------
    DeliveryRule
        With all settings that were tried, at most 65: the same for the same model, boxes and truth.

    Raises
    ------
    RescuesegError
        If a file of maps or truth is damaged, or the model cannot be loaded.
    """
    calibration = chosen.folder.read(CALIBRATION)
    fitted = calibration is not None and calibration.model_digest == chosen.model.digest
    truth = truth_of_part(campaign, "validation")
    boxes = read_validation(campaign, chosen.model, truth, stored=not chosen.training)
    plain = DeliveryRule(
        model_digest=chosen.model.digest,
        truth_digest=validation_digest(truth) if boxes else "",
        temperature=calibration.temperature if calibration is not None and fitted else 1.0,
        cleanup=(CleanUp(),) * campaign.config.n_classes,
    )
    search = _Search(boxes, plain, is_thin(campaign), progress or _silent)
    if boxes:
        search.choose_threshold()
        search.choose_cleanup(tuple(campaign.config.classes))
    if not with_objects:
        return search.result()
    boundary = campaign.config.classes.index(boundary_class) + 1 if boundary_class else None
    rule, trials = choose_objects(boxes, search.result(), boundary, search.report_box)
    return rule.model_copy(update={"trials": (*rule.trials, *trials)})


def is_current(rule: DeliveryRule, campaign: Campaign, chosen: DeliveryModel) -> bool:
    """Tell whether a rule was chosen for this model, on the validation boxes and the truth of today."""
    truth = validation_digest(truth_of_part(campaign, "validation"))
    return (rule.model_digest, rule.truth_digest) == (chosen.model.digest, truth)


def makes_what_is_asked(rule: DeliveryRule, campaign: Campaign, request: SegmentRequest) -> bool:
    """Tell whether a rule makes the objects that are asked for, or none where none are; no voxel is read."""
    if rule.objects is None or not request.makes_objects(campaign):
        return rule.objects is None and not request.makes_objects(campaign)
    if not request.boundary_class:
        return rule.objects.source != "boundary"
    boundary = campaign.config.classes.index(request.boundary_class) + 1
    return rule.objects.source == "boundary" and rule.object_class == boundary


def is_thin(campaign: Campaign) -> bool:
    """Tell whether a campaign is about thin structures that must not break: networks and fibres, no membranes."""
    triage = campaign.records.read(TRIAGE_SUMMARY)
    topology = triage is not None and triage.problem == "topology"
    sheets = triage is not None and triage.structure == "membrane"
    return (topology or current_trainer(campaign) == "monai_unet_topology") and not sheets


@dataclass
class _Search:
    """Tries settings on the boxes, and remembers them."""

    boxes: list[ValidationBox]
    rule: DeliveryRule
    thin: bool
    progress: Progress
    trials: list[Trial] = field(default_factory=list)
    tried: int = 0

    def __post_init__(self) -> None:
        self._tempered = [temper(box.maps[PROBABILITY], self.rule.temperature) for box in self.boxes]
        self._tried = Tried(-math.inf, np.full(len(self.boxes), -math.inf))

    def result(self) -> DeliveryRule:
        return self.rule.model_copy(update={"trials": tuple(self.trials)})

    def report(self) -> None:
        """Count a setting."""
        self.tried += 1
        self.progress(_PROGRESS, self.tried, len(THRESHOLDS) + CLEANING_TRIALS + OBJECT_TRIALS)

    def report_box(self, done: int, total: int) -> None:
        """Count a setting once it was tried on all boxes."""
        if done == total:
            self.report()

    def choose_threshold(self) -> None:
        scores = {}
        for threshold in THRESHOLDS:
            scores[threshold] = self._score_of(self.rule.model_copy(update={"threshold": threshold}))
        usual = self.rule.threshold
        better = [t for t in THRESHOLDS if scores[t].is_better(scores[usual])]
        threshold = max(better, key=lambda t: (scores[t].score, -abs(t - usual), t), default=usual)
        self.rule, self._tried = self.rule.model_copy(update={"threshold": threshold}), scores[threshold]
        self.trials += [
            Trial(what=f"threshold {t:.2f}", score=round(tried.score, 6), chosen=t == threshold)
            for t, tried in scores.items()
        ]

    def choose_cleanup(self, classes: Sequence[str]) -> None:
        """Try one step after the other, each for all classes, so that none has used up the trials before the last."""
        sizes = [structure_size(self.boxes, c) for c in range(1, len(classes) + 1)]
        finest = min((box.spacing_um_zyx for box in self.boxes), key=math.prod)
        whole = all(box.whole for box in self.boxes)
        left = CLEANING_TRIALS
        for settings_of in _STEPS:
            for index, size in enumerate(sizes):
                settings = [] if size is None else settings_of(size, finest, self.rule.threshold, whole)
                self._choose_step(index, classes[index], settings[: max(0, left)])
                left -= len(settings)

    def _choose_step(self, index: int, name: str, settings: Sequence[_Setting]) -> None:
        """Keep the best setting of a step of one class, if it is better enough than leaving the step out."""
        scores = []
        for setting in settings:
            cleanup = list(self.rule.cleanup)
            cleanup[index] = cleanup[index].model_copy(update=setting.update)
            rule = self.rule.model_copy(update={"cleanup": tuple(cleanup)})
            scores.append((self._score_of(rule), rule))
        better = [i for i, (tried, _) in enumerate(scores) if tried.is_better(self._tried)]
        best = max(better, key=lambda i: (scores[i][0].score, -i), default=None)
        for i, (setting, (tried, rule)) in enumerate(zip(settings, scores, strict=True)):
            self.trials.append(Trial(what=f"{name}: {setting.what}", score=round(tried.score, 6), chosen=i == best))
            if i == best:
                self.rule = rule
        if best is not None:
            self._tried = scores[best][0]

    def _score_of(self, rule: DeliveryRule) -> Tried:
        """Return the mean over classes of Dice, or of Dice and clDice."""
        rows: dict[str, list[Any]] = {"counts": [], "skeleton": []}
        for box, tempered in zip(self.boxes, self._tempered, strict=True):
            mask = _clean(tempered, rule, box.spacing_um_zyx)[box.inner]
            counts = count_voxels(mask, box.truth, len(rule.cleanup))
            rows["counts"].append([(c.tp, c.fp, c.fn) for c in counts])
            if self.thin:
                rows["skeleton"].append([_skeleton_row(mask, box, c) for c in range(1, len(counts) + 1)])
        self.report()
        tables: Tables = {name: np.array(table, np.float64) for name, table in rows.items() if table}
        weights = 1.0 - np.eye(len(self.boxes))
        return Tried(self._mean(tables, np.ones(len(self.boxes))), np.array([self._mean(tables, w) for w in weights]))

    def _mean(self, tables: Tables, weights: Floats) -> float:
        """Return the score of boxes that are weighted."""
        pooled = pool(tables, weights)
        names = ("dice", "cldice") if self.thin else ("dice",)
        values = [_MEASURES[name].value(pooled) for name in names]
        return float(np.mean([1.0 if value is None else value for value in values]))


def _clean(tempered: Float32, rule: DeliveryRule, spacing: Spacing) -> Mask:
    return clean_mask(classes_of_voxels(tempered, rule.threshold), tempered, spacing, rule.cleanup)


def _skeleton_row(mask: Mask, box: ValidationBox, c: int) -> tuple[int, ...]:
    t = compare_topology((mask == c) & (box.truth != IGNORE), box.truth == c)
    return t.found_skeleton, t.found_inside, t.true_skeleton, t.true_inside


def _silent(_what: str, _done: int, _total: int) -> None:
    """Report nothing."""


# what is tried --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Setting:
    what: str
    update: dict[str, float | bool]


_StepSettings = Callable[[StructureSize, Spacing, float, bool], list[_Setting]]


def _smallest(size: StructureSize, spacing: Spacing, _threshold: float, _whole: bool) -> list[_Setting]:
    """Pieces below a ball of half the thickness, of the thickness, or below a part of the usual piece."""
    ball = math.pi / 6 * size.thickness_um**3
    volumes = [
        v for v in _rounded(ball / 8, ball / 2, ball, size.piece_um3 / 8, size.piece_um3 / 3) if _seen(v, spacing)
    ]
    return [_Setting(f"pieces below {v:g} µm³ dropped", {"smallest_um3": v}) for v in volumes]


def _cavities(size: StructureSize, spacing: Spacing, _threshold: float, _whole: bool) -> list[_Setting]:
    ball = math.pi / 6 * size.thickness_um**3
    volumes = [v for v in _rounded(ball / 8, ball, 8 * ball) if _seen(v, spacing)]
    return [_Setting(f"cavities up to {v:g} µm³ filled", {"cavities_um3": v}) for v in volumes]


def _bridges(size: StructureSize, spacing: Spacing, threshold: float, _whole: bool) -> list[_Setting]:
    """Gaps as long as the structure is thick, or twice so; half or a quarter of the threshold is probable enough."""
    lengths = [v for v in _rounded(size.thickness_um, 2 * size.thickness_um) if v >= 2 * min(spacing)]
    return [
        _Setting(
            f"gaps up to {v:g} µm bridged where the probability reaches {p:g}",
            {"bridge_um": v, "bridge_probability": p},
        )
        for v in lengths
        for p in _rounded(threshold / 4, threshold / 2)
    ]


def _spurs(size: StructureSize, spacing: Spacing, _threshold: float, _whole: bool) -> list[_Setting]:
    widths = [v for v in _rounded(size.thickness_um / 4, size.thickness_um / 2) if v > 2 * min(spacing)]
    return [_Setting(f"protrusions thinner than {v:g} µm taken off", {"spurs_um": v}) for v in widths]


def _largest(_size: StructureSize, _spacing: Spacing, _threshold: float, whole: bool) -> list[_Setting]:
    return [_Setting("only the largest piece kept", {"largest": True})] if whole else []


_STEPS: tuple[_StepSettings, ...] = (_smallest, _cavities, _bridges, _spurs, _largest)


def _rounded(*values: float) -> list[float]:
    """Return values to two digits, sorted, each once."""
    return sorted({float(f"{value:.2g}") for value in values})


def _seen(volume_um3: float, spacing: Spacing) -> bool:
    """Tell whether a volume is more than a voxel."""
    return volume_um3 > math.prod(spacing)
