"""How far runs are, by their files: the status of one, and the bar over all."""

import io
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from experiments import progress, status
from experiments.plan import Plan, Run
from experiments.status import Status
from utils.checkpoint import Checkpoint, Record


class Terminal(io.StringIO):
    def isatty(self):
        return True


def checkpoint(folder: Path, tasks: int, **settings: object) -> None:
    """A run's folder with so many learned tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    journal = Checkpoint(folder / "checkpoint.pt")
    journal.append(Record("run", {"settings": {"num_tasks": 4, "task_eval": None} | settings}))
    for task in range(tasks):
        journal.append(Record("task", {"task": task, "accuracy": 0.5 + task / 10}, {"own.mask": torch.zeros(9)}))


def test_the_status_of_a_run_is_what_its_files_say(tmp_path):
    assert status.read(tmp_path / "nothing") == Status("new")
    (tmp_path / "a").mkdir()
    assert status.read(tmp_path / "a") == Status("begun")
    checkpoint(tmp_path / "b", 0)
    assert status.read(tmp_path / "b") == Status("begun", 0, 4)
    checkpoint(tmp_path / "c", 3)
    assert status.read(tmp_path / "c") == Status("begun", 3, 4, 0.7)
    whole = (tmp_path / "c" / "checkpoint.pt").read_bytes()
    (tmp_path / "c" / "checkpoint.pt").write_bytes(whole[:-10])  # another process is writing there
    assert status.read(tmp_path / "c") == Status("begun", 2, 4, 0.6)
    checkpoint(tmp_path / "d", 1, task_eval=0)
    (tmp_path / "d" / "finished").touch()
    assert status.read(tmp_path / "d") == Status("finished", 1, 1, 0.5)
    checkpoint(tmp_path / "e", 1, stream_tasks=9)
    assert status.read(tmp_path / "e") == Status("begun", 1, 9, 0.5)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "checkpoint.pt").write_bytes(b"SupSup checkpoint 1\n" + b"\xff" * 99)
    assert status.read(tmp_path / "f") == Status("begun")


SETTINGS = {"num_tasks": 4}


@pytest.mark.parametrize(
    "records, said",
    [
        ([{"kind": "task", "task": 0, "accuracy": 0.5}], Status("begun")),
        ([{"task": 0}], Status("begun")),
        ([{"kind": "run", "settings": None}], Status("begun")),
        ([{"kind": "run", "settings": {"num_tasks": "many"}}], Status("begun")),
        ([{"kind": "run", "settings": {"tasks": "0-"}}], Status("begun")),
        ([{"kind": "run", "settings": SETTINGS}, {"kind": "task", "tbsk": 0}], Status("begun", 0, 4)),
        ([{"kind": "run", "settings": SETTINGS}, {"kind": "task", "task": [0], "accuracy": 1}], Status("begun", 0, 4)),
        ([{"kind": "run", "settings": SETTINGS}, {"kind": "task", "task": 0, "accuracy": {}}], Status("begun", 0, 4)),
        ([{"kind": "run", "settings": SETTINGS}, {"kind": "more tasks"}], Status("begun", 0, 4)),
        ([{"kind": "run", "settings": SETTINGS}, {"kind": "left out", "task": None}], Status("begun", 0, 4)),
        ([{"kind": "run", "settings": SETTINGS}, {"kind": "run", "settings": {}}], Status("begun", 0, 4)),
    ],
)
def test_a_status_ends_before_a_record_that_no_run_can_have_written(records, said, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "tqdm", partial(tqdm, file=Terminal()))
    run = tmp_path / "a"
    run.mkdir()
    (run / "checkpoint.pt").touch()
    whole = {"kind": "task", "task": 3, "accuracy": 0.9}
    monkeypatch.setattr(status.journal, "values", lambda *_, **__: iter([*records, whole]))
    assert status.read(run) == said and status.line(run).cells
    plan = Plan([Run("a", 0)], tmp_path, tmp_path / "main.py", tmp_path / "config.yaml", None)
    assert progress.Progress(plan).bar.total == said.tasks


def test_the_bar_counts_tasks_that_are_learned_and_begins_where_runs_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "tqdm", partial(tqdm, file=Terminal()))
    plan = Plan([Run(name, 0) for name in "abc"], tmp_path, tmp_path / "main.py", tmp_path / "config.yaml", None)
    assert progress.Progress(plan).bar.total is None, "nobody can tell yet"
    checkpoint(tmp_path / "a", 4)
    (tmp_path / "a" / "finished").touch()
    checkpoint(tmp_path / "b", 1)
    shown = progress.Progress(plan)
    assert (shown.bar.n, shown.bar.initial, shown.bar.total) == (5, 5, 12)
    checkpoint(tmp_path / "c", 3)
    shown.look()
    assert shown.bar.n == 5, "not looked at without a pause"
    shown.look(now=True)
    assert (shown.bar.n, shown.bar.initial) == (8, 5) and "1 of 3 runs finished" in str(shown.bar)
    shown.bar.start_t = time.time() - 30  # three tasks took half a minute, so four more take forty seconds
    assert "<00:40" in str(shown.bar)
