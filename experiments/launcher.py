"""Starts the runs of an experiment script: a ``main.py`` process each, shared out over GPUs or the processor.

The launcher knows ``main.py`` by its flags alone and loads none of its code. It has no threads: it
starts processes, looks at them a few times a second, and ends them when it is told to stop. POSIX only.
"""

import argparse
import ast
import csv
import ctypes
import fcntl
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn
from urllib.parse import quote

from tqdm import tqdm

from utils.settings import NEITHER, SHOWN

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.1
LOCK_SECONDS = 5  # how long a run killed a moment ago may take to be gone
GRACE_SECONDS = 120  # what a run that is told to end gets for its batch and its checkpoint
WORK_REMAINS = 75  # the exit status after --stop-after, EX_TEMPFAIL of sysexits.h: call again

# Flags of main.py that the launcher sets itself, and what to do instead of passing them to a script.
RESERVED = {
    "seed": "use --seeds N, which runs the seeds 0 to N-1",
    "name": "runs are named after their seed and the flags passed on",
    "config": "the script has its own; pass the flags to change, or run main.py itself",
    "multigpu": "use --gpu-sets",
    "resume": "unfinished runs always go on; delete the run's folder to start it afresh",
    "export": "runs would overwrite each other's file; add it to the command that the log of one run begins with",
    "import": "main.py --import FILE runs from it",
}
# Flags that leave the files of a run as they are, so that it is found again under another value of them.
NOT_IN_NAME = {name.replace("_", "-") for name in NEITHER - SHOWN}

TABLE = ("Tasks Learned", "Accuracy Given", "Accuracy Adapted", "Share Inferred Right", "Bytes")

# On Linux each run starts through this stub. It asks the kernel to kill it when the launcher is gone, even by
# SIGKILL, and then becomes the run: the request (PR_SET_PDEATHSIG, 1) outlives exec. An orphan would go on
# writing into the folder in which the next call resumes the run.
TETHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
if os.getppid() == int(sys.argv[1]):  # else the launcher died before the request was in place
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Run:
    """One call of ``main.py``: its name, its seed, and its flags beyond those that every run gets."""

    name: str
    seed: int
    flags: tuple[str, ...] = ()


@dataclass
class Job:
    """A run under way.

    Attributes:
        start: where its own output begins in the log, which earlier attempts share.
        sign: when its log was last changed, by the clock of the file system; main.py touches it while it works.
        heard: when the launcher saw that change, by its own clock.
        hung: whether it was told to end because it gave no sign of life.
        deadline: when it is killed; None if nobody told it to end.
    """

    run: Run
    gpu_set: str
    process: subprocess.Popen
    log: Path
    start: int
    since: float = field(default_factory=time.monotonic)
    sign: int = 0
    heard: float = field(default_factory=time.monotonic)
    hung: bool = False
    deadline: float | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")  # one line, without the usage


def parse_gpu_sets(text: str) -> list[str]:
    """Split ``"0,1|2,3"`` or ``"cpu|cpu"`` into its sets, each in the form that ``--multigpu`` takes.

    The same GPU may stand in several sets (small runs share it), but only once in a set.

    Raises:
        argparse.ArgumentTypeError: a set is empty, is neither ``cpu`` nor GPU ids, or names a GPU twice.
    """
    sets = []
    for gpu_set in text.split("|"):
        ids = [word.strip() for word in gpu_set.split(",")]
        if ids != ["cpu"]:
            if not all(word.isascii() and word.isdigit() for word in ids):
                raise argparse.ArgumentTypeError(
                    f"{text!r}: {gpu_set!r} is no set; a set is cpu or GPU ids such as 0 or 0,1, "
                    "and sets are separated by |"
                )
            ids = [str(int(word)) for word in ids]
            if len(set(ids)) < len(ids):
                raise argparse.ArgumentTypeError(f"{text!r}: the set {gpu_set!r} names a GPU twice")
        sets.append(",".join(ids))
    return sets


