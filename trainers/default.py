"""Plain classification of one task after the other: GG, GNs and GNu."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import multitask
from models.convert import is_converted
from models.multitask import Rng
from models.norms import share_statistics
from trainers.position import Position
from trainers.watch import Watch
from utils.checkpoint import joined, named_part
from utils.errors import UserError
from utils.optim import load_state_tensors, make_optimizer, make_schedule, set_epoch, state_tensors
from utils.parallel import Group

# glibc hands the top of its heap back to the system when twice the largest block that was ever freed, of those up to 32
# MiB, lies free there; the next batch then pays for every page of it again. One such block, freed, ends that.
LARGEST_BLOCK = 31 * 2**20


@dataclass
class TrainingOptions:
    """How a task is trained.

    Attributes:
        epochs: passes over a task's data.
        iter_lim: batches of a task at the most, over all its epochs; None for no limit.
        optimizer, lr_policy: keys of ``OPTIMIZERS`` and ``LR_POLICIES``.
        lr: for what is a task's own: scores, heads.
        train_weight_tasks: the first so many tasks train all shared weights too; -1 for every task.
        train_weight_lr: in those tasks, for everything.
        momentum: SGD's.
        weight_decay: of the optimiser.
        warmup_length: epochs of linear warm-up.
        amp: ``bf16`` trains in mixed precision; tests always have full precision.
        channels_last: whether images lie in memory with their channels last in training.
        compile: whether training runs through ``torch.compile``.
        reinit_adapt, reinit_most_recent_k, reinit_from: of ``ReinitTrainer``.
        num_tasks: for how many tasks there are masks.
        nns_every, nns_epsilon: see ``NNsTrainer``.
        on_nan: ``stop`` gives all tasks in training up when one fails; ``skip`` goes on with the others.
    """

    epochs: int = 1
    iter_lim: int | None = None
    optimizer: str = "rmsprop"
    lr: float = 1e-4
    train_weight_tasks: int = 0
    train_weight_lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_policy: str = "constant_lr"
    warmup_length: int = 0
    amp: str | None = None
    compile: bool = False
    channels_last: bool = False
    reinit_adapt: str = "running_mean"
    reinit_most_recent_k: int | None = None
    reinit_from: str | None = None
    num_tasks: int = 1
    nns_every: int = 100
    nns_epsilon: float = 0.125
    on_nan: str = "stop"


class DefaultTrainer:
    """Trains and tests one task after the other, or several at once.

    Tasks that are trained at once have their own scores, data and steps of the optimiser, stacked; each comes out as
    if it were trained alone, but for the order of sums.

    Args:
        model: the network.
        options: how.
        rng: a key to a generator, for the fresh scores of a task.

    Attributes:
        tasks: those in training.
        position, watch: where in their data they stand, and what is wrong with them.
        group: the processes that train together; see ``join``.
        tasks_known: whether a task that is learned is the model's task of that number. A trainer that finds out by
            itself what is a task brings the model's tasks back itself, in ``load_task_record``, and of the tensors
            that its ``task_record`` gives under one name only the latest counts.
    """

    tasks_known = True
    parallel = True  # whether it can train several tasks at once

    def __init__(self, model: nn.Module, options: TrainingOptions, rng: Rng):
        self.model, self.options, self.rng = model, options, rng
        torch.empty(LARGEST_BLOCK, dtype=torch.uint8)
        self.group = Group()
        self.state: dict[str, Tensor] | None = None  # of several tasks that are trained at once

    def join(self, group: Group) -> None:
        """Train together with the other processes of ``group``, as one process with all their images would."""
        self.group = group
        if group.size > 1:
            share_statistics(self.model, group.total)

    def trains_weights(self, task: int) -> bool:
        """Whether ``task`` trains the weights that all tasks share."""
        first = self.options.train_weight_tasks
        return first < 0 or task < first

    @property
    def rate(self) -> float:
        """The learning rate of the batches to come."""
        return self.optimizer.param_groups[0]["lr"]

    def check(self, tasks: Iterable[int]) -> None:
        """See that each of ``tasks`` has something to train.

        Raises:
            UserError: one has not.
        """
        idle = [task for task in tasks if not self.trains_weights(task)]
        if idle and not multitask.has_tasks(self.model):
            raise UserError(
                f"--train-weight-tasks {self.options.train_weight_tasks}: task {idle[0]} has nothing to train, since "
                "--conv-type has no parameters of a task's own; say -1 to train the weights in every task"
            )

    @staticmethod
    def room(num_tasks: int) -> int:
        """For how many tasks the layers must have room, when ``num_tasks`` are to be learned."""
        return num_tasks

    def begin_tasks(self, tasks: Sequence[int]) -> None:
        """Start to learn ``tasks``, all of them at once; with several, ``train`` and ``test`` take stacked batches."""
        self.state = None
        if len(tasks) == 1:
            return self.begin_task(tasks[0])
        self._begin(tasks)
        self.state = multitask.begin_tasks(self.model, tasks, self.rng)
        self._optimise([value for value in self.state.values() if value.requires_grad], self.options.lr)
        self._compile(partial(multitask.call_tasks, self.model, self.state))

    def end_tasks(self) -> Iterator[int]:
        """Keep what was learned of the tasks in training, one after the other; gives each when it is kept."""
        if self.state is None:
            task = self.task
            if task in self.failed:
                return self._forget()
            self.end_task()
            yield task
            return
        state, self.state = self.state, None
        self._forget()
        for place, task in enumerate(self.tasks):
            if task in self.failed:
                continue
            multitask.end_one_of_tasks(self.model, task, self.rng, state, place)
            yield task

    def begin_task(self, task: int) -> None:
        """Start to learn ``task``."""
        self.prepare(task)
        self.task = task
        self._begin([task])

    def _begin(self, tasks: Sequence[int]) -> None:
        """Start to count."""
        self.tasks = list(tasks)
        self.position, self.watch = Position(), Watch(tasks, self.options.lr, self.group.mean)

    @property
    def batches_done(self) -> int:
        """Batches of the tasks in training so far."""
        return self.position.batches

    @property
    def failed(self) -> dict[int, str]:
        """Those of the tasks in training that cannot be learned, and why."""
        return self.watch.failed

    @property
    def given_up(self) -> bool:
        """Whether nothing is left to train, for tasks have failed."""
        return bool(self.failed) and (self.options.on_nan == "stop" or len(self.failed) == len(self.tasks))

    def prepare(self, task: int) -> None:
        """Fresh scores, optimiser and schedule."""
        multitask.begin_task(self.model, task, self.rng)
        parameters, lr = list(multitask.task_parameters(self.model).values()), self.options.lr
        shared = multitask.shared_parameters(self.model)
        for parameter in shared:
            parameter.requires_grad_(self.trains_weights(task))
        if self.trains_weights(task):
            parameters, lr = parameters + shared, self.options.train_weight_lr
        self._optimise(parameters, lr)
        self._compile(self.model)

    def _optimise(self, parameters: list[nn.Parameter], lr: float) -> None:
        o = self.options
        self.parameters = parameters
        self.optimizer = make_optimizer(o.optimizer, parameters, lr, o.momentum, o.weight_decay)
        self.schedule = make_schedule(o.lr_policy, self.optimizer, o.epochs, o.warmup_length)

    def _compile(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        if self.options.compile:
            torch.compiler.reset()  # what was compiled for the last task holds its scores
            self.network = torch.compile(network)

    def end_task(self) -> None:
        """Keep what was learned as one bit a weight, and select the task."""
        multitask.end_task(self.model)
        self._forget()

    def _forget(self) -> None:
        del self.optimizer, self.schedule, self.parameters, self.network

    def task_record(self, task: int) -> dict[str, Tensor]:
        """What this trainer itself must know of a learned task when it learns later ones, by name, for checkpoints."""
        return {}

    def training_record(self) -> dict[str, Tensor]:
        """All that the tasks in training need to go on from the last batch, by name; called between two batches."""
        own = multitask.training_state(self.model) if self.state is None else self.state
        parts = {
            "own": own,
            "shared": multitask.shared_state(self.model),
            "optimizer": state_tensors(self.optimizer),
            "epochs": {"stepped": torch.tensor(self.schedule.last_epoch)},
        }
        return joined(parts) | self._place()

    def load_training_record(self, record: dict[str, Tensor]) -> None:
        """The inverse of ``training_record``; called when these tasks were just begun.

        Raises:
            KeyError, ValueError, RuntimeError: the record is not one of this network and trainer.
        """
        multitask.load_training_state(self.model, named_part(record, "own"), self.state)
        multitask.load_shared_state(self.model, named_part(record, "shared"))
        load_state_tensors(self.optimizer, named_part(record, "optimizer"))
        set_epoch(self.schedule, int(named_part(record, "epochs")["stepped"]))
        self._load_place(record)

    @property
    def healthy(self) -> bool:
        """Whether the state of the tasks in training is worth going on from."""
        return self.watch.healthy

    def _place(self) -> dict[str, Tensor]:
        return self.position.state() | self.watch.state()

    def _load_place(self, record: dict[str, Tensor]) -> None:
        device = next(chain(self.model.parameters(), self.model.buffers())).device
        self.position.load(record, device)
        self.watch.load(record, device)

    def load_task_record(self, task: int, record: dict[str, Tensor]) -> None:
        """The inverse of ``task_record``; called for each learned task, in the order of learning."""

    def mask_of(self, task: int) -> int | None:
        """Which of the model's tasks holds what was learned of ``task``; None if nothing was."""
        return task

    def candidates(self, tasks: Sequence[int]) -> list[int]:
        """Which of the model's tasks inference chooses among once ``tasks`` are learned."""
        return list(tasks)

    def changed(self) -> set[int]:
        """Which of the model's tasks the last one changed that were there before it."""
        return set()

    def tables(self) -> dict[str, str]:
        """Tables of this trainer's own for the run's folder: the text of each file by its name."""
        return {}

    def note(self, task: int) -> str:
        """What to tell of ``task``, which was just learned, beside its accuracy; or ``""``."""
        return ""

    def admits(self, x: Tensor) -> bool:
        """Whether to learn from a batch; a trainer that finds out by itself what is a task does so here."""
        return True

    def see_first(self, loader) -> None:
        """Look at the data of a task before its first batch; a trainer that starts from similar ones does so here."""

    @property
    def reached_limit(self) -> bool:
        """Whether the task has had all the batches it may have."""
        return self.batches_done == self.options.iter_lim

    def train(
        self,
        loader,
        epoch: int,
        progress: Callable[[Iterable, int], Iterable] = islice,
        after_batch: Callable[[], None] = lambda: None,
    ) -> list[float]:
        """One pass over the data of the tasks in training, or what is left of it, or up to the limit of batches.

        Args:
            loader: batches (x, y); its order is that of ``epoch``.
            progress: called with the batches and their number, to show them.
            after_batch: called after each batch; what it raises leaves the trainer where it can go on.

        Returns:
            The mean loss of each task over the pass; not a number if no batch was learned from.
        """
        if self.batches_done == 0:
            self.see_first(loader)
        self.model.train()
        position, watch = self.position, self.watch
        position.enter(epoch)
        loader.set_epoch(epoch, position.epoch_batches)
        count = position.left(len(loader), self.options.iter_lim)
        for left, (x, y) in zip(range(count - 1, -1, -1), progress(islice(loader, count), count), strict=True):
            losses = self.step(x, y) if self.admits(x) else None
            position.count(losses)
            if losses is not None:
                watch.add(losses)
            if not left and position.epoch_trained:
                self.end_epoch()
            if not left or watch.due:
                watch.look(position.batches)
                if self.given_up:
                    break
            after_batch()
        return position.mean_losses(len(self.tasks))

    def end_epoch(self) -> None:
        """Change the learning rate as the schedule says."""
        self.schedule.step()

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch.

        Args:
            x: images (batch, channels, height, width); (tasks, batch, ...) when several tasks are in training.
            y: labels (batch,) or (tasks, batch).

        Returns:
            The mean loss of the batch, () or (tasks,).
        """
        if is_converted(self.model):  # its own layers may draw, as dropout does: by the task and batch alone
            torch.manual_seed(self.rng("network", self.tasks[0], self.batches_done).initial_seed())
        self.optimizer.zero_grad()
        if self.options.channels_last:
            x = x.flatten(0, -4).contiguous(memory_format=torch.channels_last).view_as(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.amp == "bf16"):
            logits = self.network(x)
        losses = F.cross_entropy(logits.flatten(0, -2).float(), y.flatten(), reduction="none").view_as(y)
        losses = losses.sum(-1) / max(1, y.shape[-1])  # a process's share of a small batch may be nothing
        self.group.backward(losses.sum(), self.parameters, images=y.shape[-1])
        self.optimizer.step()
        return losses.detach()

    def check_progress(self, accuracies: Sequence[float]) -> None:
        """See that each task in training has learned something; those that have not go into ``failed``.

        Args:
            accuracies: of each task in the last ``test``.
        """
        self.watch.check(accuracies, self._labels, self.position, self._gradient)

    def _gradient(self, place: int) -> bool:
        """Whether any gradient reached the task at ``place`` in the last batch."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]  # none if all was trained before a resume
        if self.state is not None:
            gradients = [gradient[place] for gradient in gradients]
        return not gradients or any(bool(gradient.any()) for gradient in gradients)

    @torch.no_grad()
    def test(self, loader) -> list[float]:
        """The share of right answers over the whole of ``loader``, for each task in training."""
        self.model.eval()
        network = self.model if self.state is None else multitask.tasks_to_test(self.model, self.state)
        right, labels = torch.zeros((), dtype=torch.int64), []
        for x, y in loader:
            right = right + (network(x).argmax(dim=-1) == y).sum(dim=-1)
            labels.append(y)
        self._labels = torch.cat(labels, dim=-1).reshape(len(self.tasks), -1)
        return [int(count) / loader.num_images for count in right.reshape(-1)]
