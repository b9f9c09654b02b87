"""Relatives of SupSup: tasks are masks over weights that earlier tasks have trained, and are not hurt by later ones.

What they share is ``TrainedMaskConv``: a task may change only weights that no earlier task's mask has, and keeps of its
changes those within its own mask. So each weight is trained by one task at the most, and what an earlier task answers
stays as it is, to the bit, whatever the optimiser does.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import masks, multitask
from models.layers import LayerOptions
from models.masked import Threshold, TopK
from models.modules import MaskedConv

PIGGYBACK_SCORE = 5e-3  # of every weight at first: all are kept


class TrainedMaskConv(MaskedConv):
    """A masked convolution whose weight is trained, by each task where it is ``free``.

    Attributes:
        values: what the task in training makes of the weight; None where it trains masks alone.
        free: which weights no earlier task's mask has, bool of the weight's shape; None when no task is in training.
        chosen: the mask that the second half of a task has settled on, all False before that.
        halves: whether a task first finds its mask and then trains the weights in it (``settle``).
    """

    takes_stacks = False
    depends = True
    halves = False
    values: nn.Parameter | None
    free: Tensor | None
    chosen: Tensor | None

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int, options: LayerOptions):
        super().__init__(in_planes, out_planes, kernel_size, stride, options)
        self.register_buffer("weight", self.weight)  # tasks change it, so it belongs to the shared state
        self.register_parameter("values", None)
        self.register_buffer("free", None, persistent=False)
        self.register_buffer("chosen", None, persistent=False)
        self.settled = False

    @abstractmethod
    def trained_weight(self) -> Tensor:
        """The weight that a batch of training computes with, before ``settle``."""

    def choose(self) -> Tensor:
        """The mask of the task in training, bool of the weight's shape."""
        assert self.scores is not None
        return self.binarise(self.magnitude(self.scores)).bool()

    def current(self) -> Tensor:
        """The weight with the changes of the task in training."""
        if self.values is None or self.free is None:
            return self.weight
        return torch.where(self.free, self.values, self.weight)

    def masked_weight(self, scores: Tensor | None) -> Tensor:
        if self.training and not self.settled:
            return self.trained_weight()
        return self._mask() * self.current()

    def _mask(self) -> Tensor:
        """The mask of the task in training: the one it has settled on, or as it is now."""
        return self.chosen if self.settled and self.chosen is not None else self.choose()

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        super().begin_task(task, generator)
        taken = torch.zeros_like(self.packed[0])
        for other in self.learned - {task}:
            taken |= self.packed[self.row(other)]
        self.free = ~masks.unpack(taken, self.weight.numel()).bool().view_as(self.weight)
        self.values = nn.Parameter(self.weight.clone())
        self.chosen, self.settled = torch.zeros_like(self.free), False

    @torch.no_grad()
    def settle(self) -> None:
        """Keep to the mask as it is now, and train the weights in it."""
        self.chosen, self.settled = self.choose(), True

    def keep_tasks(self, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
        (task,) = tasks  # each depends on those before it
        mask = self._mask()
        self.weight.copy_(torch.where(mask, self.current(), self.weight))
        self.packed[self.row(task)] = masks.pack(mask.flatten().float())
        self.learned.add(task)
        self.free = self.chosen = None

    def task_parameters(self) -> dict[str, nn.Parameter]:
        parameters = {"scores": self.scores, "values": self.values}
        return {name: value for name, value in parameters.items() if value is not None}

    def task_buffers(self) -> dict[str, Tensor]:
        return {} if self.chosen is None or not self.halves else {"chosen": self.chosen}


class PiggybackConv(TrainedMaskConv, Threshold):
    """Piggyback (Mallya et al., 2018): the first task trains all weights, the others find masks over what it left.

    Their masks start with every weight, and drop those whose score falls below 0.
    """

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        super().begin_task(task, generator)
        if self.learned - {task}:
            self.scores, self.values = nn.Parameter(torch.full_like(self.weight, PIGGYBACK_SCORE)), None
        else:
            self.scores = None

    def trained_weight(self) -> Tensor:
        return self.current() if self.scores is None else Threshold.masked_weight(self, self.scores)

    def choose(self) -> Tensor:
        return torch.ones_like(self.weight, dtype=torch.bool) if self.scores is None else super().choose()


class WSNConv(TrainedMaskConv, TopK):
    """Winning SubNetworks (Kang et al., 2022): the mask and the weights in it are trained together.

    A mask keeps the fraction ``k`` of the layer's weights, those of earlier tasks as they are among them.
    """

    def trained_weight(self) -> Tensor:
        assert self.scores is not None
        mask: Tensor = masks.StraightThrough.apply(self.magnitude(self.scores), self.binarise)
        return mask * self.current()


class PackNetConv(TrainedMaskConv, TopK):
    """PackNet (Mallya and Lazebnik, 2018): train what is free, keep the largest of it, train these on.

    Of the free weights a task keeps the fraction ``k``, and computes with those and with all of earlier tasks. The
    others go back to what they were, from which a later task begins (in the paper to zero).
    """

    halves = True

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        super().begin_task(task, generator)
        self.scores = None

    def trained_weight(self) -> Tensor:
        return self.current()

    def choose(self) -> Tensor:
        assert self.free is not None and self.values is not None
        free = int(self.free.sum())
        dropped = self.weight.numel() - free + free * self.dropped // self.weight.numel()
        sizes = torch.where(self.free, self.values.abs(), -1.0)  # those that are not free come last
        return masks.top_k(sizes, dropped).bool() | ~self.free


class ExSSNeTConv(TrainedMaskConv, TopK):
    """ExSSNeT (Yadav and Bansal, 2023), without its transfer from similar tasks: a mask, then its exclusive weights.

    The first half of a task finds a mask over the weights as they are, as in SupSup; the second trains the weights in
    it that no earlier task's mask has.
    """

    halves = True

    def trained_weight(self) -> Tensor:
        return TopK.masked_weight(self, self.scores)


def settle(model: nn.Module) -> None:
    """Begin the second half of the task in training, in every layer."""
    for _, module in multitask.named(model, TrainedMaskConv):
        module.settle()


def settled_again(model: nn.Module) -> None:
    """Take up the half that the task in training had come to, after its state was loaded."""
    for _, module in multitask.named(model, TrainedMaskConv):
        module.settled = module.chosen is not None and bool(module.chosen.any())


def has_halves(model: nn.Module) -> bool:
    """Whether a task has two halves: it finds a mask, then trains the weights in it."""
    return any(module.halves for _, module in multitask.named(model, TrainedMaskConv))
