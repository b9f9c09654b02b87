"""Tasks in two halves: the first finds a mask, the second trains the weights in it (PackNet, ExSSNeT)."""

from collections.abc import Iterable

from torch import Tensor

from models import siblings
from trainers.default import DefaultTrainer
from utils.errors import UserError


class HalvesTrainer(DefaultTrainer):
    """Trains as ``DefaultTrainer``; after half of a task's batches its mask stays as it is."""

    def check(self, tasks: Iterable[int]) -> None:
        super().check(tasks)
        if not siblings.has_halves(self.model):
            raise UserError("`trainer` halves: is for `conv_type` PackNetConv and ExSSNeTConv; say default")

    def train(self, loader, epoch: int, *how) -> list[float]:
        batches = self.options.epochs * len(loader)
        self.half = min(batches, self.options.iter_lim or batches) // 2  # of a single batch none finds the mask
        return super().train(loader, epoch, *how)

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        if self.batches_done == self.half:
            siblings.settle(self.model)
            self.update.forget()
        return super().step(x, y)

    def load_training_record(self, record: dict[str, Tensor]) -> None:
        super().load_training_record(record)
        siblings.settled_again(self.model)
