"""Image sets of the user's own: a tree of folders, or an ``.npz`` of arrays, as tasks of any kind."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from data import TASKS_BY
from data.base import BaseSet, Permuted, Rotating, SplitByClass, TaskDataset, digest, mixed_order
from data.cifar import crop_and_flip
from data.files import Arrays, read_npz
from data.images import FolderLoader, fit, images_in, lost_links, to_tensor, upright
from data.tree import TESTS, TRAIN, Files, Source, folders, read_tree, some, train_in
from utils.errors import UserError
from utils.fingerprint import Fingerprint

if TYPE_CHECKING:
    from PIL import Image

MEMORY = 2**30  # bytes of decoded images that lie in memory; more are decoded by workers, again in every epoch
LARGEST = 224  # pixels a side, where images have different sizes and nobody says which one they get
CLASSES_TOLD = 1000  # characters of the line that says which classes are in which task, or there is none
MEASURED = 1000  # training images that sizes, and of sets that do not lie in memory mean and deviation, are taken from


def folder(
    name: str, root: str | Path | None = None, *, seed: int = 0, tasks_by: str | None = None, **more
) -> TaskDataset:
    """The set in the folder ``<root>/<name>``: ``folder:PATH``.

    The folder holds ``train/<class>/<image>`` and the same in ``val`` or ``test``; or ``<class>/<image>``, of which
    the seed chooses a fifth of each class as test images; or a folder of either kind for each task.

    Args:
        tasks_by: ``classes``, ``permutation``, ``rotation`` or ``folders``; None for ``folders`` if each folder has a
            ``train`` of its own, else ``classes``.
        more: see ``Own`` and ``TaskDataset``.

    Raises:
        UserError: the folder is no such tree, or an image of a class that is needed is missing.
    """
    path = Path(root or ".", name)
    inside, split, lost = folders(path), train_in(path), lost_links(path)
    if parts := [name for name in lost if name.lower() in (*TRAIN, *TESTS)]:
        raise UserError(f"`set` folder: {path / parts[0]}: is a link that leads nowhere; remove or replace it")
    apart = {} if split else {each: train for each in inside if (train := train_in(path / each))}
    if tasks_by is None and apart and len(apart) < len(inside):
        rest = [each for each in inside if each not in apart]
        raise UserError(
            f"`set` folder: {path}: {some([*apart])}: with a train, as tasks have; {some(rest)}: without; "
            "mend or move these, or say `tasks_by`"
        )
    if tasks_by == "folders" and split:
        raise UserError(f"`tasks_by` folders: {path}: is one task, with its images to learn from in {split}")
    tasks = [each for each, train in apart.items() if folders(path / each / train)]
    if tasks_by not in (None, "folders") and tasks and len(tasks) == len(inside):
        raise UserError(f"`tasks_by` {tasks_by}: {path}: each of its folders has a train, as tasks have; say folders")
    tasks_by = tasks_by or ("folders" if apart else "classes")
    if tasks_by != "folders":
        source = read_tree(path, seed)
        if tasks_by == "classes":
            _check_classes(path, source, one=False)
    else:
        source = Source([])
        if lost:
            source.notes.append(f"{path}: links that lead nowhere, so no tasks: {some(lost)}")
        for task in inside:
            tree, first = read_tree(path / task, seed), len(source.classes)
            _check_classes(path / task, tree, one=True)
            source.tasks[task] = [first + label for label in range(len(tree.classes))]
            source.classes += tree.classes
            for mine, theirs in ((source.train, tree.train), (source.test, tree.test)):
                mine += [(file, first + label) for file, label in theirs]
            source.notes += tree.notes
    return TASKS_BY[tasks_by](f"folder:{name}", source, seed=seed, **more)


def _check_classes(path: Path, source: Source, one: bool) -> None:
    """See that a tree has several classes; or ``one``, if its images lie in no folders, which may be the classes."""
    if len(source.classes) > 1:
        return
    where = path / (train_in(path) or "") / source.classes[0]
    if not one or folders(where):
        raise UserError(f"`set` folder: {path}: has one class, {source.classes[0]}; are the classes in {where}?")


def npz(name: str, root: str | Path | None = None, *, tasks_by: str | None = None, **more) -> TaskDataset:
    """The set in the file ``<root>/<name>``, of the keys that ``data.files`` names: ``npz:FILE``.

    Images may have any size, and channels at their end; labels may be any numbers.

    Raises:
        UserError: the file is none of these, or its tasks cannot be made so.
    """
    path = Path(root or ".", name)
    if tasks_by == "folders":
        raise UserError("`tasks_by` folders: an npz has none; say classes, permutation or rotation")
    arrays = read_npz(path)
    shape = arrays["train_images"].shape
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise UserError(f"{path}: train_images {shape}: the channels, {shape[1]}, should be the last axis")
    size, own = more.get("image_size"), arrays["train_images"].shape[1:3]
    if size is not None and tuple(size) != own:
        raise UserError(f"`image_size` {_said(size)}: the images of an npz keep their size, {_said(own)} in {path}")
    there = np.unique(arrays["train_labels"])
    unknown = np.setdiff1d(arrays["test_labels"], there)
    if len(unknown):
        raise UserError(f"{path}: test_labels has {unknown[0]}, which train_labels has not")
    for split in ("train", "test"):
        arrays[f"{split}_labels"] = np.searchsorted(there, arrays[f"{split}_labels"]).astype(np.int64)
    return TASKS_BY[tasks_by or "classes"](f"npz:{name}", Source([str(each) for each in there], arrays=arrays), **more)


def _said(size: Sequence[int]) -> str:
    return ",".join(map(str, size))


def _size(path: str) -> tuple[int, int] | None:
    """(H, W) of an image, of which only the head is read; None if that cannot be."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            lies = image.getexif().get(0x0112, 1) >= 5 and image.format != "TIFF"  # which Pillow has turned by itself
            return (width, height) if lies else (height, width)
    except Exception:  # a damaged file can make Pillow raise nearly anything; it is told of when it is read
        return None


