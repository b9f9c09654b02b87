"""Sets of GPUs: what ``--gpu-sets`` says, and which GPUs this machine has."""

import argparse
import ctypes
import os
import re
from collections import Counter
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
OF_DRIVER = re.compile(r"(GPU|MIG)-[\w/-]+", re.ASCII)  # what nvidia-smi -L calls a GPU, or a part of one


def parse_sets(text: str) -> list[str]:
    """Split ``"0,1|2,3"``, ``"GPU-8f1c"`` or ``"cpu|cpu"`` into its sets, each the names of its GPUs or ``cpu``.

    The same GPU may stand in several sets (small runs share it), but only once in a set.

    Raises:
        argparse.ArgumentTypeError: a set is empty, is neither ``cpu`` nor GPUs, or names a GPU twice.
    """
    sets = []
    for gpu_set in text.split("|"):
        ids = [word.strip() for word in gpu_set.split(",")]
        if ids != ["cpu"]:
            if not all((word.isascii() and word.isdigit()) or OF_DRIVER.fullmatch(word) for word in ids):
                raise argparse.ArgumentTypeError(
                    f"{text!r}: {gpu_set!r} is no set; a set is cpu or GPU ids such as 0 or 0,1, or as nvidia-smi -L "
                    "names them (GPU-..., MIG-...), and sets are separated by |"
                )
            ids = [str(int(word)) if word.isdigit() else word for word in ids]
            if len(set(ids)) < len(ids):
                raise argparse.ArgumentTypeError(f"{text!r}: the set {gpu_set!r} names a GPU twice")
        sets.append(",".join(ids))
    return sets


def seeing(gpu_set: str) -> list[str]:
    """What stands before a run's command, so that the run sees the GPUs of a set alone, ``renumbered``."""
    if gpu_set == "cpu":
        return []
    here = os.environ.get(VISIBLE, "").split(",")  # numbers count what is visible here
    known = dict(enumerate(here)) if here != [""] else {}
    names = (known.get(int(gpu), gpu) if gpu.isdigit() else gpu for gpu in gpu_set.split(","))
    return ["/usr/bin/env", f"{VISIBLE}={','.join(names)}"]


def renumbered(sets: Sequence[str]) -> list[str]:
    """What a run calls its GPUs that was given as many as a set has: they are numbered anew, from 0 on."""
    return [gpu_set if gpu_set == "cpu" else ",".join(map(str, range(gpu_set.count(",") + 1))) for gpu_set in sets]


def asked_for(sets: Sequence[str]) -> float:
    """How many GPUs each run asks of a cluster, by sets that are all alike; a part of one where several sets share it.

    Raises:
        ValueError: the sets are not alike, or share GPUs otherwise.
    """
    if len(set(renumbered(sets))) > 1:
        raise ValueError(f"--gpu-sets {'|'.join(sets)}: on a cluster every run asks for as many GPUs, as 0,1|2,3 do")
    if sets[0] == "cpu":
        return 0
    most = max(Counter(gpu for gpu_set in sets for gpu in gpu_set.split(",")).values())
    if most > 1 and "," in sets[0]:
        raise ValueError(f"--gpu-sets {'|'.join(sets)}: on a cluster only runs on one GPU can share it, as 0|0 do")
    return (sets[0].count(",") + 1) / most


def default_sets(to_print: bool) -> list[str]:
    """Each GPU a set, or the processor where there is none; to print commands the driver's word is enough."""
    return [str(gpu) for gpu in range(driver_count() if to_print else count())] or ["cpu"]


def check_sets(sets: Sequence[str]) -> None:
    """Raises ``ValueError`` if a set numbers a GPU that this machine does not have."""
    wanted = {int(gpu) for gpu_set in sets for gpu in gpu_set.split(",") if gpu.isdigit()}
    there = count() if wanted else 0
    if wanted and max(wanted) >= there:
        have = f"the GPUs here are 0 to {there - 1}" if there else "there is none here, use cpu"
        raise ValueError(f"--gpu-sets: GPU {max(wanted)} is not there; {have}")


def count() -> int:
    """The number of GPUs that torch sees; none if the driver cannot be used, though torch may count them then too."""
    import torch  # takes seconds, and only this function needs it

    return min(torch.cuda.device_count(), driver_count())


def driver_count() -> int:
    """The number of GPUs that NVIDIA's driver lets a process see: at once, without torch."""
    found = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    return found.value if driver.cuInit(0) == 0 == driver.cuDeviceGetCount(ctypes.byref(found)) else 0
