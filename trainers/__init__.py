"""How a task is learned, and how it is tested."""

from trainers.adaptors import ADAPTORS, InferenceOptions, TaskScore, evaluate
from trainers.default import DefaultTrainer, TrainingOptions
from trainers.reinit import ADAPTATIONS, ReinitTrainer

TRAINERS: dict[str, type[DefaultTrainer]] = {"default": DefaultTrainer, "reinit": ReinitTrainer}

__all__ = [
    "ADAPTATIONS",
    "ADAPTORS",
    "TRAINERS",
    "DefaultTrainer",
    "InferenceOptions",
    "ReinitTrainer",
    "TaskScore",
    "TrainingOptions",
    "evaluate",
]
