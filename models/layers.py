"""What the files of layers share: the options every layer is told, the convolution, float state for each task."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.multitask import MultitaskModule, Rng, places

Step = int | tuple[int, ...]  # in height and width, or in both alike


@dataclass(frozen=True)
class LayerOptions:
    """What every layer of a network is told.

    Attributes:
        num_tasks: for how many tasks a layer has room.
        sparsity: of top-k masks, the fraction of the weights that is kept; with ``er_sparsity`` the multiplier of the
            Erdős–Rényi budget.
        er_sparsity: whether each layer has its own kept fraction ``min(0.5, sparsity * (out + in) / n)``, ``n`` its
            weights.
        rng: a key to a generator, for what a layer draws beside its weight and its tasks' initial state.
        number: the layer's place among the convolutions of its network.
        padded: whether images keep their height and width at stride 1.
    """

    num_tasks: int
    sparsity: float = 0.5
    er_sparsity: bool = False
    rng: Rng | None = None
    number: int = 0
    padded: bool = True

    def padding(self, kernel_size: int) -> int:
        """What a convolution adds on each side of an image."""
        return kernel_size // 2 if self.padded else 0


def convolve(x: Tensor, weight: Tensor, stride: Step, padding: Step | str, turned: bool = False) -> Tensor:
    """``conv2d`` without bias; a fully connected layer, 1×1 on 1×1, is the one matrix product it is, or one for each
    task of stacked x and weight (tasks, ...). Such a product, or any that is ``turned``, is ``W xᵀ`` turned round: in
    training it takes four fifths of the time of ``x Wᵀ`` on processors, but for single images under vmap ten times.
    The two round alike on some processors and not on others. So which it is depends on the model's mode alone: what a
    task answers in evaluation is the same to the bit while it is in training and when it is selected.

    On a processor the convolution itself has the channels last in memory, for with few of them it takes up to four
    times as long in planes. What comes out is in planes again: on several threads batch norm is slow otherwise.
    """
    if weight.shape[-2:] == (1, 1) == x.shape[-2:]:
        if turned or weight.ndim > 4:
            return (weight.flatten(-3) @ x.flatten(-3).mT).mT[..., None, None]
        return F.linear(x.flatten(1), weight.flatten(1))[:, :, None, None]
    if x.device.type != "cpu":
        return F.conv2d(x, weight, stride=stride, padding=padding)
    if weight.shape[-2:] == (1, 1) and padding == 0 and isinstance(stride, int):
        x, stride = x[..., ::stride, ::stride], 1
    x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return F.conv2d(x, weight, stride=stride, padding=padding).contiguous()


class FloatStateModule(MultitaskModule):
    """A layer whose state for a task is one or more trained float tensors, such as the vectors of BatchE or a head.

    A tensor ``<name>`` is a parameter while its task is in training; learned ones lie in the buffer ``kept_<name>``,
    float32 (num_tasks, *shape).

    Args:
        num_tasks: for how many tasks there is room.
        shapes: of each tensor, by name.
    """

    def __init__(self, num_tasks: int, **shapes: tuple[int, ...]):
        super().__init__()
        self.num_tasks, self.names = num_tasks, tuple(shapes)
        self.per_task = tuple(f"kept_{name}" for name in shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, None)
            self.register_buffer(f"kept_{name}", torch.zeros(num_tasks, *shape), persistent=False)
        self.task: int | None = None  # in training, or trained last
        self.selected: int | None = None  # None: compute as the task in training

    @abstractmethod
    def fresh(self, name: str, generator: torch.Generator) -> Tensor:
        """How the tensor ``name`` of a new task starts."""

    def value(self, name: str) -> Tensor:
        """The tensor in use: that of the selected task, or of the one in training.

        Raises:
            RuntimeError: no task was begun or selected.
        """
        if self.selected is not None:
            # A copy, which begins where memory does, like a parameter: some processors' products round by that.
            return self.kept(name)[self.selected].clone()
        if getattr(self, name) is None:
            raise RuntimeError("a layer with a state for each task computes once a task is begun or selected")
        value: Tensor = getattr(self, name)
        return value

    def kept(self, name: str) -> Tensor:
        """The tensors ``name`` of all tasks (num_tasks, *shape)."""
        kept: Tensor = getattr(self, f"kept_{name}")
        return kept

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        self.task, self.selected = self.check_task(task), None
        for name in self.names:
            setattr(self, name, nn.Parameter(self.fresh(name, generator).to(self.kept(name).device)))

    def keep_tasks(self, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
        for name in self.names:
            self.kept(name)[places(tasks, state[name].device)] = state[name]

    def select_task(self, task: int) -> None:
        self.selected = self.check_task(task)

    def task_parameters(self) -> dict[str, nn.Parameter]:
        parameters = {name: getattr(self, name) for name in self.names}
        return {name: parameter for name, parameter in parameters.items() if parameter is not None}

    def task_state(self, task: int) -> dict[str, Tensor]:
        return {name: self.kept(name)[self.check_task(task)] for name in self.names}

    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        load_into(self.task_state(task), state)


def load_into(places: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Copy tensors to their places, by name.

    Raises:
        ValueError: the names, a shape or a type are not those of the places.
    """
    if set(state) != set(places):
        missing, other = sorted(set(places) - set(state)), sorted(set(state) - set(places))
        named = [f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("has", other)) if names]
        raise ValueError(f"what is loaded {' and '.join(named)}")
    for name, place in places.items():
        if state[name].dtype != place.dtype or state[name].shape != place.shape:
            raise ValueError(f"{name} of this layer is {place.nbytes} bytes, {place.dtype} {tuple(place.shape)}")
        place.copy_(state[name])
