"""Paths that a user names, and where data lie when none is named."""

import os
import stat
from argparse import ArgumentTypeError
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def user_path(text: str) -> str:
    """A path of a command line or of a config, with the folder that ``~`` or ``~user`` stands for: a type for argparse.

    Raises:
        ArgumentTypeError: it is empty, cannot be printed, or its ``~`` stands for no folder.
    """
    if not text or not text.isprintable():
        raise ArgumentTypeError(f"{text!r} is not a path that can be written down")
    home = text.partition("/")[0] if text.startswith("~") else None
    if home and (os.path.expanduser(home) == home or (home == "~" and os.environ.get("HOME") == "")):
        raise ArgumentTypeError(f"{text!r}: {home} has no home folder here; ./{home} is what is called so")
    return os.path.expanduser(text)


def read_small(path: str | Path, limit: int) -> bytes:
    """The content of a file, at once: of one that is no file, such as a pipe or a device, nothing is awaited.

    Raises:
        OSError: it is no file, it is larger than ``limit`` bytes, or it cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "is no file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(0, f"is larger than the {limit:,} bytes that such a file may have")
    return content


def default_data() -> tuple[str, str]:
    """The parent folder of the data sets when no flag names one, and who says so.

    Raises:
        ArgumentTypeError: the environment names what is no path.
    """
    if folder := os.environ.get("SUPSUP_DATA"):
        return user_path(folder), "SUPSUP_DATA"
    return str(PROJECT / "data-sets"), "the default"
