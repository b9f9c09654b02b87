"""What ``--slurm`` says: the options of SLURM's sbatch, and a few of our own. Loads nothing of SLURM or submitit."""

import math
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from experiments.backends import GRACE_SECONDS

# Options of sbatch that are set for each call, and what to say instead.
RESERVED = {
    "array": "say at-once=N for so many runs at a time",
    "signal": "say signal-delay=SECONDS, before the limit",
    **dict.fromkeys(("wrap", "output", "error", "open-mode", "chdir", "ntasks", "nodes"), "leave it out"),
}


@dataclass(frozen=True)
class SlurmOptions:
    """What a job asks for.

    Attributes:
        minutes: its time limit.
        at_once: how many of the jobs run at a time, at the most; None for as many as there is room for.
        signal_delay: how many seconds before the limit its run is told to keep what it has learned.
        local: whether jobs are processes of this machine instead, to try all this without a cluster.
        sbatch: further options of sbatch, by their long names.
    """

    minutes: float
    at_once: int | None = None
    signal_delay: int = GRACE_SECONDS
    local: bool = False
    sbatch: Mapping[str, str] = field(default_factory=dict)

    @property
    def devices(self) -> str:
        """The devices of a run as ``--multigpu`` names them: the GPUs that it is given, which count from 0 there.

        Raises:
            ValueError: it is not understood how many these are.
        """
        for name in ("gpus-per-node", "gpus-per-task", "gpus", "gres"):
            if name in self.sbatch and (count := _gpus(name, self.sbatch[name])) is not None:
                return ",".join(map(str, range(count))) or "cpu"
        return "cpu"


def parse(words: Iterable[str]) -> SlurmOptions:
    """The options in ``words``, each KEY=VALUE.

    Raises:
        ValueError: one is none, or cannot be.
    """
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.lstrip("-").replace("_", "-")
        if not (equals and value and re.fullmatch(r"[a-z][a-z0-9-]*", key)):
            raise ValueError(f"--slurm {word}: is not KEY=VALUE, such as partition=gpu")
        if key in RESERVED:
            raise ValueError(f"--slurm {word}: is set by this script; {RESERVED[key]}")
        if key in found:
            raise ValueError(f"--slurm {word}: {key} is said twice")
        found[key] = value
    if "time" not in found:
        raise ValueError(
            "--slurm: time=MINUTES or time=HOURS:MINUTES:SECONDS is missing, after which a job goes on anew"
        )
    cluster = found.pop("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise ValueError(f"--slurm cluster={cluster}: is neither slurm nor local")
    minutes = _minutes(found.pop("time"))
    delay = _count("signal-delay", found.pop("signal-delay", str(GRACE_SECONDS)))
    if delay >= 60 * minutes:
        raise ValueError(
            f"--slurm signal-delay={delay}: the seconds before the limit in which a run keeps what it has learned "
            f"should be fewer than those of a job, {60 * minutes:g} (time)"
        )
    at_once = _count("at-once", found.pop("at-once")) if "at-once" in found else None
    return SlurmOptions(minutes, at_once, delay, cluster == "local", found)


def check(options: SlurmOptions) -> None:
    """See that there is a cluster, and that it takes jobs with these options.

    Raises:
        ValueError: there is none, or it does not; says what it said.
    """
    if options.local:
        return
    flags = [f"--{key}={value}" for key, value in options.sbatch.items()]
    command = ["sbatch", "--test-only", f"--time={math.ceil(options.minutes)}", *flags, "--wrap=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, errors="replace")
    except FileNotFoundError:
        raise ValueError("--slurm: there is no sbatch here; call from a machine that submits jobs") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"--slurm: sbatch does not answer: {error}") from None
    if done.returncode:
        said = "; ".join(line for line in done.stderr.splitlines() if not line.startswith("Try "))
        raise ValueError(f"--slurm: no job can be submitted so: {said or f'status {done.returncode}'}")


def _gpus(key: str, text: str) -> int | None:
    """How many GPUs an option of sbatch asks for: ``2``, ``a100:2``, and of ``gres`` such as ``ssd:1,gpu:2(S:0-1)``.

    None if ``gres`` asks for other things alone. Raises ``ValueError`` if it is not understood.
    """
    counts = []
    for part in re.sub(r"\([^()]*\)", "", text).split(","):
        asked = part if key == "gres" else f"gpu:{part}"
        if "gpu" not in asked.partition(":")[0].lower():
            continue
        found = re.fullmatch(r"gpu(?::(?:[\w.-]+:)?([0-9]{1,4})|:[A-Za-z][\w.-]*)?", asked)
        if not found:
            raise ValueError(f"--slurm {key}={text}: does not tell how many GPUs; say gpus-per-node=N")
        counts.append(int(found[1] or 1))
    return sum(counts) if counts else None


def _count(key: str, text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) < 10**6:
        return int(text)
    raise ValueError(f"--slurm {key}={text}: is not a whole number from 1 to {10**6 - 1}")


def _minutes(text: str) -> float:
    """A time in one of sbatch's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if all(part.isascii() and part.isdigit() and len(part) < 7 for part in [*parts, *([days] if dash else [])]):
        numbers = [int(part) for part in parts]
        if dash and len(numbers) <= 3:
            hours, minutes, seconds = [*numbers, 0, 0][:3]
        elif len(numbers) <= 3:
            hours, minutes, seconds = ([0, *numbers, 0] if len(numbers) < 3 else numbers)[:3]
        else:
            hours = minutes = seconds = 0
        total = 1440 * int(days or 0) + 60 * hours + minutes + seconds / 60
        if total > 0:
            return total
    raise ValueError(f"--slurm time={text}: is not a time such as 90, 1:30:00 or 2-12 (days and hours)")
