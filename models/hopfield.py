"""HopSupSup: masks on the outputs of batch norm, stored in a Hopfield network (paper, section 3.6).

The layer, and the functions that walk a model's layers of this kind to recover a task's mask.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import masks
from models.layers import LayerOptions, load_into
from models.multitask import BatchModule, MultitaskModule, named, places
from models.norms import normalise

# Times a found mask is taken from the sum of all: more than once, so that where the others tie it is shunned.
AWAY = 1.1


class FastHopMaskBN(MultitaskModule, BatchModule):
    """Batch norm by the batch's own statistics, whose output each task masks by ``M = [S >= 0]``.

    A learned mask is written, as ``z = 2M - 1``, into the Hopfield matrix ``psi`` (d, d) by the Storkey rule; with the
    sum of all masks it is all that recovery knows of them. The masks themselves are kept as bits, uint8
    (num_tasks, ceil(d / 8)), though recovery needs none: to select a task that is given, to measure what is recovered,
    and to make ``psi`` again when a checkpoint is loaded, which is smaller for that.
    """

    eps = 1e-5  # as nn.BatchNorm2d
    mixes_images = True
    per_task = ("packed",)
    packed: Tensor
    psi: Tensor
    total: Tensor
    mask: Tensor | None
    scores: nn.Parameter | None

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__()
        self.num_tasks, self.planes = options.num_tasks, planes
        self.register_buffer("packed", masks.pack(torch.zeros(self.num_tasks, planes)), persistent=False)
        self.register_buffer("psi", torch.zeros(planes, planes), persistent=False)
        self.register_buffer("total", torch.zeros(planes), persistent=False)  # of the stored z: whole numbers
        self.register_buffer("mask", None, persistent=False)
        self.register_parameter("scores", None)
        self.stored: list[int] = []
        self.task: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, planes, height, width), normalised and masked."""
        return normalise(x, self.eps, gather=self.gather if self.training else None) * self.mask_in_use()[:, None, None]

    def mask_in_use(self) -> Tensor:
        """The mask (planes,) of the selected task, or of the scores in training or recovery."""
        if self.mask is not None:
            return self.mask
        if self.scores is None:
            raise RuntimeError("a masked layer computes once a task is begun or selected")
        mask: Tensor = masks.StraightThrough.apply(self.scores, masks.threshold)
        return mask

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        self.task, self.mask = self.check_task(task), None
        self.scores = nn.Parameter(torch.zeros(self.planes, device=self.psi.device))

    def keep_tasks(self, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
        self.packed[places(tasks, self.packed.device)] = masks.pack(masks.threshold(state["scores"]))
        for task in tasks:
            self._store(task)

    @torch.no_grad()
    def _store(self, task: int) -> None:
        """Write a mask into the matrix: ``h = Ψz``, ``Ψ += (zzᵀ - I - zhᵀ - hzᵀ) / d``.

        Raises:
            ValueError: the task is stored already; a Hopfield network cannot forget it.
        """
        if task in self.stored:
            raise ValueError(f"task {task} is already in the Hopfield network")
        z = 2 * self._mask_of(task) - 1
        h = self.psi @ z
        # -z hᵀ - h zᵀ + z zᵀ = z (z - h)ᵀ - h zᵀ
        self.psi += (torch.outer(z, z - h) - torch.outer(h, z)) / self.planes
        self.psi.diagonal().sub_(1 / self.planes)
        self.stored.append(task)
        self.total += z

    @property
    def mean(self) -> Tensor:
        """Of the stored z, (planes,)."""
        return self.total / max(1, len(self.stored))

    def _mask_of(self, task: int) -> Tensor:
        return masks.unpack(self.packed[self.check_task(task)], self.planes)

    def select_task(self, task: int) -> None:
        self.mask = self._mask_of(task)

    def task_parameters(self) -> dict[str, nn.Parameter]:
        return {} if self.scores is None else {"scores": self.scores}

    def task_state(self, task: int) -> dict[str, Tensor]:
        return {"mask": self.packed[self.check_task(task)]}

    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        load_into(self.task_state(task), state)
        self._store(task)

    def memory(self) -> dict[str, Tensor]:
        """All that recovery knows of the learned tasks, by name."""
        return {"psi": self.psi, "total": self.total}

    def begin_recovery(self, found: Sequence[Tensor] = ()) -> nn.Parameter:
        """Compute with a mask made of scores that start from what all tasks have in common, without what the masks
        ``found`` before have in it; returns the scores."""
        total = self.total.clone()
        for mask in found:
            total -= AWAY * (2 * mask - 1)
        self.mask, self.scores = None, nn.Parameter(total / max(1, len(self.stored)))
        return self.scores

    def end_recovery(self) -> Tensor:
        """Compute with the recovered mask from now on; returns it."""
        self.mask, self.scores = self.mask_in_use().detach(), None
        return self.mask

    def use_recovered(self, mask: Tensor) -> None:
        """Compute with a mask that ``end_recovery`` has returned."""
        self.mask = mask

    def energy(self) -> Tensor:
        """``-½ zᵀΨz``: how little the mask in use looks like one that is stored, a scalar with a gradient."""
        z = 2 * self.mask_in_use() - 1
        return -(z @ self.psi @ z) / 2

    def hamming_distance(self, task: int) -> Tensor:
        """In how many places the mask in use differs from that of ``task``, int64 ()."""
        return (self.mask_in_use() != self._mask_of(task)).sum()


def recovery_memory(model: nn.Module) -> dict[str, Tensor]:
    """All that recovery knows of the learned tasks, ``{layer.name: tensor}``."""
    return {
        f"{name}.{key}": value for name, module in named(model, FastHopMaskBN) for key, value in module.memory().items()
    }


def begin_recovery(model: nn.Module, found: Sequence[Sequence[Tensor]] = ()) -> list[nn.Parameter]:
    """Start to recover a mask in every layer that can; returns the scores.

    Args:
        found: what ``end_recovery`` returned before; these masks are looked away from.
    """
    modules = [module for _, module in named(model, FastHopMaskBN)]
    return [module.begin_recovery([masks[layer] for masks in found]) for layer, module in enumerate(modules)]


def end_recovery(model: nn.Module) -> list[Tensor]:
    """Compute with the recovered mask in every layer; returns the masks."""
    return [module.end_recovery() for _, module in named(model, FastHopMaskBN)]


def use_recovered(model: nn.Module, masks: Sequence[Tensor]) -> None:
    """Compute with masks that ``end_recovery`` has returned."""
    for (_, module), mask in zip(named(model, FastHopMaskBN), masks, strict=True):
        module.use_recovered(mask)


def energy(model: nn.Module) -> Tensor:
    """The energy of the masks in use, summed over the layers (paper, section 3.6)."""
    return sum((module.energy() for _, module in named(model, FastHopMaskBN)), torch.zeros(()))


def hamming_distance(model: nn.Module, task: int) -> Tensor:
    """In how many places the masks in use differ from those of ``task``, all layers together: int64 ()."""
    return torch.stack([module.hamming_distance(task) for _, module in named(model, FastHopMaskBN)]).sum()


def can_recover(model: nn.Module) -> bool:
    """Whether masks can be recovered: every layer with a state for each task can."""
    layers = [module for _, module in named(model, MultitaskModule)]
    return bool(layers) and all(isinstance(module, FastHopMaskBN) for module in layers)
