"""How the weights of a network start, by name."""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from models import INITIALISERS

# What torch's initialisers take, as their types have it; what the project takes is among it.
Mode = Literal["fan_in", "fan_out"]
Nonlinearity = Literal["relu", "linear", "tanh", "leaky_relu"]


def _fans(shape: torch.Size) -> tuple[int, int]:
    """Inputs and outputs of one unit of a weight (out, in, kernel height, kernel width)."""
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _correct_fan(shape: torch.Size, mode: str) -> int:
    fan_in, fan_out = _fans(shape)
    return fan_in if mode == "fan_in" else fan_out


def _kaiming_std(shape: torch.Size, mode: str, nonlinearity: str) -> float:
    return nn.init.calculate_gain(cast(Nonlinearity, nonlinearity)) / math.sqrt(_correct_fan(shape, mode))


def _signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    """-1 or 1 with equal probability, in the shape of ``weight``."""
    return torch.randint(0, 2, weight.shape, generator=generator, device=generator.device).to(weight) * 2 - 1


def default(weight: Tensor, generator: torch.Generator, mode: str, nonlinearity: str) -> None:
    """What ``nn.Conv2d`` does: uniform in ±1/√fan_in."""
    bound = 1 / math.sqrt(_fans(weight.shape)[0])
    weight.uniform_(-bound, bound, generator=generator)


def signed_constant(weight: Tensor, generator: torch.Generator, mode: str, nonlinearity: str) -> None:
    """``±c`` with equal probability, ``c`` the Kaiming standard deviation (paper, section 3.2)."""
    weight.copy_(_signs(weight, generator) * _kaiming_std(weight.shape, mode, nonlinearity))


def unsigned_constant(weight: Tensor, generator: torch.Generator, mode: str, nonlinearity: str) -> None:
    """``c`` everywhere, ``c`` the Kaiming standard deviation."""
    weight.fill_(_kaiming_std(weight.shape, mode, nonlinearity))


def kaiming_normal(weight: Tensor, generator: torch.Generator, mode: str, nonlinearity: str) -> None:
    """Normal with the Kaiming standard deviation."""
    fan, nonlinear = cast(Mode, mode), cast(Nonlinearity, nonlinearity)
    nn.init.kaiming_normal_(weight, mode=fan, nonlinearity=nonlinear, generator=generator)


def kaiming_uniform(weight: Tensor, generator: torch.Generator, mode: str, nonlinearity: str) -> None:
    """Uniform with the Kaiming standard deviation."""
    fan, nonlinear = cast(Mode, mode), cast(Nonlinearity, nonlinearity)
    nn.init.kaiming_uniform_(weight, mode=fan, nonlinearity=nonlinear, generator=generator)


def xavier_normal(weight: Tensor, generator: torch.Generator, mode: str, nonlinearity: str) -> None:
    """Normal with the Xavier standard deviation ``sqrt(2 / (fan_in + fan_out))``."""
    nn.init.xavier_normal_(weight, generator=generator)


def xavier_constant(weight: Tensor, generator: torch.Generator, mode: str, nonlinearity: str) -> None:
    """``±c`` with equal probability, ``c = 1/√fan`` of the one fan that ``mode`` names, as in the original."""
    weight.copy_(_signs(weight, generator) / math.sqrt(_correct_fan(weight.shape, mode)))


def glorot_uniform(weight: Tensor, generator: torch.Generator, mode: str, nonlinearity: str) -> None:
    """Uniform with the Xavier standard deviation."""
    nn.init.xavier_uniform_(weight, generator=generator)


@torch.no_grad()
def initialise(
    weight: Tensor, name: str, generator: torch.Generator, mode: str = "fan_in", nonlinearity: str = "relu"
) -> None:
    """Fill ``weight`` (out, in, kernel height, kernel width) in place.

    Args:
        name: a key of ``INITIALISERS``.
        mode: ``fan_in`` or ``fan_out``, which of the two the Kaiming initialisers and ``xavier_constant`` divide by.
        nonlinearity: what follows the layer, for the gain of the Kaiming initialisers.

    Raises:
        KeyError: there is no initialiser of that name.
    """
    INITIALISERS[name](weight, generator, mode, nonlinearity)
