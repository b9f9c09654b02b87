"""Where in its data a task in training stands, so that it can go on from there."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Position:
    """How far the tasks in training have come: batches in all, and those of the pass that they are in.

    Attributes:
        batches: that were seen since the tasks began.
        epoch: the pass over the data, from 0.
        epoch_batches: batches of it that were seen.
        epoch_trained: those of them that were learned from.
        epoch_loss: the sum of their losses, () or (tasks,).
    """

    batches: int = 0
    epoch: int = 0
    epoch_batches: int = 0
    epoch_trained: int = 0
    epoch_loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    def enter(self, epoch: int) -> None:
        """Be in the pass ``epoch``: where it was left, or at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.epoch_batches, self.epoch_trained, self.epoch_loss = epoch, 0, 0, torch.zeros(())

    def left(self, batches: int, limit: int | None) -> int:
        """How many of the ``batches`` of this pass are to come, if there may be ``limit`` of them in all."""
        left = batches - self.epoch_batches
        return left if limit is None else min(left, limit - self.batches)

    def count(self, loss: Tensor | None) -> None:
        """Go on by a batch; None for one that was not learned from."""
        self.batches += 1
        self.epoch_batches += 1
        if loss is not None:
            self.epoch_trained += 1
            self.epoch_loss = self.epoch_loss + loss

    def mean_losses(self, tasks: int) -> list[float]:
        """The mean loss of each of so many tasks over this pass; not a number if no batch was learned from."""
        return (self.epoch_loss / self.epoch_trained).expand(tasks).tolist()

    def state(self) -> dict[str, Tensor]:
        """All of it, by name, for a checkpoint."""
        counts = [self.batches, self.epoch, self.epoch_batches, self.epoch_trained]
        return {"batches": torch.tensor(counts), "loss": self.epoch_loss}

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """The inverse of ``state``.

        Raises:
            KeyError, ValueError: it is not one.
        """
        self.batches, self.epoch, self.epoch_batches, self.epoch_trained = state["batches"].tolist()
        self.epoch_loss = state["loss"].to(device)
