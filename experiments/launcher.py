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
import io
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import BinaryIO, NoReturn
from urllib.parse import quote

from tqdm import tqdm

from experiments import status
from experiments.status import Status
from utils.output import lasting_output
from utils.paths import default_data, user_path
from utils.results import plain
from utils.settings import NEITHER, SHOWN

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.1
LOCK_SECONDS = 5  # how long a run killed a moment ago may take to be gone
GRACE_SECONDS = 120  # what a run that is told to end gets for its batch and its checkpoint
WORK_REMAINS = 75  # the exit status when runs are left for a later call, EX_TEMPFAIL of sysexits.h: call again
MOST_SEEDS = 10_000
# What stops the runs: the terminal's and the system's signals, and those of clusters before a time limit.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOPPED = {status for number in STOP_SIGNALS for status in (-number, 128 + number)}
ECHO_SECONDS = 2.0  # within these another kind of signal tells the same, as the SIGHUP of a terminal that closes
IN_USE = "another process is running in this folder"  # how main.py ends where a run is under way

# Flags of main.py that the launcher sets itself, and what to do instead of passing them to a script.
RESERVED = {
    "seed": "use --seeds N, which runs the seeds 0 to N-1, or --seeds 3, for seed 3 alone",
    "name": "runs are named after their seed and the flags passed on",
    "config": "the script has its own; pass the flags to change, or run main.py itself",
    "multigpu": "use --gpu-sets",
    "resume": "unfinished runs always go on; delete the run's folder to start it afresh",
    "export": "runs would overwrite each other's file; add it to the command that the log of one run begins with",
    "import": "main.py --import FILE runs from it",
}
# Flags that leave the files of a run as they are, so that it is found again under another value of them.
NOT_IN_NAME = {name.replace("_", "-") for name in NEITHER - SHOWN}

# Tells a run how many share the cores, itself included. How many threads pay is for the run to know.
RUNS_AT_ONCE = "SUPSUP_RUNS_AT_ONCE"

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
    """One call of ``main.py``: its name, its seed, and its flags beyond those that every run gets.

    Attributes:
        tasks: how many it is to learn; None if the call does not say.
    """

    name: str
    seed: int
    flags: tuple[str, ...] = ()
    tasks: int | None = None


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


def parse_path(text: str) -> Path:
    """A path, ``~`` being the home folder. Raises ``argparse.ArgumentTypeError`` as ``user_path``."""
    return Path(user_path(text))


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
    found = {}
    for flag, (word, *more) in _by_flag(words):
        if flag in RESERVED:
            raise ValueError(f"--{flag} is set by this script: {RESERVED[flag]}")
        values = [*word.split("=", 1)[1:], *more]
        found[flag] = ",".join(values) if values else "true"
    return found


