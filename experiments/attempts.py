"""The attempts at a run: what its log says about each, and whether one is under way.

A run's log lies beside its folder and has the folder's name. Files alone are read, without torch, so that every process
that sees the disk comes to the same answer, whoever started the run. POSIX only.
"""

import os
import platform
import re
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from utils.files import is_locked
from utils.signals import NUMBERS

STOPPED = {status for number in NUMBERS for status in (-number, 128 + number)}  # how a run ends that is told to
SIGN_SECONDS = 300  # within which a run on another machine has changed its log, or is taken for dead


@dataclass(frozen=True)
class Attempt:
    """The last attempt at a run, as its log tells of it.

    Attributes:
        starter: the process that started it: ``process 12 on name``.
        machine: the name of that process's machine.
        status: how it ended; None while it has not, and where its starter was gone before it.
    """

    starter: str
    machine: str
    status: int | None = None

    @property
    def process(self) -> int:
        """The number of that process."""
        return int(self.starter.split()[1])


def head_line(command: Sequence[str]) -> str:
    """What the log of an attempt begins with: the command, and who started it."""
    return f"$ {shlex.join(command)}  # {_this_process()}"


def end_line(status: int) -> str:
    """What the starter of an attempt adds to its log when it has ended."""
    return f"$ {_this_process()}: ended with status {status}"


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def last_attempt(log: Path) -> Attempt | None:
    """The last attempt that a log tells of; None without any."""
    found = None
    with suppress(OSError), log.open("rb") as lines:
        for line in lines:
            if not line.startswith(b"$ "):
                continue
            text = line.decode(errors="replace")
            if began := re.match(r"\$ .*  # (process \d+ on (\S+))$", text):
                found = Attempt(began[1], began[2])
            elif found and (ended := re.match(r"\$ (process \d+ on \S+): ended with status (-?\d+)$", text)):
                if ended[1] == found.starter:  # else of an earlier attempt, which another starter was quicker to follow
                    found = Attempt(found.starter, found.machine, int(ended[2]))
    return found


def last_line(log: Path, begins: int = 0) -> str:
    """The last line that a run wrote into its log behind the byte ``begins``; empty if it wrote none."""
    lines = []
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(begins, os.fstat(file.fileno()).st_size - 65536))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("$ ")), "")


def folder_of(log: Path) -> Path:
    """The folder of the run whose log it is."""
    return log.with_suffix("")


def is_finished(log: Path) -> bool:
    return (folder_of(log) / "finished").exists()


def is_under_way(log: Path) -> bool:
    """Whether a process is at the run: the launcher's, any launcher's, or ``main.py`` by itself.

    Locks say so, on this machine and where the file system passes them on to others. Where it does not, a run that
    began on another machine, and has not ended as far as its log tells, is alive while its log changes; where there are
    no locks at all, so is one of this machine, while the process that started it is there.
    """
    locked = is_locked(log)
    if locked or is_locked(folder_of(log) / ".lock"):
        return True
    attempt = last_attempt(log)
    if attempt is None or attempt.status is not None:
        return False
    if attempt.machine == platform.node() and (locked is False or not _is_there(attempt.process)):
        return False
    with suppress(OSError):
        return time.time() - log.stat().st_mtime < SIGN_SECONDS
    return False


def _is_there(process: int) -> bool:
    """Whether there is another process of that number on this machine; it may have got the number anew."""
    try:
        os.kill(process, 0)
    except PermissionError:  # somebody else's
        return True
    except (OSError, OverflowError):
        return False
    return process != os.getpid()
