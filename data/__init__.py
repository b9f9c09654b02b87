"""Data sets: each has ``train_loader``, ``val_loader`` and ``update_task(i)``; see ``TaskDataset``."""

from utils.registry import Registry, of

# What ``set`` can name: subclasses of TaskDataset.
DATASETS = Registry(
    {
        **of("data.digits", "DigitsPerm", "RotatingDigits", "SplitDigits"),
        **of("data.mnist", "MNIST", "FashionMNIST", "MNISTPerm", "RotatingMNIST", "SplitMNIST"),
        "PartitionMNISTV2": "data.mnist:SplitMNIST",  # the original's name
        **of("data.cifar", "CIFAR10", "SplitCIFAR10", "SplitCIFAR100"),
        "RandSplitCIFAR100": "data.cifar:SplitCIFAR100",  # the original's name
        **of("data.imagenet", "SplitImageNet"),
        "folder:PATH": "data.folder:folder",  # images of the user's own
        "npz:FILE": "data.folder:npz",
    }
)
# What ``tasks_by`` can name, for sets of the user's own.
TASKS_BY = Registry(
    {
        "classes": "data.folder:OwnClasses",
        "permutation": "data.folder:OwnPermutations",
        "rotation": "data.folder:OwnRotations",
        "folders": "data.folder:OwnClasses",
    }
)
