"""Locks between processes: the kernel's, or where a file system knows none a file."""

import fcntl
import tempfile
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

from utils.files import NO_LOCKS


def lock_of(path: Path, timeout: float = -1) -> BaseFileLock:
    """A lock, to be acquired: the kernel's, of a file; where the file system knows none the file itself, which names
    its holder.

    Args:
        timeout: seconds that it is waited for; below 0 without end.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return SoftFileLock(path, timeout=timeout)
    return FileLock(path, timeout=timeout)
