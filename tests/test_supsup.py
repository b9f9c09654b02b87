"""The interface in Python: learn, infer, predict, evaluate, save, load, merge."""

import copy
import os
import queue
import random
import re
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

import main
from data import DATASETS
from supsup import SupSup
from utils.checkpoint import Checkpoint, Record, write_records

ROOT = Path(__file__).resolve().parents[1]


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 13 * 13, 100),
        nn.ReLU(),
        nn.Linear(100, 40),
    )


@pytest.fixture(scope="module")
def tasks():
    """Three permutations of the digits: loaders of training and test batches, by name."""
    data = DATASETS["DigitsPerm"](num_tasks=3)
    train, test = {}, {}
    for task, name in enumerate(("cats", "dogs", "birds")):
        data.update_task(task)
        train[name], test[name] = data.train_loader, list(data.val_loader)
    return train, test


@pytest.fixture(scope="module")
def learned(tasks):
    net = SupSup(network(), outputs=40)
    for name, loader in tasks[0].items():
        net.learn(name, list(loader), epochs=15)
    return net


def test_tasks_are_learned_and_inferred(learned, tasks):
    for name, score in learned.evaluate(tasks[1], images=16).items():
        assert score.given > 0.9 and score.adapted > 0.9, name
        assert score.inferred_right == 1


def test_inference_is_the_gradient_of_the_coefficients(learned, tasks):
    """Against plain autograd through the weighted sum of masks."""
    x = tasks[1]["dogs"][0][0][:7]
    scores = learned.scores(x)
    alphas = torch.full((3,), 1 / 3, requires_grad=True)
    layers = [module for module in learned.model if hasattr(module, "parametrizations")]
    y, weights = x, []
    for layer in layers:
        masked = layer.parametrizations.weight[0]
        mixed = sum(alpha * masked.superposition([task], torch.ones(1)) for task, alpha in enumerate(alphas))
        weights.append(mixed.view(masked.bare))
    y = torch.relu(nn.functional.conv2d(x, weights[0], layers[0].bias, stride=2)).flatten(1)
    y = torch.relu(y @ weights[1].T + layers[1].bias) @ weights[2].T + layers[2].bias
    log_p = y.log_softmax(1)
    (-(log_p.exp() * log_p).sum(1).mean()).backward()
    torch.testing.assert_close(torch.tensor(list(scores.values())), -alphas.grad, rtol=1e-4, atol=1e-7)
    assert learned.infer(x) == "dogs" == list(scores)[int((-alphas.grad).argmax())]


def test_the_answers_of_a_task_are_those_of_its_mask(learned, tasks):
    x, y = tasks[1]["cats"][0]
    assert torch.equal(learned.predict(x), learned.predict(x, task="cats"))
    assert learned.predict(x).dtype == torch.int64 and (learned.predict(x) == y).float().mean() > 0.9


def test_saved_and_loaded_in_another_process_one_more_task_leaves_the_others_to_the_bit(learned, tasks, tmp_path):
    learned.save(tmp_path / "net.sup")
    x = tasks[1]["cats"][0][0]
    torch.save({"x": x, **{name: learned.logits(x, name) for name in learned.tasks}}, tmp_path / "logits.pt")
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
from supsup import SupSup
from test_supsup import network
net = SupSup.load({str(tmp_path / "net.sup")!r}, network())
kept = torch.load({str(tmp_path / "logits.pt")!r}, weights_only=True)
assert net.tasks == ["cats", "dogs", "birds"]
def same():
    return all(torch.equal(net.logits(kept["x"], name), kept[name]) for name in ("cats", "dogs", "birds"))
assert same()
net.learn("one more", [(kept["x"], torch.zeros(len(kept["x"]), dtype=torch.int64))], epochs=3)
assert same() and net.tasks[-1] == "one more"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_task_depends_on_the_seed_and_its_place_alone(tasks, tmp_path):
    first, second = (SupSup("LeNet", outputs=20, seed=3) for _ in range(2))
    batch = [tasks[1]["cats"][0]]
    first.learn("a", batch, epochs=2)
    second.learn("other", [tasks[1]["dogs"][0]], epochs=1)
    for net in (first, second):
        net.learn("b", batch, epochs=2)
    x = batch[0][0]
    assert torch.equal(first.logits(x, "b"), second.logits(x, "b"))


def test_merge_takes_tasks_learned_elsewhere(tasks, tmp_path):
    here, there, other = SupSup("LeNet", 20), SupSup("LeNet", 20), SupSup("LeNet", 20, seed=1)
    batch = [tasks[1]["cats"][0]]
    here.learn("a", batch)
    there.learn("b", batch)
    other.learn("c", batch)
    x = batch[0][0]
    there.save(tmp_path / "there.sup")
    here.merge(tmp_path / "there.sup")
    assert here.tasks == ["a", "b"] and torch.equal(here.logits(x, "b"), there.logits(x, "b"))
    with pytest.raises(ValueError, match="'b' already"):
        here.merge(tmp_path / "there.sup")
    other.save(tmp_path / "other.sup")
    with pytest.raises(ValueError, match="other frozen weights"):
        here.merge(tmp_path / "other.sup")


@pytest.mark.parametrize("norms", ["batch", "task"])
def test_merge_takes_no_task_that_was_learned_with_other_norms_if_there_are_any(norms, tmp_path):
    def made(norms, *layers):
        return SupSup(nn.Sequential(nn.Flatten(), nn.Linear(16, 20), *layers, nn.Linear(20, 10)), 10, norms=norms)

    other = "task" if norms == "batch" else "batch"
    for layers in ([nn.BatchNorm1d(20)], []):
        net, path = made(norms, *layers), tmp_path / "net.sup"
        net.learn("a", (X, Y))
        net.save(path)
        made(norms, *layers).merge(path)
        if layers:
            with pytest.raises(ValueError, match=f"learned with norms='{norms}', here they are '{other}'"):
                made(other, *layers).merge(path)
        else:
            made(other, *layers).merge(path)


