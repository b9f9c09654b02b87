"""Data sets: each has ``train_loader``, ``val_loader`` and ``update_task(i)``; see ``TaskDataset``."""

from data.base import TaskDataset
from data.digits import DigitsPerm, RotatingDigits, SplitDigits
from data.mnist import MNIST, FashionMNIST, MNISTPerm, RotatingMNIST, SplitMNIST

DATASETS: dict[str, type[TaskDataset]] = {
    "DigitsPerm": DigitsPerm,
    "RotatingDigits": RotatingDigits,
    "SplitDigits": SplitDigits,
    "MNIST": MNIST,
    "FashionMNIST": FashionMNIST,
    "MNISTPerm": MNISTPerm,
    "RotatingMNIST": RotatingMNIST,
    "SplitMNIST": SplitMNIST,
    "PartitionMNISTV2": SplitMNIST,  # the original's name
}
