"""Task inference against its slow, obvious form: autograd through the weighted sum of float masks."""

import math
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import Builder, get_model, multitask, superposition
from models import masks as masks_of
from trainers import adaptors, evaluation, inference
from trainers.evaluation import TaskScore, evaluate
from trainers.options import InferenceOptions
from trainers.run import told_apart_by_chance
from utils.seeding import generator

REAL_NEURONS = 4
RNG = partial(generator, 5)


class SmallConvolutional(nn.Module):
    """3×3 convolutions, one of stride 2, and a head; tasks are inferred through it as through any other."""

    def __init__(self, builder, input_shape, output_size):
        super().__init__()
        self.first = builder.conv3x3(input_shape[0], 6)
        self.second = builder.conv3x3(6, 8, stride=2)
        self.head = builder.conv1x1(8, output_size)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1)).flatten(1)


def random_tasks(kind: str, num_tasks: int):
    """A network whose masks are those of fresh scores."""
    builder, shape = Builder(RNG, num_tasks), (2, 6, 6)
    model = SmallConvolutional(builder, shape, 9) if kind == "conv" else get_model("LeNet", builder, shape, 9)
    for task in range(num_tasks):
        multitask.begin_task(model, task, RNG)
        multitask.end_task(model)
    return model.eval(), shape


def slow_forward(model, kind, layers, alphas, x):
    """The superposed network written out: every layer's weight is ``W ⊙ Σ α_i M^i``, masks as floats."""
    weights = [weight * (alphas.view(-1, 1, 1, 1, 1) * masks).sum(0) for weight, masks in layers]
    if kind == "fc":
        x = x.flatten(1)
        for index, weight in enumerate(weights):
            x = F.linear(x, weight[:, :, 0, 0])
            x = F.relu(x) if index < len(weights) - 1 else x
        return x
    x = F.relu(F.conv2d(x, weights[0], padding=1))
    x = F.relu(F.conv2d(x, weights[1], padding=1, stride=2))
    return F.conv2d(x.mean((2, 3), keepdim=True), weights[2]).flatten(1)


def float_masks(model, num_tasks):
    """(weight, masks as floats (tasks, *shape)) of every layer, read off the tasks one by one."""
    layers = [module for module in model.modules() if isinstance(module, superposition.SuperposedModule)]
    masks = []
    for task in range(num_tasks):
        multitask.select_task(model, task)
        masks.append([(layer.effective != 0).float() for layer in layers])
    return [(layer.weight, torch.stack(column)) for layer, column in zip(layers, zip(*masks, strict=True), strict=True)]


def slow_objective(name, logits):
    if name == "entropy":
        p = logits.softmax(1)
        return (-p * p.log()).sum(1).mean()
    frozen = logits.detach()
    total = logits[:, REAL_NEURONS:].exp().sum(1) + frozen[:, :REAL_NEURONS].exp().sum(1)
    return total.log().mean()


def slow_gradient(model, kind, layers, alphas, x, objective):
    alphas = alphas.clone().requires_grad_()
    slow_objective(objective, slow_forward(model, kind, layers, alphas, x)).backward()
    return alphas.grad


def slow_binary(model, kind, layers, x, objective, num_tasks, log_base=2):
    alive = list(range(num_tasks))
    while len(alive) > 1:
        alphas = torch.zeros(num_tasks)
        alphas[alive] = 1 / len(alive)
        gradient = slow_gradient(model, kind, layers, alphas, x, objective)
        alive.sort(key=lambda task: gradient[task].item())
        alive = alive[: min(len(alive) - 1, math.ceil(len(alive) / log_base))]
    return alive[0]


FAST = {
    "entropy": inference.entropy,
    "superfluous": partial(inference.superfluous, real_neurons=REAL_NEURONS),
}


