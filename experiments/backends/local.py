"""Runs as processes of this machine, shared out over its GPUs or the processor. POSIX only."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from experiments import gpus
from experiments.attempts import end_line, head_line, is_finished, is_under_way
from experiments.backends import Job
from experiments.plan import Plan, Run
from utils.cores import RUNS_AT_ONCE

# Each run starts through this stub. On Linux it asks the kernel to kill it when its parent is gone, even by SIGKILL;
# the request (PR_SET_PDEATHSIG, 1) outlives exec. An orphan would go on writing into the folder in which the next call
# resumes the run. It lets SIGINT through, which the workers of Ray block and pass on, and then becomes the run.
TETHER = """
import ctypes, os, signal, sys
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
if os.getppid() == int(sys.argv[1]):  # else the parent died before the request was in place
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A run's process, a child of this one, in a group of its own: a signal from the terminal does not reach it, and
    what it starts ends with it.

    Args:
        command: its words.
        log: where its output goes, behind what is there.
        env: its environment.
        folder: where it works; None for where this process does.

    Raises:
        OSError: as ``open_log``; it is ``BlockingIOError`` too if the run was finished just now.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str], folder: str | None = None):
        self.log = log
        with open_log(log) as file:
            if is_finished(log):  # by the process that held the lock a moment ago
                raise BlockingIOError
            file.write(f"{head_line(command)}\n".encode())
            file.flush()
            self.begins = file.tell()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-S", "-c", TETHER, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=env,
                    cwd=folder,
                    start_new_session=True,
                )
            except BlockingIOError as error:  # there may be no more processes, which is no sign of another at the run
                raise ChildProcessError(error.errno, error.strerror, sys.executable) from None
        self._noted = False

    def status(self) -> int | None:
        """As ``Job.status``; when the process has ended, its log says so."""
        status = self._process.poll()
        if status is not None and not self._noted:
            self._noted = True
            with suppress(OSError), self.log.open("ab+") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read() == b"\n" else b"\n")
                file.write(f"{end_line(status)}\n".encode())
        return status

    def ask_to_end(self) -> None:
        self._process.terminate()  # this one alone, which needs its followers on other devices until it has ended

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # already gone; macOS says the latter
            os.killpg(self._process.pid, signal.SIGKILL)


class Process(Job):
    """A run that is a process of this machine."""

    def __init__(self, run: Run, place: str, child: Child):
        super().__init__(run, place, child.log, child.begins)
        self._child = child

    def status(self) -> int | None:
        return self._child.status()

    def ask_to_end(self) -> None:
        self._child.ask_to_end()

    def kill(self) -> None:
        self._child.kill()


class Local:
    """The backend of this machine: its places are sets of GPUs, or ``cpu``."""

    def __init__(self, plan: Plan, sets: Sequence[str]):
        self.places = sets
        self._plan = plan
        # Of all runs, the finished ones too, so that the next call says the same.
        self._env = {RUNS_AT_ONCE: str(min(len(sets), len(plan.runs))), "PYTHONUNBUFFERED": "1"}

    def start(self, run: Run, place: str) -> Process:
        """Start a run with its output in its log. Raises ``OSError`` as ``Child``."""
        command, log = command_on(place, self._plan, run), self._plan.log(run)
        if is_under_way(log):
            raise BlockingIOError
        return Process(run, place, Child(command, log, {**os.environ, **self._env}))

    def close(self) -> None:
        pass


def command_on(place: str, plan: Plan, run: Run) -> list[str]:
    """The words that run a run on a set of this machine's GPUs, or ``cpu``; it sees no others."""
    return [*gpus.seeing(place), *plan.command(run, *gpus.renumbered([place]))]


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
