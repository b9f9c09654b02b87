"""What a call of an experiment script is to run: the runs, their names and commands, and which are finished.

Knows ``main.py`` by its flags alone and loads none of its code.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from utils.settings import NEITHER, SHOWN

ROOT = Path(__file__).resolve().parents[1]

# Flags of main.py that a script sets itself, and what to do instead of passing them on.
RESERVED = {
    "seed": "use --seeds N, which runs the seeds 0 to N-1, or --seeds 3, for seed 3 alone",
    "name": "runs are named after their seed and the flags passed on",
    "config": "the script has its own; pass the flags to change, or run main.py itself",
    "multigpu": "use --gpu-sets",
    "resume": "unfinished runs always go on; delete the run's folder to start it afresh",
    "export": "runs would overwrite each other's file; add it to the command that the log of one run begins with",
    "import": "main.py --import FILE runs from it",
}
SLICES = "slices"  # the folder, in the experiment's, of runs that are slices of others
# Flags that leave the files of a run as they are, so that it is found again under another value of them.
NOT_IN_NAME = {name.replace("_", "-") for name in NEITHER - SHOWN}


@dataclass(frozen=True)
class Run:
    """One call of ``main.py``: its name, its seed, and its flags beyond those that every run gets.

    Attributes:
        name: of its folder, as a path in the experiment's.
        tasks: how many it is to learn; None if the call does not say.
        parts: the names of the runs that have learned a slice of its tasks each, if it merges them.
        whole: the name of the run that it is a slice of, if it is one.
    """

    name: str
    seed: int
    flags: tuple[str, ...] = ()
    tasks: int | None = None
    parts: tuple[str, ...] = ()
    whole: str | None = None

    @property
    def of_all_tasks(self) -> tuple[str, ...]:
        """Its flags but for the task that it learns, if that is one of those of the script."""
        return tuple(flag for flag in self.flags if not flag.startswith("--task-eval="))


@dataclass(frozen=True)
class Plan:
    """The runs of a call in the order in which they start, and what they have in common.

    Attributes:
        folder: the experiment's; each run has a folder of its own in it, and a log beside that.
        program: what does a run, ``main.py``.
        config: its settings file.
        data: the parent folder of the data sets; None leaves it to the program.
    """

    runs: Sequence[Run]
    folder: Path
    program: Path
    config: Path
    data: Path | None

    def command(self, run: Run, devices: str) -> list[str]:
        """The words of a run's command, for devices as ``--multigpu`` names them."""
        words = [sys.executable, str(self.program), "--config", str(self.config), "--seed", str(run.seed)]
        words += [] if self.data is None else ["--data", str(self.data)]
        path = self.folder / run.name
        words += ["--log-dir", str(path.parent), "--name", path.name, "--multigpu", devices, "--resume"]
        merge = ["--merge", *(str(self.folder / part) for part in run.parts)] if run.parts else []
        return [*words, *run.flags, *merge]

    def log(self, run: Run) -> Path:
        """Where all that a run prints goes, of every attempt at it."""
        return self.folder / f"{run.name}.log"

    def is_finished(self, run: Run) -> bool:
        """Whether nothing of a run is left to do; of a slice also if the run that merges it has all of it."""
        return any((self.folder / name / "finished").exists() for name in (run.name, run.whole) if name)


def runs_of(
    seeds: Iterable[int], variants: Sequence[Mapping[str, object]], words: Sequence[str], tasks: int | None = None
) -> list[Run]:
    """Every run of a call: each variant with each seed, ``words`` passed on unchanged.

    A flag that all variants have picks those of its value, or of several values: ``--sparsity 4,16``. A value that none
    has, and a flag that only some have, wins over the variants', each of several values over all of them; variants that
    become the same by it are run once.

    Args:
        tasks: if each task is a run of its own, the number of tasks, unless ``--num-tasks`` is passed on.

    Raises:
        ValueError: as ``parse_passed_on``, or ``--num-tasks`` is no number.
    """
    passed_on = parse_passed_on(words)
    theirs = dict.fromkeys(flag for variant in variants for flag in variant)
    for flag in reversed([flag for flag in theirs if flag in passed_on]):
        values = passed_on[flag].split(",")
        if len(values) > 1 or all(flag in variant for variant in variants):
            variants = [variant for value in values for variant in _picked(variants, flag, value)]
        if len(values) > 1:
            del passed_on[flag]
            words = [word for name, of in by_flag(words) if name != flag for word in of]
    told = passed_on.get("stream-tasks", passed_on.get("num-tasks", ""))
    count = int(told) if told.isascii() and told.isdigit() else None
    if tasks is not None:
        if "num-tasks" in passed_on and not (count and count <= 10**5):
            raise ValueError(f"--num-tasks {passed_on['num-tasks']}: is not a whole number from 1 to 100000")
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


def _picked(variants: Sequence[Mapping[str, object]], flag: str, value: str) -> list[Mapping[str, object]]:
    """The variants in which a flag has this value; where there is none, or not all have the flag, all, with it."""
    picked = [one for one in variants if str(one.get(flag)) == value]
    return picked if picked and all(flag in one for one in variants) else [{**one, flag: value} for one in variants]


def _flag(flag: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"


def parse_passed_on(words: Iterable[str]) -> dict[str, str]:
    """Read the flags meant for ``main.py`` as ``{flag: value}``, to name runs by.

    Flags lose their dashes in front and get ``-`` between words. Several values are joined by commas, a flag
    without one counts as ``true``, and of a flag given twice the last counts, as for ``main.py``.

    Raises:
        ValueError: a word belongs to no flag, or a flag is one that the script sets itself.
    """
    found = {}
    for flag, (word, *more) in by_flag(words):
        if flag in RESERVED:
            raise ValueError(f"--{flag} is not passed on: {RESERVED[flag]}")
        values = [*word.split("=", 1)[1:], *more]
        found[flag] = ",".join(values) if values else "true"
    return found


def by_flag(words: Iterable[str]) -> list[tuple[str, list[str]]]:
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


# Names


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
    return short_name(",".join(f"{quote(flag, safe='')}={quote(value, safe=',+')}" for flag, value in parts))


def short_name(name: str) -> str:
    """A name that is short enough for a file's, of at most 255 bytes with the ``.log`` that follows."""
    return name if len(name) <= 200 else f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def parts_of(name: str) -> list[str]:
    """The parts ``flag=value`` of what ``run_name`` gave; a value may have commas."""
    return re.split(r",(?=[^,=]+=)", name)


def plain_name(name: str) -> str:
    """What ``run_name`` calls a run whose folder's name also tells flags that leave its files as they are."""
    return ",".join(part for part in parts_of(name) if part.partition("=")[0] not in NOT_IN_NAME)


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
