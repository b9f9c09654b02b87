"""One run on several devices: a process each, and the gradients averaged between them."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import Stopped, stopping
from utils.signals import blocked

PATIENCE = timedelta(days=7)  # the others wait while the first process evaluates


@dataclass(frozen=True)
class Group:
    """The processes of a run; each trains on its share of every batch. Alone, it does nothing.

    Attributes:
        rank: which of them this is; the first one, 0, tests and writes for all.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def average_gradients(self, parameters: Iterable[nn.Parameter], weight: int) -> None:
        """Replace each gradient by its mean over the processes, as the gradient of the whole batch.

        Args:
            weight: images in this process's share of the batch; 0 for none, and then there are no gradients.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # One message: all gradients times the share, and the share, so that their quotient is the mean.
        flat = torch.cat([gradient.flatten() * weight for gradient in gradients] + [gradients[0].new_tensor([weight])])
        dist.all_reduce(flat)
        flat /= flat[-1].clone()
        for parameter, part in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of ``value`` over the processes."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def from_first(self, value: Tensor) -> Tensor:
        """The first process's ``value``, in all of them; every process must give one of the same shape and type."""
        if self.size > 1:
            dist.broadcast(value, 0)
        return value


@contextmanager
def group_of(devices: list[torch.device], follow: Callable[..., None], *args: object) -> Iterator[Group]:
    """Be the first process of a group with one for each device; the others call ``follow(group, *args)``.

    Leaving waits for the others to return, or ends them after an error here. Signals that ask the run to end are for
    the first process alone.

    Args:
        follow: a function of a module, with arguments that can be pickled.

    Raises:
        Stopped: one of the others has ended.
    """
    if len(devices) == 1:
        yield Group()
        return
    backend = "gloo" if devices[0].type == "cpu" else "nccl"
    store = dist.TCPStore("127.0.0.1", 0, len(devices), is_master=True, wait_for_workers=False)
    start = torch.multiprocessing.get_context("spawn").Process
    others = [
        start(target=_follow, args=(backend, store.port, Group(rank, len(devices)), devices[rank], follow, args))
        for rank in range(1, len(devices))
    ]
    with blocked():
        for process in others:
            process.start()
    try:
        _join(backend, store, Group(0, len(devices)), devices[0])
        yield Group(0, len(devices))
        for process in others:
            process.join()
    except RuntimeError as error:
        for process, device in zip(others, devices[1:], strict=True):
            process.join(timeout=5)  # a connection is lost a moment before its process has ended
            if process.exitcode:
                raise Stopped(f"the process on {device} ended with status {process.exitcode}") from error
        raise
    finally:
        for process in others:
            process.kill()
            process.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def _follow(backend: str, port: int, group: Group, device: torch.device, follow: Callable, args: tuple) -> None:
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    store = dist.TCPStore("127.0.0.1", port, group.size, is_master=False, wait_for_workers=False)
    _join(backend, store, group, device)
    try:
        with stopping():
            follow(group, *args)
    except Stopped as error:
        print(f"process on {device}: {error}", file=sys.stderr)
        sys.exit(error.status)
    dist.destroy_process_group()


def _end_with_the_first() -> None:
    """Leave no orphan: a first process that is killed can end nobody, and others may wait for it for days."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _join(backend: str, store: dist.Store, group: Group, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=group.rank, world_size=group.size, timeout=PATIENCE)
