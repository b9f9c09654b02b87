"""The schedule, over a backend whose jobs end as they are told."""

import itertools
import time

import pytest

from experiments import schedule
from experiments.backends import Job
from experiments.plan import Plan, Run
from experiments.schedule import Schedule


class Told(Job):
    """A job that ends with a given status when it is first looked at; with None, when it is asked to."""

    def __init__(self, run, place, log, code):
        super().__init__(run, place, log, begins=0)
        self.code = code

    def status(self):
        return self.code

    def ask_to_end(self):
        self.code = 143

    def kill(self):
        pass


class Elsewhere:
    """A backend of another kind: each run has the statuses of its attempts, or cannot be started."""

    def __init__(self, places, folder, attempts):
        self.places, self.folder, self.attempts = places, folder, attempts
        self.started = []

    def start(self, run, place):
        code = self.attempts[run.name].pop(0)
        if isinstance(code, OSError):
            raise code
        self.started.append((run.name, place))
        if code == 0:
            (self.folder / run.name).mkdir(exist_ok=True)
            (self.folder / run.name / "finished").touch()
        log = self.folder / f"{run.name}.log"
        log.write_text("what it said last\n")
        return Told(run, place, log, code)


@pytest.fixture
def ends(tmp_path, monkeypatch, capsys):
    """What a schedule gives for the attempts of its runs."""
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(schedule, "HELD_SECONDS", 0.001)
    monkeypatch.setattr(schedule, "LOCK_SECONDS", 0.01)

    def ends(attempts, places=("here", "there"), hung_after=60.0, stop_after=60.0):
        runs = [Run(name, 0) for name in attempts]
        plan = Plan(runs, tmp_path, tmp_path / "main.py", tmp_path / "config.yaml", None)
        backend = Elsewhere(places, tmp_path, attempts)
        of = Schedule(plan, backend, hung_after, stop_after).run()
        names = {run.name: reason for run, reason in of.failed.items()}
        return backend.started, names, [run.name for run in of.left], [run.name for run in of.elsewhere]

    return ends


def test_places_are_taken_in_turn_and_what_crashes_is_started_once_more(ends):
    started, failed, left, elsewhere = ends({"a": [0], "b": [1, 0], "c": [1, 1], "d": [2]}, places=["here"])
    assert [name for name, _ in started] == ["a", "b", "b", "c", "c", "d"] and {place for _, place in started} == {
        "here"
    }
    assert failed == {"c": (1, "status 1: what it said last"), "d": (2, "status 2: what it said last")}
    assert left == elsewhere == []


def test_what_cannot_be_started_has_failed_and_what_is_held_is_left_to_its_holder(ends):
    held = [BlockingIOError()] * 1000
    attempts = {"a": [OSError(28, "No space left on device")], "b": held, "c": [0]}
    started, failed, left, elsewhere = ends(attempts, stop_after=0.1)
    assert [name for name, _ in started] == ["c"]
    assert failed == {"a": (None, "not started: No space left on device")}
    assert (left, elsewhere) == ([], ["b"])


def test_a_time_limit_leaves_what_is_under_way_and_what_waits(ends):
    started, failed, left, elsewhere = ends({"a": [None], "b": [0]}, places=["here"], stop_after=0.02)
    assert started == [("a", "here")] and failed == {} and (left, elsewhere) == (["a", "b"], [])


def test_what_is_silent_is_ended_and_started_once_more(ends):
    started, failed, left, _ = ends({"a": [None, 0], "b": [None, None]}, hung_after=0.02)
    assert sorted(name for name, _ in started) == ["a", "a", "b", "b"]
    assert failed == {"b": (143, "hung and was ended: what it said last")} and left == []


def test_a_pause_of_the_launcher_and_its_runs_is_no_silence(tmp_path, monkeypatch):
    (tmp_path / "a.log").write_text("its first line\n")
    job, now = Told(Run("a", 0), "here", tmp_path / "a.log", None), itertools.count(time.monotonic())
    monkeypatch.setattr(time, "monotonic", lambda: next(now))  # a second from look to look
    assert not any(job.is_silent(60) for _ in range(60))
    now = itertools.count(next(now) + 10**5)
    assert not job.is_silent(70), "both were stopped, or their machine was"
    assert sum(job.is_silent(70) for _ in range(10)) == 4, "what hangs is found out all the same"
    job.log.write_text("another line\n")
    assert not job.is_silent(0)
