"""A second device in the processor's memory: what runs here mixes no tensors of the one with those of the other."""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

import main

DEVICE = torch.device("meta")  # which torch knows and computes nothing on, so that its name is free
# What takes tensors of both: it copies from one to the other.
TAKES_BOTH = {"_to_copy", "copy_"}


class There(Tensor):
    """A tensor that says it is on the device, and ``held``, the one in the processor's memory that has its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor):
        how = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype)
        return Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **how)

    def __init__(self, held: Tensor):
        self.held = held

    def __repr__(self, *, tensor_contents=None):
        return f"There({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the device")


def _each(what, change):
    """``what``, a tensor or tuples, lists and dictionaries of such, with every tensor changed."""
    if isinstance(what, Tensor):
        return change(what)
    if isinstance(what, (tuple, list)):
        return type(what)([_each(part, change) for part in what])
    if isinstance(what, dict):
        return {name: _each(part, change) for name, part in what.items()}
    return what


class _Dispatch(TorchDispatchMode):
    """Computes for tensors of the device, and refuses to mix them with others.

    As on a GPU, a number of the processor, a tensor without dimensions, goes with any.
    """

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # what would skip it takes seconds to load

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func._schema.name.partition("::")[2]
        leaves: list[Tensor] = []
        _each((args, kwargs), leaves.append)
        there = any(isinstance(leaf, There) for leaf in leaves)
        if there and name not in TAKES_BOTH:
            here = [leaf for leaf in leaves if not isinstance(leaf, There) and leaf.ndim]
            if here:
                raise RuntimeError(f"{name} of the device and of the processor: {[tuple(leaf.shape) for leaf in here]}")
        if (wanted := kwargs.get("device")) is not None:
            there, kwargs["device"] = torch.device(wanted) == DEVICE, "cpu"
            kwargs.pop("pin_memory", None)
        elif name == "copy_":
            there = isinstance(args[0], There)
        held, words = _each((args, kwargs), lambda leaf: leaf.held if isinstance(leaf, There) else leaf)
        result = func(*held, **words)
        if not there:
            return result
        if torch.Tag.inplace_view in func.tags:  # as squeeze_: the tensor's own idea of its shape changes too
            with no_dispatch():
                func(*args, **kwargs)
        # What was written to in place is itself the result.
        known = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, There)}
        return _each(result, lambda leaf: known[id(leaf)] if id(leaf) in known else There(leaf))


class _Functions(TorchFunctionMode):
    """What torch does not hand on to a tensor's own kind."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.tolist:
            return args[0].detach().to("cpu").tolist()
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": None}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def second_device(monkeypatch):
    """Tensors can be on ``DEVICE``, and the runs of ``main`` are there."""
    set_up, autocast, fused = main.set_up, torch.autocast, _foreach_utils._get_fused_kernels_supported_devices
    monkeypatch.setattr(main, "set_up", lambda settings: [DEVICE for _ in set_up(settings)])
    monkeypatch.setattr(torch, "autocast", lambda device, *more, **how: autocast("cpu", *more, **how))
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), DEVICE.type])
    with _Functions(), _Dispatch():
        yield