def test_merge_takes_all_tasks_of_a_file_or_none(tmp_path):
    here, there = SupSup("LeNet", 10, input_shape=(1, 4, 4)), SupSup("LeNet", 10, input_shape=(1, 4, 4))
    batch = (torch.randn(4, 1, 4, 4), torch.arange(4))
    here.learn("a", [batch])
    for name in ("b", "c"):
        there.learn(name, [batch])
    path = tmp_path / "there.sup"
    there.save(path)
    first, one, other = Checkpoint(path).read()[0]
    cut = {name: value[:-1] for name, value in other.tensors.items()}
    for record, said in (
        (Record("task", {"name": "c"}, cut), "mask of the task 'c' is torch.uint8"),
        (Record("task", {"name": "c"}, {}), "of the task 'c' is not there"),
        (Record("task", {"name": "b"}, other.tensors), "tasks are called"),
        (Record("task", {}, other.tensors), "tasks are called"),
    ):
        write_records(path, [first, one, record])
        with pytest.raises(ValueError, match=said):
            here.merge(path)
        assert here.tasks == ["a"]
    write_records(path, [first, one, other])
    here.merge(path)
    assert here.tasks == ["a", "b", "c"]


def test_a_merge_brings_the_shape_of_images_where_none_was_seen_and_changes_no_other(tmp_path):
    def anew():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))

    def of_images(size):
        net = SupSup(anew(), 10)
        if size:
            net.learn(f"of {size}", [(torch.randn(4, 1, size, size), torch.arange(4))])
            net.save(tmp_path / f"{size}.sup")
        return net

    new, small, _ = of_images(None), of_images(8), of_images(12)
    for net in (new, small):
        net.merge(tmp_path / "12.sup")
    for net, size in ((new, 12), (small, 8)):
        net.save(tmp_path / "merged.sup")
        for one in (net, SupSup.load(tmp_path / "merged.sup", anew())):
            with pytest.raises(
                ValueError, match=rf"should be \(batch, 1, {size}, {size}\); of one image it is x\[None\]"
            ):
                one.predict(torch.randn(1, 9, 9))


def test_many_tasks_find_room():
    net = SupSup("LeNet", 10, input_shape=(1, 4, 4))
    x, y = torch.randn(4, 1, 4, 4), torch.arange(4)
    answers = {}
    for task in range(20):
        net.learn(str(task), [(x, y)])
        answers[str(task)] = net.logits(x, str(task))
    assert all(torch.equal(net.logits(x, name), logits) for name, logits in answers.items())


def test_data_come_in_many_forms(tasks):
    x, y = (torch.cat(parts) for parts in zip(*tasks[1]["cats"], strict=True))
    forms = {
        "arrays": (x.numpy(), y.numpy()),
        "labels without signs": (x.numpy(), y.numpy().astype(np.uint16)),
        "bytes": ((x * 30 + 60).clamp(0, 255).byte(), y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=100),
        "iterator": iter([(x, y)]),
    }
    net = SupSup("LeNet", 10)
    for name, data in forms.items():
        loss = net.learn(name, data, epochs=1)
        assert net.learn(f"{name} for longer", forms[name] if name != "iterator" else [(x, y)], epochs=6) < loss, name


def test_bytes_that_may_be_ids_are_told_of_where_they_become_pixels():
    net, y = SupSup(nn.Linear(12, 8), 8), torch.arange(8)
    ids = torch.arange(96, dtype=torch.uint8).view(8, 12)
    said = "are taken for pixels and divided by 255; if they are ids or codes, give them as int64"
    with pytest.warns(UserWarning, match=said):
        net.learn("bytes", (ids, y))
    with pytest.warns(UserWarning, match=said):
        assert torch.equal(net.logits(ids, "bytes"), net.logits(ids / 255, "bytes"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.learn("numbers", (ids.long(), y))
        SupSup(nn.Sequential(nn.Flatten(), nn.Linear(12, 8)), 8).learn("images", (ids.view(8, 3, 4), y))


def test_no_part_of_complex_numbers_is_left_out_without_a_word():
    net, x, y = SupSup(nn.Linear(12, 8), 8), torch.randn(8, 12), torch.arange(8)
    net.learn("real", (x, y))
    for use in (
        lambda data: net.learn("arrays", data),
        lambda data: net.learn("batches", [data]),
        lambda data: net.evaluate({"real": data}),
        lambda data: net.infer(data[0]),
    ):
        with pytest.raises(ValueError, match="x: is complex, and networks take real numbers"):
            use((x + 1j, y))
    assert net.tasks == ["real"]


class Short:
    def __len__(self):
        return 3

    def __iter__(self):
        yield torch.zeros(3, 1, 28, 28), torch.arange(3)


class Broken(TensorDataset):
    def __init__(self):
        super().__init__(torch.zeros(9, 1, 28, 28), torch.zeros(9, dtype=torch.int64))

    def __getitem__(self, row):
        if row == 4:
            raise IndexError("no row 4")
        return super().__getitem__(row)


@pytest.mark.parametrize(
    "data, word",
    [
        ([], "no batch"),
        ([(torch.zeros(3, 1, 28, 28), torch.tensor([0, 1, 10]))], "0 to 10, should lie in 0 to 9"),
        ([(torch.zeros(3, 1, 28, 28), torch.tensor([0, 1]))], "as many images as labels"),
        ([(torch.zeros(3, 1, 28, 28), torch.zeros(3))], "whole numbers"),
        ([torch.zeros(3, 1, 28, 28)], "pair"),
        (Short(), "has 3 batches by its length, but gave 1"),
        (DataLoader(Broken(), batch_size=4), "data: cannot be read: no row 4"),
        ([(torch.zeros(3, 1, 28, 28), torch.arange(3)), (torch.zeros(0, 1, 28, 28), torch.arange(0))], "has no images"),
        ([(torch.full((3, 1, 28, 28), torch.nan), torch.arange(3))], "no finite numbers"),
        ([{"image": torch.zeros(3, 1, 28, 28), "label": torch.arange(3)}], "not a mapping of image, label"),
        ({"x": torch.zeros(3, 1, 28, 28)}, "not dict"),
    ],
)
def test_bad_data_are_refused(data, word):
    net = SupSup("LeNet", 10)
    with pytest.raises(ValueError, match=word):
        net.learn("a", data)
    assert net.tasks == []


def test_images_that_the_network_does_not_take_are_refused_by_the_parameters_name(tmp_path):
    own = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 10))
    x, y = torch.randn(6, 1, 4, 4), torch.arange(6)
    for given, wrong in (("LeNet", "should be"), (own, "fails")):
        net = SupSup(given, 10, input_shape=(1, 4, 4))
        with pytest.raises(ValueError, match=f"^data.*{wrong}"):
            net.learn("a", [(torch.zeros(6, 3, 5, 5), y)])
        net.learn("a", (x, y))
        net.learn("b", (x.numpy(), y.numpy()))
        net.save(tmp_path / "net.sup")
        for one in (net, SupSup.load(tmp_path / "net.sup", given if given is own else None)):
            for call in (one.infer, one.predict, one.scores, one.logits, lambda x, net=one: net.predict(x, task="a")):
                with pytest.raises(ValueError, match=r"^x .*batch, 1, 4, 4\); of one image it is x\[None\]"):
                    call(x[0])
                with pytest.raises(ValueError, match=f"^x.*{wrong}"):
                    call(torch.zeros(6, 3, 5, 5))
                with pytest.raises(ValueError, match="^x: is no array of numbers"):
                    call("cat.png")
                with pytest.raises(ValueError, match="^x .*at least one image"):
                    call(x[:0])
        with pytest.raises(ValueError, match="^images=0"):
            net.infer(x, images=0)
        with pytest.raises(ValueError, match=f"^data.*{wrong}"):
            net.evaluate({"a": [(torch.zeros(6, 3, 5, 5), y)]})
        for labels in (y.float(), y + 5, y - 1, y[:, None]):
            with pytest.raises(ValueError, match="^data.* y "):
                net.learn("c", (x, labels))
        assert net.tasks == ["a", "b"]


