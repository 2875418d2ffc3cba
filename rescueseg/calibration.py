"""How far a generation's probabilities can be trusted, and the temperature that mends them.

Maps hold the mean probability of the members as it is. Its logarithm, divided by a temperature and normalised again, has
the same most probable class; the temperature is the one that minimises the negative log-likelihood of the truth on the
validation boxes (Guo et al. 2017, arXiv:1706.04599). It is found once and kept with the generation; the test boxes only
report what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from rescueseg.campaign import Campaign
from rescueseg.evaluation.run import check_evaluation, read_maps
from rescueseg.metrics import CALIBRATION_BINS, IGNORE, Bins
from rescueseg.records import Part, Record

STAGE = "calibration"
MOST_VOXELS = 2_000_000
"""Of the validation boxes, that the temperature is fitted on; of more, every so many."""
_RANGE = (0.1, 10.0)
_TINY = 1e-6

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
    temperature: float
    """1 leaves the probabilities as they are, more makes them less sure; 1 where no validation voxel has a known truth."""
    validation: PartCalibration | None
    test: PartCalibration | None

    def metrics(self) -> dict[str, float]:
        """Return the temperature and the tempered scores as flat names such as `test_ece_tempered`."""
        found = {"temperature": self.temperature}
        for part in (self.validation, self.test):
            if part is not None:
                found |= {f"{part.part}_nll_tempered": part.nll[1], f"{part.part}_ece_tempered": part.ece[1]}
        return found

    def sentence(self) -> str:
        """Say for people what the temperature does."""
        shown = [p for p in (self.validation, self.test) if p is not None]
        changes = ", ".join(f"{p.part} calibration error {p.ece[0]:.3f} → {p.ece[1]:.3f}" for p in shown)
        return f"Temperature {self.temperature:.2f}, fitted on the validation boxes: {changes}"


def temper(probabilities: Float32, temperature: float) -> Float32:
    """Return ``p^(1/T)``, normalised.

    Parameters
    ----------
    probabilities : ndarray of float32, shape (K + 1, …)
        Class probabilities along the first axis.
    temperature : float
        Above 0.
    """
    logs = np.log(np.maximum(probabilities, np.float32(_TINY))) / np.float32(temperature)
    logs -= logs.max(axis=0)
    np.exp(logs, out=logs)
    tempered: Float32 = logs / logs.sum(axis=0)
    return tempered


def negative_log_likelihood(probabilities: Float32, truth: npt.NDArray[np.uint8]) -> float:
    """Return the mean of −ln p of the true class; probabilities (K + 1, n), truth (n,)."""
    likelihood = np.take_along_axis(probabilities, truth[None].astype(np.intp), axis=0)
    return float(-np.log(np.maximum(likelihood, np.float32(_TINY))).mean(dtype=np.float64))


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
    found = minimize_scalar(
        lambda t: negative_log_likelihood(temper(probabilities, float(np.exp(t))), truth),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return float(np.exp(found.x))


def calibrate_generation(
    campaign: Campaign, generation: int, progress: Callable[[int, int], None] | None = None
) -> Calibration:
    """Fit the temperature on the validation boxes and measure it on both parts.

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout and the generation's maps; nothing is written.
    generation : int
        Which one.
    progress : callable, optional
        Called with (boxes done, boxes in all).

    Raises
    ------
    RescuesegError
        As `rescueseg.evaluation.check_evaluation`.
    """
    assignment = check_evaluation(campaign, generation)
    total = sum(box.box.size for box in assignment.boxes if box.part == "validation")
    step = -(-total // MOST_VOXELS) or 1

    def voxels(part: Part) -> Iterator[tuple[Float32, npt.NDArray[np.uint8]]]:
        for box in (b for b in assignment.boxes if b.part == part):
            probability, _ = read_maps(campaign, generation, box)
            truth = assignment.read_truth(box)
            known = truth != IGNORE
            yield probability[:, known], truth[known]

    sample = [(p[:, ::step], t[::step]) for p, t in voxels("validation")]
    temperature = 1.0
    if any(len(truth) for _, truth in sample):
        temperature = fit_temperature(
            np.concatenate([p for p, _ in sample], axis=1), np.concatenate([t for _, t in sample])
        )
    del sample
    done, parts = 0, {}
    for part in ("validation", "test"):
        measured = _Measured()
        for probability, truth in voxels(part):
            measured.add(probability, truth, temperature)
            done += 1
            if progress is not None:
                progress(done, len(assignment.boxes))
        parts[part] = measured.result(part)
    return Calibration(generation=generation, model_digest=assignment.model_digest, temperature=temperature, **parts)


def kept_calibration(campaign: Campaign, generation: int) -> Calibration | None:
    """Return the calibration that is kept with a generation, None where there is none."""
    data: Any = campaign.stage_result(generation, STAGE)
    return None if data is None else Calibration.model_validate(data)


class _Measured:
    """Sums over boxes, before and after the temperature."""

    def __init__(self) -> None:
        self.voxels = 0
        self.nll = [0.0, 0.0]
        self.bins = [Bins(CALIBRATION_BINS, 1.0) for _ in range(2)]

    def add(self, probability: Float32, truth: npt.NDArray[np.uint8], temperature: float) -> None:
        if not len(truth):
            return
        self.voxels += len(truth)
        for i, values in enumerate((probability, temper(probability, temperature))):
            self.nll[i] += negative_log_likelihood(values, truth) * len(truth)
            self.bins[i].add(values.max(axis=0), values.argmax(axis=0) == truth)

    def result(self, part: Part) -> PartCalibration | None:
        if not self.voxels:
            return None
        nll, ece = [v / self.voxels for v in self.nll], [b.result().calibration_error() for b in self.bins]
        return PartCalibration(part=part, voxels=self.voxels, nll=(nll[0], nll[1]), ece=(ece[0], ece[1]))
