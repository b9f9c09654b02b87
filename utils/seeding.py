"""Random generators that depend on a key and on nothing else."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator(*key: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose stream depends on ``key`` alone.

    Args:
        key: what the numbers are for, such as ``(seed, "order", task, epoch)``; integers and strings.
        device: where the generator draws.

    What one part of a run draws never shifts another's: two different keys give unrelated streams, but for one pair of
    keys in ``2³²``, since of a seed torch's generator on the processor uses 32 bits. Among all streams of 2,500 tasks
    none is met twice; among those of 20,000 tasks a pair may be.
    """
    for part in key:
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            raise TypeError(f"a key is made of integers and strings, not {part!r}")
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, once in each process of a run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def drawn_from(seed: int) -> Iterator[list[str]]:
    """Let what is drawn by Python or NumPy inside come from ``seed`` alone; afterwards their generators are as before.

    Yields:
        A list, in which the names of those that were drawn from stand in the end.
    """
    drawn: list[str] = []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        of_python, of_numpy = random.getstate(), np.random.get_state()
        yield drawn
        drawn += ["Python"] * (random.getstate() != of_python)
        drawn += ["NumPy"] * any(map(np.any, map(np.not_equal, np.random.get_state(), of_numpy)))
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def exact_on_gpus(tf32: bool, fast: bool) -> None:
    """How GPUs compute in this process; what the processor computes does not depend on it.

    Args:
        tf32: products and convolutions may round what they multiply to the 10 binary places of TF32.
        fast: cuDNN may take, for each shape, the algorithm that it measures to be fastest, though its sums may come in
            another order each time.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # torch's own default is True
    torch.backends.cudnn.deterministic = not fast
    torch.backends.cudnn.benchmark = fast
