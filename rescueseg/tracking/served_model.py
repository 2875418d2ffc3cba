"""A registered model as MLflow serves it.

Models in MLflow import `SegmentationModel` from here (see `pyfunc_model`): neither the module nor the class may ever be
renamed, and what is stored with a model (`model_config`, the folder) is read for ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from rescueseg.config import InferenceConfig
from rescueseg.errors import InferenceError
from rescueseg.evaluation.temperature import temper
from rescueseg.inference.boxes import predict_image
from rescueseg.models.registry import load_predictor
from rescueseg.records import ModelReference
from rescueseg.storage import Storage
from rescueseg.volumes.normalise import measure, normalise


class SegmentationModel(PythonModel):
    """Class probabilities of one image in memory; whole volumes go through `rescueseg.inference.engine`.

    That is all it gives, whatever the family: of StarDist and Cellpose too, where objects are numbered, neither rays nor flows
    nor numbers. Numbered objects of whole volumes are what ``rescueseg segment`` makes.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and description (safetensors and JSON) from the stored folder."""
        settings: dict[str, Any] = dict(context.model_config)
        self._config = InferenceConfig.model_validate(settings["inference"])
        self._temperature: float | None = settings.get("temperature")
        self._linear = float(
            settings.get("linear", 0.0)
        )  # what an earlier version stored was trained on clipped images
        reference = ModelReference.model_validate(settings["model"] | {"path": "."})
        self._predictor = load_predictor(Storage(context.artifacts["model"]), reference, self._config, "auto")

    def predict(  # type: ignore[no-untyped-def]  # MLflow would take a type hint of the input for a schema
        self,
        context,  # noqa: ARG002
        model_input,
        params=None,
    ) -> npt.NDArray[np.float32]:
        """Return class probabilities.

        Parameters
        ----------
        context : PythonModelContext
            As loaded.
        model_input : ndarray, czyx
            Raw intensities; scaled here as at import, from the image itself.
        params : dict
            `spacing_um_zyx`, voxel size in micrometre; that of the campaign's first volume when omitted. `tempered`,
            whether the temperature that was fitted on the validation boxes is applied; false when omitted.

        Returns
        -------
        ndarray, (K + 1)zyx
            float32, background first: the mean over networks, dropout samples and symmetries. The class of a voxel is
            ``argmax(axis=0)``; objects are not told apart.

        Raises
        ------
        InferenceError
            If tempered probabilities are asked of a model that was stored before it had a temperature.
        """
        tempered = bool((params or {}).get("tempered", False))
        if tempered and self._temperature is None:
            raise InferenceError("the model was stored without a temperature", todo="Leave `tempered` out")
        z, y, x = (float(s) for s in (params or {})["spacing_um_zyx"])
        image = np.asarray(model_input)
        scaled = normalise(image, measure(image, image.shape[1:], self._linear))
        blended = predict_image(self._predictor, scaled, (z, y, x), self._config.overlap, "pyfunc")
        return temper(blended, self._temperature) if tempered and self._temperature is not None else blended
