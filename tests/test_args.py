"""The flags: what they say of themselves, how they are spelt, where values come from, what is refused."""

import argparse
import os
import pwd
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import main
from args import make_parser, parse_arguments
from data import DATASETS
from experiments.options import parser_of
from models import BN_TYPES, CONV_TYPES, INITIALISERS, MODELS
from trainers import ADAPTATIONS, ADAPTORS, TRAINERS
from utils import LR_POLICIES, OPTIMIZERS
from utils.errors import UserError
from utils.settings import NEITHER, NETWORK, OUTCOME

PROJECT = Path(__file__).resolve().parents[1]
OTHER_FORMS = ("--no-scheduler",)  # of another flag's setting
ACTIONS = [
    action
    for action in make_parser()._actions
    if action.dest not in ("help", argparse.SUPPRESS) and action.option_strings[0] not in OTHER_FORMS
]
FLAGS = [action.option_strings[0] for action in ACTIONS]
# A value for each flag that is not its default.
VALUES = {
    "--config": "empty.yaml",
    "--log-dir": "some/folder",
    "--name": "a name",
    "--seed": "7",
    "--multigpu": "cpu",
    "--threads": "3",
    "--resume": "some/checkpoint.pt",
    "--set": "SplitDigits",
    "--data": "some/data",
    "--num-tasks": "3",
    "--tasks-in-parallel": "4",
    "--checkpoint-minutes": "2.5",
    "--on-nan": "skip",
    "--amp": "bf16",
    "--task-eval": "2",
    "--batch-size": "17",
    "--test-batch-size": "19",
    "--model": "FC1024",
    "--width-mult": "0.5",
    "--output-size": "50",
    "--conv-type": "StandardConv",
    "--conv-init": "kaiming_normal",
    "--mode": "fan_out",
    "--nonlinearity": "tanh",
    "--epochs": "4",
    "--iter-lim": "11",
    "--optimizer": "adam",
    "--lr": "0.125",
    "--train-weight-tasks": "-1",
    "--train-weight-lr": "0.25",
    "--momentum": "0.5",
    "--weight-decay": "0.0625",
    "--lr-policy": "cosine_lr",
    "--warmup-length": "1",
    "--nns-every": "10",
    "--nns-epsilon": "0.5",
    "--nns-surprise": "4.0",
    "--adapt-lr": "2.0",
    "--adapt-steps": "3",
    "--adapt-tries": "2",
    "--infer": "screened",
    "--infer-layers": "2",
    "--gamma": "0.5",
    "--adaptor": "gt",
    "--data-to-repeat": "8",
    "--real-neurons": "9",
    "--log-base": "4.0",
    "--export": "model.sup",
    "--workers": "6",
    "--classes-per-task": "3",
    "--sparsity": "0.25",
    "--bn-type": "NonAffineBN",
    "--trainer": "reinit",
    "--reinit-adapt": "random",
    "--reinit-most-recent-k": "2",
    "--reinit-from": "some/checkpoint.pt",
}


