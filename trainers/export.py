"""What must be kept of a learned model: its size in several forms, and the file that holds the smallest of them."""

import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import hopfield, masked, multitask
from models.norms import is_statistic
from trainers.original import ORIGINAL, load_original
from utils import storage
from utils.checkpoint import Checkpoint, Record, fraction, index, write_records
from utils.errors import UserError
from utils.files import place_of
from utils.journal import EXPORT, EXPORTED_TASK
from utils.run import FILES, TAKEN


@dataclass(frozen=True)
class Storage:
    """Bytes that must be kept beside the seed, which makes the frozen network again.

    The first four are forms of the masks; the others come on top of each.

    Attributes:
        packed: one bit a weight.
        csc16: sparse matrices with 16-bit indices, as in the paper.
        coded: entropy-coded, with what decoding needs.
        bound: ``n * H2(density)``, summed over layers and tasks, which no coder of independent weights falls below.
        batch_norm: running statistics.
        hopfield: what masks are recovered from, instead of the masks; its size does not depend on their number.
        other: trained weights, heads and rank-one vectors.
    """

    packed: int = 0
    csc16: int = 0
    coded: int = 0
    bound: float = 0.0
    batch_norm: int = 0
    hopfield: int = 0
    other: int = 0

    @property
    def rest(self) -> int:
        """What comes on top of the masks, in whatever form."""
        return self.batch_norm + self.hopfield + self.other

    def __str__(self) -> str:
        if self.hopfield:
            return (
                f"bytes of the Hopfield networks that masks are recovered from: {self.hopfield:,}, however many tasks; "
                f"beside them {self.batch_norm:,} of batch norm, {self.other:,} other"
            )
        return (
            f"bytes of all masks: {self.packed:,} bit-packed, {self.csc16:,} as CSC-16, {self.coded:,} coded, "
            f"{self.bound:,.0f} at the least; beside them {self.batch_norm:,} of batch norm, {self.other:,} other"
        )

    def __add__(self, more: "Storage") -> "Storage":
        return Storage(*(getattr(self, field.name) + getattr(more, field.name) for field in fields(self)))

    def __sub__(self, less: "Storage") -> "Storage":
        return Storage(*(getattr(self, field.name) - getattr(less, field.name) for field in fields(self)))


