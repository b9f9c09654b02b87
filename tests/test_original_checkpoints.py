"""Checkpoints of the original code: written here as it writes them, and loaded."""

import csv
import os
import pickle
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
import yaml

import main
from data import DATASETS
from models import Builder, get_model, multitask, superposition
from models.norms import MultitaskNonAffineBN, StandardBN
from supsup import SupSup
from trainers.inference import alpha_gradients, entropy, uniform
from utils.checkpoint import Checkpoint, named_part
from utils.errors import UserError
from utils.seeding import generator

TASKS = 3
LEARNED = 2  # of them
# What each kind of run is called, its network, its settings, and the shape of its images.
RUNS = {
    "threshold": ("LeNet", dict(conv_type="FastMultitaskMaskConv", output_size=20), (1, 28, 28)),
    "top-k": (
        "GEMResNet18",
        dict(conv_type="MultitaskMaskConv", bn_type="MultitaskNonAffineBN", er_sparsity=True, sparsity=8.0),
        (3, 32, 32),
    ),
    "one mask": (
        "ResNet18",
        dict(conv_type="MaskConv", bn_type="NonAffineBN", sparsity=0.3, task_eval=1),
        (3, 40, 40),
    ),
    "rank one": (
        "GEMResNet18",
        dict(conv_type="VectorizedBatchEnsembles", bn_type="MultitaskNonAffineBN", conv_init="default"),
        (3, 32, 32),
    ),
    "heads": (
        "GEMResNet18",
        dict(conv_type="StandardConv", bn_type="MultitaskNonAffineBN", individual_heads=True),
        (3, 32, 32),
    ),
    "upper bound": ("FC1024", dict(conv_type="StandardConv", bn_type="StandardBN"), (1, 28, 28)),
    "narrow": (
        "BNNet",
        dict(conv_type="StackedFastMultitaskMaskConv", bn_type="StandardBN", width_mult=0.02),
        (1, 8, 8),
    ),
    "no statistics": (
        "BNNet",
        dict(conv_type="MultitaskMaskConv", bn_type="NonAffineNoStatsBN", width_mult=0.02),
        (1, 8, 8),
    ),
}


def build(kind):
    """A network with learned tasks, and what the original code keeps of the same: (model, state_dict, args)."""
    arch, settings, shape = RUNS[kind]
    args = {"output_size": 10, "conv_init": "signed_constant", "seed": 5, "num_tasks": TASKS, **settings}
    names = ("conv_type", "bn_type", "conv_init", "sparsity", "er_sparsity", "individual_heads", "width_mult")
    builder = Builder(lambda *key: generator(77, *key), TASKS, **{name: args[name] for name in names if name in args})
    model = get_model(arch, builder, shape, args["output_size"])
    draw = torch.Generator().manual_seed(3)
    state = {}
    tasks = [args["task_eval"]] if "task_eval" in args else range(TASKS)
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor) and not isinstance(module, StandardBN):
            state[f"{name}.weight"] = module.weight.detach().clone()
        if isinstance(module, StandardBN):
            module.running_mean.normal_(0, 0.1, generator=draw)
            module.running_var.uniform_(0.5, 2, generator=draw)
            state |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
    for task in tasks:
        multitask.begin_task(model, task, lambda *key: generator(78, *key))
        theirs = {"scores": "scores", "head": "scores", "scale_in": "s", "scale_out": "t"}
        for name, value in multitask.task_parameters(model).items():
            layer, _, key = name.rpartition(".")
            number = "" if args["conv_type"] == "MaskConv" else f".{task}"
            state[f"{layer}.{theirs[key]}{number}"] = value.detach().clone()
        for name, module in model.named_modules():
            if isinstance(module, MultitaskNonAffineBN):
                module.mean.normal_(0, 0.1, generator=draw)
                module.variance.uniform_(0.5, 2, generator=draw)
                state[f"{name}.bns.{task}.running_mean"] = module.mean.clone()
                state[f"{name}.bns.{task}.running_var"] = module.variance.clone()
                state[f"{name}.bns.{task}.num_batches_tracked"] = torch.tensor(7)
        multitask.end_task(model)
    # As there: other names, in which nothing but the order is kept; all of a layer at once.
    layers = {name: place for place, name in enumerate(dict.fromkeys(n for n, _ in model.named_modules()))}
    renamed = {}
    for name in sorted(state, key=lambda name: layers[max((n for n in layers if name.startswith(f"{n}.")), key=len)]):
        theirs = name.replace("stages.", "layer").replace("head.", "linear.").replace("shortcut", "downsample")
        renamed[theirs] = state[name]
    return model.eval(), renamed, args


