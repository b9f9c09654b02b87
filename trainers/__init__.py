"""How a task is learned, and how it is tested."""

from trainers.adaptors import ADAPTORS, InferenceOptions, TaskScore, check_adaptor, evaluate
from trainers.default import DefaultTrainer, TrainingOptions
from trainers.nns import NNsTrainer

TRAINERS: dict[str, type[DefaultTrainer]] = {"default": DefaultTrainer, "nns": NNsTrainer}

__all__ = [
    "ADAPTORS",
    "TRAINERS",
    "DefaultTrainer",
    "InferenceOptions",
    "NNsTrainer",
    "TaskScore",
    "TrainingOptions",
    "check_adaptor",
    "evaluate",
]
