"""How a task is learned, and how it is tested."""

from trainers.adaptors import ADAPTORS, InferenceOptions, TaskScore, check_adaptor, evaluate
from trainers.default import DefaultTrainer, TrainingOptions
from trainers.nns import NNsTrainer
from trainers.reinit import ADAPTATIONS, ReinitTrainer

TRAINERS: dict[str, type[DefaultTrainer]] = {"default": DefaultTrainer, "nns": NNsTrainer, "reinit": ReinitTrainer}

__all__ = [
    "ADAPTATIONS",
    "ADAPTORS",
    "TRAINERS",
    "DefaultTrainer",
    "InferenceOptions",
    "NNsTrainer",
    "ReinitTrainer",
    "TaskScore",
    "TrainingOptions",
    "check_adaptor",
    "evaluate",
]
