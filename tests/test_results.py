"""The tables of results: every row whole and once, whoever writes at the same time, whatever it is called."""

import csv
import errno
import fcntl
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, SoftFileLock

from utils import results, run
from utils.errors import UserError
from utils.files import write_whole
from utils.results import COLUMNS, Results, to_csv
from utils.run import RunFolder

ORIGINAL = ["Date Finished", "Name", "Current Val", "Best Val", "Save Directory"]
HOSTILE = [
    "a,b",
    'he said "no"',
    '"',
    "two\nlines",
    "windows\r\nlines",
    "é ✓ 名",
    " spaces ",
    "tab\t;|'",
    "=1+1",
    ",",
    "ends with a newline\n",
]


def row(name: str, folder: str = "runs/a", **more: object) -> dict:
    return {
        "Date Finished": "2024-01-01 00:00:00",
        "Name": name,
        "Current Val": 0.5,
        "Best Val": 0.75,
        "Save Directory": folder,
        **more,
    }


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows), "as many fields as columns"
    return rows


def names(path: Path) -> list[str]:
    return [row["Name"] for row in read(path)]


# One writer


def test_the_columns_begin_with_those_of_the_original(tmp_path):
    path = tmp_path / "results.csv"
    Results(path).add([row("a")])
    header = path.read_text().splitlines()[0]
    assert list(COLUMNS[:5]) == ORIGINAL
    assert header == ",".join(COLUMNS) and header.startswith(",".join(ORIGINAL))
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_every_value_of_a_row_stands_under_its_column(tmp_path):
    path = tmp_path / "results.csv"
    values = {column: f"value of {column}" for column in COLUMNS}
    Results(path).add([values, row("b", Task=3, **{"Accuracy Given": 1 / 3, "Accuracy Adapted": None})])
    first, second = read(path)
    assert first == values
    assert (second["Task"], second["Seed"], second["Accuracy Adapted"]) == ("3", "", "")
    assert float(second["Accuracy Given"]) == 1 / 3


def test_rows_are_appended_under_one_header(tmp_path):
    path, before = tmp_path / "results.csv", b""
    for index in range(5):
        Results(path).add([row(f"row {index}"), row(f"row {index}'")])
        after = path.read_bytes()
        assert after.startswith(before) and len(after) > len(before)
        before = after
    assert names(path) == [f"row {index}{mark}" for index in range(5) for mark in ("", "'")]
    assert path.read_text().count("Date Finished") == 1


def test_adding_nothing_leaves_a_table_without_rows(tmp_path):
    Results(tmp_path / "results.csv").add([])
    assert read(tmp_path / "results.csv") == []


def test_a_column_that_is_not_in_the_table_is_a_mistake_and_writes_nothing(tmp_path):
    path = tmp_path / "results.csv"
    Results(path).add([row("a")])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Colour"):
        Results(path).add([row("b"), row("c", Colour="red")])
    assert path.read_bytes() == before
    Results(path).add([row("d")])  # and the lock is free again
    assert names(path) == ["a", "d"]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_name_survives_whatever_it_is_made_of(name, tmp_path):
    path = tmp_path / "results.csv"
    for _ in range(2):
        Results(path).add([row(name, folder=name), row("next")])
    kept = " ".join(name.splitlines())  # a row is one line, so that a torn one can be told
    assert [(r["Name"], r["Save Directory"]) for r in read(path)] == [(kept, kept), ("next", "runs/a")] * 2
    assert path.read_text().count("\n") == 5
    Results(path).agree([row(name, folder=name), row("next"), row("new")])
    assert names(path) == [kept, "next", "new"]


# What a crash leaves


def test_a_torn_last_line_goes_wherever_it_was_torn(tmp_path):
    path = tmp_path / "results.csv"
    table = Results(path)
    table.add([row("first")])
    start = path.stat().st_size
    table.add([row('the "torn", one')])
    whole = path.read_bytes()
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        table.add([row("next")])
        assert names(path) == ["first", "next"], whole[start:length]


def test_a_torn_header_is_written_again(tmp_path):
    path = tmp_path / "results.csv"
    header = to_csv(COLUMNS, []).encode()
    for length in range(len(header)):
        path.write_bytes(header[:length])
        Results(path).add([row("first")])
        assert path.read_bytes().startswith(header) and names(path) == ["first"]


