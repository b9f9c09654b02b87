"""Batches straight from tensors on the run's device: no worker processes, no work per image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from utils.seeding import generator

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class View:
    """What a task sees of its base set; ``None`` leaves that part as it is.

    Attributes:
        classes: only the images of these classes.
        pixels: int64 [H*W], for each pixel the flat position that it is taken from, or -1 for black.
        new_labels: int64 [base classes], the label that each class of the base set has in this task.
    """

    classes: Sequence[int] | None = None
    pixels: Tensor | None = None
    new_labels: Tensor | None = None


class Preparation:
    """Makes the bytes of images what a network sees: pixels moved, then normalised.

    Args:
        mean, std: of each channel, for pixels in [0, 1].
        pixels: int64 [..., H*W], for each pixel the flat position that it is taken from, or -1 for black; None to leave
            all where they are.
    """

    def __init__(
        self,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        pixels: Tensor | None,
        device: str | torch.device,
    ) -> None:
        self.mean, self.std = (torch.as_tensor(each, device=device).view(-1, 1, 1) for each in (mean, std))
        self.pixels = None if pixels is None else pixels.to(device)
        if self.pixels is not None:
            lit = self.pixels >= 0
            whole = bool(lit.all())
            self._source = (self.pixels if whole else self.pixels.clamp(min=0)).unsqueeze(-2)  # of all images alike
            self._lit = None if whole else lit.byte().unsqueeze(-2)

    @classmethod
    def stacked(cls, parts: Sequence[Preparation]) -> Preparation:
        """That of the stacked batches of several tasks of one data set."""
        first = parts[0]
        pixels = None if first.pixels is None else torch.stack([part.pixels for part in parts])
        return cls(first.mean, first.std, pixels, first.mean.device)

    def __call__(self, x: Tensor) -> Tensor:
        """x uint8 [..., B, C, H, W] to float32 of that shape; leading dimensions are those of ``pixels``."""
        x = self._move(x).float()
        return x.div_(255).sub_(self.mean).div_(self.std)  # the operations of ToTensor and Normalize, hence their bits

    def _move(self, x: Tensor) -> Tensor:
        """Bytes to bytes of that shape: a quarter of the memory of floats to go through."""
        if self.pixels is None:
            return x
        rows = x.flatten(-2).flatten(-3, -2)  # [..., B*C, H*W]
        moved = rows.gather(-1, self._source.expand_as(rows))
        return (moved if self._lit is None else moved.mul_(self._lit)).view_as(x)


def order_of(images: int, seed: int, task: int, epoch: int) -> Tensor:
    """The places of so many images in the order of an epoch, which is drawn from its key alone: int64 (images,)."""
    return torch.randperm(images, generator=generator(seed, "order", task, epoch))


class Loader(ABC):
    """What every loader can say and be told: how many batches an epoch has, and which epoch is next.

    Attributes:
        shuffle: whether each epoch has an order of its own, drawn from (seed, task, epoch).
    """

    num_images: int
    batch_size: int
    prepare: Preparation
    shuffle: bool
    seed: int
    task: int

    def shuffled(self) -> Loader:
        """The same images, in an order drawn from the seed and the task."""
        loader = copy(self)
        loader.shuffle = True
        return loader

    def together(self, most_bytes: int) -> Loader:
        """The same images in the same order, several batches at a time: as many as have so many bytes as float32.

        Where batches are not made of images in memory they stay as they are.
        """
        return self

    def order(self) -> Tensor:
        """The places of the images in the order of this epoch: int64 [num_images]."""
        if not self.shuffle:
            return torch.arange(self.num_images)
        return order_of(self.num_images, self.seed, self.task, self.epoch)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-self.num_images // self.batch_size)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch to iterate over, and its first batch: ``start`` batches are skipped at no cost."""
        self.epoch, self.start = epoch, start

    @abstractmethod
    def unprepared(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the epoch before their preparation: x uint8 [B, C, H, W], y int64 [B]."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.unprepared():
            yield self.prepare(x), y


class StackedLoader(Loader):
    """The batches of several tasks at once: x (tasks, batch, C, H, W), y (tasks, batch).

    Args:
        loaders: one a task, all of one data set.

    Raises:
        ValueError: they have not equally many images, or are one and the same.
    """

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders, (first, *others) = loaders, loaders
        self.num_images, self.batch_size = first.num_images, first.batch_size
        if any(other is first for other in others):
            raise ValueError("the images of one task at a time are read")
        if any(other.num_images != self.num_images for other in others):
            raise ValueError("the tasks have not equally many images")

    def together(self, most_bytes: int) -> Loader:
        parts = [loader.together(most_bytes // len(self.loaders)) for loader in self.loaders]
        return self if parts[0] is self.loaders[0] else StackedLoader(parts)

    @cached_property
    def prepare(self) -> Preparation:
        """Made for the first batch, for a run first asks whether all of its tasks could be stacked."""
        return Preparation.stacked([loader.prepare for loader in self.loaders])

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        for loader in self.loaders:
            loader.set_epoch(epoch, start)

    def unprepared(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self.loaders[0]
        if isinstance(first, BatchLoader) and first.augment is None:  # all at once, from the images that they share
            labels = None if first.new_labels is None else torch.stack([loader.new_labels for loader in self.loaders])
            places = torch.stack([loader.places() for loader in self.loaders])
            for batch in first.batches():
                yield first.take(places[:, batch][:, first.share], labels)
            return
        for batches in zip(*(loader.unprepared() for loader in self.loaders), strict=True):
            x, y = zip(*batches, strict=True)
            yield torch.stack(x), torch.stack(y)


class BatchLoader(Loader):
    """Serves (x float32 [B, C, H, W], y int64 [B]), normalised, in an order of its own.

    Args:
        images: uint8 [N, C, H, W]; batches are made on its device.
        labels: int64 [N], on the same device.
        batch_size: images in a batch; the last one holds what is left.
        mean, std: of each channel, for pixels in [0, 1].
        view: what the task sees of the images.
        shuffle: whether each epoch has an order of its own, drawn from (seed, task, epoch).
        augment: turns a batch (uint8 [B, C, H, W], on the device) and a generator into a batch of the same
            shape. The generator is keyed by seed, task, epoch and batch, so that an epoch taken up in its
            middle is augmented as if it had run through. Like the order, it draws on the CPU, so that every
            device sees the same numbers.
        share: (rank, size): of each batch only the images rank, rank + size, ..., as one of ``size`` processes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int = 128,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        view: View = View(),
        shuffle: bool = False,
        seed: int = 0,
        task: int = 0,
        augment: Augment | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        device = images.device
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.prepare = Preparation(mean, std, view.pixels, device)
        self.shuffle, self.seed, self.task, self.augment = shuffle, seed, task, augment
        self.share = slice(share[0], None, share[1])

        self.rows = None  # None: every row
        if view.classes is not None:
            classes = torch.tensor(view.classes, device=device)
            self.rows = torch.isin(labels, classes).nonzero().squeeze(1)
        self.num_images = len(images if self.rows is None else self.rows)

        self.new_labels = None if view.new_labels is None else view.new_labels.to(device)
        self.set_epoch(0)

    def together(self, most_bytes: int) -> Loader:
        if self.augment is not None:  # by batch
            return self
        loader = copy(self)
        loader.batch_size *= max(1, most_bytes // (4 * self.batch_size * self.images[0].numel()))
        return loader

    def places(self) -> Tensor:
        """The rows of ``images`` in the order of this epoch: int64 [num_images]."""
        order = self.order().to(self.images.device)
        return order if self.rows is None else self.rows[order]

    def batches(self) -> Iterator[slice]:
        """Where in that order each batch lies, from the first one that is not skipped."""
        size = self.batch_size
        return (slice(index * size, (index + 1) * size) for index in range(self.start, len(self)))

    def take(self, places: Tensor, new_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The images uint8 [..., B, C, H, W] at ``places`` [..., B], and their labels int64 [..., B].

        Args:
            new_labels: what the labels become, int64 [..., base classes]; None to leave them as they are.
        """
        x = self.images.index_select(0, places.flatten()).unflatten(0, places.shape)
        y = self.labels.index_select(0, places.flatten()).view_as(places)
        return x, y if new_labels is None else new_labels.gather(-1, y)

    def unprepared(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, places = self.epoch, self.places()
        for index, batch in enumerate(self.batches(), start=self.start):
            x, y = self.take(places[batch], self.new_labels)
            if self.augment is not None:
                x = self.augment(x, generator(self.seed, "augment", self.task, epoch, index))
            yield x[self.share], y[self.share]  # after augmentation, so that it is that of the whole batch
