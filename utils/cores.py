"""How many cores are this process's to use, and how its threads wait for each other. Loads no torch."""

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

# What schedulers tell a job that it was given: SLURM, PBS, Grid Engine, LSF.
ALLOTTED = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NCPUS", "NSLOTS", "LSB_DJOB_NUMPROC")
RUNS_AT_ONCE = "SUPSUP_RUNS_AT_ONCE"  # how many runs, this one among them, the launcher shares the cores out to
MOST_THREADS = 4096


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
    return max(1, min(limits) // (_count(environ.get(RUNS_AT_ONCE, "")) or 1))


def _count(text: str) -> int | None:
    text = text.strip()
    count = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    return count if 1 <= count <= MOST_THREADS else None


def _limits(environ: Mapping[str, str], root: Path) -> Iterator[int]:
    for name in ALLOTTED:
        if (count := _count(environ.get(name, ""))) is not None:
            yield count
    for folder in _control_groups(root):
        with suppress(OSError, ValueError, ZeroDivisionError):  # version 2: "max 100000" or "150000 100000"
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            yield int(quota) // int(period)
        with suppress(OSError, ValueError, ZeroDivisionError):  # version 1, where -1 is no limit
            allotted, every = (
                int((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period")
            )
            if allotted > 0:
                yield allotted // every


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups that may hold a quota, each with all above it.

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
        elif kind == "cgroup" and "cpu" in options:
            paths = [path for _, controllers, path in groups if "cpu" in controllers.split(",")]
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
