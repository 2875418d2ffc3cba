"""The last stage of a generation: MLflow and the report page."""

from __future__ import annotations

from typing import Any

from rescueseg import report, summary
from rescueseg.campaign import Campaign
from rescueseg.champion import Judgement
from rescueseg.errors import CampaignError
from rescueseg.generation import run_stage
from rescueseg.tracking import Tracker


def publish(campaign: Campaign, generation: int) -> Any:
    """Mirror a judged generation in MLflow and write the report page; a rerun adds nothing twice.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    generation : int
        Its tickets stage must be done.

    Returns
    -------
    dict
        The generation's row of the table.

    Raises
    ------
    ServiceError
        If MLflow cannot be reached; the stage can be run again.
    """
    return run_stage(campaign, generation, "report", lambda: _publish(campaign, generation))


def _publish(campaign: Campaign, generation: int) -> Any:
    row = summary.row(campaign, generation)
    judged = Judgement.model_validate(campaign.finished(generation, "evaluation"))
    snapshot, model = campaign.snapshot(generation), campaign.model(generation)
    if snapshot is None or model is None:
        raise CampaignError(
            "its snapshot or model is gone", where=f"generation {generation}", todo="Restore the campaign's folder"
        )
    tracker = Tracker(campaign)
    run = tracker.generation_run(generation)
    tracker.log_config(run)
    tracker.log_snapshot(generation, snapshot)
    registered = tracker.register_model(generation, model)
    tracker.log_judgement(judged, registered, _extra(row))
    written = report.write_report(campaign, [("MLflow", tracker.url)])
    page = campaign.storage.read_bytes(written.path)
    figures = {f"figures/{name}": data for name, data in written.figures.items()}
    tracker.log_files(run, {"report.html": page, **figures, **triage_files(campaign)})
    tracker.finish_generation(generation)
    return row.to_json()


def triage_files(campaign: Campaign) -> dict[str, bytes]:
    """Return what the triage wrote, by the path under which MLflow keeps it; empty before a triage."""
    names = ("triage.json", "triage.png")
    return {f"triage/{n}": campaign.storage.read_bytes(n) for n in names if campaign.storage.exists(n)}


def _extra(row: summary.Row) -> dict[str, float]:
    """Return what the judgement does not know, for the curves."""
    extra = {"voxels_corrected": float(row.voxels_corrected)}
    if row.queried_uncertainty is not None:
        extra["queried_uncertainty"] = row.queried_uncertainty
    return extra | {f"seconds_{stage}": seconds for stage, seconds in row.seconds.items()}
