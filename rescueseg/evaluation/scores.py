"""What an evaluation writes down: box by box all that any score is computed from, and the scores of both parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from rescueseg.evaluation.instances import Instances
from rescueseg.evaluation.metrics import BinnedCounts, Counts
from rescueseg.evaluation.topology import Topology
from rescueseg.geometry import ZYX
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import BoxField, Part, Record
from rescueseg.storage import check_format

FORMAT = 5
"""Of an evaluation: counted up whenever the same maps and truth would be scored otherwise than before. Since 5 objects are those
that a delivery makes."""
FORMAT_WITHOUT_OBJECTS = 4
"""Of an evaluation whose truth numbers no objects: the last change was to how objects are made."""


class ClassDetail(Record):
    """One class in one holdout box, beyond its counts."""

    surface_dice: float | None
    hd95_um: float | None
    """None where the box says nothing; see `rescueseg.evaluation.surface.surface_scores`."""
    topology: Topology
    instances: Instances | None
    """None where the truth does not tell objects apart."""
    ceiling: Instances | None = None
    """What the connected pieces of a perfect mask get; None as `instances`, and in evaluations made before it was kept."""


BoxKey = tuple[str, ZYX, ZYX, str]
"""Volume, offset and shape of a box, and the digest of its truth."""


class BoxScore(Record):
    """The result on one holdout box."""

    volume_id: str
    box: BoxField
    part: Part
    stratum: str
    voxels: int
    """Voxels with known truth; 0 when all of the box is marked ignore."""
    errors: int
    """Voxels whose class is wrong."""
    counts: tuple[Counts, ...]
    """Per class 1…K."""
    dice: float | None
    """Mean over the classes that occur in truth or prediction; None when none does."""
    surface_dice: float | None
    hd95_um: float | None
    """Means over the classes that have one; None when none has."""
    uncertainty: float
    """Mean predictive entropy of the voxels with known truth, in nats."""
    truth_digest: str
    domain: str = ""
    share: float | None = None
    """Written by versions before 0.2; not used."""
    details: tuple[ClassDetail, ...] = ()
    """Per class 1…K; empty in evaluations of versions that did not store them."""
    calibration: BinnedCounts | None = None
    """Voxels by probability of the predicted class."""
    entropies: BinnedCounts | None = None
    """Voxels by predictive entropy in nats."""

    @property
    def foreground(self) -> int:
        """Voxels of the truth that belong to a class."""
        return sum(c.tp + c.fn for c in self.counts)

    @property
    def key(self) -> BoxKey:
        """What makes two scores comparable: the same box with the same truth."""
        return self.volume_id, self.box.offset_zyx, self.box.shape_zyx, self.truth_digest


class ClassScore(Record):
    """The result on one class in one part of the holdout; ratios from pooled counts, surfaces as means over boxes."""

    name: str
    counts: Counts
    dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None
    """None when neither truth nor prediction holds the class: nothing found where nothing is would flatter."""
    surface_dice: float | None
    hd95_um: float | None


class PartScore(Record):
    """The result on one part of the holdout; the ratios are means over the classes that occur."""

    part: Part
    boxes: int
    voxels: int
    dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None
    """None when no class occurs."""
    surface_dice: float | None
    hd95_um: float | None
    ece: float
    """Expected calibration error of the predicted class, 15 bins."""
    classes: tuple[ClassScore, ...]
    calibration: BinnedCounts
    """Voxels by probability of the predicted class."""
    uncertainty: BinnedCounts
    """Voxels by predictive entropy in nats."""
    boxes_with: dict[str, int] = Field(default_factory=dict)
    """By name of the score, in how many of the boxes it is defined; empty in older records."""

    def metrics(self) -> dict[str, float]:
        """Return the scores as flat names, those without a value left out."""
        names = ("dice", "iou", "precision", "recall", "surface_dice", "hd95_um", "ece")
        scores = {f"{self.part}_{name}": getattr(self, name) for name in names}
        scores[f"{self.part}_error_auroc"] = self.uncertainty.error_auroc()
        if len(self.classes) > 1:
            for score in self.classes:
                scores |= {f"{self.part}_{n}.{score.name}": getattr(score, n) for n in names[:6]}
        return {name: float(value) for name, value in scores.items() if value is not None}


class MadeObjects(Record):
    """How the objects were made that an evaluation scored: chosen on the validation boxes, as a delivery chooses."""

    class_index: int
    """Class 1…K whose objects they are; those of other classes are connected pieces."""
    rule: ObjectRule

    def sentence(self, classes: Sequence[str]) -> str:
        """Say for people what is scored.

        Parameters
        ----------
        classes : sequence of str
            Names of the classes 1…K.

        Examples
        --------
        >>> MadeObjects(class_index=1, rule=ObjectRule(source="rays", depth=0.35)).sentence(["nucleus"])
        'star-convex polyhedra, 0.35 probable'
        >>> MadeObjects(class_index=2, rule=ObjectRule(source="pieces")).sentence(["cell", "nucleus"])
        'connected pieces'
        >>> MadeObjects(class_index=2, rule=ObjectRule(source="rays", depth=0.35)).sentence(["cell", "nucleus"])
        'star-convex polyhedra, 0.35 probable, of nucleus; connected pieces of cell'
        """
        if len(classes) == 1 or self.rule == ObjectRule(source="pieces"):
            return self.rule.in_words
        others = ", ".join(name for c, name in enumerate(classes, start=1) if c != self.class_index)
        return f"{self.rule.in_words}, of {classes[self.class_index - 1]}; connected pieces of {others}"


class Evaluation(Record):
    """How one generation did on the holdout."""

    generation: int
    model_digest: str
    validation: PartScore | None
    """Chooses: the champion, thresholds, when to stop."""
    test: PartScore | None
    """Only reports."""
    boxes: tuple[BoxScore, ...]
    """All holdout boxes, in the order of the holdout."""
    format: int = 1
    """`format_of` its boxes in the version that made it."""
    objects: MadeObjects | None = None
    """None where they are the connected pieces of every class, and where the truth numbers none."""

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what evaluations of earlier versions did not have, where there is none, so that older digests stay."""
        return {key: value for key, value in handler(self).items() if key != "objects" or value is not None}

    @field_validator("format")
    @classmethod
    def _is_known(cls, value: int) -> int:
        """Refuse scores of a later version: evaluated anew, they would be overwritten with an earlier version's."""
        check_format(value, FORMAT, "the scores of a generation")
        return value

    @property
    def complete(self) -> bool:
        """Tell whether it was scored as today, and every box holds what the scores are computed from."""
        is_whole = all(b.details and b.calibration and b.entropies for b in self.boxes)
        return is_whole and self.format >= format_of(self.boxes)

    @property
    def why_anew(self) -> str:
        """Say why it is not read as it is, where an earlier version made it; empty where today's did."""
        if self.format >= format_of(self.boxes):
            return ""
        if self.format == FORMAT_WITHOUT_OBJECTS:
            return "scored anew: an earlier version took the connected pieces of the mask for objects, whatever the model says"
        return "scored anew: an earlier version counted objects, outlines and empty boxes otherwise"

    def part(self, part: Part) -> PartScore | None:
        """Return the scores of one part, None when the holdout has no box in it."""
        return self.validation if part == "validation" else self.test

    def boxes_with_truth(self, part: Part) -> list[BoxScore]:
        """Return the boxes of a part that hold voxels with known truth."""
        return [b for b in self.boxes if b.part == part and b.voxels]

    def worst(self, count: int, part: Part = "validation") -> list[BoxScore]:
        """Return the boxes of a part with the largest share of wrong voxels, worst first."""
        return sorted(self.boxes_with_truth(part), key=lambda b: (-b.errors / b.voxels, b.volume_id, b.box))[:count]

    def metrics(self) -> dict[str, float]:
        """Return all scores as flat names such as `test_dice`."""
        validation = self.validation.metrics() if self.validation else {}
        return validation | (self.test.metrics() if self.test else {})


