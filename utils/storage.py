"""What masks cost to keep: bit-packed, as sparse matrices, entropy-coded, and at the least."""

import math
from collections.abc import Sequence

import constriction
import numpy as np

COUNT_BYTES = 4  # how many weights a layer keeps, which its code is read with


def encode(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Masks as one stream of an entropy coder (asymmetric numeral systems).

    Args:
        masks: of each layer, zeros and ones (n,).

    Returns:
        The code, uint8 (bytes,), and how many weights each mask keeps: ``decode`` needs both.
    """
    coder, kept = constriction.stream.stack.AnsCoder(), [int(np.count_nonzero(mask)) for mask in masks]
    for mask, count in zip(reversed(masks), reversed(kept), strict=True):  # what goes in last comes out first
        if 0 < count < len(mask):
            coder.encode_reverse(mask.astype(np.int32), _model(count, len(mask)))
    return coder.get_compressed().astype("<u4").view(np.uint8), kept


def decode(code: np.ndarray, kept: Sequence[int], sizes: Sequence[int]) -> list[np.ndarray]:
    """The inverse of ``encode``: masks uint8 (n,) for each of ``sizes``.

    Raises:
        ValueError: the code is not one of masks of these sizes that keep so many weights.
    """
    if code.dtype != np.uint8 or code.ndim != 1 or len(code) % 4:
        raise ValueError("a code of masks is made of words of four bytes")
    coder, masks = constriction.stream.stack.AnsCoder(np.ascontiguousarray(code).view("<u4").astype(np.uint32)), []
    for count, size in zip(kept, sizes, strict=True):
        if not 0 <= count <= size:
            raise ValueError(f"a mask of {size} weights cannot keep {count}")
        if 0 < count < size:
            masks.append(coder.decode(_model(count, size), size).astype(np.uint8))
        else:
            masks.append(np.full(size, count > 0, dtype=np.uint8))
        if int(masks[-1].sum()) != count:
            raise ValueError("the code is damaged")
    return masks


def _model(count: int, size: int) -> constriction.stream.model.Bernoulli:
    return constriction.stream.model.Bernoulli(count / size, perfect=False)


def csc16_bytes(shape: Sequence[int], kept: int) -> int:
    """Bytes of a mask as a sparse matrix in compressed columns with 16-bit indices (paper, section 4.1).

    The weight (out, in, ...) is a matrix of ``out`` rows: an index for each weight that is kept, a pointer for each
    column and one for the end. The value of an entry is the weight's, which the seed gives.
    """
    return 2 * (kept + math.prod(shape[1:]) + 1)


def bound_bytes(size: int, kept: int) -> float:
    """``n * H2(density)`` in bytes: the least that a mask of so many independent weights can take on average."""
    density = kept / size
    if density in (0, 1):
        return 0.0
    return size * -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / 8
