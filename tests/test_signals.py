"""Signals that ask a run to end: once is enough, and to insist ends it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import Stopped
from utils.signals import ECHO_SECONDS, Signals

ASKED_TO_END = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"]


@pytest.mark.parametrize("name", ASKED_TO_END)
def test_whatever_asks_a_run_to_end_waits_for_a_place_to_stop_and_gives_its_status(name):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with Signals() as signals, signals.waiting():
        signal.raise_signal(number)
        with pytest.raises(Stopped, match=f"by {name}") as caught:
            signals.check()
    assert caught.value.status == 128 + number and signal.getsignal(number) == before


def test_a_signal_that_comes_twice_at_once_is_one():
    with Signals() as signals:
        with signals.waiting():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # as when the cluster and the launcher both send it
            with pytest.raises(Stopped, match="SIGTERM"):
                signals.check()
        signal.raise_signal(signal.SIGTERM)  # while the run writes its checkpoint


PROJECT = Path(__file__).resolve().parents[1]
WAITING = """
import sys, time
from utils.signals import Signals
with Signals() as signals, signals.waiting():
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_signal_after_a_while_ends_a_run_that_does_not_come_to_an_end():
    with subprocess.Popen([sys.executable, "-c", WAITING], cwd=PROJECT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        time.sleep(ECHO_SECONDS + 0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_run_still_loads_ends_it_with_one_line(name, tmp_path):
    command = [sys.executable, "-X", "importtime", str(PROJECT / "main.py")]  # tells of each module that is loaded
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.rpartition("|")[2].strip().startswith("torch."):
                break
        process.send_signal(signal.Signals[name])
        said = [line.rstrip() for line in process.stderr if not line.startswith("import time:")]
    assert said == [f"main.py: stopped: by {name}"] and process.returncode == 128 + signal.Signals[name]
