"""Command lines and YAML files that nobody thought of: a run comes to its end or is refused, in whole."""

import argparse
import io
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import main
from args import make_parser

# What ends a run at once, unless a drawn flag says otherwise.
SHORT = "--num-tasks 2 --epochs 1 --iter-lim 1 --threads 1 --multigpu cpu --name run".split()
LEFT_ALONE = {"help", "config", "log-dir", "name", "threads", "multigpu", "compile", "workers"}
# Values for flags without choices of their own, or with some that would take minutes.
VALUES = {
    "set": ["DigitsPerm", "DigitsPerm", "SplitDigits", "RotatingDigits", "MNIST", "SplitImageNet"],
    "model": ["LeNet", "LeNet", "LeNet", "FC1024", "BNNet", "GEMResNet18"],
    "data": ["nowhere"],
    "resume": ["", "nothing.pt"],
    "export": ["model.sup", "nowhere/model.sup"],
    "import": ["nothing.sup"],
    "reinit-from": ["nothing.pt"],
    "seed": ["0", "1", "2147483647"],
    "num-tasks": ["1", "2", "3", "5"],
    "stream-tasks": ["1", "2", "3"],
    "task-eval": ["0", "1", "2"],
    "classes-per-task": ["1", "2", "3", "5"],
    "batch-size": ["1", "32", "5000"],
    "test-batch-size": ["50", "128", "1000"],
    "output-size": ["1", "5", "10", "50", "200"],
    "sparsity": ["0.01", "0.5", "1", "3"],
    "epochs": ["1", "2"],
    "iter-lim": ["1", "2"],
    "lr": ["1e-4", "0.01", "1"],
    "train-weight-tasks": ["-1", "0", "1"],
    "warmup-length": ["0", "1", "3"],
    "reinit-most-recent-k": ["1", "2"],
    "nns-every": ["1", "5"],
    "eval-ckpts": ["1", "1,2", "2,3", "[1, 2]"],
    "data-to-repeat": ["1", "3", "1000"],
    "real-neurons": ["1", "10", "50"],
    "log-base": ["1.5", "2", "10"],
    "adapt-steps": ["1", "2"],
    "adapt-tries": ["1", "2"],
    "tasks-in-parallel": ["1", "2"],
}
NUMBERS = ["0", "1", "0.5", "1e-3"]
WRONG = ["", "-1", "nan", "inf", "x", "1e999", "yes", "true", "null", "[]", "{}", "a: b", "two\nlines", "é", "\0", "~"]


def some_settings():
    """Flags and values that mostly go together: {flag: value}, the value None for a switch."""
    values = {}
    for action in make_parser()._actions:
        flag = action.option_strings[0].removeprefix("--")
        if flag in LEFT_ALONE:
            continue
        if isinstance(action, argparse.BooleanOptionalAction):
            values[flag], values[f"no-{flag}"] = st.none(), st.none()
            continue
        good = VALUES.get(flag) or list(action.choices or NUMBERS)
        values[flag] = st.sampled_from(good * (400 // len(good)) + WRONG)
    flags = st.lists(st.sampled_from(sorted(values)), max_size=6, unique=True)
    return flags.flatmap(lambda chosen: st.fixed_dictionaries({flag: values[flag] for flag in chosen}))


def in_yaml(flag, value):
    if value is None:
        flag, value = flag.removeprefix("no-"), "false" if flag.startswith("no-") else "true"
    return f"{flag}: {value}\n"


def test_any_command_line_and_config_ends_well_or_is_refused_before_anything_is_written(full, monkeypatch):
    statuses = []

    @settings(
        max_examples=1000 if full else 60,
        derandomize=not full,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(some_settings(), some_settings(), st.booleans())
    def check(flags, config, underscores):
        with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
            patch.chdir(folder)
            argv = [*SHORT, "--log-dir", "log"]
            for flag, value in flags.items():
                argv += [f"--{flag.replace('-', '_') if underscores else flag}"] + ([] if value is None else [value])
            if config:
                Path("config.yaml").write_text("".join(in_yaml(*item) for item in config.items()))
                argv += ["--config", "config.yaml"]
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                status = main.main(argv)
            assert status in (0, 2), err.getvalue()
            if status == 2:
                assert err.getvalue().startswith("main.py: error: ") and err.getvalue().count("\n") == 1
                assert {path.name for path in Path().rglob("*")} <= {"config.yaml"}
            else:
                assert Path("log", "run", "finished").exists() and "Traceback" not in err.getvalue()
            statuses.append(status)

    check()
    print(f"{statuses.count(0)} runs, {statuses.count(2)} refused")
    assert min(statuses.count(0), statuses.count(2)) > len(statuses) / 10, "the lines are of both kinds"
