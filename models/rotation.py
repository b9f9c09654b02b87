"""PSP: one weight for all tasks, each of which rotates what goes into the layer (Cheung et al., 2019)."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from models.layers import LayerOptions, convolve, load_into
from models.multitask import MultitaskModule

CACHED_ROTATIONS = 2  # of a layer


class PSPRotation(MultitaskModule):
    """A convolution whose input channels each task rotates by a matrix of its own, drawn from the Haar measure.

    The weight is shared and trained by every task. A rotation is never kept: the generator
    ``rng("rotation", layer number, task)`` makes it again whenever the task is begun or selected.
    """

    trains = False
    rotation: Tensor | None

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__()
        self.num_tasks = options.num_tasks
        self.stride, self.padding = stride, options.padding(kernel_size)
        self.weight = nn.Parameter(torch.empty(out_planes, in_planes, kernel_size, kernel_size))
        self.register_buffer("rotation", None, persistent=False)

        rng = options.rng
        assert rng is not None

        @lru_cache(CACHED_ROTATIONS)
        def rotation_of(task: int) -> Tensor:
            return haar_rotation(in_planes, rng("rotation", options.number, task))

        self._rotation_of = rotation_of

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, height, width) to (batch, out, height', width')."""
        if self.rotation is None:
            raise RuntimeError("a layer that rotates its input computes once a task is begun or selected")
        return convolve(convolve(x, self.rotation, 1, 0), self.weight, self.stride, self.padding)

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        self.select_task(task)

    def keep_tasks(self, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
        """Nothing is kept: the task's rotation is known, and the weight is everyone's."""

    def select_task(self, task: int) -> None:
        self.task = self.check_task(task)
        self.rotation = self._rotation_of(task)[:, :, None, None].to(self.weight.device)

    def task_parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def task_state(self, task: int) -> dict[str, Tensor]:
        self.check_task(task)
        return {}

    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        load_into(self.task_state(task), state)


def haar_rotation(size: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix (size, size) drawn from the Haar measure, so every direction is as likely as every other.

    The Q of a Gaussian matrix is distributed so once the signs of R's diagonal are made positive, which are otherwise
    the algorithm's choice (Mezzadri, 2007, How to generate random matrices from the classical compact groups).
    """
    gaussian = torch.randn(size, size, generator=generator, device=generator.device)
    q, r = torch.linalg.qr(gaussian)
    rotation: Tensor = q * r.diagonal().sign()
    return rotation
