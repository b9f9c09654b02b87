"""What the tests share: small data, the real data if it is there, and the program as a user calls it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]

# Runs main.py and kills it in the middle of training: at a step of its optimizers, not after some time.
KILLED = """
import os, signal, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
import main
steps = iter(range(1, int(sys.argv[1])))
register_optimizer_step_post_hook(lambda *_: next(steps, None) or os.kill(os.getpid(), signal.SIGKILL))
main.main(sys.argv[2:])
"""


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the stress tests at full length, which takes many minutes")


def pytest_configure():
    # Under nohup and in a script's background they are ignored, also by processes that tests start, and the project
    # leaves it so.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def full(request) -> bool:
    """Whether the stress tests run at full length; in short they show that they work."""
    return request.config.getoption("--full")


@pytest.fixture(autouse=True)
def one_thread():
    """The same bits in every test, and no two tests that fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets, which ``SUPSUP_DATA`` names."""
    folder = os.environ.get("SUPSUP_DATA")
    if folder:
        return Path(folder)
    if os.environ.get("CI") == "true" and (PROJECT.parent / "shared" / "data" / "prepare.py").exists():
        pytest.fail("CI has the real data beside the checkout, but SUPSUP_DATA names no folder with it")
    pytest.skip("SUPSUP_DATA names no folder with the real data sets")


@pytest.fixture
def call(tmp_path):
    """Call a script of the project as a process, in an empty folder: ``call("main.py", *words) -> result``."""

    def run(script: str, *words: object, **more) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(PROJECT / script), *map(str, words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            **more,
        )

    return run


def kill_at_step(step: int, words: list[str]) -> None:
    """Run ``main.py`` as a process that is killed when its optimizers have made so many steps."""
    command = [sys.executable, "-c", KILLED, str(step), *words]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def processes_below(pid: int) -> list[int]:
    """The children of a process and theirs (Linux)."""
    below = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdecimal() and open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[1] == str(pid):
                below += [int(entry), *processes_below(int(entry))]
        except OSError:  # ended meanwhile
            pass
    return below
