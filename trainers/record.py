"""What a run has learned and measured so far: one verb for what becomes of a task, and the way back from the disk."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from models import masked, multitask
from trainers import ADAPTORS
from trainers.default import DefaultTrainer, Learned
from trainers.entries import IMPORTED, check_task, making_sense, score_of
from trainers.evaluation import TaskScore
from trainers.export import Storage, load_export, recovery_storage, task_storage, tensor_storage, write_export
from trainers.identity import OTHER_DATA, OTHER_SIZES, Identity
from trainers.original import ORIGINAL
from trainers.tables import RecordOptions, Tables, mean
from trainers.unfinished import NAME, Unfinished
from utils.checkpoint import Checkpoint, Record, index, joined, named_part
from utils.errors import UserError
from utils.journal import EVALUATION, EXPORTED_TASK, LEFT_OUT, MORE_TASKS, RUN, TASK
from utils.results import check_row
from utils.run import RunFolder


@dataclass(frozen=True)
class Measured:
    """A task that was just learned, and how it answered.

    Attributes:
        accuracies: after each of its epochs, with the task given.
        right: how many answers of each test batch were, if it will answer so whenever it is selected until what tasks
            share changes.
    """

    learned: Learned
    accuracies: Sequence[float]
    right: Sequence[int] | None = None


class RunRecord:
    """What a run has learned and measured so far, and its one way to the disk.

    The checkpoint is written first and is the truth; ``results.csv`` and ``adapt_results.csv`` follow it, and a run
    that goes on brings them up to it.

    Args:
        options: what it must know of the settings.
        settings: all settings of the run as they are resolved, for ``settings.yaml``.
        identity: which run the records of its checkpoint are of.

    Attributes:
        learned: the tasks, in the order they were learned in.
        accuracies: of each task when it was just learned.
        masks: which of the model's tasks holds what was learned of each; None if nothing was.
        right: of tasks that answer to the bit as when they were just learned, the right answers of each test batch.
        evaluations: the scores of the tasks, by the number of tasks learned.
        left_out: tasks that could not be learned, which a run that goes on does not try again: it would fail alike.
        unfinished: those in training.
        spare: the records of tasks that stand behind a damaged one in the checkpoint, where tasks do not depend on
            each other; ``recover`` takes one back when its turn comes.
        merged: of tasks that were learned elsewhere the record, and the file that has it; ``recover`` takes them too.
    """

    def __init__(
        self,
        model: nn.Module,
        trainer: DefaultTrainer,
        options: RecordOptions,
        settings: Mapping[str, object],
        identity: Identity,
    ):
        self.model, self.trainer, self.options = model, trainer, options
        self.settings, self.identity = settings, identity
        self._warnings: list[str] = []  # for the log, once there is one
        self.learned: list[int] = []
        self.accuracies: dict[int, float] = {}
        self.right: dict[int, Sequence[int]] = {}
        self.masks: dict[int, int | None] = {}
        self._rows_of_trainer: dict[str, list[Mapping[str, object]]] = {}  # by the name of their file
        self.evaluations: dict[int, list[TaskScore]] = {}
        self.left_out: list[int] = []
        self.spare: dict[int, Record] = {}
        self.merged: dict[int, tuple[Path, Record]] = {}
        self._rows: list[dict] = []
        self._damaged = 0
        self._saved = 0  # tasks in the checkpoint
        # What tasks share is kept once it differs from what the seed makes, and again when it has changed.
        self._shared_saved = {name: value.cpu().clone() for name, value in multitask.shared_state(model).items()}
        self._shared_changed: set[str] = set()
        self._shared_news: set[str] = set()  # changed and not written yet
        self._storage: dict[int, Storage] = {}  # of each mask
        self._changed: dict[int, None] = {}  # masks whose storage is not known yet, in the order of learning
        self._masks_storage = Storage()  # their sum, kept up to date so that a task costs no more when many are learned
        self._checkpoint: Checkpoint | None = None
        minutes = options.checkpoint_minutes
        self.unfinished = Unfinished(trainer, self.learned, identity.lasting, identity.data, minutes)

    def adopt(self, accuracies: Mapping[int, float], data: object, source: str, original: bool = False) -> None:
        """Take tasks that lie in the model for learned: those that were imported, with their accuracies.

        Args:
            data: the fingerprint of the data that they were learned from; None if it is not known.
            source: where they come from, in words.
            original: whether that is the original code, whose frozen weights no seed makes here.
        """
        self.identity.original = original
        if not self.identity.data.same(data):
            self._warnings.append(f"warning: {source} was learned from other data: {OTHER_DATA}")
        self.accuracies |= accuracies
        for task in accuracies:
            self._take(Learned(task, task, [task]))
        self._note_shared()

    def _take(self, learned: Learned) -> None:
        """Take a task for learned."""
        self.learned.append(learned.task)
        self.masks[learned.task] = learned.mask
        for mask in learned.changed:
            self._storage.setdefault(mask, Storage())
            self._changed[mask] = None
        for name, rows in learned.rows.items():
            self._rows_of_trainer.setdefault(name, []).extend(rows)

    @property
    def candidates(self) -> list[int]:
        """The model's tasks that inference chooses among, in the order in which they were made."""
        return list(self._storage)

    def restore(self, path: Path) -> None:
        """Load a checkpoint, which is read alone.

        Raises:
            UserError: it cannot be read, is damaged beyond use, or is of other settings.
        """
        self._checkpoint = Checkpoint(path)
        self._size = self._checkpoint.size()
        records, self._damaged = self._checkpoint.read()
        if records:
            self.identity.recall(records, path)
            if self.identity.data.resized(records[0].values.get("data")):
                self._warnings.append(f"warning: {path} {OTHER_SIZES}")
        elif self._damaged:
            self.identity.recall_headless(path)
        for record in records[1:]:
            self._recall(record, path)
        if self.identity.original and not self.learned:  # the first task's record has the frozen weights
            raise UserError(f"{path} lacks what it went on from; begin again with the checkpoint of the original code")
        self._saved = len(self.learned)
        if self._damaged:
            self._find_spare(self._checkpoint)
        self._find_spare(Checkpoint(self._checkpoint.aside))
        self.unfinished.find(path.parent)

    def lacking(self, tasks: Iterable[int]) -> list[int]:
        """Those of ``tasks`` that are still to be learned, in their order."""
        done = {*self.learned, *self.left_out}
        return [task for task in tasks if task not in done]

    def leave_out(self, task: int, why: str) -> None:
        """Go on without ``task``, which failed, and without what it did to the weights that tasks share."""
        self.folder.log(f"warning: {why}; it is left out")
        self._append(Record(LEFT_OUT, {"task": task, "why": why}))
        self.left_out.append(task)
        multitask.load_shared_state(self.model, self._shared_saved)
        self.unfinished.drop()

    def _find_spare(self, journal: Checkpoint) -> None:
        """See which learned tasks stand behind damage, now or in a file that was kept aside."""
        try:
            records, damaged = journal.read() if journal.has_records() else ([], 0)
        except UserError:
            return
        if not damaged or (records and not self.identity.began(records[0])):
            return
        tasks = [record for record in journal.behind_damage() if self.identity.has_task(record, self._tasks)]
        if not records:  # then nothing but its own mark says that a record is of this run
            tasks = [record for record in tasks if "run" in record.values]
        alone = all(name.startswith("own.") for record in tasks for name in record.tensors)
        alone = alone and not multitask.depends(self.model)
        if alone and self.trainer.tasks_known and not self.trainer.options.train_weight_tasks:
            found = {record.values["task"]: record for record in tasks}
            self.spare |= {task: record for task, record in found.items() if task not in self.learned}

    def recover(self, task: int) -> bool:
        """Take ``task`` from another run, or back from behind damage; whether it was there."""
        if task in self.merged:
            self._take_over(task, *self.merged.pop(task))
            return True
        if task not in self.spare:
            return False
        assert self._checkpoint is not None  # spare tasks are of one that was read
        record = self.spare.pop(task)
        record.values["place"] = len(self.learned)
        self._recall(record, self._checkpoint.aside)
        self._append(record)
        self.folder.log(f"task {task}: taken from behind the damage in {self._checkpoint.aside}")
        if record.values["row"] is not None:
            self._tables.publish([record.values["row"]], again=True)
        return True

    def _take_over(self, task: int, path: Path, record: Record) -> None:
        """Keep a task as if it had just been learned, of which another run's file has the record.

        Raises:
            UserError: it does not fit this network.
        """
        if record.kind == LEFT_OUT:
            self.leave_out(task, str(record.values["why"]))
            return
        accuracy = best = record.values["accuracy"]
        if record.kind == EXPORTED_TASK:
            load_export(path, self.model, [record], "`merge`")
        else:
            with making_sense(path):
                multitask.load_task_state(self.model, task, named_part(record.tensors, "own"))
                best = record.values["row"]["Best Val"] if record.values["row"] else accuracy
        of_trainer = self.trainer.load_task_record(task, named_part(record.tensors, "trainer"))
        self.keep_tasks([Measured(of_trainer, [best, accuracy])])
        self.folder.log(f"task {task}: accuracy {accuracy:.4f}, learned in {path}")

    @property
    def _tasks(self) -> int:
        """How many tasks there are."""
        lasting = self.identity.lasting
        count: int = lasting["stream_tasks"] or lasting["num_tasks"]
        return count

    def _recall(self, record: Record, path: Path) -> None:
        """Take back what a record holds.

        Raises:
            UserError: it is of another run, does not fit this network, or makes no sense.
        """
        values = record.values
        with making_sense(path):
            self.identity.check(record)
            if record.kind == TASK:
                self._recall_task(record, path)
            elif record.kind == EVALUATION:
                scores = [score_of(score) for score in values["scores"]]
                if [score.task for score in scores] != self.learned or len(scores) in self.evaluations:
                    raise ValueError("the scores are not those of the tasks learned before it")
                check_row(values["row"])
                self.evaluations[len(scores)] = scores
                self._rows.append(values["row"])
            elif record.kind == LEFT_OUT:
                task = index(values["task"], self._tasks)
                if task in self.learned or task in self.left_out:
                    raise ValueError(f"task {task} is left out after it was learned or left out")
                self.left_out.append(task)
            elif record.kind != MORE_TASKS:
                raise ValueError(f"there are no records of the kind {reprlib.repr(record.kind)}")

    def _recall_task(self, record: Record, path: Path) -> None:
        values = record.values
        check_task(values, self._tasks)
        task, row = values["task"], values["row"]
        if task in self.learned or task in self.left_out or values.get("place", len(self.learned)) != len(self.learned):
            raise ValueError(f"task {task} stands in another place than it was learned in")
        own, shared, of_trainer = (named_part(record.tensors, part) for part in ("own", "shared", "trainer"))
        try:
            if self.trainer.tasks_known:
                multitask.load_task_state(self.model, task, own)
            multitask.load_shared_state(self.model, shared)
            learned = self.trainer.load_task_record(task, of_trainer)
        except (ValueError, IndexError) as error:
            raise UserError(f"{path} does not fit this network: {error}") from None
        self._take(learned)
        self.accuracies[task] = values["accuracy"]
        if row is not None:
            self._rows.append(row)
        self._shared_saved |= shared
        self._shared_changed |= set(shared)

    def open(self, folder: RunFolder) -> None:
        """Begin to write in the run's folder, and bring what lies there up to the checkpoint."""
        self.folder = folder
        if self._checkpoint is None:
            self._checkpoint = Checkpoint(folder.checkpoint)
        elif self._checkpoint.size() != self._size:
            raise UserError(f"{folder.checkpoint} has grown since it was read: another process ran here; call again")
        self._tables = Tables(folder, self.options, self.settings)
        if self._damaged:
            folder.log(
                f"warning: the last {self._damaged} bytes of {folder.checkpoint} are damaged; "
                f"going on from what is whole before them: {len(self.learned)} tasks"
                + (f"; and of what is whole behind damage: {len(self.spare)} tasks" if self.spare else "")
            )
            self._checkpoint.cut(self._damaged)
        if self.unfinished.damaged:
            folder.log(f"warning: {folder.path / NAME} is damaged; its task starts anew")
        for warning in self._warnings:
            folder.log(warning)
        self.unfinished.open(folder.path)
        if self._rows:
            folder.log(f"going on after {len(self.learned)} learned tasks")
            self._tables.agree(self._rows)
            self._tables.write_evaluations(self.evaluations)
            self._tables.write(self._rows_of_trainer)
        if self.identity.more_tasks:
            self._append(Record(MORE_TASKS, {"num_tasks": self.identity.lasting["num_tasks"]}))
            folder.finished.unlink(missing_ok=True)
        if self.left_out:
            folder.log(f"left out before, for they could not be learned: tasks {', '.join(map(str, self.left_out))}")
        self._write_settings()
        if not self._checkpoint.has_records():
            run = self.identity
            about = {"settings": run.lasting, "data": run.data.kept, "threads": self.settings["threads"]}
            if run.original:
                about[ORIGINAL] = True
            elif self.learned:
                about[IMPORTED] = self.settings["import_file"]
            # What was imported, for only a checkpoint that is there can be resumed.
            brought = [self._record_of(task, None, place) for place, task in enumerate(self.learned)]
            self._append(Record(RUN, about), *brought)

    def keep_tasks(self, tasks: Sequence[Measured]) -> None:
        """Keep tasks that were just learned; they come to the disk together."""
        first, rows = not self.learned, []
        records: list[Record] = []
        for measured in tasks:
            learned, accuracies = measured.learned, measured.accuracies
            task = learned.task
            self._take(learned)
            self.accuracies[task] = accuracies[-1]
            self._note_shared()
            if self._shared_news:
                self.right.clear()
            if measured.right is not None:
                self.right[task] = measured.right
            about = {"Task": task, "Accuracy Given": accuracies[-1]}
            rows.append(self._row(f"task {task} when just learned", accuracies[-1], max(accuracies), **about))
            records.append(self._record_of(task, rows[-1], self._saved + len(records)))
            if learned.mask is not None and (kept := masked.kept_fractions(self.model, learned.mask)):
                self.folder.tensorboard.add_scalar("tasks/share of kept weights", kept["total"], len(self.learned))
        self._append(*records)
        self.unfinished.drop()
        self._tables.write(self._rows_of_trainer)
        self._tables.publish(rows, again=self._damaged > 0)
        if first:
            self._write_settings()
            kept = self._kept_fractions()
            self.folder.log("".join(f"kept of {name}: {fraction:.4f}\n" for name, fraction in kept.items()).rstrip())

    def _record_of(self, task: int, row: dict | None, place: int) -> Record:
        """What the checkpoint keeps of a learned task, which has ``place`` tasks before it."""
        known = self.trainer.tasks_known
        parts = {
            "own": multitask.task_state(self.model, task) if known else {},
            "shared": {name: self._shared_saved[name] for name in self._shared_news},
            "trainer": self.trainer.task_record(task),
        }
        tensors = joined(parts)
        latest = [name for name in tensors if name.startswith("shared.") or not known]
        values = {"task": task, "place": place, "accuracy": self.accuracies[task], "row": row}
        self._shared_news = set()
        return Record(TASK, values, tensors, latest)

    def _append(self, *records: Record) -> None:
        """Write records of this run."""
        assert self._checkpoint is not None  # since ``open``
        for record in records:
            record.values["run"] = self.identity.mark
        self._checkpoint.append(*records)
        self._saved += sum(record.kind == TASK for record in records)

    def saved(self) -> str:
        """What of the run is safe, and how to go on."""
        if self._checkpoint is None or not self._checkpoint.has_records():
            return "nothing is saved; call again"
        more = f" and {self.unfinished.saved}" if self.unfinished.saved else ""
        return (
            f"{self._saved} learned tasks{more} are saved; to go on, call again with `resume` {self._checkpoint.path}"
        )

    def _note_shared(self) -> None:
        """Take note of what the tasks share and has changed since it was last written."""
        state = multitask.shared_state(self.model)
        self._shared_news = {
            name
            for name, value in state.items()
            if name not in self._shared_saved or not torch.equal(value.cpu(), self._shared_saved[name])
        }
        self._shared_saved |= {name: state[name].detach().cpu().clone() for name in self._shared_news}
        self._shared_changed |= self._shared_news

    def storage(self) -> Storage:
        """What must be kept of all that is learned."""
        if ADAPTORS[self.options.adaptor].recovers:
            return recovery_storage(self.model) + tensor_storage(self._shared())
        for mask in self._changed:
            storage = task_storage(self.model, mask)
            self._masks_storage += storage - self._storage[mask]
            self._storage[mask] = storage
        self._changed = {}
        # Tasks that are scored as when they were just learned each need the weights of that time.
        copies = len(self.learned) if self.options.score_when_learned else 1
        return sum([tensor_storage(self._shared())] * copies, self._masks_storage)

    def export(self, path: Path) -> None:
        """Write the file that ``export`` names."""
        of, shared = self.identity, self._shared()
        write_export(path, of.lasting, of.data.kept, self.model, self.accuracies, shared)

    def _shared(self) -> dict[str, torch.Tensor]:
        """What the tasks share and no seed makes."""
        return {name: self._shared_saved[name] for name in sorted(self._shared_changed)}

    def keep_evaluation(self, scores: list[TaskScore]) -> None:
        """Keep how all tasks learned so far were answered."""
        count = len(scores)
        columns = {
            "Accuracy Given": mean(score.given for score in scores),
            "Accuracy Adapted": mean(score.adapted for score in scores),
            "Share Inferred Right": mean(score.inferred_right for score in scores),
        }
        means = {name: value for name, value in columns.items() if value is not None}
        value = means.get("Accuracy Adapted", columns["Accuracy Given"])
        how = "task given" if ADAPTORS[self.options.adaptor].gives else "task inferred"
        how += ", each when just learned" if self.options.score_when_learned else ""
        masks = sum(score.given is not None for score in scores)
        how += f", given of the {masks} that have a mask of their own" if masks < count else ""
        row = self._row(f"mean over the {count} tasks learned so far, {how}", value, value, **means)
        self._append(Record(EVALUATION, {"scores": [asdict(score) for score in scores], "row": row}))
        self.evaluations[count] = scores
        self._tables.publish([row], again=self._damaged > 0)
        self._tables.write_evaluations(self.evaluations)
        self._write_settings()
        self._tables.draw(means, scores)
        said = ", ".join(f"{name.lower()} {value:.4f}" for name, value in means.items())
        apart = f" (given of the {masks} tasks that have a mask of their own)" if masks < count else ""
        self.folder.log(f"after {count} tasks: {said}{apart}")

    def _row(self, what: str, current: float | None, best: float | None, **more: object) -> dict[str, object]:
        return self._tables.row(what, current, best, len(self.learned), self.storage(), **more)

    def _write_settings(self) -> None:
        self._tables.write_settings(self._kept_fractions(), self.storage())

    def _kept_fractions(self) -> dict[str, float]:
        mask = self.masks[self.learned[0]] if self.learned else None
        return {} if mask is None else masked.kept_fractions(self.model, mask)
