"""ImageNet, split into tasks by class; decoded by worker processes, for it does not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from data.base import SplitByClass
from data.loader import Loader, Preparation
from utils.errors import UserError
from utils.seeding import generator
from utils.signals import ignore

SIZE, RESIZED = 224, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Item = tuple[str, int, tuple[int | str, ...]]  # path, label, key of the generator that augments it


class _Decoder(Dataset):
    """Turns items into images; it knows no task, so that its worker processes serve a whole run."""

    def __init__(self, augment: bool):
        from torchvision import transforms  # takes a second to import, and only wanted here

        if augment:
            steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        else:
            steps = [transforms.Resize(RESIZED), transforms.CenterCrop(SIZE)]
        self.transform = transforms.Compose([*steps, transforms.PILToTensor()])

    def __getitem__(self, item: Item) -> tuple[Tensor, int]:
        """An image uint8 [3, 224, 224] and its label."""
        from torchvision.datasets.folder import pil_loader

        path, label, key = item
        try:
            image = pil_loader(path)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); replace it") from None
        # torchvision draws from the global generator: each image has it to itself, under its own key, so that the
        # number of workers and the order of images change nothing.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(*key).initial_seed())
            return self.transform(image), label


class _Batches(Sampler[list[Item]]):
    """The batches of the current epoch, as the loader below set them."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Item]] = ()

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)


def _ignore_signals(_: int) -> None:
    """A worker ends when its run does, which first finishes its batch."""
    ignore()


def _collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    if items:
        return default_collate(items)
    # A process's share of a small batch may be nothing.
    return torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)


class FolderLoader(Loader):
    """Serves (x float32 [B, 3, 224, 224], y int64 [B]) from image files, as ``BatchLoader`` does from tensors.

    Args:
        augment: whether images are cropped and flipped at random, in an order of its own for each epoch.
        batch_size: images in a batch; the last one holds what is left.
        seed: of order and augmentation, together with task, epoch and image.
        device: where batches go.
        workers: processes that decode; 0 for none.
        share: (rank, size): of each batch only the images rank, rank + size, ..., as one of ``size`` processes.
    """

    def __init__(
        self,
        augment: bool,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        workers: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.share = slice(share[0], None, share[1])
        self.augment, self.batch_size, self.seed, self.device = augment, batch_size, seed, device
        self.prepare = Preparation(MEAN, STD, None, device)
        self._batches = _Batches()
        self._decoded = DataLoader(
            _Decoder(augment),
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            collate_fn=_collate,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # nothing is drawn from it, and the global one is left alone
        )

    def serve(self, task: int, images: list[tuple[str, int]]) -> None:
        """Serve ``images``, paths and labels, of ``task``."""
        self.task, self.images, self.num_images = task, images, len(images)
        self.set_epoch(0)

    def unprepared(self) -> Iterator[tuple[Tensor, Tensor]]:
        key = (self.seed, "augment", self.task, self.epoch)
        rows = range(self.num_images)
        if self.augment:
            order = generator(self.seed, "order", self.task, self.epoch)
            rows = torch.randperm(self.num_images, generator=order).tolist()
        items = [(*self.images[row], (*key, row)) for row in rows]
        size = self.batch_size
        self._batches.batches = [
            items[index * size : (index + 1) * size][self.share] for index in range(self.start, len(self))
        ]
        try:
            for x, y in self._decoded:
                yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        except UserError as error:  # from a worker it comes with that worker's traceback in front
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("utils.errors.UserError: ")) from None


class SplitImageNet(SplitByClass):
    """ImageNet in tasks of ten classes, 100 of them, the same for every seed.

    Reads ``<root>/imagenet/{train,val}/<class>/<image>``; nothing is downloaded. A class's number is the place of its
    folder's name in the sorted list.
    """

    num_classes, base_classes = 10, 1000
    split_seed = 1
    input_shape = (3, SIZE, SIZE)

    def open(self, root: str | Path | None) -> None:
        if root is None:
            raise UserError("--data is needed for SplitImageNet: the parent folder of imagenet/")
        self.folder = Path(root).expanduser() / "imagenet"
        self.class_names = self._names("train")
        different = set(self.class_names) ^ set(self._names("val"))
        if different:
            raise UserError(f"{self.folder}: train and val have different classes, such as {min(different)}")
        for task in range(self.num_tasks):
            for split in ("train", "val"):
                for label in self.classes_of(task):
                    self._check_class(self.folder / split / self.class_names[label])
        common = dict(seed=self.seed, device=self.device, workers=self.workers)
        self.train_loader = FolderLoader(True, batch_size=self.batch_size, share=self.share, **common)
        self.val_loader = FolderLoader(False, batch_size=self.test_batch_size, **common)

    def _names(self, split: str) -> list[str]:
        """The class folders of a split, sorted."""
        folder = self.folder / split
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except OSError as error:
            raise UserError(
                f"SplitImageNet is missing: {folder}: {error.strerror}; put the class folders there, "
                "they are not downloaded"
            ) from None
        if len(names) != self.base_classes:
            raise UserError(f"{folder}: has {len(names)} class folders, should have {self.base_classes}")
        return names

    def _check_class(self, folder: Path) -> None:
        from torchvision.datasets.folder import is_image_file

        if not any(is_image_file(entry.name) for entry in os.scandir(folder)):
            raise UserError(f"{folder}: has no images")

    def serve(self, task: int) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.datasets.folder import IMG_EXTENSIONS

        labels = {self.class_names[label]: place for place, label in enumerate(self.classes_of(task))}
        for split, loader in (("train", self.train_loader), ("val", self.val_loader)):
            loader.serve(task, ImageFolder.make_dataset(str(self.folder / split), labels, IMG_EXTENSIONS))