def config(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(textwrap.dedent(text))
    return str(path)


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_arguments(argv)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# What --help says


@pytest.fixture(scope="module")
def help_text() -> str:
    return make_parser().format_help()


@pytest.mark.parametrize("action", ACTIONS, ids=FLAGS)
def test_the_help_of_a_flag_says_what_it_is_and_its_default_once(action, help_text):
    sections = help_text.split("\n\n")
    options = "\n".join(f"{part}\n" for part in sections if re.match(r"[a-z ]+:\n  --", part))
    start = re.search(rf"^  {action.option_strings[0]}\b(?!-)", options, re.MULTILINE).start()
    entry = re.split(r"\n(?=  --|\S|\n)", options[start:])[0]
    said = " ".join(entry.split())
    assert action.help and said.count("(default: ") == 1, said
    if action.default is not None:
        assert f"(default: {action.default})" in said
    else:
        assert "(default: None)" not in said, "None says nothing to a user"


def test_every_flag_stands_in_a_group_with_a_name(help_text):
    parser = make_parser()
    groups = {action.dest: group.title for group in parser._action_groups for action in group._group_actions}
    assert {groups[action.dest] for action in ACTIONS} == {
        "run",
        "data and tasks",
        "network",
        "training",
        "learning without task identity",
        "evaluation",
    }
    for title in set(groups.values()) - {"positional arguments"}:
        assert f"\n{title}:\n" in help_text


def test_help_is_printed_and_ends_the_program_with_status_0(capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["--help"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0 and out.startswith("usage: main.py") and err == ""


@pytest.mark.parametrize(
    "flag, registry",
    [
        ("--set", DATASETS),
        ("--model", MODELS),
        ("--conv-type", CONV_TYPES),
        ("--bn-type", BN_TYPES),
        ("--conv-init", INITIALISERS),
        ("--trainer", TRAINERS),
        ("--optimizer", OPTIMIZERS),
        ("--lr-policy", LR_POLICIES),
        ("--adaptor", ADAPTORS),
        ("--reinit-adapt", ADAPTATIONS),
    ],
)
def test_a_flag_that_picks_an_implementation_takes_every_name_of_its_registry(flag, registry):
    dest = flag[2:].replace("-", "_")
    for name in registry:
        assert getattr(parse_arguments([flag, name]), dest) == name


@pytest.mark.parametrize(
    "registry", [DATASETS, MODELS, CONV_TYPES, BN_TYPES, INITIALISERS, TRAINERS, OPTIMIZERS, LR_POLICIES]
)
def test_every_name_of_a_registry_names_something_that_is_there(registry):
    assert all(map(callable, (registry[name] for name in registry)))


def test_every_adaptor_but_the_one_that_is_given_the_task_names_something_that_is_there():
    assert [name for name, adaptor in ADAPTORS.items() if adaptor.gives] == ["gt"]
    assert [name for name, adaptor in ADAPTORS.items() if adaptor.recovers] == ["hopfield_recovery"]
    assert all(callable(adaptor.load()) for adaptor in ADAPTORS.values() if not adaptor.gives)


def test_every_setting_makes_the_network_or_the_outcome_or_neither():
    assert sorted([*NETWORK, *OUTCOME, *NEITHER]) == sorted(action.dest for action in ACTIONS)


# Spelling


@pytest.mark.parametrize("flag", VALUES)
@pytest.mark.parametrize("join", [" ", "="])
def test_words_of_a_flag_may_be_joined_by_dashes_or_underscores(flag, join, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").write_text("{}")
    dest, value = flag[2:].replace("-", "_"), VALUES[flag]
    results = []
    for spelling in (flag, f"--{dest}"):
        argv = [spelling, value] if join == " " else [f"{spelling}={value}"]
        results.append(parse_arguments(argv))
    assert results[0] == results[1]
    assert str(getattr(results[0], dest)) == value
    default = make_parser().get_default(dest)
    assert getattr(results[0], dest) != default


def test_the_table_of_values_here_knows_every_flag():
    # Those with a test of their own, switches, and those that have one value only.
    others = {"--eval-ckpts", "--import", "--stream-jitter", "--stream-tasks", "--tasks", "--merge"}
    others |= {"--tasks-by", "--image-size", "--mean", "--std", "--weights", "--predict", "--out"}
    others |= {action.option_strings[0] for action in ACTIONS if isinstance(action, argparse.BooleanOptionalAction)}
    single = {action.option_strings[0] for action in ACTIONS if action.choices and len(action.choices) == 1}
    assert set(VALUES) | others | single == set(FLAGS)


def test_underscores_in_values_stay():
    args = parse_arguments(["--name", "a_b", "--log_dir=c_d", "--adaptor=gt", "--lr_policy", "cosine_lr"])
    assert (args.name, args.log_dir, args.lr_policy) == ("a_b", "c_d", "cosine_lr")


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], None),
        (["--unshared-labels"], True),
        (["--unshared_labels"], True),
        (["--no-unshared-labels"], False),
        (["--unshared-labels", "--no_unshared_labels"], False),
    ],
)
def test_a_switch_can_be_turned_on_and_off(argv, expected):
    assert parse_arguments(argv).unshared_labels is expected


