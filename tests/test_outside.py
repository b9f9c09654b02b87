"""Networks that are not the project's own, through the program: torchvision's, and those of a user's file."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import main
from args import parse_arguments
from models import MODELS, multitask
from models.builder import Builder, product_sizes
from models.outside import from_file, load_weights
from trainers.fit import check_fit
from trainers.setup import build
from utils.checkpoint import Checkpoint, write_records
from utils.parallel import Group
from utils.seeding import generator

NETWORKS = """
import os
import random
import threading
import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer
import beside

class Vit(VisionTransformer):
    def __init__(self, outputs, input_shape):
        super().__init__(input_shape[1], 8, 1, 2, 16, 32, num_classes=outputs)

class Plain(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.LazyLinear(20), nn.ReLU(), nn.Linear(20, num_classes))

class Dropout(nn.Sequential):
    def __init__(self, output_size):
        super().__init__(nn.Flatten(), nn.Linear(192, 40), nn.Dropout(0.3), nn.ReLU(), nn.Linear(40, output_size))

class Depth(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.first, self.last = nn.Linear(192, 192), nn.Linear(192, outputs)
    def forward(self, x):
        x = x.flatten(1)
        if not self.training or random.random() < 0.5:
            x = self.first(x).relu()
        return self.last(x * np.random.uniform(0.9, 1.1) if self.training else x)

class Slight(Depth):  # so that tasks at once have nearly the gradients that they have alone
    def forward(self, x):
        return self.last(self.first(x.flatten(1) * (1 + 1e-6 * np.random.uniform())).relu())

class Fixed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 5))

