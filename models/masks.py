"""Masks: how scores become bits, how bits are kept, and how kept bits are used again."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


class Threshold(torch.autograd.Function):
    """``M = [S >= 0]`` with the straight-through gradient ``dL/dS = dL/dM`` (paper, section 3.2)."""

    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:
        return (scores >= 0).to(scores.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def initial_scores(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Fresh scores of the weight's ``shape`` (out, in, ...): Kaiming-uniform with ``a = sqrt(5)``.

    With that ``a`` the bound ``sqrt(6 / ((1 + a^2) fan_in))`` is ``1 / sqrt(fan_in)``. The numbers are drawn
    on the generator's device.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape, device=generator.device).uniform_(-bound, bound, generator=generator)


def pack(masks: Tensor) -> Tensor:
    """Masks (..., n), true where a weight is kept, as bits: uint8 (..., ceil(n / 8)).

    The first weight is the highest bit of the first byte; the last byte is filled up with zeros.
    """
    n = masks.shape[-1]
    bits = torch.nn.functional.pad(masks.to(torch.uint8), (0, -n % 8))
    places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)
    return (bits.unflatten(-1, (-1, 8)) * places).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of ``pack``: bits uint8 (..., ceil(n / 8)) as masks (..., n) of zeros and ones.

    Raises:
        ValueError: the bytes are not those of ``n`` weights.
    """
    if packed.shape[-1] != math.ceil(n / 8):
        raise ValueError(f"{packed.shape[-1]} bytes do not hold {n} weights")
    # Each byte picks its row of eight values from a table: one pass, and straight into the wanted type.
    bits = torch.arange(256, device=packed.device)[:, None] >> torch.arange(7, -1, -1, device=packed.device) & 1
    return torch.nn.functional.embedding(packed.int(), bits.to(dtype)).flatten(-2)[..., :n]


def tiles(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``range(length)`` in order."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
