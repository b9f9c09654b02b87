"""Layers and networks: what each keeps for a task, and that no later task changes a bit of it."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from models import BN_TYPES, Builder, get_model, masked, masks, multitask, superposition
from models.layers import LayerOptions, convolve
from models.modules import MaskConv, MultitaskMaskConv
from models.norms import MultitaskNonAffineBN
from models.rank_one import BatchEnsembles, VectorizedBatchEnsembles
from tests import batches
from tests.batches import BatchList, random_batches
from trainers.default import DefaultTrainer
from trainers.evaluation import accuracy
from trainers.inference import alpha_gradients, entropy, one_shot
from trainers.options import TrainingOptions
from trainers.reinit import ReinitTrainer
from utils.seeding import generator

RNG = partial(generator, 5)
SHAPE = (3, 8, 8)
PER_TASK = {
    "top-k": dict(conv_type="MultitaskMaskConv", sparsity=2, er_sparsity=True),
    "threshold": dict(conv_type="FastMultitaskMaskConv"),
    "rank-one made": dict(conv_type="BatchEnsembles", conv_init="default"),
    "rank-one": dict(conv_type="VectorizedBatchEnsembles", conv_init="default"),
    "heads": dict(conv_type="StandardConv", conv_init="default", individual_heads=True),
    "heads, no statistics": dict(conv_type="StandardConv", bn_type="NonAffineNoStatsBN", individual_heads=True),
    "masks and heads": dict(conv_type="MultitaskMaskConv", individual_heads=True),
}


class Small(nn.Module):
    """Two convolutions with batch norm, and a head."""

    def __init__(self, builder: Builder):
        super().__init__()
        self.features = nn.Sequential(
            *(builder.conv3x3(3, 6), builder.batchnorm(6), builder.activation()),
            *(builder.conv3x3(6, 8, stride=2), builder.batchnorm(8), builder.activation()),
            *(nn.AdaptiveAvgPool2d(1), builder.head(8, 5)),
        )

    def forward(self, x):
        return self.features(x).flatten(1)


def network(num_tasks=4, bn_type="MultitaskNonAffineBN", **more):
    return Small(Builder(RNG, num_tasks, bn_type=bn_type, **more))


class Batches(BatchList):
    """Random images of a task, with the interface of a loader."""

    def __init__(self, task):
        super().__init__(random_batches(generator("images", task), SHAPE, classes=5, count=4, shift=task))


learn = partial(batches.learn, batches=Batches, rng=RNG)
logits = partial(batches.logits, x=Batches(0).batches[0][0])


# Every layer that keeps something for a task


@pytest.mark.bits
@pytest.mark.parametrize("kind", PER_TASK)
def test_later_tasks_change_no_bit_of_a_learned_task_also_after_a_fresh_load(kind):
    weights = 1 if "rank" in kind or kind.startswith("heads") else 0  # the first task trains what is shared
    model = network(**PER_TASK[kind])
    learn(model, [0, 1], train_weight_tasks=weights)
    before = [logits(model, task) for task in (0, 1)]
    learn(model, [2, 3], train_weight_tasks=weights)
    assert all(torch.equal(logits(model, task), before[task]) for task in (0, 1))
    assert not torch.equal(before[0], before[1])

    fresh = network(**PER_TASK[kind])
    multitask.load_shared_state(fresh, multitask.shared_state(model))
    for task in range(4):
        multitask.load_task_state(fresh, task, multitask.task_state(model, task))
    assert all(torch.equal(logits(fresh, task), logits(model, task)) for task in range(4))


@pytest.mark.bits
@pytest.mark.parametrize("kind", PER_TASK)
def test_a_task_is_the_same_whatever_was_learned_before_it(kind):
    alone, sequence = learn(network(**PER_TASK[kind]), [2]), learn(network(**PER_TASK[kind]), [3, 0, 2])
    assert torch.equal(logits(alone, 2), logits(sequence, 2))


@pytest.mark.bits
@pytest.mark.parametrize("kind", PER_TASK)
def test_selecting_a_task_gives_the_logits_that_training_ended_with(kind):
    model = network(**PER_TASK[kind])
    trainer = DefaultTrainer(model, TrainingOptions(lr=1e-2), RNG)
    trainer.begin_task(1)
    trainer.train(Batches(1), epoch=0)
    with torch.no_grad():
        in_training = model.eval()(Batches(0).batches[0][0])
    trainer.end_task()
    assert torch.equal(logits(model, 1), in_training)


@pytest.mark.parametrize("kind", PER_TASK)
def test_weights_that_no_task_trains_stay_as_the_seed_makes_them(kind):
    model = network(**PER_TASK[kind])
    before = {name: value.clone() for name, value in multitask.shared_state(model).items()}
    learn(model, [0, 1])
    after = multitask.shared_state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_layer_with_float_state_does_not_compute_before_it_knows_a_task():
    with pytest.raises(RuntimeError, match="begun or selected"):
        network(**PER_TASK["rank-one"])(torch.zeros(1, *SHAPE))


@pytest.mark.parametrize("kind", PER_TASK)
def test_a_state_of_another_shape_is_refused(kind):
    model = network(**PER_TASK[kind])
    state = multitask.task_state(model, 0)
    name, value = next(iter(state.items()))
    with pytest.raises(ValueError, match="bytes"):
        multitask.load_task_state(model, 0, {**state, name: value.flatten()[:-1]})


# Batch norm


@pytest.mark.parametrize("bn_type", BN_TYPES)
def test_a_single_value_of_a_plane_is_its_own_mean_and_tells_of_no_spread(bn_type):
    norm = Builder(RNG, 1, bn_type=bn_type).batchnorm(3)
    multitask.begin_task(norm, 0, RNG)
    before = {name: value.clone() for name, value in norm.state_dict().items() if "running" in name}
    if isinstance(norm, MultitaskNonAffineBN):
        before |= {name: value.clone() for name, value in norm.task_state(0).items()}
    x = torch.randn(1, 3, 1, 1, generator=RNG("value"), requires_grad=True)
    y = norm.train()(x)
    y.sum().backward()
    assert y.flatten().tolist() == [0, 0, 0] and x.grad.flatten().tolist() == [0, 0, 0]
    after = norm.state_dict() | (norm.task_state(0) if isinstance(norm, MultitaskNonAffineBN) else {})
    assert all(torch.equal(after[name], value) for name, value in before.items())


# Channels last


def coloured(task):
    """Images around the one that each class has in the task."""
    keyed = generator("colours", task)
    means = torch.randn(5, *SHAPE, generator=keyed)
    y = torch.randint(0, 5, (12, 32), generator=keyed)
    return BatchList(list(zip(means[y] + torch.randn(12, 32, *SHAPE, generator=keyed) / 2, y, strict=True)))


def test_channels_last_in_training_inference_and_transfer():
    def run(channels_last):
        options = dict(lr=1e-2, optimizer="adam", reinit_adapt="gradient", channels_last=channels_last)
        trainer = ReinitTrainer(network(**PER_TASK["top-k"]), TrainingOptions(**options), RNG)
        for task in range(3):
            trainer.begin_task(task)
            for epoch in range(8):
                trainer.train(coloured(task), epoch)
            trainer.end_task()
        model, images = trainer.model, torch.stack([coloured(task).batches[0][0] for task in range(3)])
        if channels_last:
            images = images.movedim(2, -1).contiguous().movedim(-1, 2)
        state = {
            f"{task} {name}": value for task in range(3) for name, value in multitask.task_state(model, task).items()
        }
        inferred = one_shot(model, range(3), images, entropy).tolist()
        accuracies = []
        for task in range(3):
            multitask.select_task(model, task)
            accuracies.append(accuracy(model, coloured(task)))
        trainer.begin_task(3)  # of the images of task 1
        trainer.options.iter_lim = 0
        trainer.train(coloured(1), 0)
        start = multitask.task_parameters(model)
        same = [task for task in range(3) if all(torch.equal(start[n], v) for n, v in trainer.learned[task].items())]
        return state, inferred, same, accuracies

    (state, *answers, accuracies), (other, *others, again) = run(False), run(True)
    assert others == answers and answers[1] == [1]
    assert min(accuracies) > 0.8 and again == pytest.approx(accuracies, abs=0.02)
    for name, value in state.items():
        if value.dtype == torch.uint8:  # masks; only scores that nearly tie may differ
            assert (other[name] != value).float().mean() < 0.1


# Top-k masks


def slow_mask(scores, dropped):
    """The obvious form: sort all, drop the first."""
    mask = torch.ones(scores.numel())
    mask[scores.abs().flatten().argsort()[:dropped]] = 0
    return mask.view_as(scores)


@pytest.mark.parametrize("dropped", [0, 1, 37, 119, 120])
def test_top_k_keeps_what_sorting_keeps_and_passes_the_gradient_straight_to_the_size(dropped):
    scores = torch.randn(4, 5, 2, 3, generator=generator("scores")).requires_grad_()
    mask = masks.StraightThrough.apply(scores.abs(), lambda size: masks.top_k(size, dropped))
    assert torch.equal(mask, slow_mask(scores, dropped))
    gradient = torch.randn(4, 5, 2, 3)
    mask.backward(gradient)
    assert torch.equal(scores.grad, gradient * scores.detach().sign())


def test_of_equal_scores_exactly_as_many_are_dropped():
    scores = torch.tensor([1.0, -1.0, 1.0, 1.0, 0.5, -1.0, 2.0])
    mask = masks.top_k(scores.abs()[:, None, None, None], 3).flatten()
    assert mask.sum() == 4 and mask[4] == 0 and mask[6] == 1


@pytest.mark.parametrize(
    "shape, sparsity, er, dropped",
    [
        ((10, 20, 3, 3), 0.1, False, 1620),
        ((10, 20, 3, 3), 1, False, 0),
        ((7, 3, 1, 1), 0.3, False, 14),  # int(0.7 * 21)
        ((160, 160, 3, 3), 8, True, int((1 - 8 * 320 / 230400) * 230400)),
        ((5, 160, 1, 1), 8, True, 400),  # the budget is capped at a half
    ],
)
def test_the_number_of_weights_dropped_is_the_papers(shape, sparsity, er, dropped):
    assert masks.dropped_weights(shape, sparsity, er) == dropped
    layer = MultitaskMaskConv(shape[1], shape[0], shape[2], 1, LayerOptions(2, sparsity, er))
    layer.begin_task(1, generator("scores"))
    layer.end_task()
    assert masks.unpack(layer.packed[1], layer.weight.numel()).sum() == layer.weight.numel() - dropped


@pytest.mark.parametrize("sparsity", [0, -1, 1.5])
def test_a_mask_cannot_keep_none_or_more_than_all(sparsity):
    with pytest.raises(ValueError, match="fraction"):
        masks.dropped_weights((3, 3, 3, 3), sparsity, er_sparsity=False)


def test_scores_made_of_a_mask_give_the_mask_and_keep_the_numbers():
    fresh = torch.randn(6, 5, generator=generator("fresh"))
    mask = slow_mask(torch.randn(6, 5, generator=generator("other")), 13)
    scores = masks.scores_of_mask(fresh, masks.pack(mask.flatten()))
    assert torch.equal(masks.top_k(scores.abs()[:, :, None, None], 13)[:, :, 0, 0], mask)
    assert torch.equal(scores.flatten().sort().values, fresh.flatten().sort().values)


@pytest.mark.bits
def test_a_layer_for_one_task_is_the_layer_for_many_with_that_task():
    options = LayerOptions(5, 3, er_sparsity=True)
    one, many = MaskConv(3, 6, 3, 1, options), MultitaskMaskConv(3, 6, 3, 1, options)
    x = torch.randn(2, *SHAPE)
    for layer in (one, many):
        nn.init.constant_(layer.weight, 0.5)
        layer.begin_task(3, generator("scores", 3))
        layer.end_task()
    assert torch.equal(one(x), many(x)) and one.packed.shape[0] == 1
    with pytest.raises(IndexError, match="not the one"):
        one.select_task(2)
    fresh = MaskConv(3, 6, 3, 1, options)
    nn.init.constant_(fresh.weight, 0.5)
    fresh.load_task_state(3, one.task_state(3))
    fresh.select_task(3)
    assert torch.equal(fresh(x), one(x))


# Rank-one layers


def test_both_forms_of_batch_ensembles_compute_the_same():
    made, vectorised = (kind(3, 6, 3, 2, LayerOptions(2)) for kind in (BatchEnsembles, VectorizedBatchEnsembles))
    x = torch.randn(4, *SHAPE, generator=generator("x"))
    for layer in (made, vectorised):
        nn.init.constant_(layer.weight, 0.3)
        layer.begin_task(0, generator("scales"))
        with torch.no_grad():
            layer.scale_in += 0.25
    assert {value.abs().item() for value in made.scale_out} == {1.0}
    # The products are summed in another order: float32 rounding, relative to values of about 1.
    torch.testing.assert_close(made(x), vectorised(x), rtol=1e-5, atol=1e-5)


# Batch norm


@pytest.mark.bits
def test_statistics_of_each_task_are_those_of_a_batch_norm_of_its_own():
    layer = MultitaskNonAffineBN(3, LayerOptions(2))
    own = [nn.BatchNorm2d(3, affine=False) for _ in range(2)]
    x = torch.randn(3, 16, 3, 4, 4, generator=generator("x"))
    for task in (0, 1):
        layer.train().begin_task(task, None)
        for batch in x + task:
            assert torch.equal(layer(batch), own[task](batch))
        layer.end_task()
    for task in (0, 1):
        layer.select_task(task)
        assert torch.equal(layer.eval()(x[0]), own[task].eval()(x[0]))
        assert torch.equal(layer.train()(x[0]), own[task](x[0])), "a learned task's statistics are used and kept"
        assert torch.equal(layer.task_state(task)["mean"], own[task].running_mean)


# Superposition


def test_the_gradient_of_coefficients_is_that_of_autograd_through_batch_norm():
    model = learn(network(**PER_TASK["top-k"]), [0, 1, 2])
    images = torch.stack([x for x, _ in Batches(1).batches])
    alphas = torch.full((3,), 1 / 3)
    fast = alpha_gradients(model, [0, 1, 2], alphas, images, entropy)
    weights = [superposition.superposed_weights(model, [task], torch.ones(1)) for task in range(3)]
    for row, x in zip(fast, images, strict=True):
        plain = alphas.clone().requires_grad_()
        mixed = {name: sum(a * weight[name] for a, weight in zip(plain, weights, strict=True)) for name in weights[0]}
        (gradient,) = torch.autograd.grad(entropy(torch.func.functional_call(model, mixed, (x,))), plain)
        torch.testing.assert_close(row, gradient, rtol=1e-4, atol=1e-6)
    assert one_shot(model, [0, 1, 2], images, entropy).shape == (4,)


def test_a_layer_that_cannot_be_superposed_says_so():
    model = learn(network(**PER_TASK["masks and heads"]), [0])
    assert not superposition.can_superpose(model)
    with pytest.raises(ValueError, match="mask"):
        superposition.superpose(model, [0], torch.ones(1))


# Networks


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "ResNet101", "WideResNet50_2"])
def test_residual_networks_are_those_of_torchvision(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, {"WideResNet50_2": "wide_resnet50_2"}.get(name, name.lower()))()
        ours = get_model(
            name,
            Builder(lambda *key: None, 1, "StandardConv", "StandardBN", conv_init="unsigned_constant"),
            (3, 1, 1),
            1000,
        )
    shapes = [tuple(value.shape) for name, value in theirs.named_parameters() if name != "fc.bias"]
    assert [tuple(value.shape)[: len(shape)] for value, shape in zip(ours.parameters(), shapes, strict=True)] == shapes


def test_a_residual_network_computes_what_torchvisions_does():
    theirs = torchvision.models.resnet18(num_classes=7).eval()
    nn.init.zeros_(theirs.fc.bias)
    ours = get_model(
        "ResNet18", Builder(RNG, 1, "StandardConv", "StandardBN", conv_init="default"), (3, 64, 64), 7
    ).eval()
    values = [value for name, value in theirs.named_parameters() if name != "fc.bias"]
    with torch.no_grad():
        for ours_value, value in zip(ours.parameters(), values, strict=True):
            ours_value.copy_(value.view_as(ours_value))
        x = torch.randn(2, 3, 64, 64, generator=generator("x"))
        # Only the head is computed otherwise: float32 rounding.
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [2, 3])
def test_a_convolution_of_1x1_with_a_stride_is_torchs(stride):
    x = torch.randn(3, 5, 8, 7, generator=generator("strided"), requires_grad=True)
    weight = torch.randn(6, 5, 1, 1, generator=generator("strided weight"), requires_grad=True)
    y = convolve(x, weight, stride, 0)
    theirs = nn.functional.conv2d(x, weight, stride=stride)
    torch.testing.assert_close(y, theirs)
    for ours, other in zip(
        torch.autograd.grad(y.square().sum(), (x, weight)),
        torch.autograd.grad(theirs.square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_a_narrow_residual_network_is_trained_without_writing_beyond_its_memory(call):
    words = "--set SplitDigits --num-tasks 1 --model GEMResNet18 --width-mult 0.25 --output-size 10 --epochs 1"
    words += " --iter-lim 5 --batch-size 16 --threads 1 --multigpu cpu --adaptor gt"
    result = call("main.py", *words.split())
    assert result.returncode == 0, result.stderr  # it ended with SIGABRT


def test_the_small_residual_network_has_the_papers_layers():
    model = get_model("GEMResNet18", Builder(RNG, 1, "MaskConv", "NonAffineBN"), (3, 32, 32), 5)
    shapes = [tuple(shape) for shape in masked.mask_shapes(model).values()]
    assert shapes[0] == (20, 3, 3, 3) and shapes[-1] == (5, 160, 1, 1)
    assert [shape[0] for shape in shapes if shape[2] == 3][1:] == [20] * 4 + [40] * 4 + [80] * 4 + [160] * 4
    multitask.begin_task(model, 0, RNG)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
