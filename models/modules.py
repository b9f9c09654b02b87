"""Convolutions: plain, with masks, and with a weight of its own for each task."""

import torch
from torch import Tensor, nn

from models import masks
from models.layers import FloatStateModule, LayerOptions, convolve
from models.masked import Masked, Threshold, TopK


class StandardConv(nn.Conv2d):
    """A plain convolution without bias; its weight is shared by all tasks and trained if the run trains weights."""

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__(in_planes, out_planes, kernel_size, stride, padding=options.padding(kernel_size), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.stride, self.padding)


class IndividualHeads(FloatStateModule):
    """A convolution with a weight of its own for each task: the last layer of a network with ``individual_heads``.

    A fresh head starts as ``nn.Conv2d`` does, uniform in ``±1/√fan_in``.
    """

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__(options.num_tasks, head=(out_planes, in_planes, kernel_size, kernel_size))
        self.stride, self.padding = stride, options.padding(kernel_size)

    def fresh(self, name: str, generator: torch.Generator) -> Tensor:
        return masks.initial_scores(self.kept(name).shape[1:], generator)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, height, width) to (batch, out, height', width')."""
        return convolve(x, self.value("head"), self.stride, self.padding)


class MaskedConv(Masked):
    """A masked convolution without bias."""

    takes_stacks = True  # where it is fully connected

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__((out_planes, in_planes, kernel_size, kernel_size), options)
        self.stride, self.padding = stride, options.padding(kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, height, width) to (batch, out, height', width')."""
        return self.probed(x, convolve(x, self.weight_in_use(), self.stride, self.padding, turned=self.training))


class FastMultitaskMaskConv(MaskedConv, Threshold):
    """A masked convolution that keeps the weights whose score is not negative (GNs, GNu, NNs)."""


class MultitaskMaskConv(MaskedConv, TopK):
    """A masked convolution that keeps the fraction ``k`` of its weights with the largest ``|S|`` (GG)."""


class MaskConv(MultitaskMaskConv):
    """A top-k masked convolution with room for one mask, whichever task it is: each task is a run of its own."""

    rows = 1

    def row(self, task: int) -> int:
        if self.task != self.check_task(task):
            raise IndexError(f"task {task} is not the one that this layer keeps: {self.task}")
        return 0

    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        self.task = self.check_task(task)
        super().load_task_state(task, state)
