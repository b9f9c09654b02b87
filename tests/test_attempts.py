"""What the log of a run tells of the attempts at it, and who is at a run."""

import errno
import fcntl
import os
import platform
import subprocess
import sys
import time

import pytest

from experiments import attempts
from experiments.attempts import Attempt, is_under_way, last_attempt, last_line
from experiments.backends import local

HERE, AWAY = platform.node(), "another"
BEGAN = "$ python main.py --name 'a  # b'  # process 7 on "


@pytest.mark.parametrize(
    "text, attempt, line",
    [
        ("", None, ""),
        ("not one of ours\n", None, "not one of ours"),
        (f"{BEGAN}x\nsaid\n", Attempt("process 7 on x", "x"), "said"),
        (f"{BEGAN}x\nsaid\n$ process 7 on x: ended with status -9\n", Attempt("process 7 on x", "x", -9), "said"),
        (f"{BEGAN}x\n{BEGAN}y\n$ process 7 on x: ended with status 1\n", Attempt("process 7 on y", "y"), ""),
        (f"{BEGAN}x\n$ process 7 on x: ended with status 1\n{BEGAN}x\n\n", Attempt("process 7 on x", "x"), ""),
    ],
)
def test_the_last_attempt_is_the_one_that_counts(tmp_path, text, attempt, line):
    log = tmp_path / "run.log"
    log.write_text(text)
    assert (last_attempt(log), last_line(log)) == (attempt, line)
    assert last_attempt(tmp_path / "none.log") is None and last_line(tmp_path / "none.log") == ""


@pytest.mark.parametrize(
    "machine, ended, age, alive",
    [(AWAY, "", 0, True), (AWAY, "", 1000, False), (AWAY, f"$ process 7 on {AWAY}: ended with status 1\n", 0, False)]
    + [(HERE, "", 0, False)],  # whose lock would be seen
)
def test_a_run_of_another_machine_whose_lock_is_not_seen_lives_while_its_log_changes(
    tmp_path, machine, ended, age, alive
):
    log = tmp_path / "run.log"
    log.write_text(f"{BEGAN}{machine}\n{ended}")
    os.utime(log, (time.time() - age,) * 2)
    assert is_under_way(log) == alive


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_a_run_of_this_machine_lives_while_its_log_changes_and_its_starter_is_there(
    number, tmp_path, monkeypatch
):
    def unknown(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unknown)
    log = tmp_path / "run.log"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as starter:
        log.write_text(f"$ python main.py  # process {starter.pid} on {HERE}\n")
        assert is_under_way(log)
        os.utime(log, (time.time() - 1000,) * 2)
        assert not is_under_way(log), "another process may have got the number"
        os.utime(log)
        starter.communicate(b"\n")
        assert not is_under_way(log)
    log.write_text(f"$ python main.py  # process {os.getpid()} on {HERE}\n")
    assert not is_under_way(log), "this process would know"


@pytest.mark.parametrize("path", ["a=0.5.log", "a=0.5/.lock"])
def test_a_lock_tells_that_a_run_is_under_way(tmp_path, path):
    (tmp_path / "a=0.5").mkdir()
    log = tmp_path / "a=0.5.log"
    assert not is_under_way(log)
    with local.open_log(tmp_path / path):
        assert is_under_way(log)
    assert not is_under_way(log) and attempts.folder_of(log) == tmp_path / "a=0.5"
