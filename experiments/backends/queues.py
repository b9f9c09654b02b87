"""The queues that jobs are submitted to through submitit: of SLURM, and one on this machine to try it without."""

import math
import os
import shlex
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit

from experiments.slurm import SlurmOptions
from utils.cores import RUNS_AT_ONCE
from utils.paths import PROJECT

FOREVER = 10**6  # time limits that a job may meet


class Queue(ABC):
    """What holds jobs.

    Attributes:
        executor: submits them.
        room: for how many it has room at a time.
        env: what their runs find in the environment.
        look_seconds: between two questions after their states.
    """

    executor: submitit.Executor
    room: int
    env: Mapping[str, str]
    look_seconds: float

    def submit(self, whats: Sequence[Callable[[], object]]) -> list[str]:
        """Put jobs into the queue, as an array if it knows such; gives their ids, which no other job ever has.

        Raises:
            FailedJobError, FailedSubmissionError, OSError: it does not take them.
        """
        with self.executor.batch():
            jobs = [self.executor.submit(what) for what in whats]
        return [job.job_id for job in jobs]

    def job(self, id: str) -> submitit.Job[Any]:
        """What submitit knows of a job."""
        return self.executor.job_class(self.executor.folder, id)

    @abstractmethod
    def states(self, ids: Iterable[str]) -> dict[str, str] | None:
        """The state of each of these jobs that waits or is under way, by its id; None if there is no answer."""

    @abstractmethod
    def cancel(self, id: str, kill: bool) -> None:
        """Take a job that waits out of the queue; have one that is under way end, or kill it."""


class SlurmQueue(Queue):
    """That of the cluster whose ``sbatch`` there is."""

    room = 1000  # an array of SLURM's default settings has 1,001 at the most
    env: Mapping[str, str] = {}  # the job's allotment tells how many cores a run has
    look_seconds = 5.0

    def __init__(self, folder: Path, options: SlurmOptions):
        self.executor = submitit.SlurmExecutor(folder, FOREVER, python=_python())
        self.executor.update_parameters(
            job_name=folder.parent.name,
            time=math.ceil(options.minutes),
            array_parallelism=options.at_once or self.room,
            signal_delay_s=options.signal_delay,
            additional_parameters={"requeue": True, **options.sbatch},
        )

    def states(self, ids: Iterable[str]) -> dict[str, str] | None:
        try:
            command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        except (OSError, subprocess.SubprocessError):
            return None
        every = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
        return {id: every[id] for id in ids if id in every}

    def cancel(self, id: str, kill: bool) -> None:
        for how in ((),) if kill else (("--state=PENDING",), ("--signal=TERM",)):
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["scancel", *how, id], capture_output=True, timeout=60)


class LocalQueue(Queue):
    """Processes of this machine, each started at once; they go on when the one that started them is gone.

    A job's id is its process's and when that began, as ``_born`` has it: another may have the number later.
    """

    look_seconds = 0.5

    def __init__(self, folder: Path, options: SlurmOptions):
        self.room = options.at_once or 1
        self.env = {RUNS_AT_ONCE: str(self.room)}
        self.executor = submitit.LocalExecutor(folder, FOREVER, python=_python())
        self.executor.update_parameters(timeout_min=options.minutes, signal_delay_s=options.signal_delay)

    def submit(self, whats: Sequence[Callable[[], object]]) -> list[str]:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher alone, as with a cluster
        try:
            return [f"{process} {_born(process)}" for process in super().submit(whats)]
        finally:
            signal.signal(signal.SIGINT, before)

    def job(self, id: str) -> submitit.Job[Any]:
        return super().job(id.partition(" ")[0])

    def states(self, ids: Iterable[str]) -> dict[str, str] | None:
        return {id: "RUNNING" for id in ids if _is_alive(id)}

    def cancel(self, id: str, kill: bool) -> None:
        if _is_alive(id):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(id.partition(" ")[0]), signal.SIGTERM)  # told again, the job kills its run


def queue_of(folder: Path, options: SlurmOptions) -> Queue:
    """The queue that the options name, whose jobs keep their files in ``folder``."""
    return LocalQueue(folder, options) if options.local else SlurmQueue(folder, options)


def _python() -> str:
    """What starts Python in a job, where the project is to be found."""
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    return f"env {shlex.quote(f'PYTHONPATH={path}')} {shlex.quote(sys.executable)}"


def _is_alive(id: str) -> bool:
    process, _, born = id.partition(" ")
    return bool(born) and _born(process) == born


def _born(process: str) -> str:
    """When the process of this number began, in the system's words; empty if there is none to be seen."""
    with suppress(ChildProcessError):  # it is another call's
        os.waitpid(int(process), os.WNOHANG)
    if sys.platform == "linux":  # ticks since the machine was booted
        boot = ""
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        with suppress(OSError):
            state, *more = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return "" if state in "ZX" else f"{boot} {more[18]}"
        return ""
    command, env = ["ps", "-o", "state=", "-o", "lstart=", "-p", process], {**os.environ, "LC_ALL": "C"}
    state, *more = subprocess.run(command, capture_output=True, text=True, env=env).stdout.split() or ["Z"]
    return "" if state.startswith("Z") else " ".join(more)
