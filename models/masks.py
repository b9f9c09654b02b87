"""Masks: how scores become bits, how bits are kept, and how kept bits are used again."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SINGLE = 150  # masks for each loss from which on tables of sums take less time than masks that are unpacked
PAIRED = 2**12  # the second of two whole numbers in a float32 counts in these; 24 bits are exact
# Of unpacked masks or gradients. The allocator of a processor's memory hands back more than 32 MiB after each use; that
# of a GPU keeps what it has, and there few large products are best.
TILE_BYTES, GPU_TILE_BYTES = 24 * 2**20, 2**29

Binarise = Callable[[Tensor], Tensor]  # scores, or their sizes, to zeros and ones


def threshold(scores: Tensor) -> Tensor:
    """``M = [S >= 0]`` (paper, section 3.2): zeros and ones of the scores' shape and type."""
    if torch.compiler.is_compiling():
        return (scores >= 0).to(scores.dtype)  # see _times
    return torch.ge(scores, 0, out=torch.empty_like(scores))  # straight into the wanted type


def top_k(size: Tensor, dropped: int) -> Tensor:
    """All but the ``dropped`` smallest of ``size``, ``|S|`` (..., out, in, height, width): zeros and ones.

    Exactly so many are dropped of each weight, also when scores are equal. The others, the fewer ones as a rule, are
    found by selection, in time linear in their number.
    """
    flat = size.flatten(-4)
    kept = flat.topk(flat.shape[-1] - dropped, dim=-1, sorted=False).indices
    mask = torch.zeros_like(size, memory_format=torch.contiguous_format)
    mask.flatten(-4).scatter_(-1, kept, 1)
    return mask


class StraightThrough(torch.autograd.Function):
    """The mask ``binarise(size)`` with the straight-through gradient ``dL/dsize = dL/dM`` (paper, section 3.2).

    For ``threshold`` the ``size`` is the scores ``S`` themselves; for ``top_k`` it is ``|S|``, so that the gradient of
    a negative score is turned round: a weight whose absence hurts gets a larger ``|S|`` on either side of 0
    (Ramanujan et al., 2020).
    """

    @staticmethod
    def forward(size: Tensor, binarise: Binarise) -> Tensor:
        return binarise(size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], size: Tensor, binarise: Binarise) -> tuple[Tensor, int]:
        return StraightThrough.apply(size.movedim(in_dims[0], 0), binarise), 0


class MaskedWeight(torch.autograd.Function):
    """The weight ``M ⊙ W`` with the mask ``M = binarise(size)`` and the straight-through gradient with respect to it.

    Of size (..., out, in, height, width) and a weight (out, in, height, width) that is not trained; ``StraightThrough``
    and a product in one, without copies. With ``own`` the gradient that comes in is overwritten: it is nobody else's
    where the masked weight has one use, in a convolution. Where it is added to something, both get the same tensor.
    """

    @staticmethod
    def forward(ctx: Any, size: Tensor, weight: Tensor, binarise: Binarise, own: bool) -> Tensor:
        ctx.save_for_backward(weight)  # here: to call a ``setup_context`` torch looks at signatures in every step
        ctx.own = own
        return _times(binarise(size), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _times(gradient, weight) if ctx.own else gradient * weight, None, None, None


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """``x ⊙ weight`` in the place of ``x``; but not in compiled code.

    There torch 2.11 passes no gradient through a ``Function`` that gives what it wrote into, in place or by ``out=``;
    and the compiler saves copies by itself.
    """
    return x * weight if torch.compiler.is_compiling() else x.mul_(weight)


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


def signed_by_mask(fresh: Tensor, packed: Tensor) -> Tensor:
    """``fresh`` scores with the signs of a packed mask: their threshold gives that mask, and sizes stay."""
    kept = unpack(packed.to(fresh.device), fresh.numel()).view_as(fresh).bool()
    size = fresh.abs()
    return torch.where(kept, size, -size.clamp_min(torch.finfo(size.dtype).tiny))  # -0 is not less than 0


def pack(masks: Tensor) -> Tensor:
    """Masks (..., n), true where a weight is kept, as bits: uint8 (..., ceil(n / 8)).

    The first weight is the highest bit of the first byte; the last byte is filled up with zeros.
    """
    n = masks.shape[-1]
    bits = torch.nn.functional.pad(masks.to(torch.uint8), (0, -n % 8))
    places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)
    packed: Tensor = (bits.unflatten(-1, (-1, 8)) * places).sum(-1, dtype=torch.uint8)
    return packed


