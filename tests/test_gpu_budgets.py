"""How many kernels a GPU would be given, and how often the host would wait for it: counted on the processor."""

from collections import Counter
from functools import partial

import pytest
import torch
from device import DEVICE, second_device
from tiny import RUNS, Tiny, TinyBN, call_main

from data import DATASETS
from models import MODELS, Builder, get_model, multitask
from models.masked import Masked
from tests.batches import BatchList
from tests.calls import Calls
from trainers import hopfield, run
from trainers.default import DefaultTrainer
from trainers.evaluation import evaluate
from trainers.inference import entropy, one_shot
from trainers.nns import NNsTrainer
from trainers.options import TrainingOptions
from trainers.several import SeveralTrainer
from utils.seeding import generator


def test_what_is_counted():
    x = torch.randn(4, 4)
    with Calls() as calls:
        torch.relu(x.T.flatten(0, 0).add(1)).sum().item()
    assert calls.kernels == {"add": 1, "relu": 1, "sum": 1, "_local_scalar_dense": 1}
    assert calls.waits == {"_local_scalar_dense": 1}


@pytest.fixture(scope="module")
def lenet():
    """LeNet on 64 permutations of digits, and their data."""
    data = DATASETS["DigitsPerm"](num_tasks=64)
    rng = partial(generator, 0)
    model = get_model("LeNet", Builder(rng, 64), data.input_shape, 100)
    return data, model, rng


@pytest.mark.parametrize("at_once", [1, 8, 64])
def test_a_step_of_lenet_and_its_end_cost_the_same_for_any_number_of_tasks(at_once, lenet):
    data, model, rng = lenet
    tasks = range(at_once)
    kind = DefaultTrainer if at_once == 1 else SeveralTrainer
    trainer = kind(model, TrainingOptions(epochs=1), rng)
    batches, _ = data.loaders(tasks)
    trainer.begin_tasks(tasks)
    trainer.train(BatchList([next(iter(batches))]), 0)
    batches.set_epoch(0)
    served = iter(batches)
    next(served)  # what an epoch costs once: its order
    with Calls() as step:
        trainer.step(*next(served))
    assert step.kernels.total() <= 50 and not step.waits
    with Calls() as end:
        assert len(list(trainer.end_tasks())) == at_once
    assert end.kernels.total() <= 70 and not end.waits


@pytest.mark.parametrize("name", RUNS)
def test_no_step_waits_for_the_device(name, tmp_path, monkeypatch):
    """But for the decision of an NNs learner, on which all that follows depends."""
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    monkeypatch.setitem(MODELS, "TinyBN", TinyBN)
    kind = NNsTrainer if name.startswith("nns") else DefaultTrainer
    step, waits = kind.step, []

    def counted(trainer, x, y):
        decides = kind is NNsTrainer and trainer._batches_seen % trainer.options.nns_every == 0
        with Calls() as calls:
            losses = step(trainer, x, y)
        if not decides:
            waits.append(calls.waits.total() + calls.transfers)
        return losses

    monkeypatch.setattr(kind, "step", counted)
    assert call_main(tmp_path, *RUNS[name].split()) == 0
    assert len(waits) >= 40 and not any(waits)


@pytest.mark.parametrize("at_once, most", [(1, 1), (4, 2)])
def test_learned_tasks_are_tested_and_evaluated_in_few_passes(at_once, most, tmp_path, monkeypatch):
    """A task's ten batches are one pass; what was measured when it was just learned is not measured again."""
    passes = Counter()

    class Counted(Tiny):
        def forward(self, x):
            passes[self.training] += 1
            return super().forward(x)

    monkeypatch.setitem(MODELS, "Tiny", Counted)
    words = f"--num-tasks 4 --epochs 1 --iter-lim 3 --test-batch-size 36 --tasks-in-parallel {at_once} --adaptor gt"
    with second_device(monkeypatch):
        assert call_main(tmp_path, *words.split()) == 0
    assert 0 < passes[False] <= 4 * most