def parse_seeds(text: str) -> int:
    """The number of seeds. Raises ``argparse.ArgumentTypeError`` unless it is a whole number from 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of seeds to run, a whole number from 1")
    return int(text)


def parse_minutes(text: str) -> float:
    """Minutes. Raises ``argparse.ArgumentTypeError`` unless it is a number above 0."""
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")


def parse_passed_on(words: Iterable[str]) -> dict[str, str]:
    """Read the flags meant for ``main.py`` as ``{flag: value}``, to name runs by.

    Flags lose their dashes in front and get ``-`` between words. Several values are joined by commas, a flag
    without one counts as ``true``, and of a flag given twice the last counts, as for ``main.py``.

    Raises:
        ValueError: a word belongs to no flag, or a flag is one that the launcher sets itself.
    """
    flags: dict[str, list[str]] = {}
    values = None
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            flag, equals, value = word.lstrip("-").partition("=")
            flag = flag.replace("_", "-")
            if flag in RESERVED:
                raise ValueError(f"--{flag} is set by this script: {RESERVED[flag]}")
            values = flags[flag] = [value] if equals else []
        elif values is None:
            raise ValueError(f"{word!r} belongs to no flag; --help tells what a script takes")
        else:
            values.append(word)
    return {flag: ",".join(values) if values else "true" for flag, values in flags.items()}


def experiment_name(script: Path) -> str:
    """The folder under ``runs/`` of a script below ``experiments/``.

    Under ``GG/`` it is the script's name; elsewhere the path below the scenario's folder joined with ``-``;
    for a script right in the scenario's folder, with the scenario in front: ``NNs-supsup``.

    Raises:
        ValueError: the script does not lie below ``experiments/``.
    """
    scenario, *parts = script.resolve().relative_to(ROOT / "experiments").with_suffix("").parts
    if scenario == "GG":
        return parts[-1]
    return "-".join(parts if len(parts) > 1 else (scenario, *parts))


def run_name(seed: int, variant: Mapping[str, str], passed_on: Mapping[str, str]) -> str:
    """What a run is called: the variant, the seed, and the further flags that change the outcome, sorted.

    ``sparsity=4,seed=0,num-tasks=10``. Names are safe as file names; different settings never share one.
    """
    rest = sorted(flag for flag in passed_on if flag not in variant and flag not in NOT_IN_NAME)
    parts = [*variant.items(), ("seed", str(seed)), *((flag, passed_on[flag]) for flag in rest)]
    name = ",".join(f"{quote(flag, safe='')}={quote(value, safe=',+')}" for flag, value in parts)
    if len(name) > 200:  # a file name has at most 255 bytes, and ".log" follows
        name = f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def plan(
    seeds: int, variants: Sequence[Mapping[str, object]], words: Sequence[str], tasks: int | None = None
) -> list[Run]:
    """Every run of a call: each variant with each seed, ``words`` passed on unchanged.

    A flag passed on wins over the variant's; variants that become the same by it are run once.

    Args:
        tasks: if each task is a run of its own, the number of tasks, unless ``--num-tasks`` is passed on.

    Raises:
        ValueError: as ``parse_passed_on``, or ``--num-tasks`` is no number.
    """
    passed_on = parse_passed_on(words)
    if tasks is not None:
        count = passed_on.get("num-tasks", str(tasks))
        if not (count.isascii() and count.isdigit() and int(count) > 0):
            raise ValueError(f"--num-tasks {count}: is not a whole number from 1")
        variants = [{**variant, "task-eval": task} for variant in variants for task in range(int(count))]
    runs = {}
    for seed in range(seeds):
        for variant in variants:
            flags = [_flag(flag, value) for flag, value in variant.items() if flag not in passed_on]
            resolved = {flag: passed_on.get(flag, str(value)) for flag, value in variant.items()}
            name = run_name(seed, resolved, passed_on)
            runs[name] = Run(name, seed, (*flags, *words))
    return list(runs.values())


def _flag(flag: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"


def gpu_count() -> int:
    """The number of GPUs that torch sees."""
    import torch  # takes seconds, and only this function needs it

    return torch.cuda.device_count()


def driver_gpu_count() -> int:
    """The number of GPUs that NVIDIA's driver lets a process see: at once, and enough to print commands."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    return count.value if driver.cuInit(0) == 0 == driver.cuDeviceGetCount(ctypes.byref(count)) else 0


