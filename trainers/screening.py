"""One-shot inference among many masks: all are screened by a few units of the layers, few are computed in full.

The derivative ``⟨∂L/∂W_eff, W ⊙ M^i⟩`` is a sum over the units of all layers. Its mean over the masks is known for
every unit from the superposition itself, ``⟨∂L/∂W_eff, W_eff⟩``, and so is its spread, were the bits independent. The
units of the first layer that spread most are summed for all masks, for what masks have learned of their images lies
there; the other units stand with their mean. Losses take theirs from among the units that matter to most, so that many
share what is read of a unit, and two of them share a float32, as whole numbers: these sums are a little off. Then the
exact derivatives of a few masks are taken, and they decide, unless too many others could still win: then more units
are summed, in the end, and not rounded, all whose gradient is not zero.

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

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models import multitask, superposition
from models.masked import Masked
from models.masks import tiles
from models.superposition import factors

SCREENED = 100  # masks from which on ``auto`` screens: 1.9 times as fast at 100, 0.7 times at 50
# Shares of the first layer's units and of the other layers' that are summed for all masks while too many could win.
ROUNDS = ((1 / 20, 0), (1 / 6, 0), (1, 1))
LEAST = 8  # units of the first layer
LEADS = 0.5  # of the largest lead, from which on a mask is not given up
FEW = 16  # masks whose exact derivatives take no more time than more units, and one more for every 500
COMMON = 6  # units from among which one is taken
OFTEN = 8  # losses from which on a mask is unpacked for all of them, rather than what a loss needs of its masks
RISK = 12.5  # minus the logarithm of the probability that a mask is given up that is the answer
TIED = 2**-22
SCREENED_BYTES = 2**28  # of derivatives of all masks at a time
DECIDED_BYTES = 2**26  # of those that are looked at together

Factors = Sequence[tuple[Masked, Tensor, Tensor]]  # layers, what they saw, and the gradients of what they gave


def can_screen(model: nn.Module) -> bool:
    """Whether every layer that is superposed has masks, whose bits are summed by units."""
    layers = multitask.named(model, superposition.SuperposedModule)
    return superposition.is_factored(model) and all(isinstance(layer, Masked) for _, layer in layers)


def screens(model: nn.Module, tasks: Sequence[int], infer: str) -> bool:
    """Whether to screen, as ``infer`` wishes: ``exact``, ``screened``, or ``auto``, from ``SCREENED`` masks on.

    By ``auto`` on processors alone: a GPU would be given a unit at a time, ten times the calls of all masks in full.
    """
    if infer == "exact" or not can_screen(model):
        return False
    on_processor = all(layer.packed.device.type == "cpu" for _, layer in multitask.named(model, Masked))
    return infer == "screened" or (on_processor and len(tasks) >= SCREENED)


def smallest_derivatives(
    model: nn.Module, tasks: Sequence[int], inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]
) -> Tensor:
    """``superposition.smallest_derivatives`` by screening; the model is superposed with the same alpha for all tasks.

    Returns:
        The index of one of ``tasks`` for each of ``b`` losses, int64 (b,).
    """
    losses = len(next(iter(inputs.values())))
    left = torch.arange(losses, device=next(iter(inputs.values())).device)  # that are not decided
    best = torch.zeros_like(left)
    for shares, (after, _) in zip(ROUNDS, (*ROUNDS[1:], (1, 1)), strict=True) if len(tasks) > 1 else ():
        # The fewer are left, the less they share of the next round, and the more masks it pays to do without it.
        few = max(FEW + len(tasks) // 500, int(2 * after * len(tasks) / len(left)))
        undecided = []
        for some in left.split(max(1, SCREENED_BYTES // (4 * len(tasks)))):
            here = [{name: value[some] for name, value in part.items()} for part in (inputs, output_gradients)]
            tie = TIED * superposition.products_size(model, *here)
            best[some], clear = _round(tasks, list(factors(model, *here)), tie, shares, few)
            undecided.append(some[~clear])
        left = torch.cat(undecided)
        if not len(left):
            break
    return best


@torch.no_grad()
def _round(
    tasks: Sequence[int], layers: Factors, tie: Tensor, shares: tuple[float, float], few: int
) -> tuple[Tensor, Tensor]:
    """The best mask of each loss, int64 (b,), and whether that is decided, bool (b,), by a share of the units.

    Args:
        tie: by how little derivatives may differ that are equal, (b,).
        shares: of the first layer's units and of the others' that are summed for all masks.
        few: masks of a loss that are computed in full if they could win; if there may be more it is not decided.
    """
    last = shares == ROUNDS[-1]
    moments = [layer.unit_moments(x, gradient) for layer, x, gradient in layers]
    chosen = _chosen(layers, [spread for _, spread, _ in moments], shares)
    derivatives, rounded = tie.new_zeros(len(tie), len(tasks)), torch.zeros_like(tie)
    for (layer, x, gradient), units in zip(layers, chosen, strict=True):
        rounded += layer.add_unit_gradients(tasks, x, gradient, units, derivatives, coarse=not last)
    summed = torch.cat(chosen, dim=1)
    mean, spread, largest = (torch.cat(part, dim=1) for part in zip(*moments, strict=True))  # (b, units of all layers)
    rest, known = (spread * ~summed).sum(1) + rounded, (spread * summed).sum(1)
    single = (largest * ~summed).amax(1)
    best, clear = torch.empty_like(tie, dtype=torch.int64), torch.ones_like(tie, dtype=torch.bool)
    for some in tiles(len(tie), max(1, DECIDED_BYTES // (4 * len(tasks)))):
        if last:  # what is summed is exact
            within = derivatives[some] <= derivatives[some].amin(1, keepdim=True) + tie[some, None]
            best[some] = within.int().argmax(1)
            continue
        lead = derivatives[some].mean(1, keepdim=True) - derivatives[some]
        # Bits of one mask are not quite independent: by how much less, what is summed tells.
        seen = torch.linalg.vector_norm(lead, dim=1).square() / len(tasks)
        wider = (seen / known[some]).nan_to_num(1, 1).clamp(min=1)
        least = mean[some].sum(1) - _margin(wider * rest[some], single[some])
        here = [(layer, x[some], gradient[some]) for layer, x, gradient in layers]
        best[some], clear[some] = _decide(tasks, here, lead, least, tie[some], few)
    return best, clear


def _chosen(layers: Factors, spreads: Sequence[Tensor], shares: tuple[float, float]) -> list[Tensor]:
    """Which units of each layer are summed, bool (b, out), as ``shares`` tell, by their spreads (b, out)."""
    chosen = []
    for number, ((_, _, gradient), spread) in enumerate(zip(layers, spreads, strict=True)):
        share, least = (shares[0], LEAST) if number == 0 else (shares[1], 0)
        count = max(least, math.ceil(share * spread.shape[1]))
        # From among those that matter to most losses: a unit costs little more for many losses than for a few.
        common = (spread / spread.sum(1, keepdim=True).clamp(min=1e-30)).sum(0).argsort(descending=True, stable=True)
        spread = spread.index_fill(1, common[COMMON * count :], 0)
        rank = spread.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen.append((gradient != 0).any(1) & (rank < count))
    return chosen


def _decide(
    tasks: Sequence[int], layers: Factors, lead: Tensor, least: Tensor, tie: Tensor, few: int
) -> tuple[Tensor, Tensor]:
    """The best mask of each loss as far as screened derivatives tell, int64 (b,), and whether they do, bool.

    Args:
        lead: by how much they are below their mean, (b, k).
        least: what the exact derivative of a mask that does not lead is at the least, (b,).
        tie, few: as in ``_round``.
    """
    few = min(few, len(tasks) - 1)
    leads, masks = lead.topk(few + 1)
    exact = torch.full_like(leads, torch.inf)
    stay, clear = leads >= leads[:, :1] * LEADS, torch.ones_like(tie, dtype=torch.bool)
    for _ in range(2):  # those that lead much, then those that are not far enough above the best of them
        if few + 1 < len(tasks):
            clear &= ~stay[:, few]  # there may be more
        more = stay & clear[:, None] & exact.isinf()
        row, place = more.nonzero().unbind(1)
        exact[row, place] = _exact(tasks, layers, row, masks[row, place])
        limit = exact.amin(1) + tie
        clear &= limit.isfinite()
        stay = least[:, None] - leads <= limit[:, None]
    return masks.masked_fill(exact > limit[:, None], len(tasks)).amin(1), clear


def _margin(variance: Tensor, single: Tensor) -> Tensor:
    """How far below its mean a sum of independent bits may be (Bernstein), the largest of which adds ``single``."""
    tail = single * RISK / 3
    return tail + (tail.square() + 2 * RISK * variance).sqrt()


def _exact(tasks: Sequence[int], layers: Factors, losses: Tensor, masks: Tensor) -> Tensor:
    """The exact derivatives (pairs,) of pairs of a loss (pairs,) and the index of a mask (pairs,)."""
    found = torch.zeros(len(losses), device=losses.device)
    often = masks.bincount(minlength=1)[masks] >= OFTEN
    for mask, pairs in _by(masks, often):
        rows = losses[pairs]
        for layer, x, gradient in layers:
            found[pairs] += layer.coefficient_gradients([tasks[mask]], x[rows], gradient[rows])[:, 0]
    for loss, pairs in _by(losses, ~often):
        some = [tasks[mask] for mask in masks[pairs].tolist()]
        for layer, x, gradient in layers:
            found[pairs] += layer.loss_gradients(some, x[loss], gradient[loss])
    return found


def _by(keys: Tensor, chosen: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each of the ``keys`` (pairs,) that are ``chosen``, and which pairs have it."""
    places = chosen.nonzero().flatten()
    order = keys[places].argsort(stable=True)
    which, counts = keys[places][order].unique_consecutive(return_counts=True)
    yield from zip(which.tolist(), places[order].split(counts.tolist()), strict=True)
