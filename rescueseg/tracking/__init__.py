"""MLflow, and the only package that imports it: experiment, runs, curves, models and aliases of a campaign."""

from rescueseg.tracking.models import RegisteredModel
from rescueseg.tracking.tracker import Tracker, tracking_uri

__all__ = ["RegisteredModel", "Tracker", "tracking_uri"]
