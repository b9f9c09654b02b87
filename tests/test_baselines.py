"""The baselines as a user runs them: each learns, is stored and resumed, and is scored as its script says."""

import csv

import pytest

import main
from utils.checkpoint import Checkpoint

DIGITS = "--threads 1 --log-dir runs --name run --num-tasks 2 --epochs 4 --output-size 10"
BATCHE = (
    "--conv-type VectorizedBatchEnsembles --conv-init kaiming_normal --train-weight-tasks 1 --train-weight-lr 1e-3 "
)
BATCHE += "--optimizer adam --lr 1e-2"
PSP = "--conv-type PSPRotation --conv-init xavier_normal --train-weight-tasks -1 --train-weight-lr 1e-3 --adaptor gt"
PLAIN = (
    "--conv-type StandardConv --conv-init kaiming_normal --train-weight-tasks -1 --train-weight-lr 1e-3 --adaptor gt"
)
HOPFIELD = "--set SplitDigits --model BNNet --conv-type StandardConv --bn-type FastHopMaskBN --optimizer sgd --lr 0.1 "
HOPFIELD += "--batch-size 32 --test-batch-size 8 --adaptor hopfield_recovery --width-mult 0.25"
RUNS = {
    "HopSupSup": HOPFIELD,
    "BatchE, given": f"{BATCHE} --adaptor gt",
    "BatchE, one-shot": f"{BATCHE} --adaptor se_oneshot_entropy_minimization --unshared-labels",
    "BatchE, every task tried": f"{BATCHE} --adaptor se_be_adapt",
    "BatchE, surest answer": f"{BATCHE} --adaptor se_be_max_adapt",
    "SupSup, gradient descent": "--adaptor se_gradient_minimization --adapt-steps 2 --lr 1e-3",
    "PSP": PSP,
    "upper bound": f"{PLAIN} --score-when-learned",
    "lower bound": f"{PLAIN} --individual-heads",
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_baseline_learns_digits_and_goes_on_where_it_was(kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [*DIGITS.split(), *RUNS[kind].split()]
    assert main.main(words) == 0
    scores = tmp_path / "runs" / "run" / "adapt_results.csv"
    with open(scores) as file:
        table, text = list(csv.DictReader(file)), scores.read_text()
    assert all(float(row["given"]) > 0.3 for row in table), "far better than the 0.1 of chance"
    assert all((row["adapted"] == "") == ("--adaptor gt" in RUNS[kind]) for row in table)
    # The last record is the evaluation: without it, the run must come to the same from what it has stored.
    path = tmp_path / "runs" / "run" / "checkpoint.pt"
    records, _ = Checkpoint(path).read()
    assert records[-1].kind == "evaluation"
    Checkpoint(path).cut(len(records[-1].to_bytes()))
    scores.unlink()
    assert main.main([*words, "--resume"]) == 0
    assert scores.read_text() == text
