"""A learned task costs one bit a weight, is never changed by a later one, and depends on its seed and number alone."""

import errno
import os
from functools import partial

import pytest
import torch

import main
from models import Builder, get_model, masked, multitask, stacked, superposition
from tests import batches
from tests.batches import BatchList, random_batches
from trainers.default import DefaultTrainer
from trainers.options import TrainingOptions
from utils import memory
from utils.seeding import generator

RNG = partial(generator, 3)
SHAPE = (1, 6, 6)


def network(num_tasks: int = 4, name: str = "LeNet", conv_type: str = "FastMultitaskMaskConv"):
    return get_model(name, Builder(RNG, num_tasks, conv_type), SHAPE, output_size=12)


class Batches(BatchList):
    """A few batches of random images, with the interface of a loader."""

    def __init__(self, task: int, count: int = 5):
        super().__init__(random_batches(generator("data", task), SHAPE, classes=10, count=count))


learn = partial(batches.learn, batches=Batches, rng=RNG)
logits = partial(batches.logits, x=Batches(0).batches[0][0])


@pytest.mark.bits
def test_what_is_learned_later_changes_no_bit_of_a_learned_task():
    model = learn(network(), [0, 1])
    before = [logits(model, task) for task in (0, 1)]
    learn(model, [2, 3])
    assert all(torch.equal(logits(model, task), before[task]) for task in (0, 1))


@pytest.mark.bits
def test_a_task_is_the_same_whatever_was_learned_before_it():
    alone, sequence = learn(network(), [2]), learn(network(), [3, 0, 2])
    for name, mask in multitask.task_state(alone, 2).items():
        assert torch.equal(mask, multitask.task_state(sequence, 2)[name])
    assert torch.equal(logits(alone, 2), logits(sequence, 2))


def test_training_moves_the_mask_and_only_the_mask():
    model = network()
    weights = {name: value.clone() for name, value in model.named_buffers() if name.endswith("weight")}
    multitask.begin_task(model, 0, RNG)
    multitask.end_task(model)
    fresh = {name: value.clone() for name, value in multitask.task_state(model, 0).items()}
    learn(model, [0])
    assert any(not torch.equal(fresh[name], value) for name, value in multitask.task_state(model, 0).items())
    assert weights and all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in weights.items())


ANSWERING = {
    "threshold": dict(conv_type="FastMultitaskMaskConv"),
    "top-k": dict(conv_type="MultitaskMaskConv"),
    "rank-one": dict(conv_type="VectorizedBatchEnsembles"),
    "rank-one made": dict(conv_type="BatchEnsembles"),
    "masks and heads": dict(conv_type="FastMultitaskMaskConv", individual_heads=True),
}


def odd(kind):
    """A network whose images, of 25 numbers, and heads, of 700, begin anywhere when they lie behind each other."""
    return get_model("LeNet", Builder(RNG, 4, **ANSWERING[kind]), (1, 5, 5), output_size=7).eval()


@pytest.mark.bits
@pytest.mark.parametrize("kind", ANSWERING)
def test_a_task_that_is_selected_gives_the_logits_that_it_gave_in_training(kind):
    model = odd(kind)
    with torch.no_grad():
        for task in (3, 1):
            for size in (1, 2, 3, 8, 16, 104):
                x = torch.randn(size, 1, 5, 5, generator=generator("x", size))
                multitask.begin_task(model, task, RNG)
                in_training = model(x)
                multitask.end_task(model)
                assert torch.equal(model(x), in_training)


@pytest.mark.bits
@pytest.mark.parametrize("kind", ANSWERING)
def test_tasks_that_are_tested_at_once_answer_as_each_does_when_it_is_selected(kind):
    model, tasks = odd(kind), [2, 0, 3]
    state = stacked.begin_tasks(model, tasks, RNG)
    batches = [torch.randn(3, size, 1, 5, 5, generator=generator("x", size)) for size in (1, 2, 3, 8, 16, 104)]
    network = stacked.tasks_to_test(model, state)
    with torch.no_grad():
        at_once = [network(x) for x in batches]
        stacked.end_tasks(model, tasks, state)
        for place, task in enumerate(tasks):
            multitask.select_task(model, task)
            for x, logits in zip(batches, at_once, strict=True):
                assert torch.equal(model(x[place].clone()), logits[place])


def test_a_learned_task_is_one_bit_a_weight_and_scores_are_gone():
    model = learn(network(), [0])
    weights = 36 * 300 + 300 * 100 + 100 * 12
    assert superposition.superposed_size(model) == weights
    assert sum(value.nbytes for value in multitask.task_state(model, 0).values()) == weights // 8
    assert list(model.parameters()) == [] and multitask.task_parameters(model) == {}


@pytest.mark.bits
def test_a_task_state_survives_a_round_trip_into_a_fresh_network():
    model, fresh = learn(network(), [0, 1]), network()
    for task in (0, 1):
        multitask.load_task_state(fresh, task, multitask.task_state(model, task))
    assert all(torch.equal(logits(model, task), logits(fresh, task)) for task in (0, 1))