def test_agree_adds_the_rows_that_lack_and_only_those_each_in_its_place(tmp_path):
    path = tmp_path / "results.csv"
    wanted = [row(f"row {index}") for index in range(5)]
    table = Results(path)
    table.agree(wanted[:1])
    table.add([row("row 2", folder="runs/other"), wanted[3]])
    table.agree(wanted)
    assert [(r["Name"], r["Save Directory"]) for r in read(path)] == [
        ("row 0", "runs/a"),
        ("row 2", "runs/other"),
        ("row 1", "runs/a"),
        ("row 2", "runs/a"),
        ("row 3", "runs/a"),
        ("row 4", "runs/a"),
    ]
    after, inode = path.read_bytes(), path.stat().st_ino
    table.agree(wanted)
    assert path.read_bytes() == after and path.stat().st_ino == inode


def test_agree_sets_right_whatever_became_of_a_row_and_leaves_those_of_others_to_the_byte(tmp_path):
    path = tmp_path / "results.csv"
    own = [row(f"exp run: task {task}", Task=task, Seed=0, Bytes=802) for task in range(3)]
    other = [row(f"exp other: task {task}", folder="runs/b", Task=task, Seed=1) for task in range(3)]
    for pair in zip(own, other, strict=True):
        Results(path).add(pair)
    whole = path.read_bytes()
    (line,) = (line for line in whole.splitlines() if b"exp run: task 1" in line)
    for place in range(len(line)):
        for bit in (1, 4, 128):
            wrong = bytearray(line)
            wrong[place] ^= bit
            if wrong[place] in b"\r\n":
                continue  # two lines, which nobody can tell from somebody else's
            path.write_bytes(whole.replace(line, bytes(wrong)))
            assert Results(path).agree(own, "runs/a") == []
            assert path.read_bytes() == whole, bytes(wrong)


def test_agree_drops_rows_of_the_runs_folder_that_the_run_knows_nothing_of(tmp_path):
    path = tmp_path / "results.csv"
    Results(path).add([row("of a run that was deleted"), row("of another", folder="runs/b"), row("known")])
    Results(path).agree([row("known")], "runs/a")
    assert names(path) == ["of another", "known"]


def test_lines_that_are_no_rows_are_named_and_left_and_a_report_says_which(tmp_path):
    path = tmp_path / "results.csv"
    Results(path).add([row("known")])
    whole = path.read_bytes()
    strange = b"a comment\n" + b"\n" + b"\xff\xfe, no text\n" + b"x," * 30 + b"\n"
    path.write_bytes(whole + strange)
    assert Results(path).agree([row("known"), row("new")], "runs/a") == [3, 5, 6]
    assert path.read_bytes().startswith(whole + strange) and path.read_bytes().count(b",new,") == 1
    with pytest.raises(ValueError, match="line 3 is no row with 19 columns"):
        results.plain(path.read_bytes())


# What a spreadsheet makes of it

SAVED = {
    "byte order mark and CRLF": lambda t: "\ufeff" + t.replace("\n", "\r\n"),
    "CRLF without a last end": lambda t: t.replace("\n", "\r\n").rstrip(),
    "CR": lambda t: t.replace("\n", "\r"),
    "semicolons": lambda t: "\ufeff" + resaved(t, delimiter=";"),
    "tabs": lambda t: resaved(t, delimiter="\t"),
    "all quoted": lambda t: resaved(t, quoting=csv.QUOTE_ALL),
    "other order and more columns": lambda t: resaved(t, columns=["Note", *reversed(COLUMNS), "Mine"]),
    "with an empty line": lambda t: t + "\n",
}


def resaved(text: str, columns=COLUMNS, **form) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="kept", **form)
    writer.writeheader()
    writer.writerows(csv.DictReader(io.StringIO(text)))
    return out.getvalue()


@pytest.mark.parametrize("kind", SAVED)
def test_a_table_that_a_spreadsheet_has_saved_is_gone_on_with_in_its_form(kind, tmp_path):
    path, table = tmp_path / "results.csv", Results(tmp_path / "results.csv")
    table.add([row("exp run: a, b", Seed=0), row("of another", folder="runs/b")])
    path.write_bytes(SAVED[kind](path.read_text()).encode())
    before = path.read_bytes()
    table.check()
    table.add([row("exp run: c", Seed=0)])
    assert path.read_bytes().startswith(before)
    after = path.read_bytes()
    assert table.agree([row("exp run: a, b", Seed=0), row("exp run: c", Seed=0)], "runs/a") == []
    assert path.read_bytes() == after
    table.agree([row("exp run: a, b", Seed=0, Task=7), row("exp run: c", Seed=0), row("exp run: d")], "runs/a")
    rows = list(csv.DictReader(io.StringIO(results.plain(path.read_bytes()))))
    assert [r["Name"] for r in rows] == ["exp run: a, b", "of another", "exp run: c", "exp run: d"]
    assert rows[0]["Task"] == "7" and rows[0].get("Mine", "kept") == "kept" and rows[3].get("Mine", "") == ""