class Numbers(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.scale = float(torch.ones(1))
        self.layer = nn.Linear(192, outputs)
    def forward(self, x):
        return self.layer(x.flatten(1)) * self.scale

class Seen(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        return x / (1 + self.seen)

class Centre(nn.Sequential):
    def __init__(self, outputs):
        super().__init__(nn.Flatten(), Seen(), nn.Linear(192, outputs))

class Counter(Seen):
    def forward(self, x):
        super().forward(x)
        return x

class Counted(nn.Sequential):
    def __init__(self, outputs):
        super().__init__(Counter(), nn.Flatten(), nn.Linear(192, outputs))

class Frozen(Numbers):
    def __init__(self, outputs):
        super().__init__(20)
        self.head = nn.Linear(20, outputs)
    def forward(self, x):
        with torch.no_grad():
            x = super().forward(x)
        return self.head(x)

class Wrapped(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.module = Numbers(outputs)
    def forward(self, x):
        return self.module(x)
    def train(self, mode=True):
        super().train(mode)

class Locked(Numbers):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.lock = threading.Lock()

class Two(Numbers):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

class Steps(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.first, self.last = nn.Linear(192, 20), nn.Linear(20, outputs)
    def between(self, x):
        return x
    def forward(self, x):
        return self.last(self.between(self.first(x.flatten(1)).relu()))

class Picky(Steps):
    def forward(self, x):
        if float(x.detach().max()) > 1:  # as of an image that is normalised
            raise IndexError("no `epochs` here")
        return super().forward(x)

class PickyLater(Picky):
    def forward(self, x):
        return Steps.forward(self, x) if self.training else super().forward(x)

class Moving(Steps):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.mean = torch.zeros(20)
    def between(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean

class Cached(Steps):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.register_buffer("mean", torch.zeros(20), persistent=False)
    between = Moving.between

class Reversed(nn.Sequential):
    def __init__(self, outputs):
        super().__init__(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, outputs))
        self[3].register_full_backward_hook(lambda module, inner, outer: (-inner[0],))

class Asking(Steps):
    def between(self, x):
        return x.detach() * 2 - x if x.requires_grad else x

class Hooked(Steps):
    def between(self, x):
        if self.training:
            x.register_hook(lambda gradient: -gradient)
        return x

class Asked(Steps):
    def between(self, x):
        if x.requires_grad:
            x.register_hook(lambda gradient: -gradient)
        return x

class Checkpointed(Steps):
    def between(self, x):
        return checkpoint(torch.tanh, x, use_reentrant=False)

class Again(Steps):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.norm, self.seen = nn.BatchNorm1d(20), 0
    def between(self, x):
        self.seen += self.training
        return checkpoint(self.norm, x, use_reentrant=False)

class Overwritten(Steps):
    def between(self, x):
        return x.exp().mul_(2) + x.exp_()

class Detached(Steps):
    def forward(self, x):
        return super().forward(x).detach()

class Still(Steps):
    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            return super().forward(x)

class Tied(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(192, 20), nn.Linear(20, 20), nn.Linear(20, outputs)
        self.again = self.middle
    def forward(self, x):
        return self.last(self.again(self.middle(self.first(x.flatten(1)).relu()).relu()).relu())

class Whole(nn.Linear):
    def __init__(self, *shape):
        super().__init__(*shape)
        self.bits = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)

def whole(outputs):
    return nn.Sequential(nn.Flatten(), Whole(192, outputs))

class Noisy(Steps):
    def forward(self, x):
        return super().forward(x) * (2 if random.random() > 0.8 else 1)

class Lost(Steps):
    def forward(self, x):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > 3:
                os.kill(os.getpid(), 9)
        return super().forward(x)

class Odd(nn.Module):
    def __init__(self, need):
        super().__init__()

def made(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))

text = "no network"
"""


@pytest.fixture
def files(tmp_path):
    """A file of networks, and small coloured images of six classes, 8×8 and 32×32."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "broken.py").write_text("a = 1\nb = a / 0\n")
    rng, labels = np.random.RandomState(0), np.arange(48) % 6
    for name, side in (("small", 8), ("large", 32)):
        classes = rng.randint(0, 256, (6, side, side, 3))
        images = [np.clip(classes[labels] * 0.7 + rng.randint(0, 80, classes[labels].shape), 0, 255) for _ in range(2)]
        train, test = (each.astype(np.uint8) for each in images)
        np.savez(
            tmp_path / f"{name}.npz", train_images=train, train_labels=labels, test_images=test, test_labels=labels
        )
    return tmp_path


def words(files: Path, model: str, *more, name="run", size="small") -> list[str]:
    return [
        *("--threads", "1", "--multigpu", "cpu", "--num-tasks", "3", "--batch-size", "8", "--iter-lim", "2"),
        *("--set", f"npz:{files / size}.npz", "--model", model, "--output-size", "8", "--test-batch-size", "8"),
        *("--log-dir", str(files / "runs"), "--name", name, *map(str, more)),
    ]


def state(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    records, damaged = Checkpoint(run / "checkpoint.pt").read()
    assert not damaged
    return {record.values["task"]: record.tensors for record in records if record.kind == "task"}


def own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a task's state does not depend on which task was learned first."""
    return {name: value for name, value in tensors.items() if name.startswith("own.")}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def scores(run: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(run / "adapt_results.csv", newline="") as file:
        return {(row["tasks_learned"], row["task"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("model, size", [("torchvision:resnet18", "small"), ("nets.py:Vit", "large")])
def test_three_tasks_are_learned_inferred_kept_and_exported(files, model, size):
    model = model.replace("nets.py", str(files / "nets.py"))
    export = files / "learned.sup"
    assert main.main(words(files, model, "--eval-ckpts", "2", "--export", export, size=size)) == 0
    run = files / "runs" / "run"
    learned, measured = state(run), scores(run)
    for task in ("0", "1"):  # nothing of a learned task changes
        assert measured["2", task]["given"] == measured["3", task]["given"]
        assert measured["3", task]["adapted"] and measured["3", task]["inferred_right"]
    about = yaml.safe_load((run / "settings.yaml").read_text())
    assert 0.4 < about["kept_fraction"]["total"] < 0.6 and about["bytes"]["packed"] > 0

    # Cut short after two tasks, the run goes on and ends in the same bits.
    (files / "runs" / "cut").mkdir()
    records, _ = Checkpoint(run / "checkpoint.pt").read()
    write_records(files / "runs" / "cut" / "checkpoint.pt", records[:3])
    assert main.main(words(files, model, "--eval-ckpts", "2", "--resume", name="cut", size=size)) == 0
    again = state(files / "runs" / "cut")
    assert all(same(learned[task], again[task]) for task in range(3)) and scores(files / "runs" / "cut") == measured

    # A task alone is as in the sequence; what was exported is there again.
    assert main.main(words(files, model, "--task-eval", "1", "--adaptor", "gt", name="alone", size=size)) == 0
    assert same(own(state(files / "runs" / "alone")[1]), own(learned[1]))
    assert main.main(words(files, model, "--import", export, name="imported", size=size)) == 0
    assert scores(files / "runs" / "imported") == {key: row for key, row in measured.items() if key[0] == "3"}


def test_tasks_at_once_are_as_alone_but_for_the_order_of_sums(files):
    model = f"{files / 'nets.py'}:Vit"
    assert main.main(words(files, model, "--adaptor", "gt")) == 0
    assert main.main(words(files, model, "--adaptor", "gt", "--tasks-in-parallel", "3", name="once")) == 0
    alone, once = (state(files / "runs" / name) for name in ("run", "once"))
    for task in range(3):
        for name, value in alone[task].items():
            differing = np.unpackbits((value ^ once[task][name]).numpy()).mean()
            assert differing < 0.02, name


@pytest.mark.parametrize("name", ["Dropout", "Depth", "Slight"])  # by torch; by Python and NumPy
def test_what_layers_draw_depends_on_the_seed_and_the_task_alone(name, files, capsys):
    model = f"{files / 'nets.py'}:{name}"
    assert main.main(words(files, model, "--adaptor", "gt")) == 0
    assert main.main(words(files, model, "--adaptor", "gt", "--task-eval", "2", name="alone")) == 0
    assert same(own(state(files / "runs" / "alone")[2]), own(state(files / "runs" / "run")[2]))
    capsys.readouterr()
    assert main.main(words(files, model, "--tasks-in-parallel", "2", name="once")) == 2
    assert "at once" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Reversed", "Asking", "Asked", "Hooked", "Checkpointed", "Again"])
def test_tasks_at_once_are_refused_where_a_network_would_train_otherwise_than_alone(name, files, capsys):
    argv = words(files, f"{files / 'nets.py'}:{name}", "--adaptor", "gt")
    assert main.main([*argv, "--tasks-in-parallel", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tasks-in-parallel 3: " in line and "at once" in line
    assert not (files / "runs").exists()
    assert main.main(argv) == 0  # as a hook that is set in training alone
    assert main.main([*argv, "--name", "one", "--tasks-in-parallel", "3", "--task-eval", "1"]) == 0  # none beside it
    assert same(own(state(files / "runs" / "one")[1]), own(state(files / "runs" / "run")[1]))


@pytest.mark.parametrize("name", ["Picky", "PickyLater"])
def test_a_network_that_fails_on_a_batch_stops_the_run_in_one_line(name, files, capsys):
    assert main.main(words(files, f"{files / 'nets.py'}:{name}", "--adaptor", "gt")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "stopped: the network fails on a batch: IndexError: no 'epochs' here; 0 learned tasks are saved" in line


def test_rounding_keeps_no_deep_network_from_training_tasks_at_once(files):
    model = ("torchvision:resnet50", "--weights", "given")  # whose gradients differ by a hundredth at once
    assert main.main(words(files, *model, "--adaptor", "gt", "--tasks-in-parallel", "2", size="large")) == 0


def test_trying_a_network_changes_nothing_of_it_or_of_what_is_drawn(files):
    def digest(*more):
        torch.manual_seed(1)
        args = parse_arguments(words(files, f"{files / 'nets.py'}:Counted", "--weights", "given", *more))
        data, model, trainer = build(args, torch.device("cpu"), Group())
        check_fit(args, data, model, trainer)
        return multitask.shared_state(model)["0.seen"], torch.rand(1)

    assert digest("--adaptor", "gt") == digest("--tasks-in-parallel", "3")


def test_a_run_is_known_by_its_given_weights_wherever_a_layer_stands_twice(files):
    model = f"{files / 'nets.py'}:Tied"
    argv = words(files, model, "--weights", "given")
    assert main.main([*argv, "--tasks-in-parallel", "3"]) == 0
    assert main.main([*argv, "--resume"]) == 0
    Image.new("RGB", (8, 8)).save(files / "image.png")
    resume = ["--resume", str(files / "runs" / "run"), "--model", model]
    assert main.main(["--predict", str(files / "image.png"), *resume]) == 0


@pytest.mark.parametrize("name", ["Noisy", "whole"])
def test_what_a_network_draws_or_counts_does_not_have_it_refused(name, files):
    builder = Builder(partial(generator, 0), 3)
    for _ in range(20):
        assert from_file(str(files / "nets"), name, builder, (3, 8, 8), 8)


def test_no_gradient_is_asked_of_a_network_that_is_told_tasks_by_its_answers(files):
    argv = words(files, f"{files / 'nets.py'}:Still", "--adaptor", "se_be_adapt")
    assert main.main(argv) == 0
    assert main.main([*argv[:-2], "--adaptor", "se_oneshot_entropy_minimization", "--name", "none"]) == 2


def test_a_process_that_is_lost_is_told_of_and_not_taken_for_a_network_that_fails(files, call):
    argv = words(files, f"{files / 'nets.py'}:Lost", "--adaptor", "gt", "--epochs", "3", "--multigpu", "cpu,cpu")
    done = call("main.py", *argv)
    assert done.returncode == 1 and "the process on cpu ended with status -9" in done.stderr.splitlines()[-1]


def test_layers_that_no_gradient_reaches_are_told_of_when_tasks_are_learned_one_by_one(files):
    argv = words(files, f"{files / 'nets.py'}:Frozen", "--adaptor", "gt", "--weights", "given")
    with pytest.warns(UserWarning, match="^no gradient reached the masks of layer.weight, which stay"):
        assert main.main(argv) == 0
    assert main.main([*argv, "--name", "once", "--tasks-in-parallel", "3"]) == 0


@pytest.mark.parametrize("prefix, suffix", [("", ".pth"), ("module.", ".pth"), ("", ".safetensors")])
def test_given_weights_stay_and_another_head_is_drawn(files, prefix, suffix, capsys):
    from safetensors.torch import save_file

    weights = {"1.weight": torch.randn(20, 192), "1.bias": torch.randn(20)}
    weights |= {"3.weight": torch.randn(1000, 20), "3.bias": torch.randn(1000)}
    weights = {prefix + name: value for name, value in weights.items()}
    path = files / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save({"state_dict": weights}, path)
    argv = words(files, f"{files / 'nets.py'}:Plain", "--adaptor", "gt", "--weights", path)
    args = parse_arguments(argv)
    _, model, _ = build(args, torch.device("cpu"), Group())
    masked = model[1].parametrizations.weight[0]
    assert torch.equal(masked.weight.flatten(), weights[f"{prefix}1.weight"].flatten())
    assert torch.equal(model[1].bias, weights[f"{prefix}1.bias"])
    assert model[3].parametrizations.weight[0].weight.unique().numel() > 100  # drawn, not constant
    assert main.main([*argv, "--export", str(files / "e.sup")]) == 0
    path.rename(files / f"moved{suffix}")  # where the file lies is nothing to the run; what is in it is
    moved = words(files, f"{files / 'nets.py'}:Plain", "--adaptor", "gt", "--weights", files / f"moved{suffix}")
    assert main.main([*moved, "--resume"]) == 0
    other = {name: value + 1 for name, value in weights.items()}
    save_file(other, path) if suffix == ".safetensors" else torch.save(other, path)
    capsys.readouterr()
    assert main.main([*argv, "--resume"]) == 2
    assert "--weights" in capsys.readouterr().err
    assert main.main([*argv[:-4], "--weights", str(path), "--name", "i", "--import", str(files / "e.sup")]) == 2
    assert "--weights" in capsys.readouterr().err


def test_a_network_that_has_a_module_of_that_name_takes_its_own_weights(files):
    for prefix in ("", "module."):
        weights = {"module.layer.weight": torch.randn(8, 192), "module.layer.bias": torch.randn(8)}
        torch.save({prefix + name: value for name, value in weights.items()}, files / "weights.pth")
        argv = words(files, f"{files / 'nets.py'}:Wrapped", "--adaptor", "gt", "--weights", files / "weights.pth")
        _, model, _ = build(parse_arguments(argv), torch.device("cpu"), Group())
        assert torch.equal(model.module.layer.bias, weights["module.layer.bias"])
    assert main.main([word for word in argv if word not in ("--threads", "1")]) == 0


@pytest.mark.parametrize("kind", ["parameter", "embedding"])
def test_no_table_of_another_length_stays_random_where_weights_are_loaded(kind, tmp_path):
    network, path = nn.Module(), str(tmp_path / "weights.pth")
    network.head = nn.Linear(20, 5)
    network.places = nn.Embedding(16, 20) if kind == "embedding" else nn.Parameter(torch.randn(16, 20))
    name = "places.weight" if kind == "embedding" else "places"
    state = {name: value + 1 for name, value in network.state_dict().items()}
    torch.save(state | {name: state[name][:8]}, path)
    with pytest.raises(ValueError, match=rf"another network: {name} is \(8, 20\) there, \(16, 20\) here"):
        load_weights(network, path)
    torch.save(state | {"head.weight": torch.randn(9, 20), "head.bias": torch.randn(9)}, path)
    load_weights(network, path)
    assert torch.equal(network.state_dict()[name], state[name])


def test_the_file_may_lie_elsewhere_when_a_run_goes_on(files):
    assert main.main(words(files, f"{files / 'nets.py'}:made", "--adaptor", "gt", "--weights", "given")) == 0
    (files / "moved").mkdir()
    (files / "nets.py").rename(files / "moved" / "nets.py")
    (files / "beside.py").rename(files / "moved" / "beside.py")
    assert (
        main.main(
            words(files, f"{files / 'moved' / 'nets.py'}:made", "--adaptor", "gt", "--weights", "given", "--resume")
        )
        == 0
    )


def test_only_a_user_names_a_file_that_is_run(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert main.main(words(files, "nets.py:made", "--adaptor", "gt", "--export", "e.sup")) == 0
    (files / "nets.py").write_text("open('was run', 'w')\n" + NETWORKS)
    Image.new("RGB", (8, 8)).save("a.png")
    for argv in (["--import", "e.sup", "--name", "i"], ["--predict", "a.png", "--resume", "runs/run"]):
        capsys.readouterr()
        assert main.main(argv) == 2
        assert "--model nets.py:made" in capsys.readouterr().err
    assert not (files / "was run").exists()
    named = ["--predict", "a.png", "--resume", "runs/run", "--model", "nets.py:made", "--task-eval", "1"]
    assert main.main(named) == 0 and (files / "was run").exists()


@pytest.mark.parametrize("model", ["evil.py:b:c", "evil.py:b", "evil.py:b.c", "./evil.py:1", "evil.py:b\n", "evil.py:"])
def test_no_name_of_a_network_in_a_file_makes_it_run_another(model, files, capsys, monkeypatch):
    """However the name is written: told by an export, by the settings of a run, or by a config that they name."""
    monkeypatch.chdir(files)
    assert main.main(words(files, "nets.py:made", "--adaptor", "gt", "--export", "e.sup")) == 0
    Image.new("RGB", (8, 8)).save("a.png")
    (files / "evil.py").write_text("open('was run', 'w')\n")
    first, *tasks = Checkpoint("e.sup").read()[0]
    first.values["settings"]["model"] = model
    write_records(files / "e.sup", [first, *tasks])
    first, *more = Checkpoint("runs/run/checkpoint.pt").read()[0]
    (files / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    first.values |= {"original": True, "settings": first.values["settings"] | {"config": "config.yaml"}}
    first.values["settings"]["model"] = "torchvision:resnet18"
    write_records(files / "runs/run/checkpoint.pt", [first, *more])
    path = files / "runs/run/settings.yaml"
    about = yaml.safe_load(path.read_text())
    about["settings"]["model"] = model
    path.write_text(yaml.safe_dump(about))
    for argv in (["--import", "e.sup"], ["--merge", "e.sup"], ["--predict", "a.png", "--resume", "runs/run"]):
        capsys.readouterr()
        assert main.main([*argv, "--log-dir", "new"]) == 2, argv
        (line,) = capsys.readouterr().err.splitlines()
        assert "only you" in line or "invalid choice" in line, line
    main.main(["--resume", "runs/run/checkpoint.pt"])
    assert not (files / "was run").exists() and not (files / "new").exists()


@pytest.mark.parametrize("data", ["folder:/", "folder:..", "npz:../small.npz", "folder:~", "npz:/dev/zero"])
def test_no_file_says_that_data_lie_where_only_the_user_may_say(data, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    argv = words(files, "LeNet", "--num-tasks", "1", "--adaptor", "gt", "--export", "e.sup")
    assert main.main(argv) == 0
    first, *tasks = Checkpoint("e.sup").read()[0]
    assert first.values["settings"]["set"] == "npz:small.npz"
    first.values["settings"]["set"] = data
    write_records(files / "e.sup", [first, *tasks])
    capsys.readouterr()
    for flag in ("--import", "--merge"):
        assert main.main([flag, "e.sup", "--log-dir", "new"]) == 2
        assert f"only you may say that they are read there: --set {data}" in capsys.readouterr().err


def test_products_are_counted_where_shapes_tell_them(files):
    sizes = product_sizes(MODELS[f"{files / 'nets.py'}:made"], (16, 3, 8, 8), 10)
    assert sizes == [16 * 10 * 192]
    assert (
        main.main(
            [
                word
                for word in words(files, f"{files / 'nets.py'}:Numbers", "--adaptor", "gt")
                if word not in ("--threads", "1")
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    "model, more, said",
    [
        ("nets.py:Missing", [], ["no Missing", "Vit, Plain"]),
        ("nets.py:text", [], ["no text"]),
        ("absent.py:Net", [], ["absent.py: no such file"]),
        ("broken.py:Net", [], ["ZeroDivisionError", "line 2"]),
        ("nets.py:Fixed", [], ["(2, 5)", "(2, 8)"]),
        ("nets.py:Odd", [], ["Odd cannot be made", "need"]),
        ("torchvision:resnet19", [], ["no such network", "resnet18"]),
        ("torchvision:vit_b_16", [], ["takes no images (3, 8, 8)"]),
        ("nets.py:Two", [], ["tuple", "in training"]),
        ("nets.py:made", ["--conv-type", "StandardConv"], ["--conv-type StandardConv", "MultitaskMaskConv"]),
        ("nets.py:made", ["--bn-type", "StandardBN"], ["--bn-type StandardBN", "NonAffineNoStatsBN"]),
        ("nets.py:made", ["--width-mult", "2"], ["--width-mult"]),
        ("nets.py:made", ["--individual-heads"], ["--individual-heads"]),
        ("nets.py:made", ["--train-weight-tasks", "-1"], ["--train-weight-tasks"]),
        ("nets.py:made", ["--weights", "absent.pth"], ["absent.pth cannot be read"]),
        ("nets.py:made", ["--weights", "nets.py"], ["nets.py cannot be read"]),
        ("nets.py:made", ["--weights", "other.pth"], ["another network", "has no 1.bias"]),
        (
            "nets.py:Plain",
            ["--weights", "wide.pth"],
            ["another network", "1.weight is (20, 300) there, (20, 192) here"],
        ),
        ("nets.py:Locked", [], ["Locked cannot be copied", "lock"]),
        ("nets.py:Detached", [], ["without gradients", "in training, so no mask can be learned"]),
        ("nets.py:Overwritten", [], ["fails in its gradients in training", "inplace operation"]),
        ("nets.py:Still", [], ["--adaptor se_oneshot", "without gradients", "so no task can be inferred", "say gt"]),
        ("nets.py:Moving", [], ["keeps something of its own that changes in training", "keep it fixed"]),
        ("nets.py:Cached", [], ["keeps something of its own that changes in training", "keep it fixed"]),
        ("nets.py:Centre", [], ["own 1.seen changes in training", "learned tasks"]),
        ("LeNet", ["--weights", "other.pth"], ["--weights other.pth", "FILE.py:CLASS"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(files, model, more, said, capsys, monkeypatch):
    monkeypatch.chdir(files)
    torch.save({"2.weight": torch.zeros(1)}, "other.pth")
    wide = {"1.weight": (20, 300), "1.bias": (20,), "3.weight": (8, 20), "3.bias": (8,)}
    torch.save({name: torch.zeros(shape) for name, shape in wide.items()}, "wide.pth")
    assert main.main(words(files, model, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in said), line
    assert not (files / "runs").exists()
