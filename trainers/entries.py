"""What the records of a run's checkpoint must say, and what the files of earlier versions say elsewhere."""

import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from trainers.evaluation import TaskScore
from trainers.original import ORIGINAL
from utils.checkpoint import Checkpoint, Record, fraction, index
from utils.cores import MOST_THREADS
from utils.errors import UserError, no_memory
from utils.journal import MORE_TASKS, RUN, TASK
from utils.paths import read_small
from utils.results import check_row
from utils.settings import NETWORK, OUTCOME, SETTLED, TOLD

# What comes of values that are not what they should be.
NONSENSE = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)
IMPORTED = "imported"  # in the record that a run begins with: the export that it began with, if it did
SETTINGS_BYTES = 2**20  # of a settings.yaml at the most


def settings_of_run(path: Path, data_set: str) -> dict[str, Any]:
    """The settings that a run here began with from a file or its images, as its checkpoint has them.

    From a checkpoint of the original code they were all, from an export those of the network, and which file that was;
    from its images, if they are ``data_set``, what was measured on them. Whoever goes on need not give them again.
    """
    with suppress(UserError):
        file = Checkpoint(path)
        first = file.first()
        if first is None or first.kind != RUN:
            return {}
        original, imported = first.values.get(ORIGINAL) is True, first.values.get(IMPORTED)
        if original or isinstance(imported, str):
            with making_sense(path):
                told = latest_settings(file.read()[0])
            names = NETWORK | OUTCOME if original else NETWORK
            told = {name: value for name, value in told.items() if name in names}
            return told if original else told | {"import_file": imported}
        settings = first.values.get("settings")
        if isinstance(settings, dict) and settings.get("set") == data_set:
            return {name: settings[name] for name in SETTLED if settings.get(name) is not None}
    return {}


def began_with(path: Path, name: str) -> Any:
    """The value of a setting that a run began with, as its checkpoint has it; None if it has none."""
    with suppress(UserError, *NONSENSE):
        first = Checkpoint(path).first()
        return None if first is None or first.kind != RUN else first.values["settings"].get(name)
    return None


def has_imported(path: Path) -> bool:
    """Whether a run's checkpoint has tasks that it began with; so also if it cannot be read, which is told later."""
    with suppress(UserError, *NONSENSE):
        return any(record.kind == TASK and record.values["row"] is None for record in Checkpoint(path).read()[0])
    return True


def latest_settings(records: Sequence[Record]) -> dict[str, Any]:
    """The settings that the records of a checkpoint begin with, with the number of tasks that the run came to have.

    Raises:
        KeyError, TypeError: they do not begin so.
    """
    settings: dict[str, Any] = records[0].values["settings"]
    more = [{"num_tasks": later.values["num_tasks"]} for later in records if later.kind == MORE_TASKS]
    return settings | (more[-1] if more else {})


def settings_beside(run: Path) -> tuple[Path, dict[str, object]]:
    """The checkpoint of a run that may be there, and what its ``settings.yaml`` tells of the settings that make it.

    Raises:
        UserError: there is no such file.
    """
    if not run.exists():
        raise UserError(f"`resume` {run}: no such run folder")
    path = run / "checkpoint.pt" if run.is_dir() else run
    try:
        settings = yaml.safe_load(read_small(path.with_name("settings.yaml"), SETTINGS_BYTES))["settings"]
        told = {name: settings.get(name) for name in TOLD}
    except (OSError, *NONSENSE, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"`resume` {run}: has no settings.yaml of a run: {why}") from None
    return path, {name: value for name, value in told.items() if value is not None}


def check_task(values: Mapping, tasks: int) -> None:
    """See that these can be the values of a learned task, one of so many.

    Raises:
        KeyError, TypeError, ValueError: they cannot.
    """
    index(values["task"], tasks)
    fraction(values["accuracy"])
    if (row := values["row"]) is not None:
        check_row(row)
        if (row["Task"], row["Current Val"]) != (values["task"], values["accuracy"]):
            raise ValueError("its row is of another task")


def threads_of(path: Path) -> int | None:
    """The processor threads that a run's ``settings.yaml`` tells of; None if it tells of none."""
    try:
        threads = yaml.safe_load(read_small(path, SETTINGS_BYTES))["settings"]["threads"]
    except (OSError, *NONSENSE, RecursionError, yaml.YAMLError):
        return None
    return threads if are_threads(threads) else None


def are_threads(value: object) -> bool:
    """Whether a value out of a file can be a number of processor threads."""
    return type(value) is int and 0 < value <= MOST_THREADS


@contextmanager
def making_sense(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with a record of the checkpoint ``path`` that a run cannot have written."""
    try:
        yield
    except NONSENSE as error:
        if no_memory(error):
            raise
        raise UserError(f"{path} holds a record that makes no sense here: {error!r}") from None


def mark_of(settings: Mapping[str, object], data: object) -> str:
    """What ties records to their run: a short hash of its settings and data."""
    return hashlib.sha256(json.dumps([settings, data], sort_keys=True).encode()).hexdigest()[:16]


def score_of(values: Mapping) -> TaskScore:
    """The score that a record holds.

    Raises:
        TypeError, ValueError: it holds none.
    """
    score = TaskScore(**values)
    for share in (score.given, score.adapted, score.inferred_right):
        if share is not None:
            fraction(share)
    rows: list[Mapping[str, float]] = [*score.inferred, *score.steps]
    for row in rows:
        if not all(type(value) in (int, float) and math.isfinite(value) for value in row.values()):
            raise ValueError(f"{reprlib.repr(row)} has something that is no number")
    if any(row.keys() != {"inferred", "batches"} for row in score.inferred):
        raise ValueError("what batches were taken for is not told by inferred and batches")
    if any(not row.keys() >= {"step", "hamming"} for row in score.steps):
        raise ValueError("a step of recovery has no number and no distance")
    return score
