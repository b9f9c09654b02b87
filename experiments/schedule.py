"""Which run starts when, which is started once more, and which are left: the same wherever runs are run.

The schedule has no threads: it starts runs, looks at them a few times a second, and ends them when it is told to stop.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from experiments.attempts import STOPPED, is_under_way, last_attempt
from experiments.backends import GRACE_SECONDS, Backend, Job
from experiments.plan import Plan, Run
from experiments.progress import Progress
from utils.signals import ECHO_SECONDS
from utils.signals import NUMBERS as STOP_SIGNALS

POLL_SECONDS = 0.1
HELD_SECONDS = 1  # between two looks at the runs that another process is at
MOST_LOST = 10  # times that a run may lose its machine, since it may be the run that takes the machine down
LOCK_SECONDS = 5  # how long a run killed a moment ago may take to be gone


@dataclass
class Ends:
    """How the runs ended that have not finished, and whether the schedule was stopped.

    Attributes:
        failed: for each run that failed its exit status (None if it did not start) and the reason.
        left: runs that are left unfinished for a later call.
        elsewhere: runs that were under way in another process when this one was stopped.
        signal: the first of ``STOP_SIGNALS`` that stopped everything, if one did.
    """

    failed: dict[Run, tuple[int | None, str]] = field(default_factory=dict)
    left: list[Run] = field(default_factory=list)
    elsewhere: list[Run] = field(default_factory=list)
    signal: int | None = None


class Schedule:
    """The books of a call: which runs wait, which are under way, and how the others have ended.

    Args:
        plan: the runs; its folder must exist.
        backend: where they are run.
        hung_after: seconds without a sign of life after which a run is ended.
        stop_after: seconds after which no run starts and those under way are told to end.
    """

    def __init__(self, plan: Plan, backend: Backend, hung_after: float, stop_after: float):
        self.plan, self.backend = plan, backend
        self.hung_after = hung_after
        self.stop_at = time.monotonic() + stop_after
        self.waiting = list(plan.runs)
        self.jobs: list[Job] = []
        self.ends = Ends()
        self.tried: set[Run] = set()
        self.lost: Counter[Run] = Counter()
        self.held: dict[Run, float] = {}  # waiting runs that another process is at, and since when
        self.look_again = 0.0  # when to look at these
        self.said = False  # that there is nothing to do but to wait for them
        self.caught: list[int] = []

    def run(self) -> Ends:
        """Run what is not finished, one run a place at a time. A run that crashes or hangs is started once more.

        A run that another process is at is waited for, and started here if that ends without having finished it.
        On one of ``STOP_SIGNALS`` every run is told to end, and on a second one killed.
        """
        progress = Progress(self.plan)
        with caught_signals() as self.caught, progress.bar:
            try:
                while True:
                    self._start_runs()
                    self._look_at_jobs()
                    if self._over():
                        break
                    self._tell_of_waiting()
                    progress.look()
                    time.sleep(POLL_SECONDS)
            finally:
                self._end_jobs()
                progress.look(now=True)
        left = [run for run in [*self.ends.left, *self.waiting] if not self.plan.is_finished(run)]
        self.ends.left = [run for run in left if run not in self.held]
        self.ends.elsewhere = [run for run in left if run in self.held]
        self.ends.signal = self.caught[0] if self.caught else None
        return self.ends

    def _stopping(self) -> bool:
        return bool(self.caught) or time.monotonic() > self.stop_at

    def _over(self) -> bool:
        """Whether nothing is under way, and nothing is to start any more."""
        return not self.jobs and (self._stopping() or not self.waiting)

    def _start_runs(self) -> None:
        free = list((Counter(self.backend.places) - Counter(job.place for job in self.jobs)).elements())
        look = time.monotonic() > self.look_again
        for run in list(self.waiting):
            if not free or self._stopping():
                break
            if (look or run not in self.held) and not self._awaits_slices(run) and self._start(run, free[0]):
                free.pop(0)
        if look:
            self.look_again = time.monotonic() + HELD_SECONDS

    def _awaits_slices(self, run: Run) -> bool:
        """Whether a run is to merge slices of which nobody knows yet how they end."""
        if not run.parts:
            return False
        return not {one.name for one in (*self.waiting, *(job.run for job in self.jobs))}.isdisjoint(run.parts)

    def _start(self, run: Run, place: str) -> bool:
        """Start a run at a free place, unless it is finished, under way, or cannot be started; says whether it did."""
        if self.plan.is_finished(run):
            say(f"{run.name}: finished {'in another process' if run in self.held else 'before, skipped'}")
            self._forget(run)
            return False
        if failed := [part for part in self.ends.failed if part.name in run.parts]:
            names = ", ".join(Path(part.name).name for part in failed)
            self._give_up(run, self.ends.failed[failed[0]][0], f"not merged, for slices have failed: {names}")
            return False
        try:
            job = self.backend.start(run, place)
        except BlockingIOError:
            self.held.setdefault(run, time.monotonic())
            return False
        except OSError as error:
            self._give_up(run, None, f"not started: {error.strerror}")
            return False
        self.jobs.append(job)
        say(f"{run.name}: started on {place}, log in {job.log}")
        self.said = False
        self._forget(run)
        return True

    def _give_up(self, run: Run, status: int | None, reason: str) -> None:
        """Take a run that cannot be started out of those that wait."""
        self.ends.failed[run] = (status, reason)
        say(f"{run.name}: {reason}")
        self._forget(run)

    def _forget(self, run: Run) -> None:
        """Take a run out of those that wait."""
        self.waiting.remove(run)
        self.held.pop(run, None)

    def _tell_of_waiting(self) -> None:
        """Say, once, that all that is left is under way in another process."""
        now, waiting = time.monotonic(), [run for run in self.waiting if not self._awaits_slices(run)]
        if self.said or self.jobs or any(now - self.held.get(run, now) < LOCK_SECONDS for run in waiting):
            return
        starters = {last.starter for run in waiting if (last := last_attempt(self.plan.log(run)))}
        who = f", started by {starters.pop()}" if len(starters) == 1 else ""
        say(f"waiting for {counted(waiting)} under way in another process{who}")
        self.said = True

    def _look_at_jobs(self) -> None:
        stopping = self._stopping()
        for job in list(self.jobs):
            if job.status() is not None:
                self._settle(job)
                continue
            if job.deadline is None and (stopping or job.is_silent(self.hung_after)):
                job.hung = not stopping
                job.tell_to_end()
                reason = "no sign of life; " if job.hung else ""
                say(f"{job.run.name}: {reason}told to end, which may take {GRACE_SECONDS} s")
            if len(self.caught) > 1 or time.monotonic() > (job.deadline or float("inf")):
                job.kill()

    def _settle(self, job: Job) -> None:
        """Take a run that has ended out of the books."""
        job.kill()
        self.jobs.remove(job)
        run, status, outcome = job.run, job.status(), "done"
        if status:
            outcome = job.why()
            if (job.deadline or (self.caught and status in STOPPED)) and not job.hung:
                outcome = "stopped"
                self.ends.left.append(run)
            elif job.is_lost() and self.lost[run] < MOST_LOST:
                outcome += "; starting it elsewhere"
                self.lost[run] += 1
                self.waiting.insert(0, run)
            elif job.found_it_held() and (is_under_way(job.log) or run not in self.tried):
                outcome = "under way in another process"
                self.tried.add(run)
                self.waiting.insert(0, run)
                self.held[run] = time.monotonic()
            elif may_try_again(job) and run not in self.tried:
                outcome += "; trying once more"
                self.tried.add(run)
                self.waiting.insert(0, run)
            else:
                self.ends.failed[run] = (status, outcome)
        say(f"{run.name}: {outcome}, after {time.monotonic() - job.since:.0f} s")

    def _end_jobs(self) -> None:
        """End what is under way, which is nothing unless something went wrong here."""
        for job in self.jobs:
            job.tell_to_end()
        for job in self.jobs:
            while job.status() is None and time.monotonic() < (job.deadline or 0):
                time.sleep(POLL_SECONDS)
            job.kill()


def may_try_again(job: Job) -> bool:
    """Whether a failed run may fare better: not if its flags were refused, nor if somebody stopped it."""
    return job.hung or job.status() not in {2, *STOPPED}


def counted(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}"


def say(line: str) -> None:
    """Print a line, above the bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect ``STOP_SIGNALS`` in the list given out, so that no run slips through between its start and its entry in
    the books. Signals ignored so far (``nohup``, ``&``) stay ignored."""
    caught: list[int] = []
    first = 0.0

    def catch(number: int, _: object) -> None:
        nonlocal first
        if not caught:
            first = time.monotonic()
        if not caught or number in caught or time.monotonic() - first > ECHO_SECONDS:
            caught.append(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
