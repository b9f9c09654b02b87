"""Any network as one with masks: what is masked, what stays, and what cannot be."""

import copy
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import Builder, multitask, stacked
from models.convert import Kept, TaskNorm, convert, is_converted
from tests.batches import logits
from utils.seeding import generator

RNG = partial(generator, 0)


class Everything(nn.Module):
    """A convolution of each kind, with what convolutions may have, norms, and attention."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(3, 4, 3, padding=2, dilation=2, padding_mode="circular")
        self.two = nn.Conv2d(4, 8, (3, 1), stride=(2, 1), groups=2, padding="valid", bias=False)
        self.three = nn.Conv3d(8, 6, 1)
        self.norms = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm2d(8, affine=False), nn.BatchNorm3d(6)])
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.layer_norm = nn.LayerNorm(6)
        self.token = nn.Parameter(torch.ones(1, 1, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x):  # (batch, 3, 8)
        x = self.norms[0](self.one(x))[..., None].expand(-1, -1, -1, 2)
        x = self.norms[1](self.two(x).relu())
        x = self.norms[2](self.three(x[..., None])).flatten(2).mT  # (batch, places, 6)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = self.layer_norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x[:, 0])


def images(key, batch=6):
    return torch.randn(batch, 3, 8, generator=generator("images", key))


def learn(model, task, steps=3):
    learn_from(model, images(task), task, steps)


def learn_from(model, x, task=0, steps=3):
    multitask.begin_task(model, task, RNG)
    model.train()
    y = torch.arange(len(x)) % 5
    optimizer = torch.optim.Adam(multitask.task_parameters(model).values(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    multitask.end_task(model)
    model.eval()


@pytest.mark.parametrize("masks", ["threshold", "top-k"])
def test_every_layer_computes_as_it_did_with_its_weight_under_the_mask(masks):
    torch.manual_seed(0)
    given = Everything()
    model = convert(given, RNG, 2, masks=masks, sparsity=0.3, init=None, norms="batch")
    learn(model, 0)
    x = images("test")
    answers = logits(model, 0, x)
    # The slow, obvious form: the given network, its weights multiplied by the masks.
    plain, state = Everything(), given.state_dict()
    names = {
        "one.weight", "two.weight", "three.weight", "head.weight", "attention.in_proj_weight",
        "attention.out_proj.weight",
    }  # fmt: skip
    for name in names:
        layer, _, key = name.rpartition(".")
        module = model.get_submodule(layer)
        mask = (getattr(module, key) != 0).float()
        if masks == "top-k":
            assert int(mask.sum()) == mask.numel() - int(0.7 * mask.numel())
        assert 0 < mask.mean() < 1
        state[name] = state[name] * mask
    plain.load_state_dict(state)
    plain.eval()
    for norm in plain.norms:
        norm.train()  # by the batch's statistics
    with torch.no_grad():
        torch.testing.assert_close(answers, plain(x), rtol=1e-5, atol=1e-6)
    # And what was given is as it was.
    assert not is_converted(given) and is_converted(model)


class Added(nn.Module):
    """Computes with the sum of two layers' weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4, bias=False), nn.Linear(5, 4, bias=False)

    def forward(self, x):
        return x @ (self.a.weight + self.b.weight).T


@pytest.mark.parametrize("init", [None, "signed_constant"])
def test_gradients_are_right_where_weights_are_added_before_they_are_used(init):
    torch.manual_seed(0)
    model, x = convert(Added(), RNG, init=init), torch.randn(6, 5, generator=generator("added"))
    layers = model.a, model.b
    multitask.begin_task(model, 0, RNG)
    scores = [*multitask.task_parameters(model).values()]
    model(x).square().sum().backward()
    frozen = [layer.parametrizations.weight[0].weight.flatten(1) for layer in layers]
    kept = [(score.flatten(1) >= 0).float().requires_grad_() for score in scores]
    (x @ sum(w * m for w, m in zip(frozen, kept, strict=True)).T).square().sum().backward()
    for score, mask in zip(scores, kept, strict=True):
        torch.testing.assert_close(score.grad.flatten(1), mask.grad)


