"""Screened one-shot inference against the exact form, also on masks made to be hard to tell apart."""

from functools import partial

import pytest
import torch
from test_inference import FAST, float_masks, random_tasks, sizes, slow_gradient

from models import Builder, get_model, multitask, superposition
from trainers import inference, screening
from utils.seeding import generator


def derivatives(model, tasks, batches, **words):
    alphas = inference.uniform(len(tasks), "cpu")
    return inference.alpha_gradients(model, tasks, alphas, batches, inference.entropy, **words)


@pytest.mark.parametrize("images", [1, 5], ids=["one image", "several"])
@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_units_that_have_a_gradient_make_the_whole_derivative(kind, images):
    model, shape = random_tasks(kind, 13)
    tasks, batches = [7, 2, 12, 0], torch.randn(6, images, *shape, generator=generator("units", kind))
    whole, alphas = derivatives(model, tasks, batches), inference.uniform(4, "cpu")
    dead = 0
    for members, x, g in inference._backward(model, tasks, alphas, batches, inference.entropy, 2**20, None):
        found, mean = torch.zeros(len(members), 4), 0
        for layer, inputs, gradients in superposition.factors(model, x, g):
            chosen = (gradients != 0).any(1)
            dead += int((~chosen).sum())
            layer.add_unit_gradients(tasks, inputs, gradients, chosen, found)
            mean = mean + layer.unit_moments(inputs, gradients)[0].sum(1)
        assert ((found - whole[members]).norm(dim=1) / whole[members].norm(dim=1)).max() < 1e-5
        assert torch.allclose(mean, whole[members].mean(1), atol=1e-6)
    assert dead > 0 or kind == "conv"


@pytest.mark.parametrize("images", [1, 5], ids=["one image", "several"])
@pytest.mark.parametrize("kind", ["fc", "conv"])
@pytest.mark.parametrize("masks", ["random", "one bit apart", "in pairs"])
@pytest.mark.parametrize("few", [64, 1], ids=["few masks could win", "too many"])
def test_screening_chooses_the_task_of_the_smallest_derivative(kind, images, masks, few, monkeypatch):
    monkeypatch.setattr(screening, "FEW", few)
    if few == 1:  # more rounds, in the end of all units, and everything in parts
        for name, value in {"MANY": 1000, "ALONE": 0, "MASKS": 16, "LOSSES": 4, "ABOVE": 128}.items():
            monkeypatch.setattr(screening, name, value)
    whole, calls = screening._whole, []
    monkeypatch.setattr(screening, "_whole", lambda *of: calls.append(of) or whole(*of))
    model, shape = random_tasks(kind, 60)
    for task in range(60):
        source = 0 if masks == "one bit apart" else task % 30 if masks == "in pairs" else task
        state = {name: bits.clone() for name, bits in multitask.task_state(model, source).items()}
        if masks == "one bit apart":
            bits = state[sorted(state)[task % len(state)]]
            bits[int(torch.randint(len(bits) - 1, (), generator=generator("bit", task)))] ^= 1 << task % 8
        multitask.load_task_state(model, task, state)
    batches = torch.randn(10, images, *shape, generator=generator("screened", kind))
    gradient = derivatives(model, range(60), batches)
    chosen = inference.one_shot(model, range(60), batches, inference.entropy, infer="screened")
    again = inference.one_shot(model, range(60), batches, inference.entropy, infer="screened")
    assert torch.equal(chosen, again) and bool(calls) == (few == 1)
    lead = gradient.gather(1, chosen[:, None])[:, 0] - gradient.amin(1)
    layers = [(weight.double(), bits.double()) for weight, bits in float_masks(model, 60)]
    alphas = torch.full((60,), 1 / 60, dtype=torch.float64)
    size = torch.tensor([sizes(model, kind, layers, alphas, x) for x in batches.double()])
    assert (lead <= 1e-6 * size).all(), "more than float32 rounds"
    if masks == "in pairs":
        assert (chosen < 30).all(), "of equal masks the first"


def test_screening_does_not_depend_on_the_size_of_a_gradient():
    model, shape = random_tasks("fc", 200)
    batches = torch.randn(64, 1, *shape, generator=generator("tiny"))
    alphas = inference.uniform(200, "cpu")
    for _, x, g in inference._backward(model, range(200), alphas, batches, inference.entropy, 2**28, None):
        tiny = {name: gradient * 2.0**-80 for name, gradient in g.items()}
        chosen = screening.smallest_derivatives(model, range(200), x, g)
        assert torch.equal(screening.smallest_derivatives(model, range(200), x, tiny), chosen)
        assert (g[next(iter(g))] != 0).any(), "and is left as it is"


def test_an_image_that_is_no_number_is_any_task_and_costs_the_others_nothing():
    model, shape = random_tasks("fc", 160)
    batches = torch.randn(5, 1, *shape, generator=generator("no number"))
    chosen = inference.one_shot(model, range(160), batches, inference.entropy, infer="screened")
    batches[2, 0, 0, 0, 0] = torch.nan
    broken = inference.one_shot(model, range(160), batches, inference.entropy, infer="screened")
    assert torch.equal(broken[[0, 1, 3, 4]], chosen[[0, 1, 3, 4]]) and 0 <= broken[2] < 160


def test_one_mask_and_no_gradient_are_the_first_task():
    model, shape = random_tasks("fc", 20)
    batches = torch.randn(3, 1, *shape, generator=generator("none"))
    for tasks, x in (([4], batches), ([4, 1, 7], torch.zeros_like(batches))):
        assert inference.one_shot(model, tasks, x, inference.entropy, infer="screened").tolist() == [4] * 3


def test_auto_screens_from_a_number_of_masks_on_and_only_masks():
    model, _ = random_tasks("fc", 2)
    few, many = range(screening.SCREENED - 1), range(screening.SCREENED)
    assert [screening.screens(model, tasks, "auto") for tasks in (few, many)] == [False, True]
    assert not screening.screens(model, many, "exact") and screening.screens(model, few, "screened")
    other = get_model("LeNet", Builder(partial(generator, 0), 2, "BatchEnsembles"), (1, 4, 4), 5)
    assert not screening.screens(other, many, "screened")


@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_inference_by_the_first_layers_is_autograd_through_their_masks_alone(kind):
    model, shape = random_tasks(kind, 9)
    batches, alphas = torch.randn(5, 3, *shape, generator=generator("first", kind)), torch.full((9,), 1 / 9)
    every = float_masks(model, 9)
    for layers in (1, 2):
        fixed = [(w, m if i < layers else m.mean(0).expand_as(m)) for i, (w, m) in enumerate(every)]
        slow = torch.stack([slow_gradient(model, kind, fixed, alphas, x, "entropy") for x in batches])
        fast = derivatives(model, range(9), batches, layers=layers)
        # The fixed layers add the same to the derivative of every task.
        slow, fast = (part - part.mean(1, keepdim=True) for part in (slow, fast))
        assert ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-4
        chosen = inference.one_shot(model, range(9), batches, FAST["entropy"], layers=layers)
        assert chosen.tolist() == slow.argmin(1).tolist()
