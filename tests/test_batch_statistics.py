"""Task inference through batch norm: the whole test batch goes through the network, its first images decide."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import main
from models import Builder, get_model, multitask
from tests.test_main import rows
from trainers import adaptors, evaluation, inference
from trainers.evaluation import evaluate
from trainers.options import InferenceOptions
from utils.seeding import generator

RNG = partial(generator, 5)
TASKS, REAL_NEURONS = 4, 3
OBJECTIVES = {"H": inference.entropy, "G": partial(inference.superfluous, real_neurons=REAL_NEURONS)}


class Smooth(Builder):
    """Makes networks whose gradients have no steps, which rounding could fall on either side of: Swish for ReLU."""

    def activation(self):
        return nn.SiLU()


def with_random_masks(model):
    for task in range(TASKS):
        multitask.begin_task(model, task, RNG)
        multitask.end_task(model)
    return model.eval()


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name, shape", [("BNNet", (1, 6, 6)), ("GEMResNet18", (3, 32, 32))])
def test_gradients_are_those_of_autograd_through_the_whole_batch(name, shape, objective, first):
    model = with_random_masks(get_model(name, Smooth(RNG, TASKS, width_mult=0.5), shape, 8))
    batches = torch.randn(2, 6, *shape, generator=generator("images", name))
    of_first = inference.of_first(OBJECTIVES[objective], first)
    for alphas in (inference.uniform(TASKS, "cpu"), torch.rand(2, TASKS, generator=generator("alphas")).softmax(1)):
        fast = inference.alpha_gradients(model, range(TASKS), alphas, batches, of_first)
        pairs = zip(alphas.expand(2, TASKS), batches, strict=True)
        slow = torch.stack([inference.plain_gradient(model, range(TASKS), a, x, of_first) for a, x in pairs])
        assert ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-4


class Small(nn.Module):
    """A convolution with batch norm, and a head."""

    def __init__(self, builder):
        super().__init__()
        self.first, self.norm, self.head = builder.conv3x3(2, 6), builder.batchnorm(6), builder.conv1x1(6, 7)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.first(x))).mean((2, 3), keepdim=True)).flatten(1)


def plain_small(model, alphas, x):
    """``Small`` as superposed, written out with torch's own batch norm by the batch's statistics."""
    first, head = (
        sum(a * layer.superposition([task], torch.ones(1)) for task, a in enumerate(alphas))
        for layer in (model.first, model.head)
    )
    x = F.relu(F.batch_norm(F.conv2d(x, first, padding=1), None, None, training=True))
    return x.mean((2, 3)) @ head[:, :, 0, 0].T


class Data:
    """For each task 10 images in batches of 4, 4 and 2."""

    def __init__(self):
        scales = torch.arange(1, 11)[:, None, None, None]
        self.images = torch.randn(TASKS, 10, 2, 5, 5, generator=generator("data")) * scales

    def update_task(self, task):
        self.val_loader = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in self.images[task].split(4)]


@pytest.mark.parametrize("queue_bytes", [1, 2**20])
@pytest.mark.parametrize("first", [1, 3, 128])
@pytest.mark.parametrize("bn_type", ["MultitaskNonAffineBN", "StandardBN", "NonAffineBN", "NonAffineNoStatsBN"])
def test_batches_are_inferred_as_wholes_from_the_logits_of_their_first_images(bn_type, first, queue_bytes, monkeypatch):
    monkeypatch.setattr(evaluation, "QUEUE_BYTES", queue_bytes)
    model, data = with_random_masks(Small(Builder(RNG, TASKS, bn_type=bn_type))), Data()
    before = {name: value.clone() for name, value in multitask.shared_state(model).items()}
    for letter, objective in OBJECTIVES.items():
        kind = {"H": "entropy", "G": "g"}[letter]
        scores = evaluate(
            model, data, range(TASKS), f"se_oneshot_{kind}_minimization", InferenceOptions(first, REAL_NEURONS)
        )
        inferred = []
        for task in range(TASKS):
            data.update_task(task)
            taken = {}
            for x, _ in data.val_loader:
                alphas = inference.uniform(TASKS, "cpu").requires_grad_()
                gradient = torch.autograd.grad(objective(plain_small(model, alphas, x)[:first]), alphas)[0]
                taken[int(gradient.argmin())] = taken.get(int(gradient.argmin()), 0) + 1
            inferred.append([{"inferred": mask, "batches": count} for mask, count in sorted(taken.items())])
        assert [score.inferred for score in scores] == inferred
        if first < 128:  # or this would say nothing
            assert len({entry["inferred"] for taken in inferred for entry in taken}) > 1
    assert all(torch.equal(value, before[name]) for name, value in multitask.shared_state(model).items())


@pytest.mark.parametrize("adaptor", ["se_binary_entropy_minimization", "se_gradient_minimization"])
def test_every_step_of_inference_sees_whole_batches(adaptor, monkeypatch):
    model, data, seen, whole = with_random_masks(Small(Builder(RNG, TASKS))), Data(), set(), inference.alpha_gradients

    def remember(model, tasks, alphas, images, objective, **how):
        gradients = whole(model, tasks, alphas, images, objective, **how)
        for x, a, gradient in zip(images, alphas.expand(len(images), TASKS), gradients, strict=True):
            a = a.clone().requires_grad_()
            slow = torch.autograd.grad(inference.entropy(plain_small(model, a, x)[:1]), a)[0]
            torch.testing.assert_close(gradient, slow, rtol=1e-4, atol=1e-6)
            seen.add(len(x))
        return gradients

    monkeypatch.setattr(inference, "alpha_gradients", remember)
    evaluate(model, data, range(TASKS), adaptor, InferenceOptions(1))
    assert seen == {4, 2}


def test_not_more_batches_wait_than_memory_is_meant_for(monkeypatch):
    model, data, sizes, whole = with_random_masks(Small(Builder(RNG, TASKS))), Data(), [], inference.one_shot
    data.images = torch.randn(TASKS, 400, 2, 5, 5, generator=generator("many"))
    batch = data.images[0, :4].nbytes
    monkeypatch.setattr(evaluation, "QUEUE_BYTES", 7 * batch)
    monkeypatch.setattr(adaptors, "one_shot", lambda m, t, x, o, **how: sizes.append(x.nbytes) or whole(m, t, x, o))
    together = evaluate(model, data, range(TASKS), "se_oneshot_entropy_minimization", InferenceOptions())
    assert max(sizes) == 7 * batch and sum(sizes) == data.images.nbytes
    monkeypatch.setattr(evaluation, "QUEUE_BYTES", 2**30)
    again = evaluate(model, data, range(TASKS), "se_oneshot_entropy_minimization", InferenceOptions())
    # What a task answers when it is given is not disturbed by inference in the middle of its batches.
    assert [score.given for score in together] == [score.given for score in again]
    assert [score.inferred for score in together] == [score.inferred for score in again]


@pytest.mark.parametrize("bn_type", ["MultitaskNonAffineBN", "NonAffineNoStatsBN"])
@pytest.mark.parametrize("adaptor", ["se_be_adapt", "se_be_max_adapt"])
def test_members_answer_each_batch_by_itself(adaptor, bn_type):
    builder = Builder(RNG, TASKS, "VectorizedBatchEnsembles", bn_type, conv_init="default")
    model, data = with_random_masks(Small(builder)), Data()
    scores = evaluate(model, data, range(TASKS), adaptor, InferenceOptions(2))
    for task in range(TASKS):
        data.update_task(task)
        taken = {}
        for x, _ in data.val_loader:
            doubts = []
            for member in range(TASKS):
                multitask.select_task(model, member)
                p = model(x)[:2].softmax(1)
                doubts.append((-(p * p.log()).sum(1) if adaptor == "se_be_adapt" else -p.amax(1)).mean().item())
            chosen = doubts.index(min(doubts))
            taken[chosen] = taken.get(chosen, 0) + 1
        assert scores[task].inferred == [{"inferred": m, "batches": count} for m, count in sorted(taken.items())]


def test_a_run_with_batch_norm_infers_its_tasks(tmp_path):
    words = ["--model", "BNNet", "--num-tasks", "3", "--epochs", "2", "--data-to-repeat", "4", "--threads", "1"]
    assert main.main([*words, "--multigpu", "cpu", "--log-dir", str(tmp_path), "--name", "run"]) == 0
    scores = rows(tmp_path / "run" / "adapt_results.csv")
    given, adapted = (sum(float(row[name]) for row in scores) / 3 for name in ("given", "adapted"))
    assert given > 0.8 and adapted > given - 0.02
