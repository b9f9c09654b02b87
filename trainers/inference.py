"""What task is a batch of? The ways to infer it that the paper has.

Each stands first in its obvious form, ``plain_...``: for one batch of images (images, channels, height, width), and by
autograd where there is a gradient. Then comes the form that runs, for many batches (batches, images, ...) at once,
with the same answers.

The model computes as if every learned mask had a coefficient ``alpha_i``, and the gradient of an objective with respect
to ``alpha`` says which mask explains the data. That gradient is ``∂L/∂alpha_i = ⟨∂L/∂W_eff, W ⊙ M^i⟩``, so one backward
pass for each batch through a single superposed network, then one product with the bit-packed masks, gives it for all
masks and batches.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models import multitask, superposition
from models.masks import tiles
from trainers import screening

Objective = Callable[[Tensor], Tensor]

BATCHES_BYTES = 256 * 2**20  # what layers see and give for batches that go through together, with the gradients
BATCHES = 4096  # that go through together at the most; more would share no more of what is unpacked
IMAGE_BYTES = 16 * 2**20  # images that go through the network of one task together
ALPHA_LR, ALPHA_STEPS = 0.1, 10  # of gradient descent on the coefficients


def entropies(logits: Tensor) -> Tensor:
    """The entropy of the softmax of each row of logits (..., outputs), in nats: (...)."""
    log_p = logits.log_softmax(dim=-1)
    finite = log_p.masked_fill(log_p == -torch.inf, 0)  # of outputs that a network closes: 0 log 0 is 0
    return -(log_p.exp() * finite).sum(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """H: the mean entropy of the softmax of logits (batch, outputs), in nats (paper, equation 3)."""
    return entropies(logits).mean()


def top_doubts(logits: Tensor) -> Tensor:
    """Minus the largest probability of each row of logits (..., outputs): (...)."""
    return -logits.softmax(-1).amax(-1)


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


def plain_gradient(model: nn.Module, tasks: Sequence[int], alphas: Tensor, x: Tensor, objective: Objective) -> Tensor:
    """The gradient (k,) of ``objective`` with respect to the coefficients alphas (k,) of ``tasks``, for a batch x.

    The network computes with ``W_eff = Σ_i alphas_i W_i`` in every layer (paper, equation 2).
    """
    superposition.superpose(model, tasks, alphas)
    each = [superposition.superposed_weights(model, [task], torch.ones(1, device=x.device)) for task in tasks]
    alphas = alphas.clone().requires_grad_()
    mixed = {name: sum(a * weights[name] for a, weights in zip(alphas, each, strict=True)) for name in each[0]}
    return torch.autograd.grad(objective(functional_call(model, mixed, (x,))), alphas)[0]


def alpha_gradients(
    model: nn.Module,
    tasks: Sequence[int],
    alphas: Tensor,
    images: Tensor,
    objective: Objective,
    tile_bytes: int = BATCHES_BYTES,
    *,
    layers: int | None = None,
) -> Tensor:
    """``plain_gradient`` of many batches, each by itself.

    ``∂L/∂W_eff`` itself is never whole in memory: it is the product of what a layer saw and of the gradient of what it
    gave, made a few units at a time.

    Args:
        tasks: k learned tasks.
        alphas: the coefficients, (k,) when all batches share them, or (batches, k).
        images: (batches, images, channels, height, width).
        tile_bytes: how much memory the batches under way may take, about.
        layers: the derivative is that through the masks of so many layers, the first; None for all.

    Returns:
        (batches, k). The modes of the model's layers are left superposed.
    """
    if not superposition.is_factored(model):
        return _alpha_gradients_whole(model, tasks, alphas, images, objective, tile_bytes, layers)
    gradients = torch.empty(len(images), len(tasks), device=images.device)
    for members, inputs, output_gradients in _backward(model, tasks, alphas, images, objective, tile_bytes, layers):
        gradients[members] = superposition.coefficient_gradients(model, tasks, inputs, output_gradients)
    return gradients


def _alpha_gradients_whole(
    model: nn.Module,
    tasks: Sequence[int],
    alphas: Tensor,
    images: Tensor,
    objective: Objective,
    tile_bytes: int,
    layers: int | None,
) -> Tensor:
    """``alpha_gradients`` by a backward pass for each batch by itself, to the superposed weights: for any network."""
    shared, parts = alphas.ndim == 1, []
    for tile in tiles(len(images), max(1, tile_bytes // (4 * superposition.superposed_size(model)))):
        found: list[tuple[Tensor, ...]] = []
        for batch in range(tile.start, tile.stop):
            if not shared or batch == 0:
                superposition.superpose(model, tasks, alphas if shared else alphas[batch])
            with superposition.as_parameters(model, layers) as weights, torch.enable_grad():
                found.append(_gradients(model, objective(model(images[batch])), list(weights.values())))
        stacked = {name: torch.stack(each) for name, each in zip(weights, zip(*found, strict=True), strict=True)}
        parts.append(superposition.whole_coefficient_gradients(model, tasks, stacked))
    return torch.cat(parts)


def _gradients(model: nn.Module, loss: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``∂loss/∂weights``, zeros for one that the loss does not depend on; parameters keep the gradients that they have.

    By ``backward``, for a user's blocks may call it inside, as reversible ones do: what they add to the gradients there
    ``autograd.grad`` does not see.

    Args:
        weights: some of the model's parameters.
    """
    before = {parameter: parameter.grad for parameter in model.parameters() if parameter.requires_grad}
    for parameter in before:
        parameter.grad = None
    try:
        loss.backward()
        return tuple(torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights)
    finally:
        for parameter, gradient in before.items():
            parameter.grad = gradient