def write(path, state, args, prefix="", accuracies=None, **more):
    accuracies = [0.5] * LEARNED + [0.0] * (TASKS - LEARNED) if accuracies is None else accuracies
    content = {
        "epoch": 3,
        "arch": args.get("model", more.pop("arch", None)),
        "state_dict": {f"{prefix}{name}": value for name, value in state.items()},
        "best_acc1": accuracies,
        "curr_acc1": accuracies,
        "args": Namespace(**{"adaptor": "gt", "data": "/theirs", "multigpu": [0], "resume": None, "wd": 1e-4, **args}),
    }
    torch.save(content, path, **more)
    return path


@pytest.mark.parametrize("prefix, zipped", [("", True), ("module.", False)], ids=["plain", "old, with module."])
@pytest.mark.parametrize("kind", RUNS)
def test_logits_and_inferred_tasks_are_those_of_the_masks(kind, prefix, zipped, tmp_path):
    model, state, args = build(kind)
    arch, _, shape = RUNS[kind]
    accuracies = [0.0, 0.7, 0.0] if args.get("task_eval") == 1 else None
    form = {"_use_new_zipfile_serialization": zipped}
    net = SupSup.load(write(tmp_path / "model.pt", state, args, prefix, accuracies, arch=arch, **form))
    names = ["1"] if kind == "one mask" else ["0", "1"]
    assert net.tasks == names
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1))
    answers = {}
    for name in names:
        multitask.select_task(model, int(name))
        with torch.no_grad():
            answers[name] = model(x)
        assert torch.equal(net.logits(x, name), answers[name])
    if superposition.can_superpose(model):
        numbers = [int(name) for name in names]
        wanted = -alpha_gradients(model, numbers, uniform(len(numbers), torch.device("cpu")), x[None], entropy)[0]
        assert list(net.scores(x).values()) == wanted.tolist()
        assert net.infer(x) == names[int(wanted.argmax())]
    net.save(tmp_path / "net.sup")
    again = SupSup.load(tmp_path / "net.sup")
    assert all(torch.equal(again.logits(x, name), answers[name]) for name in names)


def small(pixels=4, **more):
    """LeNet written out: its state_dict and its args."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for layer, shape in ((1, (300, pixels, 1, 1)), (3, (100, 300, 1, 1)), (5, (10, 100, 1, 1))):
        state[f"model.{layer}.weight"] = torch.randn(shape, generator=draw) / 10
        state |= {f"model.{layer}.scores.{task}": torch.randn(shape, generator=draw) for task in range(TASKS)}
    return state, {"model": "LeNet", "conv_type": "FastMultitaskMaskConv", "num_tasks": TASKS, **more}


def test_by_hand(tmp_path):
    """Against the definition; a score of 0 keeps its weight, and of large scores the type does not matter."""
    state, args = small()
    state["model.1.scores.0"][0, :, 0, 0] = torch.tensor([0.0, -0.0, -1e-45, 1e-45])
    state["model.3.scores.0"] = state["model.3.scores.0"].double()
    state["model.3.scores.0"][0, 0] = -1e-60
    state["model.5.scores.0"] = state["model.5.scores.0"].half()
    net = SupSup.load(write(tmp_path / "model.pt", state, args))
    x = torch.randn(5, 1, 2, 2)
    for task in range(LEARNED):
        y = x.flatten(1)
        for layer in (1, 3, 5):
            weight = state[f"model.{layer}.weight"] * (state[f"model.{layer}.scores.{task}"] >= 0)
            y = F.linear(y, weight[:, :, 0, 0])
            y = y if layer == 5 else y.relu()
        torch.testing.assert_close(net.logits(x, str(task)), y)
    net.learn("one more", [(x, torch.arange(5))], epochs=2)
    assert net.tasks == ["0", "1", "one more"]


def test_which_factor_is_that_of_inputs_the_shapes_say(tmp_path):
    model, state, args = build("rank one")
    turn = {".s.": ".t.", ".t.": ".s."}
    turned = {}
    for name, value in state.items():
        key = next((key for key in turn if key in name), None)
        turned[name.replace(key, turn[key]) if key else name] = value[:, None, None] if key else value
    nets = [
        SupSup.load(write(tmp_path / f"{place}.pt", one, args, arch="GEMResNet18"))
        for place, one in enumerate((state, turned))
    ]
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(nets[0].logits(x, "1"), nets[1].logits(x, "1"))


class Code:
    """A pickle that runs a command when it is loaded without care."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def change(**new):
    """Make some tensors others; None takes one away."""

    def apply(state, args):
        for name, value in new.items():
            name = name.replace("__", ".")
            state[name] = value(state[name]) if callable(value) else value
            if value is None:
                del state[name]

    return apply


