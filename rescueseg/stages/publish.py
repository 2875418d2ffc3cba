"""The last stage of a generation: MLflow and the report page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import TRIAGE, TRIAGE_PICTURE
from rescueseg.campaign.outside_trainings import REQUEST, OutsideResult, OutsideTraining
from rescueseg.campaign.stage_results import EFFORT, GenerationEffort
from rescueseg.errors import CampaignError
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.models.files import checkpoints
from rescueseg.models.trainer import ignore_progress
from rescueseg.progress import StepProgress
from rescueseg.reports import campaign_report, generation_table
from rescueseg.reports.generation_table import REPORT, Row
from rescueseg.stages.stage import run_stage
from rescueseg.stages.train_outside import run
from rescueseg.storage import Storage, canonical_json
from rescueseg.tracking.tracker import Tracker


def publish(campaign: Campaign, generation: int) -> Row:
    """Mirror a judged generation in MLflow and write the report page; a rerun adds nothing twice.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    generation : int
        Its tickets stage must be done.

    Returns
    -------
    Row
        The generation's row of the table.

    Raises
    ------
    ServiceError
        If MLflow cannot be reached; the stage can be run again.
    """
    return run_stage(campaign.generation(generation), REPORT, lambda: _publish(campaign, generation))


def _publish(campaign: Campaign, generation: int) -> Row:
    folder = campaign.generation(generation)
    row, judgement = generation_table.row(folder), folder.require(EVALUATION)
    snapshot, model = folder.snapshot(), folder.model()
    if snapshot is None or model is None:
        raise CampaignError(
            "its snapshot or model is gone", where=f"generation {generation}", todo="Restore the campaign's folder"
        )
    tracker = Tracker(campaign)
    run = tracker.runs.generation_run(generation)
    tracker.log_config(run)
    tracker.log_snapshot(generation, snapshot)
    registered = tracker.register_model(generation, model)
    effort = folder.require(EFFORT)
    tracker.log_judgement(judgement, registered, _extra(row) | effort_metrics(effort))
    report = campaign_report.write_report(campaign, [("MLflow", tracker.runs.url)])
    page = campaign.storage.read_bytes(report.path)
    files = {"report.html": page, "effort.json": canonical_json(effort.to_json()).encode()}
    figures = {f"figures/{name}": data for name, data in report.figures.items()}
    tracker.log_files(run, {**files, **figures, **triage_files(campaign.storage)})
    tracker.runs.finish_generation(generation)
    return row


def triage_files(storage: Storage) -> dict[str, bytes]:
    """Return the files of the triage by their path in MLflow; empty before a triage."""
    names = (TRIAGE.path(), TRIAGE_PICTURE.path())
    return {f"triage/{n}": storage.read_bytes(n) for n in names if storage.exists(n)}


def effort_metrics(effort: GenerationEffort) -> dict[str, float]:
    """Return the effort of the labels new in a generation as metrics for MLflow: in all, and per person.

    MLflow allows no other signs in a name than letters, digits, spaces and ``_-./``; others become ``_``.

    Examples
    --------
    >>> spent = {"annotation_seconds": 90.0, "voxels_corrected": 512}
    >>> metrics = effort_metrics(GenerationEffort.model_validate({**spent, "annotators": {"anna": spent}}))
    >>> metrics["annotation_minutes"], metrics["annotator_voxels_corrected/anna"]
    (1.5, 512.0)
    """
    metrics = {"annotation_minutes": effort.annotation_seconds / 60, "annotators": float(len(effort.annotators))}
    for who, spent in effort.annotators.items():
        name = re.sub(r"[^\w\-. ]", "_", who, flags=re.ASCII)
        metrics[f"annotator_minutes/{name}"] = spent.annotation_seconds / 60
        metrics[f"annotator_voxels_corrected/{name}"] = float(spent.voxels_corrected)
    return metrics


def _extra(row: Row) -> dict[str, float]:
    """Return further metrics of a generation, which the judgement does not hold."""
    extra = {"voxels_corrected": float(row.voxels_corrected)}
    if row.queried_uncertainty is not None:
        extra["queried_uncertainty"] = row.queried_uncertainty
    return extra | {f"seconds_{stage}": seconds for stage, seconds in row.seconds.items()}


def run_tracked(
    campaign: Campaign, training: OutsideTraining, progress: StepProgress = ignore_progress
) -> OutsideResult:
    """Train as `run` does, tracked in MLflow: settings, training set, curves, the last checkpoint and the model.

    Its run there ends as finished or failed; the model is stored with it but not registered, which generations are.

    Parameters
    ----------
    campaign, training
        As of `run`.
    progress : callable
        Called once per step with the step and its metrics, beside MLflow.

    Raises
    ------
    ServiceError
        If MLflow cannot be reached before or after the training; a finished training is not repeated.
    """
    tracker, name = Tracker(campaign), training.name
    with tracker.runs.training(name) as run_id:
        tracker.log_config(run_id, {"training.trainer": training.trainer})
        folder = campaign.training(name)
        folder.write(REQUEST, training)
        tracker.log_training_set(run_id, training.snapshot, REQUEST.path(folder.folder))
        with tracker.live(lambda: run_id, partial(checkpoints, folder.work_folder())) as live:

            def note(step: int, metrics: Mapping[str, float]) -> None:
                live(step, metrics)
                progress(step, metrics)

            result = run(campaign, training, note)
        tracker.log_metrics(run_id, 0, {"seconds": result.seconds})
        tracker.log_model(f"training-{name}", result.model, run_id)
    return result