def task_storage(model: nn.Module, task: int) -> Storage:
    """What the learned ``task`` costs."""
    code, kept, rest = _compact(model, task)
    shapes = list(masked.mask_shapes(model).values())
    return Storage(
        packed=sum(-(-shape.numel() // 8) for shape in shapes),
        csc16=sum(storage.csc16_bytes(shape, count) for shape, count in zip(shapes, kept, strict=True)),
        coded=len(code) + storage.COUNT_BYTES * len(kept),
        bound=sum(storage.bound_bytes(shape.numel(), count) for shape, count in zip(shapes, kept, strict=True)),
    ) + tensor_storage(rest)


def recovery_storage(model: nn.Module) -> Storage:
    """What the learned tasks cost, all of them together, when their masks are recovered.

    The masks themselves are kept too, but not for that: a task that is given is tested with its own, what is recovered
    is measured against it, and a run that goes on makes its Hopfield networks of them.
    """
    return Storage(hopfield=sum(value.nbytes for value in hopfield.recovery_memory(model).values()))


def tensor_storage(tensors: Mapping[str, Tensor]) -> Storage:
    """What tensors cost that are kept as they are, by name."""
    batch_norm = sum(value.nbytes for name, value in tensors.items() if is_statistic(name))
    return Storage(batch_norm=batch_norm, other=sum(value.nbytes for value in tensors.values()) - batch_norm)


def _compact(model: nn.Module, task: int) -> tuple[np.ndarray, list[int], dict[str, Tensor]]:
    """The masks of ``task`` in one code, how many weights each keeps, and the rest of the task's state as it is."""
    state = multitask.task_state(model, task)
    masks = [
        np.unpackbits(state.pop(f"{name}.mask").cpu().numpy(), count=shape.numel())
        for name, shape in masked.mask_shapes(model).items()
    ]
    return *storage.encode(masks), state


def check_export(path: Path, run: Path) -> None:
    """See that an export can be written, and takes the place of nothing but an export: before a run that ends with it.

    Args:
        run: the folder that the run will have.

    Raises:
        UserError: it cannot be, or would.
    """
    try:
        place = place_of(path)
    except OSError as error:
        raise UserError(f"`export` {path}: {error.strerror}") from None
    run = run.resolve()
    # The run's own folder, or one of those that it may get, or one around them.
    own = place.parent == run.parent and re.fullmatch(rf"{re.escape(run.name)}(~\d+)?", place.name, re.I)
    if not os.path.exists(place) and (own or place in run.parents):
        raise UserError(f"`export` {path}: that is where the run's own folder will be; choose another")
    if not os.access(place.parent, os.W_OK):
        raise UserError(f"`export` {path}: its folder cannot be written")
    taken = {run: FILES, run.parent: TAKEN}.get(place.parent, ())
    if place.name.casefold() in taken or (os.path.exists(place) and not _is_export(place)):
        raise UserError(f"`export` {path}: that is the name of a file that is no export; choose another")


def _is_export(path: Path) -> bool:
    try:
        first = Checkpoint(path).first()
    except UserError:
        return False
    return first is not None and first.kind == EXPORT


def write_export(
    path: Path,
    settings: Mapping,
    data: str,
    model: nn.Module,
    accuracies: Mapping[int, float],
    shared: dict[str, Tensor],
) -> None:
    """Write learned tasks in their compact form; the file is there whole or not at all.

    Args:
        settings: the run's, of which the frozen network is made again.
        data: the fingerprint of the data that it was learned from.
        accuracies: of each task when it was just learned; its tasks are those that are written.
        shared: trained weights and statistics that the tasks share.

    Raises:
        UserError: the file cannot be written.
    """

    def records() -> Iterator[Record]:
        yield Record(EXPORT, {"settings": settings, "data": data, "tasks": list(accuracies)}, shared)
        for task, accuracy in accuracies.items():
            code, kept, rest = _compact(model, task)
            values = {"task": task, "accuracy": accuracy, "kept": kept}
            yield Record(EXPORTED_TASK, values, {**rest, "masks": torch.from_numpy(code)})

    try:
        write_records(place_of(path), records())
    except OSError as error:
        raise UserError(f"`export` {path}: {error.strerror}") from None


def read_export(path: Path) -> tuple[dict, list[Record]]:
    """The settings in an exported file, and its records for ``load_export``.

    Raises:
        UserError: the file cannot be read, is damaged, or is none that ``write_export`` wrote.
    """
    records, damaged = Checkpoint(path).read()
    if damaged:
        raise UserError(f"`import_file` {path}: its last {damaged} bytes are damaged")
    settings = records[0].values.get("settings") if records and records[0].kind == EXPORT else None
    if not isinstance(settings, dict):
        raise UserError(f"`import_file` {path}: was not written by `export`")
    if any(record.kind != EXPORTED_TASK for record in records[1:]):
        raise UserError(f"`import_file` {path}: holds something that `export` does not write")
    # A file that was cut between two records has none that is damaged.
    if [record.values.get("task") for record in records[1:]] != records[0].values.get("tasks"):
        raise UserError(f"`import_file` {path}: lacks tasks that were written into it")
    return settings, records


def load_export(
    path: Path, model: nn.Module, records: Sequence[Record], name: str = "`import_file`"
) -> dict[int, float]:
    """Load the tasks of an exported file, or of the original code's; the accuracy of each when it was just learned.

    Args:
        name: of the setting that names the file, for messages.

    Raises:
        UserError: they do not fit the network.
    """
    if records[0].kind == ORIGINAL:
        return load_original(path, model, records[0])
    shapes, accuracies = masked.mask_shapes(model), {}
    try:
        for record in records:
            if record.kind == EXPORT:
                multitask.load_shared_state(model, record.tensors)
                continue
            state, task = dict(record.tensors), record.values["task"]
            if type(task) is not int or task in accuracies:
                raise ValueError(f"task {reprlib.repr(task)} is no number, or is there twice")
            code, sizes = state.pop("masks").numpy(), [shape.numel() for shape in shapes.values()]
            kept = [index(count, size + 1) for count, size in zip(record.values["kept"], sizes, strict=True)]
            masks = storage.decode(code, kept, sizes)
            state |= {
                f"{name}.mask": torch.from_numpy(np.packbits(mask)) for name, mask in zip(shapes, masks, strict=True)
            }
            multitask.load_task_state(model, task, state)
            accuracies[task] = fraction(record.values["accuracy"])
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{name} {path} does not fit this network: {error}") from None
    return accuracies
