"""Tables of results as CSV: one that many runs share, and whole ones that a run writes by itself."""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from utils.errors import UserError
from utils.files import replace_with
from utils.locks import lock_of

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
_LONGEST_HEADER = 2**16  # bytes


@dataclass(frozen=True)
class _Form:
    """How a table is written: by this project, or by a spreadsheet that saved it again.

    Attributes:
        columns: its own, in their order; to be written to it needs all of ``COLUMNS``, and may have more.
        own: whether it is this project's form, in which a last line without its end was torn.
    """

    columns: tuple[str, ...]
    delimiter: str
    newline: str
    own: bool

    def line(self, row: Mapping[str, object], more: Mapping[str, str] = {}) -> bytes:
        """A row as a line; ``more`` has what stands in columns of somebody else's."""
        return to_csv(self.columns, [{**more, **row}], False, self.delimiter, self.newline).encode()

    def cells(self, line: bytes) -> dict[str, str] | None:
        """The row that a line holds; None if it holds none."""
        try:
            (cells,) = csv.reader([line.decode().rstrip("\r\n")], delimiter=self.delimiter)
        except (ValueError, csv.Error):  # no text, no line at all
            return None
        return dict(zip(self.columns, cells, strict=True)) if len(cells) == len(self.columns) else None


def plain(content: bytes) -> str:
    """A table of results, in whichever form it was saved, in this project's.

    Raises:
        ValueError: it is no table, or a line is no row; says which.
    """
    form, lines = _form(content), _lines(content)
    if form.own and lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # another process may be writing it
    found = {number: form.cells(line) for number, line in enumerate(lines[1:], start=2) if line.strip()}
    if bad := [number for number, cells in found.items() if cells is None]:
        raise ValueError(f"line {bad[0]} is no row with {len(form.columns)} columns")
    return to_csv(form.columns, filter(None, found.values()))


def _lines(content: bytes) -> list[bytes]:
    """The lines of a file with their ends, whichever these are."""
    return re.findall(rb"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", content)


def _form(content: bytes) -> _Form:
    """The form of a table, as its first line tells; a part of the header was torn, or the rest is not there yet.

    Raises:
        ValueError: that is no line of text.
    """
    line = next(iter(_lines(content)), b"")
    if to_csv(COLUMNS, []).encode().startswith(line):
        return _Form(COLUMNS, ",", "\n", True)
    text, end = line.decode("utf-8-sig").rstrip("\r\n"), line[len(line.rstrip(b"\r\n")) :].decode()
    # A spreadsheet takes the delimiter of its country.
    found = {delimiter: next(csv.reader([text], delimiter=delimiter), []) for delimiter in ",;\t"}
    delimiter = max(found, key=lambda delimiter: len(found[delimiter]))
    return _Form(tuple(found[delimiter]), delimiter, end or "\n", False)


