"""The folder of a run: settings, log, TensorBoard; and progress on the terminal."""

import os
import platform
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
import yaml
from filelock import BaseFileLock, Timeout
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from utils.errors import UserError
from utils.files import check_own, is_locked, open_file, part_of, write_whole
from utils.locks import lock_of
from utils.paths import PROJECT

Item = TypeVar("Item")
TAKEN = ("results.csv", "results.csv.lock")  # by the table that the runs of an experiment share
# What a run's folder holds, beside TensorBoard's events.
FILES = (
    *("checkpoint.pt", "checkpoint.pt.damaged", "training.pt", "settings.yaml", "log.txt", "finished", ".lock"),
    *("adapt_results.csv", "confusion.csv", "hopfield.csv", "nns.csv"),
)


class RunFolder:
    """``<log dir>/<name>/``, with all that one run writes for itself.

    Args:
        log_dir: the experiment's folder.
        name: the run's; a new run whose name is taken gets ``name~2``, ``name~3``, ...
        resume: whether to go on in the folder that is there, instead of beside it.
        words: what becomes of a text that is logged.

    Raises:
        UserError: the folder cannot be made or written, or another process is running in it.
    """

    def __init__(self, log_dir: Path, name: str, resume: bool, words: Callable[[str], str] = str):
        self._words = words
        if name.casefold() in TAKEN:
            raise UserError(f"`name` {name}: is what a file of the experiment is called; choose another")
        try:
            self.path, self._lock = _claim(log_dir, name, resume)
            for name in FILES:  # a killed run may have left a part of what it was writing
                part_of(self.path / name).unlink(missing_ok=True)
            check_own(self.path / "log.txt")
            self._log = open_file(self.path / "log.txt", "ab", buffering=0)
            self.tensorboard = Scalars(self.path)
        except OSError as error:
            raise UserError(f"`log_dir` {log_dir}: cannot write {error.filename or name}: {error.strerror}") from None
        self._started = datetime.now().isoformat(timespec="seconds")
        self.checkpoint = self.path / "checkpoint.pt"
        self.finished = self.path / "finished"

    def log(self, text: str) -> None:
        """Print ``text``, without disturbing a progress bar, and keep it in ``log.txt`` with the time."""
        tqdm.write(self._words(text), file=sys.stdout)
        sys.stdout.flush()
        self.keep(text)

    def keep(self, text: str) -> None:
        """Add ``text`` to ``log.txt`` with the time; where that cannot be, as on a full disk, the run goes on."""
        stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):
            self._log.write("".join(f"{stamp} {line}\n" for line in self._words(text).splitlines()).encode())

    def write_settings(self, settings: dict[str, Any], **more: object) -> None:
        """``settings.yaml``: every resolved setting, the machine, versions and commit, and what ``more`` says."""
        about = {
            "settings": settings,
            "command": sys.argv,
            "started": self._started,
            "commit": _commit(),
            "machine": _machine(settings["multigpu"]),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "torchvision": version("torchvision"),
                "numpy": numpy.__version__,
            },
            **more,
        }
        write_whole(self.path / "settings.yaml", yaml.safe_dump(about, sort_keys=False))

    def finish(self) -> None:
        """Mark the run as complete, for whoever wants to skip it."""
        write_whole(self.finished, datetime.now().isoformat(timespec="seconds") + "\n")

    def close(self) -> None:
        """Close all files and let others run here."""
        self.tensorboard.close()
        with suppress(OSError):  # a network's disk may say only now that it was full
            self._log.close()
        self._lock.release()


def _claim(log_dir: Path, name: str, resume: bool) -> tuple[Path, BaseFileLock]:
    """A run's folder and the lock that says that it is taken. Runs that start at the same time each get their own.

    Raises:
        OSError: it cannot be made or locked.
        UserError: another process is running in the folder to go on in.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    copies = 0
    while True:
        copies += 1
        path = log_dir / (name if copies == 1 else f"{name}~{copies}")
        try:
            path.mkdir(exist_ok=resume)
        except FileExistsError:
            if resume:
                raise  # it is a file
            continue
        check_own(path / ".lock")
        lock = lock_of(path / ".lock", timeout=0.1)  # longer than somebody takes to see whether it is held
        try:
            lock.acquire()
            return path, lock
        except Timeout:
            if not resume:  # another was quicker to go on in the folder that was just made
                continue
            left = "" if is_locked(path / ".lock") else f"; if none does, delete {path / '.lock'}"
            raise UserError(f"{path}: another process is running in this folder{left}") from None


class Scalars:
    """TensorBoard's file of the numbers of a run.

    ``SummaryWriter`` writes in a thread of its own, which fails with a traceback when the disk is full. Here numbers
    are written at once, and from the first on that finds no room they are left out: no result depends on them.
    """

    def __init__(self, folder: Path):
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}"
        self._records = RecordWriter(open(folder / name, "ab"))
        self._full = False
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to the curve ``name``."""
        self._add_value(Summary.Value(tag=name, simple_value=value), step)

    def add_text(self, name: str, text: str) -> None:
        """Add a page of Markdown."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        self._add_value(Summary.Value(tag=name, metadata=metadata, tensor=tensor), 0)

    def _add_value(self, value: Summary.Value, step: int) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def _add(self, event: Event) -> None:
        try:
            if not self._full:
                self._records.write(event.SerializeToString())
                self._records.flush()
        except OSError:
            self._full = True

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what found no room finds none now
            self._records.close()


def _commit() -> str:
    """The commit of the code that runs, ``+`` behind it if files were changed since, or ``unknown``."""
    try:
        answers = [
            subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answers[0].strip() + ("+" if answers[1].strip() else "")


def _machine(multigpu: str) -> str:
    """The system, the processor and its cores, and the GPUs that the run uses."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):  # on Linux, where the platform does not say more than the architecture
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")][0]
    gpus = [torch.cuda.get_device_name(int(gpu)) for gpu in multigpu.split(",") if gpu != "cpu"]
    return ", ".join([platform.platform(), processor, f"{os.cpu_count()} cores", *gpus])


def progress(
    items: Iterable[Item], total: int | None = None, description: str = "", unit: str = "batch"
) -> Iterator[Item]:
    """``items`` with a progress bar while they are used up; nothing is shown when the output is no terminal.

    Output that goes to a file gets a new time of change, at most once a second: the sign of life that the launcher of
    experiments looks for, since a task may take hours without a word.
    """
    touched = 0.0
    for item in tqdm(
        items,
        total=total,
        desc=description,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        disable=None,
        file=sys.stdout,
    ):
        if time.monotonic() - touched > 1:
            touched = time.monotonic()
            with suppress(OSError, ValueError):  # an output without a descriptor
                if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode):
                    os.utime(sys.stdout.fileno())
        yield item