def flat(state, args):
    state |= {name: value.flatten() for name, value in state.items() if name.startswith("model.1.")}


def said(**new):
    return lambda state, args: args.update(new)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (change(model__1__weight=lambda w: w[:, :3]), "model.1 is (300, 4, 1, 1), here (300, 3, 1, 1)"),
        (change(model__3__scores__1=lambda w: w.transpose(0, 1)), "model.3 is (300, 100, 1, 1), here (100, 300"),
        (change(model__3__scores__1=lambda w: w * float("nan")), "model.3 holds what is no number"),
        (change(model__3__weight=lambda w: w / 0), "weight of its layer model.3 holds what is no number"),
        (change(model__3__scores__0=lambda w: w > 0), "scores.0 of its layer model.3 holds what is no number"),
        (change(model__3__scores__1=None), "its layer model.3 has no scores.1"),
        (change(model__3__scores__9999999=torch.ones(1)), "4 tasks, which are not numbered"),
        (change(**{f"model__3__scores__{'9' * 5000}": torch.ones(1)}), "which is of no layer that is known here"),
        (change(model__3__bias=torch.zeros(100)), "its layer model.3 has bias"),
        (change(model__4__fourth=torch.zeros(100)), "model.4.fourth, which is of no layer"),
        (change(model__4__weight=torch.zeros(2, 2, 1, 1)), "it has 4 convolutions, where LeNet has 3"),
        (change(model__4__running_mean=torch.zeros(100)), "1 batch norms with statistics, where LeNet has 0"),
        (change(model__1__weight=torch.zeros(3).to_sparse()), "model.1.weight, which is no tensor"),
        (change(model__1__weight="text"), "model.1.weight, which is no tensor"),
        (said(conv_type="StandardConv"), "its layer model.1 has scores.#"),
        (said(conv_type="MaskConv"), "its layer model.1 has no scores"),
        (said(conv_type="VectorizedBatchEnsembles"), "its layer model.1 has no s.0"),
        (said(conv_type="PSPRotation"), "PSPRotation cannot be read"),
        (said(conv_type="os.system"), "conv_type: invalid choice: 'os.system'"),
        (said(model="../../etc/passwd"), "model: '../../etc/passwd' is none of LeNet"),
        (said(model=["LeNet"]), "model: a value that is no text is none of"),
        (said(model="code.py:Network"), "model: 'code.py:Network' is none of"),
        (said(output_size="x" * 10**6), "output_size of 1,000,000 characters"),
        (said(output_size=10**300), "output_size: '1000"),
        (said(output_size=1.5), "output_size: '1.5' is not a whole number"),
        (said(output_size=11), "its layer model.5 is (10, 100, 1, 1), LeNet's (11, 100, 1, 1)"),
        (said(width_mult=float("nan")), "width_mult"),
        (said(width_mult=99.0), "its layer model.1 is (300, 4, 1, 1), LeNet's (29700, 4, 1, 1)"),
        (said(model="ResNet101"), "it has 3 convolutions, where ResNet101 has 105"),
        (change(model__1__weight=torch.zeros(1).expand(300, 4, 1, 1)), "model.1.weight, which is no tensor"),
        (flat, "its layer model.1 is no convolution"),
        (said(conv_type="MultitaskMaskConv", sparsity=float("inf")), "sparsity"),
        (said(task_eval=7), "its layer model.1 has no scores.7"),
        (said(seed=-1), "seed: '-1' is not a whole number"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused_in_one_line(spoil, words, tmp_path):
    state, args = small()
    spoil(state, args)
    path = write(tmp_path / "model.pt", state, args)
    with pytest.raises((ValueError, UserError)) as caught:
        SupSup.load(path)
    message = str(caught.value)
    assert words in message and str(path) in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize("zipped", [True, False], ids=["", "old"])
@pytest.mark.parametrize("place", ["args", "state_dict", "epoch"])
def test_code_in_a_file_is_not_run(place, zipped, tmp_path):
    state, args = small()
    code = Code(f"touch {tmp_path / 'ran'}")
    content = {"state_dict": state, "args": Namespace(**args), "curr_acc1": [0.5], place: code}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(code))
    for name in ("model.pt", "bare.pt"):
        with pytest.raises(UserError, match=rf"{name}: .*(system|damaged).*nothing of it was run$"):
            SupSup.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_other_files_of_torch_are_refused(tmp_path):
    state, args = small()
    good = write(tmp_path / "good.pt", state, args)
    settings = Namespace(**args)
    twice = {**state, "module.model.1.weight": state["model.1.weight"]}
    contents = {
        "weights": (state, "nor one of the original code"),
        "list": ([1, 2], "nor one of the original code"),
        "dict for args": ({"state_dict": state, "args": args}, "nor one of the original code"),
        "text": ({"state_dict": state, "args": settings, "curr_acc1": "0.5"}, "curr_acc1"),
        "nan": ({"state_dict": state, "args": settings, "curr_acc1": [float("nan")]}, "curr_acc1"),
        "many": ({"state_dict": state, "args": settings, "curr_acc1": [0.5] * 4}, "4 tasks, and the states of 3"),
        "twice": ({"state_dict": twice, "args": settings}, "with and without module."),
    }
    for name, (content, words) in contents.items():
        torch.save(content, tmp_path / name)
        with pytest.raises((ValueError, UserError), match=words):
            SupSup.load(tmp_path / name)
    damaged = {"cut": good.read_bytes()[:-500], "noise": b"\x80" + bytes(range(256)), "zip": b"PK\3\4abc"}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged; nothing of it was run"):
            SupSup.load(tmp_path / name)
    with pytest.raises(ValueError, match="no model is needed"):
        SupSup.load(good, torch.nn.Linear(2, 2))


