"""Training: the `Trainer` protocol, its registry and its implementations."""

from rescueseg.training.base import TrainedModel, Trainer, TrainerCapabilities, TrainingRequest
from rescueseg.training.registry import TRAINERS, get_trainer

__all__ = ["TRAINERS", "TrainedModel", "Trainer", "TrainerCapabilities", "TrainingRequest", "get_trainer"]