def test_a_state_of_another_network_is_refused():
    state = multitask.task_state(learn(network(), [0]), 0)
    with pytest.raises(ValueError, match="bytes"):
        multitask.load_task_state(network(name="FC1024"), 0, state)
    with pytest.raises(ValueError, match="no layer"):
        multitask.load_task_state(network(), 0, {"other.mask": torch.zeros(1, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="lacks mask"):
        multitask.load_task_state(network(), 0, dict(list(state.items())[:1]))


@pytest.mark.parametrize("task", [-1, 4])
def test_tasks_are_range_checked(task):
    model = network()
    with pytest.raises(IndexError, match="0 ... 3"):
        multitask.select_task(model, task)
    with pytest.raises(IndexError, match="0 ... 3"):
        multitask.begin_task(model, task, RNG)


def test_a_masked_layer_does_not_compute_before_it_knows_a_task():
    with pytest.raises(RuntimeError, match="begun, selected"):
        network()(torch.zeros(1, *SHAPE))


def test_a_network_without_masks_cannot_be_superposed():
    with pytest.raises(ValueError, match="mask"):
        superposition.superpose(network(conv_type="StandardConv"), [0], torch.ones(1))


def test_a_superposition_is_the_weighted_sum_of_the_tasks_weights():
    model = learn(network(), [0, 1, 2])
    alphas = torch.rand(2, 3, generator=generator("alphas"))
    mixed = superposition.superposed_weights(model, [2, 0, 1], alphas)
    for name, _ in model.named_modules():
        if f"{name}.effective" in mixed:
            parts = [superposition.superposed_weights(model, [task], torch.ones(1)) for task in (2, 0, 1)]
            masks = [part[f"{name}.effective"] for part in parts]
            for row in range(2):
                slow = sum(alpha * mask for alpha, mask in zip(alphas[row], masks, strict=True))
                torch.testing.assert_close(mixed[f"{name}.effective"][row], slow, rtol=1e-6, atol=1e-7)


def test_kept_fractions_count_the_weights_of_the_mask():
    model = learn(network(), [0])
    kept = masked.kept_fractions(model, 0)
    assert set(kept) == {"layers.0", "layers.2", "layers.4", "total"}
    assert kept["layers.0"] == pytest.approx(model.layers[0].effective.ne(0).float().mean().item())
    assert 0.3 < kept["total"] < 0.7


def test_shared_weights_train_only_in_the_tasks_that_train_weights():
    model = network(conv_type="StandardConv")
    trainer = DefaultTrainer(model, TrainingOptions(train_weight_tasks=1, train_weight_lr=1e-2), RNG)
    start = {name: value.clone() for name, value in multitask.shared_state(model).items()}
    trainer.begin_task(0)
    trainer.train(Batches(0), epoch=0)
    trainer.end_task()
    after_first = {name: value.clone() for name, value in multitask.shared_state(model).items()}
    assert len(start) == 3 and all(not torch.equal(start[name], value) for name, value in after_first.items())
    assert not trainer.trains_weights(1) and trainer.trains_weights(0)
    fresh = network(conv_type="StandardConv")
    multitask.load_shared_state(fresh, after_first)
    assert torch.equal(fresh(Batches(0).batches[0][0]), model(Batches(0).batches[0][0]))
    with pytest.raises(ValueError, match="no place"):
        multitask.load_shared_state(fresh, {"layers.0.weight": torch.zeros(1)})


def test_iter_lim_counts_the_batches_of_all_epochs():
    model = network()
    trainer = DefaultTrainer(model, TrainingOptions(iter_lim=7), RNG)
    trainer.begin_task(0)
    trainer.train(Batches(0), epoch=0)
    assert trainer.batches_done == 5 and not trainer.reached_limit
    trainer.train(Batches(0), epoch=1)
    assert trainer.batches_done == 7 and trainer.reached_limit


def test_what_tasks_keep_lies_in_a_file_where_memory_is_small(monkeypatch):
    def model():
        return get_model("LeNet", Builder(partial(generator, 0), 4, bn_type="MultitaskNonAffineBN"), (1, 4, 4), 5)

    monkeypatch.setattr(memory, "FOR_ONE_THING", 0)
    mapped, plain = model(), model()
    multitask.keep_in_file(mapped)
    for each in (mapped, plain):
        for task in range(4):
            multitask.begin_task(each, task, partial(generator, 0))
            multitask.end_task(each)
    multitask.make_room(mapped, 9)
    states = [[multitask.task_state(each, task) for task in range(4)] for each in (mapped, plain)]
    for ours, same in zip(*states, strict=True):
        assert ours.keys() == same.keys() and all(torch.equal(ours[name], same[name]) for name in same)
    layers = [layer for _, layer in multitask.named(mapped, multitask.MultitaskModule)]
    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = [line.split()[0].split("-") for line in maps if "(deleted)" in line and "rw-s" in line]
    places = [range(int(begin, 16), int(end, 16)) for begin, end in files]
    assert any(all(layer.packed.data_ptr() in place for layer in layers) for place in places), "all of them in one"


def test_a_file_that_finds_no_room_is_one_line(monkeypatch, tmp_path, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(memory, "FOR_ONE_THING", 0)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert main.main(["--num-tasks", "2", "--log-dir", str(tmp_path)]) == 2
    assert "--num-tasks 2: " in capsys.readouterr().err
