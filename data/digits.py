"""The hand-written digits that scikit-learn ships, as large as MNIST's: data for when there is no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from data.base import BaseSet, Permuted, Rotating, Split, TaskDataset, digest
from utils.fingerprint import Fingerprint

TEST_IMAGES_PER_CLASS = 36  # 360 of 1,797
SPLIT_SEED = 0  # which images are test images is part of the set, not of a run


class Digits(TaskDataset):
    """1,437 + 360 hand-written digits scaled from 8x8 to (1, 28, 28); needs no files."""

    num_classes = 10
    from_files = False

    def load(self, root: str | Path | None) -> BaseSet:
        from sklearn.datasets import load_digits  # takes a second to import, and only wanted here

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)  # [N, 1, 8, 8]
        images = interpolate(images, size=(28, 28), mode="bilinear").round().to(torch.uint8)
        labels = torch.from_numpy(digits.target).long()

        shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
        test = np.concatenate(
            [shuffled[digits.target[shuffled] == label][:TEST_IMAGES_PER_CLASS] for label in range(self.num_classes)]
        )
        test = torch.from_numpy(np.sort(test))
        train = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, test, False)

        pixels = images[train].double() / 255
        return BaseSet(
            images[train],
            labels[train],
            images[test],
            labels[test],
            mean=(pixels.mean().item(),),
            std=(pixels.std().item(),),
        )

    def fingerprint(self) -> Fingerprint:
        from sklearn.datasets import load_digits

        digits = load_digits()  # as it ships them: what scaling makes of them may differ by rounding
        return Fingerprint(digest(digits.images, digits.target))


class DigitsPerm(Permuted, Digits):
    """Digits with permuted pixels, 5 tasks unless told otherwise."""


class RotatingDigits(Rotating, Digits):
    """Digits turned, 36 tasks unless told otherwise."""


class SplitDigits(Split, Digits):
    """Digits in 5 tasks of two digits."""
