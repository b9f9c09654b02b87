"""Plain classification of one task after the other: GG, GNs and GNu."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

from models import multitask
from models.multitask import Rng
from utils.errors import UserError
from utils.optim import make_optimizer, make_schedule


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


class DefaultTrainer:
    """Trains and tests one task after the other.

    Args:
        model: the network.
        options: how.
        rng: a key to a generator, for the fresh scores of a task.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions, rng: Rng):
        self.model, self.options, self.rng = model, options, rng

    def trains_weights(self, task: int) -> bool:
        """Whether ``task`` trains the weights that all tasks share."""
        first = self.options.train_weight_tasks
        return first < 0 or task < first

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

    def begin_task(self, task: int) -> None:
        """Fresh scores, optimiser and schedule."""
        multitask.begin_task(self.model, task, self.rng)
        parameters, lr = list(multitask.task_parameters(self.model).values()), self.options.lr
        shared = multitask.shared_parameters(self.model)
        for parameter in shared:
            parameter.requires_grad_(self.trains_weights(task))
        if self.trains_weights(task):
            parameters, lr = parameters + shared, self.options.train_weight_lr
        o = self.options
        self.optimizer = make_optimizer(o.optimizer, parameters, lr, o.momentum, o.weight_decay)
        self.schedule = make_schedule(o.lr_policy, self.optimizer, o.epochs, o.warmup_length)
        self.batches_done = 0

    def end_task(self) -> None:
        """Keep what was learned as one bit a weight, and select the task."""
        multitask.end_task(self.model)
        del self.optimizer, self.schedule

    @property
    def reached_limit(self) -> bool:
        """Whether the task has had all the batches it may have."""
        return self.batches_done == self.options.iter_lim

    def train(self, loader, epoch: int, progress: Callable[[Iterable, int], Iterable] = islice) -> float:
        """One pass over a task's data, or up to the limit of batches.

        Args:
            loader: batches (x, y); its order is that of ``epoch``.
            progress: called with the batches and their number, to show them.

        Returns:
            The mean loss over the pass.
        """
        self.model.train()
        loader.set_epoch(epoch)
        count = len(loader)
        if self.options.iter_lim is not None:
            count = min(count, self.options.iter_lim - self.batches_done)
        total = 0.0
        for x, y in progress(islice(loader, count), count):
            loss = F.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        self.batches_done += count
        self.schedule.step()
        return float(total) / count

    @torch.no_grad()
    def test(self, loader) -> float:
        """The share of right answers over the whole of ``loader``, for the task in training or selected."""
        self.model.eval()
        right = sum((self.model(x).argmax(dim=1) == y).sum() for x, y in loader)
        return int(right) / loader.num_images