def test_bad_calls_are_refused(learned, tmp_path):
    with pytest.raises(ValueError, match="already"):
        learned.learn("cats", [])
    with pytest.raises(ValueError, match="no task is learned"):
        SupSup("LeNet", 10).infer(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match="no task 'fish'"):
        learned.predict(torch.zeros(1, 1, 28, 28), task="fish")
    with pytest.raises(ValueError, match="give the module itself"):
        SupSup("net.py:Net", 10)
    with pytest.raises(ValueError, match="real_neurons"):
        SupSup("LeNet", 10, real_neurons=10)
    learned.save(tmp_path / "net.sup")
    with pytest.raises(ValueError, match="give one of the same layers"):
        SupSup.load(tmp_path / "net.sup")
    with pytest.raises(ValueError, match="does not fit|other frozen|has no place"):
        SupSup.load(tmp_path / "net.sup", nn.Sequential(nn.Flatten(), nn.Linear(784, 40)))


def test_a_train_that_gives_nothing_back_is_one_too(tmp_path):
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[2].eval()

    def made():
        return Frozen(nn.Flatten(), nn.Linear(16, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))

    net = SupSup(made(), 10)
    net.learn("a", (X, Y))
    net.save(tmp_path / "net.sup")
    loaded = SupSup.load(tmp_path / "net.sup", made())
    assert loaded.infer(X) == "a" and torch.equal(loaded.logits(X), net.logits(X))
    assert torch.allclose(loaded.logits(X[:1], "a"), net.logits(X)[:1], atol=1e-5)  # a product of another shape


def test_attention_of_another_width_is_told_of_by_the_parameters_name():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0].mean(1))

    class Broken(TensorDataset):
        def __getitem__(self, row):
            raise AssertionError("no such row")

    net, x = SupSup(Attention(), 10), torch.randn(8, 3, 4)
    net.learn("a", (x, Y))
    for call, name in ((net.predict, "x"), (net.infer, "x"), (lambda x: net.learn("b", (x, Y)), "data")):
        with pytest.raises(ValueError, match=f"^{name}: the network fails on such a batch: .*embed"):
            call(torch.randn(8, 3, 6))
    with pytest.raises(ValueError, match="^data: cannot be read: no such row"):
        net.learn("b", DataLoader(Broken(x, Y)))


def test_a_loss_that_is_no_number_is_not_kept(tasks):
    net = SupSup("LeNet", 10)
    x, y = tasks[1]["cats"][0]
    with pytest.raises(RuntimeError, match="not a finite number"):
        net.learn("a", [(torch.full_like(x, 3e38), y)])
    net.learn("b", [(x, y)])
    assert net.tasks == ["b"]


X, Y = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def small(outputs=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, outputs))


@pytest.mark.parametrize("name", [7, None, b"cats", ("cats",)], ids=repr)
def test_a_task_has_a_text_for_a_name(name):
    net = SupSup(small(), 10)
    with pytest.raises(ValueError, match="^name=.*should be a text"):
        net.learn(name, (X, Y))
    assert net.tasks == []


def test_numbers_of_numpy_and_torch_are_taken_kept_and_give_what_plain_ones_give(tmp_path):
    odd = {"sparsity": np.float32(0.25), "er_sparsity": np.bool_(False), "seed": np.int64(3)}
    odd |= {"real_neurons": np.int8(5), "input_shape": np.array([1, 4, 4]), "masks": np.str_("top-k")}
    plain = {"sparsity": 0.25, "seed": 3, "real_neurons": 5, "input_shape": (1, 4, 4), "masks": "top-k"}
    nets = [SupSup("LeNet", np.int64(10), **odd), SupSup("LeNet", 10, **plain)]
    nets[0].learn(np.str_("a"), (X, Y), epochs=torch.tensor(2), lr=np.float64(0.01), batch_size=np.int64(4))
    nets[1].learn("a", (X, Y), epochs=2, lr=0.01, batch_size=4)
    nets[0].save(tmp_path / "net.sup")
    loaded = SupSup.load(tmp_path / "net.sup")
    assert loaded.settings == nets[0].settings == nets[1].settings and loaded.tasks == ["a"]
    assert torch.equal(loaded.logits(X), nets[1].logits(X))
    layers = SupSup("LeNet", 10, input_shape=(1, 4, 4), layers={"sparsity": np.float32(0.25)})
    layers.save(tmp_path / "layers.sup")
    assert SupSup.load(tmp_path / "layers.sup").settings == layers.settings