def test_later_tasks_leave_earlier_ones_to_the_bit_and_room_grows():
    torch.manual_seed(0)
    model = convert(Everything(), RNG, 1)
    learn(model, 0)
    x = images("test")
    before = logits(model, 0, x)
    multitask.make_room(model, 3)
    learn(model, 1)
    learn(model, 2)
    assert torch.equal(logits(model, 0, x), before)
    assert not torch.equal(logits(model, 2, x), before)


def test_nothing_but_masks_is_trained():
    model = convert(Everything(), RNG, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    multitask.begin_task(model, 0, RNG)
    assert all("scores" in name for name in multitask.task_parameters(model))
    assert not any(parameter.requires_grad for parameter in multitask.shared_parameters(model))
    multitask.end_task(model)
    learn(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_are_drawn_by_the_seed_alone_and_biases_are_zero():
    first, second = (convert(Everything(), RNG, 1) for _ in range(2))
    for one, other in zip(first.modules(), second.modules(), strict=True):
        if hasattr(one, "packed"):
            assert torch.equal(one.weight, other.weight) and len(one.weight.abs().unique()) == 1
    assert not first.head.bias.any() and not first.attention.in_proj_bias.any()


def test_running_statistics_are_those_of_the_task():
    model = convert(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), RNG, 2)
    for task in (0, 1):
        multitask.begin_task(model, task, RNG)
        model.train()
        model(torch.randn(8, 4, generator=generator(task)) + 5 * task)
        multitask.end_task(model)
    state = [multitask.task_state(model, task) for task in (0, 1)]
    assert not torch.equal(state[0]["1.mean"], state[1]["1.mean"])


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return x @ self.mix


class Normed(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x).relu()


class Graph(Own):
    def __init__(self):
        super().__init__()
        self.after = nn.ReLU()


class LowRank(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.low = nn.Parameter(torch.ones(4, 2))


class Alias(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.read = self.layer.weight


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.more = nn.Linear(4, 4), [nn.Linear(4, 4)]


class Steps(nn.Module):
    """Goes through its batch norm by something else that holds it."""

    def __init__(self, hold):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(24, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)
        self.held = hold(self.norm)

    def forward(self, x):
        held = self.held
        norm = held["norm"] if isinstance(held, dict) else held[0] if isinstance(held, list) else held
        return self.last(norm(self.first(x.flatten(1))).relu())


class Buffered(nn.Module):
    """Multiplies by a matrix that it keeps."""

    def __init__(self, kept, persistent=True):
        super().__init__()
        self.layer = nn.Linear(4, 5)
        self.register_buffer("kept", kept, persistent=persistent)

    def forward(self, x):
        return self.layer((self.kept @ x.flatten(1).T).T)


class Locked(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.lock = threading.Lock()


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last = self.layer(torch.ones(1, 4))


@pytest.mark.parametrize(
    "model, word",
    [
        (nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), "LSTM"),
        (nn.Sequential(nn.Linear(4, 4), Normed(4)), "1 (Normed) is a batch norm with a forward of its own"),
        (Alias(), "Alias) has the weight of the layer layer as its own read"),
        (Hidden(), "Hidden) has weights in a list, more"),
        (Buffered(torch.eye(4).to_sparse()), "Buffered) has a sparse kept, which no file takes; make it dense, or a"),
        (nn.Sequential(nn.Linear(4, 4, device="meta")), "0 (Linear) lies on the device meta, where it has no numbers"),
        (Steps(lambda norm: norm.forward), "Steps) keeps the forward of a batch norm as its held"),
        (Steps(lambda norm: [norm.forward]), "Steps) keeps the forward of a batch norm as its held"),
        (Steps(lambda norm: partial(nn.BatchNorm1d(4))), "Steps) has weights in a partial, held"),
        (Keeping(), "Keeping cannot be copied"),
        (Locked(), "Locked cannot be copied: .*lock"),
        (nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4))), "0 (Linear) has a weight that is no parameter"),
        (nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)), "weight that is complex"),
        (nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4)), "weight that is empty"),
        (nn.Sequential(nn.Linear(4, 4), nn.Bilinear(4, 4, 2)), "Bilinear"),
        (nn.Sequential(nn.Linear(4, 4), nn.ConvTranspose2d(4, 4, 3)), "ConvTranspose2d"),
        (
            nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.Linear(4, 4)),
            "0 (ConvTranspose2d) has weights of its own, weight",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.Bilinear(4, 4, 1)), "1 (Bilinear) has weights of its own, weight"),
        (nn.Sequential(nn.Linear(4, 4), nn.RNN(1, 1)), "1 (RNN) has weights of its own, weight_ih_l0, weight_hh_l0"),
        (nn.Sequential(nn.Linear(4, 4), Own()), "1 (Own) has weights of its own, mix.*or register as a buffer what"),
        (nn.Sequential(nn.ReLU()), "nothing to mask"),
        (nn.LayerNorm(4), "nothing to mask"),
        (nn.Sequential(nn.LazyLinear(4)), "run a batch"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "parametrised already"),
        (convert(nn.Sequential(nn.Linear(4, 4)), RNG), "parametrised already"),
        (nn.Sequential(nn.Linear(4, 4), Builder(RNG, 1).conv1x1(4, 4)), "state for each task already"),
    ],
)
def test_what_cannot_be_masked_is_named(model, word):
    with pytest.raises(ValueError, match="(?s)" + word.replace("(", r"\(").replace(")", r"\)")):
        convert(model, RNG)


