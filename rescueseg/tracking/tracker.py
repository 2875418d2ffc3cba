"""What the runs of a campaign hold: parameters, points, datasets, files, models, judgements.

A point is added only where its step is still empty, so that a campaign killed at any moment can be run again without a
second one. The runs themselves are made by `rescueseg.tracking.runs`.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from rescueseg.campaign import Campaign
from rescueseg.campaign.record_file import seconds_file
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.evaluation.answer import answer
from rescueseg.evaluation.calibration import CALIBRATION
from rescueseg.evaluation.champion import Comparison, Judgement
from rescueseg.evaluation.pooled import flat_scores
from rescueseg.records import ModelReference, Snapshot
from rescueseg.tracking.live import LiveRun, Point
from rescueseg.tracking.models import ModelRegistry, RegisteredModel
from rescueseg.tracking.runs import CampaignRuns, mlflow_errors

_DIGEST_LENGTH = 36  # MLflow stores no longer dataset digest
_PARAMETER_LENGTH = 6000
_BATCH = 1000  # metrics in one request, of which MLflow takes no more


class Tracker:
    """Mirrors one campaign in MLflow: what its runs hold, its models and judgements; the runs themselves are `runs`.

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
        self.campaign = campaign
        self.runs = CampaignRuns(campaign, uri)
        """The experiment and its runs."""
        self._steps: dict[tuple[str, str], set[int]] = {}

    @property
    def uri(self) -> str:
        """Tracking URI."""
        return self.runs.uri

    def check_server(self) -> None:
        """Make sure that the server answers at all, within seconds."""
        self.runs.check_server()

    @contextmanager
    def stage(self, generation: int, stage: str) -> Iterator[str]:
        """Keep a stage's run open during the block; it ends as finished, or failed when the block raises."""
        run_id = self.runs.stage_run(generation, stage)
        start = time.monotonic()
        with self.runs.open_run(run_id):
            yield run_id
            seconds = self.campaign.generation(generation).read(seconds_file(stage))  # those before a kill included
            self.log_metrics(run_id, 0, {"seconds": time.monotonic() - start if seconds is None else seconds})

    @mlflow_errors
    def log_params(self, run_id: str, parameters: Mapping[str, Any]) -> None:
        """Add parameters; one that the run has already stays as it is (MLflow parameters never change)."""
        present = self.runs.client.get_run(run_id).data.params
        new = [Param(k, str(v)[:_PARAMETER_LENGTH]) for k, v in sorted(parameters.items()) if k not in present]
        for start in range(0, len(new), 100):
            self.runs.client.log_batch(run_id, params=new[start : start + 100])

    def log_config(self, run_id: str, overrides: Mapping[str, Any] = {}) -> None:
        """Add the campaign's settings as parameters such as `training.trainer`; `overrides` replaces some of them."""
        settings = self.campaign.config.model_dump(mode="json", exclude={"database_url"}, exclude_none=True)
        self.log_params(run_id, _flat(settings) | dict(overrides))

    @mlflow_errors
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

    @mlflow_errors
    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Add the points of many steps where there are none yet, in as few requests as MLflow takes."""
        self._add(run_id, [Metric(k, float(v), p.milliseconds, p.step) for p in points for k, v in p.values.items()])

    def _add(self, run_id: str, points: Sequence[Metric]) -> None:
        new = [point for point in points if point.step not in self._steps_of(run_id, point.key)]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            try:
                self.runs.client.log_batch(run_id, metrics=batch)
            except BaseException:  # the points may have arrived all the same: ask the server again
                self._steps = {key: steps for key, steps in self._steps.items() if key[0] != run_id}
                raise
            for point in batch:
                self._steps_of(run_id, point.key).add(point.step)

    def _steps_of(self, run_id: str, key: str) -> set[int]:
        if (run_id, key) not in self._steps:
            self._steps[run_id, key] = {m.step for m in self.runs.client.get_metric_history(run_id, key)}
        return self._steps[run_id, key]

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

    @mlflow_errors
    def log_snapshot(self, generation: int, snapshot: Snapshot) -> None:
        """Make a training set the dataset input of its generation's run and of the training stage."""
        path = SNAPSHOT.path(self.campaign.generation(snapshot.generation).folder)
        for run_id in (self.runs.generation_run(generation), self.runs.stage_run(generation, "training")):
            self.log_training_set(run_id, snapshot, path)

    @mlflow_errors
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
        self.runs.client.set_tag(run_id, "rescueseg.snapshot_digest", snapshot.digest)
        self.runs.client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    @mlflow_errors
    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Store files with a run by their path, such as `figures/learning_curve.png`; one of the same name is replaced."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in sorted(files.items()):
                local = Path(folder, name)
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(data)
                self.log_file(run_id, name, local)

    @mlflow_errors
    def log_file(self, run_id: str, name: str, path: Path) -> None:
        """Store a local file with a run under a path that ends in the file's own name; it replaces one that is there."""
        parent = str(Path(name).parent)
        self.runs.client.log_artifact(run_id, str(path), None if parent == "." else parent)

    # models and judgements ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _registry(self) -> ModelRegistry:
        return ModelRegistry(self.runs.client, self.campaign, self.runs.experiment_id, self.runs.name)

    @mlflow_errors
    def register_model(self, generation: int, model: ModelReference) -> RegisteredModel:
        """Store a generation's model as LoggedModel and register it, once per digest, as `candidate`.

        The model is a pyfunc made from code: its folder (safetensors and JSON) and `pyfunc_model.py`, nothing pickled.
        """
        return self._registry.register(generation, model, self.runs.generation_run(generation))

    @mlflow_errors
    def log_model(self, name: str, model: ModelReference, run_id: str) -> str:
        """Store a model as LoggedModel of a run, once per digest, and return its id; it is not registered."""
        return self._registry.store(name, model, run_id)

    @mlflow_errors
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
        scores = flat_scores(judgement.evaluation, self.campaign.config.classes)
        if (calibration := self.campaign.generation(g).read(CALIBRATION)) is not None:
            scores |= calibration.metrics()
        comparison = judgement.comparison
        if comparison is not None:
            scores |= _comparison_scores(comparison)
        snapshot = self.campaign.generation(g).snapshot()
        dataset = (f"{self.campaign.config.name}-snapshot-{g:04d}", snapshot.digest) if snapshot else None
        self.log_metrics(self.runs.generation_run(g), g, scores, model_id=model.model_id, dataset=dataset)
        self.log_metrics(self.runs.generation_run(g), g, {**effort, **extra})
        self.log_metrics(
            self.runs.campaign_run(), g, {**scores, **effort, **extra, "champion": float(judgement.champion)}
        )
        verdict = comparison.verdict if comparison else "first"
        note = "\n\n".join(answer(self.campaign, judgement).lines())
        for run_id, tags in (
            (self.runs.generation_run(g), {"rescueseg.verdict": verdict, "mlflow.note.content": note}),
            (
                self.runs.campaign_run(),
                {"rescueseg.champion": str(judgement.champion), "mlflow.note.content": note},
            ),
        ):
            for key, value in tags.items():
                self.runs.client.set_tag(run_id, key, value)
        self._registry.set_champion(judgement.champion, self.runs.generation_run(judgement.champion))


def _comparison_scores(comparison: Comparison) -> dict[str, float]:
    """Return the figures of a comparison as flat names; those that there are not are left out."""
    name = "validation_dice_gain_over_champion"
    low, high = comparison.interval or (None, None)
    scores = {name: comparison.difference, f"{name}_low": low, f"{name}_high": high, f"{name}_p": comparison.p_value}
    return {key: value for key, value in scores.items() if value is not None}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their path, such as `training.unet.ema`, whatever tables they stand in."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
