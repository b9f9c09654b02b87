"""ImageNet, split into tasks by class."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.base import SplitByClass, digest, mixed_order
from data.images import FolderLoader, called_image, find_images, folders_in, read_image
from data.kept import KeepingLoader, shorter_side
from data.tree import some
from utils.errors import UserError
from utils.fingerprint import Fingerprint

if TYPE_CHECKING:
    from PIL import Image

SIZE, RESIZED = 224, 256
SAMPLED_CLASSES = 32  # whose images are looked at to tell a folder from another
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SplitImageNet(SplitByClass):
    """ImageNet in tasks of ten classes, 100 of them, the same for every seed.

    Reads ``<root>/imagenet/{train,val}/<class>/<image>``; nothing is downloaded. A class's number is the place of its
    folder's name in the sorted list. Hidden files and folders, and those that other programs leave, are no images.
    """

    num_classes, base_classes = 10, 1000
    split_seed = 1
    input_shape = (3, SIZE, SIZE)

    def choose_classes(self, classes_per_task: int | None, num_tasks: int | None) -> None:
        """As the original: N tasks share all classes. One task alone is the first of the set's own."""
        self.depend_on_number = classes_per_task is None
        if classes_per_task is None and num_tasks is not None and num_tasks > 1:
            classes_per_task, rest = divmod(self.base_classes, num_tasks)
            if rest:
                raise UserError(
                    f"`num_tasks` {num_tasks}: the {self.base_classes} classes cannot be shared out evenly to so many "
                    "tasks; say how many each has with `classes_per_task`"
                )
        super().choose_classes(classes_per_task, num_tasks)

    def open(self, root: str | Path | None) -> None:
        if root is None:
            raise UserError("`data` is needed for SplitImageNet: the parent folder of imagenet/")
        self.folder = Path(root).expanduser() / "imagenet"
        self.class_names, others = self._names("train"), self._names("val")
        for split, names, rest in (("train", self.class_names, others), ("val", others, self.class_names)):
            if extra := sorted(set(names) - set(rest)):
                raise UserError(
                    f"{self.folder}: train has {len(self.class_names)} class folders and val {len(others)}; "
                    f"only {split} has {some(extra)}"
                )
        if len(others) != self.base_classes:
            odd = [name for name in others if not re.fullmatch(r"n\d{8}", name)]
            such = f"; others are not called like {some(odd)}" if 0 < len(odd) < len(others) else ""
            raise UserError(f"{self.folder}: has {len(others)} class folders, should have {self.base_classes}{such}")
        for task in range(self.num_tasks):
            for split in ("train", "val"):
                for label in self.classes_of(task):
                    folder = self.folder / split / self.class_names[label]
                    if next(find_images(str(folder)), None) is None:
                        raise UserError(f"{folder}: has no images, and task {task} is made of this class")
        from torchvision import transforms  # takes a second to import, and only wanted here

        crop = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()])
        middle = self._middle = transforms.Compose([transforms.Resize(RESIZED), transforms.CenterCrop(SIZE)])
        common = dict(size=(SIZE, SIZE), mean=MEAN, std=STD, seed=self.seed, device=self.device, workers=self.workers)
        train, val = dict(batch_size=self.batch_size, share=self.share), dict(batch_size=self.test_batch_size)
        if self.keep_images:
            scaled = partial(shorter_side, pixels=RESIZED)
            scale = transforms.Resize(RESIZED)
            self.train_loader = KeepingLoader(scale, scaled=scaled, crops=True, shuffle=True, **train, **common)
            self.val_loader = KeepingLoader(
                middle, scaled=lambda _: (SIZE, SIZE), crops=False, shuffle=False, **val, **common
            )
            return
        self.train_loader = FolderLoader(crop, shuffle=True, **train, **common)
        self.val_loader = FolderLoader(middle, shuffle=False, **val, **common)

    def read(self, path: str) -> Image.Image:
        image: Image.Image = self._middle(read_image(path))
        return image

    def fingerprint(self) -> Fingerprint:
        """Of all class names, the names of the images of some classes, and the bytes of one image of each of these."""
        now, before = [*self.class_names], [*self.class_names]
        for split in ("train", "val"):
            for name in self.class_names[:: -(-len(self.class_names) // SAMPLED_CLASSES)]:
                folder = self.folder / split / name
                files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
                for parts, found in ((now, [name for name in files if called_image(name)]), (before, files)):
                    parts += [split, name, *found]
                    if found:
                        parts.append(np.fromfile(folder / found[len(found) // 2], dtype=np.uint8, count=2**16))
        return Fingerprint(digest(*now), (digest(*before),))

    def _names(self, split: str) -> list[str]:
        """The class folders of a split, sorted."""
        folder = self.folder / split
        try:
            return folders_in(folder)
        except OSError as error:
            raise UserError(
                f"SplitImageNet is missing: {error.filename or folder}: {error.strerror}; put the class folders there, "
                "they are not downloaded"
            ) from None

    def serve(self, task: int) -> None:
        labels = sorted((self.class_names[label], place) for place, label in enumerate(self.classes_of(task)))
        for split, loader in (("train", self.train_loader), ("val", self.val_loader)):
            images = []
            for name, place in labels:
                found = sorted(find_images(str(self.folder / split / name)))
                images += [(os.path.join(*path), place) for path in found]
            loader.serve(task, images if split == "train" else [images[i] for i in mixed_order(len(images))])
