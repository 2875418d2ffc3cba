"""A campaign's experiment in MLflow and its runs.

::

    campaign run        curves over generations: one point per metric at step = generation
    generation 3        dataset input, parameters, scores, figures, the model as LoggedModel
    ├── training        live loss, seconds
    ├── inference
    └── …

Every run is looked up by its tag `rescueseg.key` before it is made, so that a campaign killed at any moment can be run
again without a second one. All calls go through one `MlflowClient` with an explicit URI: nothing is global, so campaigns
with other servers may live in the same process.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Concatenate, ParamSpec, Protocol, TypeVar, cast

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.rest_utils import http_request
from pydantic import Field

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import TRACKING_FILES
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import ServiceError
from rescueseg.records import Record
from rescueseg.tracking.models import GENERATION

KEY = "rescueseg.key"
CAMPAIGN_ID = "rescueseg.campaign_id"
_PATIENCE = 5
"""Seconds in which a server has to answer before something is sent that may as well wait."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="OnServer")


class TrackingIdentity(Record):
    """What a campaign's experiment is found by."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


_IDENTITY = RecordFile("tracking", TrackingIdentity)


class OnServer(Protocol):
    """Something whose methods call an MLflow server."""

    @property
    def uri(self) -> str:
        """Tracking URI."""


def tracking_uri(campaign: Campaign) -> str:
    """Return the tracking server: the config's, else `MLFLOW_TRACKING_URI`, else SQLite in the campaign folder."""
    return campaign.config.tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or campaign.tracking_uri


def mlflow_errors(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Turn MLflow's and its connection's errors into a `ServiceError`."""

    @functools.wraps(method)
    def call(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (MlflowException, ConnectionError) as error:
            raise ServiceError(
                f"MLflow refused: {error}", where=self.uri, todo="Check that the MLflow server runs, then run again"
            ) from error

    return cast("Callable[Concatenate[S, P], R]", call)


class CampaignRuns:
    """The experiment of one campaign and its runs.

    Parameters
    ----------
    campaign : Campaign
        The campaign; the file `tracking.json` in it holds the id its experiment is found by.
    uri : str, optional
        Tracking URI; see `tracking_uri` when omitted.

    Raises
    ------
    ServiceError
        From every method, if the server cannot be reached or refuses.
    """

    def __init__(self, campaign: Campaign, uri: str | None = None) -> None:
        for key, value in _QUIET.items():
            os.environ.setdefault(key, value)
        self.campaign = campaign
        self.uri = uri or tracking_uri(campaign)
        self._runs: dict[str, str] = {}

    @functools.cached_property
    def client(self) -> MlflowClient:
        """The one client of this campaign."""
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @functools.cached_property
    def _experiment(self) -> tuple[str, str]:
        """Id and name of the campaign's experiment; made when missing."""
        identity = self._identity()
        experiments = self.client.search_experiments(filter_string=f"tags.`{CAMPAIGN_ID}` = '{identity}'")
        if experiments:
            return experiments[0].experiment_id, experiments[0].name
        name = self.campaign.config.name
        if self.client.get_experiment_by_name(name) is not None:  # another campaign's, or a deleted one
            name = f"{name}-{identity[:8]}"
        location = None
        if not self.uri.startswith("http"):  # without a server MLflow would write below the working directory
            location = self.campaign.storage.url_of(TRACKING_FILES.path())
        tags = {CAMPAIGN_ID: identity}
        return self.client.create_experiment(name, artifact_location=location, tags=tags), name

    def _identity(self) -> str:
        identity = self.campaign.records.read(_IDENTITY)
        if identity is None:
            identity = TrackingIdentity(id=uuid.uuid4().hex)
            self.campaign.records.write(_IDENTITY, identity)
        return identity.id

    @property
    @mlflow_errors
    def experiment_id(self) -> str:
        """Id of the campaign's experiment."""
        return self._experiment[0]

    @property
    @mlflow_errors
    def name(self) -> str:
        """Name of the experiment and of the registered model."""
        return self._experiment[1]

    @property
    def url(self) -> str:
        """Page of the experiment's runs in MLflow's UI; the tracking URI when there is no server."""
        if not self.uri.startswith("http"):
            return self.uri
        return f"{self.uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    @mlflow_errors
    def campaign_run(self) -> str:
        """Return the id of the run that holds the curves over generations."""
        return self._run("campaign", f"{self.campaign.config.name} (all generations)", {})

    @mlflow_errors
    def generation_run(self, generation: int) -> str:
        """Return the id of a generation's run."""
        return self._run(f"generation/{generation}", f"generation {generation}", {GENERATION: str(generation)})

    @mlflow_errors
    def stage_run(self, generation: int, stage: str) -> str:
        """Return the id of the run of one stage, nested in its generation's."""
        tags = {GENERATION: str(generation), MLFLOW_PARENT_RUN_ID: self.generation_run(generation)}
        return self._run(f"generation/{generation}/{stage}", stage, tags | {"rescueseg.stage": stage})

    @mlflow_errors
    def training_run(self, name: str) -> str:
        """Return the id of the run of a training outside the loop."""
        return self._run(f"training/{name}", f"training {name}", {})

    def _run(self, key: str, name: str, tags: dict[str, str]) -> str:
        if key not in self._runs:
            runs = self.client.search_runs([self._experiment[0]], filter_string=f"tags.`{KEY}` = '{key}'")
            run = (
                runs[0] if runs else self.client.create_run(self._experiment[0], run_name=name, tags={KEY: key, **tags})
            )
            self._runs[key] = run.info.run_id
        return self._runs[key]

    @contextmanager
    def training(self, name: str) -> Iterator[str]:
        """Keep the run of a training outside the loop open during the block, as `Tracker.stage` does."""
        run_id = self.training_run(name)
        with self.open_run(run_id):
            yield run_id

    @contextmanager
    def open_run(self, run_id: str) -> Iterator[None]:
        """Keep a run open during the block; it ends as finished, or failed when the block raises."""
        self._set_status(run_id, "RUNNING")
        try:
            yield
        except BaseException:
            with suppress(ServiceError):  # what went wrong in the stage is what must be seen
                self.check_server()
                self._set_status(run_id, "FAILED")
            raise
        self._set_status(run_id, "FINISHED")

    @mlflow_errors
    def _set_status(self, run_id: str, status: str) -> None:
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status=status)

    @mlflow_errors
    def finish_generation(self, generation: int) -> None:
        """Mark a generation's run and those of its stages as finished, and the campaign's, which the next opens again.

        A stage that was killed between its commit and the end of its run is skipped by the rerun; its run ends here.
        """
        run = self.generation_run(generation)
        stages = self.client.search_runs([self._experiment[0]], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run}'")
        open_stages = [stage.info.run_id for stage in stages if stage.info.status != "FINISHED"]
        for run_id in (*open_stages, run, self.campaign_run()):
            self.client.set_terminated(run_id, status="FINISHED")

    @mlflow_errors
    def check_server(self) -> None:
        """Make sure that the server answers at all, within seconds and at the first try; other calls are patient."""
        if self.uri.startswith("http"):
            credentials = get_default_host_creds(self.uri)  # type: ignore[no-untyped-call]
            http_request(  # type: ignore[no-untyped-call]
                credentials, "/health", "GET", max_retries=0, timeout=_PATIENCE, raise_on_status=False
            )
