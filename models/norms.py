"""Batch norms. Those without affine parameters have nothing to train: their statistics are all they keep."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import LayerOptions, load_into
from models.multitask import MultitaskModule


def is_statistic(name: str) -> bool:
    """Whether a tensor of a model's state is what a batch norm measured, by its name."""
    return name.rpartition(".")[2] in ("mean", "variance", "running_mean", "running_var", "num_batches_tracked")


def normalise(x: Tensor, eps: float) -> Tensor:
    """Batch norm of x (batch, planes, height, width) by the statistics of x itself.

    One value of each plane is its own mean, so it becomes 0; torch refuses to say so.
    """
    if x.numel() == x.shape[1]:
        return x - x
    return F.batch_norm(x, None, None, training=True, eps=eps)


class StandardBN(nn.BatchNorm2d):
    """Batch norm as it is usual: affine, running statistics; all of it shared by the tasks."""

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__(planes)


class NonAffineBN(nn.BatchNorm2d):
    """Batch norm without affine parameters; the running statistics are shared by the tasks."""

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__(planes, affine=False)


class NonAffineNoStatsBN(nn.BatchNorm2d):
    """Batch norm that keeps nothing: it normalises by the batch's own statistics, also in evaluation."""

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__(planes, affine=False, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, planes, height, width), normalised."""
        return normalise(x, self.eps)


class MultitaskNonAffineBN(MultitaskModule):
    """Batch norm without affine parameters, with running statistics for each task.

    ``means`` and ``variances`` are float32 (num_tasks, planes). The task in training updates its own as it goes; a
    learned task's never change again. Superposed tasks have no statistics of their own: the batch's are used.
    """

    momentum, eps = 0.1, 1e-5  # as nn.BatchNorm2d
    trains = False

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__()
        self.num_tasks = options.num_tasks
        self.register_buffer("means", torch.zeros(self.num_tasks, planes), persistent=False)
        self.register_buffer("variances", torch.ones(self.num_tasks, planes), persistent=False)
        # Of the task in use, each (planes,): in training its own, else a view into those above.
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("variance", None, persistent=False)
        self.task: int | None = None  # None: superposed
        self.learning = False

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, planes, height, width), normalised."""
        if self.task is None:
            return normalise(x, self.eps)
        learning = self.training and self.learning
        return F.batch_norm(x, self.mean, self.variance, training=learning, momentum=self.momentum, eps=self.eps)

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        self.task, self.learning = self.check_task(task), True
        self.mean, self.variance = torch.zeros_like(self.means[task]), torch.ones_like(self.variances[task])

    def end_task(self) -> None:
        self.means[self.task], self.variances[self.task] = self.mean, self.variance
        self.select_task(self.task)

    def select_task(self, task: int) -> None:
        self.task, self.learning = self.check_task(task), False
        self.mean, self.variance = self.means[task], self.variances[task]

    def superpose(self, tasks, alphas: Tensor) -> None:
        self.task, self.learning = None, False

    def task_parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def task_buffers(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "variance": self.variance} if self.learning else {}

    def task_state(self, task: int) -> dict[str, Tensor]:
        return {"mean": self.means[self.check_task(task)], "variance": self.variances[task]}

    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        load_into(self.task_state(task), state)