class Results:
    """``results.csv`` of an experiment, which many runs write at the same time.

    A row is one line, written whole, under a lock, in one write. Rows are told apart by name and save directory.
    The lock is the kernel's, which network file systems pass on to their server and which ends with its process.
    Where a file system knows none, it is a file that names its holder; one left by a killed process counts no more.

    A table that a spreadsheet has saved stays in the form that it gave it: byte order mark, ends of lines, semicolons
    or tabs, columns in another order and more of them.

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

    def agree(self, rows: Sequence[Mapping[str, object]], folder: str | None = None) -> list[int]:
        """Make the table say of a run what ``rows`` say, each once; the rows of others stay as they are, to the byte.

        A row that is there in other words, or with a byte or two that are wrong, is set right in its place; they stand
        in the order of ``rows``, and those behind the last that is there are appended.

        Args:
            folder: a save directory, all of whose rows are among ``rows``: others that name it are removed.

        Returns:
            The numbers of the lines that are no rows; they stay too.

        Raises:
            UserError: another process held the lock for a minute.
        """
        with self._locked():
            self._append([])  # mends a torn last line first
            try:
                lines = _lines(self.path.read_bytes())
                agreed, lacking, bad = _agreed(_form(lines[0]), lines, rows, folder)
                if agreed != lines:
                    replace_with(Path(os.path.realpath(self.path)), lambda file: file.write(b"".join(agreed)))
            except OSError as error:
                raise UserError(f"{self.path}: {error.strerror}") from None
            self._append(lacking)
        return bad

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
        with open(self.path, "rb") as file:
            self._form_of(file.readline(_LONGEST_HEADER))

    def _form_of(self, content: bytes) -> _Form:
        with suppress(ValueError, csv.Error):
            form = _form(content)
            if set(COLUMNS) <= set(form.columns):
                return form
        raise UserError(f"{self.path}: is not a table of results with the columns of this version; move it away")

    def _locked(self) -> AbstractContextManager[object]:
        lock = lock_of(Path(f"{self.path}.lock"), timeout=_LOCK_SECONDS)
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
                file.seek(0)
                form = self._form_of(file.readline(_LONGEST_HEADER))
                size = file.seek(0, os.SEEK_END)
                text = b"".join(map(form.line, rows))
                if size and file.seek(size - 1) >= 0 and file.read() not in (b"\n", b"\r"):
                    # A writer that lost its power in mid-row left a part of it: that goes, its run writes it again.
                    # A spreadsheet may leave out the end of the last line.
                    file.seek(0)
                    last = _lines(file.read())[-1]
                    if not form.own and (size == len(last) or form.cells(last)):
                        text = form.newline.encode() + text
                    else:
                        size -= len(last)
                        file.truncate(size)
                file.write((b"" if size else to_csv(COLUMNS, []).encode()) + text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None


def of_last_start(rows: Sequence[Mapping[str, str]]) -> list[int]:
    """Which of a run's rows in the table count: their places, in the order in which the run wrote them.

    A run that was begun afresh in a deleted folder has the rows of the earlier one before its own, under names that
    come again. Where none does, somebody may have sorted the table.
    """
    counts, names = [_tasks_learned(row) for row in rows], [row.get("Name") for row in rows]
    if len(set(names)) == len(names):
        return sorted(range(len(rows)), key=counts.__getitem__)
    begin = max((place for place in range(1, len(rows)) if counts[place] < counts[place - 1]), default=0)
    return sorted({name: place for place, name in enumerate(names) if place >= begin}.values())


def _tasks_learned(row: Mapping[str, str]) -> float:
    with suppress(ValueError):
        return float(row.get("Tasks Learned") or 0)
    return 0


def check_row(row: object) -> None:
    """See that ``row``, out of a file, can be a row of the table.

    Raises:
        KeyError, TypeError, ValueError: it cannot.
    """
    if not (isinstance(row, dict) and set(row) <= set(COLUMNS)):
        raise TypeError("a row has other columns than the table")
    for name in ("Name", "Save Directory"):
        if not isinstance(row[name], str):
            raise TypeError(f"the row's {name} is no text")
    for name, value in row.items():
        if not (value is None or isinstance(value, str) or (type(value) in (int, float) and math.isfinite(value))):
            raise ValueError(f"the row's {name} is no number and no text")


def _key(row: Mapping[str, object]) -> tuple[str, str]:
    return str(_in_one_line(row["Name"])), str(_in_one_line(row["Save Directory"]))


def _agreed(
    form: _Form, lines: Sequence[bytes], rows: Sequence[Mapping[str, object]], folder: str | None
) -> tuple[list[bytes], list[Mapping[str, object]], list[int]]:
    """What ``Results.agree`` makes of the lines of a table: the new ones, the rows to append, and what is no row."""
    wanted = {_key(row): row for row in rows}
    right = {key: form.line(row) for key, row in wanted.items()}
    named = {name: [(name, directory)] for name, directory in wanted}
    own = set() if folder is None else {folder, *(directory for _, directory in wanted)}
    there: dict[tuple[str, str], bytes] = {}
    kept: list[bytes | None] = [lines[0]]  # None: a row of ``rows``
    bad = []
    for number, line in enumerate(lines[1:], start=2):
        cells = form.cells(line)
        key = cells and _key(cells)
        if key not in wanted or key in there:
            # Perhaps one of them all the same, with a byte or two that are wrong.
            likely = wanted if cells is None or cells["Save Directory"] in own else named.get(cells["Name"], ())
            key = next((one for one in likely if one not in there and _differ_little(line, right[one])), key)
        if key in there:
            continue
        if key in wanted:
            more = {name: value for name, value in (cells or {}).items() if name not in COLUMNS}
            true = form.line(wanted[key], more)
            there[key] = line if form.cells(line) == form.cells(true) else true
            kept.append(None)
        elif cells is None or cells["Save Directory"] != folder:
            kept.append(line)
            if cells is None and line.strip():
                bad.append(number)
    # In their places the rows stand in their own order, those that lacked among them.
    groups: list[list[bytes]] = [[]]
    for key in wanted:
        groups[-1].append(there.get(key, right[key]))
        if key in there:
            groups.append([])
    last = list(wanted.values())[len(wanted) - len(groups.pop()) :]
    filled = iter(groups)
    return [one for line in kept for one in (next(filled) if line is None else [line])], last, bad


def _differ_little(line: bytes, true: bytes) -> bool:
    if len(line) != len(true):
        return False
    differ = int.from_bytes(line, "big") ^ int.from_bytes(true, "big")
    return len(line) - differ.to_bytes(len(line), "big").count(0) <= 2


def to_csv(
    columns: Sequence[str],
    rows: Iterable[Mapping[str, object]],
    header: bool = True,
    delimiter: str = ",",
    newline: str = "\n",
) -> str:
    """Rows as CSV text, a line each; a column that a row lacks, or that is None, is left empty.

    Raises:
        ValueError: a row has a column that is not among ``columns``.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", delimiter=delimiter, lineterminator=newline)
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: _in_one_line(value) for name, value in row.items()})
    return text.getvalue()


def _in_one_line(value: object) -> object:
    return " ".join(value.splitlines()) if isinstance(value, str) else value
