"""How far runs are: a line a run, read from its own files alone, quickly, on any machine that sees the disk.

  python experiments/status.py runs/*                 all runs of all experiments there
  python experiments/status.py runs/NNs-supsup        of one; a run's own folder serves too
  python experiments/status.py --watch runs/*         again every few seconds, until Ctrl-C; without those that are
                                                      finished where all do not fit on the terminal

States: waiting (a call has taken the run up, and not begun with it), under way, stopped, finished, and failed, which a
call of the experiment's script tries again. The accuracy is that of the task learned last; s/task is the pace since the
run last began, with its evaluations; left is what its other tasks take at that pace. Where locks are not seen on other
machines, docs/runs.md says when a run counts as under way.
"""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from experiments.attempts import STOPPED, is_under_way, last_attempt, last_line  # noqa: E402
from experiments.options import Parser  # noqa: E402
from experiments.plan import SLICES, parts_of  # noqa: E402
from utils import journal  # noqa: E402
from utils.output import lasting_output, one_line  # noqa: E402
from utils.paths import user_path  # noqa: E402
from utils.slices import tasks_of  # noqa: E402

WATCH_SECONDS = 5
NONSENSE = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # what comes of damaged values
COLUMNS = ("run", "state", "machine", "tasks", "accuracy", "s/task", "left", "log")


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        state: ``new``: it has not begun; ``begun``, whether it is under way or not; ``finished``.
        done: the tasks that it has learned.
        tasks: how many it is to learn, or has from elsewhere, without those that could not be and were left out; None
            while nobody can tell.
        accuracy: of the task learned last, when it was just learned; None before the first.
    """

    state: str
    done: int = 0
    tasks: int | None = None
    accuracy: float | None = None


def read(folder: Path) -> Status:
    """The status of the run in ``folder``, whether or not a process is writing there.

    It is that of the checkpoint's records up to the first that none can have written.
    """
    state = "finished" if (folder / "finished").exists() else "begun" if folder.is_dir() else "new"
    path, done, left_out, part = folder / "checkpoint.pt", set(), set(), set()
    tasks, accuracy = None, None
    with suppress(OSError, *NONSENSE):
        for place, said in enumerate(journal.values(path, proved=False) if path.is_file() else ()):
            kind = said["kind"]
            if (kind == journal.RUN) != (place == 0):
                break
            if kind == journal.RUN:
                settings = said["settings"]
                some = settings.get("tasks") or settings.get("task_eval")
                part = set() if some is None else set(tasks_of(str(some)))
                tasks = len(part) or _number(settings.get("stream_tasks") or settings["num_tasks"])
            elif kind == journal.MORE_TASKS:
                tasks = _number(said["num_tasks"])
            elif kind == journal.LEFT_OUT:
                left_out.add(_number(said["task"]))
            elif kind == journal.TASK:
                task, accuracy = _number(said["task"]), float(said["accuracy"])
                done.add(task)
    tasks = len(part | done) if part else tasks
    return Status(state, len(done), None if tasks is None else tasks - len(left_out - done), accuracy)


def _number(value: object) -> int:
    """A count or the number of a task. Raises ``ValueError`` if it is something else."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


# The command


@dataclass(frozen=True)
class Line:
    """What the table says of a run, but for its name.

    Attributes:
        pace: seconds a task; None while nobody can tell.
        said: the last line of its log.
    """

    state: str
    machine: str
    status: Status
    pace: float | None
    said: str

    @property
    def cells(self) -> list[str]:
        """In the order of ``COLUMNS`` after the first; ``-`` for what nobody can tell."""
        of = self.status
        left = of.tasks and self.pace and (of.tasks - of.done) * self.pace
        return [
            self.state,
            self.machine or "-",
            f"{of.done}/{of.tasks or '?'}",
            "-" if of.accuracy is None else f"{of.accuracy:.4f}",
            "-" if self.pace is None else f"{self.pace:.3g}" if self.pace < 100 else f"{self.pace:.0f}",
            _span(left) if left and self.state == "under way" else "-",
            "" if self.state == "finished" else self.said,
        ]


def line(folder: Path) -> Line:
    """What there is to say of the run in ``folder``, which may not be there yet."""
    log, own = folder.with_name(f"{folder.name}.log"), folder / "log.txt"
    status, attempt = read(folder), last_attempt(log)
    state = status.state
    if state != "finished":
        failed = attempt and attempt.status is not None and attempt.status not in {0, *STOPPED}
        state = "under way" if is_under_way(log) else "failed" if failed else "stopped"
        if state == "stopped" and attempt is None and status.state == "new":
            state = "waiting"
    places = [
        path.name.split(".") for path in folder.glob("events.out.tfevents.*")
    ]  # of TensorBoard: time, node, process
    places = sorted((place for place in places if len(place) > 5), key=lambda place: place[3])
    machine = ".".join(places[-1][4:-1]) if places else attempt.machine if attempt else ""
    said = last_line(log) or re.sub(r"^\d{4}-\S+ \S+ ", "", last_line(own))
    return Line(state, machine, status, pace(own), one_line(said))