@pytest.mark.parametrize(
    "given, said",
    [
        ({"model": "Lenet"}, "model: .*did you mean LeNet"),
        ({"model": nn.Linear}, "^model: is a type"),
        ({"model": "evil.py:b"}, "give the module itself"),
        ({"model": "evil.py:b:c"}, "model: invalid choice"),
        ({"outputs": 0}, "^SupSup: outputs: '0' is not a whole number"),
        ({"outputs": 10.5}, "^SupSup: outputs"),
        ({"input_shape": (28, 28)}, "^input_shape"),
        ({"input_shape": (1, 28, 2.5)}, "^input_shape=2.5"),
        ({"masks": "treshold"}, "^masks='treshold'.*did you mean threshold"),
        ({"masks": "top-k", "sparsity": 1.5}, "sparsity. 1.5: is a fraction"),
        ({"sparsity": float("nan")}, "^SupSup: sparsity"),
        ({"er_sparsity": 1}, "^SupSup: er_sparsity"),
        ({"weights": "signed"}, "^SupSup: weights: .*did you mean signed_constant"),
        ({"weights": "signed", "model": small()}, "^SupSup: weights: .*did you mean signed_constant"),
        ({"norms": "tasks"}, "^norms='tasks'.*did you mean task"),
        ({"norms": ["task"]}, "^norms"),
        ({"layers": {"conv_typ": "MaskConv"}}, "^layers: there is no 'conv_typ'; did you mean conv_type"),
        ({"layers": {"conv_type": "PSP"}}, "^layers: conv_type: .*did you mean PSPRotation"),
        ({"real_neurons": 10}, "^real_neurons=10"),
        ({"real_neurons": 2.5}, "^real_neurons=2.5"),
        ({"seed": -1}, "^SupSup: seed"),
    ],
    ids=str,
)
def test_what_a_network_cannot_be_given_is_refused_by_its_name(given, said):
    with pytest.raises(ValueError, match=said):
        SupSup(**{"model": "LeNet", "outputs": 10} | given)


@pytest.mark.parametrize(
    "option, said",
    [
        ({"optimizer": "adams"}, "optimizer: .*did you mean adam"),
        ({"lr_policy": "cosine"}, "lr_policy: .*did you mean cosine_lr"),
        ({"amp": "fp16"}, "amp"),
        ({"epochs": 0}, "epochs: '0' is not a whole number that is at least 1"),
        ({"epochs": 1.5}, "epochs"),
        ({"iter_lim": 0}, "iter_lim"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -3}, "batch_size"),
        ({"lr": 0}, "lr"),
        ({"lr": None}, "lr"),
        ({"lr": [0.1]}, "lr"),
        ({"momentum": 2}, "momentum"),
        ({"warmup_length": -1}, "warmup_length"),
        ({"train_weight_tasks": 1}, "train_weight_tasks"),
    ],
    ids=str,
)
def test_what_learning_cannot_be_told_is_refused_before_anything_is_kept(option, said):
    net = SupSup(small(), 10)
    with pytest.raises(ValueError, match=said):
        net.learn("a", (X, Y), **option)
    with pytest.raises(TypeError, match="no option 'iter_limit'; did you mean iter_lim"):
        net.learn("a", (X, Y), iter_limit=3)
    assert net.tasks == []


def test_evaluation_refuses_numbers_that_are_none_and_has_nothing_to_say_of_no_data():
    net = SupSup(small(), 10)
    net.learn("a", (X, Y))
    for wrong in ({"images": 0}, {"images": -1}, {"images": 1.5}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
            net.evaluate({"a": (X, Y)}, **wrong)
    assert net.evaluate({}) == {}


@pytest.mark.parametrize("outputs, real", [(50, 20), (50, None), (5, None)])
def test_a_network_that_has_other_outputs_than_it_is_said_to_have_learns_nothing(outputs, real):
    net = SupSup(small(10), outputs=outputs, real_neurons=real)
    with pytest.raises(ValueError, match=rf"^outputs={outputs}: .*\(8, 10\), should be \(8, {outputs}\)"):
        net.learn("a", (X, Y))
    assert net.tasks == []


def test_a_network_that_answers_with_something_else_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = small()

        def forward(self, x):
            return self.layers(x), x

    with pytest.raises(ValueError, match="^outputs=10: .*with tuple"):
        SupSup(Two(), 10).learn("a", (X, Y))


def test_a_network_that_fails_without_a_word_is_told_so_too():
    class Silent(nn.Sequential):
        def forward(self, x):
            raise RuntimeError

    with pytest.raises(ValueError, match="^data: the network fails .*RuntimeError"):
        SupSup(Silent(nn.Linear(16, 10)), 10).learn("a", (X, Y))


def test_what_can_be_gone_through_once_is_kept_as_it_was_and_read_no_further_than_needed():
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 6, generator=draw), torch.arange(4)) for _ in range(3)]

    def reusing():
        x = torch.empty(4, 6)
        while True:
            for own, y in batches:
                yield x.copy_(own), y

    for data in (batches, reusing()):
        net = SupSup(nn.Sequential(nn.Linear(6, 5)), outputs=5)
        net.learn("a", data, epochs=2, iter_lim=3)
        logits = net.logits(batches[0][0])
        if data is batches:
            expected = logits
    assert torch.equal(logits, expected)


def test_arrays_of_other_libraries_are_arrays():
    class Frame:  # as of pandas: its rows have names, not numbers
        def __init__(self, values):
            self.values, self.shape = values, values.shape

        def to_numpy(self):
            return self.values

    x, y = np.random.RandomState(0).rand(8, 6).astype(np.float32), np.arange(8) % 3
    learned = []
    for data in (
        (x, y),
        (x, [*y.tolist()]),
        (Frame(x), Frame(y)),
        (x[:, ::-1][:, ::-1], y[::-1][::-1]),
        (x.astype(">f4"), y),
    ):
        net = SupSup(nn.Sequential(nn.Linear(6, 5)), outputs=5)
        net.learn("a", data, batch_size=4)
        learned.append(net.logits(torch.from_numpy(x)))
    assert all(torch.equal(logits, learned[0]) for logits in learned)
    grown = (torch.from_numpy(x).requires_grad_() * 2, torch.from_numpy(y))
    SupSup(nn.Sequential(nn.Linear(6, 5)), outputs=5).learn("a", grown, batch_size=4, epochs=2)


def test_one_image_that_batch_norm_makes_like_any_other_is_of_no_task():
    net = SupSup(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)), outputs=5)
    for name in ("a", "b"):
        net.learn(name, (torch.rand(8, 6), torch.arange(8) % 3))
    with pytest.raises(ValueError, match="x: with batch norm this one image is like any other"):
        net.predict(torch.rand(1, 6))
    assert len(net.predict(torch.rand(1, 6), task="b")) == 1 and net.infer(torch.rand(8, 6)) in ("a", "b")


