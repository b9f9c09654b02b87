"""How many cores are this process's to use, how many threads a run computes with, and how these wait for each other.

Loads no torch.
"""

import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

# What schedulers tell a job that it was given: SLURM, PBS, Grid Engine, LSF.
ALLOTTED = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NCPUS", "NSLOTS", "LSB_DJOB_NUMPROC")
RUNS_AT_ONCE = "SUPSUP_RUNS_AT_ONCE"  # how many runs, this one among them, the launcher shares the cores out to
MOST_THREADS = 4096
# Multiplications of a mean product from which on all cores are faster than one when the machine is idle, and no slower
# than that by a tenth beside a busy process. Two threads for one, in time, on two cores of an AMD EPYC, idle and beside
# one busy process: LeNet 0.9 to 1.3 and 1.1 (12 million), with a batch of 1,000 0.6 and 1.2 (92), eight tasks at once
# 0.7 and 1.1 (94), sixteen 0.6 and 1.1 (188), BNNet 0.5 and 1.0 (248), GEMResNet18 0.9 and 1.2 with a batch of 16.
WORTH_THREADS = 2**27


def choose_threads(
    asked: int | None, began: int | None, wanted: int | None, cores: int, product_size: Callable[[], float] | None
) -> tuple[int, str]:
    """The processor threads of a run, and why they are so many, in words.

    Results depend on the number, so that it depends on nothing that changes while a run goes on, such as how busy the
    machine is. The first that is told counts; else it is all cores if products are large enough to gain by them, or 1.

    Args:
        asked: what the user asks for.
        began: what the run began with, if it goes on.
        wanted: what the environment asks for, as ``wanted_threads`` says.
        cores: those that are this process's to use, as ``available_cores`` says.
        product_size: gives the multiplications of a mean product; it is asked for
            only where it counts. None for a run that computes elsewhere.
    """
    if asked is not None:
        return asked, "as `threads` says"
    if began is not None:
        return began, "as the run began"
    if wanted is not None:
        return wanted, "as OMP_NUM_THREADS says"
    if product_size is None:
        return cores, "all cores open to the run"
    size = product_size()
    large = size >= WORTH_THREADS
    why = f"{'large' if large else 'small'} products, {size / 1e6:,.0f} million multiplications each; {cores} cores"
    return (cores if large else 1), why


def wanted_threads(environ: Mapping[str, str] = os.environ) -> int | None:
    """What ``OMP_NUM_THREADS`` asks for: the first number, of those for nested levels; None if it has none."""
    return _count(environ.get("OMP_NUM_THREADS", "").partition(",")[0])


def available_cores(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """The cores that this process may keep busy: of its affinity, its container's quota and its job, the fewest.

    Where the launcher has several runs under way, this run's share of them. At least 1.

    Args:
        root: where ``proc`` and the mounted control groups lie.
    """
    with suppress(AttributeError):  # not on macOS
        return _share([len(os.sched_getaffinity(0)), *_limits(environ, root)], environ)
    return _share([os.cpu_count() or 1, *_limits(environ, root)], environ)


def sleep_while_waiting(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for others sleep, unless the user has said how they wait; before torch is loaded.

    By default they spin, which takes the core from whatever else runs, be it the thread that they wait for.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(environ):
        environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _share(limits: list[int], environ: Mapping[str, str]) -> int:
    return max(1, min(limits) // runs_at_once(environ))


def runs_at_once(environ: Mapping[str, str] = os.environ) -> int:
    """How many runs, this one among them, the launcher has under way on the machine; 1 if there is none."""
    return _count(environ.get(RUNS_AT_ONCE, "")) or 1


def _count(text: str) -> int | None:
    text = text.strip()
    count = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    return count if 1 <= count <= MOST_THREADS else None


def _limits(environ: Mapping[str, str], root: Path) -> Iterator[int]:
    for name in ALLOTTED:
        if (count := _count(environ.get(name, ""))) is not None:
            yield count
    for folder in control_groups(root, "cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):  # version 2: "max 100000" or "150000 100000"
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            yield int(quota) // int(period)
        with suppress(OSError, ValueError, ZeroDivisionError):  # version 1, where -1 is no limit
            allotted, every = (
                int((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period")
            )
            if allotted > 0:
                yield allotted // every


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups that may hold a limit of a controller, each with all above it.

    A container may see the path that its group has outside; then the limit stands at the top of what is mounted.
    """
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    except OSError:  # not on macOS
        return
    for mount in mounts:
        if "-" not in mount:
            continue
        kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
        if kind == "cgroup2":
            paths = [path for _, controllers, path in groups if controllers == ""]
        elif kind == "cgroup" and controller in options:
            paths = [path for _, controllers, path in groups if controller in controllers.split(",")]
        else:
            continue
        top = root / mount[4].lstrip("/")
        for path in paths:
            inside = os.path.relpath(path, mount[3])  # the mount may show a part of the tree
            inside = "." if inside.startswith("..") else inside
            while inside:
                yield top / inside
                inside = os.path.dirname(inside)
            yield top
