"""Runs as jobs of a SLURM cluster, through submitit: an array, whose jobs go on by themselves after their time limit.

A while before the limit a job has its run keep the middle of its task, and goes back into the queue. Which job has
which run is kept in the experiment's folder, so that a later call finds them.
"""

import json
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

from experiments.attempts import is_under_way
from experiments.backends import Job
from experiments.backends.payload import HELD, Payload
from experiments.backends.queues import queue_of
from experiments.plan import Plan, Run
from experiments.slurm import SlurmOptions
from utils.files import write_whole
from utils.locks import lock_of


class Queued(Job):
    """A run that is a job of the cluster, or will be when its array is submitted.

    Attributes:
        id: the cluster's; None before it is submitted.
        state: what the cluster calls its state.
        ended: its exit status, once it has ended.
        refused: what the cluster said when it would not take it.
        absences: how many times in a row the cluster did not know it.
    """

    def __init__(self, run: Run, place: str, log: Path, of: "Slurm"):
        super().__init__(run, place, log, log.stat().st_size if log.exists() else 0)
        self.id: str | None = None
        self.state, self.refused, self.absences = "", "", 0
        self.ended: int | None = None
        self._of, self._killed = of, False

    def status(self) -> int | None:
        self._of.look()
        return self.ended

    def may_be_silent(self) -> bool:
        return self.state != "RUNNING"  # in the queue, also after its time limit, or suspended

    def last_line(self) -> str:
        return self.refused or super().last_line()

    def found_it_held(self) -> bool:
        return self.ended == HELD

    def ask_to_end(self) -> None:
        self._cancel(kill=False)

    def kill(self) -> None:
        if self.ended is None and not self._killed:
            self._killed = True
            self._cancel(kill=True)

    def _cancel(self, kill: bool) -> None:
        if self.id is None:
            self.ended = -signal.SIGTERM
        else:
            self._of.queue.cancel(self.id, kill)


class Slurm:
    """The backend of a SLURM cluster, whose queue has room for every run."""

    def __init__(self, plan: Plan, options: SlurmOptions):
        self._plan, self._devices, self._folder = plan, options.devices, plan.folder / "slurm"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.queue = queue_of(self._folder, options)
        self.places = ["SLURM"] * min(len(plan.runs), self.queue.room)
        self._jobs: list[Queued] = []  # of which nobody knows yet how they end
        self._next_look = 0.0

    def close(self) -> None:
        pass  # what is left in the queue is for the next call

    def start(self, run: Run, place: str) -> Queued:
        """Put a run into the queue, with all that are started before the next look, or take up the job that has it."""
        job = Queued(run, place, self._plan.log(run), self)
        if is_under_way(job.log):
            known = self._known().get(run.name)
            if known is None or not self.queue.states([known]):
                raise BlockingIOError
        self._jobs.append(job)
        self._next_look = 0.0
        return job

    def look(self) -> None:
        """Submit what is new, and see which jobs have ended; every few seconds."""
        if time.monotonic() < self._next_look:
            return
        with lock_of(self._folder / "jobs.lock"):  # two calls submit no run twice
            known = self._known()
            states = self.queue.states({*known.values(), *(job.id for job in self._jobs if job.id is not None)})
            if states is not None:
                self._submit(known, states)
                for job in self._jobs:
                    self._see(job, states)
                ended = {job.id for job in self._jobs if job.ended is not None}
                if not ended.isdisjoint(known.values()):
                    self._note({run: id for run, id in known.items() if id not in ended})
        self._jobs = [job for job in self._jobs if job.ended is None]
        self._next_look = time.monotonic() + self.queue.look_seconds

    def _submit(self, known: dict[str, str], states: dict[str, str]) -> None:
        """Submit as an array what is not in the queue yet, and note what is now."""
        new = [job for job in self._jobs if job.id is None and job.ended is None]
        for job in new:
            job.id = found if (found := known.get(job.run.name)) in states else None
        if not (new := [job for job in new if job.id is None]):
            return
        try:
            ids = self.queue.submit(
                [Payload(self._plan.command(job.run, self._devices), job.log, self.queue.env) for job in new]
            )
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            for job in new:
                job.refused, job.ended = str(error).strip().splitlines()[-1], 2
            return
        for job, id in zip(new, ids, strict=True):
            job.id = known[job.run.name] = id
            states[id] = "PENDING"
        self._note(known)

    def _note(self, known: Mapping[str, str]) -> None:
        """Keep on the disk which job has which run; where it is full, this call alone knows."""
        with suppress(OSError):
            write_whole(self._folder / "jobs.json", json.dumps(known))

    def _known(self) -> dict[str, str]:
        """The id of the last job of each run, but of those of which a call has seen the end."""
        with suppress(FileNotFoundError):
            return json.loads((self._folder / "jobs.json").read_text(encoding="utf-8"))
        return {}

    def _see(self, job: Queued, states: Mapping[str, str]) -> None:
        """Note the state of a job; one that the queue has not known twice has ended."""
        job.state = states.get(job.id or "", "")
        job.absences = 0 if job.state else job.absences + 1
        if job.id is None or job.absences < 2:
            return
        of = self.queue.job(job.id)
        if _has_result(of.paths):
            job.ended = of.result() if of.exception() is None else 1
        else:  # it was killed with all that it had started, or cancelled while it waited
            begun = job.log.exists() and job.log.stat().st_size > job.begins
            job.ended = -(signal.SIGKILL if begun else signal.SIGTERM)


def _has_result(paths: JobPaths) -> bool:
    """Whether a job has left a result; one from before it was submitted is of a job whose number it has got."""
    with suppress(FileNotFoundError):
        return paths.result_pickle.stat().st_mtime_ns >= paths.submitted_pickle.stat().st_mtime_ns
    return False
