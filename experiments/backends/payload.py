"""What a job of a SLURM cluster does: one attempt at a run, on the node that the cluster has given it."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.helpers import DelayedSubmission

from experiments.attempts import is_finished
from experiments.backends.local import Child
from utils.signals import ECHO_SECONDS

HELD = 75  # how a job ends whose run another process is at


class Payload:
    """What a job does: one attempt at a run, as a process beside it. Pickled into the job by submitit."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]):
        self._command, self._log, self._env = command, log, env
        self._child: Child | None = None
        self._told = False

    def __call__(self) -> int:
        """Run it to its end; gives its exit status, as ``Job.status``, or ``HELD``."""
        signal.signal(signal.SIGTERM, lambda *_: self._end())  # scancel
        try:
            self._child = Child(self._command, self._log, {**os.environ, "PYTHONUNBUFFERED": "1", **self._env})
        except BlockingIOError:
            return 0 if is_finished(self._log) else HELD
        if status := self._wait():
            time.sleep(ECHO_SECONDS)  # what has ended the run, such as SIGUSR2, may be on its way to this process too
        return status

    def checkpoint(self) -> DelayedSubmission:
        """Have the run keep what it has learned; gives what is to be done when the job starts again. On SIGUSR2."""
        if self._child:
            self._end()
            self._wait()
        return DelayedSubmission(Payload(self._command, self._log, self._env))

    def _wait(self) -> int:
        assert self._child
        while (status := self._child.status()) is None:
            time.sleep(0.1)
        return status

    def _end(self) -> None:
        """Tell the run to end; when told again, kill it."""
        if self._child:
            self._child.kill() if self._told else self._child.ask_to_end()
            self._told = True
