"""Files of settings: YAML in which each key is a flag without its dashes; and what those of the original code mean.

Each value counts as if its text stood on the command line.
"""

import argparse
import os
from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import yaml

from utils.errors import UserError
from utils.paths import read_small, user_path
from utils.registry import nearest

CONFIG_BYTES = 2**16  # of a config at the most; ours have less than 1,000
SCALARS = {"str", "int", "float", "bool", "null", "timestamp", "value"}  # YAML's own types, for their text alone counts

# Files of the original code, recognised by a key that only they have, or by a value REPLACE.
ORIGINAL_KEYS = {"adapt", "adapt-lrs", "hard-alphas"}  # without effect
ORIGINAL_MARKS = ORIGINAL_KEYS | {"save", "log-interval"}
# What such a file means by what it leaves out, where that is not what it means here.
ORIGINAL_DEFAULTS = {
    "seed": 1,
    "output_size": 10,
    "conv_type": "StandardConv",
    "bn_type": "StandardBN",
    "conv_init": "default",
    "epochs": 100,
    "optimizer": "sgd",
    "lr": 0.1,
    "train_weight_lr": 0.1,
    "weight_decay": 1e-4,
    "lr_policy": "cosine_lr",
    "reinit_adapt": "binary",
    "adaptor": "gt",
    "gamma": 0.0,
}


def read_config(parser: argparse.ArgumentParser, path: Path, given: set[str], notes: list[str]) -> dict[str, object]:
    """Defaults from a YAML file and those it is based on, each checked as if its text stood on the command line.

    Args:
        given: settings that the command line names, which wins.
        notes: gets lines on what a user should know of it.
    """
    actions = {
        flag: action
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and not (isinstance(action, argparse.BooleanOptionalAction) and flag[:5] == "--no-")
        if action.dest not in ("config", "help")
    }
    values: dict[str, object] = {}
    replaced: dict[str, str] = {}  # what to say of settings that the command line must give
    idle, original = [], False
    for where, entries in reversed(_files_of_config(path)):
        seen = set()
        for name, value in entries:
            key = name.replace("_", "-")
            flag = "--" + key
            action = actions.get(flag)
            if action is None and key not in ORIGINAL_KEYS:
                raise UserError(f"{where}: there is no flag {name!r}{nearest(flag, actions)}")
            setting = flag if action is None or action.dest == argparse.SUPPRESS else action.dest
            if setting in seen:
                raise UserError(f"{where}: {name}: is given twice")
            seen.add(setting)
            replaced.pop(setting, None)
            original |= key in ORIGINAL_MARKS
            if action is None or setting == flag:
                idle.append(name)
            elif isinstance(value, yaml.ScalarNode) and value.value == "REPLACE":
                replaced[setting] = f"{where}: {name}: REPLACE stands for what the command line must say; give {flag}"
            else:
                try:
                    values |= _convert(parser, action, value)
                except argparse.ArgumentError as error:
                    raise UserError(f"{where}: {name}: {error.message}") from None
    if missing := [said for setting, said in replaced.items() if setting not in given]:
        raise UserError(missing[0])
    original |= bool(replaced)
    if original:
        notes.append(f"`config` {path}: is a file of the original code, so what it leaves out is as there")
    if idle:
        notes.append(f"`config` {path}: without effect here: {', '.join(idle)}")
    return {**(ORIGINAL_DEFAULTS if original else {}), **values}


def named_in(path: Path) -> set[str]:
    """The names that a YAML file and those it is based on give values to, with ``_`` between words.

    Raises:
        UserError: one of them cannot be read.
    """
    return {name.replace("-", "_") for _, entries in _files_of_config(path) for name, _ in entries}


def _files_of_config(path: Path) -> list[tuple[str, list[tuple[str, yaml.Node]]]]:
    """A YAML file, then the one that its ``base`` names, and so on: how messages name each, and its other entries."""
    where, paths = f"`config` {path}", []
    files: list[tuple[str, list[tuple[str, yaml.Node]]]] = []
    while True:
        paths.append(os.path.realpath(path))
        entries = _entries(path, where)
        bases = [value for name, value in entries if name == "base"]
        files.append((where, [(name, value) for name, value in entries if name != "base"]))
        if not bases:
            return files
        if len(bases) > 1:
            raise UserError(f"{where}: base: is given twice")
        if not (isinstance(bases[0], yaml.ScalarNode) and bases[0].tag == "tag:yaml.org,2002:str"):
            raise UserError(f"{where}: base: the name of one file is needed, relative to this one")
        try:
            path = path.parent / user_path(bases[0].value)
        except ArgumentTypeError as error:
            raise UserError(f"{where}: base: {error}") from None
        where = f"{where}: base {bases[0].value}"
        if os.path.realpath(path) in paths:
            raise UserError(f"{where}: is based on this file itself")


def _entries(path: Path, where: str) -> list[tuple[str, yaml.Node]]:
    """The keys of a YAML file, with what each is given."""
    try:
        # Nodes, not values: their text is what was written, 1.10 and 010, and an alias is never multiplied.
        root = yaml.compose(read_small(path, CONFIG_BYTES), Loader=yaml.SafeLoader)
    except RecursionError:
        raise UserError(f"{where}: is nested too deep for a mapping of flags to values") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{where}: {reason}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{where}: a mapping of flags to values is needed, one 'flag: value' a line")
    return [(key.value if isinstance(key, yaml.ScalarNode) else "[...]", value) for key, value in root.value]


def checked(parser: argparse.ArgumentParser, settings: Mapping[str, object], source: str) -> dict[str, object]:
    """Settings by name, each converted and checked as if it stood on the command line; others than flags' left out."""
    values: dict[str, object] = {}
    for action in parser._actions:
        if action.dest in settings and action.dest not in values:
            value = settings[action.dest]
            try:
                values |= _convert(parser, action, yaml.compose(yaml.safe_dump(value), Loader=yaml.SafeLoader))
            except argparse.ArgumentError as error:
                raise UserError(f"{source}: {action.dest}: {error.message}") from None
            except (RecursionError, ValueError, yaml.YAMLError):  # of values that are none of YAML's
                raise UserError(f"{source}: {action.dest}: is no number and no text") from None
    return values


def _convert(parser: argparse.ArgumentParser, action: argparse.Action, node: yaml.Node) -> dict[str, object]:
    """The setting that a value of a config makes; nothing if it leaves the setting as it is."""

    def refuse(reason: str) -> NoReturn:
        raise argparse.ArgumentError(action, reason)

    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.SequenceNode) and "," in (action.metavar or ""):
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            refuse("a list of numbers is needed")
        if not node.value:
            return {action.dest: None}
        text = ",".join(item.value for item in node.value)
    elif not isinstance(node, yaml.ScalarNode):
        refuse(f"a {'list' if isinstance(node, yaml.SequenceNode) else 'mapping'} is not a value of this flag")
    elif kind not in SCALARS:
        refuse(f"a value of the type {node.tag!r} is not a value of this flag")
    else:
        text = node.value
    if kind == "null" and action.default is None:
        return {action.dest: None}
    if kind == "null":
        refuse(f"a value is needed, such as {action.default}")
    if action.nargs == 0:  # a switch
        if kind != "bool":
            refuse(f"{text!r} is neither true nor false")
        on = yaml.SafeLoader.bool_values.get(text.lower())
        if on is None:
            refuse(f"{text!r} is neither true nor false")
        if isinstance(action, argparse.BooleanOptionalAction):
            return {action.dest: on}
        return {action.dest: action.const} if on else {}
    value = parser._get_value(action, text)
    parser._check_value(action, value)
    return {action.dest: value}
