"""Several tasks trained at once: their scores, data and steps stacked, each as if it were trained alone."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import multitask, stacked
from models.multitask import Rng
from trainers.default import DefaultTrainer, Learned, Network
from trainers.options import TrainingOptions

# By how much of itself a gradient may be another for tasks at once than alone. Mostly sums differ in the sixth digit;
# in very deep networks roundings grow, and there as much as a change of the images by ``ROUNDED`` makes.
ALIKE, ROUNDED = 0.1, 1e-4


class SeveralTrainer(DefaultTrainer):
    """Trains and tests the tasks of a group at once, on stacked batches; each comes out as from ``DefaultTrainer``.

    But for the order of sums. The tasks must not depend on each other: nothing that they share is trained. A group of
    one task is trained as ``DefaultTrainer`` does, to the bit.
    """

    parallel = True

    def __init__(self, model: nn.Module, options: TrainingOptions, rng: Rng):
        super().__init__(model, options, rng)
        self.state: dict[str, Tensor] | None = None  # of the tasks in training, (tasks, ...); None for one alone

    def begin_tasks(self, tasks: Sequence[int]) -> None:
        self.state = None
        if len(tasks) == 1:
            return super().begin_tasks(tasks)
        self.state = stacked.begin_tasks(self.model, tasks, self.rng)
        for parameter in multitask.shared_parameters(self.model):
            parameter.requires_grad_(False)
        self._optimise([value for value in self.state.values() if isinstance(value, nn.Parameter)], self.options.lr)
        self._train_through(stacked.network_of_tasks(self.model, self.state))
        self._count(tasks)

    def trains_alike(self, tasks: Sequence[int], x: Tensor, y: Tensor) -> bool:
        """Whether in a step for all of ``tasks`` the last of them has the gradients that it has alone.

        What a network does by hooks, or only where a tensor says that it requires a gradient, is not done while it is
        mapped over tasks; and what it draws by Python or NumPy it draws once for all. Afterwards none is in training.

        Args:
            x: images (tasks, batch, channels, height, width).
            y: labels (tasks, batch).
        """
        at_once = self._first_gradients(tasks, x, y)
        if self.draws_elsewhere:
            return False
        alone = self._first_gradients(tasks[-1:], x[-1], y[-1])
        nearly = self._first_gradients(tasks[-1:], x[-1].lerp(x[0], ROUNDED), y[-1])
        least = max(float(gradient.norm()) for gradient in alone) / 1000  # where all of a gradient may be rounding
        return not any(
            (others - own).norm() > max(ALIKE * max(least, float(own.norm())), float((like - own).norm()))
            for own, others, like in zip(alone, at_once, nearly, strict=True)
        )

    def _first_gradients(self, tasks: Sequence[int], x: Tensor, y: Tensor) -> list[Tensor]:
        """What the last of ``tasks`` has for gradients in their first step; zeros where it has none."""
        self.begin_tasks(tasks)
        self.model.train()
        self.step(x, y)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters]
        own = [*self._of_task(len(tasks) - 1, gradients)]
        self.state = None
        self._forget()
        return own

    def end_tasks(self) -> Iterator[Learned]:
        if self.state is None:
            yield from super().end_tasks()
            return
        state, self.state = self.state, None
        self._forget()
        places = [place for place, task in enumerate(self.tasks) if task not in self.failed]
        if self.failed:
            state = {name: value[places] for name, value in state.items()}
        tasks = [self.tasks[place] for place in places]
        if tasks:
            stacked.end_tasks(self.model, tasks, state)
        for task in tasks:
            yield Learned(task, task, [task])

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of each task (tasks,); x (tasks, batch, channels, height, width), y (tasks, batch)."""
        if self.state is None:
            return super()._losses(x, y)
        if self.options.channels_last:
            x = x.flatten(0, -4).contiguous(memory_format=torch.channels_last).view_as(x)
        logits = self._logits(x).flatten(0, -2)
        return F.cross_entropy(logits, y.flatten(), reduction="none").view_as(y).sum(-1) / y.shape[-1]

    def _own_state(self) -> dict[str, Tensor]:
        return super()._own_state() if self.state is None else self.state

    def _of_task(self, place: int, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors if self.state is None else [tensor[place] for tensor in tensors]

    @property
    def _tests_as_selected(self) -> bool:
        """On a GPU a product for all tasks at once sums in another order than that of one."""
        on_processor = self.state is None or next(iter(self.state.values())).device.type == "cpu"
        return on_processor and super()._tests_as_selected

    def _network_to_test(self) -> Network:
        return super()._network_to_test() if self.state is None else stacked.tasks_to_test(self.model, self.state)