def check_gpus(sets: Sequence[str]) -> None:
    """Raises ``ValueError`` if a set names a GPU that this machine does not have."""
    wanted = {int(gpu) for gpu_set in sets if gpu_set != "cpu" for gpu in gpu_set.split(",")}
    there = gpu_count() if wanted else 0
    if wanted and max(wanted) >= there:
        have = f"the GPUs here are 0 to {there - 1}" if there else "there is none here, use cpu"
        raise ValueError(f"--gpu-sets: GPU {max(wanted)} is not there; {have}")


def threads_per_run(concurrent: int) -> int:
    """The processor threads of each of ``concurrent`` runs that share the cores open to this process."""
    with suppress(AttributeError):  # not on macOS
        return max(1, len(os.sched_getaffinity(0)) // concurrent)
    return max(1, (os.cpu_count() or 1) // concurrent)


def open_log(path: Path) -> BinaryIO:
    """Open a run's log for appending and lock it; the run inherits the lock with its output.

    So a run that is under way anywhere on this machine, another launcher's or one left over, is never started
    twice.

    Raises:
        OSError: the log cannot be written, or the run is already under way (``BlockingIOError``).
    """
    log = path.open("ab")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return log
        except BlockingIOError:
            if time.monotonic() > deadline:
                log.close()
                raise BlockingIOError(None, "the run is already under way in another process") from None
            time.sleep(POLL_SECONDS)
        except OSError:
            return log  # a file system without locks


def start(run: Run, gpu_set: str, command: Sequence[str], folder: Path, threads: str) -> Job:
    """Start a run with its output in its log. Raises ``OSError`` as ``open_log``."""
    path = folder / f"{run.name}.log"
    if sys.platform == "linux":
        argv = [sys.executable, "-S", "-c", TETHER, str(os.getpid()), *command]
    else:
        argv = list(command)
    env = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    with open_log(path) as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        begins = log.tell()
        # In a session of its own: Ctrl-C reaches the launcher alone, and what the run starts ends with it.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )
        return Job(run, gpu_set, process, path, begins)


def tell_to_end(job: Job) -> None:
    """Ask a run to finish its batch, keep what it has learned, and end.

    The run's own process alone is asked, for it needs its followers on other devices until then.
    """
    job.process.terminate()
    job.deadline = time.monotonic() + GRACE_SECONDS


def kill(job: Job) -> None:
    """End what is left of a run, its followers too."""
    with suppress(ProcessLookupError, PermissionError):  # already gone; macOS says the latter
        os.killpg(job.process.pid, signal.SIGKILL)


def is_silent(job: Job, seconds: float) -> bool:
    """Whether a run has given no sign of life for so long."""
    with suppress(OSError):  # a log that cannot be looked at is no sign
        if (sign := job.log.stat().st_mtime_ns) != job.sign:
            job.sign, job.heard = sign, time.monotonic()
    return time.monotonic() - job.heard > seconds


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in the list given out, so that no run can slip through between its
    start and its entry in the books. Signals ignored so far (``nohup``, ``&``) stay ignored."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def why(job: Job) -> str:
    """How a run failed: how it ended and the last line it wrote."""
    status = job.process.returncode
    ended = f"status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
    ended = "hung and was ended" if job.hung else ended
    lines = []
    with suppress(OSError), job.log.open("rb") as log:
        log.seek(max(job.start, os.fstat(log.fileno()).st_size - 65536))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return f"{ended}: {lines[-1] if lines else 'it wrote nothing'}"


def summary(results: Path, names: Sequence[str]) -> list[list[str]]:
    """The rows of ``results.csv`` that sum up the named runs (those without a task), run by run.

    Each is the run's name and the columns in ``TABLE``; accuracies with four decimals, ``-`` for no value.
    """
    rows = []
    if results.exists():
        with results.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if not row.get("Task")]
    found = [(Path(row.get("Save Directory") or "").name, row) for row in rows]
    return [
        [name, *(_short(row.get(column)) for column in TABLE)]
        for name in names
        for saved, row in found
        if saved == name
    ]


def _short(value: str | None) -> str:
    with suppress(ValueError, TypeError):
        return value if value.isdigit() else f"{float(value):.4f}"
    return value or "-"


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


def may_try_again(job: Job) -> bool:
    """Whether a failed run may fare better: not if its flags were refused, nor if somebody stopped it."""
    stopped = {number for by in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for number in (-by, 128 + by)}
    return job.hung or job.process.returncode not in {2, *stopped}


def run_all(
    runs: Sequence[Run],
    sets: Sequence[str],
    folder: Path,
    command: Callable[[Run, str], list[str]],
    threads: str,
    hung_after: float,
    stop_after: float,
) -> tuple[dict[Run, tuple[int | None, str]], list[Run]]:
    """Run what is not finished, one run a set at a time. A run that crashes or hangs is started once more.

    Args:
        runs: the runs, in the order in which they start.
        sets: the GPU sets, or ``cpu``.
        folder: the experiment's folder; it must exist.
        command: ``command(run, gpu_set)`` gives the words of a run's command.
        threads: the processor threads of each run, for the libraries that read the environment.
        hung_after: seconds without a sign of life after which a run is ended.
        stop_after: seconds after which no run starts and those under way are told to end.

    Returns: for each failed run its exit status (None if it did not start) and the reason; and the runs that
    ``stop_after`` has left unfinished.

    Exits with 128 + the signal's number, every run ended, on SIGINT, SIGTERM or SIGHUP.
    """
    waiting, free, jobs, failed, left = list(runs), list(sets), [], {}, []
    tried: set[Run] = set()
    stop_at = time.monotonic() + stop_after

    def say(line: str) -> None:
        tqdm.write(line)  # above the bar, if there is one
        sys.stdout.flush()

    def settle(job: Job) -> None:
        """Take a run that has ended out of the books."""
        kill(job)
        jobs.remove(job)
        free.append(job.gpu_set)
        run, outcome = job.run, "done"
        if job.process.returncode:
            outcome = why(job)
            if job.deadline and not job.hung:
                outcome = "stopped"
                left.append(run)
            elif may_try_again(job) and run not in tried:
                outcome += "; trying once more"
                tried.add(run)
                waiting.insert(0, run)
            else:
                failed[run] = (job.process.returncode, outcome)
        say(f"{run.name}: {outcome}, after {time.monotonic() - job.since:.0f} s")
        if run not in waiting:
            bar.update()

    with caught_signals() as caught, tqdm(total=len(runs), unit="run", disable=None) as bar:
        try:
            while True:
                stopping = bool(caught) or time.monotonic() > stop_at
                while waiting and free and not stopping and not caught:
                    run = waiting.pop(0)
                    if (folder / run.name / "finished").exists():
                        say(f"{run.name}: finished before, skipped")
                        bar.update()
                        continue
                    try:
                        jobs.append(start(run, free[0], command(run, free[0]), folder, threads))
                        say(f"{run.name}: started on {free.pop(0)}, log in {jobs[-1].log}")
                    except OSError as error:
                        failed[run] = (None, f"not started: {error.strerror}")
                        say(f"{run.name}: {failed[run][1]}")
                        bar.update()
                for job in list(jobs):
                    if job.process.poll() is not None:
                        settle(job)
                        continue
                    if job.deadline is None and (stopping or is_silent(job, hung_after)):
                        job.hung = not stopping
                        tell_to_end(job)
                        reason = "no sign of life; " if job.hung else ""
                        say(f"{job.run.name}: {reason}told to end, which may take {GRACE_SECONDS} s")
                    if len(caught) > 1 or time.monotonic() > (job.deadline or float("inf")):
                        kill(job)
                if not jobs and (stopping or not waiting):
                    break
                bar.refresh()
                time.sleep(POLL_SECONDS)
        finally:
            for job in jobs:  # there are none, unless something went wrong here
                tell_to_end(job)
            for job in jobs:
                with suppress(subprocess.TimeoutExpired):
                    job.process.wait(GRACE_SECONDS)
                kill(job)
                job.process.wait()
    if caught:
        name = signal.Signals(caught[0]).name
        print(f"stopped by {name}; the same call goes on from here", file=sys.stderr)
        sys.exit(128 + caught[0])
    return failed, left + [run for run in waiting if not (folder / run.name / "finished").exists()]


def _parser(script: Path) -> _Parser:
    parser = _Parser(
        prog=script.name,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=ast.get_docstring(ast.parse(script.read_text())),
        epilog="All further flags go on to main.py as they are (see main.py --help):\n"
        "--num-tasks 10 --epochs 1 makes a small version of any experiment.\n"
        "Finished runs are skipped; unfinished ones go on from their checkpoint. A run that crashes or hangs is\n"
        "started once more, and goes on likewise.",
    )
    parser.add_argument(
        "--gpu-sets",
        "--gpu_sets",
        type=parse_gpu_sets,
        metavar="SETS",
        help='sets separated by |, each one run at a time: "0|1" two runs on a GPU each, '
        '"0,1" one run on two GPUs, "cpu|cpu" two runs on the processor '
        "(default: each GPU a set, or cpu if there is none)",
    )
    parser.add_argument("--seeds", type=parse_seeds, default=1, metavar="N", help="run the seeds 0 to N-1 (default: 1)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the parent folder of the data sets (default: as main.py)"
    )
    parser.add_argument(
        "--log-dir",
        "--log_dir",
        type=Path,
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
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="print the commands of the runs and do nothing else",
    )
    return parser


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
    parser = _parser(script)
    options, words = parser.parse_known_args(argv)
    folder = options.log_dir.expanduser().absolute() / experiment_name(script)
    try:
        runs = plan(options.seeds, variants, words, tasks)
        if options.gpu_sets and not options.dry_run:  # commands for another machine may be printed anywhere
            check_gpus(options.gpu_sets)
        count = driver_gpu_count if options.dry_run else gpu_count
        sets = options.gpu_sets or [str(gpu) for gpu in range(count())] or ["cpu"]
        if not options.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(None, "no permission to write there")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--log-dir: cannot write to {folder}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    # Of all runs, the finished ones too: a run that goes on does so with the threads it began with.
    share = str(threads_per_run(min(len(sets), len(runs))))
    threads = parse_passed_on(words).get("threads", share)
    data = [] if options.data is None else ["--data", str(options.data.expanduser().absolute())]

    def command(run: Run, gpu_set: str) -> list[str]:
        return [
            sys.executable,
            str(main),
            "--config",
            str(script.parent / config),
            "--seed",
            str(run.seed),
            *data,
            "--log-dir",
            str(folder),
            "--name",
            run.name,
            "--multigpu",
            gpu_set,
            "--threads",
            threads,
            "--resume",
            *run.flags,
        ]

    if options.dry_run:
        for number, run in enumerate(runs):
            print(shlex.join(command(run, sets[number % len(sets)])))
        sys.exit(0)
    patience, limit = 60 * options.hung_after, 60 * options.stop_after
    failed, left = run_all(runs, sets, folder, command, threads, patience, limit)
    rows = summary(folder / "results.csv", [run.name for run in runs])
    if rows:
        print_table(rows)
        print(f"results: {folder / 'results.csv'}")
        if not left:  # else there may be no time for it
            write_report(folder)
    for run, (_, reason) in failed.items():
        print(f"failed: {run.name}: {reason}", file=sys.stderr)
    if left:
        print(
            f"stopped after {options.stop_after:g} minutes with {len(left)} of {len(runs)} runs unfinished; "
            "the same call goes on from here",
            file=sys.stderr,
        )
        sys.exit(WORK_REMAINS)
    refused = len(failed) == len(runs) and all(status == 2 for status, _ in failed.values())
    sys.exit(2 if refused else 1 if failed else 0)
