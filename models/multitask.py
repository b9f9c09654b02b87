"""Layers with a state for each task, and the functions that walk a model to set it.

A layer keeps, for every learned task, what the task needs (a mask: one bit a weight) and at any time is in one of
three modes, set for the whole model by the functions below:

- training a task, between ``begin_task`` and ``end_task``;
- a learned task selected, ``select_task``: the layer's weights are the task's;
- superposed, ``superposition.superpose``: the layer's weights are a weighted sum over tasks (paper, equation 2).

Here are the contract of such a layer and the walk over a model's layers, ``named``. No module outside this folder walks
a model for any of it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from utils.memory import in_file, is_large

Layer = TypeVar("Layer", bound=nn.Module)
PAGE = 4096  # bytes of a file that each buffer begins a multiple of

Gather = Callable[[Tensor], Tensor]  # the tensors of all processes that train together, stacked, with their gradients
Rng = Callable[..., torch.Generator]  # a key, such as ("scores", layer, task), to the generator for it


class MultitaskModule(nn.Module, ABC):
    """A layer with a state for each of ``num_tasks`` tasks.

    What is kept for the tasks lies in buffers that are no part of the layer's ``state_dict``: ``task_state`` gives it.
    """

    num_tasks: int
    task: int | None  # in training, or trained last
    trains = True  # whether a task has parameters of its own here
    depends = False  # whether a task builds on what earlier ones have left here
    # Whether it computes (tasks, batch, ...) at once with what ``stacked`` gives: buffers, None while a task trains.
    takes_stacks = False
    per_task: tuple[str, ...] = ()  # the names of the buffers that have a row for each task

    @abstractmethod
    def begin_task(self, task: int, generator: torch.Generator) -> None:
        """Start to train ``task`` from a fresh state drawn from ``generator``."""

    @abstractmethod
    def keep_tasks(self, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
        """Keep what ``tasks``, each named once, have learned; ``state`` has it stacked: (tasks, *shape)."""

    @torch.no_grad()
    def end_tasks(self, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
        """``keep_tasks``, free what only training needs, and select the last of them."""
        self.keep_tasks(tasks, state)
        self.drop_parameters()
        self.select_task(tasks[-1])

    def drop_parameters(self) -> None:
        """Free what the task in training trains."""
        for name in self.task_parameters():
            setattr(self, name, None)

    @torch.no_grad()
    def keep_task(self) -> None:
        """Keep what the task in training has learned so far; it stays in training."""
        assert self.task is not None
        state = self.task_parameters() | self.task_buffers()
        self.keep_tasks([self.task], {name: value[None] for name, value in state.items()})

    def end_task(self) -> None:
        """Keep what the task in training has learned, free what only training needs, and select the task."""
        assert self.task is not None
        state = self.task_parameters() | self.task_buffers()
        self.end_tasks([self.task], {name: value[None] for name, value in state.items()})

    @abstractmethod
    def select_task(self, task: int) -> None:
        """Compute as ``task`` does."""

    @abstractmethod
    def task_parameters(self) -> dict[str, nn.Parameter]:
        """What the task in training trains, by name; empty when none is in training."""

    def task_buffers(self) -> dict[str, Tensor]:
        """What else the task in training keeps, by name: buffers that the forward pass writes to."""
        return {}

    def stacked(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the layer computes with, by name, for the stacked ``state`` of several tasks in training.

        What can be made for all of them together is; here, that is nothing.
        """
        return state

    def superpose(self, tasks: Sequence[int], alphas: Tensor, alike: bool = False) -> None:
        """Compute as the superposition ``Σ_i alphas_i`` of ``tasks`` does, alphas (k,), in layers that can.

        Args:
            alike: whether each of the alphas is known to be ``1 / k``.
        """
        raise ValueError(f"{type(self).__name__} cannot be superposed")

    @abstractmethod
    def task_state(self, task: int) -> dict[str, Tensor]:
        """Everything kept for ``task``, by name: what a checkpoint stores."""

    @abstractmethod
    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        """The inverse of ``task_state``.

        Raises:
            ValueError: a tensor has another shape or type than this layer's.
        """

    def make_room(self, num_tasks: int) -> None:
        """Have room for ``num_tasks`` tasks, if there is less."""
        if num_tasks > self.num_tasks:
            for name in self.per_task:
                kept = getattr(self, name)
                more = kept.new_empty(num_tasks, *kept.shape[1:])
                more[: len(kept)] = kept
                setattr(self, name, more)
            self.num_tasks = num_tasks

    def check_task(self, task: int) -> int:
        """``task`` itself, if the layer has it.

        Raises:
            IndexError: it is not in ``range(num_tasks)``.
        """
        if not 0 <= task < self.num_tasks:
            raise IndexError(f"task {task} is not in 0 ... {self.num_tasks - 1}")
        return task


