"""What runs go on from: runs of fewer tasks, tasks that were imported, tasks that were left out, older files."""

import csv
import shutil

import pytest
import torch
import yaml
from tiny import RUNS, Tiny, TinyBN, call_main, outcome

from experiments import records, status
from models import MODELS
from trainers.default import DefaultTrainer
from utils.checkpoint import Checkpoint, write_records


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    monkeypatch.setitem(MODELS, "TinyBN", TinyBN)


@pytest.fixture
def trained(monkeypatch):
    """The tasks that are begun, in their order."""
    begun, begin = [], DefaultTrainer.begin_tasks

    def noted(trainer, tasks):
        begun.extend(tasks)
        begin(trainer, tasks)

    monkeypatch.setattr(DefaultTrainer, "begin_tasks", noted)
    return begun


def learned(folder):
    """The learned tasks of a run, each with its accuracy and all its tensors; and the last evaluation."""
    tensors, values, _ = outcome(folder)
    kinds = [value[0] for value in values if isinstance(value, list)]
    tasks = {
        value[1]: (value[2], {name: tensor for (place, name), tensor in tensors.items() if place == at})
        for at, value in enumerate(values[: len(kinds)])
        if value[0] == "task"
    }
    return tasks, [value[3] for value in values[: len(kinds)] if value[0] == "evaluation"][-1]


# More tasks than before


@pytest.mark.parametrize("name", [name for name in RUNS if "nns" not in name])
def test_a_run_that_gets_a_task_more_ends_as_one_that_had_it_from_the_start(name, tmp_path, trained, capsys):
    words, more = RUNS[name].split(), ["--num-tasks", "3", "--resume"]
    assert call_main(tmp_path / "whole", *words) == 0
    assert call_main(tmp_path / "grown", *words, "--num-tasks", "2") == 0
    del trained[:]
    assert call_main(tmp_path / "grown", *words, *more) == 0 and trained == [2]
    whole, grown = learned(tmp_path / "whole"), learned(tmp_path / "grown")
    assert grown[1] == whole[1] and list(grown[0]) == [0, 1, 2]
    for task, (accuracy, tensors) in whole[0].items():
        assert grown[0][task][0] == accuracy and grown[0][task][1].keys() == tensors.keys()
        assert all(torch.equal(tensor, grown[0][task][1][key]) for key, tensor in tensors.items())
    # It is a run of three tasks from now on.
    run = tmp_path / "grown" / "run"
    assert yaml.safe_load((run / "settings.yaml").read_text())["settings"]["num_tasks"] == 3
    assert status.read(run) == status.Status("finished", 3, 3, whole[0][2][0])
    assert call_main(tmp_path / "grown", *words, *more) == 0 and trained == [2]
    capsys.readouterr()
    assert call_main(tmp_path / "grown", *words, "--num-tasks", "2", "--resume") == 2
    assert "--num-tasks 3 there, 2 here" in capsys.readouterr().err


def test_a_run_that_was_cut_short_may_get_more_tasks(tmp_path, trained, monkeypatch):
    step = DefaultTrainer.step

    def failing(trainer, x, y):
        if (trainer.task, trainer.batches_done) == (1, 9):
            raise MemoryError
        return step(trainer, x, y)

    monkeypatch.setattr(DefaultTrainer, "step", failing)
    words = ["--adaptor", "gt", "--checkpoint-minutes", "0"]
    assert call_main(tmp_path / "grown", *words, "--num-tasks", "2") == 1
    steps = []
    monkeypatch.setattr(DefaultTrainer, "step", lambda *batch: [step(*batch), steps.append(1)][0])
    assert call_main(tmp_path / "grown", *words, "--num-tasks", "3", "--resume") == 0
    assert len(steps) == 11 + 20 and trained == [0, 1, 1, 2]  # from batch 9 of task 1 on
    assert call_main(tmp_path / "whole", *words) == 0
    assert learned(tmp_path / "grown")[1] == learned(tmp_path / "whole")[1]


