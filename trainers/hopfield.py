"""HopSupSup: a mask is recovered from a Hopfield network, whose size does not grow with the tasks (paper, 3.6)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models import multitask

LR = 500.0


def recover(
    model: nn.Module,
    loader,
    task: int,
    objective: Callable[[Tensor], Tensor],
    lr: float = LR,
    gamma: float = 1.5e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> list[dict[str, float]]:
    """Find the mask that explains unlabelled data, by one step of SGD on each batch of ``loader``.

    From the mean of the stored masks the scores ``S`` descend on ``(1 - t) objective + gamma t E``: first the data
    lead, then the Hopfield energy ``E = -½ zᵀΨz`` of ``z = 2M - 1``, summed over the layers, as ``t`` goes from 0 to 1
    over the batches; of a single batch it is ½. The model is left with the recovered mask.

    Args:
        task: the one that the data are of; only to measure how far away its mask is.
        objective: of logits (batch, outputs).

    Returns:
        For each step, and for the end: ``step`` (batches so far), ``hamming`` (places in which the mask differs from
        the task's own), ``objective`` and ``energy`` (not in the end).
    """
    scores = multitask.begin_recovery(model)
    optimizer = torch.optim.SGD(scores, lr=lr, momentum=momentum, weight_decay=weight_decay)
    model.eval()
    measured, last = [], len(loader) - 1  # looked at in the end, for a GPU is waited for then
    for step, (x, _) in enumerate(loader):
        t = step / last if last else 0.5
        value, energy = objective(model(x)), multitask.energy(model)
        measured.append((multitask.hamming_distance(model, task), value.detach(), energy.detach()))
        optimizer.zero_grad()
        ((1 - t) * value + gamma * t * energy).backward()
        optimizer.step()
    end = multitask.hamming_distance(model, task)
    multitask.end_recovery(model)
    hamming, *others = (torch.stack(column).tolist() for column in zip(*measured, strict=True))
    steps = [
        {"step": step, "hamming": places, "objective": value, "energy": energy}
        for step, (places, value, energy) in enumerate(zip(hamming, *others, strict=True))
    ]
    return [*steps, {"step": len(steps), "hamming": int(end)}]
