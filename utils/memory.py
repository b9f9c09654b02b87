"""How much memory is this process's to use, and files that stand in for what is not. Loads no torch."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.cores import control_groups, runs_at_once

FOR_ONE_THING = 1 / 4  # of the memory; what would take more lies in a file


def available_memory(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Bytes: the machine's memory, or what the container or the job may have of it, the least.

    Where the launcher has several runs under way, this run's share of them.

    Args:
        root: where ``proc`` and the mounted control groups lie.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, *_limits(environ, root)) // runs_at_once(environ)


def is_large(size: int, processes: int = 1) -> bool:
    """Whether so many bytes, in each of so many processes of a run, are more than one thing should have in memory."""
    return size * processes > FOR_ONE_THING * available_memory()


def in_file(size: int) -> np.ndarray:
    """So many bytes, uint8 (size,), in a memory-mapped file of the folder for temporary files, which ``TMPDIR`` names.

    The file has no name, so that it is gone with the process.

    Raises:
        OSError: that folder has no room for it.
    """
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # now, rather than a signal when a page finds no room; not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, np.uint8, "r+", shape=(size,))


def _limits(environ: Mapping[str, str], root: Path) -> Iterator[int]:
    yield 2**63
    with suppress(ValueError):
        if megabytes := int(environ.get("SLURM_MEM_PER_NODE", "0")):
            yield megabytes * 2**20
    for folder in control_groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, where "max" is no limit, and 1
            with suppress(OSError, ValueError):
                yield int((folder / name).read_text(encoding="utf-8"))