def test_what_is_evaluated_has_names_and_finite_numbers(learned, tasks):
    with pytest.raises(ValueError, match="data: should be the batches of each task, by its name, not list"):
        learned.evaluate(tasks[1]["cats"])
    for value in (torch.inf, 1e300):  # which is none in float32
        with pytest.raises(ValueError, match="x: has values that are no finite numbers"):
            learned.predict(torch.full((2, 1, 28, 28), value, dtype=torch.float64), task="cats")


def test_noise_that_wanes_by_a_counter_is_what_it_would_be_without_a_check():
    class Waning(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen: list[int] = []
            self.register_buffer("steps", torch.tensor(0))

        def forward(self, x):
            if self.training:
                self.steps += 1
                self.seen.append(int(self.steps))
            return x

    net = SupSup(nn.Sequential(Waning(), nn.Linear(6, 5)), outputs=5)
    for name in ("a", "b"):
        net.learn(name, [(torch.rand(4, 6), torch.arange(4))] * 3)
        assert net.model[0].seen == [1, 2, 3] and int(net.model[0].steps) == 0
        net.model[0].seen.clear()


def test_a_network_whose_forward_is_that_of_another_learns_nothing_and_is_told_so():
    model = nn.Sequential(nn.Linear(4, 5))
    forward = model.forward
    model.forward = lambda x: forward(x)
    net = SupSup(model, outputs=5)
    with pytest.raises(ValueError, match="model: its answer does not come from the layers"):
        net.learn("a", [(torch.ones(2, 4), torch.arange(2))])
    assert net.tasks == []


class Partly(nn.Module):
    """Reaches its first layer without gradients, or as a function that a copy shares; and its last in some batches."""

    def __init__(self, how):
        super().__init__()
        self.back, self.side, self.head = nn.Linear(16, 20), nn.Linear(20, 20), nn.Linear(20, 10)
        self.how, self.call, self.calls = how, lambda x: self.back(x), 0

    def forward(self, x):
        x = x.flatten(1)
        with torch.set_grad_enabled(self.how != "no gradient"):
            x = self.call(x) if self.how == "function" else self.back(x)
        self.calls += 1
        x = self.side(x.relu()) if self.calls % 2 else x
        return self.head(x.relu())


@pytest.mark.parametrize("how", ["no gradient", "function", "gradient"])
def test_layers_that_no_gradient_reaches_are_told_of(how, recwarn):
    net = SupSup(Partly(how), 10)
    net.learn("a", (X, Y), batch_size=4, epochs=2)
    told = [str(warning.message) for warning in recwarn]
    if how == "gradient":
        assert not told
    else:
        (line,) = told
        assert line.startswith("no gradient reached the masks of back.weight, which stay as they were drawn; ")


def test_learning_leaves_the_callers_random_numbers_as_they_are():
    net = SupSup(nn.Sequential(nn.Linear(4, 5), nn.Dropout()), outputs=5)
    state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    net.learn("a", [(torch.ones(2, 4), torch.arange(2))])
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python and np.array_equal(np.random.get_state()[1], numpy)


def test_tasks_that_were_learned_apart_and_merged_are_told_apart(tasks, tmp_path):
    """Their numbers are the same, and they would start from the same scores if these hung on the number alone."""
    nets = []
    for names in (("cats", "dogs"), ("birds",)):
        nets.append(SupSup(network(), outputs=40))
        for name in names:
            nets[-1].learn(name, list(tasks[0][name]), epochs=15)
    nets[1].save(tmp_path / "birds.sup")
    nets[0].merge(tmp_path / "birds.sup")
    assert all(score.inferred_right > 0.9 for score in nets[0].evaluate(tasks[1]).values())


def test_what_data_draw_comes_from_the_callers_generators():
    class Drawn:
        def __iter__(self):
            for _ in range(3):
                drawn.append((random.random(), float(np.random.random())))
                yield torch.ones(2, 4), torch.arange(2)

        def __len__(self):
            return 3

    class Drawing(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1 + random.random() + np.random.random())

    for layer in (nn.Linear(4, 5), Drawing(4, 5)):
        found = []
        for seed in (1, 2, 1):
            random.seed(seed)
            np.random.seed(seed)
            drawn = []
            net = SupSup(nn.Sequential(layer), outputs=5)
            net.learn("a", Drawn(), epochs=2)
            net.learn("b", Drawn(), epochs=2)
            found.append(drawn)
        assert found[0] == found[2] != found[1] and len(set(found[0])) == len(found[0]) >= 12


class Sequences(nn.Module):
    """Answers sequences (batch, length, 4) of any length."""

    def __init__(self):
        super().__init__()
        self.each, self.all = nn.Linear(4, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.all(self.each(x).relu().sum(1))


class Keeping(Sequences):
    """Keeps, as it answers, a table of as many places as it has seen, a larger one, a count; or makes a layer."""

    def __init__(self, kept):
        super().__init__()
        self.kept, self.head = kept, None
        table = {"no table": None, "table": torch.zeros(2, 4), "count": torch.tensor(0)}
        self.register_buffer("seen", table.get(kept))

    def forward(self, x):
        if self.kept == "count":
            self.seen += 1
        elif self.kept != "layer" and (self.seen is None or len(self.seen) < x.shape[1]):
            self.seen = torch.arange(4.0 * x.shape[1]).view(-1, 4) / 9 + 1
        elif self.kept == "layer" and self.head is None:
            self.head = nn.Linear(5, 5)
        x = x * self.seen[: x.shape[1]] if "table" in self.kept else x
        return self.head(super().forward(x)) if self.head else super().forward(x)


@pytest.mark.parametrize("kept", ["no table", "table", "count"])
def test_what_a_network_keeps_as_it_answers_is_in_no_file(kept, tmp_path):
    draw = torch.Generator().manual_seed(0)
    short, long, y = torch.randn(8, 3, 4, generator=draw), torch.randn(8, 6, 4, generator=draw), torch.arange(8) % 4
    net, other = SupSup(Keeping(kept), 5), SupSup(Keeping(kept), 5)
    net.learn("a", (short, y))
    answer = net.logits(short, "a")
    net.predict(long)
    net.save(tmp_path / "net.sup")
    other.learn("b", (long, y))
    other.merge(tmp_path / "net.sup")
    other.save(tmp_path / "other.sup")
    for path in ("net.sup", "other.sup"):
        loaded = SupSup.load(tmp_path / path, Keeping(kept))
        loaded.learn("c", (long, y))
        for one in (net, other, loaded):
            assert torch.equal(one.logits(short, "a"), answer)
    if kept == "table":
        with pytest.raises(ValueError, match=r"net\.sup: does not fit this network: .* seen, \(2, 4\)"):
            SupSup.load(tmp_path / "net.sup", Keeping("no table"))


def test_a_layer_that_comes_into_being_with_the_first_batch_is_refused(tmp_path):
    x, y = torch.randn(8, 3, 4), torch.arange(8) % 4
    net = SupSup(Keeping("layer"), 5)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^model: its own head\.weight came into being with its first batch"):
            net.learn("a", (x, y))
        assert net.tasks == []
    network = Keeping("layer")
    network(x)
    SupSup(network, 5).learn("a", (x, y))


@pytest.mark.parametrize("lengths", [[5, 3, 3, 5], [4, 1, 4, 1, 1]])
def test_batches_of_several_shapes_are_evaluated_as_each_is_inferred(lengths):
    net = SupSup(Sequences(), outputs=5)

    def batches(key):
        draw = torch.Generator().manual_seed(key)
        return [
            (torch.randn(8, length, 4, generator=draw) * (1 + key), torch.randint(0, 3, (8,), generator=draw))
            for length in lengths
        ]

    for task in range(3):
        net.learn(str(task), batches(task), epochs=5, lr=1e-2)
    tests = {str(task): batches(10 + task) for task in range(3)}
    for images in (1, None):
        for name, score in net.evaluate(tests, images=images).items():
            right = [net.infer(x, images=images) == name for x, _ in tests[name]]
            assert score.inferred_right == pytest.approx(sum(right) / len(right))


def test_a_layer_may_keep_what_is_no_tensor(tmp_path):
    class Versioned(nn.Linear):
        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            raise AssertionError

    net, data = SupSup(nn.Sequential(Versioned(4, 5)), outputs=5), [(torch.ones(2, 4), torch.arange(2))]
    net.learn("a", data)
    net.save(tmp_path / "net.sup")
    again = SupSup.load(tmp_path / "net.sup", nn.Sequential(Versioned(4, 5)))
    assert torch.equal(again.logits(data[0][0]), net.logits(data[0][0]))


def test_labels_are_those_of_real_neurons():
    net = SupSup(small(), 10, real_neurons=3)
    with pytest.raises(ValueError, match="labels y go from 0 to 3, should lie in 0 to 2"):
        net.learn("a", (X, Y))
    net.learn("a", (X, Y % 3))
    with pytest.raises(ValueError, match="should lie in 0 to 2"):
        net.evaluate({"a": (X, Y)})
    assert net.tasks == ["a"]


@pytest.mark.parametrize("model", ["LeNet", "module", "norms"])
def test_modes_of_torch_that_know_no_gradient_change_nothing(model, tmp_path):
    def made():
        own = {
            "LeNet": "LeNet",
            "module": small(),
            "norms": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)),
        }
        return own[model]

    def used(x, y, mode):
        net = SupSup(made(), 10, input_shape=(1, 4, 4))
        for name, part in (("a", slice(0, 4)), ("b", slice(4, 8))):
            net.learn(name, [(x[part], y[part])], epochs=3)
        net.save(tmp_path / mode)
        net = SupSup.load(tmp_path / mode, made() if model != "LeNet" else None)
        answers = [net.scores(x), net.scores(x, images=2), net.infer(x), net.evaluate({"a": (x, y), "b": [(x, y)]})]
        return answers, [net.logits(x), net.logits(x, "b"), net.predict(x)]

    @contextmanager
    def double():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)

    answers, tensors = used(X, Y, "usual")
    for mode in (torch.inference_mode, torch.no_grad, double, partial(torch.autocast, "cpu", torch.bfloat16)):
        with mode():
            assert torch.is_inference_mode_enabled() == (X.clone().is_inference()) == (mode is torch.inference_mode)
            again, others = used(X.clone(), Y.clone(), "other")
            assert torch.is_autocast_enabled("cpu") == isinstance(mode, partial)
            assert (torch.get_default_dtype() == torch.float64) == (mode is double)
        assert again == answers
        assert all(torch.equal(one, other) for one, other in zip(tensors, others, strict=True))


