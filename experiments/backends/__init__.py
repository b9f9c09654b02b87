"""Where runs are run. A backend has places, starts a run on one, and says how it is; the schedule does the rest."""

import os
import platform
import re
import shlex
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from experiments.plan import Run

GRACE_SECONDS = 120  # what a run that is told to end gets for its batch and its checkpoint


class Job(ABC):
    """A run under way at a place of a backend, which says how to look at it and how to end it.

    Attributes:
        log: what it prints; main.py also touches it while it works.
        begins: where its own output begins in the log, which earlier attempts share.
        since: when it started.
        hung: whether it was told to end because it gave no sign of life.
        deadline: when it is killed; None if nobody told it to end.
    """

    def __init__(self, run: Run, place: str, log: Path, begins: int):
        self.run, self.place, self.log, self.begins = run, place, log, begins
        self.since = time.monotonic()
        self.hung = False
        self.deadline: float | None = None
        self._sign = 0  # when the log was last changed, by the clock of the file system
        self._heard = time.monotonic()  # when that was seen, by this process's own

    @abstractmethod
    def status(self) -> int | None:
        """Its exit status, -N if signal N has killed it; None while it is under way."""

    @abstractmethod
    def ask_to_end(self) -> None:
        """Ask it to finish its batch, keep what it has learned, and end."""

    @abstractmethod
    def kill(self) -> None:
        """End what is left of it and of what it started, if anything is."""

    def tell_to_end(self) -> None:
        """Ask it to end, which may take ``GRACE_SECONDS``."""
        self.ask_to_end()
        self.deadline = time.monotonic() + GRACE_SECONDS

    def is_silent(self, seconds: float) -> bool:
        """Whether it has given no sign of life for so long."""
        with suppress(OSError):  # a log that cannot be looked at is no sign
            if (sign := self.log.stat().st_mtime_ns) != self._sign:
                self._sign, self._heard = sign, time.monotonic()
        return time.monotonic() - self._heard > seconds

    def why(self) -> str:
        """How it failed: how it ended and the last line it wrote."""
        status = self.status() or 0
        ended = f"status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        ended = "hung and was ended" if self.hung else ended
        lines = []
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(max(self.begins, os.fstat(log.fileno()).st_size - 65536))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{ended}: {lines[-1] if lines else 'it wrote nothing'}"


class Backend(Protocol):
    """What the schedule needs of a backend.

    Attributes:
        places: what it runs runs on, one at a time on each, in words for the user.
    """

    places: Sequence[str]

    def start(self, run: Run, place: str) -> Job:
        """Start a run at a place that is free.

        Raises:
            BlockingIOError: it is under way already, in another process.
            OSError: it cannot be started.
        """
        ...


def head_line(command: Sequence[str]) -> str:
    """What the log of an attempt at a run begins with: the command, and who started it."""
    return f"$ {shlex.join(command)}  # process {os.getpid()} on {platform.node()}"


def starter(log: Path) -> str | None:
    """Who started the run whose log this is, as far as the log tells."""
    found = None
    with suppress(OSError), log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = re.match(r"\$ .*  # (process \d+ on \S+)$", line) or found
    return found[1] if found else None
