"""What lies where in a campaign's folder: one table, from which paths and the check for foreign files follow.

A record lies in its folder by the name of its `rescueseg.campaign.record_file.RecordFile`; the table tells people which.

``python -c "from rescueseg.campaign.layout import describe; print(describe())"`` prints it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rescueseg.errors import CampaignError

STAGES = ("snapshot", "training", "inference", "evaluation", "query", "tickets", "report")
"""The stages of a generation that commit a result, in their order."""
_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


@dataclass(frozen=True)
class Place:
    """A file or folder of a campaign.

    Parameters
    ----------
    pattern : str
        Its path below the campaign, with the names in braces that differ; a folder ends with a slash.
    purpose : str
        What it holds.

    Examples
    --------
    >>> Place("volumes/{volume}.json", "its record").path(volume="liver_01")
    'volumes/liver_01.json'
    >>> Place("generations/{generation}/", "a generation").path(generation=3)
    'generations/0003'
    >>> Place("volumes/{volume}.json", "its record").path(volume="../liver")
    Traceback (most recent call last):
    ...
    rescueseg.errors.CampaignError: '../liver' is no valid volume. Use letters, digits, '.', '-' and '_'
    """

    pattern: str
    purpose: str

    @property
    def top(self) -> str:
        """The first part of its path: what lies at the campaign's root."""
        return self.pattern.split("/")[0]

    def path(self, **names: str | int) -> str:
        """Return the path below the campaign; numbers are written with four digits.

        Raises
        ------
        CampaignError
            If a name would not do as a file name.
        """
        texts = {k: f"{v:04d}" if isinstance(v, int) else check_id(v, k.replace("_", " ")) for k, v in names.items()}
        return self.pattern.rstrip("/").format(**texts)

    def matches(self, path: str) -> bool:
        """Tell whether a path below the campaign is this file, or lies in this folder.

        Examples
        --------
        >>> Place("annotations/{ticket}/{digest}.npz", "labels").matches("annotations/pool-1/0a1b.npz")
        True
        >>> Place("services/", "local servers").matches("services/logs/mlflow.log")
        True
        """
        parts = re.split(r"\{\w+\}", self.pattern)
        pattern = "[^/]+".join(re.escape(part) for part in parts)
        return re.fullmatch(pattern + ".*" * self.pattern.endswith("/"), path) is not None


CAMPAIGN_FILE = Place("campaign.toml", "settings")
IDENTITY = Place("identity.json", "id by which the queue's database knows it again (campaign/identity.py)")
DATABASE = Place("campaign.db", "queue, when no other database is named")
DATABASE_COPY = Place("campaign.db.{copy}", "the queue's database before an upgrade, by its version and the time")
TRACKING_DATABASE = Place("mlflow.db", "MLflow's runs, when no other server is named")
IMAGE = Place("volumes/{volume}.ome.zarr/", "image; labels/truth inside when ground truth came with it")
VOLUME = Place("volumes/{volume}.json", "its record: the import's commit point")
UNFINISHED_IMAGE = Place("volumes/.{volume}.part/", "image of an import that runs, or was cut off")
SHARDS = Place("volumes/shards/{volume}.json", "its image's files: size and checksums (volumes/shards.py)")
ANCHORS = Place("volumes/anchors/{digest}.npz", "windows by which it is known again (volumes/anchors.py)")
RELATIONS = Place("relations.json", "which volumes show the same (volumes/comparison.py)")
CONSISTENCY = Place("consistency.json", "what the check of the volumes found (volumes/consistency.py)")
DOMAINS = Place("domains.json", "domains: spacing, normalisation, volumes")
TRIAGE = Place("triage.json", "problem, evidence, route (triage/records.py)")
TRIAGE_PICTURE = Place("triage.png", "picture of the decision")
EXAMPLES = Place("examples.json", "patches that a person chose before the holdout was drawn: never held out")
ROUGH = Place("rough.json", "patches of the rough mask: annotated, so never held out")
HOLDOUT = Place("holdout.json", "frozen holdout")
STARTING = Place("starting.json", "patches that generation 0 is trained on")
WEAK_LABEL_CHOICE = Place("weak_labels/choice.json", "method of the first masks, and how well each method agreed")
WEAK_LABEL = Place(
    "weak_labels/{method}/{file}",
    "first mask of a ticket, its confidence, a method's classifier, or what is kept of its weights",
)
DELIVERED_LABELS = Place("delivered_labels/{ticket}.npz", "delivered labels that a ticket's annotator starts from")
ANNOTATION = Place("annotations/{ticket}/{digest}.npz", "immutable label array")
GENERATION = Place("generations/{generation}/", "one generation")
GENERATION_RECORD = Place("generations/{generation}/{record}.json", "its results (campaign/stage_results.py)")
CHECKPOINTS = Place("generations/{generation}/training/", "checkpoints while it trains (models/files.py)")
MODEL = Place("generations/{generation}/model/", "its model: weights and description")
PREFILL = Place("generations/{generation}/prefills/{ticket}.npz", "its prediction of a ticket's patch")
MAPS = Place("generations/{generation}/maps/{volume}.zarr/", "its maps of a volume (inference/maps.py)")
MAPS_PLAN = Place("generations/{generation}/maps/{volume}.inference.json", "what they are made with")
MAPS_BLOCKS = Place("generations/{generation}/maps/{volume}.blocks/", "which of their blocks are done")
MAPS_SHARED = Place(
    "generations/{generation}/maps/{volume}.shared/", "windows that several of them need, while they are made"
)
MAPS_RECORD = Place("generations/{generation}/maps/{volume}.json", "the finished maps")
TRAINING = Place("trainings/{training}/", "one training outside the loop")
TRAINING_RECORD = Place("trainings/{training}/{record}.json", "its records (campaign/outside_trainings.py)")
OUTSIDE_CHECKPOINTS = Place("trainings/{training}/training/", "checkpoints while it trains")
OUTSIDE_MODEL = Place("trainings/{training}/model/", "its model")
REPORT = Place("reports/{file}", "pages, pictures and tables for people")
TOKEN = Place("tokens/{token_id}.json", "who may use the annotation server: name, role, digest of the secret")
IMAGE_KEY = Place("image_key", "what the annotation server signs image addresses with")
TRACKING = Place("tracking.json", "id by which MLflow's experiment is found again")
TRACKING_FILES = Place("services/mlflow-artifacts/", "what MLflow's runs log, without another server")
SERVICES = Place("services/", "local servers: URLs, logs, databases (services/state.py)")

PLACES = tuple(value for value in list(globals().values()) if isinstance(value, Place))
"""All of them."""
PARTS = tuple(dict.fromkeys(p.top for p in PLACES if p not in (CAMPAIGN_FILE, DATABASE_COPY)))
"""What a campaign may write beside its settings: a folder that holds any of it is no free place for a new one."""


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
    if not is_id(value):
        raise CampaignError(f"'{value}' is no valid {what}", todo="Use letters, digits, '.', '-' and '_'")
    return value


def is_id(value: str) -> bool:
    """Tell whether a text is safe as a file name; see `check_id`."""
    return _ID.fullmatch(value) is not None and ".." not in value


def describe() -> str:
    """Return the table for people: a path and its purpose on each line."""
    shown = [re.sub(r"\{(\w+)\}", r"<\1>", place.pattern) for place in PLACES]
    width = max(map(len, shown))
    return "\n".join(f"{path:{width}}  {place.purpose}" for path, place in zip(shown, PLACES, strict=True))
