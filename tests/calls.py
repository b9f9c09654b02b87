"""What a processor tells of a GPU's work: how many kernels would be launched, and how often the host would wait."""

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result the host must see before it goes on; the others are only put into the device's queue.
WAITS = {"_local_scalar_dense", "nonzero", "unique_dim", "_unique2", "equal", "masked_select"}
# Operators that compute nothing: memory, and names for a profiler.
NOTHING = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "_reshape_alias"}
NOTHING |= {"detach", "lift_fresh", "resize_", "set_", "_record_function_enter_new", "_record_function_exit"}


class Calls(TorchDispatchMode):
    """Counts operators while it is entered.

    Args:
        device: whose tensors the host waits for.

    Attributes:
        kernels: those that compute, by name; views do not.
        waits: those of ``WAITS``, and copies from a device to the processor.
        transfers: numbers of the host that become tensors, each a copy to the device that waits too.
    """

    def __init__(self, device: str | torch.device = "cpu"):
        super().__init__()
        self.device = torch.device(device)
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.transfers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        views = any(part.alias_info is not None and not part.alias_info.is_write for part in func._schema.returns)
        there = any(isinstance(part, Tensor) and part.device == self.device for part in args)
        fetched = name == "_to_copy" and self.device.type != "cpu" == str((kwargs or {}).get("device"))
        if there and (name in WAITS or fetched):
            self.waits[name] += 1
        self.transfers += name == "lift_fresh"
        if not views and name not in NOTHING:
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))
