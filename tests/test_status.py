"""What status.py says of runs."""

import shutil
import subprocess
import sys

import pytest

from experiments import status
from experiments.backends import local
from models import MODELS
from tests.conftest import PROJECT
from tests.tiny import Tiny, call_main

HEAD, END = "$ python main.py  # process 7 on {}\n", "$ process 7 on {}: ended with status {}\n"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A finished run of three tasks."""
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "Tiny", Tiny)
        call_main(folder, "--adaptor", "gt")
    return folder / "run"


@pytest.fixture
def folder(learned, tmp_path):
    """An experiment whose runs are in every state."""
    experiment = tmp_path / "runs" / "Experiment"
    for name, log in (
        ("seed=0,lr=1", HEAD.format("a") + END.format("a", 0)),
        ("seed=1,lr=1", HEAD.format("b") + "epoch 1\n" + END.format("b", 143)),
        ("seed=2,lr=1", HEAD.format("c") + "no memory\n" + END.format("c", 1)),
        ("seed=3,lr=1", HEAD.format("d") + "epoch 2\n"),
    ):
        shutil.copytree(learned, experiment / name)
        (experiment / f"{name}.log").write_text(log)
        if not name.startswith("seed=0"):
            (experiment / name / "finished").unlink()
    (experiment / "seed=4,lr=1.log").touch()
    (experiment / "slices").mkdir()
    (experiment / "slices" / "seed=5,lr=1,tasks=0-1.log").touch()
    (experiment / "results.csv").touch()
    return experiment


def test_a_line_a_run_in_every_state(folder):
    lines = {run.name: status.line(run) for run in status.runs_in([folder])}
    states = {name[5]: of.state for name, of in lines.items()}
    assert states == dict(
        zip("012345", ["finished", "stopped", "failed", "under way", "waiting", "waiting"], strict=True)
    )
    assert [of.cells[-1] for of in lines.values()] == ["", "epoch 1", "no memory", "epoch 2", "", ""]
    for name in list(lines)[:4]:
        of = lines[name]
        assert (of.status.done, of.status.tasks) == (3, 3) and of.status.accuracy > 0.5
        assert of.pace is not None and of.machine
    with local.open_log(folder / "seed=1,lr=1.log"):
        assert status.line(folder / "seed=1,lr=1").state == "under way"
    for given in (folder.parent, folder, folder / "results.csv"):
        assert len(status.runs_in([given, folder / "seed=1,lr=1"])) == (1 if given.is_file() else 6)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits_the_terminal(folder, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert status.main([str(folder)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("Experiment: 1 of 6 runs finished, all with lr=1") and len(rows) == 7
    assert all(len(row) <= max(width, 75) for row in rows)
    assert [row.split()[0] for row in rows] == ["run", *(f"seed={seed}" for seed in range(5)), rows[-1].split()[0]]
    assert ("no memory" in rows[3]) == (width >= 90)


@pytest.mark.parametrize(
    "log, seconds",
    [
        ("", None),
        ("2026-01-01 00:00:00 threads: 1", None),
        ("2026-01-01 00:00:00 threads: 1\n2026-01-01 00:00:09 task 0: accuracy 0.9, 7 s", 9.0),
        (  # two at once
            "2026-01-01 00:00:00 threads: 1\n2026-01-01 00:00:30 task 0: a, 14 s\n2026-01-01 00:00:30 task 1: a, 14 s",
            15.0,
        ),
        (
            "2026-01-01 00:00:00 threads: 1\n2026-01-01 00:00:09 task 0: a, 7 s\n"
            "2026-01-01 09:00:00 going on after 1 learned tasks\n2026-01-01 09:00:20 task 1: a, 9 s",
            20.0,
        ),
        ("2026-01-01 00:00:09 task 0: a, 7 s\n2026-01-01 09:00:00 going on after 1 learned tasks", None),
        (  # the end of summer time
            "2026-10-25 02:59:50 threads: 1\n2026-10-25 02:59:59 task 0: a, 7 s\n"
            "2026-10-25 02:00:08 task 1: a, 7 s\n2026-10-25 02:00:23 task 2: a, 7 s",
            8.0,
        ),
    ],
)
def test_the_pace_is_that_since_the_run_last_began(tmp_path, log, seconds):
    (tmp_path / "log.txt").write_text(log)
    assert status.pace(tmp_path / "log.txt") == seconds


def test_many_runs_stand_in_the_order_of_their_numbers_and_finished_ones_may_be_left_out(tmp_path):
    for name in ("seed=10", "seed=9", "seed=9,tasks=100-199", "seed=9,tasks=20-99"):
        (tmp_path / f"{name}.log").touch()
    (tmp_path / "seed=10").mkdir()
    (tmp_path / "seed=10" / "finished").touch()
    runs = status.runs_in([tmp_path])
    assert [run.name for run in runs] == ["seed=9", "seed=9,tasks=20-99", "seed=9,tasks=100-199", "seed=10"]
    lines = [(run, status.line(run)) for run in runs]
    whole, rest = (status.table(lines, 80, unfinished=so).splitlines() for so in (False, True))
    assert rest == whole[:-1] and "1 of 4 runs finished" in rest[0] and whole[-1].startswith("seed=10")


@pytest.mark.parametrize("seconds, text", [(59.6, "1:00"), (245, "4:05"), (11045, "3:04:05"), (183600, "2 d 3 h")])
def test_time_left(seconds, text):
    assert status._span(seconds) == text


def test_what_is_not_there_gets_one_line_and_nothing_loads_torch(tmp_path, call):
    for words in (["nowhere"], [tmp_path], []):
        done = call("experiments/status.py", *words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert ("such as runs/*" if words else "RUN_FOLDER") in done.stderr
    code = "import sys; import experiments.status; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
