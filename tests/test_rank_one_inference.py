"""Inference over rank-one matrices, ABatchE and gradient descent, each against its slow and obvious form."""

from functools import partial

import pytest
import torch

from models import Builder, get_model, multitask, superposition
from trainers import ADAPTORS, inference
from trainers.options import InferenceOptions
from utils.seeding import generator

SHAPE, OUTPUTS, TASKS = (1, 6, 6), 8, 6
KINDS = ["VectorizedBatchEnsembles", "BatchEnsembles", "FastMultitaskMaskConv"]


@pytest.fixture(params=KINDS)
def model(request):
    builder = Builder(partial(generator, 0), TASKS, request.param, conv_init="kaiming_normal")
    model = get_model("LeNet", builder, SHAPE, OUTPUTS)
    for task in range(TASKS):
        multitask.begin_task(model, task, partial(generator, 0))
        with torch.no_grad():
            for name, parameter in multitask.task_parameters(model).items():
                parameter.add_(torch.randn(parameter.shape, generator=generator(name, task)) * 0.3)
        multitask.end_task(model)
    return model


def weights_of(model, task):
    """The weight matrix of each layer for a task, told by what the layer does with unit vectors."""
    multitask.select_task(model, task)
    layers = [layer for layer in model.layers if hasattr(layer, "weight")]
    return [layer(torch.eye(layer.weight.shape[1])[:, :, None, None]).flatten(1).T.detach() for layer in layers]


def slow_logits(weights, alphas, x):
    """The network with the explicit sum over tasks as its weights."""
    hidden = x.flatten(1)
    for number, matrices in enumerate(zip(*weights, strict=True)):
        mixed = sum(alpha * matrix for alpha, matrix in zip(alphas, matrices, strict=True))
        hidden = hidden @ mixed.T
        hidden = hidden.relu() if number < 2 else hidden
    return hidden


def slow_gradient(weights, alphas, x):
    alphas = alphas.clone().requires_grad_()
    return torch.autograd.grad(inference.entropy(slow_logits(weights, alphas, x)), alphas)[0]


def batches():
    return torch.randn(5, 3, *SHAPE, generator=generator("batches"))


def test_coefficient_gradients_are_those_of_autograd_through_the_explicit_sum(model):
    tasks = [4, 0, 5, 2]
    weights = [weights_of(model, task) for task in tasks]
    for alphas in (torch.full((4,), 0.25), torch.rand(5, 4, generator=generator("alphas")).softmax(1)):
        fast = inference.alpha_gradients(model, tasks, alphas, batches(), inference.entropy, tile_bytes=50_000)
        slow = torch.stack(
            [slow_gradient(weights, alphas if alphas.ndim == 1 else alphas[i], x) for i, x in enumerate(batches())]
        )
        assert ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-4, "float32"


@pytest.mark.bits
def test_a_superposition_does_not_change_what_a_task_answers(model):
    x = batches()[0]
    multitask.select_task(model, 3)
    before = model(x)
    superposition.superpose(model, [0, 3], torch.tensor([0.5, 0.5]))
    assert not torch.equal(model(x), before)
    multitask.select_task(model, 3)
    assert torch.equal(model(x), before)


def test_gradient_descent_is_that_of_equation_3_step_by_step(model):
    tasks, lr, steps = list(range(TASKS)), 0.05, 4
    weights = [weights_of(model, task) for task in tasks]
    fast = inference.gradient_descent(model, tasks, batches(), inference.entropy, lr, steps)
    for x, chosen in zip(batches(), fast.tolist(), strict=True):
        alphas = torch.full((TASKS,), 1 / TASKS)
        for _ in range(steps):
            gradient = slow_gradient(weights, alphas, x)
            alphas = (alphas - lr * (gradient - gradient.mean())).clamp(min=0)
            alphas = alphas / alphas.sum()
        assert chosen == int(alphas.argmax())


def test_one_step_of_gradient_descent_is_one_shot_inference(model):
    tasks = [5, 1, 3]
    descent = inference.gradient_descent(model, tasks, batches(), inference.entropy, lr=0.01, steps=1)
    assert torch.equal(descent, inference.one_shot(model, tasks, batches(), inference.entropy))


@pytest.mark.parametrize("adaptor", ["se_be_adapt", "se_be_max_adapt"])
def test_every_task_answers_every_image_and_the_surest_is_chosen(model, adaptor, monkeypatch):
    monkeypatch.setattr(inference, "IMAGE_BYTES", 2 * batches()[0].nbytes)
    tasks = [2, 5, 0]
    fast = ADAPTORS[adaptor].load()(model, tasks, batches(), InferenceOptions())
    for x, chosen in zip(batches(), fast.tolist(), strict=True):
        doubts = []
        for task in tasks:
            multitask.select_task(model, task)
            p = model(x).softmax(dim=1)
            mean_entropy = -(p * p.log()).sum(dim=1).mean()
            doubts.append((mean_entropy if adaptor == "se_be_adapt" else -p.max(dim=1).values.mean()).item())
        assert chosen == tasks[doubts.index(min(doubts))]