def answers(checkpoint):
    """The masks of the tasks in a checkpoint of a run here, and its frozen weights."""
    records, damaged = Checkpoint(checkpoint).read()
    assert not damaged
    masks = {r.values["task"]: named_part(r.tensors, "own") for r in records if r.kind == "task"}
    return masks, named_part(records[1].tensors, "shared")


@pytest.mark.parametrize("flag, devices", [("--resume", "cpu"), ("--import", "cpu,cpu")])
def test_a_run_goes_on_in_a_folder_of_its_own(flag, devices, tmp_path, capsys):
    state, args = small(784, set="DigitsPerm", epochs=1, iter_lim=2, optimizer="sgd", lr=0.2, no_scheduler=True)
    file = write(tmp_path / "model.pt", state, args)
    before = file.read_bytes()
    words = ["--log-dir", tmp_path / "runs", "--threads", "1", "--multigpu", devices]
    words = list(map(str, words))
    assert main.main([flag, str(file), *words, "--adaptor", "se_oneshot_entropy_minimization"]) == 0
    folder = tmp_path / "runs" / "DigitsPerm-LeNet-seed=1"
    settings = yaml.safe_load((folder / "settings.yaml").read_text())["settings"]
    wanted = {"seed": 1, "optimizer": "sgd", "lr": 0.2, "lr_policy": "constant_lr", "epochs": 1, "num_tasks": 3}
    assert {name: settings[name] for name in wanted} == wanted and settings["adaptor"].startswith("se_oneshot")
    masks, weights = answers(folder / "checkpoint.pt")
    assert list(masks) == [0, 1, 2]  # two were learned there, the third here
    net = SupSup.load(file)
    for task in range(LEARNED):
        theirs = multitask.task_state(net.model, task)
        assert all(torch.equal(masks[task][name], theirs[name]) for name in theirs)
    assert torch.equal(weights["layers.0.weight"], state["model.1.weight"])
    table = list(csv.DictReader((folder / "adapt_results.csv").open()))
    data = DATASETS["DigitsPerm"](num_tasks=3, seed=1)
    for task in range(LEARNED):
        data.update_task(task)
        right = [net.logits(x, str(task)).argmax(1) == y for x, y in data.val_loader]
        assert float(table[task]["given"]) == pytest.approx(torch.cat(right).float().mean().item())
    assert file.read_bytes() == before
    # What it learned is learned over the weights of the file, and goes on without their settings given again.
    export = tmp_path / "net.sup"
    assert main.main(["--resume", str(folder / "checkpoint.pt"), "--lr", "0.3"]) == 2
    assert "other settings: --lr 0.2 there, 0.3 here" in capsys.readouterr().err
    assert main.main(["--resume", str(folder / "checkpoint.pt"), "--threads", "1", "--export", str(export)]) == 0
    assert answers(folder / "checkpoint.pt")[0].keys() == masks.keys()
    assert main.main(["--import", str(export), *words, "--name", "again", "--adaptor", "gt"]) == 0
    again, more = answers(tmp_path / "runs" / "again" / "checkpoint.pt")
    assert all(torch.equal(again[task][name], masks[task][name]) for task in masks for name in masks[task])
    assert all(torch.equal(more[name], weights[name]) for name in weights)


