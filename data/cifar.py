"""CIFAR-10 and CIFAR-100, whole and split into tasks by class."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data.base import BaseSet, SplitByClass, TaskDataset
from data.files import read_arrays

PADDING = 4


def crop_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels either way, with black from outside, and flip every other one, at random.

    As padding by 4, a random crop and a random horizontal flip of each image by itself, but for a batch in one
    gather.

    Args:
        x: uint8 [B, C, H, W].
        generator: on the CPU.

    Returns:
        uint8 [B, C, H, W].
    """
    batch, channels, height, width = x.shape
    top, left = torch.randint(0, 2 * PADDING + 1, (2, batch, 1), generator=generator).to(x.device)
    flip = torch.randint(0, 2, (batch, 1), generator=generator, dtype=torch.bool).to(x.device)
    rows = top + torch.arange(height, device=x.device)  # [B, H], in the padded image
    columns = torch.arange(width, device=x.device)
    columns = left + torch.where(flip, columns.flip(0), columns)  # [B, W]
    padded = torch.nn.functional.pad(x, (PADDING,) * 4).permute(0, 2, 3, 1)  # [B, H + 8, W + 8, C]
    images = torch.arange(batch, device=x.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


class CIFAR10(TaskDataset):
    """50,000 + 10,000 photographs of 10 classes, (3, 32, 32); one task."""

    num_classes = 10
    source, base_classes = "CIFAR10", 10  # in torchvision.datasets
    mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    augment = staticmethod(crop_and_flip)

    def load(self, root: str | Path | None) -> BaseSet:
        arrays = read_arrays(root, self.source, image_shape=(32, 32, 3), num_classes=self.base_classes)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for split in ("train", "test"):
            tensors[f"{split}_images"] = tensors[f"{split}_images"].permute(0, 3, 1, 2).contiguous()  # [N, 3, 32, 32]
        return BaseSet(**tensors, mean=self.mean, std=self.std)


class SplitCIFAR10(SplitByClass, CIFAR10):
    """CIFAR-10 in tasks of two classes, 5 of them, in an order that the seed decides."""

    num_classes = 2


class SplitCIFAR100(SplitByClass, CIFAR10):
    """CIFAR-100 in tasks of five classes, 20 of them, in an order that the seed decides."""

    num_classes = 5
    source, base_classes = "CIFAR100", 100
