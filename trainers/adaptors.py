"""How a learned model is tested: with the task given, or inferred from the data (paper, section 3.3).

An adaptor infers the task of many test batches at once: from their images (batches, images, channels, height, width)
to the inferred task of each. ``ADAPTORS`` names them. The model computes as if every learned mask had a coefficient
``alpha_i``, and the gradient of an objective with respect to ``alpha`` says which mask explains the data. That
gradient is ``∂L/∂alpha_i = ⟨∂L/∂W_eff, W ⊙ M^i⟩``, so one backward pass for each batch through a single superposed
network, then one product with the bit-packed masks, gives it for all masks and batches.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from models import multitask
from models.masks import tiles

Objective = Callable[[Tensor], Tensor]

TILE_BYTES = 512 * 2**20  # weight gradients of a tile of batches, with what is computed from them
QUEUE_BYTES = 128 * 2**20  # images of batches that wait for their inference


def entropy(logits: Tensor) -> Tensor:
    """H: the mean entropy of the softmax of logits (batch, outputs), in nats (paper, equation 3)."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean()


def superfluous(logits: Tensor, real_neurons: int) -> Tensor:
    """G: the mean log-sum-exp of logits (batch, outputs), of which only the superfluous neurons pass a gradient.

    The first ``real_neurons`` outputs are the real ones (paper, section 3.4).
    """
    return torch.cat([logits[:, :real_neurons].detach(), logits[:, real_neurons:]], dim=1).logsumexp(1).mean()


