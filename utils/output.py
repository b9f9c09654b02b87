"""What a program says, whoever listens: nobody from the start (``>&-``), or nobody any more (``| head``)."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class _Lasting:
    """An output that takes whatever it is given: once nobody reads it, it goes nowhere."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._end()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._end()

    def _end(self) -> None:
        # What the stream still holds would fail again when Python ends, so that too goes nowhere.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within this an output that is closed, or whose reader has gone, stops nothing: the program goes on unheard.

    Characters that the output's encoding lacks are written as escapes.
    """
    _take_standard_descriptors()
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (_Lasting(stream or open(os.devnull, "w", encoding="utf-8")) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def is_output(path: str) -> bool:
    """Whether what a path names is what is printed to, as ``/dev/stdout``: where that is a file, it has more in it."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(1))
    return False


def one_line(text: object) -> str:
    """What a message says, in one line, whatever stands in a path or flag that it names."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def _take_standard_descriptors() -> None:
    """Let no file of the run get the number of an output that was closed: what is printed there would end up in it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
