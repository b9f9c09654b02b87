"""Runs as processes of this machine, shared out over its GPUs or the processor. POSIX only."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from experiments.backends import Job, head_line
from experiments.plan import Plan, Run
from utils.cores import RUNS_AT_ONCE

# On Linux each run starts through this stub. It asks the kernel to kill it when the launcher is gone, even by
# SIGKILL, and then becomes the run: the request (PR_SET_PDEATHSIG, 1) outlives exec. An orphan would go on
# writing into the folder in which the next call resumes the run.
TETHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
if os.getppid() == int(sys.argv[1]):  # else the launcher died before the request was in place
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Process(Job):
    """A run that is a process of this machine."""

    def __init__(self, run: Run, place: str, log: Path, begins: int, process: subprocess.Popen):
        super().__init__(run, place, log, begins)
        self.process = process

    def status(self) -> int | None:
        return self.process.poll()

    def ask_to_end(self) -> None:
        self.process.terminate()  # this one alone, which needs its followers on other devices until it has ended

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # already gone; macOS says the latter
            os.killpg(self.process.pid, signal.SIGKILL)


class Local:
    """The backend of this machine: its places are sets of GPUs, or ``cpu``."""

    def __init__(self, plan: Plan, sets: Sequence[str]):
        self.places = sets
        self._plan = plan
        # Of all runs, the finished ones too, so that the next call says the same.
        self._env = {RUNS_AT_ONCE: str(min(len(sets), len(plan.runs))), "PYTHONUNBUFFERED": "1"}

    def start(self, run: Run, place: str) -> Process:
        """Start a run with its output in its log. Raises ``OSError`` as ``open_log``."""
        path, command = self._plan.log(run), self._plan.command(run, place)
        tether = [sys.executable, "-S", "-c", TETHER, str(os.getpid())] if sys.platform == "linux" else []
        with open_log(path) as log:
            log.write(f"{head_line(command)}\n".encode())
            log.flush()
            begins = log.tell()
            process = subprocess.Popen(
                [*tether, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
                start_new_session=True,  # Ctrl-C reaches the launcher alone, and what the run starts ends with it
            )
        return Process(run, place, path, begins, process)


def open_log(path: Path) -> BinaryIO:
    """Open a run's log for appending and lock it; the run inherits the lock with its output.

    So a run that is under way anywhere on this machine, another launcher's or one left over, is never started
    twice.

    Raises:
        OSError: the log cannot be written, or the run is already under way (``BlockingIOError``).
    """
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise
    except OSError:
        pass  # a file system without locks
    return log
