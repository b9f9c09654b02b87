"""What a data set is: one base set in memory, and tasks that are views over it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from data.files import as_bytes
from data.images import fit, upright
from data.loader import Augment, BatchLoader, Loader, StackedLoader, View
from utils.errors import UserError
from utils.fingerprint import Fingerprint

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class BaseSet:
    """The images that all tasks share: uint8 [N, C, H, W], labels int64 [N], normalisation a channel.

    Images that are floats from 0 to 1, and labels of other whole numbers, become these.

    Raises:
        UserError: they have another type or shape.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            about = f"{split}_images are {images.dtype} {tuple(images.shape)}: "
            if images.dtype != torch.uint8:
                try:
                    images = torch.from_numpy(as_bytes(images.cpu().numpy())).to(images.device)
                except (TypeError, ValueError) as error:  # the former of types that numpy does not have
                    raise UserError(f"{about}{error}") from None
            if images.ndim != 4 or images.shape[1:] != self.train_images.shape[1:]:
                raise UserError(f"{about}should be uint8 [N, C, H, W], alike for training and test")
            if len(self.mean) not in (1, images.shape[1]):
                raise UserError(f"{about}have {images.shape[1]} channels, and the mean has {len(self.mean)}")
            if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != images.shape[:1]:
                raise UserError(
                    f"{split}_labels are {labels.dtype} {tuple(labels.shape)}: should be int64 ({len(images)},)"
                )
            object.__setattr__(self, f"{split}_images", images)
            object.__setattr__(self, f"{split}_labels", labels.long())

    def to(self, device: str | torch.device) -> BaseSet:
        return replace(
            self,
            **{name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)},
        )


