"""What the command line of an experiment script says, beyond what goes on to ``main.py``."""

import argparse
import ast
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from experiments import gpus
from experiments.backends import GRACE_SECONDS
from experiments.plan import ROOT
from utils.paths import user_path
from utils.slices import MOST_TASKS

MOST_SEEDS = 10_000
WORK_REMAINS = 75  # the exit status when runs are left for a later call, EX_TEMPFAIL of sysexits.h: call again


class Parser(argparse.ArgumentParser):
    """One whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser_of(script: Path) -> Parser:
    """The parser of an experiment script, whose docstring is its ``--help``."""
    parser = Parser(
        prog=script.name,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))),
        epilog="All further flags go on to main.py as they are (see main.py --help):\n"
        "--num-tasks 2 --epochs 1 makes a small version of any experiment.\n"
        "Finished runs are skipped; unfinished ones go on from their checkpoint. A run that crashes or hangs is\n"
        "started once more, and goes on likewise. A run that another process is at is waited for, and goes on here\n"
        "if that gives it up.\n"
        f"Exit status: 0; 1 if a run failed; 2 for bad input; {WORK_REMAINS} if --stop-after has left work: call\n"
        "again; 128 + the signal's number after SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU, on which every\n"
        "run keeps what it has learned.",
    )
    parser.add_argument(
        "--gpu-sets",
        "--gpu_sets",
        type=gpus.parse_sets,
        metavar="SETS",
        help='sets separated by |, each one run at a time: "0|1" two runs on a GPU each, '
        '"0,1" one run on two GPUs, "cpu|cpu" two runs on the processor; a GPU may also be named as nvidia-smi -L '
        "does, GPU-... or MIG-..., and a run sees no others "
        "(default: each GPU a set, or cpu if there is none)",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on a cluster of Ray, whose machines see the same files: auto for the one that this machine is part "
        "of, or host:port of its head; without ADDRESS one of this machine alone is started, and stopped. A set of "
        "--gpu-sets then says what each run asks for (default: a GPU if the cluster has any, else cpu, which is as "
        "many cores as --threads says, or one)",
    )
    parser.add_argument(
        "--shard",
        type=parse_shard,
        metavar="I/N",
        help="take every N-th run alone, from the I-th on, I from 1 to N: N such calls, on as many machines, take all; "
        "what --split-tasks has cut is merged by one more call, without --shard",
    )
    parser.add_argument(
        "--seeds",
        type=parse_seeds,
        default="1",
        metavar="N",
        help="run the seeds 0 to N-1; a list such as 3,4 or 3, runs those seeds (default: %(default)s)",
    )
    parser.add_argument(
        "--data", type=parse_path, metavar="DIR", help="the parent folder of the data sets (default: as main.py)"
    )
    parser.add_argument(
        "--log-dir",
        "--log_dir",
        type=parse_path,
        default=ROOT / "runs",
        metavar="DIR",
        help="where the experiment's folder goes (default: %(default)s)",
    )
    parser.add_argument(
        "--stop-after",
        "--stop_after",
        type=parse_minutes,
        default=float("inf"),
        metavar="MINUTES",
        help="for jobs with a time limit: start no run after so long, have those under way keep what they have "
        f"learned, and exit with status {WORK_REMAINS} if work remains (default: never)",
    )
    parser.add_argument(
        "--hung-after",
        "--hung_after",
        type=parse_minutes,
        default=60,
        metavar="MINUTES",
        help="end a run that gives no sign of life for so long, and start it once more (default: %(default)s)",
    )
    parser.add_argument(
        "--split-tasks",
        "--split_tasks",
        type=parse_count,
        metavar="N",
        help="cut each run into slices of N tasks, runs of their own in the folder slices, and merge them into the run "
        "when all are finished: the same results, on as many machines as there are slices (default: as they are)",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        metavar="KEY=VALUE",
        help="run on a SLURM cluster, each run a job that goes on by itself after its time limit: time=MINUTES or "
        "time=H:M:S, at-once=N runs at a time, signal-delay=SECONDS before the limit to keep what is learned (default: "
        f"{GRACE_SECONDS}), and options of sbatch such as partition=gpu gpus-per-node=1 cpus-per-task=8; cluster=local "
        "tries the same on this machine",
    )
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="print the commands of the runs and do nothing else",
    )
    return parser


def parse_seeds(text: str) -> list[int]:
    """The seeds to run: ``"3"`` is 0, 1 and 2; ``"3,4"`` is these two, and ``"3,"`` this one.

    Raises:
        argparse.ArgumentTypeError: it is neither a number from 1 nor a list of seeds that are all different.
    """
    words = [word.strip() for word in text.removesuffix(",").split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither the number of seeds to run, such as 3 for 0, 1 and 2, nor a list of seeds, such as "
            "3,4 or 3,"
        )
    seeds = [int(word) for word in words]
    if "," in text:
        if len(set(seeds)) < len(seeds):
            raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
        return seeds
    if not 1 <= seeds[0] <= MOST_SEEDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the number of seeds to run, 1 to {MOST_SEEDS}; for seed {seeds[0]} alone say {seeds[0]},"
        )
    return list(range(seeds[0]))


def parse_shard(text: str) -> tuple[int, int]:
    """``"2/3"`` is (2, 3). Raises ``argparse.ArgumentTypeError`` unless it is two whole numbers I/N, I from 1 to N."""
    words = [word.strip() for word in text.split("/")]
    if len(words) == 2 and all(word.isascii() and word.isdigit() and len(word) < 9 for word in words):
        one, of = map(int, words)
        if 1 <= one <= of:
            return one, of
    raise argparse.ArgumentTypeError(f"{text!r} is no share I/N of the runs, such as 2/3, with I from 1 to N")


def parse_path(text: str) -> Path:
    """A path, ``~`` being the home folder. Raises ``argparse.ArgumentTypeError`` as ``user_path``."""
    return Path(user_path(text))


def parse_count(text: str) -> int:
    """A number of things. Raises ``argparse.ArgumentTypeError`` unless it is a whole number from 1."""
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_TASKS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST_TASKS}")


def parse_minutes(text: str) -> float:
    """Minutes. Raises ``argparse.ArgumentTypeError`` unless it is a number above 0."""
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
