"""Runs of the original code, as far as its checkpoints tell of them."""

from collections.abc import Collection
from pathlib import Path

from torch import nn

from data import DATASETS
from models import MODELS, multitask
from models.original import check_weights, count_states, translate
from trainers.options import Settings
from utils.checkpoint import Record
from utils.configs import ORIGINAL_DEFAULTS
from utils.errors import UserError
from utils.original import Original

ORIGINAL = "original"  # kind of a record; and a mark of runs that began with one


def settings_told(original: Original, names: Collection[str], path: str) -> dict[str, object]:
    """What the ``args`` of a checkpoint of the original code mean here, unchecked; what they lack is as there.

    Args:
        names: of the settings that are wanted.
        path: of the file, for messages.

    Raises:
        UserError: they name a network or data of somebody's own, which may be code; only a user may name that.
    """
    args = original.settings
    for name, table in (("model", MODELS), ("set", DATASETS)):
        own = [each for each in table if ":" not in each]
        if name in names and name in args and not (isinstance(args[name], str) and args[name] in own):
            shown = repr(args[name])[:80] if isinstance(args[name], str) else "a value that is no text"
            raise UserError(f"{path}: {name}: {shown} is none of {', '.join(own)}")
    settings = {**ORIGINAL_DEFAULTS, **args}
    if "wd" in args:
        settings["weight_decay"] = args["wd"]
    if args.get("no_scheduler") is True:
        settings["lr_policy"] = "constant_lr"
    return {name: value for name, value in settings.items() if name in names}


def check_trainer(original: Original, trainer: str, path: str) -> None:
    """See that a run can go on from a checkpoint of the original code: neither its own trainer nor the run's is nns.

    Raises:
        UserError: it cannot.
    """
    if "nns" in (trainer, original.settings.get("trainer")):
        raise UserError(f"{path}: `trainer` nns also needs what it knew of the stream, which is not in such a file")


def as_import(original: Original, s: Settings, path: str) -> Record:
    """What a checkpoint of the original code holds, as the record of a file that is imported.

    Args:
        s: the settings of the run that goes on from it; without ``num_tasks`` they get the file's.
        path: of the file, for messages.

    Raises:
        UserError: it does not fit the settings.
    """
    try:
        check_weights(original.tensors, s.model, s.output_size, s.width_mult)
        states = count_states(original.tensors)
        s.num_tasks = s.num_tasks or states or None
        if states and s.num_tasks != states:
            raise ValueError(f"it has the states of {states} tasks, its args say num_tasks {s.num_tasks}")
        learned = learned_tasks(original, s.conv_type, s.task_eval)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return Record(ORIGINAL, {"tasks": learned}, original.tensors)


def learned_tasks(original: Original, conv_type: str, alone: int | None) -> dict[int, float]:
    """The tasks that were learned, each with its accuracy at that time.

    A task that was not learned has a state in the file too, a fresh one, and the accuracy 0. A file without any
    accuracy is taken for one in which all tasks are learned.

    Args:
        conv_type: of the layers; ``MaskConv`` has one mask, the last learned task's.
        alone: the task of a run that learned no other.

    Raises:
        ValueError: there are accuracies of more tasks than states.
    """
    accuracies = dict(enumerate(original.accuracies))
    states = count_states(original.tensors) or len(accuracies) or 1
    if len(accuracies) > states:
        raise ValueError(f"it has the accuracies of {len(accuracies)} tasks, and the states of {states}")
    learned = {task: value for task, value in accuracies.items() if value > 0} or dict.fromkeys(range(states), 0.0)
    if alone is None and conv_type == "MaskConv":
        alone = max(learned)
    return learned if alone is None else {alone: learned.get(alone, 0.0)}


def load_original(path: Path, model: nn.Module, record: Record) -> dict[int, float]:
    """Load a checkpoint of the original code, each learned task under its number there; the accuracy of each.

    Args:
        record: of the kind ``ORIGINAL``; its tensors are the ``state_dict``, ``tasks`` those that were learned.

    Raises:
        UserError: it does not fit the network.
    """
    accuracies = record.values["tasks"]
    try:
        shared, states = translate(model, record.tensors, accuracies)
        multitask.load_shared_state(model, shared)
        for task, state in states.items():
            multitask.load_task_state(model, task, state)
    except (IndexError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    return accuracies