def test_counts_of_tasks_come_sorted_and_once():
    assert parse_arguments(["--eval-ckpts", "50,10, 50,100"]).eval_ckpts == [10, 50, 100]


def test_a_flag_is_not_abbreviated_and_the_refusal_suggests_the_whole_one():
    assert refusal("--num-task", "3").endswith("did you mean --num-tasks?")
    assert refusal("--num_task=3").endswith("did you mean --num-tasks?")
    assert "did you mean" not in refusal("--xyzzy")


def test_a_flag_of_the_experiment_scripts_is_named_as_one():
    own = {flag for action in make_parser()._actions for flag in action.option_strings}
    script = parser_of(PROJECT / "experiments" / "NNs" / "supsup.py")
    theirs = {action.option_strings[0] for action in script._actions} - own
    assert {"--gpu-sets", "--seeds", "--dry-run"} < theirs
    for flag in theirs - {"-h"}:
        assert f"{flag}: is for the scripts in experiments/" in refusal(flag, "1")
    assert refusal("--gpu_sets=0").endswith("; here say --multigpu")
    assert refusal("--seeds", "3").endswith("; here say --seed")


# Where the values come from


def test_without_flags_every_value_is_the_default_of_its_flag():
    args = vars(parse_arguments([]))
    for action in ACTIONS:
        if action.dest not in ("log_dir", "name"):
            assert args[action.dest] == action.default, action.dest
    assert args["log_dir"] == str(PROJECT / "runs" / "main")
    assert args["name"] == "DigitsPerm-LeNet-seed=0"
    assert set(args) == {action.dest for action in ACTIONS}


def test_the_command_line_of_the_process_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--seed", "41"])
    assert parse_arguments().seed == 41
    assert parse_arguments([]).seed == 0


def test_the_name_of_a_run_tells_set_model_and_seed():
    args = parse_arguments(["--set", "MNIST", "--model", "FC1024", "--seed", "3"])
    assert args.name == "MNIST-FC1024-seed=3"


def test_a_config_sets_defaults_and_the_command_line_wins_on_either_side_of_it(tmp_path):
    path = config(tmp_path, "seed: 5\nepochs: 6\nbatch-size: 7\ntest_batch_size: 8\n")
    args = parse_arguments(["--seed", "1", "--config", path, "--batch_size=2"])
    assert (args.seed, args.epochs, args.batch_size, args.test_batch_size) == (1, 6, 2, 8)
    assert args.config == path


def test_the_command_line_wins_over_a_config_with_a_default_too(tmp_path):
    path = config(tmp_path, "seed: 5\nunshared-labels: true\n")
    args = parse_arguments(["--config", path, "--seed", "0", "--no-unshared-labels"])
    assert (args.seed, args.unshared_labels) == (0, False)


@pytest.mark.parametrize("flag", [flag for flag in VALUES if flag not in ("--config", "--resume")])
def test_a_config_gives_what_the_command_line_gives(flag, tmp_path):
    path = config(tmp_path, f"{flag[2:]}: {VALUES[flag]}\n")
    by_config, by_command = parse_arguments(["--config", path]), parse_arguments([flag, VALUES[flag]])
    by_config.config = None
    assert by_config == by_command
    dest = flag[2:].replace("-", "_")
    assert type(getattr(by_config, dest)) is type(getattr(by_command, dest))


@pytest.mark.parametrize("text, value", [("1e-3", 1e-3), ("1E-4", 1e-4), ("2", 2.0), ("'0.5'", 0.5)])
def test_a_rate_in_a_config_is_a_float_however_it_is_written(text, value, tmp_path):
    args = parse_arguments(["--config", config(tmp_path, f"lr: {text}\nlog-base: 3\n")])
    assert args.lr == value and type(args.lr) is float
    assert args.log_base == 3 and type(args.log_base) is float