def pace(log: Path) -> float | None:
    """Seconds a task since the run last began, from the times in its ``log.txt``; None before it has learned one."""
    before = None
    spent = until = 0.0
    learned = 0
    with suppress(OSError, ValueError):
        for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if not (found := re.match(r"(\d{4}-\S+ \S+) (going on |task \d+: .* s$)?", text)):
                continue
            stamp = datetime.fromisoformat(found[1])
            if before is None or found[2] == "going on ":
                before, spent, learned = stamp, 0.0, 0
            spent += max(0.0, (stamp - before).total_seconds())  # clocks are set back, as in autumn
            before = stamp
            if (found[2] or "").startswith("task "):
                until, learned = spent, learned + 1
    return until / learned if learned else None


def runs_in(folders: Iterable[Path]) -> list[Path]:
    """The folders of the runs in each folder: its own, an experiment's, or of all experiments in it.

    Raises:
        ValueError: one is not there, or there is no run in any.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.exists():
            raise ValueError(f"{folder}: is not there; give the folders of runs or experiments, such as runs/*")
        inside = [folder] if _is_run(folder) else _runs_of(folder)
        if not inside and folder.is_dir():
            inside = [run for path in sorted(folder.iterdir()) for run in _runs_of(path)]
        found.update(dict.fromkeys(inside))
    if not found:
        raise ValueError("there is no run; give the folders of runs or experiments, such as runs/*")
    return list(found)


def _is_run(folder: Path) -> bool:
    return (folder / "log.txt").is_file()


def _runs_of(folder: Path) -> list[Path]:
    """The runs of an experiment: those with a folder or a log, and slices of them."""
    found = set()
    for inside in (folder, folder / SLICES):
        for path in inside.iterdir() if inside.is_dir() else ():
            if _is_run(path):
                found.add(path)
            elif path.suffix == ".log" and path.is_file():
                found.add(path.with_suffix(""))
    return sorted(found, key=_by_number)


def _by_number(path: Path) -> list[str | int]:
    """What sorts ``seed=9`` before ``seed=10``."""
    words = re.split(r"(\d+)", str(path))  # every second one is a number
    return [int(word) if place % 2 else word for place, word in enumerate(words)]


def table(lines: Iterable[tuple[Path, Line]], width: int, unfinished: bool = False) -> str:
    """The lines of runs below the names of their experiments, none longer than ``width`` where that can be.

    Args:
        unfinished: whether finished runs are counted alone.
    """
    groups: dict[Path, list[tuple[str, Line]]] = {}
    for folder, of in lines:
        inside = folder.parent.name == SLICES
        experiment = folder.parent.parent if inside else folder.parent
        groups.setdefault(experiment, []).append((f"{SLICES}/{folder.name}" if inside else folder.name, of))
    texts = []
    for experiment, members in groups.items():
        names, common = _short_names([name for name, _ in members])
        rows = [COLUMNS, *((name, *of.cells) for name, (_, of) in zip(names, members, strict=True))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rest = sum(widths[1:-1]) + 2 * (len(widths) - 1)
        widths[0] = max(12, min(widths[0], width - rest))
        room = width - widths[0] - rest
        finished = sum(of.state == "finished" for _, of in members)
        texts.append(_cut(f"{experiment.name}: {finished} of {len(members)} runs finished{common}", width))
        for name, *cells, said in rows:
            if unfinished and cells[0] == "finished":
                continue
            words = [_cut(name, widths[0]).ljust(widths[0])]
            words += [cell.ljust(size) for cell, size in zip(cells, widths[1:], strict=False)]
            texts.append("  ".join([*words, _cut(said, room) if room >= 10 else ""]).rstrip())
        texts.append("")
    return "\n".join(texts[:-1])


def _short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Names of runs without the parts that all share, and these parts in words."""
    split = [parts_of(name) for name in names]
    common = [part for part in split[0] if all(part in parts for parts in split)]
    if len(names) == 1:
        return list(names), ""
    short = [",".join(part for part in parts if part not in common) or ",".join(parts) for parts in split]
    return short, f", all with {','.join(common)}" if common else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def _span(seconds: float) -> str:
    """``4:05`` minutes, ``3:04:05`` hours, or ``2 d 3 h``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit status: 0, or 2 and one line for bad input."""
    parser = Parser(prog="status.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=user_path, metavar="RUN_FOLDER", help="of a run or an experiment")
    parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_SECONDS} seconds, until Ctrl-C")
    options = parser.parse_args(argv)
    finished: dict[Path, Line] = {}
    try:
        while True:
            runs = runs_in(Path(folder).absolute() for folder in options.folders)
            lines = {run: finished.get(run) or line(run) for run in runs}
            finished = {run: of for run, of in lines.items() if of.state == "finished"}
            width, height = shutil.get_terminal_size((120, 24))
            clear = "\033[H\033[2J" if options.watch and sys.stdout.isatty() else ""
            text = table(lines.items(), width, unfinished=bool(clear) and len(lines) > height - 4)
            print(f"{clear}{text}", flush=True)
            if not options.watch:
                return 0
            time.sleep(WATCH_SECONDS)
            print("" if clear else "\n", end="")
    except ValueError as error:
        parser.error(one_line(error))
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
