"""The layers that a flag can name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import masks
from models.multitask import SuperposedModule

TILE_BYTES = 64 * 2**20  # unpacked masks in memory at once


@dataclass(frozen=True)
class LayerOptions:
    """What every layer of a network is told.

    Attributes:
        num_tasks: for how many tasks a layer has room.
    """

    num_tasks: int


class StandardConv(nn.Conv2d):
    """A plain convolution without bias; its weight is shared by all tasks and trained if the run trains weights."""

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__(in_planes, out_planes, kernel_size, stride, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.stride, self.padding)


class FastMultitaskMaskConv(SuperposedModule):
    """A convolution with a frozen random weight and, for each task, the mask ``M = [S >= 0]`` (GNs, GNu, NNs).

    ``S`` exists only for the task in training; learned masks lie bit-packed in ``packed``, uint8
    (num_tasks, ceil(n / 8)) for ``n`` weights. The weight is a buffer that no checkpoint stores: its seed makes it
    again.
    """

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__()
        self.num_tasks = options.num_tasks
        self.stride, self.padding = stride, kernel_size // 2
        weight = torch.empty(out_planes, in_planes, kernel_size, kernel_size)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("packed", torch.zeros(self.num_tasks, math.ceil(weight.numel() / 8), dtype=torch.uint8))
        self.register_buffer("effective", None, persistent=False)
        self.register_parameter("scores", None)
        self.task: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, height, width) to (batch, out, height', width')."""
        return convolve(x, self.weight_in_use(), self.stride, self.padding)

    def weight_in_use(self) -> Tensor:
        """The weight of the current mode: of the task in training, of the selected task, or superposed.

        Raises:
            RuntimeError: no task was begun or selected, and none superposed.
        """
        if self.effective is not None:
            return self.effective
        if self.scores is None:
            raise RuntimeError("a masked layer computes once a task is begun, selected, or tasks are superposed")
        return self.weight * masks.Threshold.apply(self.scores)

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        self.task = self.check_task(task)
        self.effective = None
        scores = masks.initial_scores(self.weight.shape, generator)
        self.scores = nn.Parameter(scores.to(self.weight.device))

    @torch.no_grad()
    def end_task(self) -> None:
        self.packed[self.task] = masks.pack(masks.Threshold.apply(self.scores).flatten())
        self.scores = None
        self.select_task(self.task)

    def select_task(self, task: int) -> None:
        self.effective = self.superposition([self.check_task(task)], torch.ones(1, device=self.weight.device))

    def task_parameters(self) -> dict[str, nn.Parameter]:
        return {} if self.scores is None else {"scores": self.scores}

    def task_state(self, task: int) -> dict[str, Tensor]:
        return {"mask": self.packed[self.check_task(task)]}

    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        mask, place = state.get("mask"), self.packed[self.check_task(task)]
        if set(state) != {"mask"} or mask.dtype != torch.uint8 or mask.shape != place.shape:
            raise ValueError(f"a mask of this layer is {len(place)} bytes")
        place.copy_(mask)

    @torch.no_grad()
    def superposition(self, tasks: Sequence[int], alphas: Tensor) -> Tensor:
        mixed = torch.zeros(*alphas.shape[:-1], self.weight.numel(), device=self.weight.device)
        for tile, unpacked in self._unpacked(tasks):
            mixed += alphas[..., tile] @ unpacked
        return self.weight * mixed.unflatten(-1, self.weight.shape)

    @torch.no_grad()
    def coefficient_gradients(self, tasks: Sequence[int], weight_gradients: Tensor) -> Tensor:
        # ⟨G, W ⊙ M⟩ = ⟨G ⊙ W, M⟩: the product with W is made once, and the masks are used as they lie.
        products = (weight_gradients * self.weight).flatten(1)
        return torch.cat([products @ unpacked.T for _, unpacked in self._unpacked(tasks)], dim=1)

    def _unpacked(self, tasks: Sequence[int]):
        """The masks of ``tasks`` as float32 (tile, n), with the slice of ``tasks`` that each tile is."""
        n = self.weight.numel()
        for tile in masks.tiles(len(tasks), max(1, TILE_BYTES // (4 * n))):
            yield tile, masks.unpack(self.packed[[self.check_task(task) for task in tasks[tile]]], n)


class StandardBN(nn.BatchNorm2d):
    """Batch norm as it is usual: affine, running statistics; all of it shared by the tasks."""

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__(planes)


def convolve(x: Tensor, weight: Tensor, stride, padding) -> Tensor:
    """``conv2d`` without bias; a fully connected layer, 1×1 on 1×1, is done as the one matrix product it is."""
    if weight.shape[-2:] == (1, 1) == x.shape[-2:]:
        return F.linear(x.flatten(1), weight.flatten(1))[:, :, None, None]
    return F.conv2d(x, weight, stride=stride, padding=padding)


CONV_TYPES: dict[str, type[nn.Module]] = {
    "FastMultitaskMaskConv": FastMultitaskMaskConv,
    "StandardConv": StandardConv,
}
BN_TYPES: dict[str, type[nn.Module]] = {"StandardBN": StandardBN}
