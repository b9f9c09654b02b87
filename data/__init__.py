"""Data sets: each has ``train_loader``, ``val_loader`` and ``update_task(i)``; see ``TaskDataset``."""

from data.base import TaskDataset
from data.cifar import CIFAR10, SplitCIFAR10, SplitCIFAR100
from data.digits import DigitsPerm, RotatingDigits, SplitDigits
from data.imagenet import SplitImageNet
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
    "CIFAR10": CIFAR10,
    "SplitCIFAR10": SplitCIFAR10,
    "SplitCIFAR100": SplitCIFAR100,
    "RandSplitCIFAR100": SplitCIFAR100,  # the original's name
    "SplitImageNet": SplitImageNet,
}
