"""Every flag of a run: its group, what its value may be and what it is for; its default is that of the setting."""

import argparse
import os
import re
from argparse import ArgumentTypeError
from argparse import BooleanOptionalAction as Switch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from data import DATASETS, TASKS_BY
from models import BN_TYPES, CONV_TYPES, IN_FILE, INITIALISERS, MODELS
from trainers import ADAPTATIONS, ADAPTORS, TRAINERS
from trainers.checks import check_settings
from trainers.options import Settings
from utils import LR_POLICIES, OPTIMIZERS
from utils.configs import checked, read_config
from utils.cores import MOST_THREADS
from utils.errors import UserError
from utils.paths import PROJECT, user_path
from utils.registry import nearest
from utils.settings import TOLD
from utils.slices import named, tasks_of

# What settings are called on the command line, and where a message names one.
_FLAGS = {name: {"import_file": "import"}.get(name, name.replace("_", "-")) for name in vars(Settings())}
# Flags of the scripts in experiments/ that are none here, and what to say instead.
_OF_SCRIPTS = {"--gpu-sets": "; here say --multigpu", "--seeds": "; here say --seed"}
_OF_SCRIPTS |= dict.fromkeys(("--ray", "--slurm", "--shard", "--split-tasks"), "")
_OF_SCRIPTS |= dict.fromkeys(("--stop-after", "--hung-after", "--dry-run"), "")
_NAMED = re.compile(rf"(?<![^\s(])`({'|'.join(_FLAGS)})(=True|=False)?`(?![^\s:;,.)])")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as an exception.

    Attributes:
        without_effect: the flags given that do nothing.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.without_effect: list[str] = []

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(action.choices)
            reason = f"invalid choice: {value!r} (choose from {choices}){nearest(str(value), action.choices)}"
            raise argparse.ArgumentError(action, reason)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=110)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "(default: " in text or action.default is argparse.SUPPRESS:
            return text
        return text + (" (default: none)" if action.default is None else " (default: %(default)s)")


def _number(kind: type, low: float, high: float = float("inf"), low_allowed: bool = True):
    """A type for argparse: a number of ``kind`` from ``low`` to ``high``."""
    bounds = f"{'at least' if low_allowed else 'more than'} {low}"
    bounds += "" if high == float("inf") else f" and at most {high}"

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or (value == low and not low_allowed) or value == float("inf"):
            noun = "a whole number" if kind is int else "a number"
            raise ArgumentTypeError(f"{text!r} is not {noun} that is {bounds}")
        return value

    return convert


