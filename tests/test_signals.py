"""Signals that ask a run to end: once is enough, and to insist ends it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import Stopped
from utils.signals import ECHO_SECONDS, Signals


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
