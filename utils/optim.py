"""Optimisers and learning-rate schedules, by name."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam as adam_step
from torch.optim.lr_scheduler import LambdaLR

from utils import LR_POLICIES, OPTIMIZERS

SETTLED = 1e6  # batches after which Adam's corrections of its first steps are exactly 1 in float32


class Adam(torch.optim.Adam):
    """torch's Adam, in one pass over the memory: its fused kernels, and little beside them in a step.

    So a step of small parameters takes the host less time, and a GPU can record it.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        super().__init__(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        for parameter in parameters:
            self.state[parameter] = self.fresh(parameter)

    def fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is known of a parameter before the first step."""
        averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=parameter.device), **averages}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody has a closure
        (group,) = self.param_groups
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        # Without momentum the mean of the gradients is the gradient, and lies where it lies; not where weight decay is
        # added to it, for whether a gradient came is asked after the step.
        means = [gradient.clone() for gradient in gradients] if group["weight_decay"] else gradients
        adam_step(
            parameters,
            gradients,
            [state.get("exp_avg", mean) for state, mean in zip(states, means, strict=True)],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class RMSprop(Adam):
    """RMSprop: Adam that has no momentum and corrects nothing.

    ``v = 0.99 v + 0.01 g²`` and ``p = p - lr g / (√v + 1e-8)``, as torch's RMSprop has by default, but for the order of
    roundings.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, lr, weight_decay, betas=(0.0, 0.99))

    def fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        step = torch.full((), SETTLED, device=parameter.device)
        return {"step": step, "exp_avg_sq": torch.zeros_like(parameter)}


def rmsprop(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> RMSprop:
    """RMSprop without momentum."""
    return RMSprop(parameters, lr=lr, weight_decay=weight_decay)


def adam(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> Adam:
    """Adam with its usual averages."""
    return Adam(parameters, lr=lr, weight_decay=weight_decay)


def sgd(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimiser of that name; ``momentum`` is SGD's alone.

    Raises:
        KeyError: ``name`` is not in ``OPTIMIZERS``.
    """
    optimizer: torch.optim.Optimizer = OPTIMIZERS[name](list(parameters), lr, momentum, weight_decay)
    return optimizer


def constant_lr(epoch: int, epochs: int) -> float:
    """Always the same rate."""
    return 1.0


def cosine_lr(epoch: int, epochs: int) -> float:
    """A cosine's first half, from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser has measured so far, ``{parameter's place.name: tensor}``, in host memory."""
    return {
        f"{index}.{name}": value.cpu().clone()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``state_tensors``.

    Raises:
        ValueError: they are of another optimiser.
    """
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value.clone()
    for index, fresh in optimizer.state_dict()["state"].items():
        # Of a parameter that had no gradient a file may know nothing.
        if not states or set(states.setdefault(index, fresh)) != set(fresh):
            raise ValueError(f"the state of the optimiser is {', '.join(fresh)}")
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
        share: float = shape(epoch - warmup_length, max(1, epochs - warmup_length))
        return share

    return LambdaLR(optimizer, factor)
