"""The tables that runs leave: their columns, and how one is read, whole or compressed or still being written.

Raises ``ValueError`` with one line that names the file for what cannot be read.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas

from utils.results import plain

TABLES = {
    "adapt_results": ("tasks_learned", "task", "given", "adapted", "inferred_right"),
    "hopfield": ("tasks_learned", "task", "step", "hamming"),
    "nns": ("batch", "hidden_task", "decision", "mask", "right"),
    "confusion": ("tasks_learned", "task", "inferred", "batches"),
}
MEASURED = ("Accuracy Given", "Accuracy Adapted", "Share Inferred Right")
SIZES = ("Bytes", "Bytes CSC-16", "Bytes Coded")
COLUMNS = ("Name", "Save Directory", "Set", "Scenario", "Task", "Tasks Learned", "Seed", *MEASURED, *SIZES)
WORDS = {"Name", "Save Directory", "Set", "Scenario", "decision", "right"}  # columns that hold no numbers


def table_of(folder: Path, name: str, columns: Sequence[str]) -> pandas.DataFrame | None:
    """A table of a run or an experiment; None if there is none."""
    path, text = text_of(folder, name)
    return None if text is None else parsed(path, text, columns)


def parsed(path: Path, text: str, columns: Sequence[str]) -> pandas.DataFrame:
    """A table with these columns at least out of its text; ``path`` is where it comes from."""
    try:
        table = pandas.read_csv(io.StringIO(text))
    except ValueError as error:  # all those of pandas
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path}: has no column {missing[0]!r}")
    for column in columns:
        if column not in WORDS and len(table) and not pandas.api.types.is_numeric_dtype(table[column]):
            raise ValueError(f"{path}: column {column!r} holds something that is no number")
    return table


def text_of(folder: Path, name: str) -> tuple[Path, str | None]:
    """The whole lines of a CSV file, also of one that is compressed; None if there is none."""
    path = folder / f"{name}.csv"
    try:
        if path.exists():
            content = path.read_bytes()
            text = plain(content) if name == "results" else content.decode("utf-8-sig")
        elif (path := folder / f"{name}.csv.gz").exists():
            text = gzip.decompress(path.read_bytes()).decode()
        else:
            return path, None
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    return path, text[: text.rfind("\n") + 1]  # another process may be writing the last line


def last_part(path: object) -> str:
    return Path(str(path)).name
