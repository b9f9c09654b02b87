"""One run on several devices: a process each, gradients and batch-norm statistics summed over them.

Not by ``DistributedDataParallel``: that averages the processes' gradients as if their shares of a batch were equal, and
the last batch's are not; it wraps a fixed set of parameters, and each task has new ones. The sum of what each image
gives, over the number of images, is the gradient of the whole batch whatever the shares, and takes one message.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import Stopped, stopping
from utils.signals import ignore

PATIENCE = timedelta(days=7)  # the others wait while the first process evaluates
WATCH_SECONDS = 0.2  # between two looks at whether the others are alive
PARTING_SECONDS = 3  # from the end of a process's connections to its own


class _Total(torch.autograd.Function):
    """A sum over the processes. Every term has the same gradient: the sum of what the processes make of the total."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Total.apply(gradient)
        return total


@dataclass(frozen=True)
class Group:
    """The processes of a run; each trains on its share of every batch. Alone, it does nothing.

    Attributes:
        rank: which of them this is; the first one, 0, tests and writes for all.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def total(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over the processes, all of which must ask for it; its gradient is that of all."""
        total: Tensor = _Total.apply(value) if self.size > 1 else value
        return total

    def gather(self, value: Tensor) -> Tensor:
        """What each process has for ``value``, of one shape, stacked: (processes, *shape); with their gradients."""
        return self.total(F.pad(value[None], [0, 0] * value.ndim + [self.rank, self.size - 1 - self.rank]))

    def backward(self, loss: Tensor, parameters: Iterable[nn.Parameter], images: int) -> None:
        """Give ``parameters`` the gradient of the mean loss over all images of all processes.

        Args:
            loss: the mean over this process's share of the batch.
            images: how many these are; there may be none.
        """
        if self.size == 1:
            loss.backward()
            return
        # What an image gives is the same in every process, so that the gradients through common statistics add up.
        (loss * images).backward()
        parameters = list(parameters)
        # A layer that the network does not use has no gradient.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # One message: all gradients, and the number of images.
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), gradients[0].new_tensor([images])])
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
def group_of(
    devices: list[torch.device], follow: Callable[..., None], *args: object, words: Callable[[str], str] = str
) -> Iterator[Group]:
    """Be the first process of a group with one for each device; the others call ``follow(group, *args)``.

    Leaving waits for the others to return, or ends them after an error here. Signals that ask the run to end are for
    the first process alone.

    Args:
        follow: a function of a module, with arguments that can be pickled.
        words: what becomes of messages of and about the other processes; a function of a module.

    Raises:
        Stopped: one of the others has ended.
    """
    if len(devices) == 1:
        yield Group()
        return
    backend = "gloo" if devices[0].type == "cpu" else "nccl"
    store = dist.TCPStore("127.0.0.1", 0, len(devices), is_master=True, timeout=PATIENCE, wait_for_workers=False)
    start = torch.multiprocessing.get_context("spawn").Process
    others = [
        start(target=_follow, args=(backend, store.port, Group(rank, len(devices)), devices[rank], words, follow, args))
        for rank in range(1, len(devices))
    ]
    left = threading.Event()
    watch = threading.Thread(target=_end_if_one_dies, args=(others, left, words), daemon=True)
    watch.start()
    try:
        _start(others)
        _join(backend, store, Group(0, len(devices)), devices[0])
        yield Group(0, len(devices))
        dist.destroy_process_group()  # NCCL does so once all processes do: before waiting for the others to end
        for process in others:
            process.join()
    except (RuntimeError, Stopped) as error:  # what torch raises when another is gone, or what was made of it
        if isinstance(error, Stopped) and not isinstance(error.__cause__, RuntimeError):
            raise
        for process, device in zip(others, devices[1:], strict=True):
            process.join(PARTING_SECONDS)  # a connection is lost a moment before its process has ended
            if process.exitcode:
                raise Stopped(f"the process on {device} ended with status {process.exitcode}") from error
        raise
    finally:
        left.set()
        watch.join()
        for process in others:
            if process.pid is not None:  # it could be started
                process.kill()
                process.join()
        if dist.is_initialized():  # after an error or a signal: the others will not say good-bye
            if backend == "nccl" and dist.group.WORLD is not None:
                dist.group.WORLD.abort()
            else:
                dist.destroy_process_group()


def gpu_fault() -> str | None:
    """Why no GPU can be used though torch counts some: one line of the driver's; None if they can be used."""
    try:
        torch.cuda.init()
    except Exception as error:  # the driver is older than torch wants, or does not match the kernel, or is gone
        return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return None


def gpu_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, whoever uses it; 0 of other devices."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def _start(others: Iterable[BaseProcess]) -> None:
    """Start the other processes. Raises ``Stopped`` if there is no room for all of them."""
    try:
        for process in others:
            process.start()
    except OSError as error:
        why = f"not all of its processes can be started: {error.strerror or error}"
        raise Stopped(f"`multigpu`: {why}") from error


def _end_if_one_dies(others: list[multiprocessing.Process], left: threading.Event, words: Callable[[str], str]) -> None:
    """End this process, from a thread of its own, when one of the others fails; the first would wait for it for long.

    Where torch does not say so by itself soon: without clean-up, for a message under way cannot be called back. What is
    learned is on the disk.
    """
    while not left.wait(WATCH_SECONDS):
        for rank, process in enumerate(others, start=1):
            if process.exitcode and not left.wait(2 * PARTING_SECONDS):
                what = f"`multigpu`: process {rank + 1} of {len(others) + 1} has ended with status {process.exitcode}"
                what = words(f"{what}; `resume` goes on from the last learned task")
                print(f"main.py: error: {what}", file=sys.stderr)
                for other in others:
                    other.kill()
                os._exit(1)


def _end_with_first() -> None:
    """Leave no orphan: a first process that is killed can end nobody, and others may wait for it for days."""
    if first := multiprocessing.parent_process():
        first.join()
    os._exit(1)


def _follow(
    backend: str,
    port: int,
    group: Group,
    device: torch.device,
    words: Callable[[str], str],
    follow: Callable[..., None],
    args: tuple[object, ...],
) -> None:
    ignore()
    threading.Thread(target=_end_with_first, daemon=True).start()
    store = dist.TCPStore("127.0.0.1", port, group.size, is_master=False, timeout=PATIENCE, wait_for_workers=False)
    _join(backend, store, group, device)
    try:
        with stopping():
            follow(group, *args)
    except Stopped as error:
        print(f"process on {device}: {words(str(error))}", file=sys.stderr)
        sys.exit(error.status)
    dist.destroy_process_group()


def _join(backend: str, store: dist.Store, group: Group, device: torch.device) -> None:
    own = None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        own = device  # else NCCL guesses it from the rank
    dist.init_process_group(
        backend, store=store, rank=group.rank, world_size=group.size, timeout=PATIENCE, device_id=own
    )