@pytest.mark.parametrize(
    "words",
    [
        "--adaptor gt --set RotatingDigits",  # 180 or 120 degrees
        "--trainer nns --nns-every 7",  # a budget that is larger may have changed what was decided
    ],
)
def test_where_a_task_depends_on_their_number_there_can_be_no_more(words, tmp_path, capsys):
    assert call_main(tmp_path, *words.split(), "--num-tasks", "2") == 0
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    assert call_main(tmp_path, *words.split(), "--num-tasks", "3", "--resume") == 2
    said = capsys.readouterr().err
    assert "--num-tasks 2 there, 3 here" in said and said.count("\n") == 1
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


# Imported tasks


@pytest.fixture
def exported(tmp_path):
    """``exported(*words)``: the file of a run."""

    def export(*words):
        path = tmp_path / "model.sup"
        assert call_main(tmp_path / "exporting", *words, "--export", path) == 0
        return path

    return export


@pytest.mark.parametrize("there, task", [((0,), 1), ((0, 1, 2), 1), ((2,), 0)])
def test_one_task_is_learned_beside_those_that_were_imported(there, task, exported, tmp_path, trained):
    alone = ["--task-eval", there[0]] if len(there) == 1 else []
    path, again = exported(*alone), tmp_path / "again.sup"
    del trained[:]
    words = ["--task-eval", task, "--export", again]
    assert call_main(tmp_path / "log", "--import", path, *words) == 0
    assert trained == [task] * (task not in there)
    tasks, scores = learned(tmp_path / "log")
    assert sorted(tasks) == sorted({*there, task}) and sorted(score["task"] for score in scores) == sorted(tasks)
    (run,) = (path.parent for path in (tmp_path / "log").rglob("checkpoint.pt"))
    assert (status.read(run).done, status.read(run).tasks) == (len(tasks), len(tasks))
    # What was exported in the end holds them all, and the run goes on from its own checkpoint.
    assert call_main(tmp_path / "more", "--import", again) == 0
    assert call_main(tmp_path / "log", *words, "--resume") == 0
    assert {*trained} == {0, 1, 2} - {*there} and len(trained) == len({*trained})
    assert learned(tmp_path / "more")[0].keys() == {0, 1, 2}


@pytest.mark.parametrize(
    "again", [["--import", "model.sup", "--resume"], ["--resume"]], ids=["whole command", "resume"]
)
def test_a_run_that_began_with_an_import_goes_on_by_its_own_command(again, exported, tmp_path, trained, monkeypatch):
    """What the file said of the network need not be said again."""
    exported("--seed", "3", "--tasks", "0-1")
    monkeypatch.chdir(tmp_path)
    assert call_main(tmp_path / "whole", "--import", "model.sup", "--name", "run") == 0
    whole = learned(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "log")
    path = next((tmp_path / "log").rglob("checkpoint.pt"))
    records_of_run, _ = Checkpoint(path).read()
    write_records(path, records_of_run[:3])  # as killed before the last task: the run, and two imported tasks
    path.with_name("finished").unlink(missing_ok=True)
    del trained[:]
    assert call_main(tmp_path / "log", *again, "--name", "run") == 0 and trained == [2]
    assert yaml.safe_load(path.with_name("settings.yaml").read_text())["settings"]["import_file"] == "model.sup"
    assert call_main(tmp_path / "log", "--import", "other.sup", "--resume", "--name", "run") == 2
    assert learned(tmp_path / "log")[1] == whole[1]


def test_what_a_run_did_not_begin_with_is_not_said_to_be_there(exported, tmp_path, trained, capsys):
    path = exported("--tasks", "0-1")
    assert call_main(tmp_path / "log", "--name", "run") == 0
    capsys.readouterr()
    assert call_main(tmp_path / "log", "--name", "run", "--import", path, "--resume") == 2
    assert "has nothing of it" in capsys.readouterr().err
    (tmp_path / "new" / "run").mkdir(parents=True)
    (tmp_path / "new" / "run" / "checkpoint.pt").touch()  # as killed before its first record
    del trained[:]
    assert call_main(tmp_path / "new", "--name", "run", "--import", path, "--resume") == 0 and trained == [2]


def test_evaluations_that_were_passed_are_told_of(tmp_path, capsys):
    assert call_main(tmp_path / "log") == 0
    capsys.readouterr()
    assert call_main(tmp_path / "log", "--eval-ckpts", "1,3", "--resume") == 0
    assert "note: --eval-ckpts 1: 3 tasks are learned already" in capsys.readouterr().out


