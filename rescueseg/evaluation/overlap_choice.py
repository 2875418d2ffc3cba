"""The least overlap of windows that costs no Dice on the validation boxes.

Windows that overlap by a quarter compute each voxel of a large volume 2.4 times, by an eighth 1.5 times. What the overlap is
for, that no voxel depends on the border of a single window, matters to some models and not to others; so it is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.config import USUAL_OVERLAP
from rescueseg.evaluation.metrics import Counts, count_voxels, mean_over_classes
from rescueseg.evaluation.truth import HoldoutTruth, Labels, truth_of_part
from rescueseg.geometry import Box
from rescueseg.inference.engine import InferenceJob, make_plan, predict_boxes
from rescueseg.inference.maps import InferencePlan, VolumeMaps
from rescueseg.inference.overlap import CHOSEN_OVERLAP, ChosenOverlap, OverlapTrial
from rescueseg.inference.windows import WindowGrid
from rescueseg.labels import IGNORE, most_likely
from rescueseg.models.predictor import EAGER, PROBABILITY, PredictorFactory
from rescueseg.models.registry import load_predictor
from rescueseg.progress import CountProgress
from rescueseg.records import ModelReference
from rescueseg.services.dask_blocks import call

if TYPE_CHECKING:
    from distributed import Client

SMALLER = (0.0625, 0.125)
"""Overlaps that are tried, the least first."""
TOLERANCE = 0.002
"""By how much Dice may fall."""
_WORTH = 2
"""How many times the windows of the trials must be saved."""


def choose_overlap(
    campaign: Campaign,
    model: ModelReference,
    client: Client | None = None,
    progress: CountProgress | None = None,
    load: PredictorFactory = load_predictor,
) -> None:
    """Choose the overlap of a generation's model, and write it beside the model; nothing happens where that was done.

    Nothing is chosen either where the settings name an overlap. The usual one stays where trials would cost more than half
    of what they could save, where the validation boxes hold nothing, and where the model says more than classes, which Dice
    does not judge. Test boxes are not read.

    Parameters
    ----------
    campaign : Campaign
        With the generation's model.
    model : ModelReference
        The model.
    client : distributed.Client, optional
        Where the boxes are predicted; in this process when omitted.
    progress : callable, optional
        Called with (overlaps tried, overlaps in all).
    load : callable
        Returns the predictor; see `rescueseg.inference.engine.InferenceJob`.

    Raises
    ------
    InferenceError
        If the model does not fit the volumes.
    """
    folder = campaign.generation(model.generation)
    if campaign.config.inference.overlap is not None:
        return
    chosen = folder.read(CHOSEN_OVERLAP)
    if chosen is None or chosen.model_digest != model.digest:
        chosen = _begun(campaign, model) or _choose(_Trials.of(campaign, model, client, load), progress)
        folder.write(CHOSEN_OVERLAP, chosen)


def _begun(campaign: Campaign, model: ModelReference) -> ChosenOverlap | None:
    """Return the overlap of maps that were begun without a choice, None where there are none."""
    for volume_id in campaign.volumes.ids():
        plan = VolumeMaps(campaign.generation(model.generation), volume_id).plan()
        if plan is not None and plan.model.digest == model.digest and plan.inference.overlap is not None:
            return ChosenOverlap(model_digest=model.digest, overlap=plan.inference.overlap, reason="maps were begun so")
    return None


def _choose(trials: _Trials, progress: CountProgress | None) -> ChosenOverlap:
    """Try the overlaps, the least first, until one holds."""
    overlaps = (USUAL_OVERLAP, *SMALLER)
    rows = [OverlapTrial(overlap=overlap, windows=trials.windows(overlap)) for overlap in overlaps]
    chosen, reason = rows[0], trials.why_not(rows)
    for index, row in enumerate(rows if not reason else ()):
        if progress is not None:
            progress(index, len(rows))
        rows[index] = row.model_copy(update={"dice": trials.dice(row.overlap)})
        first, dice = rows[0].dice, rows[index].dice
        if index and first is not None and dice is not None and dice >= first - TOLERANCE:
            chosen = rows[index]
            reason = (
                f"{chosen.windows} windows instead of {rows[0].windows}, validation Dice {dice:.4f} and {first:.4f}"
            )
            break
    return ChosenOverlap(
        model_digest=trials.model.digest,
        overlap=chosen.overlap,
        reason=reason or f"with less, validation Dice falls by more than {TOLERANCE}",
        trials=tuple(rows),
    )


@dataclass(frozen=True)
class _Trials:
    """A model, the volumes, and the validation boxes with something in them."""

    model: ModelReference
    jobs: Mapping[str, InferenceJob]
    plans: Mapping[str, InferencePlan]
    truth: HoldoutTruth
    client: Client | None

    @classmethod
    def of(cls, campaign: Campaign, model: ModelReference, client: Client | None, load: PredictorFactory) -> _Trials:
        jobs = {
            volume.volume_id: _eager(
                replace(InferenceJob.of(campaign, model, volume.volume_id), load=load), USUAL_OVERLAP
            )
            for volume in campaign.volumes.records()
        }
        truth = truth_of_part(campaign, "validation")
        known = [box for box in truth.boxes if _holds_something(truth.labels(box))]
        plans = {volume_id: call(client, make_plan, job) for volume_id, job in jobs.items()}
        return cls(model, jobs, plans, truth.only(known), client)

    def windows(self, overlap: float) -> int:
        """Return how many windows all volumes take."""
        return sum(len(self._grid(volume_id, overlap)) for volume_id in self.plans)

    def why_not(self, rows: Sequence[OverlapTrial]) -> str:
        """Say why nothing is tried; empty where it is worth it."""
        if not self.truth.boxes:
            return "the validation boxes hold nothing"
        if any(plan.outputs for plan in self.plans.values()):
            return "the model says more than classes"
        needed = sum(
            len(list(self._grid(box.volume_id, row.overlap).touching(box.box)))
            for row in rows
            for box in self.truth.boxes
        )
        saved = max(rows[0].windows - row.windows for row in rows)
        return "" if saved >= _WORTH * needed else f"trials take {needed} windows, and could save {saved}"

    def _grid(self, volume_id: str, overlap: float) -> WindowGrid:
        plan = self.plans[volume_id]
        return WindowGrid(plan.shape_zyx, plan.window_zyx, overlap)

    def dice(self, overlap: float) -> float | None:
        """Return the Dice of the boxes, as an evaluation would give it; None where no class occurs."""
        counts: list[tuple[Counts, ...]] = []
        for volume_id, group in itertools.groupby(self.truth.boxes, key=lambda box: box.volume_id):
            boxes, job = list(group), _eager(self.jobs[volume_id], overlap)
            masks = call(self.client, predict_masks, job, [box.box for box in boxes])
            counts += [
                count_voxels(mask, self.truth.labels(box), len(job.classes))
                for box, mask in zip(boxes, masks, strict=True)
            ]
        pooled = [sum(of_class, Counts()) for of_class in zip(*counts, strict=True)]
        return mean_over_classes(pooled, "dice")


def _holds_something(labels: Labels) -> bool:
    return bool(((labels > 0) & (labels != IGNORE)).any())


def _eager(job: InferenceJob, overlap: float) -> InferenceJob:
    """Return the job with an overlap; a few boxes are not worth a choice among ways of the forward pass."""
    return replace(job, inference=job.inference.model_copy(update={"overlap": overlap, "forward": EAGER}))


def predict_masks(job: InferenceJob, boxes: Sequence[Box]) -> list[npt.NDArray[np.uint8]]:
    """Return the most likely classes in some boxes of a volume, uint8 zyx; called on a worker."""
    return [most_likely(maps[PROBABILITY]) for maps in predict_boxes(job, boxes)]