@pytest.mark.parametrize("text", ["[50, 10, 10]", "10,50", "'50, 10'", "\n- 50\n- 10"])
def test_counts_of_tasks_in_a_config_are_a_list_or_what_the_flag_takes(text, tmp_path):
    args = parse_arguments(["--config", config(tmp_path, f"eval-ckpts: {text}\n")])
    assert args.eval_ckpts == [10, 50]


def test_one_count_in_a_config_needs_no_list(tmp_path):
    assert parse_arguments(["--config", config(tmp_path, "eval-ckpts: 10\n")]).eval_ckpts == [10]


def test_a_gpu_in_a_config_may_be_a_number(tmp_path):
    assert parse_arguments(["--config", config(tmp_path, "multigpu: 3\n")]).multigpu == "3"


@pytest.mark.parametrize(
    "key, text",
    [
        *(("name", text) for text in ("1.10", "true", "12:30", "2001-01-01", "0x10", "1_000", "no", "~x", "=")),
        *(("seed", text) for text in ("010", "1_000", "+7")),
        ("lr", "1e-3"),
        ("multigpu", "00"),
    ],
)
def test_a_value_in_a_config_means_what_it_means_on_the_command_line(key, text, tmp_path):
    by_config = parse_arguments(["--config", config(tmp_path, f"{key}: {text}\n")])
    by_command = parse_arguments([f"--{key}", text])
    assert getattr(by_config, key) == getattr(by_command, key)


def test_a_config_is_utf_8_whatever_the_locale(tmp_path):
    (tmp_path / "config.yaml").write_bytes("# café\nname: né\n".encode())
    for locale in ("C", "C.UTF-8"):
        check = "from args import parse_arguments as p; import sys; print(ascii(p(['--config', sys.argv[1]]).name))"
        env = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        words = [sys.executable, "-c", check, tmp_path / "config.yaml"]
        done = subprocess.run(words, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == r"'n\xe9'", done.stderr


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2\n", "batch-size: 1\nbatch_size: 1\n", "wd: 0\nweight-decay: 0\n", "save: 1\nsave: 1\n"]
)
def test_a_key_given_twice_is_refused(text, tmp_path):
    assert "is given twice" in refusal("--config", config(tmp_path, text))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content, said",
    [
        ("[" * 60_000, "nested too deep"),
        ("[" * 100_000, "larger than"),
        ("a: " * 20_000, ""),
        ("seed: 1 # " + "x" * 2**20, "larger than"),
        ("eval-ckpts: " + BOMB.replace("\n", "\n  ").rstrip(), ""),
        (BOMB.replace("i:", "eval-ckpts:"), "'a'"),
        ("eval-ckpts: &a [*a]", ""),
        ("b: &a {b: *a}", "'b'"),
        ("\0", ""),
        ("<<: {seed: 1}", "'<<'"),
        ("? [1, 2]\n: 3", "no flag"),
        ("seed: 1\n---\nseed: 2", ""),
    ],
)
def test_a_config_that_is_out_of_the_way_is_refused_at_once(content, said, tmp_path):
    path, started = config(tmp_path, content), time.process_time()
    message = refusal("--config", path)
    assert message.startswith(f"--config {path}: ") and said in message and len(message) < 500
    assert time.process_time() - started < 5


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_config_that_is_no_file_is_not_waited_for(kind, tmp_path):
    path = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    assert refusal("--config", str(path)).startswith(f"--config {path}: ")


# Paths


PATHS = [
    action.option_strings[0] for action in ACTIONS if action.metavar in ("FILE", "DIR") and action.dest != "config"
]