def test_one_batch_norm_in_two_places_has_the_statistics_of_the_task_in_both():
    norm = nn.BatchNorm1d(4)
    model = convert(
        nn.Sequential(nn.Linear(24, 4), norm, nn.ReLU(), nn.Sequential(norm, nn.Linear(4, 5)), norm), RNG, 3
    )
    assert model[1] is model[4] and isinstance(model[3][0], TaskNorm)
    model = convert(nn.Sequential(nn.Flatten(), nn.Linear(24, 4), norm, nn.ReLU(), norm, nn.Linear(4, 5)), RNG, 3)
    learn(model, 0)
    before = logits(model, 0, images(0))
    learn(model, 1)
    assert torch.equal(logits(model, 0, images(0)), before)


@pytest.mark.parametrize(
    "hold", [lambda norm: [norm], lambda norm: {"norm": norm}, partial, lambda norm: norm.__call__, lambda norm: norm]
)
def test_a_batch_norm_that_something_else_holds_too_is_the_same_one(hold):
    """Also in a copy, and when a later task was learned."""
    torch.manual_seed(0)
    model = convert(Steps(hold), RNG, 2)
    for task in (0, 1):
        learn(model, task)
    for one in (model, copy.deepcopy(model)):
        multitask.select_task(one, 0)
        one.eval()
        norm, x = one.norm, images("test", 32)
        with torch.no_grad():
            y = one.first(x.flatten(1))
            expected = one.last(F.batch_norm(y, norm.means[0], norm.variances[0]).relu())
            assert norm.means[0].any() and torch.allclose(one(x), expected, atol=1e-5)
            assert torch.allclose(one(x[:1]), expected[:1], atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_keeps_its_scale_and_its_hooks(bias):
    norm = nn.BatchNorm1d(24)
    nn.init.constant_(norm.weight, 5.0)
    norm.bias = norm.bias if bias else None
    norm.register_forward_hook(lambda module, inputs, output: output + 1)
    norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    model = convert(nn.Sequential(nn.Flatten(), norm, nn.Linear(24, 5)), RNG)
    multitask.begin_task(model, 0, RNG)
    expected = 5 * F.batch_norm(2 * images(0).flatten(1), None, None, training=True) + 1
    assert torch.allclose(model[:2].train()(images(0)), expected, atol=1e-5)


class Told(nn.BatchNorm1d):
    """Keeps what it was told, and a method."""

    def __init__(self, planes):
        super().__init__(planes, momentum=0.3, affine=True)
        self.told = "something"

    def size(self):
        return self.num_features


class Asks(nn.Module):
    """Goes on after what is a batch norm, as many networks do, and keeps those of its own fixed or not."""

    def __init__(self, kind, fixed=False):
        super().__init__()
        self.fixed = fixed
        self.layers = nn.ModuleList([nn.Linear(24, 8), kind(8), nn.Linear(8, 5)])

    def train(self, mode=True):
        super().train(mode)
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm1d) and self.fixed:
                layer.eval()
        return self

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm1d):
                x = x.relu() * layer.weight.mean()
        return x


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, Told])
def test_a_batch_norm_is_one_to_its_network(kind):
    torch.manual_seed(0)
    given = Asks(kind)
    nn.init.uniform_(given.layers[1].weight)
    model, x = convert(given, RNG, init=None), images("test")
    learn(model, 0)
    answers = logits(model, 0, x)
    for one in (model, copy.deepcopy(model)):
        norm = one.layers[1]
        assert isinstance(norm, kind) and type(norm) is type(model.layers[1]) and "(8, eps=1e-05, mom" in repr(norm)
        assert norm.momentum == given.layers[1].momentum and torch.equal(norm.running_var, norm.variances[0])
        assert kind is nn.BatchNorm1d or (norm.told, norm.size()) == ("something", 8)
        assert torch.equal(logits(one, 0, x), answers)
        y = one.layers[0](x.flatten(1))
        y = F.batch_norm(y, norm.means[0], norm.variances[0], given.layers[1].weight, given.layers[1].bias).relu()
        torch.testing.assert_close(one.layers[2](y * norm.weight.mean()), answers)


