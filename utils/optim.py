"""Optimisers and learning-rate schedules, by name."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR


class RMSprop(torch.optim.RMSprop):
    """torch's RMSprop; on the processor to the same bits without its temporary tensors and their cost."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self._room = parameters[0].new_empty(max(parameter.numel() for parameter in parameters))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        if any(parameter.is_cuda for group in self.param_groups for parameter in group["params"]):
            return super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, **group)

    def _step_one(self, parameter: nn.Parameter, lr, alpha, eps, weight_decay, **others) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["step"], state["square_avg"] = torch.zeros(()), torch.zeros_like(parameter)
        state["step"] += 1
        if weight_decay:
            gradient = gradient.add(parameter, alpha=weight_decay)
        average = state["square_avg"].mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        root = torch.sqrt(average, out=self._room[: average.numel()].view_as(average))
        parameter.addcdiv_(gradient, root.add_(eps), value=-lr)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "rmsprop": lambda parameters, lr, momentum, weight_decay: RMSprop(parameters, lr=lr, weight_decay=weight_decay),
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


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser has measured so far, ``{parameter's place.name: tensor}``, in host memory."""
    return {
        f"{index}.{name}": value.cpu().clone()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``state_tensors``."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def set_epoch(schedule: LambdaLR, epoch: int) -> None:
    """Make a fresh schedule one that was stepped ``epoch`` times."""
    schedule.last_epoch = epoch
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(epoch)


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
