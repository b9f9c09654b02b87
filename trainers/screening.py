"""One-shot inference among many masks: all are screened by a few units of the layers, few are computed in full.

The derivative ``⟨∂L/∂W_eff, W ⊙ M^i⟩`` is a sum over the units of all layers. Its mean over the masks is known for
every unit from the superposition itself, ``⟨∂L/∂W_eff, W_eff⟩``, and so is its spread, were the bits independent. The
units of every layer that spread most are summed for all masks; the others stand with their mean.

The margin rule: a mask is given up when its screened derivative is above the best mask's exact one by more than
what was not summed can make up for, but for a probability of ``e^-RISK``, 3.7 in a million, by Bernstein's inequality
for bits that are independent. That is a proven bound for masks drawn so, and a rule for learned ones, whose spread is
measured on what was summed. Where many masks stay, more units are summed, in the end all whose gradient is not
zero: that is the exact form, and so is what decides between the masks that stay. Derivatives closer than ``TIED`` of
``Σ|∂L/∂W_eff ⊙ W|``, which is what sums in float32 may be off, are ties; of them the first task is the answer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import multitask, superposition
from models.masked import Masked
from models.masks import tiles
from models.superposition import factors

SCREENED = 500  # masks from which on screening takes less time than the exact form
SHARES = (1 / 8, 1 / 3)  # of each layer's units that are summed for all masks, in turn, while many masks stay
RISK = 12.5  # minus the logarithm of the probability that a mask is given up that is the answer
TIED = 2**-22
SCREENED_BYTES = 2**30  # of derivatives of all masks at a time
DECIDED_BYTES = 2**26  # of those that are looked at together


def can_screen(model: nn.Module) -> bool:
    """Whether every layer that is superposed has masks, whose bits are summed by units."""
    layers = multitask.named(model, superposition.SuperposedModule)
    return superposition.is_factored(model) and all(isinstance(layer, Masked) for _, layer in layers)


def screens(model: nn.Module, tasks: Sequence[int], infer: str) -> bool:
    """Whether to screen, as ``infer`` wishes: ``exact``, ``screened``, or ``auto``, from ``SCREENED`` masks on."""
    return infer != "exact" and can_screen(model) and (infer == "screened" or len(tasks) >= SCREENED)


def smallest_derivatives(
    model: nn.Module, tasks: Sequence[int], inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]
) -> Tensor:
    """``superposition.smallest_derivatives`` by screening; the model is superposed with the same alpha for all tasks.

    Returns:
        The index of one of ``tasks`` for each of ``b`` losses, int64 (b,).
    """
    losses = len(next(iter(inputs.values())))
    best = torch.zeros(losses, dtype=torch.int64, device=next(iter(inputs.values())).device)
    if len(tasks) > 1:
        for some in tiles(losses, max(1, SCREENED_BYTES // (4 * len(tasks)))):
            parts = ({name: value[some] for name, value in part.items()} for part in (inputs, output_gradients))
            best[some] = _smallest(model, tasks, *parts)
    return best


@torch.no_grad()
def _smallest(
    model: nn.Module, tasks: Sequence[int], inputs: dict[str, Tensor], gradients: dict[str, Tensor]
) -> Tensor:
    layers = list(factors(model, inputs, gradients))
    mean, spread, largest = (
        torch.cat(part, dim=1)
        for part in zip(*(layer.unit_moments(x, gradient) for layer, x, gradient in layers), strict=True)
    )  # (b, units of all layers)
    tie = TIED * superposition.products_size(model, inputs, gradients)
    left = torch.arange(len(mean), device=mean.device)  # losses that are not decided
    best, summed = torch.zeros_like(left), torch.zeros_like(spread, dtype=torch.bool)
    derivatives = mean.new_zeros(len(mean), len(tasks))  # of the units that are summed
    few = 16 + len(tasks) // 500  # masks that take about the time of more units
    counts = [len(layer.weight) for layer, _, _ in layers]
    # Each layer's units by their spread, as shares of the layer: what a mask has learned may lie in any of them.
    ranks = [part.argsort(dim=1, descending=True, stable=True).argsort(dim=1) for part in spread.split(counts, dim=1)]
    place = torch.cat([rank / count for rank, count in zip(ranks, counts, strict=True)], dim=1)
    alive = torch.cat([(gradient != 0).any(1) for _, _, gradient in layers], dim=1)
    for share in (*SHARES, 1):
        wanted = alive[left] & (place[left] < share)
        more = torch.zeros_like(summed)
        more[left] = wanted & ~summed[left]
        summed |= more
        parts = more.split(counts, dim=1)
        for (layer, x, gradient), chosen in zip(layers, parts, strict=True):
            layer.add_unit_gradients(tasks, x, gradient, chosen, derivatives)
        if share == 1:
            for loss in left.tolist():
                best[loss] = (derivatives[loss] <= derivatives[loss].min() + tie[loss]).int().argmax()
            break
        rest, known = (spread * ~summed).sum(1), (spread * summed).sum(1)
        away, single = (mean * ~summed).sum(1), (largest * ~summed).amax(1)
        # Bits of one mask are not quite independent: by how much less, what is summed tells.
        undecided = []
        for some in left.split(max(1, DECIDED_BYTES // (4 * len(tasks)))):
            screened = derivatives[some] + away[some, None]
            wider = (screened.var(1, correction=0) / known[some]).nan_to_num(1, 1).clamp(min=1)
            first = screened.argmin(1)
            exact = _exact(model, tasks, inputs, gradients, some, first)
            limit = exact + _margin(wider * rest[some], single[some]) + tie[some]
            stay = screened <= limit[:, None]
            clear = stay.sum(1) <= few
            undecided.append(some[~clear])
            stay[~clear] = False
            row, mask = stay.nonzero().unbind(1)
            found = _exact(model, tasks, inputs, gradients, some[row], mask)
            for index in clear.nonzero().flatten().tolist():
                these = row == index
                values = torch.cat([exact[index, None], found[these]])
                among = torch.cat([first[index, None], mask[these]])
                best[some[index]] = among[values <= values.min() + tie[some[index]]].min()
        left = torch.cat(undecided)
        if not len(left):
            break
    return best


def _margin(variance: Tensor, single: Tensor) -> Tensor:
    """How far below its mean a sum of independent bits may be (Bernstein), the largest of which adds ``single``."""
    tail = single * RISK / 3
    return tail + (tail.square() + 2 * RISK * variance).sqrt()


def _exact(
    model: nn.Module,
    tasks: Sequence[int],
    inputs: dict[str, Tensor],
    gradients: dict[str, Tensor],
    losses: Tensor,
    masks: Tensor,
) -> Tensor:
    """The exact derivatives (pairs,) of pairs of a loss (pairs,) and the index of a mask (pairs,)."""
    found = torch.empty(len(losses), device=losses.device)
    order = masks.argsort(stable=True)
    which, counts = masks[order].unique_consecutive(return_counts=True)
    for mask, pairs in zip(which.tolist(), order.split(counts.tolist()), strict=True):
        rows = losses[pairs]
        parts = ({name: value[rows] for name, value in part.items()} for part in (inputs, gradients))
        found[pairs] = superposition.coefficient_gradients(model, [tasks[mask]], *parts)[:, 0]
    return found