def test_what_is_no_number_is_of_no_task():
    net = SupSup(small(), 10)
    for name in ("a", "b"):
        net.learn(name, (X, Y))
    with pytest.raises(ValueError, match="^x: .*no finite number"):
        net.infer(X * float("nan"))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_of_another_precision_computes_in_float32(kind):
    net = SupSup(small().to(kind), 10, weights=None)
    net.learn("a", (X, Y))
    assert net.infer(X) == "a" and net.logits(X).dtype == torch.float32


class Coarse(nn.Module):
    """Computes in bf16 where it says so itself, and drops units in training."""

    def __init__(self):
        super().__init__()
        self.inner, self.drop = small(), nn.Dropout(0.5)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(self.drop(x))


def test_answers_are_of_evaluation_and_in_float32_whatever_the_network_is_told():
    net = SupSup(Coarse(), 10)
    for name in "ab":
        net.learn(name, (X, Y))
    scores, logits = net.scores(X), net.logits(X)
    assert logits.dtype == torch.float32
    net.model.train()
    assert net.scores(X) == scores
    net.model.train()
    assert torch.equal(net.logits(X), logits)


def test_a_loader_over_a_stream_is_data_too():
    class Stream(IterableDataset):
        def __iter__(self):
            return zip(X, Y, strict=True)

    nets = [SupSup(small(), 10, seed=1) for _ in range(2)]
    nets[0].learn("a", DataLoader(Stream(), batch_size=4), epochs=2)
    nets[1].learn("a", [(X[:4], Y[:4]), (X[4:], Y[4:])], epochs=2)
    assert torch.equal(nets[0].logits(X), nets[1].logits(X))


class Shared(IterableDataset):
    """Images that workers share out, as torch's documentation shows it; without an end if ``endless``."""

    def __init__(self, images, endless=False):
        self.images, self.endless = images, endless

    def __iter__(self):
        worker, passes = get_worker_info(), count() if self.endless else [0]
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return ((X[row % len(X)], Y[row % len(X)]) for _ in passes for row in range(first, self.images, step))

    def __len__(self):
        return self.images


