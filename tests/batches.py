"""What tests of layers share: a loader of batches that lie in memory, a model that learns them, and its answers."""

import torch

from models import multitask
from trainers.default import DefaultTrainer
from trainers.options import TrainingOptions


class BatchList:
    """Serves the pairs (x, y) in ``batches``, in the same order in every epoch."""

    def __init__(self, batches: list):
        self.batches = batches
        self.num_images = sum(len(y) for _, y in batches)
        self.start = 0

    def set_epoch(self, epoch, start=0):
        self.start = start

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches[self.start :])


def random_batches(keyed, shape, classes, count, shift=0):
    """So many batches of 16 random images, with labels that say nothing of them, drawn from the generator ``keyed``."""
    return [
        (torch.randn(16, *shape, generator=keyed) + shift, torch.randint(0, classes, (16,), generator=keyed))
        for _ in range(count)
    ]


def learn(model, tasks, batches, rng, **options):
    """The model, after it has learned tasks one by one, each in one pass over its ``batches(task)``."""
    trainer = DefaultTrainer(model, TrainingOptions(lr=1e-2, **options), rng)
    for task in tasks:
        trainer.begin_task(task)
        trainer.train(batches(task), epoch=0)
        trainer.end_task()
    return model


@torch.no_grad()
def logits(model, task, x):
    """What a learned task answers to x."""
    multitask.select_task(model, task)
    return model.eval()(x)
