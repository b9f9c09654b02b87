"""A bar over the tasks of all runs of a call."""

import time

from tqdm import tqdm

from experiments import status
from experiments.plan import Plan, Run
from experiments.status import Status


class Progress:
    """A bar over the tasks of all runs, with the time left: nothing but what lies in the runs' folders counts.

    There is none where the output is no terminal.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        self._seen: dict[Run, Status] = {}
        self._next = 0.0
        # Without smoothing the rate is that since the start, without what was done before; the delay leaves out a
        # bar that does not know yet how many tasks there are.
        self.bar = tqdm(unit="task", smoothing=0, delay=1e-9, dynamic_ncols=True, disable=None)
        self.look(now=True)
        self.bar.initial = self.bar.n

    def look(self, now: bool = False) -> None:
        """Bring the bar up to the runs' files, if it is time for it."""
        if self.bar.disable or not (now or time.monotonic() > self._next):
            return
        began = time.monotonic()
        for run in self._plan.runs:
            if run.parts:
                continue  # its tasks are those of its slices
            if run not in self._seen or self._seen[run].state != "finished":
                self._seen[run] = status.read(self._plan.folder / run.name)
        finished = {
            run for run, of in self._seen.items() if of.state == "finished" or run.whole and self._plan.is_finished(run)
        }
        known = next((of.tasks for of in self._seen.values() if of.tasks), None)  # an experiment's runs have as many
        tasks = {run: of.tasks or run.tasks or known for run, of in self._seen.items()}
        done = {run: tasks[run] or of.done if run in finished else of.done for run, of in self._seen.items()}
        self.bar.total = None if None in tasks.values() else sum(tasks.values())
        self.bar.n = sum(done.values())
        merged = [run for run in self._plan.runs if run.parts and self._plan.is_finished(run)]
        self.bar.set_postfix_str(f"{len(finished) + len(merged)} of {len(self._plan.runs)} runs finished")
        ended = time.monotonic()
        self._next = ended + max(1, 50 * (ended - began))  # looking takes a fiftieth of the time at the most
