"""MLflow, the report page and Prefect's artifact of a generation."""

from __future__ import annotations

import re

from prefect import task
from prefect.artifacts import create_markdown_artifact

from rescueseg.reports import generation_table
from rescueseg.reports.generation_table import Row
from rescueseg.stages import publish
from tasks.options import STAGE, open_campaign


@task(task_run_name="report-g{generation}", **STAGE)
def report(campaign_url: str, generation: int) -> Row:
    """Return the generation's row of the table; see `rescueseg.stages.publish`."""
    campaign, _ = open_campaign(campaign_url)
    row = publish.publish(campaign, generation)
    name = re.sub(r"[^a-z0-9]+", "-", campaign.config.name.lower()).strip("-")
    create_markdown_artifact(
        key=f"{name}-generation-{generation}",
        markdown=generation_table.to_markdown(campaign.config.name, campaign.generation(generation)),
        description=f"Generation {generation} of {campaign.config.name}",
    )
    return row
