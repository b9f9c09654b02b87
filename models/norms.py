"""Batch norms. Those without affine parameters have nothing to train: their statistics are all they keep."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import LayerOptions, load_into
from models.multitask import BatchModule, Gather, MultitaskModule, in_mixed_precision, named, places


def is_statistic(name: str) -> bool:
    """Whether a tensor of a model's state is what a batch norm measured, by its name."""
    return name.rpartition(".")[2] in ("mean", "variance", "running_mean", "running_var", "num_batches_tracked")


def share_statistics(model: nn.Module, gather: Gather) -> None:
    """From now on the batch that a batch norm of ``model`` trains on is that of all processes together."""
    for _, module in named(model, BatchModule):
        module.gather = gather


def normalise(
    x: Tensor,
    eps: float,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    momentum: float = 0.0,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Batch norm of x (batch, planes, height, width) by the statistics of x itself.

    One value of each plane is its own mean, so it becomes 0, and tells nothing of a spread: running statistics stay as
    they are. Torch refuses to say so.

    Args:
        mean, variance: running statistics (planes,), which go towards those of x by ``momentum``; None for none.
        weight, bias: affine parameters (planes,).
        gather: if given, x is this process's part of the batch, which may be nothing.
    """
    if gather is None and x.numel() > x.shape[1]:
        return F.batch_norm(x, mean, variance, weight, bias, training=True, momentum=momentum, eps=eps)
    y = x - x if gather is None else _normalise_together(x, eps, mean, variance, momentum, gather)
    return y if weight is None or bias is None else y * weight[:, None, None] + bias[:, None, None]


def _normalise_together(
    x: Tensor, eps: float, mean: Tensor | None, variance: Tensor | None, momentum: float, gather: Gather
) -> Tensor:
    """``normalise`` by the statistics of all processes' parts; the gradient goes through them to each part.

    One message: each part's mean, its sum of squares about that, and its number of values (Chan et al., 1979).
    """
    values, size = x.float(), x.numel() // x.shape[1]
    part_mean = values.sum((0, 2, 3)) / max(1, size)
    squares = (values - part_mean[:, None, None]).square().sum((0, 2, 3))
    parts = gather(torch.cat([part_mean, squares, values.new_full((1,), size)]))
    counts = parts[:, -1:].detach()
    means, sums = parts[:, :-1].tensor_split(2, dim=1)  # of each process, (processes, planes)
    count = counts.sum()
    own_mean = (counts * means).sum(0) / count
    own_variance = (sums + counts * (means - own_mean).square()).sum(0) / count
    values = values - own_mean[:, None, None]
    if mean is not None and variance is not None:
        with torch.no_grad():
            share = momentum * (count > 1)
            mean.lerp_(own_mean, share)
            variance.lerp_(own_variance * (count / (count - 1).clamp(min=1)), share)  # unbiased, as torch's
    return (values * (own_variance + eps).rsqrt()[:, None, None]).to(x.dtype)


class StandardBN(BatchModule, nn.BatchNorm2d):
    """Batch norm as it is usual: affine, running statistics; all of it shared by the tasks."""

    momentum: float
    num_batches_tracked: Tensor

    def __init__(self, planes: int, options: LayerOptions, affine: bool = True):
        super().__init__(planes, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, planes, height, width), normalised."""
        if self.superposed:  # the running statistics are of some task's own numbers
            return normalise(x, self.eps, weight=self.weight, bias=self.bias)
        if not self.training:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        return normalise(
            x, self.eps, self.running_mean, self.running_var, self.momentum, self.weight, self.bias, self.gather
        )


class NonAffineBN(StandardBN):
    """Batch norm without affine parameters; the running statistics are shared by the tasks."""

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__(planes, options, affine=False)


class NonAffineNoStatsBN(BatchModule, nn.BatchNorm2d):
    """Batch norm that keeps nothing: it normalises by the batch's own statistics, also in evaluation."""

    mixes_images = True

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__(planes, affine=False, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, planes, height, width), normalised."""
        return normalise(x, self.eps, gather=self.gather if self.training else None)


class MultitaskNonAffineBN(MultitaskModule, BatchModule):
    """Batch norm without affine parameters, with running statistics for each task.

    ``means`` and ``variances`` are float32 (num_tasks, planes). The task in training updates its own as it goes; a
    learned task's never change again. Superposed tasks have no statistics of their own: the batch's are used.
    """

    momentum, eps = 0.1, 1e-5  # as nn.BatchNorm2d
    means: Tensor
    variances: Tensor
    mean: Tensor | None
    variance: Tensor | None
    trains = False
    per_task = ("means", "variances")

    def __init__(self, planes: int, options: LayerOptions):
        super().__init__()
        self.num_tasks = options.num_tasks
        self.register_buffer("means", torch.zeros(self.num_tasks, planes), persistent=False)
        self.register_buffer("variances", torch.ones(self.num_tasks, planes), persistent=False)
        # Of the task in use, each (planes,): in training its own, else a view into those above; None: superposed. That
        # is asked of them and not of the task's number, for which a compiler would make new code with each task.
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("variance", None, persistent=False)
        self.task: int | None = None
        self.learning = False
        self.in_stack = False  # one of several tasks that are trained at once

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, planes, height, width), normalised."""
        if self.in_stack and not in_mixed_precision(x):
            x = x.float()  # vmap's batch norm knows one type for values and statistics
        if self.mean is None:
            return normalise(x, self.eps)
        if self.training and self.learning:
            return self.learn_from(x)
        return F.batch_norm(x, self.mean, self.variance, eps=self.eps)

    def learn_from(self, x: Tensor) -> Tensor:
        """x, normalised by its own statistics, which those of the task in training take in."""
        return normalise(x, self.eps, self.mean, self.variance, self.momentum, gather=self.gather)

    @property
    def mixes_images(self) -> bool:
        return self.mean is None

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        self.task, self.learning, self.in_stack = self.check_task(task), True, False
        self.mean, self.variance = torch.zeros_like(self.means[task]), torch.ones_like(self.variances[task])

    def keep_tasks(self, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
        rows = places(tasks, self.means.device)
        self.means[rows], self.variances[rows] = state["mean"], state["variance"]

    def select_task(self, task: int) -> None:
        self.task, self.learning = self.check_task(task), False
        self.mean, self.variance = self.means[task], self.variances[task]

    def stacked(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        self.in_stack = True
        return state

    def superpose(self, tasks: Sequence[int], alphas: Tensor, alike: bool = False) -> None:
        self.task, self.mean, self.variance, self.learning = None, None, None, False

    def task_parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def task_buffers(self) -> dict[str, Tensor]:
        if not self.learning or self.mean is None or self.variance is None:
            return {}
        return {"mean": self.mean, "variance": self.variance}

    def task_state(self, task: int) -> dict[str, Tensor]:
        return {"mean": self.means[self.check_task(task)], "variance": self.variances[task]}

    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        load_into(self.task_state(task), state)
