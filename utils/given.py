"""What a caller in Python gives: values that are checked, or made what files can hold, before anything is done."""

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.registry import nearest

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def plain(value: object) -> object:
    """A single number or text of NumPy or torch as Python's own; anything else as it is."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0:
        return value.item()
    return value


def one_of(name: str, value: object, choices: Iterable[str]) -> str:
    """``value``, which must be one of ``choices``.

    Raises:
        ValueError: it is not; the message begins with ``name``, that of the parameter.
    """
    known = [*choices]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}={value!r}: is not one of {', '.join(known)}{nearest(str(value), known)}")
    return str(value)


def whole(name: str, value: Any) -> int:
    """``value``, which must be a whole number that is at least 1, as one of Python's.

    Raises:
        ValueError: it is not; the message begins with ``name``, that of the parameter.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: should be a whole number that is at least 1")
    return number


def in_turn(method: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """A method that waits until no other thread is in one of the same object, which has a lock, ``turn``: its network
    answers for one task at a time."""

    @wraps(method)
    def call(*args: Given.args, **more: Given.kwargs) -> Answer:
        itself: Any = args[0]
        with itself.turn:
            return method(*args, **more)

    return call


def in_own_modes(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """``function`` with gradients and in float32, whatever its caller has told torch: no gradients, inference mode,
    another default type, autocast of a processor or of CUDA."""

    @wraps(function)
    def call(*args: Given.args, **more: Given.kwargs) -> Answer:
        before = torch.get_default_dtype()  # of all threads
        torch.set_default_dtype(torch.float32)
        try:
            with own_modes():
                return function(*args, **more)
        finally:
            torch.set_default_dtype(before)

    return call


@contextmanager
def own_modes() -> Iterator[None]:
    """With gradients and without autocast, in this thread."""
    processor, gpu = torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), processor, gpu:
        yield
