"""BatchE: for each task the shared weight times a matrix of rank one, ``W_i = W ⊙ t_i s_iᵀ`` (Wen et al., 2020)."""

import torch
from torch import Tensor, nn

from models.layers import FloatStateModule, LayerOptions, convolve


class RankOneConv(FloatStateModule):
    """A convolution with a shared weight and, for each task, a factor for each input and each output channel.

    The factors ``scale_in`` (in,) and ``scale_out`` (out,) start at random as -1 or 1. The weight is trained in the
    tasks that train weights, or never.
    """

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__(options.num_tasks, scale_in=(in_planes,), scale_out=(out_planes,))
        self.stride, self.padding = stride, kernel_size // 2
        self.weight = nn.Parameter(torch.empty(out_planes, in_planes, kernel_size, kernel_size))

    def fresh(self, name: str, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 2, self.kept(name).shape[1:], generator=generator).float() * 2 - 1


class VectorizedBatchEnsembles(RankOneConv):
    """BatchE that scales what goes into the convolution and what comes out of it; ``W_i`` is never made."""

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, height, width) to (batch, out, height', width')."""
        x = convolve(x * self.value("scale_in")[:, None, None], self.weight, self.stride, self.padding)
        return x * self.value("scale_out")[:, None, None]


class BatchEnsembles(RankOneConv):
    """BatchE that makes ``W_i`` and convolves with it; cheaper where images are many and weights few."""

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, height, width) to (batch, out, height', width')."""
        scales = self.value("scale_out")[:, None] * self.value("scale_in")  # (out, in)
        return convolve(x, self.weight * scales[:, :, None, None], self.stride, self.padding)