def digest(*parts: Tensor | np.ndarray | str) -> str:
    """A hash of arrays, with their shapes and types, and words."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        array = np.ascontiguousarray(part.cpu() if isinstance(part, Tensor) else part)
        hashed.update(f"{array.dtype.kind}{array.dtype.itemsize} {array.shape} ".encode())
        hashed.update(array.tobytes() if array.dtype.kind == "U" else array.reshape(-1).view(np.uint8))
    return hashed.hexdigest()


def mixed_order(images: int) -> np.ndarray:
    """Places of so many test images in an order that says nothing of what they show, the same for every seed.

    Files lie class by class, and batches of one class are not as those of training: batch norm has other statistics of
    them, and what a whole batch says of its task is what one class says.
    """
    return np.random.RandomState(0).permutation(images)


class TaskDataset:
    """A sequence of classification tasks; ``train_loader`` and ``val_loader`` serve the current one.

    Starts at task 0. A subclass says where its images come from (``load``) and what each task sees of them
    (``view``). Only the current task exists, so thousands of them cost nothing.

    Args:
        root: parent folder of the data, for the sets that are read from files.
        num_tasks: tasks to go through; None for the set's own default.
        seed: decides the tasks, where they are random, and the order of training images.
        batch_size, test_batch_size: images in a batch of the training and of the validation loader.
        device: where images lie and batches are made.
        classes_per_task: of sets split by class; None for the set's own.
        workers: processes that decode images, for sets that do not lie in memory.
        keep_images: whether these decode each image but once in a task; see ``data.kept``.
        share: (rank, size): serve this part of each training batch, as one of ``size`` processes of a run.

    Raises:
        UserError: the set cannot have that many tasks, or its files are missing or damaged.
    """

    default_tasks = 1
    max_tasks: int | None = 1  # None: no limit
    depend_on_number = False  # whether what a task is depends on how many there are
    from_files = True  # below ``root``
    unshared_labels = False  # whether right answers are those of the task's own mask alone, unless the user says it
    augment: Augment | None = None  # for training batches; see BatchLoader
    name: str  # for messages: the class's own
    class_names: Sequence[str] | None = None  # of the base set; None where they are numbers
    notes: Sequence[str] = ()  # what a user should know of how the data were read, a line each
    num_classes: int  # labels of a task lie in [0, num_classes)
    base_classes: int  # labels of the base set lie in [0, base_classes); num_classes, if it is not said
    input_shape: tuple[int, int, int]  # (channels, height, width) of an image
    train_loader: Loader
    val_loader: Loader

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        num_tasks: int | None = None,
        seed: int = 0,
        batch_size: int = 128,
        test_batch_size: int = 128,
        device: str | torch.device = "cpu",
        classes_per_task: int | None = None,
        workers: int = 0,
        keep_images: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.choose_classes(classes_per_task, num_tasks)
        self.num_tasks = self.default_tasks if num_tasks is None else num_tasks
        if self.num_tasks < 1 or (self.max_tasks is not None and self.num_tasks > self.max_tasks):
            limit = {None: "any number of tasks from 1 up", 1: "1 task"}.get(
                self.max_tasks, f"1 to {self.max_tasks} tasks"
            )
            of = "" if classes_per_task is None else f" of {classes_per_task} classes"
            raise UserError(f"`num_tasks` {num_tasks}: {self.name} can have {limit}{of}")
        self.seed, self.batch_size, self.test_batch_size = seed, batch_size, test_batch_size
        self.device, self.workers, self.share = torch.device(device), workers, share
        self.keep_images = keep_images
        self.open(root)
        self.update_task(0)

    def __init_subclass__(cls, **more) -> None:
        super().__init_subclass__(**more)
        cls.name = cls.__name__

    def choose_classes(self, classes_per_task: int | None, num_tasks: int | None) -> None:
        """Take the number of classes of a task that the user chose, before anything is read.

        Raises:
            UserError: the set's tasks are not made of so many classes.
        """
        if classes_per_task is not None:
            raise UserError(f"`classes_per_task` {classes_per_task}: cannot be chosen for {self.name}")

    def open(self, root: str | Path | None) -> None:
        """Make the images ready, and say what shape they have: ``input_shape`` (C, H, W)."""
        base = self.load(root)
        self._check(base, root)
        self.base = base.to(self.device)
        self.input_shape = tuple(self.base.train_images.shape[1:])

    def _check(self, base: BaseSet, root: str | Path | None) -> None:
        """See that every task has images of each of its classes to learn from and to be tested on."""
        where = self.name if root is None else f"`data` {root}: {self.name}"
        last = getattr(self, "base_classes", self.num_classes) - 1
        for said, labels in (("training", base.train_labels), ("test", base.test_labels)):
            there = labels.unique().tolist()
            if not there:
                raise UserError(f"{where} has no {said} images")
            if there[0] < 0 or there[-1] > last:
                raise UserError(f"{where} has {said} labels from {there[0]} to {there[-1]}, should be 0 to {last}")
            known = {*there}
            for task in range(self.num_tasks):
                missing = sorted({*self.classes_of(task)} - known)
                if missing:
                    names = [str(label) if self.class_names is None else self.class_names[label] for label in missing]
                    classes = f"class{'es' if len(missing) > 1 else ''} {', '.join(names)}"
                    raise UserError(f"{where} has no {said} images of {classes}, which task {task} is made of")

    def classes_of(self, task: int) -> Sequence[int]:
        """The classes that ``task`` is made of; none if it does not choose among them."""
        return ()

    def load(self, root: str | Path | None) -> BaseSet:
        """Read the base set."""
        raise NotImplementedError

    def view(self, task: int) -> View:
        """What ``task`` sees of the base set; here, all of it."""
        return View()

    def labels_of(self, task: int) -> dict[int, str]:
        """The labels of ``task``, each with the name of its class."""
        view, count = self.view(task), getattr(self, "base_classes", self.num_classes)
        classes = range(count) if view.classes is None else view.classes
        labels = list(classes) if view.new_labels is None else view.new_labels[list(classes)].tolist()
        names = [str(label) if self.class_names is None else self.class_names[label] for label in classes]
        return dict(zip(labels, names, strict=True))

    def classes_told(self) -> str:
        """Which classes are in which task, in one line; here nothing, for it is known."""
        return ""

    def task_name(self, task: int) -> str:
        """What a user calls ``task``: here, its number."""
        return str(task)

    def read(self, path: str) -> Image.Image:
        """An image file as one of the set's test images: mode RGB, of the size of ``input_shape``.

        Raises:
            UserError: it cannot be read.
        """
        return fit(upright(path), tuple(self.input_shape[1:]))

    def settled(self) -> dict[str, object]:
        """Settings that the set has found out by itself, by name."""
        return {}

    def fingerprint(self) -> Fingerprint:
        """What tells these data from others."""
        base = self.base
        return Fingerprint(digest(base.train_images, base.train_labels, base.test_images, base.test_labels))

    def update_task(self, task: int) -> None:
        """Make ``task`` the one that the loaders serve.

        Raises:
            IndexError: there is no such task.
        """
        if not 0 <= task < self.num_tasks:
            raise IndexError(f"task {task}: {self.name} has tasks 0 to {self.num_tasks - 1}")
        self.serve(task)

    def loaders(self, tasks: Sequence[int]) -> tuple[Loader, Loader]:
        """The training and the validation loader of one task, or of several at once.

        Raises:
            ValueError: several tasks have not equally many images, or cannot be served at once.
        """
        pairs = []
        for task in tasks:
            self.update_task(task)
            pairs.append((self.train_loader, self.val_loader))
        train, val = zip(*pairs, strict=True)
        return (train[0], val[0]) if len(tasks) == 1 else (StackedLoader(train), StackedLoader(val))

    def check_stackable(self, tasks: Sequence[int]) -> None:
        """See that ``loaders`` could serve any of the tasks together; no more than two exist at a time.

        Raises:
            ValueError: as ``loaders``.
        """
        first = self.loaders(tasks[:1])
        for task in tasks[1:]:
            for loader, other in zip(first, self.loaders([task]), strict=True):
                StackedLoader((loader, other))

    def serve(self, task: int) -> None:
        """Make the loaders of ``task``."""
        base = self.base
        shared = dict(mean=base.mean, std=base.std, view=self.view(task), seed=self.seed, task=task)
        self.train_loader = BatchLoader(
            base.train_images,
            base.train_labels,
            batch_size=self.batch_size,
            shuffle=True,
            augment=self.augment,
            share=self.share,
            **shared,
        )
        self.val_loader = BatchLoader(base.test_images, base.test_labels, batch_size=self.test_batch_size, **shared)


class Permuted(TaskDataset):
    """Task i permutes the pixels by ``RandomState(seed + i)``."""

    default_tasks = 5
    max_tasks = None

    def view(self, task: int) -> View:
        _, height, width = self.input_shape
        permutation = np.random.RandomState(self.seed + task).permutation(height * width)
        return View(pixels=torch.from_numpy(permutation).long())


class Rotating(TaskDataset):
    """Task i turns the images counter-clockwise by ``i * (360 // num_tasks)`` degrees."""

    default_tasks = 36
    max_tasks = 360
    depend_on_number = True

    def view(self, task: int) -> View:
        from PIL import Image  # with torchvision a second to import, and only wanted here
        from torchvision.transforms.functional import rotate

        # Turning an image of the pixels' own positions tells where each pixel of a turned image comes from;
        # they count from 1, for torchvision fills the corners with 0.
        _, height, width = self.input_shape
        positions = np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width)
        turned = np.array(rotate(Image.fromarray(positions), task * (360 // self.num_tasks)))
        return View(pixels=torch.from_numpy(turned).long().flatten() - 1)


class SplitByClass(TaskDataset):
    """Task i has consecutive classes in an order drawn by the seed; a class's label is its place in the task."""

    split_seed: int | None = None  # decides the order of the classes; None: the run's seed does

    def choose_classes(self, classes_per_task: int | None, num_tasks: int | None) -> None:
        if classes_per_task is not None:
            if not 1 <= classes_per_task <= self.base_classes:
                raise UserError(f"`classes_per_task` {classes_per_task}: there are {self.base_classes} classes")
            self.num_classes = classes_per_task
        self.default_tasks = self.max_tasks = self.base_classes // self.num_classes

    @cached_property
    def class_order(self) -> np.ndarray:
        """All classes, in the order in which tasks take theirs."""
        seed = self.seed if self.split_seed is None else self.split_seed
        return np.random.RandomState(seed).permutation(self.base_classes)

    def classes_of(self, task: int) -> list[int]:
        """The classes of ``task``, each in the place that is its label."""
        return self.class_order[task * self.num_classes : (task + 1) * self.num_classes].tolist()

    def view(self, task: int) -> View:
        classes = self.classes_of(task)
        new_labels = torch.zeros(self.base_classes, dtype=torch.int64)
        new_labels[classes] = torch.arange(len(classes))
        return View(classes=classes, new_labels=new_labels)


class Split(TaskDataset):
    """Task i has the two classes 2i and 2i + 1 of ten, under their own labels."""

    default_tasks = 5
    max_tasks = 5

    def classes_of(self, task: int) -> Sequence[int]:
        return (2 * task, 2 * task + 1)

    def view(self, task: int) -> View:
        return View(classes=self.classes_of(task))
