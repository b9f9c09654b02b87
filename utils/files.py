"""Files that are opened without waiting for anybody, and replaced whole or not at all."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}  # what file systems say that know no locks


def open_file(path: Path | str, mode: str = "rb", **more: Any) -> IO[Any]:
    """``open``, for files alone: a pipe would be waited for without end, and a device may never come to one.

    Raises:
        OSError: as ``open`` does, and where the path names a pipe, a socket or a device.
    """
    check_kind(path)
    return open(path, mode, **more)


def check_kind(path: Path | str) -> None:
    """See that what the path names, if anything, is a file or a folder.

    Raises:
        OSError: it is a pipe, a socket or a device; or it cannot be looked at.
    """
    with suppress(FileNotFoundError):
        kind = os.stat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise OSError(errno.EINVAL, "Is a pipe or a device, not a file", str(path))


def check_own(path: Path) -> None:
    """``check_kind``, of a file that a run writes on in its folder, which may be somebody else's: it is no link either.

    Raises:
        OSError: as ``check_kind``, and for a link, which may lead anywhere.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "Is a link, not a file", str(path))
    check_kind(path)


def is_locked(path: Path | str) -> bool | None:
    """Whether a process has the kernel's lock of a file, which ends with it; None where there are no such locks.

    There a file may stand in for it, which may outlive its process.
    """
    try:
        with open_file(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # held for an instant, and together with others who look
    except BlockingIOError:
        return True
    except OSError as error:  # it is not there, or cannot be locked
        return None if error.errno in NO_LOCKS else False
    return False


def place_of(path: Path | str) -> Path:
    """Where a file lies, or will, that a user names: behind links, which so stay links.

    Raises:
        OSError: as ``check_kind``.
    """
    check_kind(path)
    return Path(os.path.realpath(path))


def write_out(path: Path | str, text: str) -> None:
    """Write a text to where a user says: a file whole or not at all, behind links; straight into a pipe or a device.

    Raises:
        OSError: it cannot be written.
    """
    try:
        place = place_of(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        with open(path, "wb") as file:
            file.write(_bytes(text))
    else:
        write_whole(place, text)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, so that a reader sees the old content or the new, never a part."""
    replace_with(path, lambda file: file.write(_bytes(text)))


def _bytes(text: str) -> bytes:
    """A text in UTF-8; names of files that are in nothing of the kind as the bytes that they are."""
    return text.encode(errors="surrogateescape")


def replace_with(
    path: Path, write: Callable[[BinaryIO], object], whole: Callable[[BinaryIO], bool] = lambda file: True
) -> None:
    """Write a file anew so that at any moment the old one or the new one is there, whole.

    Args:
        write: writes the content.
        whole: whether the new file, read again, is what it should be; only then it takes the place of the old one.

    Raises:
        OSError: it could not be written, or does not read back; the old file is as it was.
    """
    part = part_of(path)
    try:
        part.unlink(missing_ok=True)  # whatever a killed run or somebody else has left there
        with open(part, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        with open(part, "rb") as file:
            if not whole(file):
                raise OSError(errno.EIO, "does not read back what was written", str(path))
        with suppress(OSError):  # it is new, or the file system keeps no modes
            shutil.copymode(path, part)  # a table that a group writes stays one
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    sync_folder(path.parent)


def part_of(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.part")


def sync_folder(folder: Path) -> None:
    """See that a name that was made or changed in ``folder`` is on the disk."""
    with suppress(OSError):  # some file systems cannot, and some systems do not open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