@pytest.mark.parametrize("flag", PATHS)
def test_the_home_folder_of_every_path_is_found(flag, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    dest = {"--import": "import_file"}.get(flag, flag[2:].replace("-", "_"))
    beside = {  # some go with others alone
        "--out": ["--predict", "image.png", "--resume", "run"],
        "--weights": ["--model", "torchvision:resnet18"],
    }.get(flag, [])
    for text, path in (("~/x", f"{tmp_path}/x"), ("~", str(tmp_path)), ("./~", "./~"), ("a/~", "a/~")):
        if flag in ("--export", "--out") and text == "a/~":
            continue  # its folder must be there
        assert getattr(parse_arguments([f"{flag}={text}", *beside]), dest) == path
        if flag != "--resume":
            in_config = ["--config", config(tmp_path, f"{flag[2:]}: {text!r}"), *beside]
            assert getattr(parse_arguments(in_config), dest) == path
    for text in ("~nobody-of-this-name/x", "~nobody-of-this-name"):
        assert "~nobody-of-this-name has no home folder here" in refusal(flag, text)
    monkeypatch.setenv("HOME", "")
    assert "~ has no home folder here" in refusal(flag, "~/x")
    monkeypatch.delenv("HOME")
    assert getattr(parse_arguments([flag, "~", *beside]), dest) == pwd.getpwuid(os.getuid()).pw_dir


def test_the_paths_are_those_flags_that_name_files_and_folders():
    assert set(PATHS) == {
        *("--log-dir", "--resume", "--export", "--import", "--data", "--reinit-from", "--out", "--weights"),
    }


def test_a_config_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config(tmp_path, "seed: 5")
    assert parse_arguments(["--config=~/config.yaml"]).seed == 5


@pytest.mark.parametrize("key", ["num-tasks", "name", "eval-ckpts", "iter-lim"])
def test_a_key_without_a_value_leaves_a_flag_without_default_unset(key, tmp_path):
    args = parse_arguments(["--config", config(tmp_path, f"{key}:\n")])
    args.config = None
    assert args == parse_arguments([])


@pytest.mark.parametrize("action", [a for a in ACTIONS if a.default is not None], ids=lambda a: a.dest)
def test_a_key_without_a_value_never_unsets_a_flag_that_has_a_default(action, tmp_path):
    path = config(tmp_path, f"{action.dest}: null\n")
    try:
        args = parse_arguments(["--config", path])
    except UserError as error:
        assert path in str(error) and action.dest in str(error)
    else:
        assert getattr(args, action.dest) == action.default


def test_every_config_of_the_experiments_is_accepted():
    paths = sorted(PROJECT.glob("experiments/**/configs/*.yaml"))
    assert paths
    for path in paths:
        parse_arguments(["--config", str(path)])


def test_a_config_goes_on_from_the_one_that_it_is_based_on(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    (tmp_path / "first.yaml").write_text("lr: 1e-2\nepochs: 7\nweight-decay: 1e-3\niter-lim: 9\n")
    (tmp_path / "below" / "second.yaml").write_text("base: ../first.yaml\nwd: 0\niter_lim: -1\n")
    monkeypatch.chdir("/")  # names are relative to the file, wherever the program is called
    args = parse_arguments(["--config", config(tmp_path, "epochs: 8\nbase: below/second.yaml\n"), "--seed", "4"])
    assert (args.lr, args.epochs, args.weight_decay, args.iter_lim, args.seed) == (0.01, 8, 0, None, 4)
    # In the paper's scripts what differs is all that a file says.
    folder = PROJECT / "experiments/GNu/MNISTPerm/LeNet-2500-tasks/configs"
    h, g = (vars(parse_arguments(["--config", str(folder / f"supsup_{letter}.yaml")])) for letter in "hg")
    assert {name for name in h if h[name] != g[name]} == {"config", "adaptor"} and g["num_tasks"] == 2500


def test_a_value_that_the_command_line_must_give_may_be_given_by_a_file_based_on_it(tmp_path):
    (tmp_path / "first.yaml").write_text("lr: REPLACE\n")
    based = config(tmp_path, "base: first.yaml\n")
    with pytest.raises(UserError, match="base first.yaml: lr: REPLACE stands"):
        parse_arguments(["--config", based])
    assert parse_arguments(["--config", based, "--lr", "3"]).lr == 3
    assert parse_arguments(["--config", config(tmp_path, "base: first.yaml\nlr: 2\n")]).lr == 2


@pytest.mark.parametrize(
    "text, said",
    [
        ("base: config.yaml", "base config.yaml: is based on this file itself"),
        ("base: ./way/../other.yaml", "is based on this file itself"),
        ("base: none.yaml", "base none.yaml: No such file or directory"),
        ("base: .", "base .: Is a directory"),
        ("base: bad.yaml", "base bad.yaml: epochs: '0' is not a whole number"),
        ("base: [a.yaml, b.yaml]", "base: the name of one file is needed"),
        ("base:", "base: the name of one file is needed"),
        ("base: 7", "base: the name of one file is needed"),
        ("base: ''", "base: '' is not a path"),
        ("base: bad.yaml\nbase: bad.yaml", "base: is given twice"),
    ],
)
def test_a_base_that_cannot_be_is_refused(text, said, tmp_path):
    (tmp_path / "way").mkdir()
    (tmp_path / "other.yaml").write_text("base: config.yaml\n")
    (tmp_path / "bad.yaml").write_text("epochs: 0\n")
    with pytest.raises(UserError) as error:
        parse_arguments(["--config", config(tmp_path, f"{text}\n")])
    assert said in str(error.value) and "\n" not in str(error.value) and "config.yaml" in str(error.value)


WORDS = {"--config", "--name", "--multigpu", "--merge", "--predict", *PATHS}  # not numbers


@pytest.mark.parametrize(
    "flag",
    sorted({a.option_strings[0] for a in ACTIONS if a.default is None and a.nargs != 0 and not a.choices} - WORDS),
)
def test_minus_one_is_none_for_a_number_without_default(flag, tmp_path):
    dest = flag[2:].replace("-", "_")
    path = config(tmp_path, f"{dest}: -1\n")
    assert getattr(parse_arguments(["--config", path]), dest) is None
    path = config(tmp_path, f"{dest}: 1\n")
    assert getattr(parse_arguments(["--config", path, flag, "-1"]), dest) is None


def test_mixed_precision_that_a_config_asks_for_can_be_switched_off(tmp_path):
    path = config(tmp_path, "amp: bf16\n")
    assert parse_arguments(["--config", path]).amp == "bf16"
    assert parse_arguments(["--config", path, "--amp", "none"]).amp is None
    assert parse_arguments(["--config", config(tmp_path, "amp: none\n")]).amp is None


# What is refused


@pytest.mark.parametrize(
    "flag, value, meant",
    [
        ("--set", "mnistperm", "MNISTPerm"),
        ("--set", "CIFAR100", "SplitCIFAR100"),
        ("--model", "lenet", "LeNet"),
        ("--optimizer", "Adam", "adam"),
        ("--lr-policy", "cosine", "cosine_lr"),
        ("--adaptor", "oneshot", "se_oneshot_entropy_minimization"),
        ("--conv-type", "maskconv", "MaskConv"),
        ("--conv-init", "kaiming", "kaiming_normal"),
        ("--reinit-adapt", "running-mean", "running_mean"),
        ("--model", "xyzzy", None),
    ],
)
def test_a_value_that_is_no_choice_is_answered_with_the_nearest(flag, value, meant):
    message = refusal(flag, value)
    assert repr(value) in message and message.partition("did you mean ")[2] == (f"{meant}?" if meant else "")


@pytest.mark.parametrize(
    "key, suggestion",
    [("num-task", "--num-tasks"), ("outputsize", "--output-size"), ("epoch", "--epochs"), ("xyzzy", None)],
)
def test_an_unknown_key_of_a_config_is_refused_with_the_nearest_flag(key, suggestion, tmp_path):
    path = config(tmp_path, f"seed: 1\n{key}: 3\n")
    message = refusal("--config", path)
    assert path in message and repr(key) in message
    if suggestion:
        assert message.endswith(f"did you mean {suggestion}?")
    else:
        assert "did you mean" not in message


@pytest.mark.parametrize("key", ["config", "help", "no-unshared-labels", "no_unshared_labels", "1", "null"])
def test_keys_that_are_no_settings_are_refused(key, tmp_path):
    path = config(tmp_path, f"{key}: true\n")
    assert path in refusal("--config", path)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("epochs", "three", "'three'"),
        ("epochs", "1.5", "'1.5'"),
        ("epochs", "-1", "'-1'"),
        ("epochs", "true", "'true'"),
        ("epochs", "{a: 1}", "a mapping"),
        ("epochs", "!!python/name:os.system 3", "python/name"),
        ("epochs", "[1, 2]", ""),
        ("lr", ".nan", "nan"),
        ("lr", ".inf", "inf"),
        ("lr", "-.inf", "-.inf"),
        ("lr", "fast", "'fast'"),
        ("lr", "[0.1]", ""),
        ("lr", "0", "'0'"),
        ("momentum", "1.5", "'1.5'"),
        ("set", "CIFAR", "'CIFAR'"),
        ("set", "mnistperm", "did you mean MNISTPerm?"),
        ("set", "[DigitsPerm]", ""),
        ("set", "1", "'1'"),
        ("name", "a/b", "'a/b'"),
        ("name", "[a, b]", ""),
        ("multigpu", "gpu", "'gpu'"),
        ("multigpu", "[0, 1]", ""),
        ("eval-ckpts", "[10, x]", "'x'"),
        ("eval-ckpts", "[0]", "'0'"),
        ("eval-ckpts", "[[1], [2]]", ""),
        ("unshared-labels", "1", "1"),
        ("unshared-labels", "'yes'", "'yes'"),
        ("unshared-labels", "[true]", "a list"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_config_is_refused(key, value, said, tmp_path):
    path = config(tmp_path, f"{key}: {value}\n")
    message = refusal("--config", path)
    assert message.startswith(f"--config {path}: {key}: ") and said in message


# Importing


def test_importing_the_program_does_nothing_but_define_it(tmp_path):
    check = """
        import random, sys
        import numpy, torch
        torch.manual_seed(12345)
        torch.set_num_threads(1)
        random.seed(5)
        numpy.random.seed(6)

        def state():
            return (
                torch.get_rng_state().tolist(), torch.initial_seed(), torch.get_num_threads(),
                torch.get_num_interop_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
                torch.are_deterministic_algorithms_enabled(), random.getstate(),
                [str(part) for part in numpy.random.get_state()], sys.argv,
            )

        before = state()
        import main, args, data.files, utils.checkpoint, experiments.launcher
        sys.exit(0 if state() == before else "importing changed the state of the process")
    """
    result = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(check), "--no-such-flag", "--seed", "x"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


SCRIPT = "experiments/GNu/MNISTPerm/LeNet-2500-tasks/supsup_h.py"


@pytest.mark.parametrize(
    "words, status",
    [
        (["main.py", "--help"], 0),
        (["main.py", "--num-task", "3"], 2),
        (["main.py", "--set", "mnistperm"], 2),
        (["main.py", "--config", "not-there.yaml"], 2),
        ([SCRIPT, "--help"], 0),
        ([SCRIPT, "--dry-run"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_answer_that_needs_no_torch_does_not_load_it(words, status):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    loaded = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert result.returncode == status and "argparse" in loaded
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib"}
    assert len([line for line in result.stderr.splitlines() if not line.startswith("import time:")]) == (status == 2)


def test_the_program_loads_torchvision_only_for_what_needs_it():
    check = "import sys, main; sys.exit(bool({'torchvision', 'sklearn', 'scipy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=PROJECT, timeout=120).returncode == 0
