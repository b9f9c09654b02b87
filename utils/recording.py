"""A function that a GPU is given once: what it computes is recorded and then played back, in one call of the host."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

WARM_UP = 3  # calls before the recording: in them kernels are chosen and libraries find their memory

Kept = TypeVar("Kept")
Result = TypeVar("Result")


class Recorder:
    """Keeps what a GPU computes, a CUDA graph, and does it again.

    Args:
        device: the GPU; not the current one of torch, as a rule.
    """

    def __init__(self, device: torch.device):
        self.device = device

    @staticmethod
    def works_on(device: torch.device) -> bool:
        """Whether a device is one whose work can be recorded."""
        return device.type == "cuda"

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """What is computed inside comes before a recording, which wants it on the stream that it will have itself."""
        with torch.cuda.device(self.device):
            usual, own = torch.cuda.current_stream(), _stream(self.device)
            own.wait_stream(usual)
            try:
                with torch.cuda.stream(own):
                    yield
            finally:
                usual.wait_stream(own)

    def record(self, function: Callable[[], Result]) -> Result:
        """Record what ``function`` computes, without doing it; the tensors that it gives are filled by ``replay``.

        Raises:
            RuntimeError: it does what cannot be recorded, such as to look at a number that the device has.
        """
        own = _stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(own):  # both come back, however a recording ends
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph, stream=own, capture_error_mode="thread_local"):
                    return function()
            except RuntimeError:
                self.graph.reset()
                raise

    def replay(self) -> None:
        """Do what was recorded, with the tensors that it was recorded with."""
        with torch.cuda.device(self.device):
            self.graph.replay()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device for what is recorded, and what comes before: each stream has memory of its own."""
    return torch.cuda.Stream(device)


class Recorded(Generic[Kept]):
    """Calls ``function``, which computes with the same tensors each time, beside those that it is given.

    The first calls are made as they are. The next with tensors of the shapes of the one before it is recorded, and
    those after it are played back. Tensors of other shapes, as of an epoch's short last batch, go through a call as it
    is. Numbers of the host stay those of the recording. What cannot be recorded is called as it is, with a warning.

    Args:
        function: from tensors to a tensor, of which each caller gets a copy, and to more that is handed on as it is.
        device: where it computes.
        wanted: whether it may be recorded; it is on devices alone whose work can be.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, Kept]], device: torch.device, wanted: bool = True):
        self.function, self.device = function, device
        self._works = wanted and Recorder.works_on(device)
        self.forget()

    def forget(self) -> None:
        """Begin anew, for the function now computes something else, or with other numbers of the host."""
        self._calls = 0
        self._shapes: list[torch.Size] = []  # of the call before
        self._recorder: Recorder | None = None
        self._places: Sequence[Tensor] = ()
        self._result: tuple[Tensor, Kept] | None = None

    def __call__(self, *given: Tensor) -> tuple[Tensor, Kept]:
        if not self._works:
            return self.function(*given)
        shapes, before = [tensor.shape for tensor in given], self._shapes
        self._calls, self._shapes = self._calls + 1, shapes
        if self._calls <= WARM_UP:
            with Recorder(self.device).warming_up():
                return self.function(*given)
        if self._result is None and shapes == before:
            self._record(given)
        if self._recorder is None or self._result is None or shapes != [place.shape for place in self._places]:
            return self.function(*given)
        for place, tensor in zip(self._places, given, strict=True):
            place.copy_(tensor)
        self._recorder.replay()
        first, kept = self._result
        return first.clone(), kept

    def _record(self, given: Sequence[Tensor]) -> None:
        recorder, places = Recorder(self.device), [tensor.clone() for tensor in given]
        try:
            self._result = recorder.record(lambda: self.function(*places))
        except RuntimeError as error:
            self._works = False  # not for later tasks either
            cause = error.__context__ or error  # the end of a recording that has failed is an error of its own
            why = (str(cause).splitlines() or ["no reason is given"])[0]
            warnings.warn(
                f"steps of training cannot be recorded, so that they take the host longer: {why}", stacklevel=3
            )
            return
        self._recorder, self._places = recorder, places
