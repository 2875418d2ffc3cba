"""What MLflow stores with a model ("models from code") and runs to load it; that rescueseg must be installed there."""

from __future__ import annotations

import mlflow

from rescueseg.tracking.served_model import SegmentationModel

mlflow.models.set_model(SegmentationModel())