@pytest.mark.parametrize("images", [1, 16], ids=["one image", "full batch"])
@pytest.mark.parametrize("objective", ["entropy", "superfluous"])
@pytest.mark.parametrize("kind", ["fc", "conv"])
class TestAgainstAutograd:
    NUM_TASKS = 13

    def setting(self, kind, images):
        model, shape = random_tasks(kind, self.NUM_TASKS)
        batches = torch.randn(7, images, *shape, generator=generator("images", kind, images))
        return model, float_masks(model, self.NUM_TASKS), batches

    def test_gradient_of_uniform_coefficients(self, kind, objective, images):
        model, layers, batches = self.setting(kind, images)
        alphas = torch.full((self.NUM_TASKS,), 1 / self.NUM_TASKS)
        # So small a tile that several are needed.
        fast = inference.alpha_gradients(model, range(self.NUM_TASKS), alphas, batches, FAST[objective], 20_000)
        slow = torch.stack([slow_gradient(model, kind, layers, alphas, x, objective) for x in batches])
        assert ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-4
        assert torch.equal(fast.argmin(1), slow.argmin(1))

    def test_gradient_of_coefficients_of_its_own_for_each_batch(self, kind, objective, images):
        model, layers, batches = self.setting(kind, images)
        alphas = torch.rand(len(batches), self.NUM_TASKS, generator=generator("alphas")).softmax(1)
        fast = inference.alpha_gradients(model, range(self.NUM_TASKS), alphas, batches, FAST[objective], 20_000)
        slow = torch.stack([slow_gradient(model, kind, layers, alphas[i], x, objective) for i, x in enumerate(batches)])
        assert ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-4
        tasks, objective = range(self.NUM_TASKS), FAST[objective]
        plain = [inference.plain_gradient(model, tasks, a, x, objective) for a, x in zip(alphas, batches, strict=True)]
        assert ((torch.stack(plain) - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-4

    def test_one_shot_and_binary_choose_the_same_task(self, kind, objective, images):
        model, layers, batches = self.setting(kind, images)
        alphas = torch.full((self.NUM_TASKS,), 1 / self.NUM_TASKS)
        tasks = range(self.NUM_TASKS)
        slow = [slow_gradient(model, kind, layers, alphas, x, objective).argmin().item() for x in batches]
        assert inference.one_shot(model, tasks, batches, FAST[objective]).tolist() == slow
        for log_base in (2, 3):
            slow = [slow_binary(model, kind, layers, x, objective, self.NUM_TASKS, log_base) for x in batches]
            assert inference.binary(model, tasks, batches, FAST[objective], log_base).tolist() == slow
            assert [inference.plain_binary(model, tasks, x, FAST[objective], log_base) for x in batches] == slow


@pytest.mark.parametrize("objective", FAST)
@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_every_obvious_form_answers_for_one_batch_as_the_other_does_for_many(kind, objective):
    model, shape = random_tasks(kind, 9)
    tasks, batches = [7, 2, 8, 0, 3], torch.randn(12, 3, *shape, generator=generator("images", kind))
    chosen = set()
    for plain, fast, criterion in (
        (inference.plain_one_shot, inference.one_shot, FAST[objective]),
        (inference.plain_binary, inference.binary, FAST[objective]),
        (inference.plain_descent, inference.gradient_descent, FAST[objective]),
        (inference.plain_ensemble, inference.ensemble, inference.entropies),
        (inference.plain_ensemble, inference.ensemble, inference.top_doubts),
    ):
        inferred = fast(model, tasks, batches, criterion).tolist()
        assert [plain(model, tasks, x, criterion) for x in batches] == inferred
        chosen |= set(inferred)
    assert len(chosen) > 1  # or this would say nothing


def test_inference_chooses_only_among_the_tasks_it_is_given():
    model, shape = random_tasks("fc", 6)
    batches = torch.randn(20, 1, *shape, generator=generator("images"))
    for infer in (inference.one_shot, inference.binary):
        assert set(infer(model, [4, 1], batches, inference.entropy).tolist()) <= {4, 1}
        assert infer(model, [3], batches, inference.entropy).tolist() == [3] * 20


def test_of_equal_derivatives_the_first_task_is_taken():
    model, shape = random_tasks("fc", 40)
    tasks, black = range(39, 0, -1), torch.zeros(2, 1, *shape)  # with gradients of nothing
    for plain, fast in (
        (inference.plain_one_shot, inference.one_shot),
        (inference.plain_binary, inference.binary),
        (inference.plain_descent, inference.gradient_descent),
    ):
        assert fast(model, tasks, black, inference.entropy).tolist() == [39, 39]
        assert plain(model, tasks, black[0], inference.entropy) == 39


@pytest.mark.parametrize(("log_base", "rounds"), [(2, 4), (3, 3), (16, 1), (1.5, 6)])
def test_binary_inference_needs_about_log_k_rounds(monkeypatch, log_base, rounds):
    model, shape = random_tasks("fc", 13)
    calls, whole = [], inference.alpha_gradients
    monkeypatch.setattr(inference, "alpha_gradients", lambda *words, **more: calls.append(1) or whole(*words, **more))
    inference.binary(model, range(13), torch.randn(1, 1, *shape), inference.entropy, log_base)
    assert len(calls) == rounds


class FakeData:
    """Three tasks of seven images in batches of 3, 3 and 1, which masks answer at random."""

    num_classes = 9

    def __init__(self, shape):
        keyed = generator("fake")
        self.images = torch.randn(3, 7, *shape, generator=keyed)
        self.labels = torch.randint(0, 2, (3, 7), generator=keyed)

    def update_task(self, task):
        self.val_loader = list(zip(self.images[task].split(3), self.labels[task].split(3), strict=True))


@pytest.mark.parametrize("unshared_labels", [False, True])
@pytest.mark.parametrize("data_to_repeat", [1, 2, 128])
def test_evaluation_scores_each_batch_under_the_mask_that_was_inferred_for_it(unshared_labels, data_to_repeat):
    model, shape = random_tasks("fc", 3)
    data = FakeData(shape)
    options = InferenceOptions(data_to_repeat, REAL_NEURONS, unshared_labels=unshared_labels)
    scores = evaluate(model, data, range(3), "se_oneshot_entropy_minimization", options)
    any_wrong = False
    for task in range(3):
        right = given = hits = 0
        taken = Counter()
        for x, y in zip(data.images[task].split(3), data.labels[task].split(3), strict=True):
            inferred = inference.one_shot(model, range(3), x[None, :data_to_repeat], inference.entropy).item()
            answers = {}
            for mask in {task, inferred}:
                multitask.select_task(model, mask)
                answers[mask] = (model(x).argmax(1) == y).sum().item()
            hits += inferred == task
            taken[inferred] += 1
            given += answers[task]
            any_wrong |= inferred != task
            right += 0 if unshared_labels and inferred != task else answers[inferred]
        assert (scores[task].given, scores[task].adapted) == (given / 7, right / 7)
        assert scores[task].inferred_right == pytest.approx(hits / 3)
        assert scores[task].inferred == [{"inferred": other, "batches": taken[other]} for other in sorted(taken)]
    assert any_wrong  # or this test would say nothing


@pytest.mark.parametrize("queue_bytes", [1, 2**20])
def test_what_waits_for_inference_may_grow_from_task_to_task(monkeypatch, queue_bytes):
    class Growing(FakeData):
        def update_task(self, task):
            parts = self.images[task].split(task + 1), self.labels[task].split(task + 1)
            self.val_loader = list(zip(*parts, strict=True))

    model, shape = random_tasks("fc", 3)
    data, options = Growing(shape), InferenceOptions(128, REAL_NEURONS)
    monkeypatch.setattr(evaluation, "QUEUE_BYTES", queue_bytes)
    together = evaluate(model, data, range(3), "se_oneshot_entropy_minimization", options)
    for task in range(3):
        data.update_task(task)
        chosen = [inference.one_shot(model, range(3), x[None], inference.entropy).item() for x, _ in data.val_loader]
        multitask.select_task(model, task)
        given = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.val_loader) / 7
        assert together[task].given == given
        counts = [{"inferred": mask, "batches": count} for mask, count in sorted(Counter(chosen).items())]
        assert together[task].inferred == counts


@pytest.mark.parametrize("images", [1, 2, 128])
@pytest.mark.parametrize("queued", [1, 3, 4, 7, 9])  # batches that memory is meant for
def test_tasks_may_have_different_numbers_of_batches_of_which_the_last_is_smaller(monkeypatch, images, queued):
    class Uneven(FakeData):
        def update_task(self, task):
            some = [x.repeat(4, *[1] * (x.ndim - 1))[: 3 * (task + 2) + task] for x in self.parts(task)]
            self.val_loader = list(zip(*(x.split(3) for x in some), strict=True))

        def parts(self, task):
            return self.images[task], self.labels[task]

    model, shape = random_tasks("fc", 3)
    data, sizes, whole = Uneven(shape), [], inference.one_shot
    monkeypatch.setattr(evaluation, "QUEUE_BYTES", queued * data.images[0, :1].nbytes * min(images, 3))
    monkeypatch.setattr(adaptors, "one_shot", lambda m, t, x, o, **how: sizes.append(len(x)) or whole(m, t, x, o))
    scores = evaluate(model, data, range(3), "se_oneshot_entropy_minimization", InferenceOptions(images, REAL_NEURONS))
    assert max(sizes) <= queued
    for task in range(3):
        data.update_task(task)
        each = [x[None, :images] for x, _ in data.val_loader]
        chosen = Counter(whole(model, range(3), x, inference.entropy).item() for x in each)
        assert {score["inferred"]: score["batches"] for score in scores[task].inferred} == chosen


def test_evaluation_with_the_task_given_infers_nothing():
    model, shape = random_tasks("fc", 3)
    for score in evaluate(model, FakeData(shape), range(3), "gt", InferenceOptions()):
        assert score.adapted is None and score.inferred_right is None and 0 <= score.given <= 1


def coarse(monkeypatch, together):
    """Take products of bf16 first, so many losses together, on any processor; says how many losses each product had."""
    calls, whole = [], superposition.coefficient_gradients

    def counted(model, tasks, inputs, gradients, coarse=False):
        calls.append(("coarse" if coarse else "exact", len(next(iter(inputs.values())))))
        return whole(model, tasks, inputs, gradients, coarse)

    monkeypatch.setattr(superposition, "COARSE_FROM", 2)
    monkeypatch.setattr(superposition, "COARSE_LOSSES", together)
    monkeypatch.setattr(superposition, "coarse_products_pay", lambda device: True)
    monkeypatch.setattr(superposition, "coefficient_gradients", counted)
    return calls


def sizes(model, kind, layers, alphas, x):
    """``Σ|∂L/∂W_eff ⊙ W|`` of the entropy, in float64 through autograd."""
    weights = [(weight * (alphas.view(-1, 1, 1, 1, 1) * masks).sum(0)).requires_grad_() for weight, masks in layers]
    ones = [(weight, torch.ones(1, *weight.shape, dtype=weight.dtype)) for weight in weights]
    slow_objective("entropy", slow_forward(model, kind, ones, alphas.new_ones(1), x)).backward()
    pairs = zip(layers, weights, strict=True)
    return sum((effective.grad * weight).abs().sum().item() for (weight, _), effective in pairs)


@pytest.mark.parametrize("images", [1, 16], ids=["one image", "full batch"])
@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_screening_by_bf16_never_changes_the_answer(monkeypatch, kind, images):
    # Groups of masks that differ in one or two weights: for bf16 they are the same. Then all of them once more: of
    # masks that are equal the first is the answer.
    model, shape = random_tasks(kind, 40)
    for task in range(5, 20):
        state = {name: bits.clone() for name, bits in multitask.task_state(model, task % 5).items()}
        for flip in range(1 + task % 2):
            bits = state[sorted(state)[(task + flip) % len(state)]]
            place = torch.randint(len(bits) - 1, (), generator=generator("flip", task, flip))
            bits[place] ^= 2 ** (task % 8)
        multitask.load_task_state(model, task, state)
    for task in range(20, 40):
        multitask.load_task_state(model, task, multitask.task_state(model, task - 20))
    layers = [(weight.double(), masks.double()) for weight, masks in float_masks(model, 40)]
    batches, alphas = torch.randn(15, images, *shape, generator=generator("close", kind)), torch.full((40,), 1 / 40)
    calls = coarse(monkeypatch, together=15)
    chosen = inference.one_shot(model, range(40), batches, inference.entropy)
    assert calls == [("coarse", 15), ("exact", 15)]
    told_apart = 0
    for x, task in zip(batches.double(), chosen.tolist(), strict=True):
        exact = slow_gradient(model, kind, layers, alphas.double(), x, "entropy")
        lead, size = exact - exact.min(), sizes(model, kind, layers, alphas.double(), x)
        assert task < 20 and lead[task] <= 1e-6 * size  # float32 tells no more
        told_apart += ((lead > 1e-6 * size) & (lead < 2**-8 * size)).any().item()
    assert told_apart > 5  # or this test would say nothing


@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_the_error_of_products_of_bf16_is_within_its_bound(monkeypatch, kind):
    model, shape = random_tasks(kind, 13)
    layers = [(weight.double(), masks.double()) for weight, masks in float_masks(model, 13)]
    batches, alphas = torch.randn(6, 3, *shape, generator=generator("bound", kind)), torch.full((13,), 1 / 13)
    whole = superposition.coefficient_gradients
    monkeypatch.setattr(superposition, "coefficient_gradients", lambda *words: whole(*words, coarse=True))
    for x, derivatives in zip(
        batches.double(),
        inference.alpha_gradients(model, range(13), alphas, batches, inference.entropy),
        strict=True,
    ):
        exact = slow_gradient(model, kind, layers, alphas.double(), x, "entropy")
        assert (derivatives - exact).abs().max() < 2**-8 * sizes(model, kind, layers, alphas.double(), x)


def test_float32_is_asked_only_where_bf16_leaves_a_doubt(monkeypatch):
    # One mask keeps the weights whose part of the derivative is negative for the first images: it leads by far.
    model, shape = random_tasks("fc", 6)
    batches = torch.randn(1, 1, *shape, generator=generator("lead")).repeat(4, 1, 1, 1, 1)
    alphas = torch.full((6,), 1 / 6)
    for _ in range(3):  # the mask itself is a part of the superposition
        layers = float_masks(model, 6)
        weights = [(weight * (alphas.view(-1, 1, 1, 1, 1) * masks).sum(0)).requires_grad_() for weight, masks in layers]
        ones = [(weight, torch.ones(1, *weight.shape)) for weight in weights]
        slow_objective("entropy", slow_forward(model, "fc", ones, torch.ones(1), batches[0])).backward()
        kept = [masks_of.pack((w.grad * weight < 0).flatten()) for w, (weight, _) in zip(weights, layers, strict=True)]
        multitask.load_task_state(model, 4, dict(zip(multitask.task_state(model, 4), kept, strict=True)))
    calls = coarse(monkeypatch, together=2)
    assert inference.one_shot(model, range(6), batches, inference.entropy).tolist() == [4] * 4
    assert calls == [("coarse", 2)] * 2
    multitask.load_task_state(model, 5, multitask.task_state(model, 4))  # now nothing is clear, so it is not tried on
    calls.clear()
    assert inference.one_shot(model, range(6), batches, inference.entropy).tolist() == [4] * 4
    assert calls == [("coarse", 2), ("exact", 2), ("exact", 2)]


@pytest.mark.parametrize(
    "shares, by_chance", [([0, 0.5, 0.5], True), ([1, 0.5, 0], False), ([None] * 3, False), ([0.1], False), ([], False)]
)
def test_it_is_seen_where_tasks_are_found_by_chance(shares, by_chance):
    scores = [TaskScore(task, 1.0, inferred_right=share) for task, share in enumerate(shares)]
    record = SimpleNamespace(learned=[*range(len(shares))], evaluations={len(shares): scores})
    assert told_apart_by_chance(record) == by_chance
