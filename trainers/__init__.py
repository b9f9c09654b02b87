"""How a task is learned, and how it is tested."""

from trainers.adaptors import ADAPTORS, InferenceOptions, TaskScore, evaluate
from trainers.default import DefaultTrainer, TrainingOptions

TRAINERS: dict[str, type[DefaultTrainer]] = {"default": DefaultTrainer}

__all__ = [
    "ADAPTORS",
    "TRAINERS",
    "DefaultTrainer",
    "InferenceOptions",
    "TaskScore",
    "TrainingOptions",
    "evaluate",
]
