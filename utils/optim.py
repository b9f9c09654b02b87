"""Optimisers and learning-rate schedules, by name."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "rmsprop": lambda parameters, lr, momentum, weight_decay: torch.optim.RMSprop(
        parameters, lr=lr, weight_decay=weight_decay
    ),
    "adam": lambda parameters, lr, momentum, weight_decay: torch.optim.Adam(
        parameters, lr=lr, weight_decay=weight_decay, fused=True
    ),
    "sgd": lambda parameters, lr, momentum, weight_decay: torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay
    ),
}


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimiser of that name; ``momentum`` is SGD's alone.

    Raises:
        KeyError: ``name`` is not in ``OPTIMIZERS``.
    """
    return OPTIMIZERS[name](list(parameters), lr, momentum, weight_decay)


def _constant(epoch: int, epochs: int) -> float:
    return 1.0


def _cosine(epoch: int, epochs: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


LR_POLICIES: dict[str, Callable[[int, int], float]] = {"constant_lr": _constant, "cosine_lr": _cosine}


def make_schedule(policy: str, optimizer: torch.optim.Optimizer, epochs: int, warmup_length: int = 0) -> LambdaLR:
    """A schedule that is stepped once an epoch: linear warm-up over ``warmup_length`` epochs, then ``policy``.

    Raises:
        KeyError: ``policy`` is not in ``LR_POLICIES``.
    """
    shape = LR_POLICIES[policy]

    def factor(epoch: int) -> float:
        if epoch < warmup_length:
            return (epoch + 1) / warmup_length
        return shape(epoch - warmup_length, max(1, epochs - warmup_length))

    return LambdaLR(optimizer, factor)