def about_objects(evaluations: Mapping[str, Evaluation], classes: Sequence[str]) -> str:
    """Say in a sentence for people which objects evaluations score; empty where no truth numbers any.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By the name that is said; a single one is not named.
    classes : sequence of str
        Names of the classes 1…K.
    """
    pieces = MadeObjects(class_index=1, rule=ObjectRule(source="pieces"))
    numbered = {name: e for name, e in evaluations.items() if _numbers_objects(e.boxes)}
    said = {name: (e.objects or pieces).sentence(classes) for name, e in numbered.items()}
    if not said:
        return ""
    what = "; ".join(text if len(evaluations) == 1 else f"{name}: {text}" for name, text in said.items())
    if not any(e.objects for e in numbered.values()):
        return f"Objects: {what}"
    return (
        f"Objects: {what}. Chosen on the validation boxes as a delivery chooses, so that there the scores of objects are a "
        "little too good"
    )


def _numbers_objects(boxes: Iterable[BoxScore]) -> bool:
    """Tell whether the truth of a box numbers objects."""
    return any(detail.instances is not None for box in boxes for detail in box.details)


def format_of(boxes: Iterable[BoxScore]) -> int:
    """Return the format of an evaluation of these boxes: where no truth numbers objects, scores are what they were before.

    Examples
    --------
    >>> format_of([])
    4
    """
    return FORMAT if _numbers_objects(boxes) else FORMAT_WITHOUT_OBJECTS


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there, None when none is.

    Examples
    --------
    >>> mean_of_known([0.5, None, 1.0])
    0.75
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
