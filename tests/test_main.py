"""The program as a user calls it: learn, evaluate, be killed, go on."""

import csv
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from args import parse_arguments
from models.masks import MaskedWeight
from tests.conftest import kill_at_step
from utils.checkpoint import Checkpoint
from utils.journal import FRAME, MAGIC

PROJECT = Path(main.__file__).parent
SMALL = ["--threads", "1", "--multigpu", "cpu", "--epochs", "3", "--num-tasks", "4", "--eval-ckpts", "2"]
STEPS = 36  # of each task: 3 epochs of 12 batches


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def undated(path: Path) -> list[dict[str, str]]:
    """Rows without what differs between two runs of the same: when, and in which folder."""
    return [{k: v for k, v in row.items() if k not in ("Date Finished", "Save Directory")} for row in rows(path)]


def masks(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    records, damaged = Checkpoint(run / "checkpoint.pt").read()
    assert damaged == 0
    return {record.values["task"]: record.tensors for record in records if record.kind == "task"}


def same_masks(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A small run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "digits"
    assert main.main([*SMALL, "--log-dir", str(folder), "--name", "run"]) == 0
    return folder


def test_the_default_run_shows_accuracy_given_and_inferred(call, tmp_path):
    result = call("main.py", "--log-dir", tmp_path / "runs", "--threads", 1, "--multigpu", "cpu")
    assert result.returncode == 0 and result.stderr == ""  # no progress bars where there is no terminal
    mean = re.search(r"mean +([\d.]+) +([\d.]+) +([\d.]+)%", result.stdout)
    assert mean and float(mean[1]) >= 0.96 and mean[2] == mean[1] and mean[3] == "100.0"
    assert len(re.findall(r"^ +\d .*100\.0%$", result.stdout, re.M)) == 5


def test_a_python_that_looks_for_modules_in_no_script_s_folder_finds_them(call):
    assert call("main.py", "--help", env={**os.environ, "PYTHONSAFEPATH": "1"}).returncode == 0


@pytest.mark.parametrize("words", [[], ["--log-dir", "runs"], ["--log-dir", "../link"]])
def test_a_folder_whose_name_is_no_utf_8_is_told_before_anything_is_written(words, tmp_path, monkeypatch, capsys):
    folder = tmp_path / os.fsdecode(b"\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no name of this file system is of such bytes")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("args.PROJECT", folder)
    assert main.main([*SMALL, *words]) == 2 and not list(folder.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("main.py: error: --log-dir ") and "is no UTF-8" in line


def test_a_run_leaves_what_the_readme_says(whole_run):
    run = whole_run / "run"
    names = {path.name.split(".1")[0] for path in run.iterdir()} - {".lock"}
    assert names >= {"settings.yaml", "log.txt", "checkpoint.pt", "adapt_results.csv", "confusion.csv", "finished"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    about = yaml.safe_load((run / "settings.yaml").read_text())
    assert about["settings"]["lr"] == 1e-3 and about["settings"]["threads"] == 1
    assert {"command", "commit", "machine", "started", "versions", "kept_fraction"} <= about.keys()
    assert 0.4 < about["kept_fraction"]["total"] < 0.6

    adapted = rows(run / "adapt_results.csv")
    assert [(row["tasks_learned"], row["task"]) for row in adapted] == [
        ("2", "0"), ("2", "1"), ("4", "0"), ("4", "1"), ("4", "2"), ("4", "3"),
    ]  # fmt: skip
    for row in adapted:
        same = [line for line in rows(run / "confusion.csv") if all(line[key] == row[key] for key in list(row)[:2])]
        batches = {line["inferred"]: int(line["batches"]) for line in same}
        assert batches[row["task"]] / sum(batches.values()) == pytest.approx(float(row["inferred_right"]))
    shared = rows(whole_run / "results.csv")
    assert list(shared[0])[:5] == ["Date Finished", "Name", "Current Val", "Best Val", "Save Directory"]
    assert [row["Task"] for row in shared] == ["0", "1", "", "2", "3", ""]
    assert shared[-1]["Name"] == "digits run: mean over the 4 tasks learned so far, task inferred"
    assert all(0.5 < float(row["Best Val"]) <= 1 for row in shared)
    last = [float(row["adapted"]) for row in adapted[2:]]
    assert float(shared[-1]["Accuracy Adapted"]) == pytest.approx(sum(last) / 4)


def test_a_task_learned_alone_has_the_mask_of_the_full_sequence(whole_run, tmp_path):
    arguments = [*SMALL, "--log-dir", str(tmp_path), "--name", "alone", "--task-eval", "3"]
    assert main.main(arguments) == 0
    alone = masks(tmp_path / "alone")
    assert list(alone) == [3] and same_masks(alone[3], masks(whole_run / "run")[3])


def test_a_killed_run_goes_on_to_the_same_results_bit_for_bit(whole_run, tmp_path):
    words = [*SMALL, "--log-dir", str(tmp_path / "digits"), "--name", "run", "--resume"]
    run = tmp_path / "digits" / "run"
    for step, learned in ((STEPS * 3 // 2, 1), (STEPS * 5 // 2, 3)):  # killed in mid-task, twice
        kill_at_step(step, words)
        assert len(masks(run)) == learned
    assert not (run / "finished").exists()
    assert main.main(words) == 0
    assert {task: True for task in range(4)} == {
        task: same_masks(state, masks(whole_run / "run")[task]) for task, state in masks(run).items()
    }
    assert undated(tmp_path / "digits" / "results.csv") == undated(whole_run / "results.csv")
    for name in ("adapt_results.csv", "confusion.csv"):
        assert (run / name).read_text() == (whole_run / "run" / name).read_text()


def test_a_kill_between_checkpoint_and_results_loses_no_row(whole_run, tmp_path):
    """The checkpoint is written first; rows that did not make it into results.csv are added, once."""
    arguments = [*SMALL, "--log-dir", str(tmp_path / "digits"), "--name", "run", "--resume"]
    assert main.main(arguments) == 0
    results = tmp_path / "digits" / "results.csv"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:-2]) + lines[-2][:20])  # the last row is missing, the one before torn
    assert main.main(arguments) == 0
    assert main.main(arguments) == 0
    assert undated(results) == undated(whole_run / "results.csv")


@pytest.mark.parametrize("left", [0, 7])
def test_a_run_killed_while_its_checkpoint_was_made_starts_again(left, tmp_path):
    arguments = [*SMALL, "--task-eval", "0", "--epochs", "1", "--log-dir", str(tmp_path), "--name", "run", "--resume"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(MAGIC[:left])
    assert main.main(arguments) == 0
    assert list(masks(tmp_path / "run")) == [0]


@pytest.mark.parametrize(
    "words",
    [
        ["--conv-type", "VectorizedBatchEnsembles", "--train-weight-tasks", "1", "--adaptor", "gt"],
        ["--trainer", "reinit"],
    ],
)
def test_a_task_that_depends_on_earlier_ones_cannot_be_learned_alone(words, tmp_path, capsys):
    assert main.main([*SMALL, *words, "--task-eval", "1", "--log-dir", str(tmp_path / "runs")]) == 2
    assert "cannot be learned alone" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_batch_norm_has_statistics_for_each_task_unless_told_otherwise():
    assert parse_arguments([]).bn_type == "MultitaskNonAffineBN"


def test_a_damaged_checkpoint_goes_on_from_what_is_whole(whole_run, tmp_path, capsys):
    arguments = [*SMALL, "--log-dir", str(tmp_path / "digits"), "--name", "run", "--resume"]
    assert main.main(arguments) == 0
    checkpoint = tmp_path / "digits" / "run" / "checkpoint.pt"
    data = bytearray(checkpoint.read_bytes())
    data[len(data) * 3 // 5] ^= 1
    checkpoint.write_bytes(data)
    capsys.readouterr()
    assert main.main(arguments) == 0
    assert "damaged" in capsys.readouterr().out
    assert same_masks(masks(checkpoint.parent)[3], masks(whole_run / "run")[3])
    assert undated(tmp_path / "digits" / "results.csv") == undated(whole_run / "results.csv")


def test_resume_takes_the_path_of_a_checkpoint_and_goes_on_in_its_folder(whole_run, tmp_path):
    arguments = [*SMALL, "--log-dir", str(tmp_path / "digits"), "--name", "run"]
    assert main.main([*arguments, "--task-eval", "1"]) == 0
    checkpoint = tmp_path / "digits" / "run" / "checkpoint.pt"
    size = checkpoint.stat().st_size
    assert main.main([*SMALL, "--task-eval", "1", "--resume", str(checkpoint)]) == 0
    assert checkpoint.stat().st_size == size and list(masks(checkpoint.parent)) == [1]


def test_a_run_of_a_name_that_is_taken_does_not_touch_the_first(whole_run, capsys):
    before = {path.name: path.read_bytes() for path in (whole_run / "run").iterdir() if path.name != ".lock"}
    arguments = [*SMALL, "--task-eval", "0", "--epochs", "1", "--log-dir", str(whole_run), "--name", "run"]
    shared = (whole_run / "results.csv").read_bytes()
    assert main.main(arguments) == 0
    assert (whole_run / "run~2" / "finished").exists()
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "--resume" in line)
    first = whole_run / "run"
    assert said == f"note: {first} is there, so this run is run~2; --resume goes on with {first}"
    assert {path.name: path.read_bytes() for path in (whole_run / "run").iterdir() if path.name != ".lock"} == before
    (whole_run / "results.csv").write_bytes(shared)  # as the other tests expect it


def test_a_baseline_with_shared_weights_resumes_with_them(tmp_path):
    flags = ["--conv-type", "StandardConv", "--train-weight-tasks", "-1", "--adaptor", "gt", "--output-size", "10"]
    arguments = [*SMALL, *flags, "--epochs", "1", "--log-dir", str(tmp_path)]
    assert main.main([*arguments, "--name", "whole", "--resume"]) == 0
    assert main.main([*arguments, "--name", "cut", "--resume"]) == 0
    checkpoint = tmp_path / "cut" / "checkpoint.pt"
    content, end = checkpoint.read_bytes(), len(MAGIC)
    for _ in range(3):  # the settings and two tasks, as if killed after them
        end += FRAME.size + FRAME.unpack_from(content, end)[0]
    checkpoint.write_bytes(content[:end])
    assert main.main([*arguments, "--name", "cut", "--resume"]) == 0
    one, other = tmp_path / "whole" / "adapt_results.csv", tmp_path / "cut" / "adapt_results.csv"
    assert rows(one)[-4:] == rows(other)[-4:]
    assert same_masks(masks(tmp_path / "whole")[3], masks(tmp_path / "cut")[3])


@pytest.mark.realdata
def test_permuted_mnist_reaches_the_accuracy_of_the_original(real_data, tmp_path):
    """The original code measured 0.934 to 0.941 a task, and every task inferred right, after these 1,000 batches."""
    words = ["--set", "MNISTPerm", "--data", real_data, "--num-tasks", 2, "--unshared-labels", "--threads", 1]
    words = [str(word) for word in [*words, "--log-dir", tmp_path]]
    learning = ["--epochs", "3", "--iter-lim", "1000", "--lr", "1e-4", "--export", str(tmp_path / "masks")]
    ways = [("entropy", learning), ("g", ["--import", str(tmp_path / "masks")])]
    for objective, more in ways:
        adaptor = f"se_oneshot_{objective}_minimization"
        assert main.main([*words, *more, "--adaptor", adaptor, "--name", objective]) == 0
        summary = rows(tmp_path / "results.csv")[-1]
        assert float(summary["Accuracy Adapted"]) >= 0.93
        assert float(summary["Share Inferred Right"]) >= 0.995  # none of the 158 batches may be wrong


# A short task that learns nothing

SHORT = "--set DigitsPerm --num-tasks 1 --threads 1 --multigpu cpu --adaptor gt"


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_short_task_that_no_gradient_reaches_is_named(at_once, tmp_path, capsys, monkeypatch):
    nothing = staticmethod(lambda ctx, gradient: (torch.zeros_like(gradient), None, None, None))
    monkeypatch.setattr(MaskedWeight, "backward", nothing)
    words = f"{SHORT} --num-tasks 2 --epochs 1 --output-size 100 --tasks-in-parallel {at_once} --log-dir {tmp_path}"
    assert main.main(words.split()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "task 0: after 12 batches its accuracy" in error
    assert "far below that of a constant answer, 0.1" in error and "no gradient reaches what it trains" in error


@pytest.mark.parametrize("more, rate", [("", "--lr"), ("--train-weight-tasks 1", "--train-weight-lr")])
def test_a_short_task_whose_loss_does_not_fall_is_named(more, rate, tmp_path, capsys):
    words = f"{SHORT} {more} {rate} 1e-12 --epochs 2 --output-size 100 --log-dir {tmp_path} --sparsity 0.3"
    assert main.main(words.split()) == 1
    out, error = capsys.readouterr()
    assert f"does not fall; likely {rate} 1e-12 is too small" in error
    assert "note: --sparsity 0.3: without effect, for no layer" in out


@pytest.mark.parametrize("more", ["--iter-lim 1", "--iter-lim 13 --epochs 2", "--epochs 2 --batch-size 100"])
@pytest.mark.parametrize("lr", ["1e-4", "1e-5"])
def test_a_short_task_that_learns_is_kept_however_little_it_has_learned(more, lr, tmp_path):
    words = f"{SHORT} {more} --lr {lr} --output-size 100 --log-dir {tmp_path}"
    assert main.main(words.split()) == 0


def test_tensorboard_has_a_curve_a_task_and_the_settings(tmp_path):
    words = f"--set DigitsPerm --num-tasks 2 --epochs 2 --threads 1 --multigpu cpu --log-dir {tmp_path} --name run"
    assert main.main(words.split()) == 0
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"tensors": 0}).Reload()
    for curve in ("loss", "accuracy", "learning rate"):
        for task in (0, 1):
            assert [event.step for event in events.Scalars(f"{curve}/task {task}")] == [12, 24], "batches"
    kept = events.Scalars("tasks/share of kept weights")
    assert [event.step for event in kept] == [1, 2] and all(0.4 < event.value < 0.6 for event in kept)
    assert [event.step for event in events.Scalars("tasks after 2/accuracy adapted")] == [0, 1]
    (page,) = events.Tensors("settings")
    assert b"| `num_tasks` | `2` |" in page.tensor_proto.string_val[0]
    assert events.SummaryMetadata("settings").plugin_data.plugin_name == "text"