def test_a_network_keeps_its_batch_norms_fixed_in_training():
    given = Asks(nn.BatchNorm1d, fixed=True)
    given.layers[1].running_mean.fill_(0.5)
    model = convert(given, RNG)
    learn(model, 0)
    assert torch.equal(model.layers[1].means[0], torch.full((8,), 0.5))


def test_without_a_momentum_all_batches_of_a_task_count_alike():
    """Also of tasks that are trained at once."""
    model = convert(nn.Sequential(nn.BatchNorm1d(24, momentum=None), nn.Linear(24, 5)), RNG, 2)
    expected, batches = {}, {task: [images(4 * task + key).flatten(1) for key in range(4)] for task in (0, 1)}
    model.train()
    for task in (0, 1):
        expected[task] = nn.BatchNorm1d(24, momentum=None)
        multitask.begin_task(model, task, RNG)
        for x in batches[task]:
            expected[task](x)
            model(x)
        multitask.end_task(model)
    for at_once in (False, True):
        if at_once:
            state = stacked.begin_tasks(model, [0, 1], RNG)
            for xs in zip(*batches.values(), strict=True):
                stacked.network_of_tasks(model, state)(torch.stack(xs))
            stacked.end_tasks(model, [0, 1], state)
        for task, norm in expected.items():
            torch.testing.assert_close(model[0].means[task], norm.running_mean)
            torch.testing.assert_close(model[0].variances[task], norm.running_var)


def test_what_no_file_has_may_be_sparse_and_what_one_has_can_be_written_to():
    x = torch.rand(6, 4, generator=generator("sparse"))
    answers, matrix = [], torch.rand(4, 1, generator=generator("expanded")).expand(4, 4)
    for model in (Buffered(matrix), Buffered(matrix.clone().to_sparse(), persistent=False)):
        model = convert(model, RNG, 1)
        learn_from(model, x)
        shared = {name: value.clone() for name, value in multitask.shared_state(model).items()}
        multitask.load_shared_state(model, shared)
        answers.append(logits(model, 0, x))
    torch.testing.assert_close(*answers)


