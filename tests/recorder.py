"""A recorder as a GPU's, for the processor: it keeps operators with the tensors they had, and does them again."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.calls import WAITS


class _Tape(TorchDispatchMode):
    """Keeps every operator that computes, and what stood in tensors from before that are written to."""

    def __init__(self):
        super().__init__()
        self.calls = []  # (operator, its arguments, what it gave)
        self.made: set[int] = set()  # where what was computed here lies
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, schema = dict(kwargs or {}), func._schema
        if schema.name.partition("::")[2] in WAITS | {"lift_fresh"}:
            raise RuntimeError(f"{schema.name} cannot be recorded: it waits for the device")
        values = [*args, *(kwargs.get(part.name) for part in schema.arguments[len(args) :])]
        for part, value in zip(schema.arguments, values, strict=True):
            written = part.alias_info is not None and part.alias_info.is_write
            if written or part.name in ("running_mean", "running_var"):  # of which batch norm's schema does not tell
                for tensor in tree_leaves(value):
                    place = tensor.untyped_storage().data_ptr() if isinstance(tensor, Tensor) else None
                    if place is not None and place not in self.made:
                        self.before.setdefault(tensor.data_ptr(), (tensor.detach(), tensor.detach().clone()))
        result = func(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {leaf.untyped_storage().data_ptr() for leaf in leaves}
        fresh = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.made |= {leaf.untyped_storage().data_ptr() for leaf in fresh} - known
        self.calls.append((func, args, kwargs, fresh))
        return result


class TapeRecorder:
    """As ``utils.recording.Recorder``, on the processor."""

    replays = 0

    def __init__(self, device):
        pass

    @staticmethod
    def works_on(device):
        return True

    def warming_up(self):
        return nullcontext()

    def record(self, function):
        self.tape = _Tape()
        with self.tape:
            result = function()
        with torch.no_grad():
            for tensor, value in self.tape.before.values():  # a recording changes nothing
                tensor.copy_(value)
        return result

    @torch.no_grad()
    def replay(self):
        TapeRecorder.replays += 1
        for func, args, kwargs, results in self.tape.calls:
            again = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for place, value in zip(results, again, strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)
