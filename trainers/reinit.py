"""Transfer: the scores of a new task start from those of earlier tasks (paper, section 4.1, figure 3 right)."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from models import masked, masks, multitask, superposition
from models.multitask import Rng
from trainers import FROM_RUN
from trainers.default import DefaultTrainer, Learned
from trainers.inference import binary, entropy, one_shot
from trainers.options import TrainingOptions
from utils.checkpoint import Checkpoint
from utils.errors import UserError
from utils.journal import TASK

Scores = dict[str, Tensor]  # those of one task, by the name of the parameter

# Adaptations that choose among earlier tasks by a new task's first batch: the algorithm that infers the task.
SIMILAR: dict[str, Callable[..., Tensor]] = {"gradient": one_shot, "binary": binary}


class ReinitTrainer(DefaultTrainer):
    """Trains as ``DefaultTrainer``, from other scores than fresh ones once there are earlier tasks.

    The adaptations (``reinit_adapt``), among the ``reinit_most_recent_k`` earlier tasks or all of them:

    - ``running_mean``: the mean of the earlier tasks' scores;
    - ``gradient``, ``binary``: the scores of the earlier task that one-shot or binary inference finds in the new
      task's first batch, by entropy;
    - ``random``: those of one at random;
    - ``n-1``: those of the task before;
    - ``starting_from_task_0``: those of the first task, always;
    - ``n-1-imagenet``: those of the last task of another run, whose checkpoint is ``reinit_from``; of a run that
      kept no scores, fresh ones that make its mask.

    Final scores are kept in host memory and go into the checkpoint with their task.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions, rng: Rng):
        super().__init__(model, options, rng)
        self.learned: dict[int, Scores] = {}
        self.foreign: dict[str, Tensor] | None = None  # state of the other run's task

    def check(self, tasks: Iterable[int]) -> None:
        super().check(tasks)
        o = self.options
        if o.reinit_adapt in SIMILAR and not superposition.can_superpose(self.model):
            raise UserError(f"`reinit_adapt` {o.reinit_adapt}: `conv_type` has no masks to choose among")
        if o.reinit_from is not None:
            self.foreign = _last_task(Path(o.reinit_from))
            shapes = masked.mask_shapes(self.model)
            for name, shape in shapes.items():
                scores, mask = self.foreign.get(f"trainer.{name}.scores"), self.foreign.get(f"own.{name}.mask")
                if not (scores is not None and scores.shape == shape) and not (
                    mask is not None and mask.numel() == -(-shape.numel() // 8)
                ):
                    raise UserError(f"`reinit_from` {o.reinit_from}: has no mask for the layer {name} of this network")

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if self.options.reinit_adapt not in SIMILAR:
            multitask.set_task_values(self.model, self._adapted(task))

    def end_task(self) -> Learned:
        self.learned[self.task] = multitask.task_values(self.model)
        return super().end_task()

    def train(self, loader, epoch: int, *how) -> list[float]:
        if self.batches_done == 0 and self.options.reinit_adapt in SIMILAR:
            multitask.set_task_values(self.model, self._most_similar(loader))
        return super().train(loader, epoch, *how)

    def task_record(self, task: int) -> Scores:
        return self.learned.get(task, {})

    def load_task_record(self, task: int, record: Scores) -> Learned:
        if record:  # a task that was imported has a mask only, and nothing to start from
            self.learned[task] = record
        return super().load_task_record(task, record)

    def _earlier(self) -> list[int]:
        """The earlier tasks that may be started from, in the order in which they were learned."""
        tasks, most_recent = list(self.learned), self.options.reinit_most_recent_k
        return tasks if most_recent is None else tasks[-most_recent:]

    def _adapted(self, task: int) -> Scores:
        """The scores to start from, those of the adaptations that need no data; nothing for fresh ones."""
        adapt, earlier = self.options.reinit_adapt, self._earlier()
        if adapt == FROM_RUN:
            return self._foreign_scores()
        if not earlier:
            return {}
        if adapt == "running_mean":
            return _mean([self.learned[other] for other in earlier])
        if adapt == "random":
            drawn = torch.randint(len(earlier), (), generator=self.rng("reinit", task))
            return self.learned[earlier[int(drawn)]]
        return self.learned[earlier[-1] if adapt == "n-1" else next(iter(self.learned))]

    def _most_similar(self, loader) -> Scores:
        """The scores of the earlier task that explains the first batch of this one best; nothing if there is none."""
        earlier = self._earlier()
        if not earlier:
            return {}
        loader.set_epoch(0)
        x, _ = next(iter(loader))
        self.model.eval()
        similar = SIMILAR[self.options.reinit_adapt](self.model, earlier, x[None], entropy)[0]
        super().begin_task(self.task)  # inference left the layers superposed
        return self.learned[int(self.group.from_first(similar))]

    @torch.no_grad()
    def _foreign_scores(self) -> Scores:
        """The other run's scores; where it kept masks only, fresh scores, ordered or signed to give its mask."""
        assert self.foreign is not None  # since ``check``
        scores = {}
        for name, parameter in multitask.task_parameters(self.model).items():
            layer, _, kind = name.rpartition(".")
            kept = self.foreign.get(f"trainer.{name}")
            if kept is not None and kept.shape == parameter.shape:
                scores[name] = kept
            elif kind == "scores":
                ordered = isinstance(self.model.get_submodule(layer), masked.TopK)
                scores_of = masks.scores_of_mask if ordered else masks.signed_by_mask
                scores[name] = scores_of(parameter, self.foreign[f"own.{layer}.mask"])
        return scores


def _mean(scores: list[Scores]) -> Scores:
    return {name: torch.stack([one[name] for one in scores]).mean(dim=0) for name in scores[0]}


def _last_task(path: Path) -> dict[str, Tensor]:
    """The tensors of the last task in a checkpoint.

    Raises:
        UserError: there is none, or the file is no checkpoint.
    """
    tasks = [record for record in Checkpoint(path).read()[0] if record.kind == TASK]
    if not tasks:
        raise UserError(f"`reinit_from` {path}: no task was learned there")
    return tasks[-1].tensors
