"""What lies where in a campaign's folder.

::

    campaign.toml                       settings
    campaign.db                         queue (when no other database is named)
    volumes/<id>.ome.zarr               image; labels/truth inside when ground truth came with it
    volumes/<id>.json                   its record: the import's commit point
    volumes/anchors/<digest>.npz        windows by which it is known again (rescueseg.volumes.anchors)
    relations.json                      which volumes show the same (rescueseg.volumes.comparison)
    consistency.json                    what the check of the volumes found (see rescueseg.volumes.consistency)
    domains.json                        domains: spacing, normalisation, volumes
    triage.json                         problem, evidence, route (see rescueseg.triage)
    triage.png                          picture of the decision
    rough.json                          patches of the rough mask: annotated, so never held out
    holdout.json                        frozen holdout
    starting.json                       patches that generation 0 is trained on
    weak_labels/choice.json             method of the first masks, and how well each method agreed
    weak_labels/<method>/<ticket>.npz   first mask of a ticket, and <ticket>.confidence.npz
    annotations/<ticket>/<digest>.npz   immutable label arrays
    generations/0003/                   training/ model/ maps/ prefills/ losses.json, <stage>.json: see stage_results.py
    trainings/<name>/                   request.json, training/ model/, losses.json, training.json, evaluation.json,
                                        calibration.json: see outside_trainings.py
    reports/
    tokens/<id>.json                    who may use the annotation server: name, role, digest of the secret
    image_key                           what the annotation server signs image addresses with
    services/                           local servers: URLs, logs, databases (see rescueseg.services)
"""

from __future__ import annotations

import re

from rescueseg.errors import CampaignError

STAGES = ("snapshot", "training", "inference", "evaluation", "query", "tickets", "report")
"""The stages of a generation that commit a result, in their order."""
PARTS = (
    "campaign.db",
    "volumes",
    "relations.json",
    "consistency.json",
    "domains.json",
    "triage.json",
    "triage.png",
    "rough.json",
    "holdout.json",
    "starting.json",
    "weak_labels",
    "annotations",
    "generations",
    "trainings",
    "reports",
    "tokens",
    "image_key",
    "services",
    "mlflow.db",
)
"""What a campaign may write beside its settings: a folder that holds any of it is no free place for a new one."""
_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def check_id(value: str, what: str) -> str:
    """Return an id that is safe as a file name.

    Parameters
    ----------
    value : str
        The id.
    what : str
        What it names, for the error message.

    Raises
    ------
    CampaignError
        If it holds anything but letters, digits, dot, dash and underscore.

    Examples
    --------
    >>> check_id("liver_01.raw", "volume id")
    'liver_01.raw'
    >>> check_id("../liver", "volume id")
    Traceback (most recent call last):
    ...
    rescueseg.errors.CampaignError: '../liver' is no valid volume id. Use letters, digits, '.', '-' and '_'
    """
    if not _ID.fullmatch(value) or ".." in value:
        raise CampaignError(f"'{value}' is no valid {what}", todo="Use letters, digits, '.', '-' and '_'")
    return value