class BatchModule(nn.Module):
    """A layer of which what an image gives may depend on the other images of its batch: a batch norm.

    While tasks are superposed it has statistics of nothing but the batch, so it goes by those.

    Attributes:
        superposed: whether tasks are superposed.
        gather: stacks what the processes that train together have; None in a process alone.
    """

    superposed = False
    gather: Gather | None = None

    @property
    def mixes_images(self) -> bool:
        """Whether in evaluation, as the layer is set now, it computes with the batch's own statistics."""
        return self.superposed


def places(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """To index a tensor of a device with: a slice of rows that follow each other, for which nothing is copied there."""
    first = rows[0]
    if [*rows] == [*range(first, first + len(rows))]:
        return slice(first, first + len(rows))
    return torch.tensor([*rows], device=device)


def named(model: nn.Module, kind: type[Layer]) -> Iterator[tuple[str, Layer]]:
    """Every layer of a kind, with its name, in the order of the network."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kind))


def make_room(model: nn.Module, num_tasks: int) -> None:
    """Have room for ``num_tasks`` tasks in every layer; learned ones stay as they are."""
    before = max((module.num_tasks for _, module in named(model, MultitaskModule)), default=0)
    for _, module in named(model, MultitaskModule):
        module.make_room(num_tasks)
    if num_tasks > before:
        keep_in_file(model, before)


def keep_in_file(model: nn.Module, tasks: int = 0) -> None:
    """Let what is kept of tasks lie in one memory-mapped file, if it would take too much of the memory.

    What is not in use need not be in memory then; see ``utils.memory.in_file``.

    Args:
        tasks: how many have been learned, at the most; they are copied.

    Raises:
        OSError: that folder has no room for it.
    """
    layers = named(model, MultitaskModule)
    buffers = [(layer, name, getattr(layer, name)) for _, layer in layers for name in layer.per_task]
    if any(kept.device.type != "cpu" for _, _, kept in buffers):
        return
    ends = np.cumsum([math.ceil(kept.nbytes / PAGE) * PAGE for _, _, kept in buffers], dtype=int).tolist()
    if not ends or not is_large(ends[-1]):
        return
    whole = in_file(ends[-1])
    for (layer, name, kept), begin in zip(buffers, [0, *ends], strict=False):
        # Each a tensor of its own, for views of one have a version in common, and changes are told by that.
        place = torch.from_numpy(whole[begin : begin + kept.nbytes]).view(kept.dtype).view(kept.shape)
        place[:tasks] = kept[:tasks]
        setattr(layer, name, place)


def begin_task(model: nn.Module, task: int, rng: Rng) -> None:
    """Start to train ``task`` in every layer; each draws from ``rng("scores", its name, task)`` alone."""
    set_superposed(model, False)
    for name, module in named(model, MultitaskModule):
        module.begin_task(task, rng("scores", name, task))


def end_task(model: nn.Module) -> None:
    """Keep the task in training as learned, in every layer, and select it."""
    for _, module in named(model, MultitaskModule):
        module.end_task()


def forget_training(model: nn.Module) -> None:
    """Drop what the task in training trains, in every layer, as if none had been begun.

    It would be among what tasks share where a layer stands in several places, under names of the others.
    """
    for _, module in named(model, MultitaskModule):
        module.drop_parameters()


def keep_task(model: nn.Module) -> None:
    """Keep what the task in training has learned so far, in every layer; it stays in training."""
    for _, module in named(model, MultitaskModule):
        module.keep_task()


def training_state(model: nn.Module) -> dict[str, Tensor]:
    """All that the task in training has of its own, ``{layer.name: tensor}``: parameters and buffers."""
    buffers = {
        f"{name}.{key}": buffer
        for name, module in named(model, MultitaskModule)
        for key, buffer in module.task_buffers().items()
    }
    return task_parameters(model) | buffers


def in_mixed_precision(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``."""
    return x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type)