def unpack(packed: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of ``pack``: bits uint8 (..., ceil(n / 8)) as masks (..., n) of zeros and ones.

    Raises:
        ValueError: the bytes are not those of ``n`` weights.
    """
    if packed.shape[-1] != math.ceil(n / 8):
        raise ValueError(f"{packed.shape[-1]} bytes do not hold {n} weights")
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=n)).to(dtype)
    # Each byte picks its row of eight values from a table: one pass, and straight into the wanted type.
    bits = torch.arange(256, device=packed.device)[:, None] >> torch.arange(7, -1, -1, device=packed.device) & 1
    masks: Tensor = torch.nn.functional.embedding(packed.int(), bits.to(dtype)).flatten(-2)[..., :n]
    return masks


def tables_pay(losses: int, masks: int, device: torch.device) -> bool:
    """Whether ``table_sums`` of so few losses take less time than to unpack so many masks."""
    return device.type == "cpu" and masks >= SINGLE * losses


def table_sums(values: Tensor, wide: bool) -> Tensor:
    """For each eight of the values (q, 8 * bytes) and each byte of a mask, the sum of those that it keeps.

    Args:
        wide: a table for each byte; else one for the first four bits of each, and after those one for the last four.

    Returns:
        A row of ``q`` sums for each place and each value of its bits, in the order of ``table_places``.
    """
    parts = values.T.unflatten(0, (-1, 2, 4)).transpose(0, 1)  # halves of bytes (2, bytes, bits, q)
    sums = values.new_zeros(*parts.shape[:2], 16, len(values))
    for bit in range(4):
        known = 1 << bit
        torch.add(sums[:, :, :known], parts[:, :, 3 - bit, None], out=sums[:, :, known : 2 * known])
    return (sums[0, :, :, None] + sums[1, :, None]).flatten(0, 2) if wide else sums.flatten(0, 2)


def table_places(packed: Tensor, wide: bool) -> Tensor:
    """Which rows of ``table_sums`` make up the sums of masks, packed as uint8 (..., bytes): int32 (..., places)."""
    packed = packed.int() if wide else torch.cat([packed >> 4, packed & 15], dim=-1).int()
    return packed.add_((256 if wide else 16) * torch.arange(packed.shape[-1], dtype=torch.int32, device=packed.device))


def pair(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two rows of values (q, n) in one, as whole numbers, so that sums of a mask's share are sums for both.

    ``n`` is ``PAIRED / 4`` at the most, and then what is lost is little.

    Returns:
        The paired rows (half of q, and a few of zeros, n); what one counts in each row of values (q,); and the variance
        of what rounding does to the sum of a mask of independent bits, at the most (q,).
    """
    count = values.shape[1]
    scale = values.abs().sum(1).clamp(min=1e-30) / (PAIRED / 2 - 1 - count / 2)  # so that no sum is half of PAIRED
    exact = values / scale[:, None]
    whole = exact.round()
    lost = (exact - whole).square().sum(1) * scale.square() / 4
    half = math.ceil(len(whole) / 16) * 8 if len(whole) > 2 else 1  # rows that fill whole registers
    first, second = F.pad(whole, (0, 0, 0, 2 * half - len(whole))).split(half)
    return first.add(second, alpha=PAIRED), scale, lost


def parted(sums: Tensor, scale: Tensor) -> Tensor:
    """The sums (q, ...) that are in the sums (rows, ...) of what ``pair`` gave."""
    parts = sums.new_empty(2, *sums.shape)
    torch.mul(sums, 1 / PAIRED, out=parts[1]).round_()
    torch.sub(sums, parts[1], alpha=PAIRED, out=parts[0])
    return parts.flatten(0, 1)[: len(scale)].mul_(scale[:, None])


def coarse_products_pay(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices much faster than float32: a processor with AMX."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    return device.type == "cpu" and capabilities.get("amx_bf16", False)


@contextmanager
def coarse_products() -> Iterator[None]:
    """Products of float32 matrices on a processor round their factors to bf16; sums stay float32.

    A mask is exact in bf16; another factor ``x`` is off by ``2⁻⁸ |x|`` at the most.
    """
    mkldnn: Any = torch.backends.mkldnn  # torch's types leave out what it has
    setting = mkldnn.matmul
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def tile_bytes(device: torch.device) -> int:
    """How many bytes of unpacked masks or gradients a device has at a time."""
    return TILE_BYTES if device.type == "cpu" else GPU_TILE_BYTES


def tiles(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``range(length)`` in order."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
