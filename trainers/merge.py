"""What runs have learned that each had some of the tasks, to be joined into the run that has all of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.entries import check_task, latest_settings, making_sense, mark_of
from trainers.original import ORIGINAL
from utils.checkpoint import Checkpoint, Record, fraction, index
from utils.errors import UserError
from utils.fingerprint import Fingerprint
from utils.journal import EXPORT, EXPORTED_TASK, LEFT_OUT, RUN, TASK
from utils.settings import PART
from utils.slices import named


@dataclass(frozen=True)
class Part:
    """A run or an export that has some of the tasks.

    Attributes:
        path: of its file.
        settings: of the run, but for those of ``PART``.
        data: the fingerprint of its data; None if that is not known.
        records: of its tasks, those that were left out too.
    """

    path: Path
    settings: Mapping[str, object]
    data: str | None
    records: Sequence[Record]


def read_part(path: Path) -> Part:
    """Read what ``merge`` names: a run's folder, its checkpoint, or what ``export`` wrote.

    Raises:
        UserError: it cannot be read, is damaged, or has weights that its tasks share.
    """
    path = path / "checkpoint.pt" if path.is_dir() else path
    records, damaged = Checkpoint(path).read()
    if damaged:
        raise UserError(f"`merge` {path}: its last {damaged} bytes are damaged; let its own run go on first")
    first = records[0] if records else Record("", {})
    settings, data = first.values.get("settings"), first.values.get("data")
    if first.kind not in (RUN, EXPORT) or not isinstance(settings, dict):
        raise UserError(f"`merge` {path}: was written by no run and no `export`")
    with making_sense(path):
        mark = mark_of(settings, data)
        if any(record.values.get("run", mark) != mark for record in records):
            raise ValueError("it is of another run")
        settings = latest_settings(records)
        of_tasks = [record for record in records if record.kind in (TASK, EXPORTED_TASK, LEFT_OUT)]
        for record in of_tasks:
            count = settings["stream_tasks"] or settings["num_tasks"]
            if record.kind == TASK:
                check_task(record.values, count)
            else:
                index(record.values["task"], count)
                fraction(record.values.get("accuracy", 0.0))
    shared = first.tensors or any(name.startswith("shared.") for record in of_tasks for name in record.tensors)
    if shared or first.values.get(ORIGINAL):
        raise UserError(f"`merge` {path}: has weights that its tasks share, so that they cannot be learned apart")
    return Part(path, {name: value for name, value in settings.items() if name not in PART}, data, of_tasks)


def join_parts(
    parts: Sequence[Part],
    tasks: Collection[int],
    data: Fingerprint,
    check_same: Callable[[str, Mapping[str, object]], None],
    allow_missing: bool,
) -> dict[int, tuple[Path, Record]]:
    """What the parts know of ``tasks``, with where it is from.

    Args:
        data: the fingerprint of the data.
        check_same: called with what names a part and with its settings; raises ``UserError`` if they are others.
        allow_missing: whether some of the tasks may be in none of them.

    Raises:
        UserError: a part is of other settings or data, a task is in two of them, or in none.
    """
    found: dict[int, tuple[Path, Record]] = {}
    for part in parts:
        check_same(f"`merge` {part.path}", part.settings)
        if not data.same(part.data):
            raise UserError(f"`merge` {part.path}: was learned from other data: images, labels or classes differ")
        has = {record.values["task"]: (part.path, record) for record in part.records}
        if both := has.keys() & found.keys():
            others = ", ".join(sorted({str(found[task][0]) for task in both}))
            raise UserError(f"`merge` {part.path}: has tasks that are in {others} too: {named(both)}")
        found |= has
    found = {task: found[task] for task in tasks if task in found}
    missing = [task for task in tasks if task not in found]
    if not found or (missing and not allow_missing):
        hint = "; `allow_missing` joins those that are there" if found else ""
        raise UserError(f"`merge`: tasks that no run there has: {named(missing)}{hint}")
    return found
