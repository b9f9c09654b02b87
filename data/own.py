"""Data of the user's own, in whatever form they come: batches that training and tests can go through."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from data.loader import order_of
from utils.errors import no_memory


class OwnLoader:
    """Batches (x float32 (batch, ...), y int64 (batch,)) of what the user gave, on the device of the run.

    Args:
        data: arrays or tensors (x, y), of which x (N, ...) is cut into batches, in training in an order drawn from
            ``(seed, task, epoch)``; or any iterable of batches (x, y), such as a ``torch.utils.data.DataLoader``, which
            keeps its own order. One that can be gone through only once is read into memory; the batches of a stream
            that several workers share out are counted. x of type uint8 are pixels, which become numbers in [0, 1]; all
            others become float32 as they are. A warning tells of x (batch, numbers) of that type, which may be ids.
        outputs: labels lie in [0, outputs).
        batch_size: of arrays.
        shuffle: whether this is for training: arrays are served in another order in every epoch.
        most: batches that are asked for at the most, of what can be gone through only once; None for all.
        check: raises ``ValueError`` of images (batch, ...) that are not of the right shape.

    Attributes:
        image_shape: of one image; known once some were served.
        num_images: how many images there are; known once all were served.
        last: the images of the batch that was served last, in training.

    Raises:
        ValueError: there are no data, or x and y do not fit each other.
    """

    def __init__(
        self,
        data: Iterable[Any],
        outputs: int,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 128,
        shuffle: bool = False,
        seed: int = 0,
        task: int = 0,
        most: int | None = None,
        check: Callable[[Tensor], None] = lambda x: None,
    ) -> None:
        self.outputs, self.batch_size, self.device = outputs, batch_size, torch.device(device)
        self.shuffle, self.key, self.check = shuffle, (seed, task), check
        self.image_shape: tuple[int, ...] | None = None
        self.last = torch.empty(0)
        self.arrays: tuple[Tensor, Tensor] | None = None
        self._counted: int | None = None  # batches, if it is another number than the length of ``batches``
        if _are_arrays(data):
            x, y = data
            self.arrays = self._checked(x, y)
            self.num_images = len(self.arrays[1])
            self.batches = range(0, self.num_images, batch_size)
        else:
            if not isinstance(data, Iterable) or isinstance(data, (str, bytes, Mapping)):
                raise ValueError(f"data: should be batches (x, y), or two arrays, not {type(data).__name__}")
            # An iterator is its own iterable: the second epoch would find nothing.
            once = isinstance(data, Iterator) or not _has_length(data)
            self.batches = [_copied(batch) for batch in islice(_read(data), most)] if once else data
            self._counted = _count(self.batches, most)
            self.num_images = 0
        if len(self) == 0:
            raise ValueError("data: there is no batch (x, y) in the data")
        self.set_epoch(0)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.batches) if self._counted is None else self._counted

    def keep(self) -> None:
        """Serve from now on the very batches of the first time, also of an iterable that shuffles."""
        if self.arrays is None and not isinstance(self.batches, (list, tuple)):
            self.batches, self._counted = [_copied(batch) for batch in _read(self.batches)], None

    def together(self, most_bytes: int) -> OwnLoader:
        """As of ``data.loader.Loader``: the batches stay as they are, which may each have another size."""
        return self

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch to iterate over, and its first batch."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, index = 0, -1
        for index, (x, y) in enumerate(self._pairs()):
            images += len(y)
            if not finite(x):
                raise ValueError("data: x has values that are no finite numbers")
            if index >= self.start:
                x = x.to(self.device)
                if self.shuffle:
                    self.last = x
                yield x, y.to(self.device)
        if index + 1 < len(self):
            raise ValueError(f"data: has {len(self)} batches by its length, but gave {index + 1}")
        self.num_images = images

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.arrays is None:
            for batch in _read(self.batches):
                x, y = self._checked(*_pair(batch))
                if not len(y):
                    raise ValueError("data: a batch has no images; leave it out")
                yield numbers_of(x), y
            return
        x, y = self.arrays
        rows = order_of(len(y), *self.key, self.epoch) if self.shuffle else torch.arange(len(y))
        for start in self.batches:
            some = rows[start : start + self.batch_size]
            yield numbers_of(x[some]), y[some]

    def _checked(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """x and y (int64) as tensors.

        Raises:
            ValueError: they are not as many images as labels, or labels are no whole numbers in [0, outputs).
        """
        x, y = tensor_of(x, "data: x"), tensor_of(y, "data: y")
        if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
            raise ValueError(
                f"data: x {tuple(x.shape)} and y {tuple(y.shape)} should be (batch, ...) and (batch,), "
                "as many images as labels"
            )
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ValueError(f"data: labels y are whole numbers, not {y.dtype}")
        y = y.long()  # first: of some whole numbers torch finds no least one
        if len(y) and not (0 <= y.min() and y.max() < self.outputs):
            raise ValueError(f"data: labels y go from {y.min()} to {y.max()}, should lie in 0 to {self.outputs - 1}")
        self.check(x)
        self.image_shape = tuple(x.shape[1:])
        return x, y


def _has_length(data: Iterable[Any]) -> bool:
    """Whether it is known how many batches there are: not of a ``DataLoader`` over a stream, which has ``len``."""
    try:
        return len(data) >= 0  # type: ignore[arg-type]
    except TypeError:
        return False


def _count(data: Iterable[Any], most: int | None) -> int | None:
    """How many batches a ``DataLoader`` gives whose workers share out a stream; None for other data.

    Its ``len`` does not know of the last batch of each worker, which is smaller, or left out. If more come than these,
    it is none that was shared out: ``len`` is how long an epoch of it is, as of one without end.

    Args:
        most: batches that are asked for at the most; None for all.
    """
    if not (isinstance(data, DataLoader) and isinstance(data.dataset, IterableDataset) and data.num_workers > 1):
        return None
    none_are_so_many = len(data) + data.num_workers
    with torch.random.fork_rng(devices=[]):  # of which it draws how its workers draw
        counted = sum(1 for _ in islice(_read(data), min(most or none_are_so_many, none_are_so_many)))
    return counted if counted < none_are_so_many else None


def _are_arrays(data: object) -> bool:
    """Whether data are two arrays (x, y), of which y may be a list, and not batches."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    x, y = data
    return hasattr(x, "shape") and (hasattr(y, "shape") or isinstance(y, (list, tuple)))


