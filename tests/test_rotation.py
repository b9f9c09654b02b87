"""PSP: rotations are Haar-random, made again from their keys, and never kept for all tasks."""

from functools import partial

import pytest
import torch

from models import Builder, get_model, multitask
from models.rotation import CACHED_ROTATIONS, haar_rotation
from utils.seeding import generator

SHAPE, OUTPUTS = (1, 6, 6), 5


def network(num_tasks: int):
    builder = Builder(partial(generator, 0), num_tasks, "PSPRotation", conv_init="xavier_normal")
    return get_model("LeNet", builder, SHAPE, OUTPUTS)


def test_a_rotation_is_orthogonal_and_its_own_generators():
    rotation = haar_rotation(40, generator("a"))
    assert torch.allclose(rotation @ rotation.T, torch.eye(40), atol=1e-5)
    assert torch.equal(rotation, haar_rotation(40, generator("a")))
    assert not torch.equal(rotation, haar_rotation(40, generator("b")))


def test_rotations_favour_no_direction():
    # Without the signs of R's diagonal, QR gives a Q whose diagonal is negative more often than not.
    many = torch.stack([haar_rotation(3, generator("many", index)) for index in range(2000)])
    assert many.mean(dim=0).abs().max() < 0.05, "the mean of every entry is 0, with standard deviation 0.013 here"
    assert (many.square().mean(dim=0) - 1 / 3).abs().max() < 0.03


def test_logits_are_those_of_the_naive_form_that_keeps_every_rotation():
    tasks, numbers = 10, generator("images")
    model, x = network(tasks), torch.randn(7, *SHAPE, generator=numbers)
    weights = [layer.weight.flatten(1) for layer in model.layers if hasattr(layer, "weight")]
    kept = [
        [
            haar_rotation(weight.shape[1], generator(0, "rotation", number, task))
            for number, weight in enumerate(weights)
        ]
        for task in range(tasks)
    ]
    for task in [*range(tasks), 3, 0]:
        multitask.select_task(model, task)
        hidden = x.flatten(1)
        for number, (weight, rotation) in enumerate(zip(weights, kept[task], strict=True)):
            hidden = hidden @ rotation.T @ weight.T
            hidden = hidden.relu() if number < 2 else hidden
        assert torch.allclose(model(x), hidden, atol=1e-5), "floating-point sums in another order"


def test_only_a_few_rotations_are_in_memory_and_none_in_the_checkpoint():
    model = network(250)
    for task in range(20):
        multitask.select_task(model, task)
    for layer in multitask.named(model, multitask.MultitaskModule):
        assert layer[1]._rotation_of.cache_info().currsize == CACHED_ROTATIONS
    assert multitask.task_state(model, 3) == {}
    assert sorted(multitask.shared_state(model)) == [f"layers.{i}.weight" for i in (0, 2, 4)]


def test_tasks_are_range_checked_and_a_layer_does_not_compute_before_it_knows_one():
    model = network(2)
    with pytest.raises(RuntimeError, match="begun or selected"):
        model(torch.zeros(1, *SHAPE))
    for task in (-1, 2):
        with pytest.raises(IndexError):
            multitask.select_task(model, task)
