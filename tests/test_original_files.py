"""What users of the original code bring along: its settings files, its flags, networks written for its builder."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import main
from args import make_parser, parse_arguments
from models import CONV_TYPES, MODELS, Builder, get_model, masked, multitask
from models.modules import IndividualHeads
from utils import paths
from utils.configs import ORIGINAL_DEFAULTS
from utils.errors import UserError
from utils.paths import PROJECT
from utils.seeding import generator

# The seven files, by their keys and values.
COMMON = {
    "data": "/path/to/dataset/parent",
    "set": "RandSplitCIFAR100",
    "seed": "REPLACE",
    "num_tasks": 20,
    "model": "GEMResNet18",
    "output_size": 5,
    "optimizer": "adam",
    "batch_size": 128,
    "test_batch_size": 128,
    "adapt": True,
    "adaptor": "gt",
    "hard_alphas": True,
    "adapt_lrs": [200],
    "eval_ckpts": [],
    "log_dir": "REPLACE",
    "bn_type": "MultitaskNonAffineBN",
}
MASKED = {
    "conv_type": "MultitaskMaskConv",
    "conv_init": "signed_constant",
    "er_sparsity": True,
    "sparsity": "REPLACE",
    "lr": 0.001,
    "epochs": 100,
    "name": "REPLACE",
    "save": True,
}
HEADS = {"conv_type": "StandardConv", "conv_init": "default", "individual_heads": True, "lr": 0.01, "epochs": 250}
FILES = {
    "rn18-supsup": COMMON | MASKED,
    "rn18-supsup-transfer": COMMON | MASKED | {"trainer": "reinit", "reinit_most_recent_k": 20},
    "rn18-batche-randw": COMMON
    | {"conv_type": "VectorizedBatchEnsembles", "conv_init": "default", "lr": 0.1, "epochs": 250}
    | {"train_weight_lr": 0.001, "train_weight_tasks": 0},
    "rn18-separate-heads": COMMON | HEADS | {"train_weight_lr": 0.001, "train_weight_tasks": 1},
    "rn18-separate-heads-randw": COMMON | HEADS,
    "rn18-upperbound": COMMON
    | {"conv_type": "StandardConv", "bn_type": "StandardBN", "conv_init": "default", "epochs": 250}
    | {"train_weight_lr": 0.001, "train_weight_tasks": -1},
    "rn50-supsup-adam": {
        "name": "rn50",
        "data": "/path/to/dataset",
        "log_dir": "/path/to/logs",
        "set": "SplitImageNet",
        "num_tasks": 100,
        "output_size": 10,
        "task_eval": -1,
        "save": True,
        "epochs": 100,
        "adapt": False,
        "optimizer": "adam",
        "lr": 0.001,
        "lr_policy": "cosine_lr",
        "warmup_length": 5,
        "wd": 0.0,
        "batch_size": 256,
        "model": "ResNet50",
        "conv_type": "MaskConv",
        "bn_type": "NonAffineBN",
        "conv_init": "signed_constant",
        "sparsity": 8,
        "er_sparsity": True,
        "workers": 20,
    },
}
# What their runs have in common, and what each of them has beside it.
CIFAR = {
    **{"data": "/path/to/dataset/parent", "log_dir": "logs", "set": "RandSplitCIFAR100", "seed": 3, "num_tasks": 20},
    **{"model": "GEMResNet18", "output_size": 5, "optimizer": "adam", "batch_size": 128, "test_batch_size": 128},
    **{"adaptor": "gt", "eval_ckpts": None, "bn_type": "MultitaskNonAffineBN", "lr_policy": "cosine_lr"},
    **{"warmup_length": 0, "weight_decay": 1e-4, "iter_lim": None, "real_neurons": 10, "data_to_repeat": 1},
    **{"gamma": 0.0, "log_base": 2.0, "mode": "fan_in", "nonlinearity": "relu", "momentum": 0.9, "task_eval": None},
    **{"width_mult": 1.0, "trainer": "default", "individual_heads": False, "er_sparsity": False, "sparsity": 0.5},
    **{"train_weight_tasks": 0, "train_weight_lr": 0.1, "reinit_adapt": "binary", "reinit_most_recent_k": None},
}
SUPSUP = CIFAR | {
    **{"conv_type": "MultitaskMaskConv", "conv_init": "signed_constant", "er_sparsity": True, "sparsity": 8.0},
    **{"lr": 0.001, "epochs": 100, "name": "mine"},
}
SEPARATE = CIFAR | {
    **{"conv_type": "StandardConv", "conv_init": "default", "individual_heads": True, "lr": 0.01, "epochs": 250}
}
RESOLVED = {
    "rn18-supsup": SUPSUP,
    "rn18-supsup-transfer": SUPSUP | {"trainer": "reinit", "reinit_most_recent_k": 20},
    "rn18-batche-randw": CIFAR
    | {"conv_type": "VectorizedBatchEnsembles", "conv_init": "default", "lr": 0.1, "epochs": 250}
    | {"train_weight_lr": 0.001},
    "rn18-separate-heads": SEPARATE | {"train_weight_lr": 0.001, "train_weight_tasks": 1},
    "rn18-separate-heads-randw": SEPARATE,
    "rn18-upperbound": CIFAR
    | {"conv_type": "StandardConv", "bn_type": "StandardBN", "conv_init": "default", "epochs": 250, "lr": 0.1}
    | {"train_weight_lr": 0.001, "train_weight_tasks": -1},
    "rn50-supsup-adam": CIFAR
    | {"data": "/path/to/dataset", "log_dir": "/path/to/logs", "name": "rn50", "set": "SplitImageNet", "seed": 1}
    | {"num_tasks": 100, "output_size": 10, "task_eval": None, "epochs": 100, "lr": 0.001, "warmup_length": 5}
    | {"weight_decay": 0.0, "batch_size": 256, "model": "ResNet50", "conv_type": "MaskConv", "bn_type": "NonAffineBN"}
    | {"conv_init": "signed_constant", "sparsity": 8.0, "er_sparsity": True, "workers": 20},
}
REPLACED = {"seed": "3", "sparsity": "8", "log_dir": "logs", "name": "mine"}


def write(folder: Path, settings: dict) -> str:
    path = folder / "original.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def replaced(settings: dict) -> list[str]:
    return [f"--{key}={REPLACED[key]}" for key, value in settings.items() if value == "REPLACE"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_original_code_means_what_it_meant_there(name, tmp_path):
    notes, path = [], write(tmp_path, FILES[name])
    args = vars(parse_arguments(["--config", path, *replaced(FILES[name])], notes=notes))
    assert {key: args[key] for key in RESOLVED[name]} == RESOLVED[name]
    recognised, idle = notes
    assert recognised == f"--config {path}: is a file of the original code, so what it leaves out is as there"
    without_effect = [key for key in FILES[name] if key in ("adapt", "hard_alphas", "adapt_lrs", "save")]
    assert idle == f"--config {path}: without effect here: {', '.join(without_effect)}"


@pytest.mark.parametrize("name", FILES)
def test_what_is_to_be_replaced_comes_from_the_command_line(name, tmp_path):
    path, words = write(tmp_path, FILES[name]), replaced(FILES[name])
    for word in words:
        flag = word.partition("=")[0]
        with pytest.raises(
            UserError, match=f"REPLACE stands for what the command line must say; give --{flag[2:]}"[:60]
        ):
            parse_arguments(["--config", path, *(other for other in words if other != word)])


def test_the_command_line_wins_over_a_file_of_the_original_code_and_its_defaults(tmp_path):
    path = write(tmp_path, {"set": "DigitsPerm", "adapt": True})
    args = parse_arguments(["--config", path, "--no_scheduler", "--wd", "0.5", "--conv_type", "MaskConv"])
    assert (args.lr_policy, args.weight_decay, args.conv_type, args.lr) == ("constant_lr", 0.5, "MaskConv", 0.1)
    assert (
        parse_arguments(["--config", write(tmp_path, {"save": True, "no_scheduler": True})]).lr_policy == "constant_lr"
    )
    assert (
        parse_arguments(["--config", write(tmp_path, {"save": True, "no_scheduler": False})]).lr_policy == "cosine_lr"
    )
    assert parse_arguments(["--no-scheduler", "--lr-policy", "cosine_lr"]).lr_policy == "cosine_lr"


def test_a_file_without_a_mark_of_the_original_code_keeps_our_defaults(tmp_path):
    notes: list[str] = []
    args = parse_arguments(["--config", write(tmp_path, {"wd": 0.5, "iter_lim": -1, "width_mult": 2})], notes=notes)
    ours = make_parser()
    assert notes == [] and args.weight_decay == 0.5 and args.width_mult == 2
    for name in set(ORIGINAL_DEFAULTS) - {"weight_decay"}:
        assert getattr(args, name) == ours.get_default(name)


def test_flags_without_effect_are_named_once_and_change_nothing():
    notes: list[str] = []
    words = ["--save", "--log-interval", "10", "--save", "--ortho_group", "--hop-weight=0.1", "-f", "kernel.json"]
    assert parse_arguments(words, notes=notes) == parse_arguments([])
    assert notes == ["--save, --log-interval, --ortho-group, --hop-weight, -f: without effect here"]


def test_our_own_configs_are_not_taken_for_the_originals():
    paths = sorted((Path(main.__file__).parent / "experiments").glob("**/configs/*.yaml"))
    for path in paths:
        notes: list[str] = []
        args, stated = vars(parse_arguments(["--config", str(path)], notes=notes)), yaml.safe_load(path.read_text())
        if base := stated.pop("base", None):
            stated = yaml.safe_load((path.parent / base).read_text()) | stated
        stated = {key.replace("-", "_"): value for key, value in stated.items()}
        stated |= {key: float(stated[key]) for key in ("lr", "train_weight_lr", "weight_decay") if key in stated}
        expected = {action.dest: action.default for action in make_parser()._actions if action.dest in args} | stated
        places = {"config", "log_dir", "name"}
        assert notes == []
        assert {k: v for k, v in args.items() if k not in places} == {
            k: v for k, v in expected.items() if k not in places
        }, path
    assert len(paths) > 20


# Where data lie


def write_mnist(folder: Path) -> None:
    (folder / "mnist").mkdir(parents=True)
    images, labels = np.random.RandomState(0).randint(0, 256, (40, 28, 28)).astype(np.uint8), np.arange(40) % 10
    arrays = {
        f"{split}_{name}": array
        for split in ("train", "test")
        for name, array in (("images", images), ("labels", labels))
    }
    np.savez(folder / "mnist" / "mnist.npz", **arrays)


MNIST = [
    "--set",
    "MNISTPerm",
    "--num-tasks",
    "1",
    "--iter-lim",
    "1",
    "--epochs",
    "1",
    "--threads",
    "1",
    "--multigpu",
    "cpu",
]


@pytest.mark.parametrize("place", ["SUPSUP_DATA", "home", "default"])
def test_without_data_the_sets_lie_where_the_first_line_says(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(
        "SUPSUP_DATA", {"SUPSUP_DATA": str(tmp_path / "data-sets"), "home": "~/data-sets"}.get(place, "")
    )
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    write_mnist(tmp_path / "data-sets")
    assert main.main([*MNIST, "--log-dir", str(tmp_path / "log"), "--name", "run"]) == 0
    who = "the default" if place == "default" else "SUPSUP_DATA"
    assert capsys.readouterr().out.splitlines()[0] == f"data: {tmp_path}/data-sets ({who}; --data names another)"
    assert (
        yaml.safe_load((tmp_path / "log/run/settings.yaml").read_text())["settings"]["data"] == f"{tmp_path}/data-sets"
    )


def test_a_folder_of_data_that_is_not_there_is_named_and_digits_need_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SUPSUP_DATA", str(tmp_path / "none"))
    log = ["--log-dir", str(tmp_path / "log")]
    assert main.main(["--set", "SplitImageNet", "--multigpu", "cpu", *log]) == 2
    out, err = capsys.readouterr()
    assert str(tmp_path / "none") in out and str(tmp_path / "none") in err and len(err.splitlines()) == 1
    monkeypatch.setenv("SUPSUP_DATA", "~nobody-of-this-name")
    assert main.main([*MNIST, *log]) == 2
    assert "SUPSUP_DATA: '~nobody-of-this-name'" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()
    assert main.main(["--num-tasks", "1", "--iter-lim", "1", "--epochs", "1", *log]) == 0
    assert not capsys.readouterr().out.startswith("data:")


def test_the_readmes_bare_command_runs(tmp_path, monkeypatch):
    write_mnist(tmp_path / "sets")
    script = PROJECT / "experiments/GNu/MNISTPerm/LeNet-2500-tasks/supsup_h.py"
    words = ["--gpu-sets", "cpu", "--num-tasks", "1", "--iter-lim", "1", "--log-dir", tmp_path / "log"]
    env = {**os.environ, "SUPSUP_DATA": str(tmp_path / "sets")}
    done = subprocess.run([sys.executable, script, *words], env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"data: {tmp_path}/sets (SUPSUP_DATA; --data names another)"


def test_what_goes_beyond_the_tasks_or_the_batches_is_said(tmp_path, capsys):
    words = ["--num-tasks", "2", "--iter-lim", "1", "--epochs", "1", "--log-dir", str(tmp_path)]
    assert main.main([*words, "--eval-ckpts", "1,3,50", "--data-to-repeat", "64", "--test-batch-size", "32"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [note.partition(": ")[2].partition(":")[0] for note in notes] == ["--eval-ckpts 3,50", "--data-to-repeat 64"]


# --width-mult


@pytest.mark.parametrize(
    "model, width_mult, shapes",
    [
        ("LeNet", 0.5, [(150, 784), (50, 150), (7, 50)]),
        ("LeNet", 0.333, [(99, 784), (33, 99), (7, 33)]),
        ("FC1024", 2, [(2048, 784), (2048, 2048), (7, 2048)]),
        ("BNNet", 0.25, [(512, 784), (512, 512), (7, 512)]),
        ("LeNet", 1e-6, [(1, 784), (1, 1), (7, 1)]),
    ],
)
def test_the_width_of_hidden_layers_is_multiplied_and_rounded_down(model, width_mult, shapes):
    network = get_model(model, Builder(partial(generator, 0), 1, width_mult=width_mult), (1, 28, 28), 7)
    assert [tuple(shape[:2]) for shape in masked.mask_shapes(network).values()] == shapes


@pytest.mark.parametrize(
    "model, width_mult, stem, head",
    [
        ("GEMResNet18", 1.5, 30, 240),
        ("GEMResNet18", 0.99, 19, 152),
        ("ResNet18", 0.5, 32, 256),
        ("ResNet50", 0.1, 6, 192),
    ],
)
def test_the_channels_of_residual_networks_are_multiplied_and_rounded_down(model, width_mult, stem, head):
    network = get_model(model, Builder(partial(generator, 0), 1, width_mult=width_mult), (3, 32, 32), 7)
    first, *_, last = masked.mask_shapes(network).values()
    assert (first[0], last[1], last[0]) == (stem, head, 7)
    multitask.begin_task(network, 0, partial(generator, 0))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


# Networks written for the original's builder


class Original(nn.Module):
    def __init__(self, builder, input_shape, output_size):
        super().__init__()
        self.conv = builder.nopad_conv5x5(input_shape[0], 4, first_layer=True)
        self.more = builder.conv3x3(4, 6, stride=2)
        self.head = builder.conv1x1(6, output_size, last_layer=True)
        self.relu = builder.activation()

    def forward(self, x):
        x = self.relu(self.conv(x))
        self.seen = x.shape
        return self.head(self.relu(self.more(x)).mean((2, 3), keepdim=True)).flatten(1)


@pytest.mark.parametrize("conv_type", CONV_TYPES)
def test_a_network_written_for_the_original_builder_is_built_of_every_layer(conv_type, monkeypatch):
    monkeypatch.setitem(MODELS, "Original", Original)
    rng = partial(generator, 0)
    for heads in (False, True):
        builder = Builder(rng, 2, conv_type=conv_type, conv_init="default", individual_heads=heads)
        network = get_model("Original", builder, (1, 28, 28), 10)
        multitask.begin_task(network, 0, rng)
        assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
        assert network.seen[2:] == (24, 24), "no padding"
        assert isinstance(network.head, IndividualHeads) is heads


def test_a_network_written_for_the_original_builder_learns_and_infers(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(MODELS, "Original", Original)
    words = ["--model", "Original", "--num-tasks", "2", "--epochs", "1", "--iter-lim", "2", "--threads", "1"]
    assert main.main([*words, "--multigpu", "cpu", "--log-dir", str(tmp_path)]) == 0
    assert "batches inferred right" in capsys.readouterr().out
