"""Piggyback, WSN, PackNet and ExSSNeT: what each promises of its weights and masks, and the way back from the disk."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from models import MODELS, SIBLINGS, Builder, masks, multitask, siblings
from tests import batches
from tests.batches import BatchList
from tests.tiny import Tiny, call_main, outcome
from trainers.default import DefaultTrainer
from trainers.halves import HalvesTrainer
from trainers.options import TrainingOptions
from utils.seeding import generator

TASKS = 4
X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
HALVES = {"PackNetConv", "ExSSNeTConv"}


class Batches(BatchList):
    """Ten batches of images, whose labels are those of a task."""

    def __init__(self, task: int):
        self.y = torch.randint(0, 5, (len(X),), generator=torch.Generator().manual_seed(task))
        super().__init__([(X, self.y)] * 10)


def learned(kind):
    """The network after every task: its weights, masks and logits of each learned task; the model; its first weights.

    The optimiser has momentum and weight decay, which move also what has no gradient.
    """
    rng = partial(generator, 0)
    model = Tiny(Builder(rng, TASKS, kind, conv_init="kaiming_normal", sparsity=0.3), X.shape[1:], 10)
    options = TrainingOptions(epochs=1, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-2, num_tasks=TASKS)
    trainer = (HalvesTrainer if kind in HALVES else DefaultTrainer)(model, options, rng)
    first, states = weights(model), []
    for task in range(TASKS):
        trainer.begin_tasks([task])
        losses = list(trainer.learn(Batches(task)))
        assert losses[0][0] > 0
        model.eval()
        with torch.no_grad():
            in_training = model(X)
        list(trainer.end_tasks())
        states.append(
            (weights(model), [bits(model, t) for t in range(task + 1)], [logits(model, t) for t in range(task + 1)])
        )
        assert torch.equal(in_training, states[-1][2][task]), "a task answers in training as when it is selected"
    return first, states


def weights(model):
    layers = [module.weight for _, module in multitask.named(model, siblings.TrainedMaskConv)]
    return torch.cat([weight.flatten() for weight in layers]).clone()


def bits(model, task):
    layers = [module for _, module in multitask.named(model, siblings.TrainedMaskConv)]
    return torch.cat([masks.unpack(layer.packed[task], layer.weight.numel()) for layer in layers]).bool()


logits = partial(batches.logits, x=X)


@pytest.fixture(scope="module")
def runs():
    torch.set_num_threads(1)
    return {kind: learned(kind) for kind in SIBLINGS}


@pytest.mark.parametrize("kind", SIBLINGS)
def test_later_tasks_change_no_bit_of_earlier_ones_and_a_weight_has_one_task_that_trained_it(kind, runs):
    before, states = runs[kind]
    changes = torch.zeros(len(before), dtype=torch.int64)
    taken = torch.zeros(len(before), dtype=torch.bool)
    for task, (after, its_bits, answers) in enumerate(states):
        changed = after != before
        assert not (changed & taken).any() and not (changed & ~its_bits[task]).any()
        assert changed.any() == (kind != "PiggybackConv" or task == 0)
        changes += changed
        taken |= its_bits[task]
        for earlier, answer in enumerate(states[max(0, task - 1)][2]):
            assert torch.equal(answers[earlier], answer)
        before = after
    assert changes.max() == 1
    assert F.cross_entropy(states[-1][2][-1], Batches(TASKS - 1).y) < 2.3, "the last one has learned something"


def test_piggyback_finds_other_masks_over_the_weights_that_the_first_task_left(runs):
    _, states = runs["PiggybackConv"]
    assert all(torch.equal(weight, states[0][0]) for weight, _, _ in states)
    masks_in_the_end = states[-1][1]
    assert masks_in_the_end[0].all() and not masks_in_the_end[1].all()
    assert not torch.equal(masks_in_the_end[1], masks_in_the_end[2])


@pytest.mark.parametrize("kind", ["WSNConv", "ExSSNeTConv"])
def test_tasks_use_weights_of_earlier_ones_again(kind, runs):
    first, second = runs[kind][1][-1][1][:2]
    assert (first & second).any() and (second & ~first).any()
    assert first.float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_packnet_parts_the_weights_and_each_task_sees_its_own_and_those_before(runs):
    seen = runs["PackNetConv"][1][-1][1]
    free = 1.0
    for earlier, later in zip([torch.zeros_like(seen[0]), *seen], seen, strict=False):
        assert not (earlier & ~later).any()
        assert (later & ~earlier).float().mean().item() == pytest.approx(0.3 * free, abs=0.01)
        free *= 0.7


STOPS = [("PiggybackConv", 3), ("WSNConv", 3), ("PackNetConv", 3), ("PackNetConv", 7), ("ExSSNeTConv", 7)]


@pytest.mark.parametrize("kind, batches", STOPS)  # of ten: in the first half of the second task, or in the second
def test_a_run_that_was_stopped_inside_a_task_comes_to_the_same_bits(kind, batches, monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    words = (
        f"--conv-type {kind} --conv-init kaiming_normal --sparsity 0.3 --lr 1e-3 --num-tasks 2 --iter-lim 10".split()
    )
    words += ["--trainer", "halves" if kind in HALVES else "default"]
    assert call_main(tmp_path / "whole", *words) == 0
    step, done = DefaultTrainer.step, []

    def count(self, x, y):
        if len(done) == 10 + batches and not (tmp_path / "cut" / "run" / "stopped").exists():
            (tmp_path / "cut" / "run" / "stopped").touch()
            raise MemoryError
        done.append(self.batches_done)
        return step(self, x, y)

    monkeypatch.setattr(DefaultTrainer, "step", count)
    assert call_main(tmp_path / "cut", *words, "--checkpoint-minutes", 0) == 1
    assert call_main(tmp_path / "cut", *words, "--resume") == 0
    assert done == [*range(10), *range(10)], "no batch was learned from again"
    whole, cut = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    assert whole[1:] == cut[1:] and whole[0].keys() == cut[0].keys()
    assert all(torch.equal(value, cut[0][name]) for name, value in whole[0].items())


@pytest.mark.parametrize("kind", SIBLINGS)
def test_masks_and_weights_come_through_an_export(kind, monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    words = f"--conv-type {kind} --conv-init kaiming_normal --sparsity 0.3 --num-tasks 3 --iter-lim 10".split()
    words += ["--trainer", "halves" if kind in HALVES else "default"]
    file = tmp_path / "learned"
    assert call_main(tmp_path / "one", *words, "--export", file) == 0
    assert call_main(tmp_path / "other", *words, "--import", file) == 0
    scores = [(tmp_path / name / "run" / "adapt_results.csv").read_text() for name in ("one", "other")]
    assert scores[0] == scores[1] and len(scores[0].splitlines()) == 4


@pytest.mark.parametrize(
    "words, why",
    [
        ("--trainer halves --conv-type WSNConv", "--trainer halves: is for"),
        ("--trainer default --conv-type PackNetConv", "say --trainer halves"),
        ("--trainer reinit --conv-type WSNConv", "--trainer reinit: goes with no"),
        ("--tasks-in-parallel 2 --conv-type WSNConv", "a task builds on those before it"),
        ("--task-eval 1 --conv-type PiggybackConv", "--task-eval 1: "),
        ("--sparsity 2 --conv-type PackNetConv", "--sparsity 2.0: is a fraction"),
    ],
)
def test_what_they_cannot_do_is_one_line(words, why, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    assert call_main(tmp_path, *words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line and not list(tmp_path.iterdir())
