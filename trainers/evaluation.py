"""How a learned model is tested: tasks and their test batches to scores, with the task given and with it inferred."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor, nn

from models import hopfield, multitask
from trainers import ADAPTORS
from trainers.options import InferenceOptions

QUEUE_BYTES = 64 * 2**20  # images of batches that wait for their inference
PASS_BYTES = 64 * 2**20  # images that a GPU answers at once


@dataclass
class TaskScore:
    """How one task was answered. Accuracies and shares are fractions; None is what was not measured.

    Attributes:
        given: accuracy with the task given; not measured where no mask of it was learned.
        adapted: accuracy when it was inferred, or its mask recovered; not measured where tasks are given.
        inferred_right: the share of batches whose task was inferred right: none, if it has no mask. A mask is recovered
            right that differs from the task's own in fewer places than from any other.
        inferred: for each task (mask, where tasks are hidden) that batches were taken for, how many were.
        steps: what recovery went through, a mapping a step.
    """

    task: int
    given: float | None
    adapted: float | None = None
    inferred_right: float | None = None
    inferred: list[dict[str, int]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)


def evaluate(
    model: nn.Module,
    data,
    tasks: Sequence[int],
    adaptor: str,
    options: InferenceOptions,
    progress: Callable[[Iterable], Iterable] = iter,
    mask_of: Callable[[int], int | None] = lambda task: task,
    candidates: Sequence[int] | None = None,
    known: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> list[TaskScore]:
    """Test every one of ``tasks`` on its validation data, with the task given and, unless ``gt``, inferred.

    The task is inferred once for each test batch. The accuracy with the task given is measured in the same pass.

    Args:
        data: a ``TaskDataset``: ``update_task`` and ``val_loader``.
        tasks: learned tasks.
        adaptor: a key of ``ADAPTORS``.
        progress: wraps the loop over tasks, to show it.
        mask_of: which of the model's tasks, if any, is each of ``tasks``.
        candidates: which of the model's tasks inference chooses among; None for ``tasks`` themselves.
        known: of tasks whose right answers with the task given are known, how many each batch has.
    """
    candidates = tasks if candidates is None else candidates
    way, waiting = ADAPTORS[adaptor], None
    if way.recovers:
        return [_recover(model, data, task, candidates, way.load(), options) for task in progress(tasks)]
    if way.infers:
        images = None if multitask.has_batch_norm(model) else options.data_to_repeat
        waiting = _Waiting(images, partial(way.load(), model, candidates, options=options))

    # Batches of many tasks go through the superposed network together, as many as memory allows.
    answered = [_answer(model, data, task, mask_of(task), waiting, known.get(task)) for task in progress(tasks)]
    if waiting and answered:
        inferred = waiting.inferred().split([len(batches.sizes) for batches in answered])
        for batches, part in zip(answered, inferred, strict=True):
            batches.inferred = part
    return [_score(model, data, batches, options) for batches in answered]


class _Waiting:
    """The first images of batches that wait for their inference, not more than memory is meant for.

    They lie in one block: small tensors that each outlive a batch would keep the memory between them from being used
    again.

    Args:
        images: of each batch, this many at the most; None for all.
        infer: from the images of some batches of one size (batches, images, ...) to the task of each.
    """

    def __init__(self, images: int | None, infer: Callable[[Tensor], Tensor]):
        self.images, self.infer = images, infer
        self.lengths: list[int] = []
        self.block: Tensor | None = None
        self.known: list[Tensor] = []

    def add(self, x: Tensor) -> bool:
        """Keep the first images of batches of one size, x (some, images, ...); none waits beside one of another shape.

        Returns:
            Whether inference has begun, so that the layers of the model are set otherwise.
        """
        x, begun = x[:, : self.images], False
        if self.block is not None and x.shape[2:] != self.block.shape[2:]:
            if begun := bool(self.lengths):
                self._infer()
            self.block = None
        waiting, before = len(self.lengths), self.block
        more, size = x.shape[:2]
        if before is None or size > before.shape[1] or waiting + more > len(before):
            widest = size if before is None else max(size, before.shape[1])
            room = max(waiting, QUEUE_BYTES // (x[0, 0].nbytes * widest)) + more
            self.block = x.new_empty(room, widest, *x.shape[2:])
            if waiting:
                self.block[:waiting, : before.shape[1]] = before[:waiting]
        self.block[waiting : waiting + more, :size] = x
        self.lengths += [size] * more
        if len(self.lengths) * self.block[0].nbytes < QUEUE_BYTES:
            return begun
        self._infer()
        return True

    def _infer(self) -> None:
        lengths, self.lengths = torch.tensor(self.lengths), []
        if (lengths == self.block.shape[1]).all():
            self.known.append(self.infer(self.block[: len(lengths)]).cpu())
            return
        inferred = torch.empty(len(lengths), dtype=torch.int64)
        for length in lengths.unique():
            rows = (lengths == length).nonzero().flatten()
            inferred[rows] = self.infer(self.block[rows.to(self.block.device), :length]).cpu()
        self.known.append(inferred)

    def inferred(self) -> Tensor:
        """The task of every batch, int64 (batches,) in host memory; none wait after it."""
        if self.lengths:
            self._infer()
        return torch.cat(self.known)


@dataclass
class _Batches:
    """The test batches of one task, and how they are answered when the task is given.

    Attributes:
        right: correct answers in each batch; zeros without a mask.
        sizes: images in each batch.
        inferred: int64 (batches,), in host memory.
    """

    task: int
    mask: int | None
    right: Sequence[int]
    sizes: Sequence[int]
    inferred: Tensor | None = None


@torch.no_grad()
def _answer(
    model: nn.Module, data, task: int, mask: int | None, waiting: _Waiting | None, known: Sequence[int] | None
) -> _Batches:
    """Answer the test batches of ``task`` with its mask, unless that is known, and let them wait for inference."""
    data.update_task(task)
    if known is not None and waiting is None:
        return _Batches(task, mask, known, [data.val_loader.num_images])
    if mask is not None:
        multitask.select_task(model, mask)
    model.eval()
    hits: list[Tensor] = []
    sizes: list[int] = []
    for x, y, parts in passes(model, data.val_loader):
        if known is None:
            hits.append(torch.zeros_like(y, dtype=torch.bool) if mask is None else model(x).argmax(-1) == y)
        sizes += parts
        for part in _of_one_size(x, parts) if waiting else ():
            if waiting.add(part) and mask is not None:
                multitask.select_task(model, mask)
    return _Batches(task, mask, [*right_in(hits, sizes)] if known is None else known, sizes)


def _of_one_size(x: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """The batches of x (images, ...), of which the last may be smaller: (batches, images, ...) of one size."""
    whole = sizes.count(sizes[0])
    first = whole * sizes[0]
    yield x[:first].unflatten(0, (whole, sizes[0]))
    if first < len(x):
        yield x[None, first:]


@torch.no_grad()
def _score(model: nn.Module, data, batches: _Batches, options: InferenceOptions) -> TaskScore:
    right, total = list(batches.right), sum(batches.sizes)
    score = TaskScore(batches.task, given=None if batches.mask is None else sum(right) / total)
    if batches.inferred is None:
        return score
    taken = zip(*(part.tolist() for part in batches.inferred.unique(return_counts=True)), strict=True)
    score.inferred = [{"inferred": task, "batches": count} for task, count in taken]
    known = torch.tensor(-1 if batches.mask is None else batches.mask)
    wrong = {int(index): int(batches.inferred[index]) for index in (batches.inferred != known).nonzero()}
    score.inferred_right = 1 - len(wrong) / len(batches.sizes)
    # A shared label may still be right under another task's mask: these batches are answered again.
    again = {} if options.unshared_labels or not wrong else _answer_again(model, data, batches.task, wrong)
    for index in wrong:
        right[index] = again.get(index, 0)
    score.adapted = sum(right) / total
    return score


def _answer_again(model: nn.Module, data, task: int, masks: Mapping[int, int]) -> dict[int, int]:
    """Answer some test batches of ``task``, by number, each with its one of ``masks``; how many answers are right."""
    data.update_task(task)
    multitask.select_task(model, next(iter(masks.values())))  # superposed, it may mix images
    right: dict[int, int] = {}
    first = 0
    for x, y, sizes in passes(model, data.val_loader):
        images, labels = x.split(sizes), y.split(sizes)
        here = {index: masks[first + index] for index in range(len(sizes)) if first + index in masks}
        for mask in dict.fromkeys(here.values()):
            members = [index for index in here if here[index] == mask]
            multitask.select_task(model, mask)
            x, y = (torch.cat([part[index] for index in members]) for part in (images, labels))
            found = right_in([model(x).argmax(-1) == y], [sizes[index] for index in members])
            right |= zip([first + index for index in members], found, strict=True)
        first += len(sizes)
    return right


def _recover(
    model: nn.Module, data, task: int, tasks: Sequence[int], recover: Callable, options: InferenceOptions
) -> TaskScore:
    """How ``task`` is answered with its own mask, and with the one that is recovered from its test data.

    Recovery goes by the batches it meets, the first above all. Their order is drawn from the seed and the task, for
    a file may have its images in one that says something of them.
    """
    data.update_task(task)
    multitask.select_task(model, task)
    score = TaskScore(task, accuracy(model, data.val_loader))
    score.steps = recover(model, data.val_loader.shuffled(), task, options)
    score.adapted = accuracy(model, data.val_loader)
    measured = torch.stack([hopfield.hamming_distance(model, other) for other in tasks]).tolist()
    distances = dict(zip(tasks, measured, strict=True))
    score.inferred_right = float(all(distances[task] < distances[other] for other in tasks if other != task))
    score.inferred = [{"inferred": min(distances, key=distances.get), "batches": 1}]
    return score


@torch.no_grad()
def accuracy(model: nn.Module, loader) -> float:
    """The share of right answers over the whole of ``loader``, as the model's layers are set."""
    model.eval()
    hits = [model(x).argmax(-1) == y for x, y, _ in passes(model, loader)]
    return int(torch.cat(hits).sum()) / loader.num_images


def passes(model: nn.Module, loader) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """What goes through the network at once when a loader's batches are answered, and the sizes of the batches.

    That is a batch. A GPU is given as many as ``PASS_BYTES`` hold, where what an image gives does not depend on the
    others of its batch: its kernels are started once, and a mask is made once. On a processor it would only change
    the order of sums.
    """
    size = None
    device = next(chain(model.parameters(), model.buffers())).device
    if device.type != "cpu" and not multitask.mixes_images(model):
        several = loader.together(PASS_BYTES)
        size, loader = None if several is loader else loader.batch_size, several
    for x, y in loader:
        images = y.shape[-1]
        yield x, y, [min(size or images, images - start) for start in range(0, images, size or images)]


def right_in(hits: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[int]:
    """How many answers of each batch are right; hits: which ones are, bool (images,), by passes."""
    return (int(part.sum()) for part in torch.cat([*hits]).cpu().split(list(sizes)))
