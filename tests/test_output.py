"""Output that nobody reads: a program goes on without it, and its files are whole."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from utils.files import write_out

PROJECT = Path(__file__).resolve().parents[1]
PYTHON, MAIN = shlex.quote(sys.executable), shlex.quote(str(PROJECT / "main.py"))
SHORT = "--num-tasks 1 --epochs 1 --iter-lim 1 --threads 1 --multigpu cpu --name run --log-dir log"
SAYS_MUCH = """
import sys
from utils.output import lasting_output
with lasting_output():
    file = open("result", "w")
    for _ in range(100_000):
        print("much")
        file.write("x")
    print("\\u2713 and to the other output", file=sys.stderr)
    file.close()
"""


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize("where", ["| head -n 1", ">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full", "2> /dev/full"])
def test_a_program_goes_on_to_its_end_whoever_listens(where, tmp_path):
    (tmp_path / "says_much.py").write_text(SAYS_MUCH)
    result = shell(f"{PYTHON} says_much.py {where}; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert result.returncode == 0 and "Traceback" not in result.stdout + result.stderr
    assert (tmp_path / "result").read_text() == "x" * 100_000


def test_a_character_that_the_output_lacks_is_written_as_an_escape(tmp_path):
    (tmp_path / "says_much.py").write_text(SAYS_MUCH)
    result = shell(f"{PYTHON} says_much.py > log", tmp_path, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "\\u2713 and to the other output\n")


@pytest.mark.parametrize("where, status", [("| head -n 1", 0), (">&- 2>&-", 0), ("--set Nothing >&- 2>&-", 2)])
def test_a_run_is_learned_without_its_output_and_keeps_its_log(where, status, tmp_path):
    result = shell(f"{PYTHON} {MAIN} {SHORT} {where}; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (result.returncode, result.stderr) == (status, "")
    if status == 0:
        run = tmp_path / "log" / "run"
        assert (run / "finished").exists()
        assert (run / "log.txt").read_text().rstrip().endswith("this run: log/run")


def test_what_goes_to_a_file_that_a_user_names_goes_behind_links_and_into_pipes(tmp_path):
    for name in ("there", "new"):
        (tmp_path / f"to {name}").symlink_to(tmp_path / name)
    (tmp_path / "there").write_text("old")
    for name in ("there", "new"):
        write_out(tmp_path / f"to {name}", "é\n")
        assert (tmp_path / f"to {name}").is_symlink() and (tmp_path / name).read_text(encoding="utf-8") == "é\n"
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    write_out(pipe, "é\n")
    reader.join(timeout=60)
    assert read == ["é\n"] and pipe.is_fifo()
    write_out("/dev/null", "é\n")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError):
        write_out(tmp_path, "é\n")
    assert tmp_path.is_dir() and len(list(tmp_path.iterdir())) == 5


def test_the_output_by_its_name_gets_what_is_printed_behind_what_is_there(tmp_path):
    code = (
        "from utils.output import is_output; "
        "print(is_output('/dev/stdout'), is_output('log'), is_output('other'), is_output('absent'))"
    )
    (tmp_path / "other").write_text("")
    result = shell(f"{PYTHON} -c {shlex.quote(code)} >> log", tmp_path)
    assert (result.returncode, (tmp_path / "log").read_text()) == (0, "True True False False\n")
