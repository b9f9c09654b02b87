"""MNIST and FashionMNIST, and the tasks made of MNIST: permutations, rotations, pairs of digits."""

from __future__ import annotations

from pathlib import Path

import torch

from data.base import BaseSet, Permuted, Rotating, Split, TaskDataset
from data.files import read_arrays


class MNIST(TaskDataset):
    """60,000 + 10,000 hand-written digits, (1, 28, 28); one task."""

    num_classes = 10
    source = "MNIST"  # in torchvision.datasets
    mean, std = (0.1307,), (0.3081,)

    def load(self, root: str | Path | None) -> BaseSet:
        arrays = read_arrays(root, self.source, image_shape=(28, 28), num_classes=self.num_classes)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for split in ("train", "test"):
            tensors[f"{split}_images"] = tensors[f"{split}_images"].unsqueeze(1)  # [N, 1, 28, 28]
        return BaseSet(**tensors, mean=self.mean, std=self.std)


class FashionMNIST(MNIST):
    """60,000 + 10,000 pieces of clothing, (1, 28, 28); one task, normalised as MNIST."""

    source = "FashionMNIST"


class MNISTPerm(Permuted, MNIST):
    """MNIST with permuted pixels, 5 tasks unless told otherwise."""


class RotatingMNIST(Rotating, MNIST):
    """MNIST turned, 36 tasks unless told otherwise."""


class SplitMNIST(Split, MNIST):
    """MNIST in 5 tasks of two digits."""
