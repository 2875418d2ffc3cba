"""A campaign's experiment and runs.

::

    campaign run        curves over generations: one point per metric at step = generation
    generation 3        dataset input, parameters, scores, figures, the model as LoggedModel
    ├── training        live loss, seconds
    ├── inference
    └── …

Everything is found by the tag `rescueseg.key` before it is made, and a point is added only where its step is still
empty, so that a campaign killed at any moment can be run again without a second point or run. All calls go through one `MlflowClient`
with an explicit URI: nothing global, so campaigns with other servers may live in the same process.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.rest_utils import http_request

from rescueseg.campaign import Campaign
from rescueseg.errors import ServiceError
from rescueseg.evaluation.calibration import kept_calibration
from rescueseg.evaluation.champion import Judgement, headline
from rescueseg.evaluation.pooled import flat_scores
from rescueseg.records import ModelReference, Snapshot
from rescueseg.tracking.live import LiveRun, Point
from rescueseg.tracking.models import GENERATION, ModelRegistry, RegisteredModel

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

KEY = "rescueseg.key"
CAMPAIGN_ID = "rescueseg.campaign_id"
_IDENTITY = "tracking.json"
_DIGEST_LENGTH = 36  # MLflow stores no longer dataset digest
_PARAMETER_LENGTH = 6000
_BATCH = 1000  # metrics in one request, of which MLflow takes no more
_PATIENCE = 5
"""Seconds in which a server has to answer before something is sent that may as well wait."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

P = ParamSpec("P")
R = TypeVar("R")


def tracking_uri(campaign: Campaign) -> str:
    """Return the tracking server: the config's, else `MLFLOW_TRACKING_URI`, else SQLite in the campaign folder."""
    return campaign.config.tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or campaign.tracking_uri


