"""Signals that ask a run to end: from the terminal, or from a cluster whose time is up or will be soon."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from utils.errors import Stopped

# SIGHUP: the terminal or the connection is gone. SIGUSR1, SIGUSR2, SIGXCPU: what SLURM, submitit and Grid Engine send a
# while before a limit.
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
# A cluster tells every process of a job to end, and the launcher of experiments passes on what it is told: within this
# time a second signal is the first one again.
ECHO_SECONDS = 2.0


class Signals:
    """Each of ``NUMBERS`` raises ``Stopped``: at once, or where the run says that it can stop.

    One more after a while just ends the run.

    A context manager; leaving it puts back the handlers that were there. Outside the main thread, which alone may have
    handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._when = 0.0
        self._waits = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as of a job in the background of a script
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            if time.monotonic() - self._when > ECHO_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self._received, self._when = number, time.monotonic()
        if not self._waits:
            self.check()

    def check(self) -> None:
        """The run can stop here.

        Raises:
            Stopped: there was a signal; with the exit status that shells give to one.
        """
        if self._received is not None:
            raise Stopped(f"by {signal.Signals(self._received).name}", 128 + self._received)

    @contextmanager
    def waiting(self, waits: bool = True) -> Iterator[None]:
        """Within this a signal waits for ``check``; or, with ``waits`` false, it does not."""
        before, self._waits = self._waits, waits
        if not waits:
            self.check()
        try:
            yield
        finally:
            self._waits = before


def end_at_once(program: str) -> None:
    """From now on each of ``NUMBERS`` ends the process with one line, in the name of ``program``, and its status.

    For what a program does before it has anything to keep, such as to load torch, which takes seconds.
    """

    def end(number: int, frame: FrameType | None) -> None:
        with suppress(Exception):  # outputs that are closed, or in the middle of something
            sys.stdout.flush()
        with suppress(OSError):
            os.write(2, f"{program}: stopped: by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def ignore() -> None:
    """Leave the signals to another process; for one that is told by that when to end."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
