"""The middle of a task, kept beside the checkpoint so that a run which is cut short loses no more than some minutes."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.default import DefaultTrainer
from trainers.entries import NONSENSE
from utils.checkpoint import Checkpoint, Record, fraction, write_records
from utils.errors import UserError
from utils.fingerprint import Fingerprint
from utils.journal import TRAINING

NAME = "training.pt"


class Unfinished:
    """The tasks in training on the disk: one record in a file of its own, written anew each time.

    Args:
        learned: the tasks learned before, a list that whoever learns them goes on with.
        settings, data: those of the run, which must be the same when it goes on.
        minutes: how many lie between one writing and the next.
    """

    def __init__(
        self,
        trainer: DefaultTrainer,
        learned: list[int],
        settings: Mapping[str, Any],
        data: Fingerprint,
        minutes: float,
    ):
        self.trainer, self.learned, self.settings, self.data, self.minutes = trainer, learned, settings, data, minutes
        self.damaged = False
        self.saved = ""  # what is on the disk, in words
        self._record: Record | None = None

    def find(self, folder: Path) -> None:
        """See whether there is something to go on from in a run's folder."""
        journal = Checkpoint(folder / NAME)
        if not journal.size():
            return
        try:
            records, rest = journal.read()
        except UserError:
            records, rest = [], 1
        self.damaged = bool(rest) or not (len(records) == 1 and _is_sound(records[0]))
        if not self.damaged:
            values = records[0].values
            # One that was left behind when its tasks had been learned is of no use. Early ones say nothing of the data.
            same = self.data.same(values.get("data")) and values["learned"] == self.learned
            self._record = records[0] if same and _fits(values["settings"], self.settings) else None

    @property
    def tasks(self) -> list[int]:
        """Those that a run was cut short in the middle of; none if there is nothing to go on from."""
        return [] if self._record is None else list(self._record.values["tasks"])

    def open(self, folder: Path) -> None:
        """Begin to write in a run's folder."""
        self.path = folder / NAME
        if self._record is None:
            self.drop()

    def resume(self, tasks: Sequence[int]) -> list[list[float]]:
        """Bring the trainer, which has just begun ``tasks``, to where a run ended in the middle of them.

        Returns:
            The accuracies of the tasks after each epoch that is done; none if there is nothing to go on from.

        Raises:
            UserError: what was kept does not fit.
        """
        self._wait()
        record, self._record = self._record, None
        if record is None or record.values.get("tasks") != list(tasks):
            return []
        try:
            self.trainer.load_training_record(record.tensors)
        except NONSENSE as error:
            raise UserError(f"{NAME} does not fit this run: {error!r}; without it its task starts anew") from None
        self._say()
        return record.values["accuracies"]

    def keep(self, accuracies: Sequence[Sequence[float]]) -> None:
        """Keep all that the tasks in training need to go on, unless their loss is no number.

        Args:
            accuracies: of these tasks after each epoch that is done.
        """
        self._wait()
        if self.trainer.watch.healthy:
            tasks = self.trainer.tasks
            values = {"settings": self.settings, "data": self.data.kept, "learned": self.learned}
            values |= {"tasks": tasks, "accuracies": accuracies}
            write_records(self.path, [Record(TRAINING, values, self.trainer.training_record())])
            self._say()

    def keep_if_due(self, accuracies: Sequence[Sequence[float]]) -> None:
        """``keep``, when so many minutes have passed."""
        if time.monotonic() >= self._due:
            self.keep(accuracies)

    def drop(self) -> None:
        """A task in training is learned or given up: what was kept of it is of no use any more."""
        self.saved = ""
        self.path.unlink(missing_ok=True)

    def _wait(self) -> None:
        self._due = time.monotonic() + 60 * self.minutes

    def _say(self) -> None:
        self.saved = f"{self.trainer.batches_done} batches of task {', '.join(map(str, self.trainer.tasks))}"


def _fits(theirs: object, ours: Mapping[str, object]) -> bool:
    """Whether what was half learned under settings can be gone on with: under the same, or for more tasks."""
    return isinstance(theirs, dict) and {**theirs, "num_tasks": None} == {**ours, "num_tasks": None}


def _is_sound(record: Record) -> bool:
    """Whether the values of a record can be those that ``keep`` wrote."""
    values = record.values
    try:
        for accuracies in values["accuracies"]:
            for _, accuracy in zip(values["tasks"], accuracies, strict=True):
                fraction(accuracy)
    except (KeyError, TypeError, ValueError):
        return False
    return record.kind == TRAINING and {"settings", "learned"} <= values.keys()
