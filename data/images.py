"""Image files: found, read, and decoded by worker processes where they are too many for memory."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from data.loader import Loader, Preparation
from utils.errors import Stopped, UserError
from utils.files import open_file
from utils.seeding import generator
from utils.signals import ignore

if TYPE_CHECKING:
    from PIL import Image

ENDING_SECONDS = 10  # from a worker's last sign to its end
Item = tuple[str, int, tuple[int | str, ...]]  # path, label, key of the generator that augments it


def read_image(path: str, turned: bool = False) -> Image.Image:
    """The image of a file in 8 bits a channel, mode RGB; the first one of several.

    Args:
        turned: whether it is turned as the camera says that it was held.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image, ImageOps  # takes a while to import, and only wanted here

    try:
        # What Pillow warns of (odd metadata, a size that is large but allowed) is nothing that a user should mend.
        with warnings.catch_warnings(), open_file(Path(path)) as file:
            warnings.simplefilter("ignore")
            image = Image.open(file)
            image.load()
            if image.format in ("JPEG", "MPO"):  # the latter of several, as cameras and telephones write them
                _check_end(file)
            return _opaque(_eight_bits(ImageOps.exif_transpose(image) if turned else image))
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); replace it") from None


def upright(path: str) -> Image.Image:
    """``read_image``, turned as the camera says that it was held."""
    return read_image(path, turned=True)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an image, of the shape of ``size`` (H, W) and scaled to it."""
    from PIL import ImageOps

    height, width = size
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height))


def _check_end(file: BinaryIO) -> None:
    """See that a JPEG has its end, and not the zeros that a crash leaves: Pillow would take these for grey."""
    file.seek(-2, os.SEEK_END)
    if file.read() == b"\0\0":
        file.seek(0)
        if not file.read().rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError("its end is zeros")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits on the scale of 8, for Pillow would cut all above 255 off.

    One of them that stands for what is transparent stays so.
    """
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values, largest = np.asarray(image), 1 if image.mode == "F" else 2**16 - 1
    if not (values.min() >= 0 and values.max() <= largest):
        raise ValueError(f"values of mode {image.mode} go from {values.min()} to {values.max()}, not 0 to {largest}")
    grey = Image.fromarray(np.rint(values * (255 / largest)).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _opaque(image: Image.Image) -> Image.Image:
    """An image in mode RGB, what is transparent laid over white: a drawing may lie in its transparency alone."""
    from PIL import Image

    if "transparency" in image.info or image.getbands()[-1] in ("A", "a"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """An image as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class _Decoder(Dataset):
    """Turns items into images; it knows no task, so that its worker processes serve a whole run."""

    def __init__(self, read: Callable[[str], Image.Image], transform: Callable[[Image.Image], Image.Image]):
        self.read, self.transform = read, transform

    def __getitem__(self, item: Item) -> tuple[Tensor, int]:
        """An image uint8 [3, H, W] and its label."""
        path, label, key = item
        image = self.read(path)
        # torchvision draws from the global generator: each image has it to itself, under its own key, so that the
        # number of workers and the order of images change nothing.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(*key).initial_seed())
            return to_tensor(self.transform(image)), label


class _Batches(Sampler[list[Item]]):
    """The batches of the current epoch, as the loader below set them."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Item]] = ()

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)


def _start_worker(_: int) -> None:
    """A worker leaves signals to its run, which first finishes its batch, and does not outlive a failure to answer."""
    from multiprocessing.queues import Queue  # loaded in a worker anyway

    ignore()
    Queue._on_queue_feeder_error = staticmethod(_end_worker)


def _end_worker(error: Exception, _: object) -> None:
    # By default a batch that could not be sent is dropped, and the run waits for it for ever.
    print(f"a process that decodes images: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _stack(size: tuple[int, int], items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    if not items:  # a process's share of a small batch may be nothing
        return torch.empty(0, 3, *size, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    return _shared(default_collate, items)


def collate_flat(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Images of any sizes, one after the other, each [H, W, 3]: uint8 (bytes,); and their labels."""
    if not items:
        return torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)

    def flat(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*items, strict=True)
        return torch.cat([image.permute(1, 2, 0).flatten() for image in images]), torch.tensor(labels)

    return _shared(flat, items)


def _shared(collate: Callable, items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch as ``collate`` makes it, where the run can reach it.

    Raises:
        UserError: shared memory is too small.
    """
    try:
        x, y = collate(items)
        if get_worker_info() is not None:  # here, where an error reaches the run, and not when it is sent
            x.share_memory_(), y.share_memory_()
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"shared memory (/dev/shm) has no room for a batch of images ({reason}); "
            "make it larger or the batch smaller, or do without: `workers` 0"
        ) from None
    return x, y


def _kill(workers: Iterable[multiprocessing.Process]) -> None:
    """End processes that leave SIGTERM to another."""
    for worker in workers:
        worker.kill()


class FolderLoader(Loader):
    """Serves (x float32 [B, 3, H, W], y int64 [B]) from image files, as ``BatchLoader`` does from tensors.

    Args:
        transform: makes of an image one of ``size``; what it draws at random is keyed by seed, task, epoch and image.
        size: (H, W).
        mean, std: of each channel, for pixels in [0, 1].
        shuffle: whether each epoch has an order of its own.
        batch_size: images in a batch; the last one holds what is left.
        seed: of order and augmentation, together with task, epoch and image.
        device: where batches go.
        workers: processes that decode; 0 for none.
        share: (rank, size): of each batch only the images rank, rank + size, ..., as one of ``size`` processes.
        read: gives the image of a file.
        collate: makes a batch of images and labels; None to stack them.
    """

    def __init__(
        self,
        transform: Callable[[Image.Image], Image.Image],
        *,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        shuffle: bool,
        batch_size: int,
        seed: int,
        device: torch.device,
        workers: int,
        share: tuple[int, int] = (0, 1),
        read: Callable[[str], Image.Image] = read_image,
        collate: Callable[[list[tuple[Tensor, int]]], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.share = slice(share[0], None, share[1])
        self.shuffle = shuffle
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self._normalised = (mean, std)
        self._batches = _Batches()
        self._decoded = DataLoader(
            _Decoder(read, transform),
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            collate_fn=collate or partial(_stack, size),
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # nothing is drawn from it, and the global one is left alone
        )
        self._workers: list[multiprocessing.Process] = []

    def serve(self, task: int, images: list[tuple[str, int]], pixels: Tensor | None = None) -> None:
        """Serve ``images``, paths and labels, of ``task``, which moves their ``pixels`` so; see ``Preparation``."""
        self.task, self.images, self.num_images = task, images, len(images)
        self.prepare = Preparation(*self._normalised, pixels, self.device)
        self.set_epoch(0)

    def unprepared(self) -> Iterator[tuple[Tensor, Tensor]]:
        key = (self.seed, "augment", self.task, self.epoch)
        items = [(*self.images[row], (*key, row)) for row in self.order().tolist()]
        size = self.batch_size
        self._batches.batches = [
            items[index * size : (index + 1) * size][self.share] for index in range(self.start, len(self))
        ]
        for x, y in self._decode():
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _decode(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches as the workers give them.

        Raises:
            UserError: an image cannot be read.
            Stopped: a worker has died.
        """
        try:
            yield from self._start()
        except UserError as error:  # from a worker it comes with that worker's traceback in front
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("utils.errors.UserError: ")) from None
        except (EOFError, OSError, RuntimeError) as error:
            if not self._workers or "Original Traceback" in str(error):  # a bug in what decodes
                raise
            # Its connection is lost before it has ended, which takes a while on a busy machine; and its files are
            # closed, as the sentinel tells, a moment before its status can be asked for.
            ending = connection.wait([worker.sentinel for worker in self._workers], ENDING_SECONDS)
            for worker in self._workers:
                if worker.sentinel in ending:
                    worker.join(ENDING_SECONDS)
            ends = [worker.exitcode for worker in self._workers if worker.exitcode is not None]
            if not ends:
                raise Stopped(f"the processes that decode images: {str(error).splitlines()[0]}") from error
            how = f"status {ends[0]}" if ends[0] >= 0 else signal.Signals(-ends[0]).name
            raise Stopped(
                f"a process that decodes images has ended by {how}: memory, or shared memory (/dev/shm), may be short; "
                f"`workers` {len(self._workers) // 2} needs less of it"
            ) from error

    def _start(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin an epoch; the first one starts the workers.

        Raises:
            Stopped: not all of them can be started.
        """
        handler, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
        try:
            batches = iter(self._decoded)
        except BaseException as error:
            _kill(set(multiprocessing.active_children()) - others)  # those that could be
            if self._workers or not isinstance(error, OSError):
                raise
            count, why = self._decoded.num_workers, error.strerror or error
            raise Stopped(f"`workers` {count}: not all of its processes can be started: {why}") from error
        if signal.getsignal(signal.SIGCHLD) is not handler:
            # By torch's handler the death of a worker would be an error in the middle of a step; it is found out anyway
            # when a batch of that worker is waited for.
            signal.signal(signal.SIGCHLD, handler)
        if not self._workers and self._decoded.num_workers:
            self._workers = list(set(multiprocessing.active_children()) - others)
            # A program that ends by an error may still hold this loader. It then sends SIGTERM to its workers, which
            # these ignore, and waits for them for ever.
            atexit.register(_kill, self._workers)
        return batches


# What other programs leave beside a user's own files, beside hidden folders: those of network drives and systems.
_LEFT_BEHIND = (
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"),
    *("__macosx", "lost+found", "system volume information"),
)
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


def folders_in(folder: str | Path) -> list[str]:
    """The names of the user's folders in a folder, sorted; a link to it or to one above is none.

    Raises:
        OSError: it cannot be read.
    """
    above = _with_those_above(folder)

    def leads_up(entry: os.DirEntry) -> bool:
        return entry.is_symlink() and _which(entry.stat()) in above

    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry) and not leads_up(entry))


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder of the user's."""
    try:
        return not entry.name.startswith(".") and entry.name.lower() not in _LEFT_BEHIND and entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def lost_links(folder: str | Path) -> list[str]:
    """The names in a folder of links that lead nowhere, as to a drive that is not mounted, sorted.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_lost(entry) and not entry.name.startswith("."))


def _is_lost(entry: os.DirEntry) -> bool:
    """Whether an entry is a link that leads nowhere."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _which(about: os.stat_result) -> tuple[int, int]:
    """What tells a folder from all others, whatever it is called."""
    return about.st_dev, about.st_ino


def _with_those_above(folder: str | Path) -> set[tuple[int, int]]:
    """A folder and those that it lies in, by its path and by what its links mean."""
    ways = Path(os.path.abspath(folder)), Path(os.path.realpath(folder))
    return {_which(os.stat(each)) for way in ways for each in (way, *way.parents)}


def images_in(folder: str | Path, others: Counter[str] | None = None) -> list[str]:
    """The paths of the images below a folder, sorted; otherwise as ``find_images``."""
    return sorted(os.path.join(*found) for found in find_images(str(folder), others))


def called_image(name: str) -> bool:
    """Whether a file of that name is an image of the user's."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def find_images(folder: str, others: Counter[str] | None = None) -> Iterator[tuple[str, str]]:
    """The images below a folder, as (folder, name), in no order.

    Of a folder that links lead to as well, those are of its own name, or else of the first of the links.

    Args:
        others: counts files that are called otherwise, by how their names end, and links that lead nowhere; hidden
            ones are nothing.

    Raises:
        UserError: a folder cannot be read, or what is called an image is no file.
    """
    here, todo = folder, [folder]
    links: list[str] = []  # a heap, for they wait until no other folder does
    try:
        seen = _with_those_above(folder) - {_which(os.stat(folder))}
        while todo or links:
            here = todo.pop() if todo else heappop(links)
            if (which := _which(os.stat(here))) in seen:  # a link, to one above or seen
                continue
            seen.add(which)
            with os.scandir(here) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        if entry.is_symlink():
                            heappush(links, entry.path)
                        else:
                            todo.append(entry.path)
                    elif others is not None and _is_lost(entry):
                        if not entry.name.startswith("."):
                            others["links that lead nowhere"] += 1
                    elif called_image(entry.name):
                        if not (entry.is_file() or entry.is_dir()):
                            raise UserError(f"{entry.path}: is no file; remove or replace it")
                        if entry.is_file():
                            yield here, entry.name
                    elif others is not None and not entry.name.startswith(".") and entry.is_file():
                        others[os.path.splitext(entry.name)[1].lower() or entry.name] += 1
    except OSError as error:
        raise UserError(f"{error.filename or here}: {error.strerror}") from None