def _layers(text: str) -> int | None:
    """``all``, ``first`` or a number of layers; None for all."""
    named = {"all": None, "first": 1}
    if text in named:
        return named[text]
    try:
        return _number(int, 1)(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{text!r} is neither all nor first nor a whole number that is at least 1") from None


def _task_counts(text: str) -> list[int]:
    """``"10,50,100"`` as a sorted list without repetitions."""
    return sorted({_number(int, 1)(part.strip()) for part in text.split(",")})


def _tasks(text: str) -> str:
    """``"5,0-3, 4"`` as ``"0-5"``."""
    try:
        return named(tasks_of(text))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _numbers(convert: Callable[[str], object], counts: Sequence[int]):
    """A type for argparse: numbers that ``convert`` takes, separated by commas, as many as one of ``counts`` says."""

    def convert_all(text: str) -> list:
        values = [convert(part.strip()) for part in text.split(",")]
        if len(values) not in counts:
            raise ArgumentTypeError(f"{text!r} is not {' or '.join(map(str, counts))} numbers, separated by commas")
        return values

    return convert_all


def _devices(text: str) -> str:
    parts = [part.strip() for part in text.split(",")]
    gpus = [part for part in parts if part.isascii() and part.isdecimal() and len(part) < 5]
    if set(parts) != {"cpu"} and not (gpus == parts and len({int(gpu) for gpu in gpus}) == len(parts)):
        raise ArgumentTypeError(f"{text!r} is neither cpu (or cpu,cpu) nor the number of one GPU (or several: 0,1)")
    if len(parts) > 64:
        raise ArgumentTypeError(f"{text!r} is more than 64 devices")
    return ",".join(parts)


def _run_name(text: str) -> str:
    if not text or text in (".", "..") or "/" in text or "\\" in text or not text.isprintable():
        raise ArgumentTypeError(f"{text!r} is not the name of one folder")
    if len(text.encode()) > 240:
        raise ArgumentTypeError(f"{text!r} is too long for the name of a folder")
    return text


def _or_none(convert: Callable[[str], object]) -> Callable[[str], object]:
    """``convert``, but -1 is none: the default of the flag, in the place of what a config says."""
    return lambda text: None if text == "-1" else convert(text)


class _WithoutEffect(argparse.Action):
    """A flag of the original code that does nothing here, and is named as such when it was given."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more):
        super().__init__(option_strings, argparse.SUPPRESS, nargs="?", default=argparse.SUPPRESS, **more)

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string not in parser.without_effect:
            parser.without_effect.append(option_string)


def make_parser() -> _Parser:
    """The parser with every flag, grouped. ``parse_arguments`` is what a run calls."""
    parser = _Parser(
        prog="main.py",
        description="Supermasks in Superposition: learn tasks one after the other, each as a binary mask over one "
        "frozen random network, and infer which task new data belong to. Without flags: five "
        "permutations of handwritten digits, offline, in about a minute.",
        epilog="Words may be joined by - or _. -1 unsets a number that has no default. The original code's --save, "
        "--log-interval, --ortho-group, --hop-weight and --dummy are taken and do nothing.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(**vars(Settings()))  # the flags' own: none is said below

    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--config", type=user_path, metavar="FILE", help="YAML file of defaults, {flag: value}; the command line wins")
    add("--log-dir", type=user_path, metavar="DIR", help="folder of the experiment (default: runs/main beside main.py)")
    add("--name", type=_run_name, help="name of the run's folder in it (default: made of set, model and seed)")
    add("--seed", type=_number(int, 0, 2**31 - 1), help="seed of everything random")
    add(
        "--multigpu",
        type=_devices,
        metavar="DEVICES",
        help="a GPU's number or cpu; with several, such as 0,1 or cpu,cpu, each is a process that trains on its share "
        "of every batch, with the result of one that trains on all of it (default: GPU 0, or cpu if there is none)",
    )
    add(
        "--threads",
        type=_or_none(_number(int, 1, MOST_THREADS)),
        help="processor threads (default: as OMP_NUM_THREADS says, or else all cores open to the run if its products "
        "are large enough to gain by them, and 1 if not; a run that goes on does so with those it began with)",
    )
    add(
        "--resume",
        type=lambda text: text and user_path(text),
        nargs="?",
        const="",
        metavar="FILE",
        help="go on from a checkpoint, or the one in a run's folder; without FILE from the run's own, if it has one. "
        "The flags that the run was made with must be given again; but a checkpoint of the original code brings its "
        "settings along, and a new run goes on from it",
    )
    add(
        "--export",
        type=user_path,
        metavar="FILE",
        help="write what was learned to FILE in its smallest form, entropy-coded",
    )
    add(
        "--import",
        dest="import_file",
        type=user_path,
        metavar="FILE",
        help="start from what --export wrote: its tasks and the settings of its network; learn the tasks it lacks",
    )
    add(
        "--merge",
        type=user_path,
        nargs="+",
        metavar="RUN",
        help="learn nothing, but join what these runs' folders or exports have learned by --tasks or --task-eval, as "
        "if one run had learned all of it; their settings need not be given again",
    )
    add("--allow-missing", action=Switch, help="tasks that no run of --merge has are left out")
    add(
        "--checkpoint-minutes",
        type=_number(float, 0, 1e9),
        metavar="M",
        help="also write a checkpoint every so many minutes inside a task; 0: after every batch",
    )
    add(
        "--on-nan",
        choices=("stop", "skip"),
        help="what to do with a task whose loss is no number or does not fall: stop the run, or leave the task out",
    )
    add("--amp", choices=("bf16", "none"), help="train in mixed precision; tests have full precision")
    add(
        "--tf32",
        action=Switch,
        help="GPUs may multiply in TF32, in tests too: faster, with 10 bits of mantissa instead of 23",
    )
    add("--fast", action=Switch, help="on GPUs, cuDNN may take its fastest algorithms, which give other bits each time")
    add(
        "--channels-last",
        action=Switch,
        help="train with the channels-last memory format, which may be faster for convolutions",
    )
    add("--compile", action=Switch, help="train through torch.compile")

    add(
        "--predict",
        type=user_path,
        nargs="+",
        metavar="IMAGE",
        help="answer for these images, or all in these folders, with what the run of --resume has learned, instead of "
        "learning: prints a CSV of file, task, label, probability; the task is inferred, or that of --task-eval",
    )
    add("--out", type=user_path, metavar="FILE", help="file that the CSV of --predict goes to (default: the output)")

    group = parser.add_argument_group("data and tasks")
    add = group.add_argument
    add(
        "--set",
        choices=DATASETS,
        help="data set; folder:PATH is a tree of your own images, PATH/train/<class> and PATH/val/<class> or "
        "PATH/<class>, npz:FILE a file of arrays; PATH and FILE lie below --data, if that is given",
    )
    add(
        "--data",
        type=user_path,
        metavar="DIR",
        help="parent folder of the data sets; digits need none "
        "(default: the environment's SUPSUP_DATA, or data-sets beside main.py)",
    )
    add("--num-tasks", type=_or_none(_number(int, 1, 10**6)), help="number of tasks (default: the set's own)")
    add(
        "--stream-tasks",
        type=_or_none(_number(int, 1, 10**6)),
        metavar="N",
        help="hidden tasks that the nns trainer meets; --num-tasks is then its budget of masks (default: as many)",
    )
    add(
        "--task-eval",
        type=_or_none(_number(int, 0)),
        metavar="TASK",
        help="learn this task alone; it comes out as in the full sequence",
    )
    add(
        "--tasks",
        type=_or_none(_tasks),
        metavar="A-B,...",
        help="learn these tasks alone, such as 0-99; they come out as in the full sequence, and --merge joins them",
    )
    add(
        "--classes-per-task",
        type=_or_none(_number(int, 1)),
        metavar="N",
        help="for sets split by class (default: the set's own; of SplitImageNet 1,000 / --num-tasks)",
    )
    add(
        "--tasks-by",
        choices=TASKS_BY,
        help="what tasks of your own images differ in (default: folders, if each has a train of its own, or classes)",
    )
    add(
        "--image-size",
        type=_or_none(_numbers(_number(int, 1, 10**4), (1, 2))),
        metavar="H[,W]",
        help="pixels that your own images are scaled and cropped to (default: as they are, if all are alike, or a "
        "square that most of them fill, of 224 at the most)",
    )
    for name, low in (("mean", 0), ("std", 1e-6)):
        add(
            f"--{name}",
            type=_or_none(_numbers(_number(float, low, 1), (1, 2, 3, 4))),
            metavar="X,X,...",
            help="of the channels of your own images, for pixels in [0, 1] (default: measured on the training images)",
        )
    add(
        "--augment",
        action=Switch,
        help="shift and flip your own training images at random; crop and flip those that workers decode",
    )
    add(
        "--workers",
        type=_or_none(_number(int, 0, 1024)),
        help="processes that decode images: of ImageNet, and your own where they take more than 1 GiB "
        "(default: one for each core, 16 at the most)",
    )
    add(
        "--keep-images",
        action=Switch,
        help="decode an image of SplitImageNet once in a task; training crops come from what is kept, "
        "whose shorter side has 256 pixels",
    )
    add("--batch-size", type=_number(int, 1), help="images in a training batch")
    add("--test-batch-size", type=_number(int, 1), help="images in a test batch")

    group = parser.add_argument_group("network")
    add = group.add_argument
    add(
        "--model",
        choices=MODELS,
        help="network; torchvision:NAME is one of torchvision's, FILE.py:CLASS one of your own, whose file is run; "
        "both get masks over their Linear, Conv and attention layers",
    )
    add(
        "--weights",
        type=lambda text: text if text == "given" else user_path(text),
        metavar="FILE",
        help="frozen weights of torchvision's networks and your own: a FILE with a state_dict, or the word given for "
        "those that the network is made with (default: drawn by --conv-init)",
    )
    add(
        "--width-mult",
        type=_number(float, 0, 100, low_allowed=False),
        metavar="M",
        help="hidden layers have so many times their units or channels, rounded down",
    )
    add("--output-size", type=_number(int, 1, 10**6), help="outputs, superfluous ones included")
    add("--conv-type", choices=CONV_TYPES, help="layer; docs/runs.md says what each does")
    add("--bn-type", choices=BN_TYPES, help="batch norm; docs/runs.md says what each does")
    add("--conv-init", choices=INITIALISERS, help="how the weights start")
    add("--mode", choices=("fan_in", "fan_out"), help="of Kaiming initialisers, xavier_constant")
    add(
        "--nonlinearity",
        choices=("relu", "linear", "tanh", "leaky_relu"),
        help="for the gain of the Kaiming initialisers",
    )

    add(
        "--sparsity",
        type=_number(float, 0, 1e30, low_allowed=False),
        metavar="K",
        help="fraction of the weights that top-k masks keep; with --er-sparsity a multiplier, larger is denser; the "
        "default layer has a threshold and ignores it",
    )
    add("--er-sparsity", action=Switch, help="each layer keeps the fraction min(0.5, K * (out + in) / weights)")
    add("--individual-heads", action=Switch, help="the last layer has trained weights of its own for each task")

    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--trainer", choices=TRAINERS, help="how a task is learned")
    add("--epochs", type=_number(int, 1, 10**6), help="epochs of each task")
    add("--iter-lim", type=_or_none(_number(int, 1)), help="batches of each task at the most (default: no limit)")
    add(
        "--tasks-in-parallel",
        type=_or_none(_number(int, 1, 10**4)),
        metavar="T",
        help="train so many independent tasks at once; each comes out as alone, but for the order of sums (default: 1; "
        "on a GPU, of fully connected networks, as many as fit in half of its memory, 64 at the most)",
    )
    add("--optimizer", choices=OPTIMIZERS, help="optimiser")
    add(
        "--lr",
        type=_number(float, 0, 1e30, low_allowed=False),
        help="learning rate of what is a task's own, masks, heads, vectors of BatchE, and of the weights that SupSup's "
        "relatives train",
    )
    add(
        "--train-weight-tasks",
        type=_number(int, -1),
        metavar="N",
        help="the first N tasks train the shared weights too; -1: all tasks",
    )
    add(
        "--train-weight-lr",
        type=_number(float, 0, 1e30, low_allowed=False),
        metavar="LR",
        help="learning rate of everything in the tasks that train weights",
    )
    add("--momentum", type=_number(float, 0, 1), help="momentum of SGD, in training and in hopfield_recovery")
    add(
        "--weight-decay",
        "--wd",
        type=_number(float, 0, 1e30),
        help="weight decay of the optimiser, in training and in hopfield_recovery",
    )
    add("--lr-policy", choices=LR_POLICIES, help="learning rate over the epochs")
    add(
        "--no-scheduler",
        dest="lr_policy",
        action="store_const",
        const="constant_lr",
        default=argparse.SUPPRESS,
        help="the same as --lr-policy constant_lr",
    )
    add("--warmup-length", type=_number(int, 0), help="epochs of linear warm-up")

    add(
        "--reinit-adapt",
        choices=ADAPTATIONS,
        help="what scores start from with the trainer reinit; docs/runs.md says what each does",
    )
    add(
        "--reinit-most-recent-k",
        type=_or_none(_number(int, 1)),
        metavar="K",
        help="only the last K tasks are started from (default: all)",
    )
    add("--reinit-from", type=user_path, metavar="FILE", help="checkpoint of the run that n-1-imagenet starts from")

    group = parser.add_argument_group("learning without task identity")
    add = group.add_argument
    add("--nns-every", type=_number(int, 1), help="batches from one decision to the next (trainer nns)")
    add(
        "--nns-epsilon",
        type=_number(float, 0, 1e30),
        help="the data are new if k * max(softmax of the negative gradient) is less than 1 + this",
    )
    add(
        "--nns-surprise",
        type=_or_none(_number(float, 1)),
        metavar="FACTOR",
        help="decide at once, before training on it, where a batch's loss is more than so many times what is usual of "
        "the mask (default: never)",
    )
    add(
        "--stream-jitter",
        type=_number(int, 0),
        metavar="N",
        help="a hidden task has up to N batches more or fewer than --iter-lim, drawn for each, as far as "
        "--epochs reach",
    )

    group = parser.add_argument_group("evaluation")
    add = group.add_argument
    add("--adaptor", choices=ADAPTORS, help="how the task is inferred; gt: it is given; docs/runs.md has the others")
    add(
        "--eval-ckpts",
        type=_or_none(_task_counts),
        metavar="N,N,...",
        help="evaluate after so many tasks, and at the end",
    )
    add(
        "--score-when-learned",
        action=Switch,
        help="a task's score is the one from when it was just learned (upper bound), instead of its score now",
    )
    add("--data-to-repeat", type=_number(int, 1), help="images that the task of a batch is inferred from")
    add("--real-neurons", type=_number(int, 1), help="outputs that are classes (objective G)")
    add(
        "--log-base",
        type=_number(float, 1, low_allowed=False),
        metavar="BASE",
        help="each round of binary inference keeps 1/BASE of the masks",
    )
    add(
        "--adapt-lr",
        type=_or_none(_number(float, 0, low_allowed=False)),
        metavar="LR",
        help="learning rate of inference (default: 0.1 for se_gradient_minimization, 500 for hopfield_recovery)",
    )
    add("--adapt-steps", type=_number(int, 1), help="steps of se_gradient_minimization")
    add(
        "--adapt-tries",
        type=_number(int, 1),
        metavar="N",
        help="hopfield_recovery: recover up to N times, each time away from the masks found before, and keep the mask "
        "whose outputs are the surest (default: %(default)s)",
    )
    add(
        "--infer",
        choices=("exact", "screened", "auto"),
        help="one-shot inference: exact; screened by a few units first, which is faster among many masks "
        "and may choose another task where two are close; auto: screened from 150 masks on, "
        "on processors (default: %(default)s)",
    )
    add(
        "--infer-layers",
        type=_or_none(_layers),
        metavar="all|first|N",
        help="of one-shot and binary inference: derivatives through the masks of the first N layers (default: all)",
    )
    add("--gamma", type=_number(float, 0), help="weight of the energy in hopfield_recovery")
    add(
        "--unshared-labels",
        action=Switch,
        help="a batch whose task is inferred wrong is wrong as a whole (GNu); else an answer is right if its label is "
        "(default: yes for folder: and npz: sets whose labels mean other classes in other tasks, else no)",
    )
    for flags in (("--save",), ("--log-interval",), ("--ortho-group",), ("--hop-weight",), ("-f", "--dummy")):
        parser.add_argument(*flags, action=_WithoutEffect, help=argparse.SUPPRESS)
    return parser


def parse_arguments(
    argv: Sequence[str] | None = None,
    defaults: Mapping[str, object] | None = None,
    notes: list[str] | None = None,
    source: str = "defaults",
) -> Settings:
    """The settings of a run: the defaults, then those of ``--config``, then the command line.

    Args:
        argv: the command line without the program's name; ``None`` for that of the process.
        defaults: settings by name that stand in for the flags' own defaults, as a file tells them: each checked as if
            it stood on the command line, others than those of ``TOLD`` left out.
        source: where they come from, for messages.
        notes: gets lines on what a user should know: of flags and keys without effect, of defaults not our own.

    Raises:
        UserError: an unknown flag, key or name, a value out of range, or a config that cannot be read.
    """
    told: list[str] = []
    try:
        settings = _parse(argv, defaults or {}, told, source)
    except UserError as error:
        raise UserError(with_flags(str(error))) from None
    if notes is not None:
        notes += map(with_flags, told)
    return settings


def settings_from(values: Mapping[str, object], source: str) -> Settings:
    """The settings that a file tells of, each checked as if it stood on the command line; the others at their defaults.

    Args:
        source: where they come from, for messages.

    Raises:
        UserError: one of them cannot be.
    """
    return _parse([], values, [], source)


def with_flags(text: str) -> str:
    """A message for the command line: of settings that it names, as `lr` or `fast=False`, the flags."""
    return _NAMED.sub(lambda found: ("--no-" if found[2] == "=False" else "--") + _FLAGS[found[1]], text)


def _parse(argv: Sequence[str] | None, defaults: Mapping[str, object], notes: list[str], source: str) -> Settings:
    parser = make_parser()
    told = checked(parser, {name: value for name, value in defaults.items() if name in TOLD}, source)
    parser.set_defaults(**told)
    if argv is None:
        import sys

        argv = sys.argv[1:]
    argv = [_dashed(word) for word in argv]
    unknown = parser.parse_known_args(argv)[1]
    if unknown:
        flag, flags = unknown[0].split("=")[0], [name for action in parser._actions for name in action.option_strings]
        if flag in _OF_SCRIPTS:
            raise UserError(f"{flag}: is for the scripts in experiments/{_OF_SCRIPTS[flag]}")
        raise UserError(f"{unknown[0]}: there is no such flag{nearest(flag, flags)}")
    _check_told(told, _given(argv), source)
    config = parser.parse_args(argv).config
    if config is not None:
        parser.set_defaults(**read_config(parser, Path(config), _given(argv), notes))
    settings = Settings(**vars(parser.parse_args(argv)))
    if parser.without_effect:
        notes.append(f"{', '.join(parser.without_effect)}: without effect here")
    check_settings(settings)
    _settle(settings)
    return settings


def _check_told(told: Mapping[str, object], given: set[str], source: str) -> None:
    """See that settings out of a file run no other file, and look for data nowhere but where the user says they lie.

    Args:
        told: the settings, checked each by itself.
        given: those that the command line names.

    Raises:
        UserError: they do.
    """
    model, data = (str(told.get(name)) for name in ("model", "set"))
    if MODELS.form(model) == IN_FILE and "model" not in given:
        raise UserError(
            f"{source}: is of the network {model}, and only you may say that its file is run: `model` {model}"
        )
    name = data.partition(":")[2]
    beside = os.path.basename(name) == name not in (".", "..") and name[:1] != "~"
    if DATASETS.form(data) and not beside and "set" not in given:
        raise UserError(f"{source}: is of the data {data}, and only you may say that they are read there: `set` {data}")


def _dashed(word: str) -> str:
    """A flag with its words joined by ``-``; values stay as they are."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else word


def _given(argv: Sequence[str]) -> set[str]:
    """The settings that the command line itself names."""
    parser = make_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    return set(vars(parser.parse_args(argv)))


def _settle(s: Settings) -> None:
    """Fill in what follows from the other settings."""
    if s.amp == "none":
        s.amp = None
    if s.log_dir is None:
        s.log_dir = str(PROJECT / "runs" / "main")
    if s.resume and s.predict is None and os.path.exists(made := os.path.join(s.resume, "checkpoint.pt")):
        s.resume = made  # a run's folder was named
    kind, colon, path = s.set.partition(":")
    if colon:  # folder:PATH becomes the folder's name, and the data lie in the folder that it lies in
        try:
            place = os.path.abspath(os.path.join(s.data or ".", user_path(path)))
        except ArgumentTypeError as error:
            raise UserError(f"`set` {s.set}: {error}") from None
        s.data, name = os.path.split(place)
        s.set = f"{kind}:{name or os.sep}"
    if s.image_size is not None:
        s.image_size = [*s.image_size, *s.image_size][:2]
    if s.name is None:
        made = re.sub(r"[^\w.=,-]+", "-", f"{s.set}-{s.model_name}")
        s.name = _run_name(f"{made.encode()[:150].decode(errors='ignore')}-seed={s.seed}")
