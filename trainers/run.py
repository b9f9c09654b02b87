"""The loop over tasks: learn each, keep what was learned of it, evaluate when that is due."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from models.convert import is_converted
from models.outside import told
from trainers.default import DefaultTrainer
from trainers.evaluation import TaskScore, evaluate
from trainers.options import InferenceOptions
from trainers.record import Measured, RunRecord
from trainers.tables import mean
from utils.errors import Stopped, UserError, no_memory
from utils.run import RunFolder, progress
from utils.signals import Signals

NEAR_CHANCE = 1.2  # times one in so many tasks: batches that are inferred right so seldom are so by chance


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        tasks: those to learn, in their order.
        at_once: how many are trained at once.
        skips: whether a task that fails is left out; else the run stops.
        evaluated_after: the numbers of learned tasks after which to evaluate; after the last it is done anyway.
        adaptor, inference: how tasks are inferred.
        as_learned: whether a task's score is the one from when it was just learned, without an evaluation.
    """

    tasks: Sequence[int]
    at_once: int
    skips: bool
    evaluated_after: Sequence[int]
    adaptor: str
    inference: InferenceOptions
    as_learned: bool


class Run:
    """Learns every task of a plan that is not learned yet.

    Args:
        data: the tasks; see ``data.base.TaskDataset``.
        record: what is learned already, and keeps what is learned from now on.
        signals: what may ask the run to stop.
    """

    def __init__(
        self,
        plan: Plan,
        data,
        model: nn.Module,
        trainer: DefaultTrainer,
        record: RunRecord,
        folder: RunFolder,
        signals: Signals,
    ):
        self.plan, self.data, self.model, self.trainer = plan, data, model, trainer
        self.record, self.folder, self.signals = record, folder, signals

    def learn(self) -> None:
        """Learn the tasks, and evaluate when so many are learned as was asked for.

        Raises:
            Stopped: there was a signal, the data could not be served, a task failed, or a network that is not ours.
            UserError: a file of the data cannot be read.
        """
        self._evaluate_if_due()  # a run may have been cut short between learning and evaluation
        groups, at_once = self._groups(self.record.lacking(self.plan.tasks)), self.plan.at_once
        for group in progress(groups, description="tasks", unit="task" if at_once == 1 else f"{at_once} tasks"):
            for task in group:
                if self.record.recover(task):
                    self._evaluate_if_due()
            if group := self.record.lacking(group):
                self._learn_group(group)

    def _groups(self, todo: Sequence[int]) -> list[list[int]]:
        """The tasks that are trained at once: as many as the plan says, but none beyond the next evaluation.

        First those that were in training when the run was cut short, if this one trains several at once.
        """
        begun = self.record.unfinished.tasks
        if begun != [task for task in todo if task in begun] or (len(begun) > 1 and not self.trainer.parallel):
            begun = []
        groups = [begun] if begun else []
        rest = [task for task in todo if task not in begun]
        for place, task in enumerate(rest):
            learned = len(self.record.learned) + len(begun) + place
            if place == 0 or len(groups[-1]) == self.plan.at_once or learned in self.plan.evaluated_after:
                groups.append([])
            groups[-1].append(task)
        return groups

    def _learn_group(self, group: Sequence[int]) -> None:
        """Learn tasks at once, and keep what becomes of each."""
        started = time.perf_counter()
        with _failing(self.trainer):
            accuracies = self._train(group)
        right = self.trainer.right
        seconds = (time.perf_counter() - started) / len(group)
        together: list[Measured] = []
        for learned in self.trainer.end_tasks():
            place = group.index(learned.task)
            measured = [epoch[place] for epoch in accuracies]
            together.append(Measured(learned, measured, right[place] if right else None))
            if len(self.record.learned) + len(together) in self.plan.evaluated_after:
                self._keep(together, seconds)
                together = []
        self._keep(together, seconds)
        if self.trainer.failed and not self.plan.skips:
            raise Stopped(next(iter(self.trainer.failed.values())))
        for task, why in self.trainer.failed.items():
            self.record.leave_out(task, why)
            self._evaluate_if_due()

    def _keep(self, tasks: Sequence[Measured], seconds: float) -> None:
        """Keep tasks that were learned in so many seconds each, and evaluate if it is due."""
        if tasks:
            self.record.keep_tasks(tasks)
            for task in tasks:
                self.folder.log(f"task {task.learned.task}: accuracy {task.accuracies[-1]:.4f}, {seconds:.1f} s")
                if task.learned.note:
                    self.folder.log(task.learned.note)
            self._evaluate_if_due()

    def _train(self, group: Sequence[int]) -> list[list[float]]:
        """Train tasks at once; their accuracies after each epoch. A signal leaves them where a later run can go on."""
        trainer, unfinished = self.trainer, self.record.unfinished
        train_loader, val_loader = self.data.loaders(group)
        trainer.begin_tasks(group)
        accuracies = unfinished.resume(group)

        def bar(batches: Iterable, count: int, epoch: int) -> Iterable:
            return progress(batches, count, f"task {' '.join(map(str, group))} epoch {epoch}")

        def after_batch() -> None:
            unfinished.keep_if_due(accuracies)
            self.signals.check()

        try:
            for losses in trainer.learn(train_loader, len(accuracies), bar, after_batch):
                with self.signals.waiting(False):
                    accuracies.append(trainer.test(val_loader))
                for task, loss, accuracy in zip(group, losses, accuracies[-1], strict=True):
                    for name, value in {"loss": loss, "accuracy": accuracy, "learning rate": trainer.rate}.items():
                        self.folder.tensorboard.add_scalar(f"{name}/task {task}", value, trainer.batches_done)
        except (Stopped, UserError):  # of a signal, or of data that cannot be read, both between two batches
            unfinished.keep(accuracies)
            raise
        if not trainer.given_up:
            trainer.check_progress(accuracies[-1])
        return accuracies

    def _evaluate_if_due(self) -> None:
        """Evaluate, if so many tasks are learned as was asked for, or all that can be; once."""
        record = self.record
        count = len(record.learned)
        due = count in self.plan.evaluated_after or not record.lacking(self.plan.tasks)
        if not due or count in record.evaluations:
            return
        if count == 0:
            raise Stopped("no task could be learned")
        if self.plan.as_learned:
            record.keep_evaluation([TaskScore(task, record.accuracies[task]) for task in record.learned])
            return
        with self.signals.waiting(False), _failing(self.trainer):
            scores = evaluate(
                self.model,
                self.data,
                record.learned,
                self.plan.adaptor,
                self.plan.inference,
                progress=partial(progress, description=f"evaluation after {count}", unit="task"),
                mask_of=record.masks.get,
                candidates=record.candidates,
                known=record.right,
            )
        record.keep_evaluation(scores)


