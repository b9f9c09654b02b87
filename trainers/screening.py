"""One-shot inference among many masks: all are screened by a few units of the layers, few are computed in full.

The derivative ``⟨∂L/∂W_eff, W ⊙ M^i⟩`` is a sum over the units of all layers. Its mean over the masks is known for
every unit from the superposition itself, ``⟨∂L/∂W_eff, W_eff⟩``, and so is its spread, were the bits independent. The
units of the first layer that spread most are summed for all masks, for what masks have learned of their images lies
there; the other units stand with their mean. Then the exact derivatives of a few masks are taken, and they decide,
unless too many others could still win: then more units are summed, in the end all whose gradient is not zero.

A mask is given up if two things hold. Its screened derivative leads the mean of the masks by less than half of what the
best one does. And it is above the best exact one by more than the units that were not summed can make up for, but for
a probability of ``e^-RISK``, 3.7 in a million, by Bernstein's inequality for bits that are independent; by how much
less than that they are so is measured on what was summed.
For masks that have nothing to do with the data that is a bound; for the mask that explains them it is a rule, which
fails where the units that were summed say nothing of a mask that is the best by all others, while another mask is
nearly as good. ``docs/speed.md`` has how often that was seen.

Derivatives closer than ``TIED`` of ``Σ|∂L/∂W_eff ⊙ W|``, which is what sums in float32 may be off, are ties; of them
the first task is the answer.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models import multitask, superposition
from models.masked import Masked
from models.masks import tiles
from models.superposition import factors

SCREENED = 100  # masks from which on ``auto`` screens; at 250 that is faster, below nobody has measured it
# Shares of the first layer's units and of the other layers' that are summed for all masks while too many could win.
ROUNDS = ((1 / 16, 0), (1 / 5, 0), (1, 1))
LEAST = 8  # units of the first layer
FEW = 16  # masks whose exact derivatives take no more time than more units, and one more for every 500
RISK = 12.5  # minus the logarithm of the probability that a mask is given up that is the answer
TIED = 2**-22
SCREENED_BYTES = 2**29  # of derivatives of all masks at a time
DECIDED_BYTES = 2**26  # of those that are looked at together

Factors = Sequence[tuple[Masked, Tensor, Tensor]]  # layers, what they saw, and the gradients of what they gave


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
            here = [{name: value[some] for name, value in part.items()} for part in (inputs, output_gradients)]
            tie = TIED * superposition.products_size(model, *here)
            best[some] = _smallest(tasks, list(factors(model, *here)), tie)
    return best


@torch.no_grad()
def _smallest(tasks: Sequence[int], layers: Factors, tie: Tensor) -> Tensor:
    moments = [layer.unit_moments(x, gradient) for layer, x, gradient in layers]
    mean, spread, largest = (torch.cat(part, dim=1) for part in zip(*moments, strict=True))  # (b, units of all layers)
    counts = [len(layer.weight) for layer, _, _ in layers]
    left = torch.arange(len(mean), device=mean.device)  # losses that are not decided
    best, summed = torch.zeros_like(left), torch.zeros_like(spread, dtype=torch.bool)
    derivatives = mean.new_zeros(len(mean), len(tasks))  # of the units that are summed
    for number, wanted in enumerate(_rounds(layers, [spread for _, spread, _ in moments]), start=1):
        more = torch.zeros_like(summed)
        more[left] = wanted[left] & ~summed[left]
        summed |= more
        for (layer, x, gradient), chosen in zip(layers, more.split(counts, dim=1), strict=True):
            layer.add_unit_gradients(tasks, x, gradient, chosen, derivatives)
        parts = left.split(max(1, DECIDED_BYTES // (4 * len(tasks))))
        if number == len(ROUNDS):  # what is summed is exact
            for some in parts:
                within = derivatives[some] <= derivatives[some].amin(1, keepdim=True) + tie[some, None]
                best[some] = within.int().argmax(1)
            break
        rest, known = (spread * ~summed).sum(1), (spread * summed).sum(1)
        away, single = (mean * ~summed).sum(1), (largest * ~summed).amax(1)
        undecided = []
        for some in parts:
            screened = derivatives[some] + away[some, None]
            # Bits of one mask are not quite independent: by how much less, what is summed tells.
            wider = (screened.var(1, correction=0) / known[some]).nan_to_num(1, 1).clamp(min=1)
            margin = _margin(wider * rest[some], single[some])
            here = [(layer, x[some], gradient[some]) for layer, x, gradient in layers]
            best[some], clear = _decide(tasks, here, screened, margin, tie[some])
            undecided.append(some[~clear])
        left = torch.cat(undecided)
        if not len(left):
            break
    return best


def _rounds(layers: Factors, spreads: Sequence[Tensor]) -> Iterator[Tensor]:
    """Which units of all layers are summed in each round, bool (b, units), from their spreads (b, out) by layer."""
    alive = torch.cat([(gradient != 0).any(1) for _, _, gradient in layers], dim=1)
    ranks = [spread.argsort(dim=1, descending=True, stable=True).argsort(dim=1) for spread in spreads]
    for first, others in ROUNDS:
        most = [max(LEAST, first * ranks[0].shape[1]), *(others * rank.shape[1] for rank in ranks[1:])]
        yield alive & torch.cat([rank < count for rank, count in zip(ranks, most, strict=True)], dim=1)


def _decide(
    tasks: Sequence[int], layers: Factors, screened: Tensor, margin: Tensor, tie: Tensor
) -> tuple[Tensor, Tensor]:
    """The best mask of each loss as far as screened derivatives (b, k) tell, int64 (b,), and whether they do, bool.

    Args:
        margin: by how much less than a screened derivative the exact one may be, (b,).
        tie: by how little derivatives may differ that are equal, (b,).
    """
    few = FEW + len(tasks) // 500
    lead = screened.mean(1, keepdim=True) - screened
    stay = lead >= lead.amax(1, keepdim=True) / 2
    clear = stay.sum(1) <= few
    row, mask = (stay & clear[:, None]).nonzero().unbind(1)
    found = _exact(tasks, layers, row, mask)
    limit = torch.full_like(tie, torch.inf).scatter_reduce(0, row, found, "amin") + margin + tie
    stay = (screened <= limit[:, None]) & ~stay
    clear &= (stay.sum(1) <= few) & limit.isfinite()
    more_row, more_mask = (stay & clear[:, None]).nonzero().unbind(1)
    found = torch.cat([found, _exact(tasks, layers, more_row, more_mask)])
    row, mask = torch.cat([row, more_row]), torch.cat([mask, more_mask])
    least = torch.full_like(tie, torch.inf).scatter_reduce(0, row, found, "amin")
    tied = found <= (least + tie)[row]
    best = torch.full((len(tie),), len(tasks), device=row.device)
    return best.scatter_reduce(0, row[tied], mask[tied], "amin"), clear


def _margin(variance: Tensor, single: Tensor) -> Tensor:
    """How far below its mean a sum of independent bits may be (Bernstein), the largest of which adds ``single``."""
    tail = single * RISK / 3
    return tail + (tail.square() + 2 * RISK * variance).sqrt()


def _exact(tasks: Sequence[int], layers: Factors, losses: Tensor, masks: Tensor) -> Tensor:
    """The exact derivatives (pairs,) of pairs of a loss (pairs,) and the index of a mask (pairs,)."""
    found = torch.zeros(len(losses), device=losses.device)
    order = masks.argsort(stable=True)
    which, counts = masks[order].unique_consecutive(return_counts=True)
    for mask, pairs in zip(which.tolist(), order.split(counts.tolist()), strict=True):
        rows = losses[pairs]
        for layer, x, gradient in layers:
            found[pairs] += layer.coefficient_gradients([tasks[mask]], x[rows], gradient[rows])[:, 0]
    return found
