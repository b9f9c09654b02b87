"""Runs that are cut short: by signals, by a full disk or no memory, by a loss that is no number."""

import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny import RUNS, TINY, Tiny, TinyBN, call_main, outcome

import main
import trainers.run
from models import MODELS
from tests.conftest import processes_below
from trainers.default import DefaultTrainer
from utils import checkpoint
from utils.checkpoint import Checkpoint, Record


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    monkeypatch.setitem(MODELS, "TinyBN", TinyBN)


def assert_same(a, b):
    assert a[0].keys() == b[0].keys() and all(torch.equal(value, b[0][name]) for name, value in a[0].items())
    assert a[1:] == b[1:]


def left(folder):
    return {path.name for path in (folder / "run").iterdir() if not path.name.startswith("events.out")}


@pytest.fixture
def at_batch(monkeypatch):
    """``at_batch(n, action)`` calls ``action`` while the n-th batch from now on is trained, once.

    Returns:
        A function that tells how many batches have been trained since.
    """
    step, waiting = DefaultTrainer.step, {}

    def counted(trainer, x, y):
        waiting["left"] -= 1
        if waiting["left"] == 0:
            waiting["action"]()
        return step(trainer, x, y)

    def register(number, action):
        waiting.update(left=number, action=action)
        monkeypatch.setattr(DefaultTrainer, "step", counted)
        return lambda: number - waiting["left"]

    return register


# Signals


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_signals_cut_short_again_and_again_ends_with_the_same_bits(name, tmp_path, at_batch, capsys):
    words, rng, cuts = RUNS[name].split(), random.Random(name), 0
    assert call_main(tmp_path / "whole", *words) == 0
    while True:
        at_batch(rng.randrange(1, 25), lambda: signal.raise_signal(signal.SIGTERM))
        status = call_main(tmp_path / "cut", *words, "--resume")
        if status == 0:
            break
        cuts += 1
        assert status == 143 and (tmp_path / "cut" / "run" / "training.pt").exists()
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert cuts
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_after_a_checkpoint_inside_a_task_goes_on_from_it(name, tmp_path, at_batch):
    class Killed(BaseException):
        """As a kill: nothing is tidied up."""

    def kill():
        raise Killed

    words = [*RUNS[name].split(), "--checkpoint-minutes", "0"]
    trained = at_batch(10**6, kill)
    assert call_main(tmp_path / "whole", *words) == 0
    batches, killed_at = trained(), 14 if name == "nns, one mask" else 29
    at_batch(killed_at, kill)
    with pytest.raises(Killed):
        call_main(tmp_path / "cut", *words)
    trained = at_batch(10**6, kill)
    assert call_main(tmp_path / "cut", *words, "--resume") == 0
    assert killed_at - 1 + trained() == batches, "no batch is trained again but the one that was not finished"
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_two_processes_go_on_together_in_the_middle_of_a_task(tmp_path, at_batch):
    # The other process is a fresh one, which has never heard of the small networks above.
    words = [*RUNS["trained weights"].split(), *"--model LeNet --num-tasks 2 --iter-lim 5 --multigpu cpu,cpu".split()]
    assert call_main(tmp_path / "whole", *words) == 0
    at_batch(7, lambda: signal.raise_signal(signal.SIGTERM))
    assert call_main(tmp_path / "cut", *words) == 143
    at_batch(1000, lambda: None)
    assert call_main(tmp_path / "cut", *words, "--resume") == 0
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))


def test_one_line_says_what_is_saved_and_how_to_go_on_and_handlers_are_put_back(tmp_path, at_batch, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    at_batch(25, lambda: signal.raise_signal(signal.SIGINT))
    assert call_main(tmp_path, "--adaptor", "gt") == 130
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    assert capsys.readouterr().err == (
        "main.py: stopped: by SIGINT; 1 learned tasks and 5 batches of task 1 are saved; "
        f"to go on, call again with --resume {checkpoint}\n"
    )
    assert "stopped: by SIGINT" in (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert main.main([*TINY.split(), "--adaptor", "gt", "--resume", str(checkpoint)]) == 0


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_lost_connection_and_a_limit_that_is_near_keep_the_middle_of_the_task(name, tmp_path, at_batch, capsys):
    at_batch(25, lambda: signal.raise_signal(signal.Signals[name]))
    assert call_main(tmp_path, "--adaptor", "gt") == 128 + signal.Signals[name]
    assert f"stopped: by {name}; 1 learned tasks and 5 batches of task 1 are saved" in capsys.readouterr().err
    assert (tmp_path / "run" / "training.pt").exists()


def test_a_signal_in_a_test_or_an_evaluation_is_not_kept_waiting(tmp_path, monkeypatch):
    assert call_main(tmp_path / "whole", "--adaptor", "gt") == 0
    test, evaluate = DefaultTrainer.test, trainers.run.evaluate

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on after the signal")

    monkeypatch.setattr(DefaultTrainer, "test", interrupted)
    assert call_main(tmp_path / "cut", "--adaptor", "gt") == 143
    monkeypatch.setattr(DefaultTrainer, "test", test)
    monkeypatch.setattr(trainers.run, "evaluate", interrupted)
    assert call_main(tmp_path / "cut", "--adaptor", "gt", "--resume") == 143
    monkeypatch.setattr(trainers.run, "evaluate", evaluate)
    assert call_main(tmp_path / "cut", "--adaptor", "gt", "--resume") == 0
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))


