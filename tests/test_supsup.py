"""The interface in Python: learn, infer, predict, evaluate, save, load, merge."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
        "bytes": ((x * 30 + 60).clamp(0, 255).byte(), y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=100),
        "iterator": iter([(x, y)]),
    }
    net = SupSup("LeNet", 10)
    for name, data in forms.items():
        loss = net.learn(name, data, epochs=1)
        assert net.learn(f"{name} for longer", forms[name] if name != "iterator" else [(x, y)], epochs=6) < loss, name


@pytest.mark.parametrize(
    "data, word",
    [
        ([], "no batch"),
        ([(torch.zeros(3, 1, 28, 28), torch.tensor([0, 1, 10]))], "0 to 10, should lie in 0 to 9"),
        ([(torch.zeros(3, 1, 28, 28), torch.tensor([0, 1]))], "as many images as labels"),
        ([(torch.zeros(3, 1, 28, 28), torch.zeros(3))], "whole numbers"),
        ([torch.zeros(3, 1, 28, 28)], "pair"),
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


def test_a_loss_that_is_no_number_is_not_kept(tasks):
    net = SupSup("LeNet", 10)
    x, y = tasks[1]["cats"][0]
    with pytest.raises(RuntimeError, match="not a finite number"):
        net.learn("a", [(x * float("nan"), y)])
    net.learn("b", [(x, y)])
    assert net.tasks == ["b"]


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
