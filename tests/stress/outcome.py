"""What a run leaves behind, in a form to compare."""

import csv

import torch

from utils.checkpoint import Checkpoint


def undated(path):
    with open(path, newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("Date Finished", "Save Directory")}
            for row in csv.DictReader(file)
        ]


def left_by(folder):
    """What a run leaves: its tables, the accuracies and the name of every file; and the tensors of its tasks."""
    run = folder / "log" / "run"
    records, damaged = Checkpoint(run / "checkpoint.pt").read()
    assert damaged == 0
    tasks = {record.values["task"]: record for record in records if record.kind == "task"}
    assert len(tasks) == sum(record.kind == "task" for record in records), "a task is learned once"
    return {
        "rows": undated(folder / "log" / "results.csv"),
        "tables": {path.name: path.read_text() for path in run.glob("*.csv")},
        "accuracies": {task: record.values["accuracy"] for task, record in tasks.items()},
        "files": {path.name for path in folder.rglob("*") if not path.name.startswith("events.out")},
    }, {(task, name): tensor for task, record in tasks.items() for name, tensor in record.tensors.items()}


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
