"""Whether training goes anywhere: losses that are no numbers, and losses that do not fall."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trainers.position import Position

LOOK = 100  # batches whose losses are looked at together
EARLY = 2 * LOOK  # fewer batches than that may leave an honest task worse than a constant answer


class Watch:
    """Sees tasks fail: their loss is no number, or does not fall.

    Args:
        tasks: those in training.
        rate: what says how fast they learn, such as "`lr` 0.1", for messages.
        mean: the mean of a tensor over the processes that train together.

    Attributes:
        failed: the tasks that cannot be learned, and why.
    """

    def __init__(self, tasks: Sequence[int], rate: str, mean: Callable[[Tensor], Tensor]):
        self.tasks, self.rate, self.mean = list(tasks), rate, mean
        self.failed: dict[int, str] = {}
        self._recent: list[Tensor] = []  # losses of batches that nobody has looked at yet
        self._first: list[float] = []  # mean losses of each task when they were looked at first, and last
        self._last: list[float] = []

    def add(self, losses: Tensor) -> None:
        """Take note of the losses of a batch, () or (tasks,). It does not look, for a GPU would wait for it."""
        self._recent.append(losses)

    @property
    def due(self) -> bool:
        """Whether so many batches have come together that it is worth to look."""
        return len(self._recent) == LOOK

    def look(self, batches: int) -> None:
        """See that the losses since the last look are numbers.

        Args:
            batches: how many there were since the tasks began.
        """
        if not self._recent:
            return
        losses = torch.stack(self._recent).reshape(len(self._recent), -1)  # (batches, tasks)
        self._recent = []
        self._last = self.mean(losses.mean(dim=0)).tolist()
        self._first = self._first or self._last
        for place, (task, loss) in enumerate(zip(self.tasks, self._last, strict=True)):
            if not math.isfinite(loss) and task not in self.failed:
                bad = (~losses[:, place].isfinite()).int()
                batch = batches - len(losses) + 1 + int(bad.argmax())
                self.failed[task] = f"task {task}: the loss of batch {batch} is not a finite number; likely " + (
                    f"{self.rate} is too large" if batch > 1 else "the images or the weights are not"
                )

    @property
    def healthy(self) -> bool:
        """Whether all losses so far are numbers, those that nobody has looked at too."""
        return not self.failed and not (self._recent and not torch.stack(self._recent).isfinite().all())

    def check(
        self, accuracies: Sequence[float], labels: Tensor, position: Position, reached: Callable[[int], bool]
    ) -> None:
        """See that each task has learned something.

        A task has not if after 200 batches or more two things hold. Its loss is still that of the first batches or
        that of a constant answer, the entropy of the labels, within three hundredths. And its accuracy is no better
        than that of a constant answer, by two standard deviations.

        After fewer batches a task may honestly be worse than a constant answer, as one of a hundred outputs is likely
        to be before any is learned. Then it has learned nothing if it is so by five standard deviations, and if either
        no gradient reached it in its last batch, or its loss in the last of several epochs, of ten batches or more, is
        within a hundredth that of the first: both are of the same images, so that chance has little part in it.

        Args:
            accuracies: of each task in its test.
            labels: int64 (tasks, images), those of the test.
            position: how far the tasks have come.
            reached: whether a gradient reached the task at a place in the last batch.
        """
        for place, (task, accuracy, own) in enumerate(zip(self.tasks, accuracies, labels, strict=True)):
            first, last = self._first[place], self._last[place]
            shares = own.bincount() / len(own)
            constant, entropy = float(shares.max()), float(torch.special.entr(shares).sum())
            deviation = math.sqrt(constant * (1 - constant) / len(own))
            bound = constant + 2 * deviation
            idle = position.epoch > 0 and position.epoch_batches >= 10 and last > 0.99 * first
            if accuracy < constant - 5 * deviation and (idle or not reached(place)):
                why = f"its accuracy, {accuracy:.4f}, is far below that of a constant answer, {constant:.4f}, and " + (
                    f"its loss, {last:.4g}, does not fall; likely {self.rate} is too small or too large"
                    if reached(place)
                    else "no gradient reaches what it trains"
                )
            elif position.batches >= EARLY and last > 0.97 * min(first, entropy) and accuracy < bound < 1:
                why = (
                    f"its loss is {last:.4g}, no better than at first or than that of a constant answer, and so is its "
                    f"accuracy, {accuracy:.4f}; likely {self.rate} is too small or too large, or the masks leave "
                    "nothing that answers"
                )
            else:
                continue
            self.failed.setdefault(task, f"task {task}: after {position.batches} batches {why}")

    def state(self) -> dict[str, Tensor]:
        """The losses that it goes by, for a checkpoint; of healthy tasks."""
        return {
            "recent": torch.stack(self._recent) if self._recent else torch.zeros(0),
            "looks": torch.tensor([self._first, self._last], dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """The inverse of ``state``.

        Raises:
            KeyError, ValueError: it is not one.
        """
        self._recent = list(state["recent"].to(device))
        self._first, self._last = state["looks"].tolist()
