"""Tables of results as CSV: one that many runs share, and whole ones that a run writes by itself."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

COLUMNS = (
    "Date Finished",
    "Name",
    "Current Val",
    "Best Val",
    "Save Directory",
    "Set",
    "Scenario",
    "Task",
    "Tasks Learned",
    "Seed",
    "Sparsity",
    "Accuracy Given",
    "Accuracy Adapted",
    "Share Inferred Right",
    "Bytes",
    "Bytes CSC-16",
    "Bytes Coded",
    "Bytes Bound",
    "Bytes Batch Norm",
)
_LOCK_SECONDS = 60


class Results:
    """``results.csv`` of an experiment, which many runs write at the same time.

    A row is one line, written whole, under a lock, in one write. Rows are told apart by name and save directory.
    The lock is the kernel's, which network file systems pass on to their server and which ends with its process.
    Where a file system knows none, it is a file that names its holder; one left by a killed process counts no more.

    Args:
        path: the CSV file; made with its header by the first row.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def add(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows that are new.

        Raises:
            UserError: another process held the lock for a minute.
        """
        with self._locked():
            self._append(rows)

    def complete(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append those of ``rows`` that the file lacks: what a run that was cut short did not get to write.

        Raises:
            UserError: another process held the lock for a minute.
        """
        with self._locked():
            self._append([])  # mends a torn last line first
            there = set()
            if self.path.exists():
                with open(self.path, newline="") as file:
                    there = {(row["Name"], row["Save Directory"]) for row in csv.DictReader(file)}
            self._append(
                [row for row in rows if (_in_one_line(row["Name"]), _in_one_line(row["Save Directory"])) not in there]
            )

    def check(self) -> None:
        """See that the file is this table, as far as it is there; writes nothing.

        Raises:
            UserError: it is something else, or cannot be read or written.
        """
        for path in (self.path, Path(f"{self.path}.lock")):
            if os.path.exists(path) and not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
                raise UserError(f"{path}: cannot be written")
        if not os.path.exists(self.path):
            return
        header = to_csv(COLUMNS, []).encode()
        with open(self.path, "rb") as file:
            start = file.read(len(header))
        if not header.startswith(start):
            raise UserError(f"{self.path}: is not a table of results with the columns of this version; move it away")

    def _locked(self):
        lock = FileLock(f"{self.path}.lock", timeout=_LOCK_SECONDS)
        try:
            return lock.acquire()
        except OSError as error:
            if not isinstance(error, Timeout):
                raise UserError(f"{self.path}.lock: {error.strerror}") from None
            raise UserError(
                f"{self.path} was locked by another process for {_LOCK_SECONDS} s; "
                f"if none runs, delete {self.path}.lock"
            ) from None

    def _append(self, rows: Sequence[Mapping[str, object]]) -> None:
        self.check()
        try:
            with open(self.path, "a+b") as file:
                size = file.seek(0, os.SEEK_END)
                if size and file.seek(size - 1) >= 0 and file.read() != b"\n":
                    # A writer that lost its power in mid-row left a part of it: that goes, its run writes it again.
                    file.seek(0)
                    size = file.read().rfind(b"\n") + 1
                    file.truncate(size)
                file.write(to_csv(COLUMNS, rows, header=size == 0).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]], header: bool = True) -> str:
    """Rows as CSV text, a line each; a column that a row lacks, or that is None, is left empty.

    Raises:
        ValueError: a row has a column that is not among ``columns``.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: _in_one_line(value) for name, value in row.items()})
    return text.getvalue()


def _in_one_line(value: object) -> object:
    return " ".join(value.splitlines()) if isinstance(value, str) else value


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