def _service(method: Callable[Concatenate[Tracker, P], R]) -> Callable[Concatenate[Tracker, P], R]:
    """Turn MLflow's and its connection's errors into a `ServiceError`."""

    @functools.wraps(method)
    def call(self: Tracker, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (MlflowException, ConnectionError) as error:
            raise ServiceError(
                f"MLflow refused: {error}", where=self.uri, todo="Check that the MLflow server runs, then run again"
            ) from error

    return cast("Callable[Concatenate[Tracker, P], R]", call)


class Tracker:
    """Mirrors one campaign in MLflow.

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
        self._steps: dict[tuple[str, str], set[int]] = {}
        self._runs: dict[str, str] = {}

    @functools.cached_property
    def client(self) -> MlflowClient:
        """The one client of this campaign."""
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    # experiment and runs ------------------------------------------------------------------------------------------

    @functools.cached_property
    def _experiment(self) -> tuple[str, str]:
        """Id and name of the campaign's experiment; made when missing."""
        identity = self._identity()
        found = self.client.search_experiments(filter_string=f"tags.`{CAMPAIGN_ID}` = '{identity}'")
        if found:
            return found[0].experiment_id, found[0].name
        name = self.campaign.config.name
        if self.client.get_experiment_by_name(name) is not None:  # another campaign's, or a deleted one
            name = f"{name}-{identity[:8]}"
        location = None
        if not self.uri.startswith("http"):  # without a server MLflow would write below the working directory
            location = self.campaign.storage.url_of("services/mlflow-artifacts")
        made = self.client.create_experiment(name, artifact_location=location, tags={CAMPAIGN_ID: identity})
        return made, name

    def _identity(self) -> str:
        storage = self.campaign.storage
        if not storage.exists(_IDENTITY):
            storage.write_json(_IDENTITY, {"id": uuid.uuid4().hex})
        return str(storage.read_json(_IDENTITY)["id"])

    @property
    @_service
    def experiment_id(self) -> str:
        """Id of the campaign's experiment."""
        return self._experiment[0]

    @property
    @_service
    def name(self) -> str:
        """Name of the experiment and of the registered model."""
        return self._experiment[1]

    @property
    def url(self) -> str:
        """Page of the experiment's runs in MLflow's UI; the tracking URI when there is no server."""
        if not self.uri.startswith("http"):
            return self.uri
        return f"{self.uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    @_service
    def campaign_run(self) -> str:
        """Return the id of the run that holds the curves over generations."""
        return self._run("campaign", f"{self.campaign.config.name} (all generations)", {})

    @_service
    def generation_run(self, generation: int) -> str:
        """Return the id of a generation's run."""
        return self._run(f"generation/{generation}", f"generation {generation}", {GENERATION: str(generation)})

    @_service
    def stage_run(self, generation: int, stage: str) -> str:
        """Return the id of the run of one stage, nested in its generation's."""
        tags = {GENERATION: str(generation), MLFLOW_PARENT_RUN_ID: self.generation_run(generation)}
        return self._run(f"generation/{generation}/{stage}", stage, tags | {"rescueseg.stage": stage})

    @_service
    def training_run(self, name: str) -> str:
        """Return the id of the run of a training outside the loop."""
        return self._run(f"training/{name}", f"training {name}", {})

    def _run(self, key: str, name: str, tags: dict[str, str]) -> str:
        if key not in self._runs:
            found = self.client.search_runs([self._experiment[0]], filter_string=f"tags.`{KEY}` = '{key}'")
            if found:
                self._runs[key] = found[0].info.run_id
            else:
                run = self.client.create_run(self._experiment[0], run_name=name, tags={KEY: key, **tags})
                self._runs[key] = run.info.run_id
        return self._runs[key]

    @contextmanager
    def stage(self, generation: int, stage: str) -> Iterator[str]:
        """Keep a stage's run open during the block; it ends as finished, or failed when the block raises."""
        run_id = self.stage_run(generation, stage)
        begun = time.monotonic()
        with self._open(run_id):
            yield run_id
            told = self.campaign.stage_result(generation, f"{stage}.seconds")  # those before a kill included
            self.log_metrics(run_id, 0, {"seconds": time.monotonic() - begun if told is None else float(told)})

    @contextmanager
    def training(self, name: str) -> Iterator[str]:
        """Keep the run of a training outside the loop open during the block, as `stage` does."""
        run_id = self.training_run(name)
        with self._open(run_id):
            yield run_id

    @contextmanager
    def _open(self, run_id: str) -> Iterator[None]:
        self._set_status(run_id, "RUNNING")
        try:
            yield
        except BaseException:
            with suppress(ServiceError):  # what went wrong in the stage is what must be seen
                self.check_server()
                self._set_status(run_id, "FAILED")
            raise
        self._set_status(run_id, "FINISHED")

    @_service
    def _set_status(self, run_id: str, status: str) -> None:
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status=status)

    @_service
    def finish_generation(self, generation: int) -> None:
        """Mark a generation's run and those of its stages as finished, and the campaign's, which the next opens again.

        A stage that was killed between its commit and the end of its run is skipped by the rerun; its run ends here.
        """
        run = self.generation_run(generation)
        stages = self.client.search_runs([self._experiment[0]], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run}'")
        open_stages = [stage.info.run_id for stage in stages if stage.info.status != "FINISHED"]
        for run_id in (*open_stages, run, self.campaign_run()):
            self.client.set_terminated(run_id, status="FINISHED")

    # what runs hold -----------------------------------------------------------------------------------------------

    @_service
    def log_params(self, run_id: str, parameters: Mapping[str, Any]) -> None:
        """Add parameters; one that the run has already stays as it is (MLflow parameters never change)."""
        known = self.client.get_run(run_id).data.params
        new = [Param(k, str(v)[:_PARAMETER_LENGTH]) for k, v in sorted(parameters.items()) if k not in known]
        for start in range(0, len(new), 100):
            self.client.log_batch(run_id, params=new[start : start + 100])

    def log_config(self, run_id: str, changed: Mapping[str, Any] = {}) -> None:
        """Add the campaign's settings as parameters such as `training.trainer`, but for those that were changed."""
        flat: dict[str, Any] = {}
        for key, value in self.campaign.config.model_dump(mode="json", exclude={"database_url"}).items():
            if isinstance(value, dict):
                flat |= {f"{key}.{inner}": v for inner, v in value.items() if v is not None}
            elif value is not None:
                flat[key] = value
        self.log_params(run_id, flat | dict(changed))

    @_service
    def log_metrics(
        self,
        run_id: str,
        step: int,
        metrics: Mapping[str, float],
        *,
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """Add one point per metric where the step has none yet.

        Parameters
        ----------
        run_id : str
            The run.
        step : int
            Position on the curve.
        metrics : mapping
            Values by name; NaN and infinity are refused by MLflow's charts, so leave such a metric out.
        model_id : str, optional
            LoggedModel the values belong to.
        dataset : (name, digest), optional
            Data they were measured on.
        """
        now = int(time.time() * 1000)
        name, digest = dataset or (None, None)
        digest = digest and digest[:_DIGEST_LENGTH]
        points = [
            Metric(k, float(v), now, step, model_id=model_id, dataset_name=name, dataset_digest=digest)
            for k, v in sorted(metrics.items())
        ]
        self._add(run_id, points)

    @_service
    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Add the points of many steps where there are none yet, in as few requests as MLflow takes."""
        self._add(run_id, [Metric(k, float(v), p.milliseconds, p.step) for p in points for k, v in p.values.items()])

    def _add(self, run_id: str, points: Sequence[Metric]) -> None:
        new = [point for point in points if point.step not in self._known_steps(run_id, point.key)]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            try:
                self.client.log_batch(run_id, metrics=batch)
            except BaseException:  # it may have arrived all the same: look again
                self._steps = {key: steps for key, steps in self._steps.items() if key[0] != run_id}
                raise
            for point in batch:
                self._known_steps(run_id, point.key).add(point.step)

    def _known_steps(self, run_id: str, key: str) -> set[int]:
        if (run_id, key) not in self._steps:
            self._steps[run_id, key] = {m.step for m in self.client.get_metric_history(run_id, key)}
        return self._steps[run_id, key]

    @_service
    def check_server(self) -> None:
        """Make sure that the server answers at all, within seconds and at the first try; other calls are patient."""
        if self.uri.startswith("http"):
            credentials = get_default_host_creds(self.uri)  # type: ignore[no-untyped-call]
            http_request(  # type: ignore[no-untyped-call]
                credentials, "/health", "GET", max_retries=0, timeout=_PATIENCE, raise_on_status=False
            )

    def live(self, run: Callable[[], str], checkpoints: Callable[[], Mapping[str, Path]]) -> LiveRun:
        """Return what sends points and checkpoints to a run while it goes on; called with a step and its values.

        Parameters
        ----------
        run : callable
            Returns the run's id.
        checkpoints : callable
            Returns the checkpoints there are, by their path among the artifacts.
        """
        return LiveRun(self, run, checkpoints)

    @_service
    def log_snapshot(self, generation: int, snapshot: Snapshot) -> None:
        """Make a training set the dataset input of its generation's run and of the training stage."""
        path = self.campaign.generation_path(snapshot.generation, "snapshot.json")
        for run_id in (self.generation_run(generation), self.stage_run(generation, "training")):
            self.log_training_set(run_id, snapshot, path)

    @_service
    def log_training_set(self, run_id: str, snapshot: Snapshot, path: str) -> None:
        """Make a training set, which lies at `path` below the campaign, the dataset input of a run."""
        name = f"{self.campaign.config.name}-snapshot-{snapshot.generation:04d}"
        voxels = sum(item.box.size for item in snapshot.items)
        dataset = Dataset(
            name=name,
            digest=snapshot.digest[:_DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": self.campaign.storage.url_of(path), "sha256": snapshot.digest}),
            profile=json.dumps({"patches": len(snapshot.items), "voxels": voxels}),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self.log_params(run_id, {"annotated_patches": len(snapshot.items), "annotated_voxels": voxels})
        self.client.set_tag(run_id, "rescueseg.snapshot_digest", snapshot.digest)
        self.client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    @_service
    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Store files with a run by their path, such as `figures/learning_curve.png`; one of the same name is replaced."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in sorted(files.items()):
                local = Path(folder, name)
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(data)
                self.log_file(run_id, name, local)

    @_service
    def log_file(self, run_id: str, name: str, path: Path) -> None:
        """Store a local file with a run under a path that ends in the file's own name; it replaces one that is there."""
        parent = str(Path(name).parent)
        self.client.log_artifact(run_id, str(path), None if parent == "." else parent)

    # models and judgements ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _registry(self) -> ModelRegistry:
        return ModelRegistry(self.client, self.campaign, *self._experiment)

    @_service
    def register_model(self, generation: int, model: ModelReference) -> RegisteredModel:
        """Store a generation's model as LoggedModel and register it, once per digest, as `candidate`.

        The model is a pyfunc made from code: its folder (safetensors and JSON) and `pyfunc_model.py`, nothing pickled.
        """
        return self._registry.register(generation, model, self.generation_run(generation))

    @_service
    def log_model(self, name: str, model: ModelReference, run_id: str) -> str:
        """Store a model as LoggedModel of a run, once per digest, and return its id; it is not registered."""
        return self._registry.store(name, model, run_id)

    @_service
    def log_judgement(self, judgement: Judgement, model: RegisteredModel, extra: Mapping[str, float] = {}) -> None:
        """Log a generation's scores and set the aliases `candidate` and `champion` as the judgement says.

        The points go to the campaign run at step = generation, where they draw the learning curve, and to the generation's
        own run, tied to the LoggedModel and the snapshot.

        Parameters
        ----------
        judgement : Judgement
            Of the generation.
        model : RegisteredModel
            Its model.
        extra : mapping
            Further values for both runs, such as `query_mean_uncertainty` or seconds per stage.
        """
        g = judgement.generation
        effort = {
            "annotated_patches": float(judgement.annotated_patches),
            "annotated_voxels": float(judgement.annotated_voxels),
        }
        scores = flat_scores(judgement.evaluation, self.campaign.config.classes) | judgement.evaluation.metrics()
        if (calibration := kept_calibration(self.campaign, g)) is not None:
            scores |= calibration.metrics()
        comparison = judgement.comparison
        if comparison is not None:
            scores["validation_dice_gain_over_champion"] = comparison.difference
        snapshot = self.campaign.snapshot(g)
        dataset = (f"{self.campaign.config.name}-snapshot-{g:04d}", snapshot.digest) if snapshot else None
        self.log_metrics(self.generation_run(g), g, scores, model_id=model.model_id, dataset=dataset)
        self.log_metrics(self.generation_run(g), g, {**effort, **extra})
        self.log_metrics(self.campaign_run(), g, {**scores, **effort, **extra, "champion": float(judgement.champion)})
        verdict = comparison.verdict if comparison else "first"
        said = headline(judgement)
        for run_id, tags in (
            (self.generation_run(g), {"rescueseg.verdict": verdict, "mlflow.note.content": said}),
            (
                self.campaign_run(),
                {"rescueseg.champion": str(judgement.champion), "mlflow.note.content": said},
            ),
        ):
            for key, value in tags.items():
                self.client.set_tag(run_id, key, value)
        self._registry.set_champion(judgement.champion, self.generation_run(judgement.champion))
