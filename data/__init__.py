"""Data sets: each has ``train_loader``, ``val_loader`` and ``update_task(i)``; see ``TaskDataset``."""

from utils.registry import Registry, of

# What --set can name: subclasses of TaskDataset.
DATASETS = Registry(
    {
        **of("data.digits", "DigitsPerm", "RotatingDigits", "SplitDigits"),
        **of("data.mnist", "MNIST", "FashionMNIST", "MNISTPerm", "RotatingMNIST", "SplitMNIST"),
        "PartitionMNISTV2": "data.mnist:SplitMNIST",  # the original's name
        **of("data.cifar", "CIFAR10", "SplitCIFAR10", "SplitCIFAR100"),
        "RandSplitCIFAR100": "data.cifar:SplitCIFAR100",  # the original's name
        **of("data.imagenet", "SplitImageNet"),
    }
)
