"""What the tests share: small data, the real data if it is there, and the program as a user calls it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]


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
