"""How a learned model is tested: with the task given, or inferred from the data (paper, section 3.3).

An adaptor infers the task of many test batches at once: from their images (batches, images, channels, height, width)
to the inferred task of each. ``ADAPTORS`` names them. The images are the first ones of each batch; in a network with
batch norm they are all of it, for the first ones alone would have other statistics, and the logits of the first count.

The model computes as if every learned mask had a coefficient ``alpha_i``, and the gradient of an objective with respect
to ``alpha`` says which mask explains the data. That gradient is ``∂L/∂alpha_i = ⟨∂L/∂W_eff, W ⊙ M^i⟩``, so one backward
pass for each batch through a single superposed network, then one product with the bit-packed masks, gives it for all
masks and batches. ``∂L/∂W_eff`` itself is never whole in memory: it is the product of what a layer saw and of the
gradient of what it gave, made a few units at a time.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from models import multitask, superposition
from models.masks import tiles
from trainers import ADAPTORS, OF_ANY_TASKS, hopfield
from utils.errors import UserError

Objective = Callable[[Tensor], Tensor]

BATCHES_BYTES = 256 * 2**20  # what layers see and give for batches that go through together, with the gradients
TILE_BATCHES = 4096  # in a tile at the most; more would share no more of what is unpacked
QUEUE_BYTES = 64 * 2**20  # images of batches that wait for their inference
IMAGE_BYTES = 16 * 2**20  # images that go through the network of one task together
ALPHA_LR = 0.1  # of gradient descent on the coefficients
RECOVERY = "hopfield_recovery"


def entropies(logits: Tensor) -> Tensor:
    """The entropy of the softmax of each row of logits (..., outputs), in nats: (...)."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """H: the mean entropy of the softmax of logits (batch, outputs), in nats (paper, equation 3)."""
    return entropies(logits).mean()


def superfluous(logits: Tensor, real_neurons: int) -> Tensor:
    """G: the mean log-sum-exp of logits (batch, outputs), of which only the superfluous neurons pass a gradient.

    The first ``real_neurons`` outputs are the real ones (paper, section 3.4).
    """
    return torch.cat([logits[:, :real_neurons].detach(), logits[:, real_neurons:]], dim=1).logsumexp(1).mean()


def of_first(objective: Objective, images: int | None) -> Objective:
    """``objective`` on the logits of the first so many images of a batch; None for all."""
    return objective if images is None else lambda logits: objective(logits[:images])


def uniform(count: int, device: torch.device | str) -> Tensor:
    """The coefficients (count,) that favour no task."""
    return torch.full((count,), 1 / count, device=device)


def alpha_gradients(
    model: nn.Module,
    tasks: Sequence[int],
    alphas: Tensor,
    images: Tensor,
    objective: Objective,
    tile_bytes: int = BATCHES_BYTES,
) -> Tensor:
    """The gradient of ``objective`` with respect to the coefficients of ``tasks``, for every batch by itself.

    Args:
        tasks: k learned tasks.
        alphas: the coefficients, (k,) when all batches share them, or (batches, k).
        images: (batches, images, channels, height, width).
        tile_bytes: how much memory the batches under way may take, about.

    Returns:
        (batches, k). The modes of the model's layers are left superposed.
    """
    if not superposition.is_factored(model):
        return _alpha_gradients_whole(model, tasks, alphas, images, objective, tile_bytes)
    gradients = torch.empty(len(images), len(tasks), device=images.device)
    for members, inputs, output_gradients in _backward(model, tasks, alphas, images, objective, tile_bytes):
        gradients[members] = superposition.coefficient_gradients(model, tasks, inputs, output_gradients)
    return gradients


def _alpha_gradients_whole(
    model: nn.Module, tasks: Sequence[int], alphas: Tensor, images: Tensor, objective: Objective, tile_bytes: int
) -> Tensor:
    """``alpha_gradients`` by a backward pass for each batch by itself, to the superposed weights: for any network."""
    shared, parts = alphas.ndim == 1, []
    for tile in tiles(len(images), max(1, tile_bytes // (4 * superposition.superposed_size(model)))):
        found: list[tuple[Tensor, ...]] = []
        for batch in range(tile.start, tile.stop):
            if not shared or batch == 0:
                weights = superposition.superpose(model, tasks, alphas if shared else alphas[batch])
            with torch.enable_grad():
                for weight in weights.values():
                    weight.requires_grad_()
                found.append(torch.autograd.grad(objective(model(images[batch])), list(weights.values())))
        stacked = {name: torch.stack(each) for name, each in zip(weights, zip(*found, strict=True), strict=True)}
        parts.append(superposition.whole_coefficient_gradients(model, tasks, stacked))
    return torch.cat(parts)


def _backward(
    model: nn.Module, tasks: Sequence[int], alphas: Tensor, images: Tensor, objective: Objective, tile_bytes: int
) -> Iterator[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """Forward and backward passes through the superposed network, some batches at a time.

    Yields:
        Which batches, int64 (b,), and for them what the layers saw and ``∂L/∂outputs``, by the names of the probes.
    """
    rows, row_of = alphas.reshape(-1, len(tasks)).unique(dim=0, return_inverse=True)
    if alphas.ndim == 1:
        row_of = row_of.expand(len(images))
    order = row_of.argsort(stable=True)  # batches with the same coefficients go through the same network, together
    weights = {0: superposition.superpose(model, tasks, rows[0])}  # by row
    with superposition.probes(model, images[0]) as probes:

        def loss(probes: dict[str, Tensor], weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logits = torch.func.functional_call(model, probes | weights, (x,))
            return objective(logits), superposition.seen(model)

        backward = torch.func.vmap(torch.func.grad(loss, has_aux=True), in_dims=(None, None, 0))
        batch_bytes = 4 * superposition.probed_size(model)
        if len(rows) > 1:  # in the worst case each batch has a superposition of its own
            batch_bytes += 4 * superposition.superposed_size(model)
        for tile in tiles(len(images), max(1, min(TILE_BATCHES, tile_bytes // batch_bytes))):
            members = order[tile]
            here = row_of[members].unique_consecutive().tolist()
            weights = {row: weights[row] for row in here if row in weights}
            if missing := [row for row in here if row not in weights]:
                made = superposition.superposed_weights(model, tasks, rows[missing])
                weights |= {row: {name: w[place] for name, w in made.items()} for place, row in enumerate(missing)}
            parts = [backward(probes, weights[row], images[members[row_of[members] == row]]) for row in here]
            output_gradients, inputs = (
                {name: torch.cat([p[i][name] for p in parts]) for name in probes} for i in (0, 1)
            )
            yield members, inputs, output_gradients


def one_shot(
    model: nn.Module, tasks: Sequence[int], images: Tensor, objective: Objective, tile_bytes: int = BATCHES_BYTES
) -> Tensor:
    """One-shot inference: the task whose coefficient has the smallest derivative (paper, equation 4).

    Args:
        images: (batches, images, channels, height, width).
        tile_bytes: how much memory the batches under way may take, about.

    Returns:
        For each batch the inferred one of ``tasks``, int64 (batches,).
    """
    alphas = uniform(len(tasks), images.device)
    if not superposition.is_factored(model):
        best = alpha_gradients(model, tasks, alphas, images, objective, tile_bytes).argmin(dim=1)
        return torch.tensor(tasks, device=images.device)[best]
    best = torch.empty(len(images), dtype=torch.int64, device=images.device)
    for members, inputs, output_gradients in _backward(model, tasks, alphas, images, objective, tile_bytes):
        best[members] = superposition.smallest_derivatives(model, tasks, inputs, output_gradients)
    return torch.tensor(tasks, device=images.device)[best]


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
        gradients = alpha_gradients(model, tasks, alive.float() / left, images, objective)
        left = min(left - 1, math.ceil(left / log_base))  # always one fewer at least, so that it ends
        best = gradients.masked_fill(~alive, torch.inf).topk(left, dim=1, largest=False).indices
        alive = torch.zeros_like(alive).scatter_(1, best, True)
    return torch.tensor(tasks, device=images.device)[alive.int().argmax(dim=1)]


def gradient_descent(
    model: nn.Module, tasks: Sequence[int], images: Tensor, objective: Objective, lr: float = 0.1, steps: int = 10
) -> Tensor:
    """Plain gradient descent on the coefficients (paper, equation 3): the task of the largest in the end.

    After each step the coefficients are renormalised: negative ones become zero, and their sum is made one again.

    Args:
        images: (batches, images, channels, height, width).

    Returns:
        For each batch the inferred one of ``tasks``, int64 (batches,).
    """
    alphas = uniform(len(tasks), images.device).repeat(len(images), 1)
    for step in range(steps):
        shared = alphas[0] if step == 0 else alphas  # the first superposition is the same for all batches
        gradients = alpha_gradients(model, tasks, shared, images, objective)
        # Only what changes the coefficients against each other counts: their sum is one before the step and after.
        alphas = alphas - lr * (gradients - gradients.mean(dim=1, keepdim=True))
        alphas = alphas.clamp(min=0)
        alphas = alphas / alphas.sum(dim=1, keepdim=True)
    return torch.tensor(tasks, device=images.device)[alphas.argmax(dim=1)]


@torch.no_grad()
def ensemble(
    model: nn.Module,
    tasks: Sequence[int],
    images: Tensor,
    doubt: Callable[[Tensor], Tensor],
    first: int | None = None,
) -> Tensor:
    """ABatchE (paper, section 4.2): every task answers every image; the one that is in least doubt is chosen.

    Each image is repeated for all tasks. What one task answers goes through the network together, for all batches;
    one by one and whole where a task's batch norm has no other statistics than the batch's.

    Args:
        images: (batches, images, channels, height, width).
        doubt: of logits (..., outputs), by image (...).
        first: images of a batch whose doubts count; None for all.

    Returns:
        For each batch the inferred one of ``tasks``, int64 (batches,).
    """
    doubts = torch.empty(len(images), len(tasks), device=images.device)
    model.eval()
    multitask.select_task(model, tasks[0])
    if multitask.mixes_images(model):
        tile_size = 1
    else:
        images = images[:, :first]
        tile_size = max(1, IMAGE_BYTES // images[0].nbytes)
    for index, task in enumerate(tasks):
        multitask.select_task(model, task)
        for tile in tiles(len(images), tile_size):
            logits = model(images[tile].flatten(0, 1)).unflatten(0, images[tile].shape[:2])
            doubts[tile, index] = doubt(logits[:, :first]).mean(dim=1)
    return torch.tensor(tasks, device=images.device)[doubts.argmin(dim=1)]


@dataclass
class InferenceOptions:
    """What adaptors need to know beside the data.

    Attributes:
        data_to_repeat: the task of a test batch is inferred from its first images, this many; with batch norm, from
            their logits beside the rest of the batch.
        real_neurons: outputs that stand for classes; the others are superfluous (objective G).
        log_base: of binary inference.
        adapt_lr, adapt_steps: of gradient descent, on coefficients or on a mask; None for the adaptor's own.
        gamma: weight of the energy when a mask is recovered from the Hopfield network.
        momentum, weight_decay: of the optimiser that recovers it.
        unshared_labels: whether a batch whose task is inferred wrong counts as wrong as a whole.
    """

    data_to_repeat: int = 1
    real_neurons: int = 10
    log_base: float = 2
    adapt_lr: float | None = None
    adapt_steps: int = 10
    gamma: float = 1.5e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    unshared_labels: bool = False


def _first(model: nn.Module, options: InferenceOptions) -> int | None:
    """How many of the images that an adaptor gets decide on the task; None for all of them."""
    return options.data_to_repeat if multitask.has_batch_norm(model) else None


def _h(model: nn.Module, options: InferenceOptions) -> Objective:
    return of_first(entropy, _first(model, options))


def _g(model: nn.Module, options: InferenceOptions) -> Objective:
    return of_first(partial(superfluous, real_neurons=options.real_neurons), _first(model, options))


# The adaptors that --adaptor can name infer the task of batches; the others give it, or recover its mask.


def se_oneshot_entropy_minimization(model, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    return one_shot(model, tasks, images, _h(model, options))


def se_oneshot_g_minimization(model, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    return one_shot(model, tasks, images, _g(model, options))


def se_binary_entropy_minimization(model, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    return binary(model, tasks, images, _h(model, options), options.log_base)


def se_binary_g_minimization(model, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    return binary(model, tasks, images, _g(model, options), options.log_base)


def se_gradient_minimization(model, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    lr = options.adapt_lr or ALPHA_LR
    return gradient_descent(model, tasks, images, _h(model, options), lr, options.adapt_steps)


def se_be_adapt(model, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    return ensemble(model, tasks, images, entropies, _first(model, options))


def se_be_max_adapt(model, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    return ensemble(model, tasks, images, lambda logits: -logits.softmax(-1).amax(-1), _first(model, options))


def check_adaptor(adaptor: str, model: nn.Module) -> None:
    """See that the model can be tested so.

    Raises:
        UserError: its layers cannot what the adaptor needs.
    """
    if adaptor == RECOVERY:
        fits, need = multitask.can_recover(model), "masks in a Hopfield network: --model BNNet, --bn-type FastHopMaskBN"
    elif adaptor in OF_ANY_TASKS:
        fits, need = multitask.has_tasks(model), "a --conv-type with parameters for each task"
    else:
        fits = adaptor == "gt" or superposition.can_superpose(model)
        need = "a --conv-type that can be superposed, and no --individual-heads"
    if not fits:
        raise UserError(f"--adaptor {adaptor}: needs {need}, which this network has not; or say gt")


@dataclass
class TaskScore:
    """How one task was answered. Accuracies and shares are fractions.

    Attributes:
        given: accuracy with the task given; None for a task of which no mask was learned.
        adapted: accuracy when it was inferred, or its mask recovered; None without inference.
        inferred_right: the share of batches whose task was inferred right. A mask is recovered right that differs
            from the task's own in fewer places than from any other.
        inferred: for each task (mask, where tasks are hidden) that batches were taken for, how many were.
        steps: what recovery went through, a mapping a step.
    """

    task: int
    given: float | None
    adapted: float | None = None
    inferred_right: float | None = None
    inferred: list[dict[str, int]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)


def evaluate(
    model: nn.Module,
    data,
    tasks: Sequence[int],
    adaptor: str,
    options: InferenceOptions,
    progress: Callable[[Iterable], Iterable] = iter,
    mask_of: Callable[[int], int | None] = lambda task: task,
    candidates: Sequence[int] | None = None,
) -> list[TaskScore]:
    """Test every one of ``tasks`` on its validation data, with the task given and, unless ``gt``, inferred.

    The task is inferred once for each test batch. The accuracy with the task given is measured in the same pass.

    Args:
        data: a ``TaskDataset``: ``update_task`` and ``val_loader``.
        tasks: learned tasks.
        adaptor: a key of ``ADAPTORS``.
        progress: wraps the loop over tasks, to show it.
        mask_of: which of the model's tasks, if any, is each of ``tasks``.
        candidates: which of the model's tasks inference chooses among; None for ``tasks`` themselves.
    """
    candidates = tasks if candidates is None else candidates
    if adaptor == RECOVERY:
        return [_recover(model, data, task, candidates, options) for task in progress(tasks)]
    infer, scores, answered, waiting = ADAPTORS[adaptor], [], [], None
    if infer:
        images = None if multitask.has_batch_norm(model) else options.data_to_repeat
        waiting = _Waiting(images, lambda images: infer(model, candidates, images, options))

    def finish() -> None:
        if waiting and answered:
            inferred = waiting.inferred()
            for batches, part in zip(answered, inferred.split([len(b.sizes) for b in answered]), strict=True):
                batches.inferred = part
        scores.extend(_score(model, data, batches, options) for batches in answered)
        answered.clear()

    for task in progress(tasks):
        answered.append(_answer(model, data, task, mask_of(task), waiting))
        # Batches of many tasks go through the superposed network together, as many as memory allows.
        if waiting and waiting.full:
            finish()
    finish()
    return scores


class _Waiting:
    """The first images of batches that wait for their inference.

    They lie in one block: small tensors that each outlive a batch would keep the memory between them from being used
    again.

    Args:
        images: of each batch, this many at the most; None for all, and then not more wait than memory is meant for,
            however many batches a task has.
        infer: from the images of some batches of one size (batches, images, ...) to the task of each.
    """

    def __init__(self, images: int | None, infer: Callable[[Tensor], Tensor]):
        self.images, self.infer = images, infer
        self.lengths: list[int] = []
        self.block: Tensor | None = None
        self.known: list[Tensor] = []

    @property
    def full(self) -> bool:
        """Whether those that wait should not become more."""
        return bool(self.lengths) and len(self.lengths) * self.block[0].nbytes >= QUEUE_BYTES

    def add(self, x: Tensor, batches: int) -> bool:
        """Keep the first images of a batch x (images, ...), of a task that has so many ``batches``.

        Returns:
            Whether inference has begun, so that the layers of the model are set otherwise.
        """
        x, waiting, before = x[: self.images], len(self.lengths), self.block
        if before is None or len(x) > before.shape[1] or waiting == len(before):
            room = batches if self.images else 1
            self.block = x.new_empty(max(waiting, QUEUE_BYTES // x.nbytes) + room, *x.shape)
            if waiting:
                self.block[:waiting, : before.shape[1]] = before[:waiting]
        self.block[waiting, : len(x)] = x
        self.lengths.append(len(x))
        if self.images or not self.full:
            return False
        self._infer()
        return True

    def _infer(self) -> None:
        lengths, self.lengths = torch.tensor(self.lengths), []
        if (lengths == self.block.shape[1]).all():
            self.known.append(self.infer(self.block[: len(lengths)]).cpu())
            return
        inferred = torch.empty(len(lengths), dtype=torch.int64)
        for length in lengths.unique():
            rows = (lengths == length).nonzero().flatten()
            inferred[rows] = self.infer(self.block[rows.to(self.block.device), :length]).cpu()
        self.known.append(inferred)

    def inferred(self) -> Tensor:
        """The task of every batch since the last call, int64 (batches,) in host memory; none wait after it."""
        if self.lengths:
            self._infer()
        known, self.known = torch.cat(self.known), []
        return known


@dataclass
class _Batches:
    """The test batches of one task, and how they are answered when the task is given.

    Attributes:
        right: correct answers in each batch; zeros without a mask.
        sizes: images in each batch.
        inferred: int64 (batches,), in host memory.
    """

    task: int
    mask: int | None
    right: list[int]
    sizes: list[int]
    inferred: Tensor | None = None


@torch.no_grad()
def _answer(model: nn.Module, data, task: int, mask: int | None, waiting: _Waiting | None) -> _Batches:
    """Answer the test batches of ``task`` with its mask, and let them wait for inference."""
    data.update_task(task)
    if mask is not None:
        multitask.select_task(model, mask)
    model.eval()
    right, sizes = [], []
    for x, y in data.val_loader:
        answers = y.new_full(y.shape, -1) if mask is None else model(x).argmax(dim=1)
        right.append((answers == y).sum())
        sizes.append(len(y))
        if waiting and waiting.add(x, len(data.val_loader)) and mask is not None:
            multitask.select_task(model, mask)
    return _Batches(task, mask, torch.stack(right).tolist(), sizes)


@torch.no_grad()
def _score(model: nn.Module, data, batches: _Batches, options: InferenceOptions) -> TaskScore:
    right, total = list(batches.right), sum(batches.sizes)
    score = TaskScore(batches.task, given=None if batches.mask is None else sum(right) / total)
    if batches.inferred is None:
        return score
    taken = zip(*(part.tolist() for part in batches.inferred.unique(return_counts=True)), strict=True)
    score.inferred = [{"inferred": task, "batches": count} for task, count in taken]
    known = torch.tensor(-1 if batches.mask is None else batches.mask)
    wrong = (batches.inferred != known).nonzero().flatten().tolist()
    if batches.mask is not None:
        score.inferred_right = 1 - len(wrong) / len(batches.sizes)
    for index in wrong:
        right[index] = 0
    if wrong and not options.unshared_labels:
        # A shared label may still be right under another task's mask: these batches are answered again.
        data.update_task(batches.task)
        wrong_batches = set(wrong)
        for index, (x, y) in enumerate(data.val_loader):
            if index in wrong_batches:
                multitask.select_task(model, int(batches.inferred[index]))
                right[index] = int((model(x).argmax(dim=1) == y).sum())
    score.adapted = sum(right) / total
    return score


def _recover(model: nn.Module, data, task: int, tasks: Sequence[int], options: InferenceOptions) -> TaskScore:
    """How ``task`` is answered with its own mask, and with the one that is recovered from its test data.

    Recovery goes by the batches it meets, the first above all. Their order is drawn from the seed and the task, for
    a file may have its images in one that says something of them.
    """
    data.update_task(task)
    multitask.select_task(model, task)
    score = TaskScore(task, accuracy(model, data.val_loader))
    score.steps = hopfield.recover(
        model,
        data.val_loader.shuffled(),
        task,
        entropy,
        lr=options.adapt_lr or hopfield.LR,
        gamma=options.gamma,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    score.adapted = accuracy(model, data.val_loader)
    distances = {other: multitask.hamming_distance(model, other) for other in tasks}
    score.inferred_right = float(all(distances[task] < distances[other] for other in tasks if other != task))
    score.inferred = [{"inferred": min(distances, key=distances.get), "batches": 1}]
    return score


@torch.no_grad()
def accuracy(model: nn.Module, loader) -> float:
    """The share of right answers over the whole of ``loader``, as the model's layers are set."""
    model.eval()
    right = sum((model(x).argmax(dim=1) == y).sum() for x, y in loader)
    return int(right) / loader.num_images