def runs(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("devices, to_all", [("cpu", False), ("cpu,cpu", False), ("cpu,cpu", True)])
def test_the_program_ends_with_the_status_of_the_signal_and_leaves_no_process(devices, to_all, tmp_path):
    words = f"--num-tasks 1 --epochs 100000 --threads 1 --checkpoint-minutes 0 --multigpu {devices} --name run".split()
    process = subprocess.Popen(
        [sys.executable, main.__file__, *words, "--log-dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "training.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    below = processes_below(process.pid)
    assert bool(below) == (devices != "cpu")
    # A cluster signals one process; a terminal all of them.
    os.killpg(process.pid, signal.SIGTERM) if to_all else process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert error.startswith("main.py: stopped: by SIGTERM; 0 learned tasks and ") and len(error.splitlines()) == 1
    deadline = time.monotonic() + 30
    while any(map(runs, below)) and time.monotonic() < deadline:
        time.sleep(0.05)  # Python's own helper ends once it sees that its parent has
    assert not any(map(runs, below))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_when_another_process_of_the_run_ends_the_run_stops_with_one_line_of_its_own(tmp_path):
    words = "--num-tasks 1 --epochs 100000 --threads 1 --checkpoint-minutes 0 --multigpu cpu,cpu --name run".split()
    process = subprocess.Popen(
        [sys.executable, main.__file__, *words, "--log-dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "training.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in processes_below(process.pid):
        os.kill(pid, signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in error
    assert "main.py: stopped: the process on cpu ended with status -9; 0 learned tasks and " in error


# What is kept inside a task


def test_nothing_is_written_inside_a_short_task(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("trainers.unfinished.write_records", lambda path, record: written.append(path))
    assert call_main(tmp_path, "--adaptor", "gt") == 0
    assert not written


@pytest.mark.parametrize("damage", ["one byte", "cut", "empty", "pickle", "other settings"])
def test_a_damaged_state_inside_a_task_is_left_alone_and_the_task_starts_anew(damage, tmp_path, at_batch):
    assert call_main(tmp_path / "whole", "--adaptor", "gt") == 0
    at_batch(30, lambda: signal.raise_signal(signal.SIGTERM))
    assert call_main(tmp_path / "cut", "--adaptor", "gt") == 143
    path = tmp_path / "cut" / "run" / "training.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    torch.save({"scores": torch.ones(3)}, tmp_path / "pickle")
    other = Record("training", {"settings": {"seed": 7}, "learned": [0], "tasks": [1], "accuracies": []}).to_bytes()
    path.write_bytes(
        {
            "one byte": data,
            "cut": data[:-100],
            "empty": b"SupSup",
            "pickle": (tmp_path / "pickle").read_bytes(),
            "other settings": checkpoint.MAGIC + other,
        }[damage]
    )
    assert call_main(tmp_path / "cut", "--adaptor", "gt", "--resume") == 0
    warned = "training.pt is damaged; its task starts anew" in (tmp_path / "cut" / "run" / "log.txt").read_text()
    assert warned == (damage != "other settings")
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))


# Damage in the middle of the checkpoint


def damage(path, number, place):
    """Turn a bit of a record, so many bytes from its beginning or, below 0, from its end; what the file is then."""
    ends = [len(checkpoint.MAGIC)]
    for record in Checkpoint(path).read()[0]:
        ends.append(ends[-1] + len(record.to_bytes()))
    data = bytearray(path.read_bytes())
    data[ends[number] + place if place >= 0 else ends[number + 1] + place] ^= 64
    path.write_bytes(data)
    return data


@pytest.fixture
def trained(monkeypatch):
    """The tasks of which batches are trained, one a batch."""
    tasks, step = [], DefaultTrainer.step
    monkeypatch.setattr(DefaultTrainer, "step", lambda t, x, y: tasks.append(t.tasks[0]) or step(t, x, y))
    return tasks


@pytest.mark.parametrize("number", [0, 1], ids=["the settings", "the first task"])
@pytest.mark.parametrize("place", [0, 4, 60, -10])
@pytest.mark.parametrize("name", ["default", "hopsupsup", "nns"])
def test_only_what_was_damaged_is_learned_again_where_tasks_are_independent(name, place, number, tmp_path, trained):
    words = RUNS[name].split()
    assert call_main(tmp_path, *words) == 0
    whole = outcome(tmp_path)
    data = damage(tmp_path / "run" / "checkpoint.pt", number, place)
    trained.clear()
    assert call_main(tmp_path, *words, "--resume") == 0
    assert set(trained) == ({0, 1, 2} if name == "nns" else set(range(number)))
    assert_same(whole, outcome(tmp_path))
    assert (tmp_path / "run" / "checkpoint.pt.damaged").read_bytes() == data
    assert "bytes of" in (tmp_path / "run" / "log.txt").read_text()


def test_behind_a_damaged_beginning_nothing_of_another_run_is_taken_or_thrown_away(tmp_path, trained, capsys):
    words, path = ["--adaptor", "gt"], tmp_path / "run" / "checkpoint.pt"
    assert call_main(tmp_path, *words, "--num-tasks", "2") == 0
    assert call_main(tmp_path, *words, "--resume") == 0  # it has three tasks now
    whole, data = outcome(tmp_path), damage(path, 0, 60)
    trained.clear()
    for other in (["--seed", "1"], ["--lr", "0.01"], []):
        capsys.readouterr()
        assert call_main(tmp_path, *words, *other, "--resume") == 2
        said = capsys.readouterr().err
        assert f"{path}: its beginning is damaged" in said and "--num-tasks" in said and len(said.splitlines()) == 1
        assert path.read_bytes() == data
    assert call_main(tmp_path, *words, "--num-tasks", "2", "--resume") == 0
    assert call_main(tmp_path, *words, "--resume") == 0
    assert not trained
    assert_same(whole, outcome(tmp_path))


# No room, no memory


def test_a_full_disk_stops_the_run_with_one_line_and_with_room_it_goes_on(tmp_path, monkeypatch, capsys):
    assert call_main(tmp_path / "whole", "--adaptor", "gt") == 0
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert call_main(tmp_path / "full", "--adaptor", "gt") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "--resume" in error and len(error.splitlines()) == 1
    monkeypatch.setattr(os, "fsync", sync)
    assert call_main(tmp_path / "full", "--adaptor", "gt", "--resume") == 0
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "full"))


def test_a_disk_of_2_megabytes_is_filled_and_made_larger(tmp_path, call):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk of 2 MB, and only where it may")
    words = f"--num-tasks 12 --epochs 1 --iter-lim 2 --model FC1024 --adaptor gt --threads 1 --log-dir {disk}".split()
    try:
        result = call("main.py", *words, "--name", "run")
        assert result.returncode == 1
        assert "No space left on device" in result.stderr and len(result.stderr.splitlines()) == 1
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        result = call("main.py", *words, "--name", "run", "--resume")
        assert result.returncode == 0 and result.stderr == ""
        assert "warning" not in result.stdout
        records, damaged = Checkpoint(disk / "run" / "checkpoint.pt").read()
        assert [record.kind for record in records].count("task") == 12 and damaged == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_log_folder_that_vanishes_stops_the_run_and_a_new_file_does_not_pass_for_the_old(tmp_path, at_batch, capsys):
    at_batch(30, lambda: (tmp_path / "run" / "checkpoint.pt").unlink())
    assert call_main(tmp_path, "--adaptor", "gt") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'run' / 'checkpoint.pt'}: was changed or removed by another process" in error
    assert "nothing is saved" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of it"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "gpu", "processor"],
)
def test_no_memory_stops_the_run_with_one_line(error, tmp_path, at_batch, capsys):
    def fail():
        raise error

    at_batch(30, fail)
    assert call_main(tmp_path, "--adaptor", "gt") == 1
    said = capsys.readouterr().err
    assert "stopped: out of memory" in said and "1 learned tasks are saved" in said and len(said.splitlines()) == 1
    assert call_main(tmp_path, "--adaptor", "gt", "--resume") == 0


def test_another_error_is_a_bug_and_is_shown_as_one(tmp_path, at_batch):
    def fail():
        raise RuntimeError("size mismatch")

    at_batch(3, fail)
    with pytest.raises(RuntimeError, match="size mismatch"):
        call_main(tmp_path, "--adaptor", "gt")


def test_a_checkpoint_that_cannot_be_written_is_refused_before_anything_is_learned(tmp_path, monkeypatch, capsys):
    assert call_main(tmp_path, "--adaptor", "gt") == 0
    path = tmp_path / "run" / "checkpoint.pt"
    before = path.read_bytes()
    path.chmod(0o444)
    if os.geteuid() == 0:  # who may write everything
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    capsys.readouterr()
    assert call_main(tmp_path, "--adaptor", "gt", "--resume", path) == 2
    assert f"--resume {path}: cannot be written" in capsys.readouterr().err and path.read_bytes() == before


# A loss that is no number, or does not fall


@pytest.fixture
def spoil(monkeypatch):
    """``spoil(task, batch)`` makes the images of one batch of one task not a number."""
    step = DefaultTrainer.step

    def register(task, batch):
        def spoiled(trainer, x, y):
            for place, other in enumerate(trainer.tasks):
                if (other, trainer.batches_done + 1) == (task, batch):
                    (x if len(trainer.tasks) == 1 else x[place]).fill_(torch.nan)
            return step(trainer, x, y)

        monkeypatch.setattr(DefaultTrainer, "step", spoiled)

    return register


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_loss_that_is_no_number_stops_the_run_and_names_task_and_batch(at_once, tmp_path, spoil, capsys):
    spoil(2, 7)
    words = ["--adaptor", "gt", "--tasks-in-parallel", at_once, "--checkpoint-minutes", "0", "--num-tasks", "4"]
    assert call_main(tmp_path, *words) == 1
    error = capsys.readouterr().err
    assert "task 2: the loss of batch 7 is not a finite number; likely --lr 0.001 is too large" in error
    assert f"{1 + at_once} learned tasks" in error and len(error.splitlines()) == 1  # the other of its group too
    # It stops again, also from what was saved inside the task, until it is told to go on.
    assert call_main(tmp_path, *words, "--resume") == 1
    assert call_main(tmp_path, *words, "--resume", "--on-nan", "skip") == 0


@pytest.mark.parametrize("name", ["default", "at once", "reinit", "per-task batch norm", "trained weights"])
def test_a_task_whose_loss_is_no_number_is_left_out_if_wished(name, tmp_path, spoil, capsys):
    spoil(1, 18)
    assert call_main(tmp_path, *RUNS[name].split(), "--on-nan", "skip") == 0
    said = capsys.readouterr().out
    assert "warning: task 1: the loss of batch 18 is not a finite number" in said and "it is left out" in said
    records = Checkpoint(tmp_path / "run" / "checkpoint.pt").read()[0]
    assert [record.values["task"] for record in records if record.kind == "task"] == [0, 2]
    assert [len(record.values["scores"]) for record in records if record.kind == "evaluation"] == [2]
    assert all(tensor.isfinite().all() for record in records for tensor in record.tensors.values())


def test_where_no_task_can_be_learned_the_run_says_so(tmp_path, spoil, capsys):
    spoil(0, 3)
    assert call_main(tmp_path, "--adaptor", "gt", "--num-tasks", "1", "--on-nan", "skip") == 1
    assert "stopped: no task could be learned" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, fails",
    [
        ("--lr 1e-12", True),  # no score ever changes its sign
        ("--conv-type MultitaskMaskConv --sparsity 1e-5", True),  # no way through the network is kept
        ("--lr 1e-3", False),
        ("--lr 1e-12 --iter-lim 199", False),  # too early to say
    ],
)
def test_a_loss_that_does_not_fall_stops_the_run(words, fails, tmp_path, capsys):
    words = f"--adaptor gt --num-tasks 1 --epochs 20 --iter-lim 250 {words}".split()
    assert call_main(tmp_path, *words) == (1 if fails else 0)
    assert ("task 0: after 250 batches its loss is" in capsys.readouterr().err) == fails


@pytest.mark.parametrize("words", ["--trainer nns", "--multigpu cpu,cpu"])
def test_a_run_that_cannot_leave_a_task_out_says_so_first(words, tmp_path, capsys):
    assert call_main(tmp_path / "log", *words.split(), "--on-nan", "skip") == 2
    assert "--on-nan skip" in capsys.readouterr().err and not (tmp_path / "log").exists()