@pytest.mark.parametrize(
    "workers, more, batches",
    [
        (0, {}, [4, 4, 4, 4, 2]),
        (2, {}, [4, 4, 4, 4, 1, 1]),
        (2, {"drop_last": True, "batch_size": 5}, [5, 5]),
    ],
)
def test_all_batches_of_a_stream_that_workers_share_out_are_learned(workers, more, batches):
    """Their loader's ``len`` knows nothing of the rest that each worker has."""
    net, seen = SupSup(small(), 10, seed=1), []
    loader = DataLoader(Shared(18), **({"batch_size": 4, "num_workers": workers} | more))
    net.model.register_forward_hook(lambda model, given, _: seen.append(len(given[0])) if model.training else None)
    state = torch.get_rng_state()
    net.learn("a", loader, epochs=2, lr_policy="cosine_lr")
    assert seen == 2 * batches and torch.equal(torch.get_rng_state(), state)
    net.learn("b", loader, epochs=3, iter_lim=len(batches) + 1)
    assert seen == 3 * batches + batches[:1]
    assert set(net.evaluate({"a": loader})) == {"a"}


def test_an_epoch_of_a_stream_without_end_is_as_long_as_it_says():
    net, seen = SupSup(small(), 10, seed=1), []
    net.model.register_forward_hook(lambda model, given, _: seen.append(len(given[0])) if model.training else None)
    net.learn("a", DataLoader(Shared(18, endless=True), batch_size=4, num_workers=2), epochs=2)
    assert seen == [4] * 10


def test_saving_goes_where_a_link_leads_and_takes_the_place_of_no_pipe(tmp_path):
    net = SupSup("LeNet", 10, input_shape=(1, 4, 4))
    (tmp_path / "far").mkdir()
    for name in ("there.sup", "new.sup"):
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
    (tmp_path / "far" / "there.sup").write_text("old")
    for name in ("there.sup", "new.sup"):
        net.save(tmp_path / name)
        assert (tmp_path / name).is_symlink() and SupSup.load(tmp_path / "far" / name).tasks == []
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null", tmp_path / "far"):
        with pytest.raises(OSError):
            net.save(path)
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    "about",
    [
        {"settings": None},
        {"settings": {}},
        {"settings": {"model": "LeNet"}},
        {"settings": {"model": "evil.py:b", "outputs": 10}},
        {"settings": {"model": "LeNet", "outputs": 10, "layers": 3}},
        {"settings": {"model": "LeNet", "outputs": 10, "layers": {"weights": "/dev/zero"}}},
        {"settings": {"model": "LeNet", "outputs": 10, "input_shape": 3}},
        {"settings": {"model": "LeNet", "outputs": 10, "device": "cpu"}},
        {"settings": {"model": 5, "outputs": 10}},
        {"frozen": None},
        {"image_shape": 7},
        {"image_shape": ["a"]},
    ],
    ids=str,
)
def test_a_file_whose_beginning_makes_no_sense_is_refused(about, tmp_path):
    net, path = SupSup("LeNet", 10, input_shape=(1, 4, 4)), tmp_path / "net.sup"
    net.save(path)
    (first,) = Checkpoint(path).read()[0]
    write_records(path, [Record(first.kind, first.values | about, first.tensors)])
    with pytest.raises(ValueError):
        SupSup.load(path)


def test_the_example_of_the_readme_infers_its_tasks_right(tmp_path, monkeypatch, capsys):
    (example,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "from supsup import SupSup" in block
    ]
    assert len(example.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 and all(line[0] == "birds" for line in lines)
    assert SupSup.load("net.sup", names["network"]).tasks == ["cats", "dogs", "birds"]
    for name, task in zip(names["net"].tasks, range(3), strict=True):
        names["digits"].update_task(task)
        score = names["net"].evaluate({name: names["digits"].val_loader}, images=8)[name]
        assert score.inferred_right == 1 and score.adapted > 0.95


class Unit(nn.Module):
    """Features of length 1, or of none: the root has no gradient at 0."""

    def forward(self, x):
        return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-6)


@pytest.mark.parametrize("masks", ["threshold", "top-k"])
def test_a_gradient_that_is_no_number_is_not_kept(masks):
    net = SupSup(nn.Sequential(nn.Flatten(), nn.Linear(16, 20), Unit(), nn.Linear(20, 10)), 10, masks=masks)
    blank = X.clone()
    blank[3] = 0
    with pytest.raises(RuntimeError, match="a gradient was not a finite number, though"):
        net.learn("blank", (blank, Y), epochs=2)
    net.learn("sound", (X, Y))
    assert net.tasks == ["sound"]


class Running(nn.Module):
    """A norm by hand, whose mean training changes for all tasks, where no state_dict has it."""

    def __init__(self, registered):
        super().__init__()
        if registered:
            self.register_buffer("mean", torch.zeros(20), persistent=False)
        else:
            self.mean = torch.zeros(20)

    def forward(self, x):
        if self.training:
            self.mean = (0.9 * self.mean + 0.1 * x.mean(0)).detach()
        return x - self.mean


@pytest.mark.parametrize("registered", [True, False])
def test_what_changes_the_answers_of_learned_tasks_is_named_wherever_it_is_kept(registered):
    net = SupSup(nn.Sequential(nn.Flatten(), nn.Linear(16, 20), Running(registered), nn.Linear(20, 10)), 10)
    net.learn("one", (X, Y))
    with pytest.warns(UserWarning, match="the answers of task 'one' have changed"):
        net.learn("two", (X * 5 + 4, Y))
    with pytest.warns(UserWarning, match="the answers of task 'two' have changed"):
        net.learn("three", (X, Y))


def test_shared_statistics_of_the_projects_own_norms_are_named_too():
    net = SupSup("BNNet", 10, input_shape=(1, 4, 4), layers={"bn_type": "StandardBN"})
    net.learn("one", (X, Y))
    with pytest.warns(UserWarning, match="the answers of task 'one' have changed"):
        net.learn("two", (X * 5 + 4, Y))


class Odd(nn.Module):
    """Networks that answer as they should, and otherwise than others do."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.inner = kind, small()

    def forward(self, x):
        if self.kind == "changes its images":
            x = x.sub_(0.5).div_(0.25)
        if self.kind == "takes whole batches":
            x = x.view(2, 4, 1, 4, 4).flatten(0, 1)
        answer = self.inner(x)
        return answer + 1e-3 * float(np.random.rand()) if self.kind == "draws" else answer


@pytest.mark.parametrize("kind", ["changes its images", "takes whole batches", "draws"])
def test_sound_networks_are_not_said_to_change(kind):
    net = SupSup(Odd(kind), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in "ab":
            net.learn(name, (X.clone(), Y), epochs=2)


class Scaled(nn.Module):
    """Scales its images, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place, self.inner = in_place, nn.Sequential(small(), nn.BatchNorm1d(10))

    def forward(self, x):
        return self.inner(x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25)