def _read(data: Iterable[Any]) -> Iterator[Any]:
    """The batches as they were given.

    Raises:
        ValueError: they fail in a way that would seem to be the network's.
    """
    batches = iter(data)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (AssertionError, IndexError, RuntimeError) as error:
            if no_memory(error):
                raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[-1]  # of a worker: what it raised
            raise ValueError(f"data: cannot be read: {said}") from error
        yield batch


def _pair(batch: Any) -> tuple[Any, Any]:
    """The two parts of a batch.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(batch, Mapping):
        raise ValueError(f"data: a batch is a pair (x, y), not a mapping of {', '.join(map(str, batch))}")
    try:
        x, y = batch
    except (TypeError, ValueError):
        raise ValueError(f"data: a batch is a pair (x, y), not {type(batch).__name__}") from None
    return x, y


def _copied(batch: Any) -> tuple[Tensor, Tensor]:
    """A batch that is kept, whatever becomes of the memory that it was given in."""
    x, y = _pair(batch)
    return tensor_of(x, "data: x").clone(), tensor_of(y, "data: y").clone()


def tensor_of(values: Any, name: str) -> Tensor:
    """Values as a tensor that gradients can be taken through, and of no graph.

    Raises:
        ValueError: they are no array of numbers; it begins with ``name``.
    """
    try:
        if hasattr(values, "to_numpy"):  # of pandas and its like
            values = values.to_numpy()
        if isinstance(values, np.ndarray):  # torch takes no reversed axes, and no bytes in another machine's order
            if not values.dtype.isnative or any(step < 0 or step % values.itemsize for step in values.strides):
                values = values.astype(values.dtype.newbyteorder("="), order="C")
        if isinstance(values, (list, tuple)) and values and all(isinstance(value, Tensor) for value in values):
            values = torch.stack([*values])
        tensor = torch.as_tensor(values).detach()
        return tensor.clone() if tensor.is_inference() else tensor  # of torch.inference_mode(), which knows none
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: is no array of numbers: {str(error).splitlines()[0]}") from None


def numbers_of(x: Tensor) -> Tensor:
    """x (batch, ...) as a network takes it: float32, bytes as numbers in [0, 1].

    Raises:
        ValueError: it is complex.
    """
    if x.is_complex():
        raise ValueError("x: is complex, and networks take real numbers; torch.view_as_real gives both parts")
    if x.dtype != torch.uint8:
        return x.float()
    if x.ndim == 2:
        warnings.warn(
            "x: bytes (uint8) are taken for pixels and divided by 255; if they are ids or codes, give them as int64",
            stacklevel=1,  # one place, so that Python shows it once
        )
    return x.float() / 255


def finite(x: Tensor) -> bool:
    """Whether all of x are finite numbers."""
    return not (x.is_floating_point() or x.is_complex()) or bool(x.isfinite().all())
