"""Plain classification of one task after the other: GG, GNs and GNu."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import masked, multitask
from models.convert import is_converted, unreached
from models.layers import load_into
from models.multitask import Rng
from models.norms import share_statistics
from trainers.evaluation import passes
from trainers.options import TrainingOptions
from trainers.position import Position
from trainers.watch import Watch
from utils.checkpoint import joined, named_part
from utils.errors import UserError
from utils.optim import load_state_tensors, make_optimizer, make_schedule, set_epoch, state_tensors
from utils.parallel import Group
from utils.recording import Recorded
from utils.seeding import drawn_from

# glibc hands the top of its heap back to the system when twice the largest block that was ever freed, of those up to 32
# MiB, lies free there; the next batch then pays for every page of it again. One such block, freed, ends that.
LARGEST_BLOCK = 31 * 2**20


Network = Callable[[Tensor], Tensor]
Progress = Callable[[Iterable, int, int], Iterable]


@dataclass(frozen=True)
class Learned:
    """What came of a task.

    Attributes:
        task: its number.
        mask: which of the model's tasks holds what was learned of it; None if nothing was.
        changed: the model's tasks that learning it made or changed.
        note: what to tell of it beside its accuracy, or ``""``.
        rows: that it adds to tables of the trainer's own, by the name of the table's file.
    """

    task: int
    mask: int | None
    changed: Sequence[int]
    note: str = ""
    rows: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)


class DefaultTrainer:
    """Trains and tests one task after the other.

    Args:
        model: the network.
        options: how.
        rng: a key to a generator, for the fresh scores of a task.

    Attributes:
        tasks: the one in training; several for a trainer that trains several at once, on stacked batches.
        position, watch: where in their data they stand, and what is wrong with them.
        failed: those of them that cannot be learned, and why.
        right: for each of them, how many answers of each batch were right in the last test; empty before it, or if
            they may answer otherwise when they are selected.
        group: the processes that train together; see ``join``.
        draws: whether the network may draw random numbers in a step, as that of a user may.
        draws_elsewhere: where else than from torch it draws them, as its first batch showed; None before that.
        unreached: the weights of such a network whose masks had no gradient yet; None before the first batch.
        update: what a step does with a batch, which a GPU records.
        room: for how many tasks the layers must have room at the least.
        parallel: whether it can train several tasks at once.
        tasks_known: whether a task that is learned is the model's task of that number. A trainer that finds out by
            itself what is a task brings the model's tasks back itself, in ``load_task_record``, and of the tensors
            that its ``task_record`` gives under one name only the latest counts.
    """

    tasks_known = True
    parallel = False
    room = 1

    def __init__(self, model: nn.Module, options: TrainingOptions, rng: Rng):
        self.model, self.options, self.rng = model, options, rng
        torch.empty(LARGEST_BLOCK, dtype=torch.uint8)
        if options.compile:
            torch.compiler.reset()  # what was compiled for other networks counts against this one's
        self.group, self.draws = Group(), is_converted(model)
        self.update = Recorded(self._update, self._device, wanted=not (self.draws or options.compile))
        self.failed: dict[int, str] = {}  # of the tasks in training, those that cannot be learned, and why

    def join(self, group: Group) -> None:
        """Train together with the other processes of ``group``, as one process with all their images would."""
        self.group = group
        if group.size > 1:
            self.update = Recorded(self._update, self._device, wanted=False)
            share_statistics(self.model, group.gather)

    def trains_weights(self, task: int) -> bool:
        """Whether ``task`` trains the weights that all tasks share."""
        first = self.options.train_weight_tasks
        return first < 0 or task < first

    @property
    def rate(self) -> float:
        """The learning rate of the epoch."""
        return self.optimizer.param_groups[0]["lr"]

    def check(self, tasks: Iterable[int]) -> None:
        """See that each of ``tasks`` has something to train.

        Raises:
            UserError: one has not.
        """
        idle = [task for task in tasks if not self.trains_weights(task)]
        if idle and not multitask.has_tasks(self.model):
            raise UserError(
                f"`train_weight_tasks` {self.options.train_weight_tasks}: task {idle[0]} has nothing to train, since "
                "`conv_type` has no parameters of a task's own; say -1 to train the weights in every task"
            )

    def begin_tasks(self, tasks: Sequence[int]) -> None:
        """Start to learn ``tasks``, all of them at once."""
        (task,) = tasks
        self.begin_task(task)

    def end_tasks(self) -> Iterator[Learned]:
        """Keep what was learned of the tasks in training, one after the other; gives each when it is kept."""
        if self.task in self.failed:
            self._forget()
        else:
            yield self.end_task()

    def begin_task(self, task: int) -> None:
        """Start to learn ``task``."""
        self._prepare(task)
        self.task = task
        self._count([task])

    def _count(self, tasks: Sequence[int]) -> None:
        """Start to count the batches of ``tasks``, and to watch them."""
        self.tasks = list(tasks)
        self.unreached: set[str] | None = None
        self.draws_elsewhere: list[str] | None = None
        o = self.options
        both = any(map(self.trains_weights, tasks))
        rate = f"`train_weight_lr` {o.train_weight_lr}" if both else f"`lr` {o.lr}"
        self.right: list[list[int]] = []
        self.position, self.watch = Position(), Watch(tasks, rate, self.group.mean)
        self.failed = self.watch.failed

    @property
    def batches_done(self) -> int:
        """Batches of the tasks in training so far."""
        return self.position.batches

    @property
    def given_up(self) -> bool:
        """Whether nothing is left to train, for all tasks have failed."""
        return bool(self.failed) and len(self.failed) == len(self.tasks)

    def _prepare(self, task: int) -> None:
        """Fresh scores, optimiser and schedule."""
        multitask.begin_task(self.model, task, self.rng)
        parameters, lr = list(multitask.task_parameters(self.model).values()), self.options.lr
        shared = multitask.shared_parameters(self.model)
        for parameter in shared:
            parameter.requires_grad_(self.trains_weights(task))
        if self.trains_weights(task):
            parameters, lr = parameters + shared, self.options.train_weight_lr
        self._optimise(parameters, lr)
        self._train_through(self.model)

    def _optimise(self, parameters: list[nn.Parameter], lr: float) -> None:
        o = self.options
        self.parameters = parameters
        self.optimizer = make_optimizer(o.optimizer, parameters, lr, o.momentum, o.weight_decay)
        self.schedule = make_schedule(o.lr_policy, self.optimizer, o.epochs, o.warmup_length)

    def _train_through(self, network: Network) -> None:
        """Compute with ``network`` in the steps of what is in training."""
        self.network = network
        if self.options.compile:  # once: the scores of each later task are other inputs of the same code
            self.network = torch.compile(network)
        self.update.forget()

    def end_task(self) -> Learned:
        """Keep what was learned as one bit a weight, and select the task; weights that learned nothing are told of."""
        if self.unreached:
            names = ", ".join(sorted(self.unreached))
            warnings.warn(
                f"no gradient reached the masks of {names}, which stay as they were drawn; the network should call "
                "these layers itself, and with gradients",
                stacklevel=2,
            )
        multitask.end_task(self.model)
        self._forget()
        return Learned(self.task, self.task, [self.task])

    def _forget(self) -> None:
        del self.optimizer, self.schedule, self.parameters, self.network
        self.update.forget()

    def task_record(self, task: int) -> dict[str, Tensor]:
        """What this trainer itself must know of a learned task when it learns later ones, by name, for checkpoints."""
        return {}

    def training_record(self) -> dict[str, Tensor]:
        """All that the tasks in training need to go on from the last batch, by name; called between two batches."""
        parts = {
            "own": self._own_state(),
            "shared": multitask.shared_state(self.model),
            "optimizer": state_tensors(self.optimizer),
        }
        return joined(parts) | self._place()

    @torch.no_grad()
    def load_training_record(self, record: dict[str, Tensor]) -> None:
        """The inverse of ``training_record``; called when these tasks were just begun.

        Raises:
            KeyError, ValueError, RuntimeError: the record is not one of this network and trainer.
        """
        load_into(self._own_state(), named_part(record, "own"))
        multitask.load_shared_state(self.model, named_part(record, "shared"))
        load_state_tensors(self.optimizer, named_part(record, "optimizer"))
        self._load_place(record)

    def _own_state(self) -> dict[str, Tensor]:
        """The state of the tasks in training that is their own, where it lies."""
        return multitask.training_state(self.model)

    def _place(self) -> dict[str, Tensor]:
        return self.position.state() | self.watch.state()

    def _load_place(self, record: dict[str, Tensor]) -> None:
        self.position.load(record, self._device)
        self.watch.load(record, self._device)

    @property
    def _device(self) -> torch.device:
        """Where the model is."""
        return next(chain(self.model.parameters(), self.model.buffers())).device

    def load_task_record(self, task: int, record: dict[str, Tensor]) -> Learned:
        """The inverse of ``task_record``; called for each learned task, in the order of learning."""
        return Learned(task, task, [task])

    @property
    def reached_limit(self) -> bool:
        """Whether the task has had all the batches it may have."""
        return self.batches_done == self._limit

    @property
    def _limit(self) -> int | None:
        """Batches of a task in training at the most; None for no limit."""
        return self.options.iter_lim

    def learn(
        self,
        loader,
        first: int = 0,
        progress: Progress | None = None,
        after_batch: Callable[[], None] | None = None,
    ) -> Iterator[list[float]]:
        """Train the tasks that were begun; gives, after each pass over their data, the mean loss of each in it.

        Args:
            loader: batches (x, y); their order is that of an epoch.
            first: the epoch to begin with.
            progress: called with the batches of a pass, their number and the epoch, to show them.
            after_batch: called after each batch; what it raises leaves the trainer where it can go on.
        """
        for epoch in range(first, self.options.epochs):
            losses = self.train(loader, epoch, progress, after_batch)
            if self.given_up:
                return
            yield losses
            if self.reached_limit:
                return

    def train(
        self,
        loader,
        epoch: int,
        progress: Progress | None = None,
        after_batch: Callable[[], None] | None = None,
    ) -> list[float]:
        """One pass over the data of the tasks in training, or what is left of it, or up to the limit of batches.

        Returns:
            The mean loss of each task over the pass; not a number if no batch was learned from.
        """
        self.model.train()
        self._set_rate(epoch)
        position, watch = self.position, self.watch
        position.enter(epoch)
        loader.set_epoch(epoch, position.epoch_batches)
        count = position.left(len(loader), self._limit)
        batches: Iterable = islice(loader, count)
        if progress is not None:
            batches = progress(batches, count, epoch)
        for _, (x, y) in zip(range(count), batches, strict=True):
            losses = self.step(x, y)
            position.count(losses)
            if losses is not None:
                watch.add(losses)
            if watch.due:
                watch.look(position.batches)
                if self.given_up:
                    break
            if after_batch is not None:
                after_batch()
        watch.look(position.batches)
        self._look_at_parameters()
        return position.mean_losses(len(self.tasks))

    def _look_at_parameters(self) -> None:
        """See that what is trained is finite: a gradient may not be where the loss is, as that of a root at 0."""
        for place, task in enumerate(self.tasks):
            if not all(bool(own.isfinite().all()) for own in self._of_task(place, self.parameters)):
                why = f"after {self.batches_done} batches a gradient was not a finite number, though all losses were"
                self.failed.setdefault(task, f"task {task}: {why}")

    def _set_rate(self, epoch: int) -> None:
        """Learn at the rate that the schedule has for an epoch."""
        before = self.rate
        set_epoch(self.schedule, epoch)
        if self.rate != before:
            self.update.forget()

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Train on one batch.

        Args:
            x: images (batch, channels, height, width); (tasks, batch, ...) when several tasks are in training.
            y: labels (batch,) or (tasks, batch).

        Returns:
            The mean loss of the batch, () or (tasks,); None if it was not learned from.
        """
        losses, gradients = self._drawn_update(x, y) if self.draws else self.update(x, y)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.draws and self.unreached != set():
            now = unreached(self.model)
            self.unreached = now if self.unreached is None else self.unreached & now
        return losses

    def _drawn_update(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """``update``, in which the network's own layers may draw, as dropout does: by the task and batch alone."""
        seed = self.rng("network", self.tasks[0], self.batches_done).initial_seed()
        torch.manual_seed(seed)
        if self.draws_elsewhere == []:
            return self.update(x, y)
        with drawn_from(seed) as self.draws_elsewhere:
            return self.update(x, y)

    def _update(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Change what is in training by a batch; gives the mean loss, () or (tasks,), and each parameter's gradient."""
        for parameter in self.parameters:
            parameter.grad = None
        losses = self._losses(x, y)
        self.group.backward(losses.sum(), self.parameters, images=y.shape[-1])
        self.optimizer.step()
        return losses.detach(), [parameter.grad for parameter in self.parameters]

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch of the task, ()."""
        if self.options.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        losses = F.cross_entropy(self._logits(x), y, reduction="none")
        return losses.sum() / max(1, len(y))  # a process's share of a small batch may be nothing

    def _logits(self, x: Tensor) -> Tensor:
        if self.options.amp is None:
            return self.network(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x).float()

    def check_progress(self, accuracies: Sequence[float]) -> None:
        """See that each task in training has learned something; those that have not go into ``failed``.

        Args:
            accuracies: of each task in the last ``test``.
        """
        self.watch.check(accuracies, self._labels, self.position, self._reached)

    def _reached(self, place: int) -> bool:
        """Whether any gradient reached the task at ``place`` in the last batch."""
        gradients = self._gradients(place)  # none if all was trained before a resume
        return not gradients or any(bool(gradient.any()) for gradient in gradients)

    def _gradients(self, place: int) -> Sequence[Tensor]:
        """Those of the last batch, of the task at ``place`` among those in training."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return self._of_task(place, gradients)

    def _of_task(self, place: int, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The parts of parameters, or of what is as large, that are of the task at ``place``."""
        return tensors

    @torch.no_grad()
    def test(self, loader) -> list[float]:
        """The share of right answers over the whole of ``loader``, for each task in training."""
        self.model.eval()
        network = self._network_to_test()
        hits, labels, sizes = [], [], []
        for x, y, parts in passes(self.model, loader):
            hits.append(network(x).argmax(-1) == y)
            labels.append(y)
            sizes += parts
        self._labels = torch.cat(labels, dim=-1).reshape(len(self.tasks), -1)
        found = torch.cat(hits, dim=-1).reshape(len(self.tasks), -1).cpu()  # once: a GPU is waited for
        right = [[int(part.sum()) for part in own.split(sizes)] for own in found]
        self.right = right if self._tests_as_selected else []
        return [sum(own) / loader.num_images for own in right]

    def _network_to_test(self) -> Network:
        return self.model

    @property
    def _tests_as_selected(self) -> bool:
        """Whether a task in training answers to the bit as it will when it is selected."""
        return self.tasks_known and masked.only_masks(self.model) and not multitask.depends(self.model)