def follow(plan: Plan, data, trainer: DefaultTrainer, record: RunRecord) -> None:
    """Train in step with the first process of a group, which alone tests, evaluates and writes."""
    for task in record.lacking(plan.tasks):
        if task not in record.spare:
            data.update_task(task)
            trainer.begin_task(task)
            with _failing(trainer):
                for _ in trainer.learn(data.train_loader, len(record.unfinished.resume([task]))):
                    pass
            trainer.end_task()


@contextmanager
def _failing(trainer: DefaultTrainer) -> Iterator[None]:
    """Stop with a line where a network that is not ours fails, as it may on images unlike those that it was tried on.

    Raises:
        Stopped: it does.
    """
    try:
        yield
    except Exception as error:  # whatever a user's own code raises
        if isinstance(error, (OSError, UserError)) or no_memory(error) or not is_converted(trainer.model):
            raise
        hint = "; it may do without `compile`" if trainer.options.compile else ""
        raise Stopped(f"the network fails on a batch: {told(error)}{hint}") from error


def report(record: RunRecord, folder: RunFolder, export: str | None) -> None:
    """Print how each task was answered in the end, and write the file ``export``, if it is asked for."""
    folder.log("\n".join(summary(record.evaluations[len(record.learned)])))
    folder.log(str(record.storage()))
    if export is not None:
        record.export(Path(export))
        folder.log(f"exported: {export}")
    folder.log(f"results: {folder.path.parent / 'results.csv'}; this run: {folder.path}")


def told_apart_by_chance(record: RunRecord) -> bool:
    """Whether the batches of the last evaluation were taken for their own task about as often as by chance, or less."""
    shares = [score.inferred_right for score in record.evaluations[len(record.learned)]]
    right = mean(shares)
    return right is not None and len(shares) > 1 and right <= NEAR_CHANCE / len(shares)


def summary(scores: Sequence[TaskScore]) -> Iterator[str]:
    """A table, by lines, of how tasks were answered: the first and the last ten, and the mean of all."""

    def line(task: str, values: Sequence[float | None]) -> str:
        cells = []
        for value, width, form in zip(values, (14, 8, 22), (".4f", ".4f", ".1%"), strict=True):
            cells.append(" " * width if value is None else f"{value:>{width}{form}}")
        return "  ".join([f"{task:>6}", *cells]).rstrip()

    yield f"{'task':>6}  {'accuracy given':>14}  {'inferred':>8}  {'batches inferred right':>22}"
    rows = [(score.given, score.adapted, score.inferred_right) for score in scores]
    for index, (score, row) in enumerate(zip(scores, rows, strict=True)):
        if index < 10 or index >= len(scores) - 10:
            yield line(str(score.task), row)
        elif index == 10:
            yield "   ..."
    yield line("mean", [mean(column) for column in zip(*rows, strict=True)])