def _by_flag(words: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Each flag as ``parse_passed_on`` names it, with its words."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            found.append((word.lstrip("-").partition("=")[0].replace("_", "-"), [word]))
        elif not found:
            raise ValueError(f"{word!r} belongs to no flag; --help tells what a script takes")
        else:
            found[-1][1].append(word)
    return found


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


def plain_name(name: str) -> str:
    """What ``run_name`` calls a run whose folder's name also tells flags that leave its files as they are."""
    parts = re.split(r",(?=[^,=]+=)", name)
    return ",".join(part for part in parts if part.partition("=")[0] not in NOT_IN_NAME)


def found_in(folder: Path, runs: Iterable[Run]) -> list[Run]:
    """The runs under the names of their folders, where an earlier call or version gave one another name."""
    folders: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            folders.setdefault(plain_name(path.name), []).append(path)

    def name_of(run: Run) -> str:
        there = folders.get(run.name, [])
        best = max(there, key=lambda path: ((path / "finished").exists(), path.name == run.name), default=run)
        return best.name

    return [replace(run, name=name_of(run)) for run in runs]


def plan(
    seeds: Iterable[int], variants: Sequence[Mapping[str, object]], words: Sequence[str], tasks: int | None = None
) -> list[Run]:
    """Every run of a call: each variant with each seed, ``words`` passed on unchanged.

    A flag passed on wins over the variant's, and may name several values: ``--sparsity 4,16``. Variants that become
    the same by it are run once.

    Args:
        tasks: if each task is a run of its own, the number of tasks, unless ``--num-tasks`` is passed on.

    Raises:
        ValueError: as ``parse_passed_on``, or ``--num-tasks`` is no number.
    """
    passed_on = parse_passed_on(words)
    several = [flag for flag in variants[0] if "," in passed_on.get(flag, "")]
    if several:
        words = [word for flag, of in _by_flag(words) if flag not in several for word in of]
        values = product(*(passed_on.pop(flag).split(",") for flag in several))
        picked = [dict(zip(several, value, strict=True)) for value in values]
        variants = [{**variant, **values} for values in picked for variant in variants]
    told = passed_on.get("stream-tasks", passed_on.get("num-tasks", ""))
    count = int(told) if told.isascii() and told.isdigit() else None
    if tasks is not None:
        if "num-tasks" in passed_on and not count:
            raise ValueError(f"--num-tasks {passed_on['num-tasks']}: is not a whole number from 1")
        every = range(tasks if count is None else count)
        variants = [{**variant, "task-eval": task} for variant in variants for task in every]
        count = 1
    runs = {}
    for seed in seeds:
        for variant in variants:
            flags = [_flag(flag, value) for flag, value in variant.items() if flag not in passed_on]
            resolved = {flag: passed_on.get(flag, str(value)) for flag, value in variant.items()}
            name = run_name(seed, resolved, passed_on)
            runs[name] = Run(name, seed, (*flags, *words), count)
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


def open_log(path: Path) -> BinaryIO:
    """Open a run's log for appending and lock it; the run inherits the lock with its output.

    So a run that is under way anywhere on this machine, another launcher's or one left over, is never started
    twice.

    Raises:
        OSError: the log cannot be written, or the run is already under way (``BlockingIOError``).
    """
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise
    except OSError:
        pass  # a file system without locks
    return log


def holder(path: Path) -> str:
    """Who started the run whose log this is, as far as the log tells."""
    found = None
    with suppress(OSError), path.open(errors="replace") as log:
        for line in log:
            found = re.match(r"\$ .*  # (process \d+ on \S+)$", line) or found
    return f", started by {found[1]}" if found else ""


def start(run: Run, gpu_set: str, command: Sequence[str], folder: Path, at_once: int) -> Job:
    """Start a run, one of ``at_once``, with its output in its log. Raises ``OSError`` as ``open_log``."""
    path = folder / f"{run.name}.log"
    if sys.platform == "linux":
        argv = [sys.executable, "-S", "-c", TETHER, str(os.getpid()), *command]
    else:
        argv = list(command)
    env = {**os.environ, RUNS_AT_ONCE: str(at_once), "PYTHONUNBUFFERED": "1"}
    with open_log(path) as log:
        log.write(f"$ {shlex.join(command)}  # process {os.getpid()} on {platform.node()}\n".encode())
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
    """Collect ``STOP_SIGNALS`` in the list given out, so that no run can slip through between its start and its
    entry in the books. Signals ignored so far (``nohup``, ``&``) stay ignored."""
    caught: list[int] = []
    first = 0.0

    def catch(number: int, _: object) -> None:
        nonlocal first
        if not caught:
            first = time.monotonic()
        if not caught or number in caught or time.monotonic() - first > ECHO_SECONDS:
            caught.append(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """A bar over the tasks of all runs, with the time left: nothing but what lies in the runs' folders counts.

    There is none where the output is no terminal.
    """

    def __init__(self, folder: Path, runs: Sequence[Run]):
        self._folder, self._runs = folder, runs
        self._seen: dict[Run, Status] = {}
        self._next = 0.0
        # Without smoothing the rate is that since the start, without what was done before; the delay leaves out a
        # bar that does not know yet how many tasks there are.
        self.bar = tqdm(unit="task", smoothing=0, delay=1e-9, dynamic_ncols=True, disable=None)
        self.look(now=True)
        self.bar.initial = self.bar.n

    def look(self, now: bool = False) -> None:
        """Bring the bar up to the runs' files, if it is time for it."""
        if self.bar.disable or not (now or time.monotonic() > self._next):
            return
        began = time.monotonic()
        for run in self._runs:
            if run not in self._seen or self._seen[run].state != "finished":
                self._seen[run] = status.read(self._folder / run.name)
        every = self._seen.values()
        known = next((of.tasks for of in every if of.tasks), None)  # runs of an experiment have as many tasks
        tasks = {run: of.tasks or run.tasks or known for run, of in self._seen.items()}
        done = {run: tasks[run] or of.done if of.state == "finished" else of.done for run, of in self._seen.items()}
        self.bar.total = None if None in tasks.values() else sum(tasks.values())
        self.bar.n = sum(done.values())
        finished = sum(of.state == "finished" for of in every)
        self.bar.set_postfix_str(f"{finished} of {len(self._runs)} runs finished")
        ended = time.monotonic()
        self._next = ended + max(1, 50 * (ended - began))  # looking takes a fiftieth of the time at the most


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
    with suppress(OSError, ValueError, csv.Error):  # not there, or something else
        table = csv.DictReader(io.StringIO(plain(results.read_bytes())))
        rows = [row for row in table if not row.get("Task")]
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
    return job.hung or job.process.returncode not in {2, *STOPPED}


def run_all(
    runs: Sequence[Run],
    sets: Sequence[str],
    folder: Path,
    command: Callable[[Run, str], list[str]],
    hung_after: float,
    stop_after: float,
) -> tuple[dict[Run, tuple[int | None, str]], list[Run], list[Run]]:
    """Run what is not finished, one run a set at a time. A run that crashes or hangs is started once more.

    Args:
        runs: the runs, in the order in which they start.
        sets: the GPU sets, or ``cpu``.
        folder: the experiment's folder; it must exist.
        command: ``command(run, gpu_set)`` gives the words of a run's command.
        hung_after: seconds without a sign of life after which a run is ended.
        stop_after: seconds after which no run starts and those under way are told to end.

    Returns: for each failed run its exit status (None if it did not start) and the reason; the runs that
    ``stop_after`` has left unfinished; and those that are under way in another process.

    Exits with 128 + the signal's number, every run ended, on one of ``STOP_SIGNALS``.
    """
    waiting, free, jobs, failed, left = list(runs), list(sets), [], {}, []
    at_once = min(len(sets), len(runs))  # of all runs, the finished ones too, so that the next call says the same
    tried: set[Run] = set()
    held: dict[Run, float] = {}  # by another process, and until when that may be one killed a moment ago
    elsewhere: list[Run] = []
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
            if (job.deadline or (caught and job.process.returncode in STOPPED)) and not job.hung:
                outcome = "stopped"
                left.append(run)
            elif IN_USE in outcome:
                outcome = "under way in another process"
                elsewhere.append(run)
            elif may_try_again(job) and run not in tried:
                outcome += "; trying once more"
                tried.add(run)
                waiting.insert(0, run)
            else:
                failed[run] = (job.process.returncode, outcome)
        say(f"{run.name}: {outcome}, after {time.monotonic() - job.since:.0f} s")

    def start_next(run: Run) -> None:
        """Start a run on the first free set, unless it is finished, under way, or cannot be started."""
        if (folder / run.name / "finished").exists():
            waiting.remove(run)
            return say(f"{run.name}: finished {'in another process' if run in held else 'before, skipped'}")
        try:
            jobs.append(start(run, free[0], command(run, free[0]), folder, at_once))
            say(f"{run.name}: started on {free.pop(0)}, log in {jobs[-1].log}")
            held.pop(run, None)
        except BlockingIOError:
            held.setdefault(run, time.monotonic() + LOCK_SECONDS)
            if run not in elsewhere and time.monotonic() > held[run]:
                elsewhere.append(run)
                say(f"{run.name}: under way in another process{holder(folder / f'{run.name}.log')}")
            return
        except OSError as error:
            failed[run] = (None, f"not started: {error.strerror}")
            say(f"{run.name}: {failed[run][1]}")
        waiting.remove(run)
        if run in elsewhere:
            elsewhere.remove(run)

    progress = Progress(folder, runs)
    with caught_signals() as caught, progress.bar:
        try:
            while True:
                stopping = bool(caught) or time.monotonic() > stop_at
                for run in list(waiting):
                    if free and not stopping and not caught:
                        start_next(run)
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
                if not jobs and (stopping or all(run in elsewhere for run in waiting)):
                    break
                progress.look()
                time.sleep(POLL_SECONDS)
        finally:
            for job in jobs:  # there are none, unless something went wrong here
                tell_to_end(job)
            for job in jobs:
                with suppress(subprocess.TimeoutExpired):
                    job.process.wait(GRACE_SECONDS)
                kill(job)
                job.process.wait()
            progress.look(now=True)
    if caught:
        name = signal.Signals(caught[0]).name
        print(f"stopped by {name}; the same call goes on from here", file=sys.stderr)
        sys.exit(128 + caught[0])
    left += [run for run in waiting if run not in elsewhere]
    left, elsewhere = ([run for run in of if not (folder / run.name / "finished").exists()] for of in (left, elsewhere))
    return failed, left, elsewhere


def _parser(script: Path) -> _Parser:
    parser = _Parser(
        prog=script.name,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=ast.get_docstring(ast.parse(script.read_text())),
        epilog="All further flags go on to main.py as they are (see main.py --help):\n"
        "--num-tasks 10 --epochs 1 makes a small version of any experiment.\n"
        "Finished runs are skipped; unfinished ones go on from their checkpoint. A run that crashes or hangs is\n"
        "started once more, and goes on likewise. A run that another process is at is left to it.\n"
        f"Exit status: 0; 1 if a run failed; 2 for bad input; {WORK_REMAINS} if work remains, left by\n"
        "--stop-after or under way in another process: call again; 128 + the signal's number after SIGINT, SIGTERM,\n"
        "SIGHUP, SIGUSR1 or SIGUSR2, on which every run keeps what it has learned.",
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
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="print the commands of the runs and do nothing else",
    )
    return parser


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
    75 if ``--stop-after`` has left work or a run is under way in another process, 128 + the signal's number if
    stopped by a signal.
    """
    script = Path(script).resolve()
    parser = _parser(script)
    options, words = parser.parse_known_args(argv)
    folder = options.log_dir.absolute() / experiment_name(script)
    try:
        runs = found_in(folder, plan(options.seeds, variants, words, tasks))
        default = default_data()
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
    except argparse.ArgumentTypeError as error:
        parser.error(f"SUPSUP_DATA: {error}")
    except OSError as error:
        parser.error(f"--log-dir: cannot write to {folder}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    data = [] if options.data is None else ["--data", str(options.data.absolute())]

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
            "--resume",
            *run.flags,
        ]

    if options.dry_run:
        for number, run in enumerate(runs):
            print(shlex.join(command(run, sets[number % len(sets)])))
        sys.exit(0)
    if options.data is None:
        print("data: {} ({}; --data names another)".format(*default), flush=True)
    patience, limit = 60 * options.hung_after, 60 * options.stop_after
    failed, left, elsewhere = run_all(runs, sets, folder, command, patience, limit)
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
    for run in elsewhere:
        print(f"under way in another process: {run.name}; call again when it has ended", file=sys.stderr)
    if left or elsewhere:
        sys.exit(WORK_REMAINS)
    refused = len(failed) == len(runs) and all(status == 2 for status, _ in failed.values())
    sys.exit(2 if refused else 1 if failed else 0)
