"""Trees of image files: which classes there are, and which of their images are there to test with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.files import Arrays
from data.images import EXTENSIONS, called_image, find_images, folders_in, images_in, lost_links
from utils.errors import UserError

TRAIN = ("train", "training")  # what that of images to learn from may be called, in any case of letters
TESTS = ("val", "test", "valid", "validation", "testing")  # what the folder of test images may be called
TEST_SHARE = 0.2  # of the images of a class, where no folder says which they are

Files = list[tuple[str, int]]  # path and class


@dataclass
class Source:
    """Where images are, and what they show.

    Attributes:
        classes: their names; a class's number is its place.
        train, test: the files, in the order of their classes and names; of arrays none.
        tasks: the classes of each task by its name, where folders say so.
        arrays: the images and labels themselves, if no files hold them.
        notes: what was left out, a line each.
    """

    classes: list[str]
    train: Files = field(default_factory=list)
    test: Files = field(default_factory=list)
    tasks: dict[str, list[int]] = field(default_factory=dict)
    arrays: Arrays | None = None
    notes: list[str] = field(default_factory=list)


def folders(path: Path) -> list[str]:
    """The user's folders in a folder, sorted."""
    try:
        return folders_in(path)
    except OSError as error:
        raise UserError(f"`set` folder: {error.filename or path}: {error.strerror}") from None


def train_in(path: Path) -> str | None:
    """Which folder in a folder has the images to learn from, in folders of its own; None if all are classes.

    A class may be called train: it has images and no folders of images. With nothing but test images beside it, it is
    the split all the same, and lacks its classes.
    """
    inside = folders(path)
    tested = any(name.lower() in TESTS for name in inside)
    called = [name for name in inside if name.lower() in (TRAIN if tested else TRAIN[:1])]
    if not called:
        return None
    filled = [name for name in inside if _has_images(path / name)]
    alone = all(name.lower().rstrip("0123456789_-") in (*TRAIN, *TESTS) for name in filled)
    split = [name for name in called if alone or any(_has_images(path / name / each) for each in folders(path / name))]
    return min(split, key=lambda name: (TRAIN.index(name.lower()), name != "train", name), default=None)


def _has_images(path: Path) -> bool:
    """Whether there is an image below a folder."""
    return next(find_images(str(path)), None) is not None


def _loose(path: Path) -> int:
    """How many images lie in a folder itself."""
    return sum(1 for entry in path.iterdir() if called_image(entry.name) and entry.is_file())


def _beside(
    path: Path, inside: Sequence[str], split: str | None, tests: Sequence[str], classes: Collection[str]
) -> list[str]:
    """What a user should know of the folders in a tree, a line each: which are neither the images to learn from, which
    ``split`` has, nor the tests; which are classes, though they are called as those are; and what is lost there."""
    notes = []
    if len(tests) > 1:
        notes.append(f"{path}: tests are those of {tests[0]}, not of {', '.join(tests[1:])}")
    if rest := [name for name in inside if split and name != split and name.lower() not in TESTS]:
        notes.append(f"{path}: beside {split}, so no classes: {some(rest)}")
    for name in () if split else classes:
        if name.lower() in (*TRAIN, *TESTS):
            notes.append(f"{path}: {name} is taken as a class, for there is no train with images in folders")
    for folder in [path, *(path / name for name in (split, *tests[:1]) if name)]:
        if lost := lost_links(folder):
            notes.append(f"{folder}: links that lead nowhere, so no classes: {some(lost)}")
    return notes


def read_tree(path: Path, seed: int) -> Source:
    """The classes and files of one tree.

    Raises:
        UserError: it has no classes, or one of them no test images.
    """
    inside = folders(path)
    split = train_in(path)
    train = path / split if split else path
    tests = sorted(
        (name for name in inside if split and name.lower() in TESTS), key=lambda name: TESTS.index(name.lower())
    )
    named, empty = {}, []
    others: Counter[str] = Counter()
    for name in folders(train):
        files = images_in(train / name, others)
        if files:
            named[name] = files
        else:
            empty.append(name)
    if not named:
        raise UserError(
            f"`set` folder: {train}: has no folder with images, whose names end in {', '.join(EXTENSIONS)}; "
            f"should have one a class, such as {train / 'cats'}/1.jpg"
        )
    source = Source(list(named), notes=_beside(path, inside, split, tests, named))
    if loose := _loose(train):
        source.notes.append(f"{train}: {loose} images that lie in no folder are of no class, so left out")
    if empty:
        source.notes.append(f"{train}: without images ({', '.join(EXTENSIONS)}), so no classes: {some(empty)}")
    if tests:
        test = path / tests[0]
        unknown = [name for name in folders(test) if name not in named and name not in empty]
        if unknown:
            raise UserError(f"`set` folder: {test}: has classes that {train} has not: {some(unknown)}")
    for label, (name, files) in enumerate(named.items()):
        if tests:
            chosen = images_in(test / name, others) if (test / name).is_dir() else []
        else:
            order = np.random.RandomState(seed).permutation(len(files))
            count = max(1, round(TEST_SHARE * len(files))) if len(files) > 1 else 0
            chosen = [files[place] for place in sorted(order[:count])]
            files = [files[place] for place in sorted(order[count:])]
        if not chosen:
            where = f"{test / name}: has no images" if tests else f"{train / name}: has one image"
            raise UserError(f"`set` folder: {where}; a class needs some to learn from and some to test with")
        source.train += [(file, label) for file in files]
        source.test += [(file, label) for file in chosen]
    if others:
        counts = [f"{count} {ending}" for ending, count in others.most_common()]
        source.notes.append(f"{path}: files that are not called as images are, so left out: {some(counts)}")
    if deep := [name for name, files in named.items() if not any(Path(file).parent == train / name for file in files)]:
        source.notes.append(f"{train}: images lie in folders of these, of which each is one class: {some(deep)}")
    return source


def some(names: Sequence[str]) -> str:
    """The first of names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