@pytest.mark.parametrize("kind", ["one mask", "upper bound"])
def test_layers_without_a_place_for_one_more_task_say_so(kind, tmp_path):
    arch, _, shape = RUNS[kind]
    _, state, args = build(kind)
    net = SupSup.load(write(tmp_path / "model.pt", state, args, accuracies=[0.0, 0.7], arch=arch))
    with pytest.raises(ValueError, match="no place for one more task"):
        net.learn("new", [(torch.zeros(2, *shape), torch.tensor([0, 1]))])
    assert net.tasks == ["1"]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (said(num_tasks=4), "it has the states of 3 tasks, its args say num_tasks 4"),
        (said(num_tasks=10**9), "num_tasks: '1000000000' is not a whole number"),
        (said(trainer="nns", adaptor="se_oneshot_entropy_minimization"), "--trainer nns also needs"),
        (said(set="folder:/"), "set: 'folder:/' is none of"),
        (said(model="code.py:Network"), "model: 'code.py:Network' is none of"),
        (said(log_dir="/", name="x", reinit_from="/etc/passwd", lr="much"), "lr: 'much' is not a number"),
        (change(model__3__scores__1=None), "its layer model.3 has no scores.1"),
        (change(model__1__weight=lambda w: w * float("nan")), "weight of its layer model.1 holds what is no number"),
        (lambda state, args: args.update(x=Code("touch ran")), "neither a tensor, a number nor text; nothing of it"),
    ],
)
def test_a_run_refuses_what_is_not_as_it_should_be_before_it_writes(spoil, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, args = small(784, set="DigitsPerm", epochs=1)
    spoil(state, args)
    path = tmp_path / "model.pt"
    write(path, state, args)
    assert main.main(["--resume", str(path), "--log-dir", str(tmp_path / "runs"), "--threads", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0] and "model.pt" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]


def test_the_command_line_wins_but_for_the_network(tmp_path, capsys):
    state, args = small(784, set="DigitsPerm")
    path = write(tmp_path / "model.pt", state, args)
    assert main.main(["--resume", str(path), "--seed", "4", "--log-dir", str(tmp_path)]) == 2
    assert f"{path} was made with other settings: --seed 1 there, 4 here" in capsys.readouterr().err