def test_agree_brings_a_torn_row_back_whole(tmp_path):
    path = tmp_path / "results.csv"
    wanted = [row("first"), row("second")]
    Results(path).add(wanted)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    Results(path).agree(wanted)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        ",".join(ORIGINAL).encode() + b"\n2020-01-01,old,0.5,0.5,runs/old\n",
        b"something,else\n1,2\n",
        b"\x89PNG\r\n\x1a\n\xff\xfe\n",
    ],
    ids=["the original's columns only", "other columns", "no text"],
)
@pytest.mark.parametrize("method", ["add", "agree"])
def test_a_file_that_is_not_this_table_is_refused_by_name_and_left_alone(content, method, tmp_path):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match="results.csv") as caught:
        getattr(Results(path), method)([row("a")])
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("taken", ["results.csv", "results.csv.lock"])
def test_a_table_that_cannot_be_written_is_a_user_error(taken, tmp_path):
    (tmp_path / taken).mkdir()
    with pytest.raises(UserError, match="results.csv"):
        Results(tmp_path / "results.csv").add([row("a")])


# Many writers


@pytest.mark.parametrize("method", ["add", "agree"])
def test_a_lock_that_is_never_given_back_ends_in_one_clear_line(method, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_LOCK_SECONDS", 0.05)
    path = tmp_path / "results.csv"
    Results(path).add([row("a")])
    before = path.read_bytes()
    with FileLock(f"{path}.lock"), pytest.raises(UserError) as caught:
        getattr(Results(path), method)([row("b")])
    message = str(caught.value)
    assert str(path) in message and "0.05 s" in message and "\n" not in message
    assert path.read_bytes() == before
    getattr(Results(path), method)([row("b")])
    assert names(path) == ["a", "b"]


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL"])
def without_locks(request, monkeypatch):
    """``without_locks()``: from then on the file system knows no locks, and says so with one error or another."""
    number = getattr(errno, request.param)

    def unknown(*_):
        raise OSError(number, os.strerror(number))

    return lambda: monkeypatch.setattr(fcntl, "flock", unknown)


def test_where_the_file_system_knows_no_locks_a_file_says_who_writes(tmp_path, monkeypatch, without_locks):
    without_locks()
    monkeypatch.setattr(results, "_LOCK_SECONDS", 0.2)
    path, lock = tmp_path / "results.csv", tmp_path / "results.csv.lock"
    Results(path).add([row("a")])
    with SoftFileLock(lock), pytest.raises(UserError, match="locked by another process"):
        Results(path).add([row("held")])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock.write_text(f"{dead.pid}\n{socket.gethostname()}\n")  # as a killed run leaves it
    Results(path).add([row("b")])
    assert names(path) == ["a", "b"] and not lock.exists()
    lock.write_text(f"{dead.pid}\nanother-machine\n")  # where nobody here can tell whether it still runs
    with pytest.raises(UserError, match=f"if none runs, delete {lock}"):
        Results(path).add([row("c")])


def test_a_run_folder_that_is_taken_tells_what_a_killed_run_may_have_left(tmp_path, without_locks):
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    with FileLock(lock), pytest.raises(UserError, match="another process is running in this folder$"):
        RunFolder(tmp_path, "run", resume=True)
    without_locks()
    lock.write_text("7\nanother-machine\n")
    with pytest.raises(UserError, match=f"another process is running in this folder; if none does, delete {lock}$"):
        RunFolder(tmp_path, "run", resume=True)
    lock.unlink()
    RunFolder(tmp_path, "run", resume=True).close()


def test_a_log_whose_disk_tells_at_the_end_alone_that_it_was_full_stops_no_run(tmp_path, monkeypatch):
    class Late:
        def close(self):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(run, "open_file", lambda *_, **__: Late())
    folder = RunFolder(tmp_path, "run", resume=False)
    folder.close()
    RunFolder(tmp_path, "run", resume=True).close()  # nobody is there any more


# Whole files


def test_a_whole_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "adapt_results.csv"
    for text in ("old\r\nlines\n", "new\n"):
        write_whole(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_modes_keeps_whole_files(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    for text in ("old", "new"):
        write_whole(tmp_path / "adapt_results.csv", text)
    assert (tmp_path / "adapt_results.csv").read_text() == "new"


def test_a_whole_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "adapt_results.csv"
    write_whole(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"


def test_a_whole_file_keeps_text_of_every_language(tmp_path):
    write_whole(tmp_path / "a.csv", to_csv(["Name"], [{"Name": "é ✓ 名"}]))
    assert (tmp_path / "a.csv").read_bytes() == "Name\né ✓ 名\n".encode()