def _measure_size(files: Files) -> tuple[int, int]:
    """The size of images if it is one and the same, else a square one that is no larger than most."""
    sizes = Counter(filter(None, (_size(path) for path, _ in files)))
    if len(sizes) == 1:
        return next(iter(sizes))
    side = int(median([min(size) for size, count in sizes.items() for _ in range(count)])) if sizes else LARGEST
    return (min(side, LARGEST),) * 2


def _sample(files: Files) -> Files:
    """Some of the files, from everywhere among them."""
    return files[:: -(-len(files) // MEASURED)]


def _measure(images: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation of each channel of images uint8 [N, C, H, W], for pixels in [0, 1].

    From how often each byte stands there, in whole numbers up to one root and one quotient: neither the order of sums
    nor the processor makes a difference.
    """
    counts, mean, std = np.zeros((1, 256), dtype=np.int64), [], []
    for part in images:
        counts = counts + np.stack([np.bincount(part[:, c].flatten(), minlength=256) for c in range(part.shape[1])])
    for channel in counts:
        count, total, squares = (int((channel * np.arange(256) ** power).sum()) for power in range(3))
        mean.append(total / (255 * count))
        std.append(math.sqrt(count * squares - total**2) / (255 * count) or 1.0)  # of one colour: nothing to divide by
    return tuple(mean), tuple(std)


class Own(TaskDataset):
    """Images of the user's own: in memory if they fit in there, else decoded by worker processes.

    Args:
        name: of the set, for messages.
        source: where the images are.
        image_size: (H, W) that images are scaled and cropped to; None for their own, if they are all of one size, else
            a square that is no larger than most of them.
        mean, std: of each channel, for pixels in [0, 1]; None to measure them on the training images.
        augment: whether training images are shifted and flipped at random; those that are decoded by workers are
            cropped at random instead of shifted.
        more: see ``TaskDataset``.

    Attributes:
        notes: what a user should know of what was left out, a line each.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        image_size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: bool = False,
        **more,
    ) -> None:
        self.name, self.source, self.notes = name, source, source.notes
        self.class_names = source.classes
        self.num_classes = self.base_classes = len(source.classes)
        self.image_size = None if image_size is None else tuple(image_size)
        self._given, self._augment = (mean, std), augment
        super().__init__(**more)

    def open(self, root: str | Path | None) -> None:
        if self.source.arrays is not None:
            self._take(self.source.arrays)
            return
        self.image_size = self.image_size or _measure_size(_sample(self.source.train))
        if 3 * self.image_size[0] * self.image_size[1] * len(self.source.train + self.source.test) <= MEMORY:
            self._take(*self._decoded())
        else:
            self._open_files()

    def _take(self, arrays: Arrays, broken: Sequence[str] = ()) -> None:
        """Hold images uint8 [N, H, W], or with C channels at their end, in memory; those of tests mixed.

        Args:
            broken: the files that could not be read, which may be why a class has no images.
        """
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        order = mixed_order(len(tensors["test_labels"]))
        tensors |= {key: tensors[key][order] for key in ("test_images", "test_labels")}
        for key in ("train_images", "test_images"):
            images = tensors[key]
            tensors[key] = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        self._normalise([tensors["train_images"]])
        self.augment = crop_and_flip if self._augment else None
        base = BaseSet(**tensors, mean=self.mean, std=self.std)
        try:
            self._check(base, None)
        except UserError as error:
            raise UserError(f"{error}{f'; cannot be read: {some(broken)}' if broken else ''}") from None
        self.base = base.to(self.device)
        self.input_shape = tuple(base.train_images.shape[1:])
        self.image_size = self.input_shape[1:]

    def _decoded(self) -> tuple[Arrays, list[str]]:
        """All files decoded, and those that cannot be, which are left out with one note."""
        arrays: Arrays = {}
        broken: list[str] = []
        for split, files in (("train", self.source.train), ("test", self.source.test)):
            images = np.empty((len(files), *self.image_size, 3), dtype=np.uint8)
            labels, count = np.empty(len(files), dtype=np.int64), 0
            for path, label in files:
                try:
                    images[count], labels[count] = fit(upright(path), self.image_size), label
                    count += 1
                except UserError:
                    broken.append(path)
            arrays |= {f"{split}_images": images[:count], f"{split}_labels": labels[:count]}
        for split in ("train", "test"):
            if not len(arrays[f"{split}_images"]):
                raise UserError(f"`set` {self.name}: none of its {split} images can be read: {some(broken)}")
        if broken:
            self.notes.append(f"{self.name}: cannot be read, so left out: {some(broken)}")
        return arrays, broken

    def _open_files(self) -> None:
        from torchvision import transforms  # takes a second to import, and only wanted here

        self._tests = [self.source.test[place] for place in mixed_order(len(self.source.test))]
        middle = partial(fit, size=self.image_size)
        crop = transforms.Compose([transforms.RandomResizedCrop(self.image_size), transforms.RandomHorizontalFlip()])
        sample = (to_tensor(middle(upright(path)))[None] for path, _ in _sample(self.source.train))
        self._normalise(sample)
        self.input_shape = (3, *self.image_size)
        common = dict(size=self.image_size, mean=self.mean, std=self.std, read=upright)
        common |= dict(seed=self.seed, device=self.device, workers=self.workers)
        self.train_loader = FolderLoader(
            crop if self._augment else middle, shuffle=True, batch_size=self.batch_size, share=self.share, **common
        )
        self.val_loader = FolderLoader(middle, shuffle=False, batch_size=self.test_batch_size, **common)

    def _normalise(self, images: Iterable[Tensor]) -> None:
        """Settle mean and deviation: those that were given, or those of ``images``."""
        given, measured = self._given, _measure(images)
        self.mean, self.std = (tuple(measured[place] if given[place] is None else given[place]) for place in (0, 1))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels := len(measured[0])):
                raise UserError(f"`{name}` {_said(values)}: the images have {channels} channels; say 1 or {channels}")

    def settled(self) -> dict[str, object]:
        return {"image_size": list(self.image_size), "mean": list(self.mean), "std": list(self.std)}

    def fingerprint(self) -> Fingerprint:
        tasks = [np.array([len(classes) for classes in self.source.tasks.values()])] if self.source.tasks else []
        if hasattr(self, "base"):
            base = self.base
            order = mixed_order(len(base.test_labels)).argsort()  # as the user has them
            tests = base.test_images[order], base.test_labels[order]
            parts = [*self.class_names, digest(base.train_images, base.train_labels, *tests)]
            return Fingerprint(digest(*parts, *tasks), (digest(*parts),))
        files = self.source.train + self.source.test
        names = [*self.class_names, *(self._called(Path(path), label) for path, label in files)]
        labels = [np.array([label for _, label in part]) for part in (self.source.train, self.source.test)]
        sizes = np.array([os.path.getsize(path) for path, _ in files])
        return Fingerprint(f"{digest(*names, *labels, *tasks)}.{digest(sizes)}", (digest(*names, sizes),))

    def _called(self, path: Path, label: int) -> str:
        """A file's name in its folder, and its class, if that is not the folder."""
        name = self.class_names[label]
        return os.path.join(*([] if path.parent.name == name else [name]), *path.parts[-2:])

    def serve(self, task: int) -> None:
        if hasattr(self, "base"):
            return super().serve(task)
        view = self.view(task)
        for files, loader in ((self.source.train, self.train_loader), (self._tests, self.val_loader)):
            if view.classes is not None:
                files = [(path, int(view.new_labels[label])) for path, label in files if label in view.classes]
            loader.serve(task, files, view.pixels)


def read_files(
    paths: Sequence[str], read: Callable[[str], Image.Image], shape: Sequence[int]
) -> tuple[list[str], Tensor, list[str]]:
    """Image files, and those in folders, as test images of a set are read.

    Args:
        read: of a file the image, RGB and of the right size; ``TaskDataset.read``.
        shape: (C, H, W), of one or three channels.

    Returns:
        The files, their images uint8 [N, C, H, W], and the files that cannot be read.

    Raises:
        UserError: there is no such file or folder, no image, or no image file has as many channels.
    """
    if shape[0] not in (1, 3):
        raise UserError(f"`predict`: images of {shape[0]} channels are in no image file")
    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            files += images_in(path)
        elif os.path.exists(path):
            files.append(path)
        else:
            raise UserError(f"`predict` {path}: no such file or folder")
    known, images, broken = [], [], []
    for path in files:
        try:
            image = read(path)
        except UserError:
            broken.append(path)
            continue
        grey = shape[0] == 1
        images.append(torch.from_numpy(np.array(image.convert("L")))[None] if grey else to_tensor(image))
        known.append(path)
    if not images:
        raise UserError(f"`predict` {paths[0]}: there is no image that can be read")
    return known, torch.stack(images), broken


class OwnClasses(SplitByClass, Own):
    """Task i has some of the classes: as evenly many as can be, in an order drawn by the seed; or those of its folder.

    Without ``num_tasks`` and ``classes_per_task`` there is one task of all classes.
    """

    def choose_classes(self, classes_per_task: int | None, num_tasks: int | None) -> None:
        count = len(self.source.classes)
        if not count:
            raise UserError(f"`set`: {self.name} has no folder of images")
        if self.source.tasks:
            if classes_per_task is not None:
                raise UserError(f"`classes_per_task` {classes_per_task}: the folders of the tasks say so")
            self.sizes = [len(classes) for classes in self.source.tasks.values()]
        elif classes_per_task is not None:
            if classes_per_task > count:
                raise UserError(f"`classes_per_task` {classes_per_task}: {self.name} has {count} classes")
            whole, rest = divmod(count, classes_per_task)
            self.sizes = [classes_per_task] * whole + [rest] * (rest > 0)
        else:
            self.depend_on_number = True
            tasks = min(num_tasks or 1, count)
            self.sizes = [count // tasks + (task < count % tasks) for task in range(tasks)]
        self.num_classes, self.default_tasks, self.max_tasks = max(self.sizes), len(self.sizes), len(self.sizes)
        if 1 in self.sizes:
            self.notes.append(f"{self.name}: of a task of one class every answer with the task given is right")

    @cached_property
    def class_order(self) -> np.ndarray:
        return np.arange(self.base_classes) if self.source.tasks else super().class_order

    @cached_property
    def _ends(self) -> list[int]:
        """Where the classes of each task end in their order."""
        return list(accumulate(self.sizes))

    def classes_of(self, task: int) -> list[int]:
        return self.class_order[self._ends[task] - self.sizes[task] : self._ends[task]].tolist()

    def classes_told(self) -> str:
        names = (", ".join(self.labels_of(task).values()) for task in range(self.num_tasks))
        told = "; ".join(f"{task}: {of_task}" for task, of_task in enumerate(names))
        return f"classes by task: {told}" if len(told) <= CLASSES_TOLD else ""

    @property
    def unshared_labels(self) -> bool:
        """Whether a label means one class in one task and another in another, of all tasks that there can be."""
        meant: dict[int, str] = {}
        every = (enumerate(self.classes_of(task)) for task in range(len(self.sizes)))
        names = ((label, self.class_names[place]) for classes in every for label, place in classes)
        return any(meant.setdefault(label, name) != name for label, name in names)

    def task_name(self, task: int) -> str:
        return list(self.source.tasks)[task] if self.source.tasks else super().task_name(task)


class OwnPermutations(Permuted, Own):
    """Own images with permuted pixels, 5 tasks unless told otherwise."""


class OwnRotations(Rotating, Own):
    """Own images turned, 36 tasks unless told otherwise."""
