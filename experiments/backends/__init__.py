"""Where runs are run. A backend has places, starts a run on one, and says how it is; the schedule does the rest.

The launcher chooses it by the options of the call. A further one is a file here, with a ``Backend`` and its ``Job``.
"""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from experiments.attempts import last_line
from experiments.plan import Run

GRACE_SECONDS = 120  # what a run that is told to end gets for its batch and its checkpoint
LOOK_SECONDS = 5  # from one look at a run to the next, which mostly takes less
IN_USE = "another process is running in this folder"  # how main.py ends where a run is under way


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
        self._silence, self._looked = 0.0, time.monotonic()  # seconds since that was seen, and when was the last look

    @abstractmethod
    def status(self) -> int | None:
        """Its exit status, -N if signal N has killed it; None while it is under way."""

    @abstractmethod
    def ask_to_end(self) -> None:
        """Ask it to finish its batch, keep what it has learned, and end."""

    @abstractmethod
    def kill(self) -> None:
        """End what is left of it and of what it started, if anything is."""

    def is_lost(self) -> bool:
        """Whether it ended because its machine is gone, which says nothing about the run."""
        return False

    def found_it_held(self) -> bool:
        """Whether it ended because another process was at the run."""
        return IN_USE in self.last_line()

    def tell_to_end(self) -> None:
        """Ask it to end, which may take ``GRACE_SECONDS``."""
        self.ask_to_end()
        self.deadline = time.monotonic() + GRACE_SECONDS

    def may_be_silent(self) -> bool:
        """Whether nobody can expect a sign of life from it: it waits for its turn."""
        return False

    def is_silent(self, seconds: float) -> bool:
        """Whether it has given no sign of life for so long.

        The time from one look to the next counts for ``LOOK_SECONDS`` at the most: where it is longer, this process
        was stopped, and the run perhaps with it.
        """
        now, sign = time.monotonic(), self._sign
        with suppress(OSError):  # a log that cannot be looked at is no sign
            sign = self.log.stat().st_mtime_ns
        heard = sign != self._sign or self.may_be_silent()
        self._silence = 0.0 if heard else self._silence + min(now - self._looked, LOOK_SECONDS)
        self._sign, self._looked = sign, now
        return self._silence > seconds

    def last_line(self) -> str:
        """The last line that it wrote; empty if it wrote none."""
        return last_line(self.log, self.begins)

    def why(self) -> str:
        """How it failed: how it ended and the last line it wrote."""
        status = self.status() or 0
        ended = f"status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        ended = "hung and was ended" if self.hung else ended
        return f"{ended}: {self.last_line() or 'it wrote nothing'}"


class Backend(Protocol):
    """What the launcher and the schedule need of a backend."""

    @property
    def places(self) -> Sequence[str]:
        """What it runs runs on, one at a time on each, in words for the user; they may become more or fewer."""
        ...

    def start(self, run: Run, place: str) -> Job:
        """Start a run at a place that is free.

        Raises:
            BlockingIOError: it is under way already, in another process, or was finished by one just now.
            OSError: it cannot be started.
        """
        ...

    def close(self) -> None:
        """Let go of what the backend itself has started; nothing is under way any more."""
        ...
