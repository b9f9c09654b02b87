"""Runs cut by tasks: slices that are runs of their own, and the run that merges them. What ``--split-tasks`` does."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from args import with_flags
from experiments.plan import SLICES, Run, short_name
from trainers.options import Settings
from utils.errors import UserError
from utils.slices import named


def split_runs(runs: Iterable[Run], size: int, arguments: Callable[[Run], Settings]) -> list[Run]:
    """Cut each run into slices of ``size`` tasks, which come before the run that merges them.

    A run that has no more tasks than that stays as it is.

    Args:
        arguments: the settings that ``main.py`` reads from a run's command.

    Raises:
        UserError: tasks of a run depend on each other, or cannot be counted.
    """
    found: list[Run] = []
    checked: dict[tuple[str, ...], list[int]] = {}  # by a run's flags, for seeds make no difference
    for run in runs:
        if run.flags not in checked:
            checked[run.flags] = _tasks(f"--split-tasks {size}", arguments(run))
        tasks = checked[run.flags]
        several = [tasks[place : place + size] for place in range(0, len(tasks), size)]
        slices = [_slice(run, some) for some in several] if len(several) > 1 else []
        found += [*slices, replace(run, parts=tuple(part.name for part in slices))]
    return found


def _slice(run: Run, tasks: list[int]) -> Run:
    some = named(tasks)
    name = f"{SLICES}/{short_name(f'{run.name},tasks={some}')}"
    return Run(name, run.seed, (*run.flags, "--tasks", some), len(tasks), whole=run.name)


def _tasks(flag: str, s: Settings) -> list[int]:
    """The tasks of a run with these settings. Raises ``UserError`` if they cannot be cut apart."""
    if s.task_eval is not None or s.conv_type == "MaskConv":
        raise UserError(f"{flag}: each task is a run of its own here already; leave it out")
    if s.merge is not None:
        raise UserError(f"{flag}: --merge learns nothing that could be split; leave it out")
    if s.tasks is None and s.num_tasks is None:
        raise UserError(f"{flag}: nothing says how many tasks there are; say --num-tasks N")
    if why := _why_in_order(s):
        raise UserError(f"{flag}: {with_flags(why)}, so tasks cannot be learned apart; leave it out")
    return list(s.tasks_to_learn)


def _why_in_order(s: Settings) -> str | None:
    """What makes tasks depend on each other, as far as that can be told without the data."""
    if ":" in s.model:
        return None  # a network from outside trains nothing but masks
    import torch  # takes seconds, which a call without slices does not wait for

    from models import Builder, get_model
    from trainers.fit import why_in_order
    from trainers.options import NetworkOptions, pick

    with torch.device("meta"):  # no weight is drawn, no memory taken, so that any shape of images serves
        layers = Builder(lambda *_: torch.Generator(), 1, **pick(NetworkOptions, s).layers)
        return why_in_order(s, get_model(s.model, layers, (3, 32, 32), s.output_size))
