"""The calibration of a generation's probabilities: its error, and the temperature that corrects it.

Maps hold the mean probability of the members as it is. Its logarithm, divided by a temperature and normalised again, has
the same most probable class; the temperature is the one that minimises the negative log-likelihood of the truth on the
validation boxes (Guo et al. 2017, arXiv:1706.04599). It is fitted once, stored with the generation and its model in
MLflow, and fitted anew when model or truth have changed, or when an earlier version fitted it otherwise; the test boxes only report what it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from rescueseg.campaign import RecordFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.evaluation.holdout_scores import Assignment, BoxMaps, score_boxes
from rescueseg.evaluation.metrics import CALIBRATION_BINS, Bins
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.temperature import LEAST_PROBABILITY, temper
from rescueseg.evaluation.truth import PARTS, Labels
from rescueseg.labels import IGNORE, most_likely
from rescueseg.models.predictor import PROBABILITY
from rescueseg.progress import CountProgress
from rescueseg.records import HoldoutBox, Part, Record

MOST_VOXELS = 2_000_000
"""Of a part, that the temperature is fitted or measured on; of more, every so many."""
_RANGE = (0.1, 10.0)

Float32 = npt.NDArray[np.float32]


class PartCalibration(Record):
    """Calibration on one part of the holdout, before and after the temperature."""

    part: Part
    voxels: int
    nll: tuple[float, float]
    """Mean negative log-likelihood of the true class, in nats."""
    ece: tuple[float, float]
    """Expected calibration error of the predicted class, 15 bins."""


class Calibration(Record):
    """The temperature of a generation, and what it does."""

    generation: int
    model_digest: str
    truth_digest: str = ""
    """Of the holdout boxes and their truth; empty in files of versions that did not write it, which are fitted anew."""
    temperature: float
    """1 leaves the probabilities as they are, more makes them less sure; 1 where no validation voxel has a known truth."""
    validation: PartCalibration | None
    test: PartCalibration | None
    least_probability: float = 1e-6
    """`LEAST_PROBABILITY` when it was fitted; the default is that of versions that did not write it."""

    def fits(self, assignment: Assignment) -> bool:
        """Tell whether it was fitted for this model, these boxes and this truth, as it would be today."""
        return (self.model_digest, self.truth_digest, self.least_probability) == (
            assignment.model.digest,
            assignment.truth.digest_of_all,
            LEAST_PROBABILITY,
        )

    def metrics(self) -> dict[str, float]:
        """Return the temperature and the tempered scores as flat names such as `test_ece_tempered`."""
        scores = {"temperature": self.temperature}
        for part in (self.validation, self.test):
            if part is not None:
                scores |= {f"{part.part}_nll_tempered": part.nll[1], f"{part.part}_ece_tempered": part.ece[1]}
        return scores

    def sentence(self) -> str:
        """Say for people what the temperature does."""
        parts = [p for p in (self.validation, self.test) if p is not None]
        changes = ", ".join(f"{p.part} calibration error {p.ece[0]:.3f} → {p.ece[1]:.3f}" for p in parts)
        return f"Temperature {self.temperature:.2f}, fitted on the validation boxes: {changes}"


CALIBRATION = RecordFile("calibration", Calibration)


def negative_log_likelihood(probabilities: Float32, truth: npt.NDArray[np.uint8]) -> float:
    """Return the mean of −ln p of the true class; probabilities (K + 1, n), truth (n,)."""
    likelihood = np.take_along_axis(probabilities, truth[None].astype(np.intp), axis=0)
    return float(-np.log(np.maximum(likelihood, np.float32(LEAST_PROBABILITY))).mean(dtype=np.float64))


def fit_temperature(probabilities: Float32, truth: npt.NDArray[np.uint8]) -> float:
    """Return the temperature, between 0.1 and 10, with the smallest negative log-likelihood.

    Parameters
    ----------
    probabilities : ndarray of float32, shape (K + 1, n)
        Of n voxels; at least one.
    truth : ndarray of uint8, shape (n,)
        Their classes, 0…K.
    """
    low, high = np.log(_RANGE)
    optimum = minimize_scalar(
        lambda t: negative_log_likelihood(temper(probabilities, float(np.exp(t))), truth),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return float(np.exp(optimum.x))


def score_and_calibrate(
    assignment: Assignment, maps: Iterable[BoxMaps], progress: CountProgress | None = None
) -> tuple[Evaluation, Calibration]:
    """Score boxes and fit the temperature in one pass over their maps; parameters as `score_boxes`."""
    sample = VoxelSample(assignment)

    def sampled() -> Iterator[BoxMaps]:
        for box, of_box, entropy in maps:
            inner = box.box.relative_to(assignment.region(box))
            sample.add(box, of_box[PROBABILITY][(slice(None), *inner.slices)])
            yield box, of_box, entropy

    evaluation = score_boxes(assignment, sampled(), progress)
    return evaluation, sample.calibration()


def keep_calibration(folder: RecordFolder, assignment: Assignment, fitted: Calibration) -> Calibration:
    """Return the calibration stored in a folder where model and truth are still the same, else store the new one."""
    earlier = folder.read(CALIBRATION)
    if earlier is not None and earlier.fits(assignment):
        return earlier
    folder.write(CALIBRATION, fitted)
    return fitted


class VoxelSample:
    """Voxels of the boxes to be evaluated, at most `MOST_VOXELS` of each part, to fit a temperature on and to measure it.

    Parameters
    ----------
    assignment : Assignment
        Model, boxes and truth.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        totals = {part: sum(b.box.size for b in assignment.boxes if b.part == part) for part in PARTS}
        self._steps = {part: -(-total // MOST_VOXELS) or 1 for part, total in totals.items()}
        self._voxels: dict[Part, list[tuple[Float32, Labels]]] = {part: [] for part in PARTS}

    def add(self, box: HoldoutBox, probability: Float32) -> None:
        """Take every so many of a box's voxels that have a truth; probability (K + 1, z, y, x)."""
        truth = self._assignment.truth.labels(box)
        has_truth, step = truth != IGNORE, self._steps[box.part]
        if has_truth.any():
            self._voxels[box.part].append((probability[:, has_truth][:, ::step], truth[has_truth][::step]))

    def calibration(self) -> Calibration:
        """Return the temperature that fits the validation voxels best, and what it does to both parts."""
        voxels_of_part = {
            part: (np.concatenate([p for p, _ in pairs], axis=1), np.concatenate([t for _, t in pairs]))
            for part, pairs in self._voxels.items()
            if pairs
        }
        temperature = fit_temperature(*voxels_of_part["validation"]) if "validation" in voxels_of_part else 1.0
        parts = {part: _measure(part, *voxels, temperature) for part, voxels in voxels_of_part.items()}
        return Calibration(
            generation=self._assignment.model.generation,
            model_digest=self._assignment.model.digest,
            truth_digest=self._assignment.truth.digest_of_all,
            temperature=temperature,
            validation=parts.get("validation"),
            test=parts.get("test"),
            least_probability=LEAST_PROBABILITY,
        )


def _measure(part: Part, probability: Float32, truth: Labels, temperature: float) -> PartCalibration:
    nll, ece = [], []
    for values in (probability, temper(probability, temperature)):
        bins = Bins(CALIBRATION_BINS, 1.0)
        bins.add(values.max(axis=0), most_likely(values) == truth)
        nll.append(negative_log_likelihood(values, truth))
        ece.append(bins.result().calibration_error())
    return PartCalibration(part=part, voxels=len(truth), nll=(nll[0], nll[1]), ece=(ece[0], ece[1]))
