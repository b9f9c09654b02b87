"""Masks: how scores become bits, how bits are kept, and how kept bits are used again."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


class Threshold(torch.autograd.Function):
    """``M = [S >= 0]`` with the straight-through gradient ``dL/dS = dL/dM`` (paper, section 3.2)."""

    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:
        return torch.ge(scores, 0, out=torch.empty_like(scores))  # straight into the wanted type

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class TopK(torch.autograd.Function):
    """All but the ``dropped`` smallest of ``|S|``, with the straight-through gradient ``dL/d|S| = dL/dM``.

    The gradient goes to the size, so that of a negative score is turned round: a weight whose absence hurts gets a
    larger ``|S|`` on either side of 0 (Ramanujan et al., 2020). Exactly so many are dropped, also when scores are
    equal. They are found by selection, in time linear in their number.
    """

    @staticmethod
    def forward(ctx, size: Tensor, dropped: int) -> Tensor:
        """``size`` is ``|S|``, of any shape."""
        kept = size.numel() - dropped
        mask = torch.zeros_like(size, memory_format=torch.contiguous_format)
        mask.view(-1)[size.flatten().topk(kept, sorted=False).indices] = 1  # the fewer ones, as a rule
        return mask

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def dropped_weights(shape: torch.Size | tuple[int, ...], sparsity: float, er_sparsity: bool) -> int:
    """How many weights of ``shape`` (out, in, kernel height, kernel width) a top-k mask drops.

    Of ``n`` weights the fraction ``k`` is kept and ``int((1 - k) * n)`` dropped; ``k`` is ``sparsity``, or with
    ``er_sparsity`` the Erdős–Rényi budget ``min(0.5, sparsity * (out + in) / n)`` (paper, section 4.1).

    Raises:
        ValueError: ``k`` is not in (0, 1].
    """
    n = math.prod(shape)
    kept = min(0.5, sparsity * (shape[0] + shape[1]) / n) if er_sparsity else sparsity
    if not 0 < kept <= 1:
        raise ValueError(f"a mask cannot keep the fraction {kept} of its weights")
    return int((1 - kept) * n)


def initial_scores(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Fresh scores of the weight's ``shape`` (out, in, ...): Kaiming-uniform with ``a = sqrt(5)``.

    With that ``a`` the bound ``sqrt(6 / ((1 + a^2) fan_in))`` is ``1 / sqrt(fan_in)``. The numbers are drawn
    on the generator's device.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape, device=generator.device).uniform_(-bound, bound, generator=generator)


def scores_of_mask(fresh: Tensor, packed: Tensor) -> Tensor:
    """The numbers of ``fresh`` scores in another order: those largest in size where a packed mask keeps weights.

    Their top-k mask is the given one if it keeps as many, and within the weights kept, and within those dropped, the
    order of sizes stays that of ``fresh``.
    """
    size = fresh.abs().flatten()
    kept = unpack(packed.to(fresh.device), fresh.numel(), dtype=size.dtype)
    scores = torch.empty_like(size)
    scores[(size + 2 * size.max() * kept).argsort()] = fresh.flatten()[size.argsort()]
    return scores.view_as(fresh)


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
