"""The errors that end a run with one line."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from utils.output import one_line


class UserError(Exception):
    """Bad input: a flag, a file or a machine that is not what it should be.

    The message is one line that names the setting or file, its value and what would be right. Settings stand in
    backquotes, as `task_eval` or `fast=False`. ``main.py`` makes flags of them, prints the line and exits with status
    2; anything else that escapes, but ``Stopped``, is a bug.
    """


class Stopped(BaseException):  # no Exception: a reader of files that catches all of these must not take it for damage
    """A run that cannot go on, though nothing is wrong with it: a full disk, no memory left, a signal.

    The message is one line that says what happened. ``main.py`` adds what is saved and how to go on.

    Attributes:
        status: the exit status.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def complain(error: UserError | Stopped, words: Callable[[str], str] = str) -> int:
    """Print the line of an error that ends ``main.py``, as ``words`` has it; its exit status."""
    kind = "stopped" if isinstance(error, Stopped) else "error"
    print(f"main.py: {kind}: {one_line(words(str(error)))}", file=sys.stderr)
    return error.status if isinstance(error, Stopped) else 2


@contextmanager
def stopping() -> Iterator[None]:
    """Make ``Stopped`` of the errors of a machine that has no room left or has lost a file."""
    try:
        yield
    except (OSError, UserError) as error:
        name = f"{file}: " if (file := getattr(error, "filename", None)) is not None else ""
        raise Stopped(f"{name}{getattr(error, 'strerror', None) or error}") from error
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        raise out_of_memory(error) from error


def no_memory(error: Exception) -> bool:
    """Whether an error says that memory was refused, for which torch and the system have several types."""
    if isinstance(error, (ImportError, OSError, RuntimeError)):
        # Of a library that cannot be mapped, of memory itself, of a thread that gets no stack.
        said = (
            "out of memory",
            "not enough memory",
            "llocate memory",
            "bad_alloc",
            "failed to map",
            "start new thread",
        )
        return getattr(error, "errno", None) == errno.ENOMEM or any(words in str(error) for words in said)
    return isinstance(error, MemoryError)


def out_of_memory(error: Exception) -> Stopped:
    """What an error that refuses memory comes to."""
    return Stopped(f"out of memory: {str(error).splitlines()[0] if str(error) else 'none is left'}")
