"""A run killed again and again ends as the run that never was: the same bits everywhere, and nothing left over."""

import multiprocessing
import random
import signal
import time
from itertools import count

import pytest
import torch

import main
from models import multitask
from tests.stress.outcome import left_by, same_tensors
from trainers.run import Run

SPLIT = "--set SplitDigits --output-size 10 "  # has five tasks
SCENARIOS = {
    "permutations": "--set DigitsPerm --num-tasks 10 --epochs 1 --eval-ckpts 3,7",
    "HopSupSup": SPLIT + "--model BNNet --conv-type StandardConv --bn-type FastHopMaskBN --optimizer sgd --lr 0.1 "
    "--batch-size 32 --test-batch-size 8 --adaptor hopfield_recovery --epochs 2 --iter-lim 8 --width-mult 0.25",
    "NNs": "--set DigitsPerm --trainer nns --num-tasks 10 --nns-every 12 --epochs 2",
    "transfer": SPLIT + "--model GEMResNet18 --conv-type MultitaskMaskConv --bn-type MultitaskNonAffineBN "
    "--trainer reinit --reinit-adapt running_mean --sparsity 0.3 --adaptor gt --epochs 1 --iter-lim 3 --batch-size 16",
}
# A process forked from one that has loaded the program starts at once, so that kills strike the run and not its start.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["main"])


def arguments(scenario, folder):
    words = [*SCENARIOS[scenario].split(), "--threads", "1", "--multigpu", "cpu"]
    return [*words, "--log-dir", str(folder / "log"), "--name", "run", "--resume"]


def run_and_look(words, monkeypatch):
    """Run what is left of a run here; the logits of every task it has learned, on its first test images."""
    logits = {}

    def learn_and_look(run):
        learn(run)
        for task in run.record.learned:
            run.data.update_task(task)
            multitask.select_task(run.model, run.record.masks[task])
            with torch.no_grad():
                logits[task] = run.model.eval()(next(iter(run.data.val_loader))[0])

    learn = Run.learn
    with monkeypatch.context() as patch:
        patch.setattr(Run, "learn", learn_and_look)
        assert main.main(words) == 0
    return logits


def last_changes(folder):
    """When the checkpoint grew and when a file of the run was last made or replaced."""
    run = folder / "log" / "run"
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in (run, run / "checkpoint.pt")]


def wait_for_a_moment(rng, folder, seconds):
    """A random time; every other time only until something is written, since that is when a kill may hurt."""
    ends, at_a_write = time.monotonic() + rng.uniform(0, seconds), rng.random() < 0.5
    before = last_changes(folder)
    while time.monotonic() < ends:
        if at_a_write and last_changes(folder) != before:
            time.sleep(rng.uniform(0, 0.02))
            return
        time.sleep(0.001)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(scenario, full, tmp_path, monkeypatch, capsys):
    began = time.monotonic()
    logits = run_and_look(arguments(scenario, tmp_path / "whole"), monkeypatch)
    seconds = time.monotonic() - began
    left, tensors = left_by(tmp_path / "whole")

    rng, kills, wanted = random.Random(scenario), 0, 50 if full else 3
    for number in count():
        folder = tmp_path / f"killed{number}"
        finished = folder / "log" / "run" / "finished"
        while not finished.exists():
            inside_tasks = rng.choice([[], ["--checkpoint-minutes", "0.002"]])
            process = FORKS.Process(target=main.main, args=([*arguments(scenario, folder), *inside_tasks],))
            process.start()
            if kills < wanted:
                wait_for_a_moment(rng, folder, seconds / 2)
                process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL or finished.exists()
            kills += process.exitcode == -signal.SIGKILL
        assert same_tensors(run_and_look(arguments(scenario, folder), monkeypatch), logits)
        again, its_tensors = left_by(folder)
        assert again == left and same_tensors(its_tensors, tensors)
        if kills >= wanted:
            break
    with capsys.disabled():
        if full:
            print(f"\n{scenario}: {kills} kills over {number + 1} runs of {seconds:.1f} s")
