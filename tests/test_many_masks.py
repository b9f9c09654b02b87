"""What is counted once among many masks, and single losses by tables of sums, against their obvious forms."""

import random
from functools import partial

import pytest
import torch
from test_inference import FAST, SmallConvolutional, random_tasks

from models import Builder, masked, masks, multitask, stacked, superposition
from trainers import inference
from utils.seeding import generator


def layers_of(model) -> list[masked.Masked]:
    return [layer for _, layer in multitask.named(model, masked.Masked)]


def learn_anew(model, task: int, seed: int) -> None:
    multitask.begin_task(model, task, partial(generator, "anew", seed))
    multitask.end_task(model)


def superposed(model, tasks) -> list[torch.Tensor]:
    superposition.superpose(model, tasks, inference.uniform(len(tasks), "cpu"))
    return [layer.effective.clone() for layer in layers_of(model)]


def counted(layer: masked.Masked, tasks) -> torch.Tensor:
    """How many masks keep each weight, one mask after the other."""
    return sum(masks.unpack(layer.packed[task], layer.weight.numel(), torch.int32) for task in tasks)


@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_the_mean_of_more_masks_than_a_byte_counts_is_their_superposition(kind):
    model, _ = random_tasks(kind, 260)
    tasks = [*range(259, -1, -1), *range(260)]
    for layer, mean in zip(layers_of(model), superposed(model, tasks), strict=True):
        assert torch.equal(layer.census.kept, counted(layer, tasks))
        assert torch.allclose(mean, layer.superposition(tasks, torch.full((520,), 1 / 520)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["fc", "conv", "in a file"])
@pytest.mark.parametrize("seed", range(3))
def test_counts_follow_whatever_becomes_of_the_masks(kind, seed, monkeypatch):
    if kind == "in a file":
        monkeypatch.setattr(multitask, "is_large", lambda size: True)
    model, _ = random_tasks("conv" if kind == "conv" else "fc", 9)
    multitask.make_room(model, 10)
    rng, tasks = random.Random(seed), list(range(5))
    for turn in range(80):
        what = rng.choice(["learn", "two", "one more", "other tasks", "load", "by hand", "weight", "room", "stop"])
        if what == "learn":
            learn_anew(model, rng.randrange(9), turn)
        elif what == "two":
            some = rng.sample(range(9), 2)
            stacked.end_tasks(model, some, stacked.begin_tasks(model, some, partial(generator, "two", turn)))
        elif what == "one more":
            tasks = [*tasks, rng.randrange(9)][:12]
        elif what == "other tasks":
            tasks = rng.choices(range(9), k=rng.randrange(1, 12))
        elif what == "load":
            state = {name: bits.clone() for name, bits in multitask.task_state(model, rng.randrange(9)).items()}
            multitask.load_task_state(model, rng.randrange(9), state)
        elif what == "by hand":
            layers_of(model)[0].packed[rng.randrange(9)] ^= 5
        elif what == "weight":
            layers_of(model)[0].weight.mul_(1.25)
        elif what == "room":
            multitask.make_room(model, layers_of(model)[0].num_tasks + 1)
        elif what == "stop":  # in the middle of counting
            with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
                stopping.setattr(masks, "tile_bytes", lambda device: 1)  # a mask at a time
                left = [2]
                stopping.setattr(masks, "unpack", partial(stop_after, masks.unpack, left))
                superposed(model, [*tasks, 0, 1, 2])
        if rng.random() < 0.7:
            for layer, mean in zip(layers_of(model), superposed(model, tasks), strict=True):
                wanted = (counted(layer, tasks) / len(tasks)).view_as(layer.weight) * layer.weight
                assert torch.equal(mean, wanted), (turn, what)


def stop_after(call, left: list[int], *given):
    left[0] -= 1
    if left[0] < 0:
        raise KeyboardInterrupt
    return call(*given)


def test_counts_made_in_inference_mode_are_of_use_outside():
    model, _ = random_tasks("fc", 9)
    with torch.inference_mode():
        superposed(model, range(5))
    learn_anew(model, 3, 0)
    for layer, mean in zip(layers_of(model), superposed(model, range(8)), strict=True):
        assert torch.equal(mean, (counted(layer, range(8)) / 8).view_as(layer.weight) * layer.weight)


@pytest.mark.parametrize("place", ["in memory", "in a file"])
def test_only_masks_that_are_new_are_counted(place, monkeypatch):
    if place == "in a file":
        monkeypatch.setattr(multitask, "is_large", lambda size: True)
    model, _ = random_tasks("fc", 9)
    multitask.make_room(model, 10)
    found, rows = [], masked.Masked._rows
    monkeypatch.setattr(masked.Masked, "_rows", lambda layer, tasks: found.append(list(tasks)) or rows(layer, tasks))
    superposed(model, range(6))
    learn_anew(model, 3, 0)  # is selected in the end, by a mask of its own
    learn_anew(model, 7, 0)
    found.clear()
    superposed(model, range(6))
    assert found == []
    superposed(model, range(8))
    assert found == [[6, 7]] * 3


@pytest.mark.parametrize("images", [1, 7], ids=["one image", "several"])
@pytest.mark.parametrize("losses", [1, 3])
@pytest.mark.parametrize("kind", ["fc", "conv", "odd"])
def test_tables_give_the_derivatives_of_unpacked_masks(kind, losses, images, monkeypatch):
    """Also of units whose bits are no whole bytes, and of tables that end in the middle of a unit."""
    for name, value in {"TABLED": 4, "TABLES": 2, "TOGETHER": 12}.items():
        monkeypatch.setattr(masked, name, value)
    if kind == "odd":  # 3 * 3 * 3 bits a unit
        builder, shape = Builder(partial(generator, 2), 40), (3, 6, 6)
        model = SmallConvolutional(builder, shape, 9).eval()
        for task in range(40):
            learn_anew(model, task, task)
    else:
        model, shape = random_tasks(kind, 40)
    tasks = [7, 39, *range(30, 0, -1)]
    batches, alphas = torch.randn(losses, images, *shape, generator=generator("tables")), inference.uniform(32, "cpu")
    found = {}
    for single in (10**9, 1):  # unpacked, tables
        monkeypatch.setattr(masks, "SINGLE", single)
        tabled, calls = masked.Masked._tabled_products, []
        monkeypatch.setattr(
            masked.Masked, "_tabled_products", lambda *given, form=tabled, calls=calls: calls.append(1) or form(*given)
        )
        for name, objective in FAST.items():
            found[single, name] = inference.alpha_gradients(model, tasks, alphas, batches, objective)
        assert bool(calls) == (single == 1)
    for name in FAST:
        slow, fast = found[10**9, name], found[1, name]
        assert ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-5


def test_by_tables_equal_masks_have_equal_derivatives(monkeypatch):
    """To the bit, so that of them the first is inferred; and no bf16 comes before them."""
    model, shape = random_tasks("fc", 300)
    for task in range(150, 300):
        multitask.load_task_state(model, task, multitask.task_state(model, task - 150))
    tabled, calls = masked.Masked._tabled_products, []
    monkeypatch.setattr(masked.Masked, "_tabled_products", lambda *given: calls.append(1) or tabled(*given))
    batches, alphas = torch.randn(1, 4, *shape, generator=generator("equal")), inference.uniform(300, "cpu")
    first, second = inference.alpha_gradients(model, range(300), alphas, batches, inference.entropy)[0].split(150)
    assert torch.equal(first, second) and len(calls) == 3
    monkeypatch.setattr(superposition, "COARSE_FROM", 1)
    monkeypatch.setattr(superposition, "coarse_products_pay", lambda device: True)
    assert inference.one_shot(model, range(300), batches, inference.entropy).tolist() == [int(first.argmin())]
    assert len(calls) == 6


def test_tables_of_whole_gradients_are_those_of_their_factors(monkeypatch):
    monkeypatch.setattr(masks, "SINGLE", 1)
    model, shape = random_tasks("conv", 20)
    batches, alphas = torch.randn(2, 3, *shape, generator=generator("whole")), inference.uniform(20, "cpu")
    factors = inference.alpha_gradients(model, range(20), alphas, batches, inference.entropy)
    whole = inference._alpha_gradients_whole(model, range(20), alphas, batches, inference.entropy, 2**20, None)
    assert torch.allclose(whole, factors, rtol=1e-4, atol=1e-7)
