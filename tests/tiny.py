"""Small runs for tests: their networks, their flags, and what comes of them."""

import csv

import main
from models.small import FullyConnected
from utils.checkpoint import Checkpoint

TINY = "--model Tiny --set DigitsPerm --num-tasks 3 --epochs 2 --iter-lim 20 --batch-size 100 --threads 1 "
TINY += "--multigpu cpu --name run"
RUNS = {
    "default": "--adaptor se_oneshot_entropy_minimization",
    "at once": "--tasks-in-parallel 2",
    "nns": "--trainer nns --nns-every 7 --lr 1e-3",
    "nns, one mask": "--trainer nns --nns-every 7 --lr 1e-3 --num-tasks 1 --stream-tasks 3",
    "reinit": "--trainer reinit --conv-type MultitaskMaskConv --sparsity 0.3 --adaptor gt --optimizer adam",
    "reinit by gradient": "--trainer reinit --reinit-adapt gradient --adaptor gt",
    "per-task batch norm": "--model TinyBN --bn-type MultitaskNonAffineBN --adaptor gt --lr-policy cosine_lr",
    "at once, batch norm": "--model TinyBN --bn-type MultitaskNonAffineBN --adaptor gt --tasks-in-parallel 2",
    "trained weights": "--model TinyBN --bn-type StandardBN --conv-type StandardConv --conv-init default "
    "--train-weight-tasks -1 --optimizer sgd --adaptor gt --warmup-length 1",
    "hopsupsup": "--set SplitDigits --model TinyBN --bn-type FastHopMaskBN --conv-type StandardConv --output-size 10 "
    "--adaptor hopfield_recovery --batch-size 25",
}


class Tiny(FullyConnected):
    """A small network."""

    def __init__(self, builder, input_shape, output_size):
        super().__init__(builder, (40, 40), input_shape, output_size)


class TinyBN(Tiny):
    """A small network with batch norm."""

    def between(self, builder, width):
        return [builder.batchnorm(width), builder.activation()]


def call_main(folder, *words):
    return main.main([*TINY.split(), "--log-dir", str(folder), *map(str, words)])


def outcome(folder, run="run"):
    """All that a run has learned and measured: tensors and values of the checkpoint, and the tables without dates."""
    records, damaged = Checkpoint(folder / run / "checkpoint.pt").read()
    assert damaged == 0
    tensors, values = {}, []
    for place, record in enumerate(records):
        tensors |= {(place, name): value for name, value in record.tensors.items()}
        rows = [record.values.get("row") or {}]
        values.append([record.kind, *(record.values.get(name) for name in ("task", "accuracy", "scores")), *rows])
    with open(folder / "results.csv", newline="") as file:
        values += list(csv.DictReader(file))
    for row in values:
        for name in ("Date Finished", "Name", "Save Directory"):
            (row if isinstance(row, dict) else row[-1]).pop(name, None)
    return tensors, values, (folder / run / "adapt_results.csv").read_text()
