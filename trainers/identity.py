"""Which run the records of a checkpoint are of."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.entries import are_threads, check_task, latest_settings, making_sense, mark_of, threads_of
from trainers.original import ORIGINAL
from utils.checkpoint import Checkpoint, Record
from utils.errors import UserError
from utils.fingerprint import Fingerprint
from utils.journal import RUN, TASK

OTHER_DATA = "images, labels or classes have changed"
OTHER_SIZES = "was made when some images' files had other sizes; fine if such as could not be read were replaced"


class Identity:
    """A run as its checkpoint tells it from others: by the settings and the data that it began with.

    Args:
        lasting: the settings that must stay the same when the run goes on.
        data: the fingerprint of the data.
        check_same: called with a checkpoint's path and its settings; raises ``UserError`` if they are others than
            ``lasting``.

    Attributes:
        mark: what each of its records bears.
        original: whether it began with a checkpoint of the original code, whose frozen weights no seed makes here.
        more_tasks: whether there are more tasks than the checkpoint knows of.
        threads: the processor threads that a run that goes on began with; None for a new one.
    """

    def __init__(self, lasting: Mapping[str, Any], data: Fingerprint, check_same: Callable[[Path, Mapping], None]):
        self.lasting, self.data, self.check_same = lasting, data, check_same
        self.mark = mark_of(lasting, data.kept)
        self.original = self.more_tasks = False
        self.threads: int | None = None
        self._began: object = lasting  # the settings with which the checkpoint begins
        self._marked = True  # whether its records bear the mark

    def recall(self, records: Sequence[Record], path: Path) -> None:
        """See that a checkpoint begins as one of this run does, and how that was.

        Raises:
            UserError: it does not begin so.
        """
        record, values = records[0], records[0].values
        with making_sense(path):
            if record.kind != RUN or not isinstance(values["settings"], dict):
                raise ValueError("it is not the settings of a run, with which a checkpoint begins")
            settings = latest_settings(records)
            other = not self.data.same(values.get("data"))
            self.check_same(path, settings)
            self.more_tasks = settings.get("num_tasks") != self.lasting["num_tasks"]
            self._began = values["settings"]
            # Those of before it was kept tell of it in the settings of the run alone.
            self.threads = values["threads"] if "threads" in values else threads_of(path.with_name("settings.yaml"))
            if self.threads is not None and not are_threads(self.threads):
                raise ValueError(f"threads {reprlib.repr(self.threads)}")
            self.original = values.get(ORIGINAL) is True
            # What came later than the file, as a setting and its default, or the fingerprint, is not in its mark.
            self.mark = mark_of(values["settings"], values.get("data"))
            self._marked = "run" in values
            self.check(record)
        if other:
            raise UserError(f"{path} was made with other data: {OTHER_DATA}; put back the old, or begin a new run")

    def recall_headless(self, path: Path) -> None:
        """See that what is whole behind a damaged beginning, if anything, is of this run.

        Raises:
            UserError: it bears the mark of another.
        """
        marks = [mark_of(self.lasting, kept) for kept in (self.data.kept, *self.data.before)]
        behind = [record.values.get("run") for record in Checkpoint(path).behind_damage()]
        fits = [mark for mark in marks if all(other in (None, mark) for other in behind)]
        if not fits:
            raise UserError(
                f"{path}: its beginning is damaged, and what is whole behind that is of other settings or data than "
                "these; call with those that it began with (of `num_tasks` the first number), or begin a new run"
            )
        self.mark = fits[0]
        self.threads = threads_of(path.with_name("settings.yaml"))

    def check(self, record: Record) -> None:
        """Raises ``ValueError`` if a record is of another run; those of early checkpoints bear no mark."""
        if record.values.get("run", None if self._marked else self.mark) != self.mark:
            raise ValueError("it is of another run")

    def began(self, record: Record) -> bool:
        """Whether the first record of a file is one that this run began with."""
        return record.values.get("settings") == self._began

    def has_task(self, record: Record, tasks: int) -> bool:
        """Whether a record is that of a task of this run, one of so many, with values that a task can have."""
        if record.kind != TASK:
            return False
        try:
            self.check(record)
            check_task(record.values, tasks)
        except (KeyError, TypeError, ValueError):
            return False
        return True