def test_a_layer_of_one_mask_takes_no_task_beside_the_one_it_has(exported, tmp_path, capsys):
    words = ["--conv-type", "MaskConv", "--adaptor", "gt"]
    path = exported(*words, "--task-eval", "0")
    assert call_main(tmp_path / "log", *words, "--import", path, "--task-eval", "0") == 0
    capsys.readouterr()
    assert call_main(tmp_path / "new", *words, "--import", path, "--task-eval", "1") == 2
    assert "--conv-type MaskConv: has one mask" in capsys.readouterr().err and not (tmp_path / "new").exists()


# Tasks that were left out


@pytest.mark.parametrize("finished", [True, False])
def test_a_task_that_was_left_out_is_not_tried_again(finished, tmp_path, trained, monkeypatch, capsys):
    step = DefaultTrainer.step

    def spoiled(trainer, x, y):
        if trainer.task == 1:
            x.fill_(torch.nan)
        if trainer.task == 2 and not finished:
            raise MemoryError
        return step(trainer, x, y)

    monkeypatch.setattr(DefaultTrainer, "step", spoiled)
    words = ["--adaptor", "gt", "--on-nan", "skip"]
    assert call_main(tmp_path, *words) == (0 if finished else 1)
    assert trained == [0, 1, 2]
    monkeypatch.setattr(DefaultTrainer, "step", step)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    for _ in range(2):
        assert call_main(tmp_path, *words, "--resume") == 0
        assert "left out before, for they could not be learned: tasks 1" in capsys.readouterr().out
    assert trained == [0, 1, 2] + [2] * (not finished)
    tasks, scores = learned(tmp_path)
    assert list(tasks) == [0, 2] and [score["task"] for score in scores] == [0, 2]
    assert not finished or (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["Task"] for row in csv.DictReader(file)] == ["0", "2", ""]


# Older files


@pytest.mark.parametrize("said, threads", [("threads: 2", 2), ("threads: null", 1), ("threads: 99999", 1), ("[[", 1)])
def test_an_older_checkpoint_goes_on_with_the_threads_of_its_settings(said, threads, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--adaptor", "gt", "--threads", "-1"]
    assert call_main(tmp_path / "old", *words) == 0
    run = tmp_path / "old" / "run"
    records, _ = Checkpoint(run / "checkpoint.pt").read()
    del records[0].values["threads"]
    write_records(run / "checkpoint.pt", records)
    (run / "settings.yaml").write_text(f"settings:\n  {said}\n")
    assert call_main(tmp_path / "old", *words, "--resume") == 0
    assert torch.get_num_threads() == threads
    # Without the file it is a run that begins.
    shutil.copytree(run, tmp_path / "bare" / "run")
    (tmp_path / "bare" / "run" / "settings.yaml").unlink()
    assert call_main(tmp_path / "bare", *words, "--resume") == 0
    assert torch.get_num_threads() == 1


# Runs of a script


def test_a_flag_that_changes_no_result_begins_no_run_anew(call, tmp_path):
    script = "experiments/GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py"
    words = ["--set", "DigitsPerm", "--num-tasks", 1, "--iter-lim", 2, "--epochs", 1, "--gpu-sets", "cpu"]
    words += ["--log-dir", tmp_path, "--threads", 1]
    assert call(script, *words, "--seeds", 1).returncode == 0
    first = next(tmp_path.glob("*/seed=*/checkpoint.pt")).parent
    before = (first / "checkpoint.pt").stat().st_mtime_ns, (first / "finished").read_text()
    result = call(script, *words, "--seeds", 2, "--checkpoint-minutes", 5)
    assert result.returncode == 0 and "finished before, skipped" in result.stdout
    assert ((first / "checkpoint.pt").stat().st_mtime_ns, (first / "finished").read_text()) == before
    assert len([*tmp_path.glob("*/seed=*/checkpoint.pt")]) == 2
    (experiment,), _ = records.read([first.parent])
    (setting,) = experiment.settings
    assert [run.settings["seed"] for run in setting.runs] == [0, 1]
