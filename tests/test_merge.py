"""Tasks learned in slices, by runs of their own, and joined into the run of all of them."""

import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from tiny import RUNS, Tiny, TinyBN, call_main, outcome

from data.base import TaskDataset
from data.digits import DigitsPerm
from models import MODELS
from utils.checkpoint import Checkpoint
from utils.slices import named, tasks_of


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(MODELS, "Tiny", Tiny)
        monkeypatch.setitem(MODELS, "TinyBN", TinyBN)
        yield


@pytest.mark.parametrize("text, tasks", [("3", [3]), ("0-2,5", [0, 1, 2, 5]), (" 7, 1 - 2", [1, 2, 7])])
def test_tasks_in_words(text, tasks):
    assert tasks_of(text) == tasks and tasks_of(named(tasks)) == tasks


def slices(folder, *flags, of=("0", "1-2")):
    """Learn each slice in a run of its own; the runs' folders."""
    for tasks in of:
        assert call_main(folder / tasks, "--tasks", tasks, *flags) == 0
    return [folder / tasks / "run" for tasks in of]


def assert_same(one, other):
    (tensors, *values), (other_tensors, *other_values) = outcome(one), outcome(other)
    assert tensors.keys() == other_tensors.keys()
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)
    assert values == other_values


@pytest.mark.parametrize("kind", ["default", "per-task batch norm", "hopsupsup", "individual heads"])
def test_slices_merged_are_the_sequence_to_the_bit(tmp_path, kind):
    flags = RUNS.get(kind, "--conv-type MultitaskMaskConv --sparsity 0.3 --individual-heads --adaptor gt").split()
    flags += ["--eval-ckpts", "2"]
    assert call_main(tmp_path / "sequence", *flags) == 0
    parts = slices(tmp_path, *flags)
    assert call_main(tmp_path / "merged", *flags, "--merge", *reversed(parts)) == 0
    assert_same(tmp_path / "merged", tmp_path / "sequence")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    return slices(folder, "--export", folder / "exported.pt", of=("1-2",)) + slices(folder, of=("0", "0-1"))


def test_exports_and_runs_of_one_task_are_merged_and_bring_their_settings(tmp_path, learned):
    assert call_main(tmp_path / "alone", "--task-eval", 0) == 0
    parts = [tmp_path / "alone" / "run" / "checkpoint.pt", learned[0].parents[1] / "exported.pt"]
    assert call_main(tmp_path / "sequence") == 0
    assert call_main(tmp_path / "merged", "--merge", *parts) == 0
    first, second = ({k: v for k, v in outcome(tmp_path / name)[0].items()} for name in ("merged", "sequence"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    adapted = [(tmp_path / name / "run" / "adapt_results.csv").read_text() for name in ("merged", "sequence")]
    assert adapted[0] == adapted[1]


def test_what_was_learned_may_be_merged_to_be_told_apart_in_another_way(tmp_path, learned):
    flags = ["--eval-ckpts", 2, "--adaptor", "se_oneshot_g_minimization", "--output-size", 20]
    parts = slices(tmp_path, "--output-size", 20)
    assert call_main(tmp_path / "sequence", *flags) == 0
    assert call_main(tmp_path / "merged", *flags, "--merge", *parts) == 0
    assert_same(tmp_path / "merged", tmp_path / "sequence")


def test_what_is_missing_is_said_or_left_out(tmp_path, learned, capsys):
    assert call_main(tmp_path, "--merge", learned[0]) == 2
    assert capsys.readouterr().err == (
        "main.py: error: --merge: tasks that no run there has: 0; --allow-missing joins those that are there\n"
    )
    assert not list(tmp_path.iterdir())
    assert call_main(tmp_path, "--merge", learned[0], "--allow-missing") == 0
    assert yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["settings"]["tasks"] == "1-2"
    theirs, ours = (Checkpoint(run / "checkpoint.pt").read()[0] for run in (learned[0], tmp_path / "run"))
    assert [record.values["scores"] for record in theirs if record.kind == "evaluation"] == [
        record.values["scores"] for record in ours if record.kind == "evaluation"
    ]


@pytest.mark.parametrize(
    "runs, flags, said",
    [
        ((0, 2), [], "has tasks that are in {0}/checkpoint.pt too: 1"),
        ((0, 1), ["--seed", 1], "was made with other settings: --seed 0 there, 1 here"),
        ((0, 1), ["--lr", 0.5], "--lr 0.001 there, 0.5 here"),
        ((0, 1), ["--train-weight-tasks", -1], "--train-weight-tasks 0 there, -1 here"),
        ((0, 1), ["--import", "x"], "--merge and --import"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(tmp_path, learned, capsys, runs, flags, said):
    assert call_main(tmp_path, *flags, "--merge", *(learned[run] for run in runs)) == 2
    err = capsys.readouterr().err
    assert said.format(*learned) in err and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_slices_learned_from_other_data_are_refused(tmp_path, learned, capsys, monkeypatch):
    load = DigitsPerm.load

    def other(self, root):
        base = load(self, root)
        return replace(base, train_labels=9 - base.train_labels)

    with monkeypatch.context() as context:
        context.setattr(DigitsPerm, "load", other)
        context.setattr(DigitsPerm, "fingerprint", TaskDataset.fingerprint)
        (theirs,) = slices(tmp_path / "other", of=("0",))
    for parts, refused in (([learned[0], theirs], theirs), ([theirs, learned[0]], theirs)):
        assert call_main(tmp_path / "merged", "--merge", *parts) == 2
        said = f"--merge {refused}/checkpoint.pt: was learned from other data: images, labels or classes differ"
        assert capsys.readouterr().err == f"main.py: error: {said}\n"
    assert not (tmp_path / "merged").exists()


def test_files_that_cannot_be_merged_are_refused(tmp_path, learned, capsys):
    (tmp_path / "text").write_text("no run")
    shutil.copytree(learned[1], tmp_path / "cut")
    with (tmp_path / "cut" / "checkpoint.pt").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 5)
    for path, said in (("text", "is not a SupSup"), ("cut", "are damaged"), ("gone", "No such file")):
        assert call_main(tmp_path, "--merge", learned[0], tmp_path / path) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--tasks", "1-5"], "tasks are 0 ... 2"),
        (["--tasks", "2-1"], "2-1"),
        (["--tasks", "0,0"], "twice"),
        (["--tasks", "a"], "no list of tasks"),
        (["--tasks", "0", "--task-eval", "1"], "say one"),
        (["--tasks", "0", *RUNS["nns"].split()], "stream as a whole"),
        (["--tasks", "0-1", *RUNS["reinit"].split()], "cannot be learned alone"),
        (["--tasks", "0-1", *RUNS["trained weights"].split()], "cannot be learned alone"),
        (["--allow-missing"], "--merge alone"),
    ],
)
def test_slices_that_cannot_be_learned(tmp_path, capsys, flags, said):
    assert call_main(tmp_path, *flags) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1