def _backward(
    model: nn.Module,
    tasks: Sequence[int],
    alphas: Tensor,
    images: Tensor,
    objective: Objective,
    tile_bytes: int,
    layers: int | None,
) -> Iterator[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """Forward and backward passes through the superposed network, some batches at a time.

    Yields:
        Which batches, int64 (b,), and for them what the layers saw and ``∂L/∂outputs``, by the names of the probes.
    """
    if alphas.ndim == 1:
        rows, row_of = alphas[None], torch.zeros(len(images), dtype=torch.int64, device=images.device)
    else:
        rows, row_of = alphas.unique(dim=0, return_inverse=True)
    order = row_of.argsort(stable=True)  # batches with the same coefficients go through the same network, together
    weights = {0: superposition.superpose(model, tasks, rows[0])}  # by row
    with superposition.probes(model, images[0], layers) as probes:

        def loss(probes: dict[str, Tensor], weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logits = functional_call(model, probes | weights, (x,))
            return objective(logits), superposition.seen(model)

        backward = torch.func.vmap(torch.func.grad(loss, has_aux=True), in_dims=(None, None, 0))
        batch_bytes = 4 * superposition.probed_size(model)
        if len(rows) > 1:  # in the worst case each batch has a superposition of its own
            batch_bytes += 4 * superposition.superposed_size(model)
        for tile in tiles(len(images), max(1, min(BATCHES, tile_bytes // batch_bytes))):
            members = order[tile]
            here = [0] if len(rows) == 1 else row_of[members].unique_consecutive().tolist()
            weights = {row: weights[row] for row in here if row in weights}
            if missing := [row for row in here if row not in weights]:
                made = superposition.superposed_weights(model, tasks, rows[multitask.places(missing, rows.device)])
                weights |= {row: {name: w[place] for name, w in made.items()} for place, row in enumerate(missing)}
            of_row = [members] if len(here) == 1 else [members[row_of[members] == row] for row in here]
            parts = [backward(probes, weights[row], images[own]) for row, own in zip(here, of_row, strict=True)]
            output_gradients, inputs = (
                {name: torch.cat([p[i][name] for p in parts]) for name in probes} for i in (0, 1)
            )
            yield members, inputs, output_gradients


def plain_one_shot(model: nn.Module, tasks: Sequence[int], x: Tensor, objective: Objective) -> int:
    """One-shot inference: the task whose coefficient has the smallest derivative (paper, equation 4)."""
    gradient = plain_gradient(model, tasks, uniform(len(tasks), x.device), x, objective)
    return tasks[int(gradient.argmin())]


def one_shot(
    model: nn.Module,
    tasks: Sequence[int],
    images: Tensor,
    objective: Objective,
    *,
    infer: str = "exact",
    layers: int | None = None,
) -> Tensor:
    """``plain_one_shot`` of many batches.

    Args:
        images: (batches, images, channels, height, width).
        infer: ``exact``, ``screened`` or ``auto``; see ``screening``.
        layers: as in ``alpha_gradients``.

    Returns:
        For each batch the inferred one of ``tasks``, int64 (batches,).
    """
    alphas = uniform(len(tasks), images.device)
    if not superposition.is_factored(model):
        best = alpha_gradients(model, tasks, alphas, images, objective, layers=layers).argmin(dim=1)
        return torch.tensor(tasks, device=images.device)[best]
    best = torch.empty(len(images), dtype=torch.int64, device=images.device)
    smallest = (screening if screening.screens(model, tasks, infer) else superposition).smallest_derivatives
    for members, inputs, output_gradients in _backward(model, tasks, alphas, images, objective, BATCHES_BYTES, layers):
        best[members] = smallest(model, tasks, inputs, output_gradients)
    return torch.tensor(tasks, device=images.device)[best]


def plain_binary(model: nn.Module, tasks: Sequence[int], x: Tensor, objective: Objective, log_base: float = 2) -> int:
    """Binary inference: the better ``1 / log_base`` of the masks stay, until one is left (paper, algorithm 1).

    Of masks with equal derivatives the first ones stay, as in the other ways.
    """
    while len(tasks) > 1:
        gradient = plain_gradient(model, tasks, uniform(len(tasks), x.device), x, objective)
        left = min(len(tasks) - 1, math.ceil(len(tasks) / log_base))  # always one fewer at least, so that it ends
        tasks = [tasks[index] for index in sorted(gradient.argsort(stable=True)[:left].tolist())]
    return tasks[0]


def binary(
    model: nn.Module,
    tasks: Sequence[int],
    images: Tensor,
    objective: Objective,
    log_base: float = 2,
    *,
    layers: int | None = None,
) -> Tensor:
    """``plain_binary`` of many batches, each with masks of its own that stay.

    Args:
        images: (batches, images, channels, height, width).
        log_base: of the logarithm that gives the number of rounds; 2 keeps the masks at or below the median.
        layers: as in ``alpha_gradients``.

    Returns:
        For each batch the inferred one of ``tasks``, int64 (batches,).
    """
    alive = torch.ones(len(images), len(tasks), dtype=torch.bool, device=images.device)
    left = len(tasks)
    while left > 1:
        gradients = alpha_gradients(model, tasks, alive.float() / left, images, objective, layers=layers)
        left = min(left - 1, math.ceil(left / log_base))  # always one fewer at least, so that it ends
        best = gradients.masked_fill(~alive, torch.inf).argsort(dim=1, stable=True)[:, :left]
        alive = torch.zeros_like(alive).scatter_(1, best, True)
    return torch.tensor(tasks, device=images.device)[alive.int().argmax(dim=1)]


def plain_descent(model: nn.Module, tasks: Sequence[int], x: Tensor, objective: Objective) -> int:
    """Gradient descent on the coefficients (paper, equation 3): the task of the largest in the end.

    After each step the coefficients are renormalised: negative ones become zero, and their sum is made one again.
    """
    alphas = uniform(len(tasks), x.device)
    for _ in range(ALPHA_STEPS):
        gradient = plain_gradient(model, tasks, alphas, x, objective)
        # Only what changes the coefficients against each other counts: their sum is one before the step and after.
        alphas = (alphas - ALPHA_LR * (gradient - gradient.mean())).clamp(min=0)
        alphas = alphas / alphas.sum()
    return tasks[int(alphas.argmax())]


def gradient_descent(
    model: nn.Module,
    tasks: Sequence[int],
    images: Tensor,
    objective: Objective,
    lr: float = ALPHA_LR,
    steps: int = ALPHA_STEPS,
) -> Tensor:
    """``plain_descent`` of many batches.

    Args:
        images: (batches, images, channels, height, width).

    Returns:
        For each batch the inferred one of ``tasks``, int64 (batches,).
    """
    alphas = uniform(len(tasks), images.device).repeat(len(images), 1)
    for step in range(steps):
        shared = alphas[0] if step == 0 else alphas  # the first superposition is the same for all batches
        gradients = alpha_gradients(model, tasks, shared, images, objective)
        alphas = alphas - lr * (gradients - gradients.mean(dim=1, keepdim=True))
        alphas = alphas.clamp(min=0)
        alphas = alphas / alphas.sum(dim=1, keepdim=True)
    return torch.tensor(tasks, device=images.device)[alphas.argmax(dim=1)]


@torch.no_grad()
def plain_ensemble(model: nn.Module, tasks: Sequence[int], x: Tensor, doubt: Callable[[Tensor], Tensor]) -> int:
    """ABatchE (paper, section 4.2): every task answers every image; the one that is in least doubt is chosen.

    Args:
        doubt: of logits (..., outputs), by image (...).
    """
    doubts = []
    for task in tasks:
        multitask.select_task(model, task)
        doubts.append(doubt(model(x)).mean().item())
    return tasks[doubts.index(min(doubts))]


@torch.no_grad()
def ensemble(
    model: nn.Module,
    tasks: Sequence[int],
    images: Tensor,
    doubt: Callable[[Tensor], Tensor],
    first: int | None = None,
) -> Tensor:
    """``plain_ensemble`` of many batches.

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