class Looked(nn.Module):
    """Looks rows up, of which the longer ones are shortened then."""

    def __init__(self, kind):
        super().__init__()
        self.rows, self.layer = kind(20, 6, max_norm=1.5), nn.Linear(6, 5)

    def forward(self, x):
        rows = self.rows(x.long().flatten(1))
        return self.layer(rows if rows.ndim == 2 else rows.mean(1))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rows_that_a_lookup_would_shorten_are_so_from_the_start(kind):
    torch.manual_seed(0)
    given = Looked(kind)
    model, x = convert(given, RNG), torch.arange(20).float()[:, None]
    long = given.rows.weight.norm(dim=1) > 1.5
    assert 0 < long.sum() < 20
    shared = {name: value.clone() for name, value in multitask.shared_state(model).items()}
    with torch.no_grad():
        expected = given.rows(x.long())
        assert torch.equal(model.rows(x.long()), expected)
    learn_from(model, x[:10])
    assert all(torch.equal(value, shared[name]) for name, value in multitask.shared_state(model).items())


class Centre(nn.Module):
    """Takes off a mean that goes along with the batches, and counts them; what is cached may change."""

    def __init__(self, persistent, used=True):
        super().__init__()
        self.used = used
        self.register_buffer("mean", torch.zeros(4), persistent=persistent)

    def forward(self, x):
        if self.training:
            self.mean = self.mean.lerp(x.detach().mean(0), 0.1)
        return x - self.mean if self.used else x


@pytest.mark.parametrize("persistent, used", [(True, True), (True, False), (False, True)])
def test_a_buffer_that_training_changes_for_all_tasks_is_told_of_if_answers_depend_on_it(persistent, used):
    model = convert(nn.Sequential(nn.Linear(4, 4), Centre(persistent, used), nn.BatchNorm1d(4)), RNG)
    multitask.begin_task(model, 0, RNG)
    x = torch.rand(3, 4, generator=generator("centre"))
    kept = Kept(model)
    model.train()(x)
    changed = model[1].mean.clone()
    if persistent and used:
        with pytest.raises(ValueError, match=r"own 1\.mean changes in training"):
            kept.check(lambda: model.eval()(x))
    else:
        kept.check(lambda: model.eval()(x))
    assert changed.any() and torch.equal(model[1].mean, changed)
    kept.put_back()
    assert bool(model[1].mean.any()) != persistent


class ActNorm(nn.Module):
    """Takes a shift from its first batch into a parameter."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 4))
        self.register_buffer("begun", torch.tensor(False))

    def forward(self, x):
        if self.training and not self.begun:
            self.shift.data.copy_(-x.detach().mean(0))
            self.begun = torch.tensor(True)
        return x + self.shift


def test_a_parameter_that_training_changes_is_told_of():
    model = convert(nn.Sequential(nn.Linear(4, 4), ActNorm()), RNG)
    multitask.begin_task(model, 0, RNG)
    kept, x = Kept(model), torch.rand(3, 4, generator=generator("shift"))
    model.train()(x)
    with pytest.raises(ValueError, match=r"own 1\.shift changes in training"):
        kept.check(lambda: model.eval()(x))
    kept.put_back()
    assert not model[1].shift.any() and not model[1].begun


class Beside(nn.Module):
    """Parameters that are added or scale, and no matrices of weights."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 3, 4))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return x


def test_what_is_added_or_scales_stays_and_a_matrix_without_a_mask_is_warned_of(recwarn):
    convert(nn.Sequential(nn.Linear(4, 4), Beside(), nn.Sequential(nn.Dropout())), RNG)
    assert not recwarn
    for layer, name in ((Graph(), "0.mix"), (LowRank(), "0.low")):
        with pytest.warns(UserWarning, match=rf"without a mask: {name}$"):
            convert(nn.Sequential(layer, nn.Linear(4, 4)), RNG)


def test_a_plain_state_dict_of_batch_norms_is_taken_back():
    model = convert(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), RNG, 2)
    assert not any(model.load_state_dict(dict(model.state_dict())))
