"""Starts the runs of an experiment script: ``launch`` is what each script calls.

What is to run is ``plan.py``'s, which run starts when ``schedule.py``'s, and where they run that of a backend.
"""

import argparse
import csv
import io
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from args import parse_arguments
from experiments import gpus, slurm
from experiments.backends import Backend
from experiments.backends.local import Local, command_on
from experiments.options import WORK_REMAINS, parser_of
from experiments.plan import ROOT, Plan, Run, experiment_name, found_in, runs_of
from experiments.schedule import Ends, Schedule, counted
from experiments.slurm import SlurmOptions
from experiments.split import split_runs
from trainers.options import Settings
from utils.errors import UserError
from utils.output import lasting_output
from utils.paths import default_data
from utils.results import of_last_start, plain

TABLE = ("Tasks Learned", "Accuracy Given", "Accuracy Adapted", "Share Inferred Right", "Bytes")


@lasting_output()
def launch(
    script: str | Path,
    config: str,
    variants: Sequence[Mapping[str, object]] = ({},),
    *,
    tasks: int | None = None,
    argv: Sequence[str] | None = None,
    main: Path = ROOT / "main.py",
) -> NoReturn:
    """Run an experiment: each variant with each seed, shared out over the GPU sets; then exit.

    Args:
        script: the experiment's script, below ``experiments/``; its docstring is its ``--help``.
        config: the YAML file with the settings, relative to the script.
        variants: flags of ``main.py`` and their values, in which the runs of this experiment differ.
        tasks: for experiments in which each task is a run of its own (``--task-eval``), how many there are.
        argv: the command line, ``sys.argv`` without the program if left out.
        main: the program that does a run.

    Exit status: 0, 1 if a run failed, 2 for bad input (nothing was started, or every run refused its flags),
    75 if ``--stop-after`` has left work, 128 + the signal's number if stopped by a signal.
    """
    script = Path(script).resolve()
    parser = parser_of(script)
    options, words = parser.parse_known_args(argv)
    folder = options.log_dir.absolute() / experiment_name(script)
    try:
        runs = found_in(folder, runs_of(options.seeds, variants, words, tasks))
        default = default_data()
        on_slurm = _slurm_options(options)
        sets = [on_slurm.devices] if on_slurm else sets_of(options)
        plan = Plan(runs, folder, main, script.parent / config, options.data and options.data.absolute())
        plan = _checked(plan, options, *gpus.renumbered(sets[:1]))
        if not options.dry_run:
            backend = backend_of(plan, options, sets, on_slurm)
            _make(plan)
    except (UserError, ValueError) as error:
        parser.error(str(error))
    except argparse.ArgumentTypeError as error:
        parser.error(f"SUPSUP_DATA: {error}")
    except OSError as error:
        parser.error(f"--log-dir: cannot write to {folder}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    if options.dry_run:
        for number, run in enumerate(plan.runs):
            place = sets[number % len(sets)]
            on_cluster = options.ray or on_slurm
            print(shlex.join(plan.command(run, place) if on_cluster else command_on(place, plan, run)))
        sys.exit(0)
    if plan.data is None:
        print("data: {} ({}; --data names another)".format(*default), flush=True)
    with closing(backend):
        ends = Schedule(plan, backend, 60 * options.hung_after, 60 * options.stop_after).run()
    if options.shard and any(run.whole for run in plan.runs):
        print("slices are merged by the same call without --shard, once all of them are finished")
    sys.exit(_conclude(plan, ends, options.stop_after))


def sets_of(options: argparse.Namespace) -> Sequence[str]:
    """What runs get, place by place, as far as that is known before they are placed: GPUs, or ``cpu``.

    Raises:
        ValueError: ``--gpu-sets`` names a GPU that is not there, or what cannot be asked of a cluster.
    """
    if options.ray:
        sets: Sequence[str] = options.gpu_sets or ["cpu"]
        gpus.asked_for(sets)
        return gpus.renumbered(sets)
    if options.gpu_sets and not options.dry_run:  # commands for another machine may be printed anywhere
        gpus.check_sets(options.gpu_sets)
    return options.gpu_sets or gpus.default_sets(to_print=options.dry_run)


def backend_of(plan: Plan, options: argparse.Namespace, sets: Sequence[str], on_slurm: SlurmOptions | None) -> Backend:
    """Where the runs of a call run, by its options. Raises ``UserError`` if nothing can run there."""
    if options.ray:
        from experiments.backends.ray import Ray  # needs what requirements-ray.txt names, slowly

        return Ray(plan, options.gpu_sets, options.ray)
    if on_slurm:
        from experiments.backends.slurm import Slurm  # needs what requirements-slurm.txt names

        return Slurm(plan, on_slurm)
    return Local(plan, sets)


def _slurm_options(options: argparse.Namespace) -> SlurmOptions | None:
    """What ``--slurm`` says, if it was given. Raises ``ValueError`` if it cannot be."""
    if options.slurm is None:
        return None
    if options.ray:
        raise ValueError("--ray: is a cluster of another kind than --slurm; say one of them")
    if options.gpu_sets:
        raise ValueError(
            "--gpu-sets: is of runs on this machine; with --slurm say gpus-per-node=N, or nothing for none"
        )
    if find_spec("submitit") is None:
        raise ValueError("--slurm: submitit is missing; pip install -r requirements-slurm.txt")
    on_slurm = slurm.parse(options.slurm)
    if not options.dry_run:
        slurm.check(on_slurm)
    return on_slurm


def _checked(plan: Plan, options: argparse.Namespace, devices: str) -> Plan:
    """The plan with its runs split, and of them this call's share.

    Raises:
        UserError: ``main.py`` does not take the flags of a run, or its tasks cannot be split.
    """
    found: dict[tuple[str, ...], Settings] = {}

    def settings(run: Run) -> Settings:
        """What ``main.py`` reads from a run's command. Raises ``UserError`` as it does."""
        if run.flags not in found:  # seeds make no difference
            found[run.flags] = parse_arguments(plan.command(run, devices)[2:])
        return found[run.flags]

    runs = plan.runs
    if plan.program == ROOT / "main.py":
        for run in {run.of_all_tasks: run for run in runs}.values():  # the last task of each will do
            settings(run)
    if options.split_tasks:
        runs = split_runs(runs, options.split_tasks, settings)
    if options.shard:  # what merges slices of several shards is left to a call without
        one, of = options.shard
        runs = [run for run in runs if not run.parts][one - 1 :: of]
    return replace(plan, runs=runs)


def _make(plan: Plan) -> None:
    """Make the folders of an experiment, and empty logs for runs that wait: ``status.py`` knows them by that.

    Raises:
        OSError: nothing can be written there.
    """
    for folder in sorted({plan.folder, *(plan.log(run).parent for run in plan.runs)}):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "no permission to write there")
    for run in plan.runs:
        if not plan.is_finished(run):
            plan.log(run).open("ab").close()


