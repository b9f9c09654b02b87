"""``--split-tasks`` of experiment scripts: runs cut into slices, which are merged into the runs that they are of."""

import csv
import shlex
import shutil

import pytest
import torch
from test_schedule import Told
from tiny import Tiny, outcome

import main
from experiments import launcher
from models import MODELS

SCRIPT = launcher.ROOT / "experiments/GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py"
FOLDER = "MNISTPerm-LeNet-250-tasks-supsup_h"
SMALL = "--set DigitsPerm --model Tiny --num-tasks 8 --epochs 1 --iter-lim 5 --eval-ckpts 3 --threads 1".split()
RUN = "seed=0,epochs=1,eval-ckpts=3,iter-lim=5,model=Tiny,num-tasks=8,set=DigitsPerm"


class Here:
    """A backend whose runs are calls of ``main.main`` in this process, ended before they are looked at.

    Attributes:
        refused: the ends of the names of runs that fail instead.
    """

    refused = ()

    def __init__(self, plan, sets):
        self.places, self.plan = sets, plan

    def start(self, run, place):
        log = self.plan.log(run)
        log.write_text("what it said last\n")
        refused = run.name.endswith(tuple(self.refused))
        return Told(run, place, log, 1 if refused else main.main(self.plan.command(run, place)[2:]))

    def close(self):
        pass


@pytest.fixture
def launch(monkeypatch, tmp_path, capsys):
    """Call the script with its runs in this process; gives its exit status, what it printed, and its folder."""
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    monkeypatch.setattr(launcher, "Local", Here)
    monkeypatch.setattr(launcher, "write_report", lambda folder: None)

    def launch(where, *words, script=SCRIPT, config="configs/supsup_h.yaml", small=SMALL, **more):
        argv = ["--gpu-sets", "cpu|cpu|cpu|cpu", "--log-dir", str(tmp_path / where), *small, *map(str, words)]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            launcher.launch(script, config, argv=argv, **more)
        return ended.value.code, *capsys.readouterr(), tmp_path / where / FOLDER

    return launch


def test_tasks_in_four_slices_are_the_sequence_to_the_bit(launch, full):
    number = 40 if full else 8
    small, run = [word.replace("8", str(number)) for word in SMALL], RUN.replace("8", str(number))
    status, out, _, folder = launch("split", "--split-tasks", number // 4, small=small)
    assert status == 0 and sum(": done" in line for line in out.splitlines()) == 5
    one, other = outcome(folder, run), outcome(launch("sequence", small=small)[3], run)
    assert one[0].keys() == other[0].keys() and all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1:] == other[1:]
    with open(folder / "slices" / "results.csv", newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["Task"]]) == number
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"slices", run}


def test_a_failed_slice_leaves_the_merge_and_the_same_call_goes_on(launch, monkeypatch):
    monkeypatch.setattr(Here, "refused", ["tasks=3-5"])
    status, out, err, folder = launch("runs", "--split-tasks", 3)
    assert status == 1 and err.splitlines() == [
        f"failed: slices/{RUN},tasks=3-5: status 1: what it said last",
        f"failed: {RUN}: not merged, for slices have failed: {RUN},tasks=3-5",
    ]
    assert not (folder / RUN).exists()
    monkeypatch.setattr(Here, "refused", ())
    status, out, err, _ = launch("runs", "--split-tasks", 3)
    assert (status, err) == (0, "") and f"slices/{RUN},tasks=6-7: finished before, skipped" in out
    shutil.rmtree(folder / "slices")
    status, out, _, _ = launch("runs", "--split-tasks", 3)
    assert status == 0 and out.count("finished before, skipped") == 4, "of a run that is merged no slice is needed"


def test_a_dry_run_prints_the_slices_and_the_merge(launch):
    status, out, _, folder = launch("runs", "--split-tasks", 3, "--seeds", 2, "--dry-run")
    commands = [shlex.split(line) for line in out.splitlines()]
    assert status == 0 and len(commands) == 8 and not folder.exists()
    for *slices, merge in (commands[:4], commands[4:]):
        assert [words[-2:] for words in slices] == [["--tasks", some] for some in ("0-2", "3-5", "6-7")]
        folders = [f"{words[words.index('--log-dir') + 1]}/{words[words.index('--name') + 1]}" for words in slices]
        assert merge[merge.index("--merge") + 1 :] == folders and folders[0].startswith(f"{folder}/slices/")
        assert merge[merge.index("--log-dir") + 1] == str(folder)
    (alone,) = launch("runs", "--split-tasks", 8, "--dry-run")[1].splitlines()
    assert "--merge" not in alone and "--tasks" not in alone


def test_shards_learn_every_slice_once_and_leave_the_merge_to_a_call_without(launch):
    words = ["--split-tasks", 3, "--dry-run"]
    every = launch("runs", *words)[1].splitlines()
    shards = [launch("runs", *words, "--shard", f"{one}/2")[1].splitlines() for one in (1, 2)]
    assert [len(shard) for shard in shards] == [2, 1] and sorted(sum(shards, [])) == sorted(every[:-1])
    status, out, err, folder = launch("runs", "--split-tasks", 4, "--shard", "2/2")
    assert (status, err) == (0, "") and "merged by the same call without --shard" in out
    assert [path.parent.name for path in folder.glob("**/finished")] == [f"{RUN},tasks=4-7"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["0"], "'0' is not a whole number"),
        (["many"], "'many' is not a whole number"),
        (["3", "--conv-type", "WSNConv"], "--split-tasks 3: with --conv-type WSNConv a task builds on those before it"),
        (["3", "--train-weight-tasks", "1"], "--split-tasks 3: with --train-weight-tasks 1"),
        (["3", "--trainer", "reinit"], "--split-tasks 3: with --trainer reinit"),
        (["3", "--trainer", "nns", "--no-unshared-labels"], "--split-tasks 3: with --trainer nns"),
        (["3", "--model", "BNNet", "--bn-type", "StandardBN"], "--split-tasks 3: --bn-type StandardBN has statistics"),
        (["3", "--task-eval", "1"], "--split-tasks 3: each task is a run of its own here already"),
        (["3", "--merge", "elsewhere"], "--split-tasks 3: --merge learns nothing"),
        (["3", "--num-tasks", "-1"], "--split-tasks 3: nothing says how many tasks there are; say --num-tasks N"),
    ],
)
def test_runs_that_cannot_be_split_are_refused_before_anything_starts(launch, words, said):
    status, out, err, folder = launch("runs", "--split-tasks", *words)
    assert (status, out) == (2, "") and said in err and len(err.splitlines()) == 1 and not folder.exists()


def test_an_experiment_with_a_run_a_task_is_not_split(launch):
    status, _, err, folder = launch("runs", "--split-tasks", 3, tasks=8)
    assert status == 2 and "each task is a run of its own here already" in err and not folder.exists()
