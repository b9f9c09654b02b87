"""Many processes write one table of results at the same time: every row is there, whole and once."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
WRITER = """
import os, sys, time
from utils.results import Results
path, writer, rows = sys.argv[1:]
open(f"{path}.ready{writer}", "w").close()
while not os.path.exists(path + ".go"):
    time.sleep(0.001)
for index in range(int(rows)):
    Results(path).add([{
        "Date Finished": "2024-01-01", "Name": f"writer {writer}, row {index} " + "x" * (index % 50 * 40),
        "Current Val": 0.5, "Best Val": 0.5, "Save Directory": f"runs/{writer}", "Task": index,
    }])
"""


def test_many_processes_write_every_row_once_and_whole(full, tmp_path):
    writers, rows_each = (20, 200) if full else (8, 50)
    path = tmp_path / "results.csv"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", WRITER, str(path)]
    processes = [subprocess.Popen([*command, str(n), str(rows_each)], env=environment) for n in range(writers)]
    # All at once, so that they meet at the file that is not there yet too.
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.ready*"))) < writers and time.monotonic() < deadline:
        time.sleep(0.01)
    Path(f"{path}.go").touch()
    assert [process.wait(timeout=500) for process in processes] == [0] * writers
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {
        (f"writer {writer}, row {index} " + "x" * (index % 50 * 40), f"runs/{writer}", str(index))
        for writer in range(writers)
        for index in range(rows_each)
    }
    assert len(rows) == writers * rows_each and all(None not in row and None not in row.values() for row in rows)
    assert {(r["Name"], r["Save Directory"], r["Task"]) for r in rows} == expected
    assert path.read_text().count("Date Finished") == 1
    # Each writer's rows are in the order in which it wrote them.
    for writer in range(writers):
        own = [int(r["Task"]) for r in rows if r["Save Directory"] == f"runs/{writer}"]
        assert own == list(range(rows_each))