def _conclude(plan: Plan, ends: Ends, stop_after: float) -> int:
    """Print what came of the runs, write the report, and give the exit status of the call."""
    if ends.signal:
        print(f"stopped by {signal.Signals(ends.signal).name}; the same call goes on from here", file=sys.stderr)
        return 128 + ends.signal
    results = plan.folder / "results.csv"
    if rows := summary(results, [run.name for run in plan.runs]):
        print_table(rows)
        print(f"results: {results}")
        if not ends.left:  # else there may be no time for it
            write_report(plan.folder)
    for run, (_, reason) in ends.failed.items():
        print(f"failed: {run.name}: {reason}", file=sys.stderr)
    if ends.left:
        print(
            f"stopped after {stop_after:g} minutes with {len(ends.left)} of {len(plan.runs)} runs unfinished; "
            "the same call goes on from here",
            file=sys.stderr,
        )
    if ends.elsewhere:
        print(f"{counted(ends.elsewhere)} under way in another process, not waited for any longer", file=sys.stderr)
    if ends.left or ends.elsewhere:
        return WORK_REMAINS
    refused = len(plan.runs) == sum(status == 2 for status, _ in ends.failed.values()) > 0
    return 2 if refused else 1 if ends.failed else 0


def summary(results: Path, names: Sequence[str]) -> list[list[str]]:
    """The rows of ``results.csv`` that sum up the named runs (those without a task), run by run.

    Of a run that was begun afresh they are those of its last start.
    Each is the run's name and the columns in ``TABLE``; accuracies with four decimals, ``-`` for no value.
    """
    rows: dict[str, list[dict[str, str]]] = {}
    with suppress(OSError, ValueError, csv.Error):  # not there, or something else
        for row in csv.DictReader(io.StringIO(plain(results.read_bytes()))):
            rows.setdefault(Path(row.get("Save Directory") or "").name, []).append(row)
        rows = {name: [of[place] for place in of_last_start(of)] for name, of in rows.items()}
    return [
        [name, *(_short(row.get(column)) for column in TABLE)]
        for name in names
        for row in rows.get(name, ())
        if not row.get("Task")
    ]


def _short(value: str | None) -> str:
    if not value:
        return "-"
    with suppress(ValueError):
        return value if value.isdigit() else f"{float(value):.4f}"
    return value


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as ``summary`` gives them under their headings."""
    lines = [("Run", *TABLE), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *cells)))


def write_report(folder: Path) -> None:
    """Write the experiment's page and figures; the runs are done, whatever becomes of that."""
    try:
        from experiments.report import report  # pandas and matplotlib take seconds

        page, _ = report([folder])
        print(f"report: {page}; figures beside it")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        print(f"warning: no report of {folder}: {' '.join(str(error).split())}", file=sys.stderr)