def select_task(model: nn.Module, task: int) -> None:
    """Compute as the learned ``task`` does, in every layer.

    Raises:
        IndexError: no such task.
    """
    set_superposed(model, False)
    for _, module in named(model, MultitaskModule):
        module.select_task(task)


def set_superposed(model: nn.Module, superposed: bool) -> None:
    """Tell the layers that mix the images of a batch whether tasks are superposed."""
    for _, module in named(model, BatchModule):
        module.superposed = superposed


def has_batch_norm(model: nn.Module) -> bool:
    """Whether what an image gives depends on the others of its batch when the model is superposed."""
    return any(True for _ in named(model, BatchModule))


def mixes_images(model: nn.Module) -> bool:
    """Whether, as the model is set now, what an image gives in evaluation depends on the others of its batch."""
    return any(module.mixes_images for _, module in named(model, BatchModule))


def has_tasks(model: nn.Module) -> bool:
    """Whether any layer has parameters for each task."""
    return any(module.trains for _, module in named(model, MultitaskModule))


def depends(model: nn.Module) -> bool:
    """Whether a task builds on what earlier ones have left in some layer, so that their order matters."""
    return any(module.depends for _, module in named(model, MultitaskModule))


def task_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the task in training trains, ``{layer.name: parameter}``, in the order of the network."""
    return {
        f"{name}.{key}": parameter
        for name, module in named(model, MultitaskModule)
        for key, parameter in module.task_parameters().items()
    }


def task_values(model: nn.Module) -> dict[str, Tensor]:
    """What ``task_parameters`` are now, copied to host memory."""
    return {name: parameter.detach().cpu().clone() for name, parameter in task_parameters(model).items()}


@torch.no_grad()
def set_task_values(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Make ``task_parameters`` those, or some of them, that ``task_values`` gave."""
    parameters = task_parameters(model)
    for name, value in values.items():
        parameters[name].copy_(value)


def shared_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that all tasks share: trained weights, as against frozen ones and a task's own."""
    own = {id(parameter) for parameter in task_parameters(model).values()}
    return [parameter for parameter in model.parameters() if id(parameter) not in own]


def task_state(model: nn.Module, task: int) -> dict[str, Tensor]:
    """All that is kept for ``task``: ``{layer.name: tensor}``."""
    return {
        f"{name}.{key}": value
        for name, module in named(model, MultitaskModule)
        for key, value in module.task_state(task).items()
    }


def load_task_state(model: nn.Module, task: int, state: dict[str, Tensor]) -> None:
    """The inverse of ``task_state``; the task counts as learned.

    Raises:
        ValueError: the state is not one of this network's.
    """
    layers = dict(named(model, MultitaskModule))
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        if layer not in parts:
            raise ValueError(f"the network has no layer {layer!r}")
        parts[layer][name] = value
    for name, module in layers.items():
        module.load_task_state(task, parts[name])


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """All that tasks share and that training may change: weights, statistics of batch norm; by name."""
    own = task_parameters(model)
    state = model.state_dict().items()  # among which a user's own layer may have what is no tensor
    return {name: value for name, value in state if name not in own and isinstance(value, Tensor)}


def load_shared_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what ``shared_state`` gave, or a part of it.

    Frozen weights among it, which no seed makes again, belong to the shared state from then on.

    Raises:
        ValueError: the state is not one of this network's.
    """
    for name, module in named(model, MultitaskModule):
        if f"{name}.weight" in state and "weight" in dict(module.named_buffers(recurse=False)):
            module.register_buffer("weight", module.get_buffer("weight"))
    places = shared_state(model)
    for name, value in state.items():
        if name not in places or value.shape != places[name].shape or value.dtype != places[name].dtype:
            raise ValueError(f"it has no place for {name}, {tuple(value.shape)}")
        places[name].copy_(value)