@pytest.mark.parametrize("name, again", [("at once", 0), ("hopsupsup", 3), ("trained weights", 2)])
def test_what_is_not_measured_again_would_be_the_same(name, again, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    monkeypatch.setitem(MODELS, "TinyBN", TinyBN)
    unknown = []

    def both(model, data, tasks, *more, known, **how):
        scores = evaluate(model, data, tasks, *more, known=known, **how)
        assert scores == evaluate(model, data, tasks, *more, **how)
        unknown.append(len(tasks) - len(known))
        return scores

    monkeypatch.setattr(run, "evaluate", both)
    assert call_main(tmp_path, *RUNS[name].split()) == 0
    assert unknown == [again]


def test_a_decision_of_nns_waits_twice(tmp_path, monkeypatch):
    """For whether all masks have one coefficient, and for the derivatives; more only where another mask is chosen."""
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    decide, counted = NNsTrainer._decide, []

    def count(trainer, x):
        before = trainer._current
        with Calls(DEVICE) as calls:
            decide(trainer, x)
        counted.append((trainer._current == before, calls.waits.total(), calls.kernels.total()))

    monkeypatch.setattr(NNsTrainer, "_decide", count)
    with second_device(monkeypatch):
        assert call_main(tmp_path, *RUNS["nns"].split(), "--num-tasks", "2", "--epochs", "1", "--iter-lim", "24") == 0
    assert {stays for stays, _, _ in counted} == {True, False}
    for stays, waits, kernels in counted:
        assert waits <= (2 if stays else 30) and kernels <= 200, (stays, waits, kernels)


STEPS = {
    "PSP": dict(conv_type="PSPRotation", conv_init="default", train_weight_tasks=-1),
    "BatchE": dict(conv_type="BatchEnsembles", conv_init="default", train_weight_tasks=1),
    "GEMResNet18": dict(conv_type="MultitaskMaskConv", bn_type="MultitaskNonAffineBN", sparsity=0.3),
}


@pytest.mark.parametrize("name, most", [("PSP", 40), ("BatchE", 60), ("GEMResNet18", 400)])
def test_steps_of_other_networks(name, most, monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    how = dict(STEPS[name])
    options, shape = TrainingOptions(epochs=1, train_weight_tasks=how.pop("train_weight_tasks", 0)), (3, 32, 32)
    model = get_model(name if name in MODELS else "Tiny", Builder(partial(generator, 0), 1, **how), shape, 10)
    trainer = DefaultTrainer(model.train(), options, partial(generator, 0))
    trainer.begin_tasks([0])
    x, y = torch.randn(4, *shape, generator=generator(0)), torch.arange(4)
    trainer.step(x, y)
    with Calls() as calls:
        trainer.step(x, y)
    assert calls.kernels.total() <= most and not calls.waits and not calls.transfers


def test_recovery_waits_for_the_device_in_its_end_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    monkeypatch.setitem(MODELS, "TinyBN", TinyBN)
    recover, counted = hopfield.recover, []

    def count(model, loader, *more, **how):
        with Calls(DEVICE) as calls:
            steps = recover(model, loader, *more, **how)
        counted.append((len(steps) - 1, calls.kernels.total(), calls.waits.total()))
        return steps

    monkeypatch.setattr(hopfield, "recover", count)
    words = f"{RUNS['hopsupsup']} --epochs 1 --iter-lim 2 --num-tasks 2 --test-batch-size 10"
    with second_device(monkeypatch):
        assert call_main(tmp_path, *words.split()) == 0
    assert len(counted) == 2 and all(waits <= 4 and kernels <= 150 * steps for steps, kernels, waits in counted)


@pytest.mark.parametrize("tasks, most", [(250, 200), (2500, 500)])
def test_one_shot_inference_waits_once(tasks, most, monkeypatch):
    """For batches that go through together; masks are not screened, which would take a GPU thousands of calls."""
    data = DATASETS["DigitsPerm"](num_tasks=1)
    model = Tiny(Builder(partial(generator, 0), tasks), data.input_shape, 10)
    for name, layer in multitask.named(model, Masked):
        layer.packed.random_(0, 256, generator=generator(0, name))
        layer.learned.update(range(tasks))
    images = torch.rand(16, 1, *data.input_shape, generator=generator(0))
    with second_device(monkeypatch):
        model, images = model.to(DEVICE).eval(), images.to(DEVICE)
        with Calls(DEVICE) as calls:
            one_shot(model, range(tasks), images, entropy, infer="auto")
    assert calls.kernels.total() <= most and calls.waits.total() <= 1
