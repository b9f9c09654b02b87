"""A checkpoint whose tensors are replaced again and again stays small, and loses nothing by it."""

import errno

import pytest
import torch

from utils import checkpoint
from utils.checkpoint import Checkpoint, Record

KILOBYTES = 8


def record(task: int, only: bool = False) -> Record:
    tensors = {
        "own.mask": torch.full((16,), task),
        "shared.weight": torch.full((KILOBYTES * 128,), float(task) / 2).double(),
    }
    if only:
        tensors = {"shared.other": torch.full((128,), float(task))}
    return Record("task", {"task": task}, tensors, [name for name in tensors if name.startswith("shared.")])


def state(records) -> dict:
    """What someone who loads record after record ends with."""
    return {
        (name if name in one.latest else f"{one.values['task']} {name}"): tensor
        for one in records
        for name, tensor in one.tensors.items()
    }


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_file_is_written_again_when_a_third_of_it_is_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "DEAD_BYTES", 4 * KILOBYTES * 1024)
    small, large = Checkpoint(tmp_path / "small.pt"), Checkpoint(tmp_path / "large.pt")
    monkeypatch.setattr(large, "_compact", lambda: None)
    sizes = []
    for task in range(40):
        for journal in (small, large):
            journal.append(record(task, only=task == 7))
        sizes.append(small.path.stat().st_size)
    assert max(sizes) < 12 * KILOBYTES * 1024 < large.path.stat().st_size
    assert same(state(small.read()[0]), state(large.read()[0]))
    assert [one.values for one in small.read()[0]] == [one.values for one in large.read()[0]]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_a_file_that_was_read_goes_on_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "DEAD_BYTES", 4 * KILOBYTES * 1024)
    path = tmp_path / "checkpoint.pt"
    for task in range(40):  # a crash after every task
        journal = Checkpoint(path)
        if path.exists():
            journal.read()
        journal.append(record(task))
    assert path.stat().st_size < 12 * KILOBYTES * 1024
    records, damaged = Checkpoint(path).read()
    assert damaged == 0 and len(records) == 40 and state(records)["shared.weight"][0] == 39 / 2


def test_what_is_read_holds_each_latest_tensor_once(tmp_path):
    journal = Checkpoint(tmp_path / "checkpoint.pt")
    for task in range(4):
        journal.append(record(task, only=task == 2))
    records = Checkpoint(journal.path).read()[0]
    own, other, both = {"own.mask"}, {"shared.other"}, {"own.mask", "shared.weight"}
    assert [one.tensors.keys() for one in records] == [own, own, other, both]
    assert [set(one.latest) for one in records] == [set(), set(), other, both - own]
    assert all(one.to_bytes() for one in records)


def test_where_there_is_no_room_to_write_the_file_again_it_grows_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "DEAD_BYTES", 4 * KILOBYTES * 1024)
    path, replace, tried = tmp_path / "checkpoint.pt", checkpoint.replace_with, []

    def full(*_):
        tried.append(path.stat().st_size)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "replace_with", full)
    journal = Checkpoint(path)
    for task in range(40):
        journal.append(record(task))
    records, damaged = Checkpoint(path).read()
    assert damaged == 0 and [one.values["task"] for one in records] == [*range(40)]
    assert len(tried) == 3  # with 5, 11 and 23 dead records
    monkeypatch.setattr(checkpoint, "replace_with", replace)
    for task in range(40, 60):
        journal.append(record(task))
    assert path.stat().st_size < 20 * KILOBYTES * 1024
    assert len(Checkpoint(path).read()[0]) == 60
    for task in range(60, 80):  # and from then on as ever
        journal.append(record(task))
    assert path.stat().st_size < 12 * KILOBYTES * 1024 + 80 * 512


def test_a_crash_while_the_file_is_written_again_leaves_it_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "DEAD_BYTES", 0)
    journal = Checkpoint(tmp_path / "checkpoint.pt")
    journal.append(record(0))
    journal.append(record(1))

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", crash)
    for task in (2, 3):
        try:
            journal.append(record(task))
        except KeyboardInterrupt:
            pass
    monkeypatch.undo()
    records, damaged = Checkpoint(journal.path).read()
    assert damaged == 0 and [one.values["task"] for one in records] == [0, 1, 2, 3]
    Checkpoint(journal.path).append(record(4))
    assert len(Checkpoint(journal.path).read()[0]) == 5


def test_a_record_whose_latest_tensors_are_missing_is_as_good_as_damaged(tmp_path):
    journal = Checkpoint(tmp_path / "checkpoint.pt")
    journal.append(record(0))
    whole = journal.path.stat().st_size
    with open(journal.path, "ab") as file:
        file.write(Record("task", {"task": 1}, {}, ["nothing"]).to_bytes())
    records, damaged = Checkpoint(journal.path).read()
    assert len(records) == 1 and damaged == journal.path.stat().st_size - whole


def test_a_file_that_does_not_read_back_does_not_take_the_place_of_the_old_one(tmp_path, monkeypatch):
    journal = Checkpoint(tmp_path / "checkpoint.pt")
    for task in range(3):
        journal.append(record(task))
    before = journal.path.read_bytes()
    monkeypatch.setattr(checkpoint.os, "fsync", lambda descriptor: checkpoint.os.ftruncate(descriptor, 100))
    with pytest.raises(OSError, match="does not read back"):
        journal._compact()
    assert journal.path.read_bytes() == before and list(tmp_path.iterdir()) == [journal.path]