def test_a_network_that_scales_its_images_in_place_answers_as_one_that_does_not():
    """And the caller's batches are as they were."""
    batches = [(X[:5].clone(), Y[:5]), (X[5:].clone(), Y[5:])]
    answers = []
    for in_place in (False, True):
        net = SupSup(Scaled(in_place), 10)
        for name in "ab":
            net.learn(name, batches, epochs=2)
        answers.append(
            [net.scores(X), net.infer(X), net.logits(X).tolist(), *map(vars, net.evaluate({"b": batches}).values())]
        )
    assert answers[0] == answers[1]
    assert all(
        torch.equal(torch.cat(own), given) for own, given in zip(zip(*batches, strict=True), (X, Y), strict=True)
    )


class Again(torch.autograd.Function):
    """Computes a layer without a graph, and again on the way back, as reversible blocks do."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(gradient)
        return x.grad, None


class Adjoint(Again):
    """As ``Again``, to the input and to parameters that are named."""

    @staticmethod
    def forward(ctx, x, layer, *parameters):
        ctx.parameters = parameters
        return Again.forward(ctx, x, layer)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            to_x, *others = torch.autograd.grad(ctx.layer(x), (x, *ctx.parameters), gradient)
        return to_x, None, *others


class Recomputed(nn.Module):
    def __init__(self, through):
        super().__init__()
        self.first, self.last, self.through = nn.Linear(16, 20), small(), through
        self.middle = nn.Sequential(nn.ReLU(), nn.Linear(20, 16), nn.Tanh())

    def forward(self, x):
        return self.last(self.through(self.first(x.flatten(1)), self.middle))


THROUGH = {
    "backward inside": Again.apply,
    "checkpoint": lambda x, layer: checkpoint(layer, x, use_reentrant=True),
    "parameters": lambda x, layer: Adjoint.apply(x, layer, *(p for p in layer.parameters() if p.requires_grad)),
}


@pytest.mark.parametrize("through", THROUGH)
def test_inference_takes_the_gradient_of_blocks_that_compute_again_on_the_way_back(through):
    answers = []
    for how in (lambda x, layer: layer(x), THROUGH[through]):
        net = SupSup(Recomputed(how), 10)
        for name in "ab":
            net.learn(name, (X, Y), epochs=2)
        bias = net.model.first.bias.requires_grad_()
        bias.grad = torch.ones(20)
        names = [name for name, _ in net.model.named_parameters()]
        answers.append(net.scores(X))
        assert torch.equal(bias.grad, torch.ones(20)) and net.model.last[1].bias.grad is None
        assert [name for name, _ in net.model.named_parameters()] == names
    assert answers[0] == answers[1]


def test_threads_that_learn_in_turn_leave_the_callers_default_type(monkeypatch):
    net, failed = SupSup(small(), 10), []
    torch.set_default_dtype(torch.float64)

    def learn(name):
        try:
            net.learn(name, (X, Y), epochs=20)
        except Exception as error:
            failed.append(error)

    try:
        threads = [threading.Thread(target=learn, args=name) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_data_may_ask_the_network_that_learns_them():
    net = SupSup(small(), 10)
    net.learn("one", (X, Y))
    made = queue.Queue()
    thread = threading.Thread(target=lambda: made.put((X, net.predict(X, "one"))))

    def batches():
        thread.start()
        yield made.get(timeout=60)

    net.learn("two", batches())
    thread.join()
    assert net.tasks == ["one", "two"]


def test_outputs_that_a_network_closes_do_not_hinder_inference():
    """Where an output is minus infinity its share of the entropy is 0, as without the output."""

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            return self.inner(x).masked_fill(torch.arange(10) >= 5, -torch.inf)

    class Cut(Closed):
        def forward(self, x):
            return self.inner(x)[:, :5]

    closed, cut = SupSup(Closed(), 10), SupSup(Cut(), 5)
    for net in (closed, cut):
        for number, name in enumerate("ab"):
            net.learn(name, (X + number, Y), epochs=3)
    for name, score in cut.scores(X).items():
        assert closed.scores(X)[name] == pytest.approx(score, rel=1e-5)
    scores = [net.evaluate({"a": (X, Y), "b": (X + 1, Y)}).values() for net in (closed, cut)]
    assert [score.inferred_right for score in scores[0]] == [score.inferred_right for score in scores[1]]


def test_a_batch_that_says_nothing_of_its_task_is_warned_of():
    net = SupSup(small(), 10)
    for number, name in enumerate("ab"):
        net.learn(name, (X + number, Y), epochs=3)
    assert net.infer(X) in "ab"
    for nothing in (X * 1e6, torch.zeros_like(X)):
        with pytest.warns(UserWarning, match="the derivatives of all tasks are equal"):
            assert net.infer(nothing) == "a"


def test_threads_take_turns(tmp_path):
    net = SupSup(small(), 10)
    for number, name in enumerate("abc"):
        net.learn(name, (X + number, Y), epochs=3)
    alone = {name: net.logits(X, name) for name in "abc"}
    wrong = []

    def ask(name):
        wrong.extend(name for _ in range(100) if not torch.equal(net.logits(X, name), alone[name]))

    threads = [threading.Thread(target=ask, args=name) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    again = copy.deepcopy(net)
    assert torch.equal(again.logits(X, "b"), alone["b"])
    again.learn("d", (X, Y))


def test_what_main_wrote_is_named_as_what_it_is(tmp_path):
    words = ["--threads", "1", "--multigpu", "cpu", "--num-tasks", "1", "--iter-lim", "1", "--log-dir", str(tmp_path)]
    assert main.main([*words, "--name", "run", "--export", str(tmp_path / "a.sup")]) == 0
    with pytest.raises(ValueError, match="is an export of main.py, which goes on from it"):
        SupSup.load(tmp_path / "a.sup")
    with pytest.raises(ValueError, match="is the checkpoint of a run of main.py"):
        SupSup.load(tmp_path / "run" / "checkpoint.pt")


def test_it_is_shown_by_its_tasks():
    net = SupSup(small(), 10)
    net.learn("one", (X, Y))
    assert repr(net) == "SupSup(Sequential, outputs=10, tasks=['one'])"