def alpha_gradients(
    model: nn.Module,
    tasks: Sequence[int],
    alphas: Tensor,
    images: Tensor,
    objective: Objective,
    tile_bytes: int = TILE_BYTES,
) -> Tensor:
    """The gradient of ``objective`` with respect to the coefficients of ``tasks``, for every batch by itself.

    Args:
        tasks: k learned tasks.
        alphas: the coefficients, (k,) when all batches share them, or (batches, k).
        images: (batches, images, channels, height, width).
        tile_bytes: how much memory the weight gradients of the batches under way may take, about.

    Returns:
        (batches, k). The modes of the model's layers are left superposed.
    """
    uniform = torch.full((len(tasks),), 1 / len(tasks), device=images.device)
    multitask.superpose(model, tasks, alphas if alphas.ndim == 1 else uniform)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return objective(torch.func.functional_call(model, weights, (x,)))

    shared = alphas.ndim == 1
    weights = multitask.superposition(model, tasks, alphas) if shared else None
    weight_gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None if shared else 0, 0))
    # A batch costs its weight gradient and that times W, and with coefficients of its own its weights too.
    batch_bytes = 4 * multitask.superposed_size(model) * (2 if shared else 4)
    gradients = []
    for tile in tiles(len(images), max(1, tile_bytes // batch_bytes)):
        tile_weights = weights if shared else multitask.superposition(model, tasks, alphas[tile])
        tile_gradients = weight_gradients(tile_weights, images[tile])
        gradients.append(multitask.coefficient_gradients(model, tasks, tile_gradients))
    return torch.cat(gradients)


def one_shot(model: nn.Module, tasks: Sequence[int], images: Tensor, objective: Objective) -> Tensor:
    """One-shot inference: the task whose coefficient has the smallest derivative (paper, equation 4).

    Args:
        images: (batches, images, channels, height, width).

    Returns:
        For each batch the inferred one of ``tasks``, int64 (batches,).
    """
    alphas = torch.full((len(tasks),), 1 / len(tasks), device=images.device)
    gradients = alpha_gradients(model, tasks, alphas, images, objective)
    return torch.tensor(tasks, device=images.device)[gradients.argmin(dim=1)]


def binary(model: nn.Module, tasks: Sequence[int], images: Tensor, objective: Objective, log_base: float = 2) -> Tensor:
    """Binary inference: the better ``1 / log_base`` of the masks stay, until one is left (paper, algorithm 1).

    Args:
        images: (batches, images, channels, height, width).
        log_base: of the logarithm that gives the number of rounds; 2 keeps the masks at or below the median.

    Returns:
        For each batch the inferred one of ``tasks``, int64 (batches,).
    """
    alive = torch.ones(len(images), len(tasks), dtype=torch.bool, device=images.device)
    left = len(tasks)
    while left > 1:
        # Batches with the same masks alive share a superposition: all of them in the first round.
        groups, group_of = alive.unique(dim=0, return_inverse=True)
        gradients = torch.empty(alive.shape, device=images.device)
        for group, members in enumerate(groups):
            chosen = members.nonzero().flatten()
            rows = (group_of == group).nonzero().flatten()
            alphas = torch.full((left,), 1 / left, device=images.device)
            of_group = alpha_gradients(
                model, [tasks[index] for index in chosen.tolist()], alphas, images[rows], objective
            )
            gradients[rows[:, None], chosen] = of_group
        left = min(left - 1, math.ceil(left / log_base))  # always one fewer at least, so that it ends
        best = gradients.masked_fill(~alive, torch.inf).topk(left, dim=1, largest=False).indices
        alive = torch.zeros_like(alive).scatter_(1, best, True)
    return torch.tensor(tasks, device=images.device)[alive.int().argmax(dim=1)]


@dataclass
class InferenceOptions:
    """What adaptors need to know beside the data.

    Attributes:
        data_to_repeat: the task of a test batch is inferred from its first images, this many.
        real_neurons: outputs that stand for classes; the others are superfluous (objective G).
        log_base: of binary inference.
        unshared_labels: whether a batch whose task is inferred wrong counts as wrong as a whole.
    """

    data_to_repeat: int = 1
    real_neurons: int = 10
    log_base: float = 2
    unshared_labels: bool = False


def _infer(algorithm: Callable[..., Tensor], objective: str) -> Callable[..., Tensor]:
    """An adaptor ``(model, tasks, images, options) -> inferred tasks`` from an algorithm and an objective's name."""

    def infer(model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
        if objective == "entropy":
            function = entropy
        else:
            function = partial(superfluous, real_neurons=options.real_neurons)
        more = {"log_base": options.log_base} if algorithm is binary else {}
        return algorithm(model, tasks, images, function, **more)

    return infer


# None: the task is given.
ADAPTORS: dict[str, Callable[..., Tensor] | None] = {
    "gt": None,
    "se_oneshot_entropy_minimization": _infer(one_shot, "entropy"),
    "se_oneshot_g_minimization": _infer(one_shot, "superfluous"),
    "se_binary_entropy_minimization": _infer(binary, "entropy"),
    "se_binary_g_minimization": _infer(binary, "superfluous"),
}


@dataclass
class TaskScore:
    """How one task was answered. Accuracies and shares are fractions; without inference the last two are None."""

    task: int
    given: float
    adapted: float | None = None
    inferred_right: float | None = None


def evaluate(
    model: nn.Module,
    data,
    tasks: Sequence[int],
    adaptor: str,
    options: InferenceOptions,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[TaskScore]:
    """Test every one of ``tasks`` on its validation data, with the task given and, unless ``gt``, inferred.

    The task is inferred once for each test batch. The accuracy with the task given is measured in the same pass.

    Args:
        data: a ``TaskDataset``: ``update_task`` and ``val_loader``.
        tasks: learned tasks; inference chooses among exactly these.
        adaptor: a key of ``ADAPTORS``.
        progress: wraps the loop over tasks, to show it.
    """
    infer = ADAPTORS[adaptor]
    scores, queue, queued = [], [], 0
    for task in progress(tasks):
        results = _Batches.of_task(model, data, task, options.data_to_repeat if infer else 0)
        queue.append(results)
        queued += results.image_bytes
        # Batches of many tasks go through the superposed network together, as many as memory allows.
        if queued >= QUEUE_BYTES or task == tasks[-1]:
            if infer:
                _infer_queue(model, tasks, queue, infer, options)
            scores += [_score(model, data, batches, options) for batches in queue]
            queue, queued = [], 0
    return scores


@dataclass
class _Batches:
    """The test batches of one task: how they are answered when the task is given, and what inference sees."""

    task: int
    right: Tensor  # correct answers in each batch, int64 (batches,)
    sizes: list[int]  # images in each batch
    images: list[Tensor]  # the first images of each batch
    inferred: Tensor | None = None  # int64 (batches,)

    @property
    def image_bytes(self) -> int:
        return sum(images.nbytes for images in self.images)

    @classmethod
    @torch.no_grad()
    def of_task(cls, model: nn.Module, data, task: int, data_to_repeat: int) -> "_Batches":
        data.update_task(task)
        multitask.select_task(model, task)
        model.eval()
        right, sizes, images = [], [], []
        for x, y in data.val_loader:
            right.append((model(x).argmax(dim=1) == y).sum())
            sizes.append(len(y))
            if data_to_repeat:
                images.append(x[:data_to_repeat].clone())  # not a view, which would keep the whole batch
        return cls(task, torch.stack(right), sizes, images)


def _infer_queue(
    model: nn.Module,
    tasks: Sequence[int],
    queue: list[_Batches],
    infer: Callable[..., Tensor],
    options: InferenceOptions,
) -> None:
    """Infer the task of every queued batch; batches of one size go together."""
    images = [image for batches in queue for image in batches.images]
    lengths = torch.tensor([len(image) for image in images])
    inferred = torch.empty(len(images), dtype=torch.int64)
    for length in lengths.unique():
        rows = (lengths == length).nonzero().flatten()
        chosen = torch.stack([images[row] for row in rows.tolist()])
        inferred[rows] = infer(model, tasks, chosen, options).cpu()
    parts = inferred.split([len(batches.images) for batches in queue])
    for batches, part in zip(queue, parts, strict=True):
        batches.inferred = part


@torch.no_grad()
def _score(model: nn.Module, data, batches: _Batches, options: InferenceOptions) -> TaskScore:
    right, total = batches.right.clone(), sum(batches.sizes)
    score = TaskScore(batches.task, given=int(right.sum()) / total)
    if batches.inferred is None:
        return score
    wrong = (batches.inferred != batches.task).nonzero().flatten().tolist()
    score.inferred_right = 1 - len(wrong) / len(batches.sizes)
    if wrong and options.unshared_labels:
        right[wrong] = 0
    elif wrong:
        # A shared label may still be right under another task's mask: these batches are answered again.
        data.update_task(batches.task)
        wrong_batches = set(wrong)
        for index, (x, y) in enumerate(data.val_loader):
            if index in wrong_batches:
                multitask.select_task(model, int(batches.inferred[index]))
                right[index] = (model(x).argmax(dim=1) == y).sum()
    score.adapted = int(right.sum()) / total
    return score
