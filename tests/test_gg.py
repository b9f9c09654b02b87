"""Scenario GG as a user runs it: the scripts of figure 3, and what a run of several tasks leaves."""

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import main
from args import parse_arguments
from experiments import launcher
from utils.checkpoint import Checkpoint

GG = launcher.ROOT / "experiments" / "GG"
SCRIPTS = sorted((path for path in GG.glob("*/*.py") if "siblings" not in path.stem), key=lambda path: path.stem)
MULTIPLIERS = {"rn18-supsup": [1, 2, 4, 8, 16, 32], "rn18-supsup-transfer": [1, 2, 4, 8, 16, 32]}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory):
    """A CIFAR-100 of few images, whose classes differ by their colours."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.RandomState(0)
    colours = random.randint(40, 216, (100, 1, 1, 3))
    arrays = {}
    for split, count in (("train", 6), ("test", 2)):
        labels = np.repeat(np.arange(100), count)
        noise = random.randint(-40, 40, (len(labels), 32, 32, 3))
        arrays |= {f"{split}_images": (colours[labels] + noise).astype(np.uint8), f"{split}_labels": labels}
    (root / "cifar100").mkdir()
    np.savez(root / "cifar100" / "cifar100.npz", **arrays)
    return root


# The scripts


def test_the_scripts_are_those_of_figure_3():
    assert [path.stem for path in SCRIPTS] == [
        *("rn18-batche", "rn18-batche-randw", "rn18-lowerbound", "rn18-separate-heads", "rn18-separate-heads-randw"),
        *("rn18-supsup", "rn18-supsup-transfer", "rn18-upperbound", "rn50-supsup"),
    ]


def planned(script, *words):
    """The settings of every run that a script would start, as ``main.py`` reads them."""
    result = subprocess.run(
        [sys.executable, script, "--dry-run", "--gpu-sets", "cpu", *words], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return [parse_arguments(shlex.split(line)[2:]) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_plans_runs_that_main_understands(script):
    runs = planned(script, "--num-tasks", "2", "--data", "somewhere")
    assert len({(run.name) for run in runs}) == len(runs)
    assert all(Path(run.log_dir) == launcher.ROOT / "runs" / script.stem for run in runs)
    if script.stem == "rn50-supsup":
        assert [(run.sparsity, run.task_eval) for run in runs] == [(m, t) for m in (4, 8, 16, 32) for t in (0, 1)]
        assert (runs[0].epochs, runs[0].batch_size, runs[0].warmup_length, runs[0].weight_decay) == (100, 256, 5, 0)
    else:
        assert [run.sparsity for run in runs] == MULTIPLIERS.get(script.stem, [0.5])
        assert {(run.epochs, run.batch_size, run.weight_decay, run.lr_policy) for run in runs} == {
            (250, 128, 1e-4, "cosine_lr")
        }
        assert {run.model for run in runs} == {"GEMResNet18"} and {run.output_size for run in runs} == {5}
    assert {run.adaptor for run in runs} == {"gt"} and {run.optimizer for run in runs} == {"adam"}


def test_a_flag_passed_on_picks_one_variant_and_all_tasks_are_the_default():
    script = GG / "splitimagenet" / "rn50-supsup.py"
    assert [run.task_eval for run in planned(script, "--sparsity", "8")] == list(range(100))
    assert [run.task_eval for run in planned(script, "--sparsity", "8", "--task-eval", "7")] == [7]
    supsup = planned(GG / "splitcifar100" / "rn18-supsup.py", "--sparsity", "8", "--seeds", "2")
    assert [(run.sparsity, run.seed) for run in supsup] == [(8, 0), (8, 1)]


def test_tasks_that_are_no_number_are_refused(capsys):
    script = GG / "splitimagenet" / "rn50-supsup.py"
    with pytest.raises(SystemExit) as ended:
        launcher.launch(script, "configs/rn50-supsup.yaml", tasks=100, argv=["--num-tasks", "x", "--dry-run"])
    assert ended.value.code == 2 and "--num-tasks x" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rn18-supsup-transfer", "rn18-upperbound", "rn18-lowerbound", "rn18-batche"])
def test_a_small_run_of_a_script_names_its_rows(name, small_cifar, call, tmp_path):
    words = f"--gpu-sets cpu --data {small_cifar} --num-tasks 2 --epochs 1 --iter-lim 1 --test-batch-size 5"
    words += " --sparsity 8" if name in MULTIPLIERS else ""
    result = call(f"experiments/GG/splitcifar100/{name}.py", *words.split(), "--log-dir", tmp_path / "runs")
    assert result.returncode == 0, result.stdout + result.stderr
    table = rows(tmp_path / "runs" / name / "results.csv")
    assert [row["Task"] for row in table] == ["0", "1", ""]
    assert all(row["Name"].startswith(f"{name} ") and "seed=0" in row["Name"] for row in table)
    assert ("sparsity=8" in table[0]["Name"]) == (table[0]["Sparsity"] == "8.0") == (name in MULTIPLIERS)
    assert ("each when just learned" in table[-1]["Name"]) == (name == "rn18-upperbound")
    if name == "rn18-upperbound":
        mean = sum(float(row["Accuracy Given"]) for row in table[:2]) / 2
        assert float(table[-1]["Accuracy Given"]) == pytest.approx(mean)


# A run of several tasks

SUPSUP = "--set SplitCIFAR100 --model GEMResNet18 --output-size 5 --conv-type MultitaskMaskConv --sparsity 8"
SUPSUP += " --er-sparsity --bn-type MultitaskNonAffineBN --adaptor gt --optimizer adam --epochs 1 --batch-size 10"
SUPSUP = [*SUPSUP.split(), "--threads", "1", "--multigpu", "cpu", "--test-batch-size", "10"]


def test_earlier_tasks_score_what_they_scored_when_learned_also_after_a_fresh_load(small_cifar, tmp_path):
    words = [*SUPSUP, "--data", str(small_cifar), "--num-tasks", "3", "--log-dir", str(tmp_path), "--name", "run"]
    assert main.main(words) == 0
    table = rows(tmp_path / "results.csv")
    when_learned = [row["Accuracy Given"] for row in table[:3]]
    assert [row["given"] for row in rows(tmp_path / "run" / "adapt_results.csv")] == when_learned
    assert [row["Tasks Learned"] for row in table] == ["1", "2", "3", "3"]
    # From the checkpoint: only the evaluation is done again, by a network that has just been made.
    whole = Checkpoint(tmp_path / "run" / "checkpoint.pt").read()[0]
    (tmp_path / "again").mkdir()
    for record in whole[:-1]:
        Checkpoint(tmp_path / "again" / "checkpoint.pt").append(record)
    assert main.main([*words[:-1], "again", "--resume"]) == 0
    assert [row["given"] for row in rows(tmp_path / "again" / "adapt_results.csv")] == when_learned
    about = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert about["kept_fraction"]["stages.0.0.conv1"] == pytest.approx(8 * 40 / 3600, abs=1e-3)
    assert about["bytes"]["batch_norm"] == 3 * 12000 and about["bytes"]["other"] == 0
    assert about["bytes"]["bound"] <= about["bytes"]["coded"] < about["bytes"]["csc16"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--num-tasks", "7", "--classes-per-task", "15", "--output-size", "15"], "1 to 6 tasks of 15 classes"),
        (["--classes-per-task", "15"], "--output-size 5: SplitCIFAR100 needs at least 15 outputs"),
        (["--conv-type", "MaskConv"], "each task is a run of its own; say --task-eval"),
        (["--no-er-sparsity"], "--sparsity 8.0: is a fraction"),
        (["--sparsity", "0"], "--sparsity"),
        (["--score-when-learned", "--adaptor", "se_oneshot_entropy_minimization"], "--score-when-learned"),
        (["--set", "MNISTPerm", "--classes-per-task", "2"], "--classes-per-task 2: cannot be chosen for MNISTPerm"),
        (["--set", "SplitImageNet", "--output-size", "10"], "SplitImageNet is missing"),
        (["--amp", "fp8"], "--amp"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(words, said, small_cifar, tmp_path, capsys):
    log_dir = tmp_path / "runs"
    assert main.main([*SUPSUP, "--data", str(small_cifar), *words, "--log-dir", str(log_dir)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not log_dir.exists()


# Real data


@pytest.mark.realdata
def test_a_task_of_real_cifar_100_is_learned(real_data, tmp_path):
    # In float32: without instructions for bf16, mixed precision is many times slower.
    words = [*SUPSUP, "--data", str(real_data), "--num-tasks", "1", "--batch-size", "64", "--test-batch-size", "128"]
    assert main.main([*words, "--log-dir", str(tmp_path)]) == 0
    assert float(rows(tmp_path / "results.csv")[0]["Best Val"]) > 0.3  # chance is 0.2
