"""Phase 0: say which problem it is."""

from __future__ import annotations

from typing import cast

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from rescueseg.campaign.layout import TRIAGE_PICTURE
from rescueseg.stages.publish import triage_files
from rescueseg.stages.triage import triage_campaign
from rescueseg.tracking.tracker import Tracker
from rescueseg.triage.records import Triage
from rescueseg.triage.tree import Mask
from rescueseg.triage.words import Named
from tasks.options import STAGE, open_campaign


@task(task_run_name="triage", **STAGE)
def triage(campaign_url: str, structure: str = "", mask: str = "auto", channel: int = 0) -> Triage:
    """Return the triage's record; see `rescueseg.stages.triage`. Evidence and picture become artifacts in Prefect and MLflow."""
    campaign, store = open_campaign(campaign_url)
    store.migrate()
    result = triage_campaign(
        campaign, store, structure=cast("Named | None", structure or None), mask=cast(Mask, mask), channel=channel
    )
    tracker = Tracker(campaign)
    tracker.log_files(tracker.runs.campaign_run(), triage_files(campaign.storage))
    key = f"triage-{campaign.config.name}".lower().replace("_", "-").replace(".", "-")
    create_table_artifact(
        [e.to_json() for e in result.evidence], key=f"{key}-evidence", description="Evidence of the triage"
    )
    lines = [
        f"**Problem {result.title}**, trainer `{result.trainer}`",
        "",
        *(f"- {a}" for a in result.advice),
    ]
    answers = {True: "yes", False: "no", None: "not known"}
    lines += ["", *(f"1. {s.question} {answers[s.answer]}: {s.detail}" for s in result.steps)]
    create_markdown_artifact("\n".join(lines), key=key)
    picture = campaign.storage.url_of(TRIAGE_PICTURE.path())
    url = f"file://{picture}" if campaign.storage.is_local else picture
    create_image_artifact(url, key=f"{key}-picture", description="The path taken")
    return result
