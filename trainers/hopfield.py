"""HopSupSup: a mask is recovered from a Hopfield network, whose size does not grow with the tasks (paper, 3.6)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import hopfield

LR = 500.0


@dataclass(frozen=True)
class _Try:
    """One way to a mask: where it ended in each layer, its steps, and the mean of the objective over all data."""

    masks: list[Tensor]
    steps: list[dict[str, float]]
    objective: float


def recover(
    model: nn.Module,
    loader,
    task: int,
    objective: Callable[[Tensor], Tensor],
    lr: float = LR,
    gamma: float = 1.5e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    tries: int = 1,
) -> list[dict[str, float]]:
    """Find the mask that explains unlabelled data, by one step of SGD on each batch of ``loader``.

    From the mean of the stored masks the scores ``S`` descend on ``(1 - t) objective + gamma t E``: first the data
    lead, then the Hopfield energy ``E = -½ zᵀΨz`` of ``z = 2M - 1``, summed over the layers, as ``t`` goes from 0 to 1
    over the batches; of a single batch it is ½. The model is left with the recovered mask.

    That may be another task's. With several ``tries`` (the paper has one) the next one starts from the mean without
    the masks found so far, until one is found again; kept is the mask of which the objective, over all data, is the
    smallest.

    Args:
        task: the one that the data are of; only to measure how far away its mask is.
        objective: of logits (batch, outputs).
        loader: the same batches each time it is gone through.

    Returns:
        For each step of the try that is kept, and for its end: ``step`` (batches so far), ``hamming`` (places in which
        the mask differs from the task's own), ``objective`` and ``energy`` (not in the end).
    """
    found: list[_Try] = []
    for _ in range(tries):
        scores = hopfield.begin_recovery(model, [one.masks for one in found])
        optimizer = torch.optim.SGD(scores, lr=lr, momentum=momentum, weight_decay=weight_decay)
        steps = _descend(model, loader, task, objective, gamma, optimizer)
        masks = hopfield.end_recovery(model)
        if any(all(map(torch.equal, masks, one.masks)) for one in found):
            break  # the next start would be this one again
        found.append(_Try(masks, steps, _mean(model, loader, objective) if tries > 1 else 0.0))
    best = min(found, key=lambda one: math.inf if math.isnan(one.objective) else one.objective)
    hopfield.use_recovered(model, best.masks)
    return best.steps


@torch.no_grad()
def _mean(model: nn.Module, loader, objective: Callable[[Tensor], Tensor]) -> float:
    """The mean of the objective over all images, as the model's layers are set."""
    values = [(objective(model(x)), len(x)) for x, _ in loader]
    return float(sum(value * images for value, images in values)) / sum(images for _, images in values)


def _descend(
    model: nn.Module,
    loader,
    task: int,
    objective: Callable[[Tensor], Tensor],
    gamma: float,
    optimizer: torch.optim.Optimizer,
) -> list[dict[str, float]]:
    """One way from the scores' start to a mask; the steps, as ``recover`` returns them."""
    model.eval()
    measured, last = [], len(loader) - 1  # looked at in the end, for a GPU is waited for then
    for step, (x, _) in enumerate(loader):
        t = step / last if last else 0.5
        value, energy = objective(model(x)), hopfield.energy(model)
        measured.append((hopfield.hamming_distance(model, task), value.detach(), energy.detach()))
        optimizer.zero_grad()
        ((1 - t) * value + gamma * t * energy).backward()
        optimizer.step()
    end = hopfield.hamming_distance(model, task)
    hamming, *others = (torch.stack(column).tolist() for column in zip(*measured, strict=True))
    steps = [
        {"step": step, "hamming": places, "objective": value, "energy": energy}
        for step, (places, value, energy) in enumerate(zip(hamming, *others, strict=True))
    ]
    return [*steps, {"step": len(steps), "hamming": int(end)}]
