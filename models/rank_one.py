"""BatchE: for each task the shared weight times a matrix of rank one, ``W_i = W ⊙ t_i s_iᵀ`` (Wen et al., 2020)."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import FloatStateModule, LayerOptions, convolve
from models.masks import tile_bytes, tiles
from models.superposition import SuperposedModule


class RankOneConv(FloatStateModule, SuperposedModule):
    """A convolution with a shared weight and, for each task, a factor for each input and each output channel.

    The factors ``scale_in`` (in,) and ``scale_out`` (out,) start at random as -1 or 1. The weight is trained in the
    tasks that train weights, or never.
    """

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__(options.num_tasks, scale_in=(in_planes,), scale_out=(out_planes,))
        self.stride, self.padding = stride, options.padding(kernel_size)
        self.weight = nn.Parameter(torch.empty(out_planes, in_planes, kernel_size, kernel_size))
        self.register_superposed()

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, height, width) to (batch, out, height', width')."""
        if self.effective is not None:
            return self.probed(x, convolve(x, self.effective, self.stride, self.padding))
        return self.forward_task(x)

    @abstractmethod
    def forward_task(self, x: Tensor) -> Tensor:
        """``forward`` of the task in training or selected."""

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        super().begin_task(task, generator)
        self.effective = None

    def select_task(self, task: int) -> None:
        super().select_task(task)
        self.effective = None

    def _factors(self, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The factors of ``tasks`` for outputs (k, out) and inputs (k, in)."""
        rows = [self.check_task(task) for task in tasks]
        return self.kept("scale_out")[rows], self.kept("scale_in")[rows]

    @torch.no_grad()
    def superposition(self, tasks: Sequence[int], alphas: Tensor) -> Tensor:
        outputs, inputs = self._factors(tasks)
        mixed = torch.einsum("...k,ko,ki->...oi", alphas, outputs, inputs)
        return self.weight * mixed[..., None, None]

    @torch.no_grad()
    def coefficient_gradients(
        self, tasks: Sequence[int], inputs: Tensor, output_gradients: Tensor, coarse: bool = False
    ) -> Tensor:
        # ⟨G, W ⊙ t sᵀ⟩ = tᵀ (G ⊙ W) s: no matrix of rank one is ever made.
        outputs, factors = self._factors(tasks)
        weight, kernel = self.weight.flatten(1), self.weight.shape[2:].numel()
        parts = []
        for batch in tiles(len(inputs), max(1, tile_bytes(inputs.device) // (4 * weight.numel()))):
            products = output_gradients[batch].mT @ inputs[batch]  # (b, out, in * kernel)
            products *= weight
            products = products.unflatten(2, (-1, kernel)).sum(-1)  # (b, out, in)
            parts.append(torch.einsum("boi,ko,ki->bk", products, outputs, factors))
        return torch.cat(parts)

    def fresh(self, name: str, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 2, self.kept(name).shape[1:], generator=generator).float() * 2 - 1


class VectorizedBatchEnsembles(RankOneConv):
    """BatchE that scales what goes into the convolution and what comes out of it; ``W_i`` is never made."""

    def forward_task(self, x: Tensor) -> Tensor:
        x = convolve(x * self.value("scale_in")[:, None, None], self.weight, self.stride, self.padding)
        return x * self.value("scale_out")[:, None, None]


class BatchEnsembles(RankOneConv):
    """BatchE that makes ``W_i`` and convolves with it; cheaper where images are many and weights few."""

    def forward_task(self, x: Tensor) -> Tensor:
        scales = self.value("scale_out")[:, None] * self.value("scale_in")  # (out, in)
        return convolve(x, self.weight * scales[:, :, None, None], self.stride, self.padding)
