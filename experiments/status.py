"""How far a run is, read from its own files: quickly, without torch, on any machine that sees the disk."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from utils import journal
from utils.slices import tasks_of


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        state: ``new``: it has not begun; ``begun``, whether it is under way or not; ``finished``.
        done: the tasks that it has learned.
        tasks: how many it is to learn; None while nobody can tell.
        accuracy: of the task learned last, when it was just learned; None before the first.
    """

    state: str
    done: int = 0
    tasks: int | None = None
    accuracy: float | None = None


def read(folder: Path) -> Status:
    """The status of the run in ``folder``, whether or not a process is writing there."""
    state = "finished" if (folder / "finished").exists() else "begun" if folder.is_dir() else "new"
    path, done, tasks, accuracy = folder / "checkpoint.pt", set(), None, None
    with suppress(OSError, ValueError):
        for said in journal.values(path, proved=False) if path.is_file() else ():
            if said.get("kind") == "run":
                settings = said["settings"]
                some = settings.get("tasks") or settings.get("task_eval")
                alone = some is not None
                tasks = len(tasks_of(str(some))) if alone else settings.get("stream_tasks") or settings.get("num_tasks")
            elif said.get("kind") == "more tasks" and not alone:
                tasks = said["num_tasks"]
            elif said.get("kind") == "task":
                done.add(said["task"])
                accuracy = said["accuracy"]
    return Status(state, len(done), tasks, accuracy)
