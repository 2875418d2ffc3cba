"""A campaign's models in MLflow: LoggedModels made from code, registered once per digest, and the two aliases."""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow.pyfunc
import numpy as np
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import rescueseg
from rescueseg.campaign import Campaign
from rescueseg.evaluation.calibration import CALIBRATION
from rescueseg.models.registry import find_entry
from rescueseg.records import ModelReference, Record
from rescueseg.volumes.normalise import common_linear

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST = "rescueseg.model_digest"
GENERATION = "rescueseg.generation"
MODEL_ID = "rescueseg.model_id"  # a search for versions does not return it
CODE = "rescueseg.code"
"""Tag with the `LOADER` of a stored model."""
LOADER = "rescueseg.tracking.served_model:SegmentationModel"
"""What a stored model imports; models without this tag import modules that are no longer there, and are stored anew."""
CANDIDATE, CHAMPION = "candidate", "champion"


class RegisteredModel(Record):
    """A generation's model in MLflow."""

    name: str
    version: str
    model_id: str

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}/{self.version}"


class ModelRegistry:
    """The registered model of one campaign.

    Parameters
    ----------
    client : MlflowClient
        Of the campaign's server.
    campaign : Campaign
        Holds the model folders.
    experiment_id, name : str
        Experiment of the LoggedModels, and name of the registered model.
    """

    def __init__(self, client: MlflowClient, campaign: Campaign, experiment_id: str, name: str) -> None:
        self._client = client
        self._campaign = campaign
        self._experiment_id = experiment_id
        self.name = name

    def register(self, generation: int, model: ModelReference, run_id: str) -> RegisteredModel:
        """Store a generation's model as LoggedModel and register it, once per digest, as `candidate`.

        The model is a pyfunc made from code: its folder (safetensors and JSON) and `pyfunc_model.py`, nothing pickled.
        """
        registered = self._loadable(generation, model, run_id)
        self._client.set_registered_model_alias(self.name, CANDIDATE, registered.version)
        return registered

    def _loadable(self, generation: int, model: ModelReference, run_id: str) -> RegisteredModel:
        """Return the version of a model that this version of rescueseg loads; made now if there is none."""
        versions = self.versions()
        if model.digest not in versions:
            self._create_version(generation, model, run_id, self.store(f"generation-{generation}", model, run_id))
            versions = self.versions()
        return versions[model.digest]

    def versions(self) -> dict[str, RegisteredModel]:
        """Return the registered versions that this version of rescueseg loads, by model digest."""
        return {
            tags[DIGEST]: RegisteredModel(name=self.name, version=version, model_id=tags[MODEL_ID])
            for version, tags in self._tags()
            if tags.get(CODE) == LOADER
        }

    def _tags(self) -> list[tuple[str, dict[str, str]]]:
        """Return number and tags of the versions made of trained models, the latest first."""
        versions = self._client.search_model_versions(f"name = '{self.name}'")
        latest_first = sorted(versions, key=lambda version: -int(version.version))
        return [(str(version.version), dict(version.tags)) for version in latest_first if DIGEST in version.tags]

    def _create_version(self, generation: int, model: ModelReference, run_id: str, model_id: str) -> None:
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._client.create_model_version(
            self.name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags={DIGEST: model.digest, GENERATION: str(generation), MODEL_ID: model_id, CODE: LOADER},
            await_creation_for=0,
            model_id=model_id,
        )

    def store(self, name: str, model: ModelReference, run_id: str) -> str:
        """Return the id of the LoggedModel with the model's digest; a half-written one is thrown away."""
        alike = f"tags.`{DIGEST}` = '{model.digest}' AND tags.`{CODE}` = '{LOADER}'"
        for model_of_digest in self._client.search_logged_models([self._experiment_id], alike):
            if str(model_of_digest.status) == "READY":
                return str(model_of_digest.model_id)
            self._client.delete_logged_model(model_of_digest.model_id)
        logged = self._client.create_logged_model(
            self._experiment_id,
            name=name,
            source_run_id=run_id,
            tags={DIGEST: model.digest, GENERATION: str(model.generation), CODE: LOADER},
            params={"trainer": model.trainer, "generation": str(model.generation), "model_digest": model.digest},
            model_type="segmentation",
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model")
            self._save_pyfunc(path, model, logged.model_id, run_id)
            self._client.log_model_artifacts(logged.model_id, str(path))

        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=model.generation)])
        self._client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def _save_pyfunc(self, path: Path, model: ModelReference, model_id: str, run_id: str) -> None:
        """Write the pyfunc model of a trained model to a local folder."""
        spacing = self._campaign.volumes.records()[0].spacing_um_zyx
        image = TensorSpec(np.dtype(np.float32), (-1, -1, -1, -1))  # a name would turn the array into a dict
        probability = TensorSpec(np.dtype(np.float32), (-1, -1, -1, -1))
        signature = ModelSignature(
            Schema([image]),
            Schema([probability]),
            ParamSchema(
                [
                    ParamSpec("spacing_um_zyx", DataType.double, list(spacing), (-1,)),
                    ParamSpec("tempered", DataType.boolean, False),
                ]
            ),
        )
        calibration = self._campaign.generation(model.generation).read(CALIBRATION)
        is_current = calibration is not None and calibration.model_digest == model.digest
        temperature = calibration.temperature if calibration and is_current else None
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            for name in self._campaign.storage.list(model.path):
                Path(folder, name).write_bytes(self._campaign.storage.read_bytes(f"{model.path}/{name}"))
            warnings.filterwarnings("ignore", message=".*(input example|type hints).*", category=UserWarning)
            mlflow.pyfunc.save_model(
                path,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"model": folder},
                mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
                model_config={
                    "model": model.to_json(),
                    "classes": ["background", *self._campaign.config.classes],
                    "inference": self._campaign.config.inference.model_dump(mode="json", exclude_none=True),
                    "temperature": temperature,
                    "linear": common_linear(v.normalisation for v in self._campaign.volumes.records()),
                },
                signature=signature,
                pip_requirements=_requirements(model.trainer),
                metadata={"rescueseg_version": rescueseg.__version__, "temperature": temperature},
            )

    def set_champion(self, generation: int, run_id: str) -> None:
        """Give a generation's model the alias `champion`; nothing happens when it is not registered.

        Parameters
        ----------
        generation : int
            The champion.
        run_id : str
            Its run: gets the model once more where an earlier version stored it.
        """
        model = self._campaign.generation(generation).model()
        if model is not None and model.digest in {tags[DIGEST] for _, tags in self._tags()}:
            registered = self._loadable(generation, model, run_id)
            self._client.set_registered_model_alias(self.name, CHAMPION, registered.version)


def _requirements(trainer: str) -> list[str]:
    """Return what a model needs, rescueseg first: no package index holds it, it has to be installed there."""
    names = sorted({"mlflow", "numpy", "safetensors", *find_entry(trainer).requirements})
    return [f"rescueseg=={rescueseg.__version__}", *(f"{name}=={version(name)}" for name in names)]
